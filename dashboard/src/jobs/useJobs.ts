/** All jobs as far as they were read, live: the newest page again and again, older ones when they are asked for. */

import { useCallback, useEffect, useMemo, useRef, useState } from 'react';
import { useFleet, useFleetConnection, usePlatform } from '../app/platform.tsx';
import type { Job, Page } from '../rest/types.ts';
import { isTerminal, type Status } from '../stream/index.ts';
import { useAnswer } from '../rest/useAnswer.ts';
import { countByStatus, hasGap, hasNewJob, merged, withFleet } from './liveJobs.ts';

const PAGE = 200;
/** What changes without an event: places in the queue and why jobs wait. */
const AGAIN_MS = 10_000;
const NEW_JOB_MS = 300;
/** Older pages cost more, and are read again only where a job in them has not ended. */
const OLDER_AGAIN_MS = 30_000;
const AFTER_ERROR_MS = 5_000;

export interface Jobs {
  readonly jobs: readonly Job[];
  /** Also of jobs that were not read yet, as far as the fleet tells of them. */
  readonly counts: Partial<Record<Status, number>>;
  readonly isRead: boolean;
  readonly error: Error | null;
  /** Whether there are older ones that were not read yet. */
  readonly hasMore: boolean;
  readonly readMore: () => void;
}

export function useJobs(): Jobs {
  const { rest } = usePlatform();
  const fleet = useFleet();
  const [read, setRead] = useState<readonly Job[]>([]);
  const [cursor, setCursor] = useState<string | null | undefined>(undefined);
  const [moreError, setMoreError] = useState<Error | null>(null);
  const [turn, setTurn] = useState(0);
  const reading = useRef(false);
  /** By cursor: which jobs that page had. */
  const older = useRef(new Map<string, readonly number[]>());

  const newest = useAnswer('jobs', (signal) => rest.get<Page<Job>>(`/training-jobs?limit=${PAGE}`, signal), AGAIN_MS);
  useEffect(() => {
    const page = newest.data;
    if (!page) return;
    setRead((before) => merged(before, page.items));
    // After a gap, as of a laptop that has slept, older jobs are read from there on.
    setCursor((before) => (before === undefined || hasGap(read, page.items) ? page.next_cursor : before));
  }, [newest.data]);

  const isBehind = newest.data !== null && hasNewJob(read, fleet);
  const { reload } = newest;
  useEffect(() => {
    if (!isBehind) return;
    const timer = setTimeout(reload, NEW_JOB_MS);
    return () => clearTimeout(timer);
  }, [isBehind, reload, newest.data]);

  const readMore = useCallback(() => {
    if (!cursor || reading.current) return;
    reading.current = true;
    rest
      .get<Page<Job>>(`/training-jobs?limit=${PAGE}&cursor=${encodeURIComponent(cursor)}`)
      .then((page) => {
        setMoreError(null);
        older.current.set(
          cursor,
          page.items.map((job) => job.job_id),
        );
        setRead((before) => merged(page.items, before));
        setCursor(page.next_cursor);
      })
      .catch((error: Error) => {
        setMoreError(error);
        setTimeout(() => setTurn((number) => number + 1), AFTER_ERROR_MS);
      })
      .finally(() => {
        reading.current = false;
      });
  }, [rest, cursor, turn]);

  const jobs = useMemo(() => withFleet(read, fleet), [read, fleet]);
  const active = useRef<ReadonlySet<number>>(new Set());
  active.current = useMemo(
    () => new Set(jobs.filter((job) => !isTerminal(job.status)).map((job) => job.job_id)),
    [jobs],
  );
  const isLive = useFleetConnection().phase === 'live';
  useEffect(() => {
    // At once after a lost connection: what ended meanwhile was told to nobody.
    if (!isLive) return;
    const controller = new AbortController();
    let timer: ReturnType<typeof setTimeout> | undefined;
    const again = async () => {
      for (const [cursor, ids] of older.current) {
        if (!ids.some((id) => active.current.has(id))) continue;
        const page = await rest.get<Page<Job>>(
          `/training-jobs?limit=${PAGE}&cursor=${encodeURIComponent(cursor)}`,
          controller.signal,
        );
        setRead((before) => merged(before, page.items));
      }
    };
    const always = () => {
      // What fails here is said by the newest page, which is read more often.
      void again()
        .catch(() => undefined)
        .then(() => {
          if (!controller.signal.aborted) timer = setTimeout(always, OLDER_AGAIN_MS);
        });
    };
    always();
    return () => {
      controller.abort();
      clearTimeout(timer);
    };
  }, [isLive, rest]);

  const counts = useMemo(() => countByStatus(jobs, fleet), [jobs, fleet]);
  const error = newest.error ?? moreError;
  return { jobs, counts, isRead: newest.data !== null, error, hasMore: Boolean(cursor), readMore };
}
