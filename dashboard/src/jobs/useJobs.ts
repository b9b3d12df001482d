/** All jobs as far as they were read, live: the newest page again and again, older ones when they are asked for. */

import { useCallback, useEffect, useMemo, useRef, useState } from 'react';
import { useFleet, usePlatform } from '../app/platform.tsx';
import type { Job, Page } from '../rest/types.ts';
import type { Status } from '../stream/index.ts';
import { useAnswer } from '../rest/useAnswer.ts';
import { countByStatus, hasNewJob, merged, withFleet } from './liveJobs.ts';

const PAGE = 200;
/** What changes without an event: places in the queue and why jobs wait. */
const AGAIN_MS = 10_000;
const NEW_JOB_MS = 300;

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
  const reading = useRef(false);

  const newest = useAnswer('jobs', (signal) => rest.get<Page<Job>>(`/training-jobs?limit=${PAGE}`, signal), AGAIN_MS);
  useEffect(() => {
    const page = newest.data;
    if (!page) return;
    setRead((before) => merged(before, page.items));
    setCursor((before) => (before === undefined ? page.next_cursor : before));
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
        setRead((before) => merged(page.items, before));
        setCursor(page.next_cursor);
      })
      .catch(setMoreError)
      .finally(() => {
        reading.current = false;
      });
  }, [rest, cursor]);

  const jobs = useMemo(() => withFleet(read, fleet), [read, fleet]);
  const counts = useMemo(() => countByStatus(jobs, fleet), [jobs, fleet]);
  const error = newest.error ?? moreError;
  return { jobs, counts, isRead: newest.data !== null, error, hasMore: Boolean(cursor), readMore };
}
