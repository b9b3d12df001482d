/** A WebSocket that comes back by itself, and says at every moment how it stands. */

import { delayMs } from './backoff.ts';
import { type Close, verdictOn } from './closes.ts';

export interface Connection {
  /**
   * `waiting`: lost, the next try is at `retryAt`. `polling`: no place is free for a socket, so the messages are asked
   * for, until one is. `ended`, `refused`, `closed`: for good.
   */
  readonly phase: 'connecting' | 'live' | 'waiting' | 'polling' | 'ended' | 'refused' | 'closed';
  /** How many tries in a row failed. */
  readonly tries: number;
  /** Milliseconds since the epoch; null unless waiting. */
  readonly retryAt: number | null;
  /** What the last close said. */
  readonly close: Close | null;
}

export interface SocketOptions {
  /** Asked before every try: the cursor in it moves. */
  readonly address: () => string;
  readonly token: string | null;
  readonly onText: (text: string) => void;
  readonly onConnection: (connection: Connection) => void;
  /** Asked after long silence: whether messages were missed. Rejects when nobody answers. */
  readonly hasMissed?: () => Promise<boolean>;
}

const PING_MS = 60_000;
const SILENCE_MS = 20_000;
/** A socket that lives shorter than this counts as another failed try. */
const STEADY_MS = 3_000;
/** A token of HTTP (RFC 9110), which a subprotocol has to be. */
const PROTOCOL = /^[!#$%&'*+\-.^_`|~0-9A-Za-z]+$/;

export class ReconnectingSocket {
  connection: Connection = { phase: 'connecting', tries: 0, retryAt: null, close: null };
  private readonly options: SocketOptions;
  private socket: WebSocket | null = null;
  private timer: ReturnType<typeof setTimeout> | undefined;
  private pulse: ReturnType<typeof setInterval> | undefined;
  private tries = 0;
  private openedAt = 0;
  private heardAt = 0;
  private pingedAt = 0;

  constructor(options: SocketOptions) {
    this.options = options;
    globalThis.addEventListener?.('online', this.hurry);
    globalThis.addEventListener?.('offline', this.drop);
    this.open();
  }

  close(): void {
    this.leave();
    this.become('closed', this.connection.close);
  }

  /** Nothing more can come, as was learned elsewhere. */
  end(reason: string): void {
    this.leave();
    this.become('ended', { code: 1000, reason });
  }

  /** Gives up the socket that is there and opens another at once, as after a hole in its messages. */
  reopen(): void {
    this.forget();
    this.open();
  }

  private open(): void {
    const { address, token } = this.options;
    if (token && !PROTOCOL.test(token)) {
      // The constructor would throw: what no subprotocol may be is no token either.
      this.leave();
      this.become('refused', { code: 1008, reason: 'invalid token' });
      return;
    }
    const socket = token ? new WebSocket(address(), ['Bearer', token]) : new WebSocket(address());
    this.socket = socket;
    this.become('connecting', this.connection.close);
    socket.onopen = () => {
      this.openedAt = this.heardAt = this.pingedAt = Date.now();
      this.pulse = setInterval(() => void this.feelPulse(), 5_000);
      this.become('live', null);
    };
    socket.onmessage = (event: MessageEvent<string>) => {
      this.heardAt = Date.now();
      this.options.onText(event.data);
    };
    socket.onclose = (event) => this.closed({ code: event.code, reason: event.reason });
  }

  private closed(close: Close): void {
    const livedMs = this.connection.phase === 'live' ? Date.now() - this.openedAt : 0;
    this.forget();
    const verdict = verdictOn(close);
    if (verdict !== 'lost') {
      this.leave();
      this.become(verdict, close);
      return;
    }
    if (livedMs > STEADY_MS) this.tries = 0;
    const waitMs = delayMs(this.tries, close, Math.random());
    this.tries += 1;
    this.timer = setTimeout(() => this.open(), waitMs);
    this.become('waiting', close, Date.now() + waitMs);
  }

  /** Silence is usual between epochs; a broken network looks the same, so somebody else is asked. */
  private async feelPulse(): Promise<void> {
    const socket = this.socket;
    const now = Date.now();
    if (now - this.pingedAt > PING_MS) {
      this.pingedAt = now;
      socket?.send('ping'); // counts as activity: a quiet job is no idle client
    }
    if (now - this.heardAt < SILENCE_MS || !this.options.hasMissed) return;
    const heardAt = (this.heardAt = now);
    const missed = await this.options.hasMissed().catch(() => true);
    if (missed && socket === this.socket && this.heardAt === heardAt) this.drop();
  }

  private readonly hurry = (): void => {
    if (this.connection.phase !== 'waiting') return;
    clearTimeout(this.timer);
    this.open();
  };

  private readonly drop = (): void => {
    if (this.socket && this.connection.phase === 'live') this.closed({ code: 1006, reason: 'no network' });
  };

  private forget(): void {
    clearTimeout(this.timer);
    clearInterval(this.pulse);
    if (!this.socket) return;
    this.socket.onopen = this.socket.onmessage = this.socket.onclose = null;
    this.socket.close();
    this.socket = null;
  }

  private leave(): void {
    this.forget();
    globalThis.removeEventListener?.('online', this.hurry);
    globalThis.removeEventListener?.('offline', this.drop);
  }

  private become(phase: Connection['phase'], close: Close | null, retryAt: number | null = null): void {
    this.connection = { phase, tries: this.tries, retryAt, close };
    this.options.onConnection(this.connection);
  }
}
