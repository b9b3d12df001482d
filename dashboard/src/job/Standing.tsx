/** Where the job stands, in large numbers: what one looks for from across the room. */

import { useNow } from '../app/platform.tsx';
import type { Job } from '../rest/types.ts';
import { isTerminal, type Status } from '../stream/index.ts';
import type { JobView } from '../stream/useTrainingJob.ts';
import { ago, between, duration, number, percent } from '../ui/format.ts';
import { Bar } from '../ui/JobStatus.tsx';

const MOST_METRICS = 4;

export function Standing({ job, live, status }: { job: Job; live: JobView; status: Status }) {
  const now = useNow();
  const metrics = live.finalMetrics ?? live.metrics;
  const ended = isTerminal(status);
  const finishedAt = ended ? (job.finished_at ?? live.timestamp) : null;
  return (
    <section className="standing" aria-label="Where it stands">
      <div className="standing-progress">
        <span className="big num" data-testid="progress">
          {percent(live.progress)}
        </span>
        <Bar value={live.progress} status={status} label="Progress" />
        <span className="soft num">
          epoch {live.currentEpoch} of {live.totalEpochs}
        </span>
      </div>
      {status === 'queued' ? (
        <Tile name="Waits because" wide>
          {job.pending_reason ?? 'its turn comes next'}
          {job.queue_position !== null && <span className="soft"> · place {job.queue_position}</span>}
          {job.expected_start_at && (
            <span className="soft"> · expected {new Date(job.expected_start_at).toLocaleTimeString()}</span>
          )}
        </Tile>
      ) : (
        <Tile name={ended ? 'Took' : 'Left'}>
          {ended ? duration(live.durationS ?? between(job.started_at, finishedAt, now)) : duration(live.etaS)}
        </Tile>
      )}
      {status === 'running' && <Tile name="Running for">{duration(between(job.started_at, null, now))}</Tile>}
      {ended && <Tile name="Ended">{ago(finishedAt, now)}</Tile>}
      {Object.entries(metrics)
        .slice(0, MOST_METRICS)
        .map(([name, value]) => (
          <Tile key={name} name={name}>
            {number(value)}
          </Tile>
        ))}
    </section>
  );
}

function Tile({ name, children, wide = false }: { name: string; children: React.ReactNode; wide?: boolean }) {
  return (
    <div className={wide ? 'tile wide' : 'tile'}>
      <span className="tile-name">{name}</span>
      <span className={wide ? '' : 'tile-value num'}>{children}</span>
    </div>
  );
}
