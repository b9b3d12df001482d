/** One host: whether it is alive, how full it is, what it runs. */

import { Link } from '../app/router.tsx';
import type { Host } from '../rest/types.ts';
import { duration, gib } from '../ui/format.ts';
import { GpuRow, Meter } from './meters.tsx';

interface HostCardProps {
  readonly host: Host;
  readonly mayDrain: boolean;
  readonly onDrain: () => void;
  readonly onResume: () => void;
}

export function HostCard({ host, mayDrain, onDrain, onResume }: HostCardProps) {
  const isGone = host.status === 'unreachable';
  const stalled = new Map(host.training.filter((one) => one.is_stalled).map((one) => [one.job_id, one.silent_s]));
  return (
    <article className={`host ${host.status}`} aria-labelledby={`host-${host.name}`}>
      <header>
        <h2 id={`host-${host.name}`}>{host.name}</h2>
        <span className={`status host-${host.status}`}>{host.status}</span>
        {mayDrain && host.status === 'ready' && (
          <button type="button" className="quiet" onClick={onDrain}>
            Drain
          </button>
        )}
        {mayDrain && host.status === 'draining' && (
          <button type="button" className="quiet" onClick={onResume}>
            Resume
          </button>
        )}
      </header>
      {isGone && <p className="stale">{silence(host)}; what follows is from then.</p>}
      <Meter name="CPU" percent={host.cpu.percent} text={`${host.cpu.cores} cores`} />
      <Meter
        runsOut
        name="Memory"
        percent={host.memory.total_gib > 0 ? (100 * host.memory.used_gib) / host.memory.total_gib : null}
        text={`${gib(host.memory.used_gib)} of ${gib(host.memory.total_gib)}`}
      />
      <Meter
        name="Slots"
        percent={host.slots.total > 0 ? (100 * host.slots.used) / host.slots.total : null}
        text={`${host.slots.used} of ${host.slots.total}`}
      />
      {host.gpus.map((gpu) => (
        <GpuRow key={gpu.uuid} gpu={gpu} />
      ))}
      <p className="host-jobs">
        {host.jobs.length === 0 ? (
          <span className="soft">no job</span>
        ) : (
          host.jobs.map((id) => (
            <span key={id}>
              <Link href={`/jobs/${id}`}>job {id}</Link>
              {stalled.has(id) && <span className="bad"> silent for {duration(stalled.get(id))}</span>}
            </span>
          ))
        )}
      </p>
      <p className="versions soft">
        {Object.entries(host.versions)
          .map(([name, version]) => `${name} ${version}`)
          .join(' · ')}
      </p>
    </article>
  );
}

/** One that has shut down in order leaves no heartbeat behind. */
function silence({ heartbeat_age_s: age }: Host): string {
  return age === null ? 'It has shut down' : `Last heard of ${duration(age)} ago`;
}
