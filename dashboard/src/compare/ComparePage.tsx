/** Several jobs side by side: their curves in one picture, and in what they differ. The address says which. */

import { type FormEvent, useMemo, useState } from 'react';
import { useFleet, usePlatform } from '../app/platform.tsx';
import { Link, setQuery, useQuery } from '../app/router.tsx';
import { Chart } from '../curves/Chart.tsx';
import { ViewControls, WHOLE } from '../curves/ViewControls.tsx';
import { withMessage } from '../jobs/liveJobs.ts';
import type { History, Items, Job } from '../rest/types.ts';
import { useAnswer } from '../rest/useAnswer.ts';
import { JobStatus } from '../ui/JobStatus.tsx';
import { Notice, Trouble } from '../ui/Notice.tsx';
import { useTitle } from '../ui/useTitle.ts';
import { Differences } from './Differences.tsx';
import { comparison, type Compared, jobIds } from './comparison.ts';

const MOST = 8;

export default function ComparePage() {
  const { rest } = usePlatform();
  const ids = jobIds(useQuery().get('jobs') ?? '').slice(0, MOST);
  const fleet = useFleet();
  const [view, setView] = useState(WHOLE);
  const key = ids.join(',');
  useTitle(`Compare ${key}`);

  // Of running jobs the curves are read again at each epoch that the fleet tells of.
  const epochs = ids.map((id) => `${fleet.get(id)?.current_epoch ?? ''}${fleet.get(id)?.status ?? ''}`).join();
  const jobs = useAnswer(`compare ${key}`, (signal) =>
    Promise.all(ids.map((id) => rest.get<Job>(`/training-jobs/${id}`, signal))),
  );
  const histories = useAnswer(`histories ${key} ${epochs}`, async (signal) => {
    if (ids.length === 0) return [];
    const query = ids.map((id) => `job_id=${id}`).join('&');
    return (
      await rest.get<Items<{ job_id: number; metrics: History }>>(
        `/training-jobs/metrics?${query}&max_points=2000`,
        signal,
      )
    ).items;
  });
  const [last, setLast] = useState(histories.data);
  if (histories.data && histories.data !== last) setLast(histories.data);

  const compared = useMemo<readonly Compared[]>(
    () =>
      (jobs.data ?? []).map((job) => ({ job, history: last?.find((one) => one.job_id === job.job_id)?.metrics ?? {} })),
    [jobs.data, last],
  );
  const { x, charts } = useMemo(() => comparison(compared), [compared]);

  return (
    <>
      <div className="page-head">
        <h1>Compare</h1>
        <Chosen jobs={compared.map(({ job }) => withMessage(job, fleet.get(job.job_id)))} ids={ids} />
      </div>
      <Trouble error={jobs.error ?? histories.error} />
      {ids.length === 0 && (
        <Notice title="Nothing to compare yet">
          Tick jobs in <Link href="/">the list</Link>, or add their numbers above. The address of this page can be
          shared.
        </Notice>
      )}
      {x.length > 0 && (
        <section aria-label="Curves">
          <div className="section-tools">
            <ViewControls view={view} onView={setView} />
          </div>
          <div className="charts">
            {charts.map(({ title, curves }) => (
              <Chart
                key={title}
                title={title}
                x={x}
                curves={curves}
                view={view}
                onRange={(range) => setView({ ...view, range })}
              />
            ))}
          </div>
        </section>
      )}
      {compared.length > 0 && <Differences compared={compared} />}
    </>
  );
}

function Chosen({ jobs, ids }: { jobs: readonly Job[]; ids: readonly number[] }) {
  const show = (chosen: readonly number[]) => setQuery({ jobs: chosen.join(',') });
  const add = (event: FormEvent<HTMLFormElement>) => {
    event.preventDefault();
    const more = jobIds(String(new FormData(event.currentTarget).get('jobs')));
    show([...new Set([...ids, ...more])].slice(0, MOST));
    event.currentTarget.reset();
  };
  return (
    <div className="chosen">
      {jobs.map((job) => (
        <span key={job.job_id} className="chosen-job">
          <Link href={`/jobs/${job.job_id}`}>
            #{job.job_id} {job.name}
          </Link>{' '}
          <JobStatus status={job.status} />
          <button
            type="button"
            className="quiet icon"
            aria-label={`Remove job ${job.job_id}`}
            onClick={() => show(ids.filter((id) => id !== job.job_id))}
          >
            ×
          </button>
        </span>
      ))}
      {ids.length < MOST && (
        <form onSubmit={add}>
          <input name="jobs" aria-label="Job numbers to add" placeholder="add #id" inputMode="numeric" required />
          <button>Add</button>
        </form>
      )}
    </div>
  );
}
