/** How a stream's connection stands, in a word and a colour; always there to see. */

import { useNow } from '../app/platform.tsx';
import type { Connection } from '../stream/index.ts';

export function ConnectionState({ connection, what }: { connection: Connection; what: string }) {
  const { phase, retryAt, close } = connection;
  return (
    <span
      className={`connection ${phase}`}
      data-phase={phase}
      title={close?.reason ? `${what}: ${close.code} ${close.reason}` : what}
    >
      <span className="dot" aria-hidden="true" />
      {/* A screen reader hears of changes, not of each second. */}
      <span className="hidden" role="status">
        {what}: {WORDS[phase]}
      </span>
      <span aria-hidden="true">
        {phase === 'waiting' && retryAt !== null ? <Countdown until={retryAt} /> : WORDS[phase]}
      </span>
    </span>
  );
}

const WORDS: Record<Connection['phase'], string> = {
  connecting: 'connecting',
  live: 'live',
  waiting: 'reconnecting',
  polling: 'asking for news',
  ended: 'ended',
  refused: 'refused',
  closed: 'closed',
};

function Countdown({ until }: { until: number }) {
  const left = Math.ceil((until - useNow(500)) / 1000);
  return left > 0 ? <>reconnecting in {left} s</> : <>reconnecting</>;
}
