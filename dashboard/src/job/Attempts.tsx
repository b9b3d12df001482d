/** Each attempt of the job: where, how long, and why it ended. */

import { useNow } from '../app/platform.tsx';
import type { Attempt } from '../rest/types.ts';
import { between, duration, moment } from '../ui/format.ts';

export function Attempts({ attempts }: { attempts: readonly Attempt[] }) {
  const now = useNow(attempts.some((one) => one.ended_at === null) ? 1000 : 60_000);
  if (attempts.length === 0) return null;
  return (
    <section aria-labelledby="attempts-title">
      <h2 id="attempts-title">Attempts</h2>
      <ol className="attempts">
        {[...attempts].reverse().map((one) => (
          <li key={one.number}>
            <span className="attempt-head">
              <b>{one.number}</b>
              <span>{one.outcome ?? 'running'}</span>
              <span className="soft num" title={moment(one.started_at)}>
                {duration(between(one.started_at, one.ended_at, now))}
              </span>
            </span>
            <span className="soft">
              on {one.host}
              {one.gpus.length > 0 ? ` GPU ${one.gpus.join(', ')}` : ''}
              {one.members.length > 1 ? ` and ${one.members.length - 1} more` : ''}
              {one.resumed_epoch ? `, from the checkpoint of epoch ${one.resumed_epoch}` : ''}
            </span>
            {one.reason && <span className="soft">{one.reason}</span>}
          </li>
        ))}
      </ol>
    </section>
  );
}
