/** The list of jobs: pages from the record, with the fleet's newest messages over them. Pure. */

import type { Job } from '../rest/types.ts';
import { compareIds, type FleetState, isTerminal, type JobMessage, type Status } from '../stream/index.ts';

/** The numbers in `1,2 #3`, each once. */
export function jobIds(text: string): readonly number[] {
  return [...new Set((text.match(/(?<![-.\d])\d+/g) ?? []).map(Number).filter((id) => id > 0))];
}

/** The job with what a newer message says of it. */
export function withMessage(job: Job, message: JobMessage | undefined): Job {
  if (!message || compareIds(message.id, job.last_event_id ?? '0') <= 0) return job;
  const moved: Job = {
    ...job,
    status: message.status,
    progress: message.progress,
    current_epoch: message.current_epoch,
    total_epochs: message.total_epochs,
    timestamp: message.timestamp,
    last_event_id: message.id,
    ...(message.status === 'queued' ? {} : { queue_position: null, pending_reason: null, expected_start_at: null }),
    ...(isTerminal(message.status)
      ? { finished_at: message.timestamp, eta_s: null, hosts: [] }
      : { finished_at: null }),
  };
  switch (message.type) {
    case 'progress':
      return {
        ...moved,
        current_loss: message.current_loss,
        metrics: message.metrics,
        eta_s: message.eta_s,
        attempt: message.attempt,
        stop_requested: message.stop_requested,
        started_at: job.started_at ?? (message.status === 'running' ? message.timestamp : null),
      };
    case 'complete':
      return { ...moved, model_id: message.model_id, final_metrics: message.final_metrics };
    case 'error':
      return { ...moved, error_message: message.error_message, error: message.error };
  }
}

/** By job as it was read: what its newest message made of it. */
const moved = new WeakMap<Job, { readonly message: JobMessage; readonly job: Job }>();

/** Between two messages of a job it stays the same object: the others' messages paint no row of its anew. */
export function withFleet(jobs: readonly Job[], fleet: FleetState): readonly Job[] {
  return jobs.map((read) => {
    const message = fleet.get(read.job_id);
    if (!message) return read;
    const known = moved.get(read);
    if (known?.message === message) return known.job;
    const job = withMessage(read, message);
    moved.set(read, { message, job });
    return job;
  });
}

const LOSSES = ['train_loss', 'loss', 'val_loss'];

/** null: NaN or infinite; undefined: none was reported. */
export function lossOf({ current_loss: loss, metrics }: Job): number | null | undefined {
  return loss ?? (LOSSES.some((name) => name in metrics) ? null : undefined);
}

/** How many jobs have each status; of those that have not ended all, read or not, because the fleet tells of each. */
export function countByStatus(jobs: readonly Job[], fleet: FleetState): Partial<Record<Status, number>> {
  const counts: Partial<Record<Status, number>> = {};
  const listed = new Set<number>();
  for (const { job_id, status } of jobs) {
    listed.add(job_id);
    counts[status] = (counts[status] ?? 0) + 1;
  }
  for (const [id, { status }] of fleet) if (!listed.has(id)) counts[status] = (counts[status] ?? 0) + 1;
  return counts;
}

/** Whether the fleet tells of a job that the list doesn't have: it was submitted after the newest page was read. */
export function hasNewJob(jobs: readonly Job[], fleet: FleetState): boolean {
  const newest = jobs.reduce((most, job) => Math.max(most, job.job_id), 0);
  for (const id of fleet.keys()) if (id > newest) return true;
  return false;
}

/** Whether more jobs have come since `known` was read than `newest` holds: there may be some between the two. */
export function hasGap(known: readonly Job[], newest: readonly Job[]): boolean {
  if (known.length === 0 || newest.length === 0) return false;
  return Math.min(...newest.map((job) => job.job_id)) > Math.max(...known.map((job) => job.job_id));
}

/** Pages read at different times, newest reading of each job, newest job first. */
export function merged(older: readonly Job[], newer: readonly Job[]): readonly Job[] {
  const byId = new Map(older.map((job) => [job.job_id, job]));
  for (const job of newer) byId.set(job.job_id, job);
  return [...byId.values()].sort((a, b) => b.job_id - a.job_id);
}

export interface Wanted {
  readonly status: Status | '';
  /** Words, all of which must be somewhere in the job. */
  readonly search: string;
  readonly sort: SortKey;
  readonly descending: boolean;
}

export type SortKey = 'job' | 'name' | 'owner' | 'status' | 'progress' | 'loss' | 'eta';

/** How a column is sorted first: words from A to Z, what is newest or largest at the top. */
export function isUsuallyDescending(key: SortKey): boolean {
  return key === 'job' || key === 'progress';
}

const KEYS: Record<SortKey, (job: Job) => number | string | null> = {
  job: (job) => job.job_id,
  name: (job) => job.name.toLowerCase(),
  owner: (job) => job.owner.toLowerCase(),
  status: (job) => ['running', 'queued', 'failed', 'stopped', 'succeeded'].indexOf(job.status),
  progress: (job) => job.progress,
  loss: (job) => job.current_loss,
  eta: (job) => job.eta_s,
};

export function chosen(jobs: readonly Job[], wanted: Wanted): readonly Job[] {
  const words = wanted.search.toLowerCase().split(/\s+/).filter(Boolean);
  const kept = jobs.filter(
    (job) => (!wanted.status || job.status === wanted.status) && words.every((word) => text(job).includes(word)),
  );
  const key = KEYS[wanted.sort];
  const direction = wanted.descending ? -1 : 1;
  return kept.sort((a, b) => {
    const [left, right] = [key(a), key(b)];
    // What has no value stays behind what has one, whichever way.
    if (left === null || right === null) return Number(left === null) - Number(right === null) || b.job_id - a.job_id;
    return (left < right ? -1 : left > right ? 1 : 0) * direction || b.job_id - a.job_id;
  });
}

function text(job: Job): string {
  const { recipe, entrypoint, tags } = job.spec;
  const hosts = job.hosts.map((host) => host.name);
  return [`#${job.job_id}`, job.name, job.owner, recipe, entrypoint, ...tags, ...hosts, job.error_message]
    .join(' ')
    .toLowerCase();
}
