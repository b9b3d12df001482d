/** The table of jobs: rows of one height, so that it is known which ones are on the screen. */

import { memo, useEffect, useRef } from 'react';
import { useNow } from '../app/platform.tsx';
import { Link, setQuery } from '../app/router.tsx';
import type { Job } from '../rest/types.ts';
import { ago, duration, number, percent } from '../ui/format.ts';
import { Bar, JobStatus } from '../ui/JobStatus.tsx';
import { useSpread } from '../ui/useSpread.ts';
import { useWindowed } from '../ui/useWindowed.ts';
import { isUsuallyDescending, lossOf, type SortKey, type Wanted } from './liveJobs.ts';

const ROW_PX = 44;
const COLUMNS: readonly { key: SortKey; text: string; className: string }[] = [
  { key: 'job', text: 'Job', className: 'col-id' },
  { key: 'name', text: 'Name', className: 'col-name' },
  { key: 'status', text: 'Status', className: 'col-status' },
  { key: 'progress', text: 'Progress', className: 'col-progress' },
  { key: 'loss', text: 'Loss', className: 'col-loss num' },
  { key: 'eta', text: 'Left', className: 'col-eta num' },
  { key: 'owner', text: 'Owner', className: 'col-owner' },
];

interface TableProps {
  readonly jobs: readonly Job[];
  readonly wanted: Wanted;
  readonly picked: ReadonlySet<number>;
  readonly onPick: (jobId: number, isPicked: boolean) => void;
  /** Called when the last rows come into sight. */
  readonly onEnd: () => void;
  readonly isRead: boolean;
}

export function JobTable({ jobs, wanted, picked, onPick, onEnd, isRead }: TableProps) {
  const body = useRef<HTMLTableSectionElement>(null);
  const { first, end } = useWindowed(body, null, jobs.length, ROW_PX);
  const rows = useSpread(jobs.slice(first, end), idOf);
  const now = useNow(5000);
  useEffect(() => {
    if (isRead && end >= jobs.length) onEnd();
  }, [isRead, end, jobs.length, onEnd]);

  return (
    <table className="jobs" aria-rowcount={jobs.length + 1} aria-busy={!isRead}>
      <thead>
        <tr aria-rowindex={1}>
          <th scope="col" className="col-pick">
            <span className="hidden">Compare</span>
          </th>
          {COLUMNS.map((column) => (
            <th key={column.key} scope="col" className={column.className} aria-sort={sorted(wanted, column.key)}>
              <button type="button" className="sort" onClick={() => sortBy(wanted, column.key)}>
                {column.text}
                <span className="arrow" aria-hidden="true">
                  {wanted.sort === column.key ? (wanted.descending ? '↓' : '↑') : ''}
                </span>
              </button>
            </th>
          ))}
          <th scope="col" className="col-when">
            Since
          </th>
        </tr>
      </thead>
      <tbody ref={body}>
        {first > 0 && (
          <tr aria-hidden="true" style={{ height: first * ROW_PX }}>
            <td colSpan={9} />
          </tr>
        )}
        {rows.map((job, index) => (
          <Row
            key={job.job_id}
            job={job}
            index={first + index + 2}
            isPicked={picked.has(job.job_id)}
            onPick={onPick}
            since={ago(sinceOf(job), now)}
          />
        ))}
        {end < jobs.length && (
          <tr aria-hidden="true" style={{ height: (jobs.length - end) * ROW_PX }}>
            <td colSpan={9} />
          </tr>
        )}
      </tbody>
    </table>
  );
}

interface RowProps {
  readonly job: Job;
  readonly index: number;
  readonly isPicked: boolean;
  readonly onPick: (jobId: number, isPicked: boolean) => void;
  readonly since: string;
}

const Row = memo(function Row({ job, index, isPicked, onPick, since }: RowProps) {
  const place = placeOf(job);
  return (
    <tr aria-rowindex={index} data-job={job.job_id}>
      <td className="col-pick">
        <input
          type="checkbox"
          aria-label={`Compare job ${job.job_id}`}
          checked={isPicked}
          onChange={(event) => onPick(job.job_id, event.target.checked)}
        />
      </td>
      <td className="col-id num">{job.job_id}</td>
      <td className="col-name">
        <Link href={`/jobs/${job.job_id}`} className="job-link">
          {job.name}
        </Link>
        <span className={job.status === 'failed' ? 'sub bad' : 'sub'} title={place}>
          {place}
        </span>
      </td>
      <td className="col-status">
        <JobStatus status={job.status} stopping={job.stop_requested} />
      </td>
      <td className="col-progress">
        <Bar value={job.progress} status={job.status} label={`Progress of job ${job.job_id}`} />
        <span className="progress-text num moving">
          {percent(job.progress)}
          <span className="epochs">
            {' '}
            {job.current_epoch}/{job.total_epochs}
          </span>
        </span>
      </td>
      <td className="col-loss num">
        <span className="moving">{number(lossOf(job))}</span>
      </td>
      <td className="col-eta num">
        <span className="moving">{job.status === 'running' ? duration(job.eta_s) : '–'}</span>
      </td>
      <td className="col-owner">{job.owner}</td>
      <td className="col-when">{since}</td>
    </tr>
  );
});

function idOf(job: Job): number {
  return job.job_id;
}

/** Where it runs, why it waits, why it failed: one line. */
function placeOf(job: Job): string {
  if (job.status === 'failed') return job.error_message ?? '';
  if (job.status === 'queued') {
    const place = job.queue_position === null ? '' : `${ordinal(job.queue_position)} in the queue`;
    return [place, job.pending_reason].filter(Boolean).join(': ');
  }
  const what = job.spec.recipe ?? job.spec.entrypoint ?? '';
  const where = job.hosts
    .map((host) => (host.gpus.length > 0 ? `${host.name} GPU ${host.gpus.join(',')}` : host.name))
    .join(', ');
  return [what, where].filter(Boolean).join(' on ');
}

function ordinal(place: number): string {
  return place === 1 ? 'next' : `place ${place}`;
}

function sinceOf(job: Job): string {
  return job.finished_at ?? (job.status === 'running' ? (job.started_at ?? job.created_at) : job.created_at);
}

function sorted(wanted: Wanted, key: SortKey): 'ascending' | 'descending' | undefined {
  return wanted.sort === key ? (wanted.descending ? 'descending' : 'ascending') : undefined;
}

function sortBy(wanted: Wanted, key: SortKey): void {
  const usual = isUsuallyDescending(key);
  const descending = wanted.sort === key ? !wanted.descending : usual;
  setQuery({ sort: key === 'job' ? '' : key, order: descending === usual ? '' : descending ? 'down' : 'up' });
}
