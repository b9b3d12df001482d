/** All jobs that the token may see, live and without log lines: the newest message of each. */

import { compareIds } from './eventIds.ts';
import type { Complete, Failure, Message, Progress } from './messages.ts';
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

export class FleetStream {
  state: FleetState = new Map();
  private readonly watchers = new Watchers(PACE_MS);
  private readonly socket: ReconnectingSocket;
  private received: Message[] = [];

  constructor(options: Pick<StreamOptions, 'url' | 'token' | 'onMessage'> = {}) {
    this.socket = new ReconnectingSocket({
      address: () => socketUrl(options.url, '/training-jobs/ws'),
      token: options.token ?? null,
      onText: (text) => {
        const message = JSON.parse(text) as Message;
        options.onMessage?.(message);
        this.received.push(message);
        this.watchers.tell();
      },
      onConnection: () => this.watchers.tell(),
    });
    this.watchers.before = () => {
      const received = this.received;
      this.received = [];
      if (received.length > 0) this.state = applyFleet(this.state, received);
    };
  }

  get connection(): Connection {
    return this.socket.connection;
  }

  readonly subscribe = (watcher: () => void): (() => void) => this.watchers.add(watcher);

  close(): void {
    this.socket.close();
  }
}
