/** All jobs that the token may see, live and without log lines: the newest message of each. */

import { ask } from './ask.ts';
import { compareIds } from './eventIds.ts';
import { type Complete, type Failure, isTerminal, type Message, type Progress } from './messages.ts';
import { type Connection, ReconnectingSocket } from './ReconnectingSocket.ts';
import type { StreamOptions } from './TrainingJobStream.ts';
import { socketUrl } from './urls.ts';
import { Watchers } from './Watchers.ts';

export type JobMessage = Progress | Complete | Failure;
export type FleetState = ReadonlyMap<number, JobMessage>;

/** Pure; a message that is older than what is known of its job changes nothing. */
export function applyFleet(state: FleetState, messages: readonly Message[]): FleetState {
  const next = new Map(state);
  let changed = false;
  for (const message of messages) {
    if (message.type === 'log') continue;
    const known = next.get(message.job_id);
    if (known && compareIds(message.id, known.id) < 0) continue;
    next.set(message.job_id, message);
    changed = true;
  }
  return changed ? next : state;
}

/** Nobody reads numbers that change faster, and a list of many jobs is painted whole each time (measured 2026-11-29). */
const PACE_MS = 100;
/** After a reconnect, how long the gateway has to tell of the jobs that go on. */
const SETTLE_MS = 2_000;

export class FleetStream {
  state: FleetState = new Map();
  private readonly watchers = new Watchers(PACE_MS);
  private readonly socket: ReconnectingSocket;
  private received: Message[] = [];
  /** Known as not ended, and not heard of since the connection came back. */
  private untold = new Set<number>();
  private settling: ReturnType<typeof setTimeout> | undefined;
  private readonly options: Pick<StreamOptions, 'url' | 'token' | 'onMessage'>;

  constructor(options: Pick<StreamOptions, 'url' | 'token' | 'onMessage'> = {}) {
    this.options = options;
    this.socket = new ReconnectingSocket({
      address: () => socketUrl(options.url, '/training-jobs/ws'),
      token: options.token ?? null,
      onText: (text) => {
        const message = JSON.parse(text) as Message;
        options.onMessage?.(message);
        this.received.push(message);
        this.untold.delete(message.job_id);
        this.watchers.tell();
      },
      onConnection: ({ phase }) => {
        if (phase === 'live') this.begin();
        this.watchers.tell();
      },
      hasMissed: () => this.hasMissed(),
    });
    this.watchers.before = () => {
      const received = this.received;
      this.received = [];
      if (received.length > 0) this.state = applyFleet(this.state, received);
    };
  }

  /** The gateway begins with every job that has not ended: of which it doesn't tell, ended while nobody listened. */
  private begin(): void {
    this.untold = new Set([...this.state].filter(([, { status }]) => !isTerminal(status)).map(([id]) => id));
    clearTimeout(this.settling);
    if (this.untold.size > 0) this.settling = setTimeout(() => this.forget(), SETTLE_MS);
  }

  private forget(): void {
    if (this.connection.phase !== 'live' || this.untold.size === 0) return;
    this.state = new Map([...this.state].filter(([id]) => !this.untold.has(id)));
    this.untold.clear();
    this.watchers.tell();
  }

  /** Silence is usual; whether anybody is there is asked elsewhere. Rejects when nobody answers. */
  private async hasMissed(): Promise<boolean> {
    await ask(this.options, '/training-jobs?limit=1');
    return false;
  }

  get connection(): Connection {
    return this.socket.connection;
  }

  readonly subscribe = (watcher: () => void): (() => void) => this.watchers.add(watcher);

  close(): void {
    clearTimeout(this.settling);
    this.socket.close();
  }
}
