/** One job, live: its state kept up to date over a socket that comes back with its cursor. */

import { ask } from './ask.ts';
import { isCrowded } from './closes.ts';
import { compareIds, isNext } from './eventIds.ts';
import { JobPoll } from './JobPoll.ts';
import { apply, isSeen, type JobState, unknownJob } from './jobState.ts';
import type { Message } from './messages.ts';
import { type Connection, ReconnectingSocket } from './ReconnectingSocket.ts';
import { socketUrl } from './urls.ts';
import { Watchers } from './Watchers.ts';

export interface StreamOptions {
  /** The gateway; the page's own when it is left out. */
  readonly url?: string | undefined;
  readonly token?: string | null | undefined;
  /** An event id to begin after; `'0'`: the whole history. Without it: the state now, then what follows. */
  readonly after?: string | undefined;
  /** Every message once, in order, before `state` has it. */
  readonly onMessage?: (message: Message) => void;
}

const PACE_MS = 33;
/** A socket is accepted before it is refused: open for so long, it has got a place. */
const PLACED_MS = 2_000;
/** Longer than the gateway holds a call back. */
const POLL_PATIENCE_MS = 35_000;

export class TrainingJobStream {
  state: JobState;
  private readonly options: StreamOptions;
  private readonly watchers = new Watchers(PACE_MS);
  private readonly socket: ReconnectingSocket;
  private received: Message[] = [];
  /** Of the newest message received, which `state` may not have yet. */
  private lastId: string | null;
  private holeAt: string | null = null;
  private poll: JobPoll | null = null;
  private isPollAnswered = false;
  private placing: ReturnType<typeof setTimeout> | undefined;

  constructor(jobId: number, options: StreamOptions = {}) {
    this.options = options;
    this.state = unknownJob(jobId);
    this.lastId = options.after ?? null;
    this.socket = new ReconnectingSocket({
      address: () => socketUrl(options.url, `/training-jobs/${jobId}/ws`, this.lastId),
      token: options.token ?? null,
      onText: (text) => this.receive(JSON.parse(text) as Message),
      onConnection: (connection) => this.connected(connection),
      hasMissed: () => this.hasMissed(),
    });
    this.watchers.before = () => this.settle();
  }

  get connection(): Connection {
    const { connection } = this.socket;
    return this.poll && this.isPollAnswered ? { ...connection, phase: 'polling' } : connection;
  }

  /** Calls `watcher` after changes, at most about 30 times a second. Returns what ends that. */
  readonly subscribe = (watcher: () => void): (() => void) => this.watchers.add(watcher);

  close(): void {
    this.stopPolling();
    this.socket.close();
  }

  private connected({ phase, close }: Connection): void {
    clearTimeout(this.placing);
    if (phase === 'waiting' && isCrowded(close)) this.startPolling();
    else if (phase === 'live' && this.poll) this.placing = setTimeout(() => this.stopPolling(), PLACED_MS);
    else if (phase === 'ended' || phase === 'refused') this.stopPolling();
    this.watchers.tell();
  }

  private startPolling(): void {
    this.poll ??= new JobPoll({
      jobId: this.state.jobId,
      get: async <Answer>(path: string, signal: AbortSignal) => {
        const either = AbortSignal.any([signal, AbortSignal.timeout(POLL_PATIENCE_MS)]);
        const answer = await ask(this.options, path, either);
        if (!answer.ok) throw new Error(`status ${answer.status}`);
        return (await answer.json()) as Answer;
      },
      after: () => this.lastId,
      onMessage: (message) => this.take(message),
      onHealth: (isAnswered) => {
        this.isPollAnswered = isAnswered;
        this.watchers.tell();
      },
      onEnd: (status) => {
        this.stopPolling();
        this.socket.end(status);
      },
    });
  }

  private stopPolling(): void {
    clearTimeout(this.placing);
    this.poll?.close();
    this.poll = null;
    this.isPollAnswered = false;
    this.watchers.tell();
  }

  private receive(message: Message): void {
    // Whom nobody tells anything has no place.
    if (this.poll) this.stopPolling();
    if (isSeen({ lastId: this.lastId }, message)) return;
    const last = this.lastId;
    const isResync = message.type === 'progress' && message.resync === true;
    if (last !== null && last !== '0' && !isResync && !isNext(last, message.id) && this.holeAt !== last) {
      // Not by the contract; once, the log is asked for what is missing.
      this.holeAt = last;
      this.socket.reopen();
      return;
    }
    this.take(message);
  }

  private take(message: Message): void {
    if (isSeen({ lastId: this.lastId }, message)) return;
    this.lastId = message.id;
    this.options.onMessage?.(message);
    this.received.push(message);
    this.watchers.tell();
  }

  private settle(): void {
    if (this.received.length === 0) return;
    const received = this.received;
    this.received = [];
    this.state = apply(this.state, received);
  }

  private async hasMissed(): Promise<boolean> {
    const answer = await ask(this.options, `/training-jobs/${this.state.jobId}`);
    if (!answer.ok) return false;
    const { last_event_id: newest } = (await answer.json()) as { last_event_id: string | null };
    return newest !== null && compareIds(newest, this.lastId ?? '0') > 0;
  }
}
