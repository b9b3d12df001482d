/** How full something is, as a bar with its numbers; and a GPU in one line. */

import { Link } from '../app/router.tsx';
import type { Gpu } from '../rest/types.ts';
import { gib } from '../ui/format.ts';

interface MeterProps {
  readonly name: string;
  /** Whose, where a page has several of this name. */
  readonly of?: string;
  readonly percent: number | null;
  readonly text: string;
  /** Whether full is bad: memory; a busy processor is what one pays for. */
  readonly runsOut?: boolean;
}

export function Meter({ name, of, percent, text, runsOut = false }: MeterProps) {
  const level = !runsOut || percent === null ? '' : percent > 95 ? 'full' : percent > 80 ? 'high' : '';
  return (
    <div className="meter">
      <span className="meter-name">{name}</span>
      <span
        className="meter-bar"
        role="meter"
        aria-label={of ? `${of} ${name}` : name}
        aria-valuemin={0}
        aria-valuemax={100}
        aria-valuenow={Math.round(percent ?? 0)}
      >
        <span className={level} style={{ width: `${Math.min(100, percent ?? 0)}%` }} />
      </span>
      <span className="meter-text num">
        {percent === null ? '' : `${Math.round(percent)} %`} <span className="soft">{text}</span>
      </span>
    </div>
  );
}

export function GpuRow({ gpu }: { gpu: Gpu }) {
  const { used_gib: used, total_gib: total } = gpu.memory;
  return (
    <div className="gpu">
      <span className="gpu-name" title={gpu.uuid}>
        GPU {gpu.index} <span className="soft">{gpu.name}</span>
      </span>
      <span className="gpu-holder">{holderOf(gpu)}</span>
      <Meter
        runsOut
        name="Memory"
        of={`GPU ${gpu.index}`}
        percent={total > 0 ? (100 * used) / total : null}
        text={`${gib(used)} of ${gib(total)}`}
      />
      {gpu.utilisation_percent !== null && (
        <Meter name="Busy" of={`GPU ${gpu.index}`} percent={gpu.utilisation_percent} text="" />
      )}
    </div>
  );
}

function holderOf(gpu: Gpu) {
  const others = gpu.users.length > 0 && (
    <span className="bad">used by pid {gpu.users.map((user) => user.pid).join(', ')}</span>
  );
  if (gpu.quarantined) return <span className="bad">quarantined</span>;
  if (gpu.job_id === null) return others || <span className="soft">free</span>;
  return (
    <>
      <Link href={`/jobs/${gpu.job_id}`}>job {gpu.job_id}</Link> {others}
    </>
  );
}
