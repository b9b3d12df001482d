/** Why a job failed, typed and readable; for out of memory the memory as a bar. */

import type { GpuMemory, JobError } from '../stream/index.ts';
import { gib } from '../ui/format.ts';

const KINDS: Record<string, string> = {
  cuda_oom: 'GPU memory used up',
  host_oom: 'Host memory used up',
  user_error: 'The script failed',
  diverged: 'The training diverged',
  timeout: 'Ran too long',
  stalled: 'Reported nothing for too long',
  lost: 'Its hosts were lost',
  code_rejected: 'Its code could not be used',
  environment: 'The host could not run it',
  platform: 'A fault of the platform',
};

export function ErrorPanel({ error }: { error: JobError }) {
  const where: [string, string | number | null][] = [
    ['host', error.host],
    ['GPU', error.gpu],
    ['rank', error.rank],
    ['epoch', error.epoch],
    ['step', error.step],
    ['exit code', error.exit_code],
    ['signal', error.signal],
  ];
  return (
    <section className="error-panel" aria-labelledby="error-title">
      <h2 id="error-title">
        {KINDS[error.type] ?? error.type} <code>{error.type}</code>
      </h2>
      <p className="error-message">{error.message}</p>
      {error.verdict && (
        <p className="verdict">
          <b>What to do:</b> {error.verdict}
        </p>
      )}
      {error.memory && <MemoryBar memory={error.memory} />}
      <p className="error-where">
        {where
          .filter(([, value]) => value !== null)
          .map(([name, value]) => (
            <span key={name}>
              <span className="soft">{name}</span> {value}
            </span>
          ))}
        <span>
          <span className="soft">run again</span> {error.retryable ? 'may succeed' : 'as it is, fails again'}
        </span>
      </p>
      {error.detail && (
        <details>
          <summary>Detail</summary>
          <pre tabIndex={0}>{error.detail}</pre>
        </details>
      )}
      {error.traceback && (
        <details open={error.type === 'user_error'}>
          <summary>Traceback</summary>
          <pre tabIndex={0}>{error.traceback}</pre>
        </details>
      )}
    </section>
  );
}

interface Part {
  readonly name: string;
  readonly size: number;
}

/** What the GPU's memory held, and how much more was wanted than there was. Sizes that the error left out are left out. */
export function memoryParts(memory: GpuMemory): readonly Part[] {
  const { allocated_gib: allocated, reserved_gib: reserved, others_gib: others, free_gib: free } = memory;
  const unused = allocated !== null && reserved !== null ? Math.max(0, reserved - allocated) : null;
  const parts: [string, number | null][] = [
    ['tensors', allocated],
    ['reserved, unused', unused],
    ['other processes', others],
    ['free', free],
  ];
  return parts.flatMap(([name, size]) => (size !== null && size > 0 ? [{ name, size }] : []));
}

function MemoryBar({ memory }: { memory: GpuMemory }) {
  const parts = memoryParts(memory);
  const requested = memory.requested_gib ?? 0;
  const total = memory.total_gib ?? parts.reduce((sum, part) => sum + part.size, 0);
  const missing = Math.max(0, requested - (memory.free_gib ?? 0));
  const scale = 100 / Math.max(total + missing, 1e-9);
  const words = parts.map((part) => `${part.name} ${gib(part.size)}`).join(', ');
  return (
    <div className="memory">
      <div
        className="memory-bar"
        role="img"
        aria-label={`GPU memory of ${gib(total)}: ${words}; ${gib(requested)} requested`}
      >
        {parts.map((part) => (
          <span
            key={part.name}
            className={`part ${part.name.split(/[ ,]/)[0]}`}
            style={{ width: `${part.size * scale}%` }}
          />
        ))}
        {missing > 0 && <span className="part missing" style={{ width: `${missing * scale}%` }} />}
      </div>
      <ul className="memory-key">
        {parts.map((part) => (
          <li key={part.name}>
            <span className={`swatch part ${part.name.split(/[ ,]/)[0]}`} aria-hidden="true" />
            {part.name} <b className="num">{gib(part.size)}</b>
          </li>
        ))}
        {requested > 0 && (
          <li>
            <span className="swatch part missing" aria-hidden="true" />
            requested <b className="num">{gib(requested)}</b>
          </li>
        )}
        <li>
          GPU <b className="num">{gib(total)}</b>
        </li>
      </ul>
    </div>
  );
}
