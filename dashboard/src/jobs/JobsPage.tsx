/** All jobs, live: filtered, searched, sorted; thousands of them, of which only those on the screen are painted. */

import { useCallback, useEffect, useMemo } from 'react';
import { useMay } from '../app/platform.tsx';
import { go, Link, setQuery, useQuery } from '../app/router.tsx';
import { isTerminal, type Status } from '../stream/index.ts';
import { Notice, Trouble } from '../ui/Notice.tsx';
import { useTitle } from '../ui/useTitle.ts';
import { chosen, isUsuallyDescending, jobIds, type SortKey, type Wanted } from './liveJobs.ts';
import { JobTable } from './JobTable.tsx';
import { useJobs } from './useJobs.ts';

const STATUSES: readonly Status[] = ['running', 'queued', 'succeeded', 'failed', 'stopped'];

export function JobsPage() {
  const { jobs, counts, isRead, error, hasMore, readMore } = useJobs();
  const mayWrite = useMay('jobs:write');
  const query = useQuery();
  const wanted = useMemo(() => wantedBy(query), [query.toString()]);
  const picks = query.get('compare') ?? '';
  const picked = useMemo<ReadonlySet<number>>(() => new Set(jobIds(picks)), [picks]);
  const shown = useMemo(() => chosen(jobs, wanted), [jobs, wanted]);
  useTitle(`${counts.running ?? 0} running`);

  // To find something among all jobs, all have to be read.
  const needsAll = Boolean(wanted.search || wanted.status || wanted.sort !== 'job' || !wanted.descending);
  useEffect(() => {
    if (needsAll && hasMore) readMore();
  }, [needsAll, hasMore, readMore]);

  // One function for all time: a new one would paint every row anew.
  const pick = useCallback((jobId: number, isPicked: boolean) => {
    const next = new Set(jobIds(new URLSearchParams(location.search).get('compare') ?? ''));
    if (isPicked) next.add(jobId);
    else next.delete(jobId);
    setQuery({ compare: [...next].sort((a, b) => a - b).join(',') });
  }, []);

  return (
    <>
      <div className="page-head">
        <h1>Jobs</h1>
        <div className="filters">
          <div className="chips" role="group" aria-label="Status">
            <Chip
              on={!wanted.status}
              onClick={() => setQuery({ status: '' })}
              text="all"
              count={jobs.length}
              plus={hasMore}
            />
            {STATUSES.map((status) => (
              <Chip
                key={status}
                on={wanted.status === status}
                onClick={() => setQuery({ status })}
                text={status}
                count={counts[status] ?? 0}
                plus={hasMore && isTerminal(status)}
              />
            ))}
          </div>
          <input
            type="search"
            className="search"
            aria-label="Search jobs"
            placeholder="name, owner, tag, host, #id"
            value={wanted.search}
            onChange={(event) => setQuery({ search: event.target.value })}
          />
        </div>
        <div className="page-actions">
          {picked.size > 0 && (
            <button type="button" onClick={() => go(`/compare?jobs=${[...picked].join(',')}`)}>
              Compare {picked.size}
            </button>
          )}
          {mayWrite && (
            <Link className="button primary" href="/submit">
              New job
            </Link>
          )}
        </div>
      </div>
      <Trouble error={error} />
      {isRead && jobs.length === 0 ? (
        <Notice title="No job yet">
          {mayWrite ? (
            <>
              <Link href="/submit">Submit the first one</Link>, or in a terminal:{' '}
              <code>epochcast submit train.py --watch</code>
            </>
          ) : (
            'Jobs show up here as soon as somebody submits them.'
          )}
        </Notice>
      ) : (
        <JobTable jobs={shown} wanted={wanted} picked={picked} onPick={pick} onEnd={readMore} isRead={isRead} />
      )}
      {isRead && jobs.length > 0 && shown.length === 0 && (
        <p className="waiting">{hasMore ? 'Searching older jobs …' : 'No job is like that.'}</p>
      )}
    </>
  );
}

function Chip(props: { on: boolean; onClick: () => void; text: string; count: number; plus: boolean }) {
  return (
    <button type="button" className="chip" aria-pressed={props.on} onClick={props.onClick}>
      {props.text}{' '}
      <span className="count">
        {props.count}
        {props.plus ? '+' : ''}
      </span>
    </button>
  );
}

const SORTS: readonly SortKey[] = ['job', 'name', 'owner', 'status', 'progress', 'loss', 'eta'];

function wantedBy(query: URLSearchParams): Wanted {
  const status = query.get('status') as Status;
  const asked = query.get('sort') as SortKey;
  const sort = SORTS.includes(asked) ? asked : 'job';
  const order = query.get('order');
  return {
    status: STATUSES.includes(status) ? status : '',
    search: query.get('search') ?? '',
    sort,
    descending: order === 'up' ? false : order === 'down' ? true : isUsuallyDescending(sort),
  };
}
