/** The fleet: each host with its GPUs and who holds them; draining and resuming. */

import { useState } from 'react';
import { useMay, usePlatform } from '../app/platform.tsx';
import type { Host, Page } from '../rest/types.ts';
import { useAnswer } from '../rest/useAnswer.ts';
import { Dialog } from '../ui/Dialog.tsx';
import { Notice, Trouble } from '../ui/Notice.tsx';
import { useTitle } from '../ui/useTitle.ts';
import { HostCard } from './HostCard.tsx';

const AGAIN_MS = 3_000;

export default function FleetPage() {
  const { rest } = usePlatform();
  const mayDrain = useMay('hosts:admin');
  const { data, error, reload } = useAnswer('hosts', (signal) => rest.get<Page<Host>>('/hosts', signal), AGAIN_MS);
  const [draining, setDraining] = useState<Host | null>(null);
  const [refusal, setRefusal] = useState<Error | null>(null);
  useTitle('Fleet');

  const order = (host: Host, verb: 'drain' | 'resume') => {
    setRefusal(null);
    rest.post(`/hosts/${host.name}/${verb}`).then(reload, setRefusal);
  };

  const hosts = data?.items ?? [];
  return (
    <>
      <div className="page-head">
        <h1>Fleet</h1>
        {data && <p className="soft summary">{summary(hosts)}</p>}
      </div>
      <Trouble error={refusal ?? error} />
      {data && hosts.length === 0 && (
        <Notice title="No host yet">
          Start a worker on a GPU host: <code>python -m worker</code>
        </Notice>
      )}
      {data?.next_cursor && (
        <p className="soft">
          The first {hosts.length} hosts by name; <code>epochcast hosts</code> lists all.
        </p>
      )}
      {!data && !error && <p className="waiting">Loading …</p>}
      <div className="hosts">
        {hosts.map((host) => (
          <HostCard
            key={host.name}
            host={host}
            mayDrain={mayDrain}
            onDrain={() => setDraining(host)}
            onResume={() => order(host, 'resume')}
          />
        ))}
      </div>
      {draining && (
        <Dialog
          title={`Drain ${draining.name}?`}
          action="Drain the host"
          danger
          onAction={() => order(draining, 'drain')}
          onClose={() => setDraining(null)}
        >
          <p>It gets no new jobs. {runs(draining)}</p>
        </Dialog>
      )}
    </>
  );
}

function runs(host: Host): string {
  if (host.jobs.length === 0) return 'It runs none now.';
  return `What it runs goes on: ${host.jobs.length === 1 ? 'job' : 'jobs'} ${host.jobs.join(', ')}.`;
}

function summary(hosts: readonly Host[]): string {
  const ready = hosts.filter((host) => host.status === 'ready').length;
  const gpus = hosts.flatMap((host) => host.gpus);
  const held = gpus.filter((gpu) => gpu.job_id !== null).length;
  const slots = hosts.reduce(
    (sum, host) => ({ used: sum.used + host.slots.used, total: sum.total + host.slots.total }),
    { used: 0, total: 0 },
  );
  const parts = [`${ready} of ${hosts.length} ${hosts.length === 1 ? 'host' : 'hosts'} ready`];
  if (gpus.length > 0) parts.push(`${held} of ${gpus.length} GPUs held`);
  return [...parts, `${slots.used} of ${slots.total} CPU slots used`].join(' · ');
}
