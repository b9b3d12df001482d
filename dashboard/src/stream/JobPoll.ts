/** A job's messages without a socket: asked for, a little later than they would come, while no place on its stream is free. */

import { compareIds } from './eventIds.ts';
import { messageOf, progressOf, type Snapshot } from './snapshot.ts';
import { isTerminal, type Message, type Status } from './messages.ts';

/** A job that changes all the time is asked for this often; otherwise the gateway answers at the next change. */
const PACE_MS = 1_000;
const LONG_POLL_S = 20;
/** A tab that nobody looks at keeps no call open: a browser has only six to one gateway. */
const HIDDEN_PACE_MS = 5_000;
const AFTER_ERROR_MS = 3_000;

const MOST = 1_000;

interface Events {
  readonly items: readonly Message[];
  readonly next_after: string;
  /** What lay between the cursor and these is lost. */
  readonly resync: boolean;
}

export interface PollOptions {
  readonly jobId: number;
  /** One call; rejects when it was not answered well. */
  readonly get: <Answer>(path: string, signal: AbortSignal) => Promise<Answer>;
  /** The cursor now; null before the first message. */
  readonly after: () => string | null;
  readonly onMessage: (message: Message) => void;
  /** Whether the last call was answered. */
  readonly onHealth: (isAnswered: boolean) => void;
  /** Called once the job has ended and everything was told. */
  readonly onEnd: (status: Status) => void;
}

export class JobPoll {
  private readonly options: PollOptions;
  private readonly controller = new AbortController();
  private isCaughtUp = false;

  constructor(options: PollOptions) {
    this.options = options;
    void this.run();
  }

  close(): void {
    this.controller.abort();
  }

  private async run(): Promise<void> {
    const { signal } = this.controller;
    while (!signal.aborted) {
      const pauseMs = await this.once().catch(() => null);
      if (signal.aborted) return;
      this.options.onHealth(pauseMs !== null);
      await new Promise((resolve) => setTimeout(resolve, pauseMs ?? AFTER_ERROR_MS));
    }
  }

  /** Tells what is new. Returns how long to wait before the next call. */
  private async once(): Promise<number> {
    const { jobId, get, after, onMessage } = this.options;
    const { signal } = this.controller;
    const from = after();
    if (from === null) {
      const job = await this.job();
      if (!signal.aborted) onMessage(messageOf(job));
      return 0;
    }
    const isHidden = globalThis.document?.hidden ?? false;
    const wait = this.isCaughtUp && !isHidden ? LONG_POLL_S : 0;
    const page = await get<Events>(`/training-jobs/${jobId}/events?after=${from}&limit=${MOST}&wait=${wait}`, signal);
    if (page.resync) {
      const id = page.items.length > 0 ? from : page.next_after;
      const hole = { ...progressOf(await this.job()), id, resync: true };
      if (!signal.aborted) onMessage(hole);
    }
    if (signal.aborted) return 0;
    page.items.forEach(onMessage);
    this.isCaughtUp = page.items.length < MOST;
    if (page.items.length === 0 && !page.resync) await this.endIfOver();
    if (!this.isCaughtUp) return 0;
    return isHidden ? HIDDEN_PACE_MS : PACE_MS;
  }

  /** Nothing new came: the job may have ended, and then nothing will. */
  private async endIfOver(): Promise<void> {
    const { status, last_event_id: newest } = await this.job();
    const isTold = compareIds(this.options.after() ?? '0', newest ?? '0') >= 0;
    if (this.controller.signal.aborted || !isTerminal(status) || !isTold) return;
    this.close();
    this.options.onEnd(status);
  }

  private job(): Promise<Snapshot> {
    return this.options.get<Snapshot>(`/training-jobs/${this.options.jobId}`, this.controller.signal);
  }
}
