/** The hosts and GPUs that the job holds now, and how busy they are. */

import { usePlatform } from '../app/platform.tsx';
import { GpuRow, Meter } from '../fleet/meters.tsx';
import type { Host, Job, Page } from '../rest/types.ts';
import { useAnswer } from '../rest/useAnswer.ts';
import { gib } from '../ui/format.ts';

const AGAIN_MS = 5_000;

export function Machines({ job }: { job: Job }) {
  const { rest } = usePlatform();
  const names = job.hosts.map((host) => host.name);
  const { data } = useAnswer(
    `hosts of ${job.job_id}: ${names.join()}`,
    (signal) => rest.get<Page<Host>>(`/hosts?job_id=${job.job_id}`, signal),
    names.length > 0 ? AGAIN_MS : 0,
  );
  if (names.length === 0) return null;
  const hosts = (data?.items ?? []).filter((host) => names.includes(host.name));
  return (
    <section aria-labelledby="machines-title">
      <h2 id="machines-title">{names.length === 1 ? 'Host' : 'Hosts'}</h2>
      {hosts.map((host) => {
        const held = job.hosts.find((one) => one.name === host.name)!.gpus;
        return (
          <div key={host.name} className="machine">
            <h3>{host.name}</h3>
            <Meter name="CPU" percent={host.cpu.percent} text={`${host.cpu.cores} cores`} />
            <Meter
              runsOut
              name="Memory"
              percent={(100 * host.memory.used_gib) / host.memory.total_gib}
              text={`${gib(host.memory.used_gib)} of ${gib(host.memory.total_gib)}`}
            />
            {host.gpus
              .filter((gpu) => held.includes(gpu.index))
              .map((gpu) => (
                <GpuRow key={gpu.uuid} gpu={gpu} />
              ))}
          </div>
        );
      })}
    </section>
  );
}
