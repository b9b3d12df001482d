/** Several jobs side by side: their curves in one picture, and in what they differ. The address says which. */

import { type FormEvent, useMemo, useState } from 'react';
import { useFleet, usePlatform } from '../app/platform.tsx';
import { Link, setQuery, useQuery } from '../app/router.tsx';
import { Chart } from '../curves/Chart.tsx';
import { ViewControls, WHOLE } from '../curves/ViewControls.tsx';
import { jobIds, withMessage } from '../jobs/liveJobs.ts';
import { Problem, type Rest } from '../rest/Rest.ts';
import type { History, Items, Job } from '../rest/types.ts';
import { useAnswer } from '../rest/useAnswer.ts';
import { isTerminal } from '../stream/index.ts';
import { JobStatus } from '../ui/JobStatus.tsx';
import { useLast } from '../ui/useLast.ts';
import { Notice, Trouble } from '../ui/Notice.tsx';
import { useTitle } from '../ui/useTitle.ts';
import { Differences } from './Differences.tsx';
import { comparison, type Compared } from './comparison.ts';

const MOST = 8;
const NONE: readonly { readonly id: number; readonly job: Job | null }[] = [];
/** How often the curves of jobs that run are read again. */
const AGAIN_MS = 2_000;

export default function ComparePage() {
  const { rest } = usePlatform();
  const asked = jobIds(useQuery().get('jobs') ?? '');
  const ids = asked.slice(0, MOST);
  const fleet = useFleet();
  const [view, setView] = useState(WHOLE);
  const key = ids.join(',');
  useTitle(`Compare ${key}`);

  const statuses = ids.map((id) => fleet.get(id)?.status ?? '').join();
  const jobs = useAnswer(`compare ${key} ${statuses}`, (signal) =>
    Promise.all(ids.map(async (id) => ({ id, job: await jobOf(rest, id, signal) }))),
  );
  const found = useLast(jobs.data, NONE);
  // Of those that were just added nothing is known yet.
  const known = useMemo(() => found.flatMap(({ job }) => (job && ids.includes(job.job_id) ? [job] : [])), [found, key]);
  const wanted = known.map((job) => job.job_id);
  // Not at each epoch: of quick ones the next would come before the answer, again and again.
  const isMoving = wanted.some((id) => !isTerminal(fleet.get(id)?.status ?? 'stopped'));
  const histories = useAnswer(
    `histories ${wanted.join()} ${statuses}`,
    async (signal) => {
      if (wanted.length === 0) return [];
      const query = wanted.map((id) => `job_id=${id}`).join('&');
      return (
        await rest.get<Items<{ job_id: number; metrics: History }>>(
          `/training-jobs/metrics?${query}&max_points=2000`,
          signal,
        )
      ).items;
    },
    isMoving ? AGAIN_MS : 0,
  );
  const last = useLast(histories.data, null);

  const compared = useMemo<readonly Compared[]>(
    () => known.map((job) => ({ job, history: last?.find((one) => one.job_id === job.job_id)?.metrics ?? {} })),
    [known, last],
  );
  const { x, charts } = useMemo(() => comparison(compared), [compared]);

  return (
    <>
      <div className="page-head">
        <h1>Compare</h1>
        <Chosen
          jobs={known.map((job) => withMessage(job, fleet.get(job.job_id)))}
          missing={ids.filter((id) => found.some((one) => one.id === id && one.job === null))}
          ids={ids}
        />
      </div>
      {asked.length > MOST && (
        <p className="hint soft">
          {MOST} jobs fit side by side: these are the first of {asked.length}.
        </p>
      )}
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
            <ViewControls view={view} unit="epoch" onView={setView} />
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

/** null: there is no such job, or it is somebody else's; the others can be compared all the same. */
async function jobOf(rest: Rest, id: number, signal: AbortSignal): Promise<Job | null> {
  try {
    return await rest.get<Job>(`/training-jobs/${id}`, signal);
  } catch (error) {
    if (error instanceof Problem && error.status === 404) return null;
    throw error;
  }
}

interface ChosenProps {
  readonly jobs: readonly Job[];
  readonly missing: readonly number[];
  readonly ids: readonly number[];
}

function Chosen({ jobs, missing, ids }: ChosenProps) {
  const show = (chosen: readonly number[]) => setQuery({ jobs: chosen.join(',') });
  const remove = (removed: number) => show(ids.filter((id) => id !== removed));
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
          <Remove id={job.job_id} onRemove={remove} />
        </span>
      ))}
      {missing.map((id) => (
        <span key={id} className="chosen-job bad">
          There is no job {id}, or it is somebody else's
          <Remove id={id} onRemove={remove} />
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

function Remove({ id, onRemove }: { id: number; onRemove: (id: number) => void }) {
  return (
    <button type="button" className="quiet icon" aria-label={`Remove job ${id}`} onClick={() => onRemove(id)}>
      ×
    </button>
  );
}
