/** What was submitted: only what says something, and all of it as JSON. */

import type { ReactNode } from 'react';
import type { Job } from '../rest/types.ts';
import { moment, shown } from '../ui/format.ts';
import { Facts } from '../ui/Facts.tsx';

export function SpecPanel({ job }: { job: Job }) {
  const { spec } = job;
  const { gpus, nodes, gpu_memory_gib: memory } = spec.resources;
  const facts: [string, ReactNode][] = [
    ['owner', job.owner],
    [spec.recipe ? 'recipe' : 'script', spec.recipe ?? [spec.entrypoint, ...spec.args].join(' ')],
    ...Object.entries(spec.hyperparameters)
      .filter(([, value]) => value !== null)
      .map(([name, value]): [string, ReactNode] => [name, shown(value)]),
    [
      'resources',
      [
        gpus > 0 ? `${gpus} GPU${gpus > 1 ? 's' : ''}` : 'CPU',
        memory ? `${memory} GiB each` : '',
        nodes > 1 ? `on each of ${nodes} hosts` : '',
      ]
        .filter(Boolean)
        .join(', '),
    ],
    ['seed', spec.seed],
    ...(spec.priority !== 0 ? [['priority', spec.priority] as [string, ReactNode]] : []),
    ...(spec.max_restarts > 0 ? [['max restarts', spec.max_restarts] as [string, ReactNode]] : []),
    ...(spec.on_oom !== 'fail' ? [['on out of memory', spec.on_oom] as [string, ReactNode]] : []),
    ...(spec.tags.length > 0 ? [['tags', spec.tags.join(', ')] as [string, ReactNode]] : []),
    ['submitted', moment(job.created_at)],
    ['started', moment(job.started_at)],
    ['ended', moment(job.finished_at)],
  ];
  return (
    <section aria-labelledby="spec-title">
      <h2 id="spec-title">Spec</h2>
      <Facts facts={facts} />
      <details>
        <summary>All of it as JSON</summary>
        <pre tabIndex={0}>{JSON.stringify(spec, null, 2)}</pre>
      </details>
    </section>
  );
}
