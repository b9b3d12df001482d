/** A job as `GET /training-jobs/{job_id}` answers it, as the message that a new subscriber would get first. */

import type { Complete, Failure, JobError, Metrics, Progress, Status } from './messages.ts';

/** What the answer has of the job's state; it has more. */
export interface Snapshot {
  readonly job_id: number;
  readonly status: Status;
  readonly progress: number;
  readonly current_epoch: number;
  readonly total_epochs: number;
  readonly current_loss: number | null;
  readonly metrics: Metrics;
  readonly eta_s: number | null;
  readonly attempt: number;
  readonly stop_requested: boolean;
  readonly model_id: number | null;
  readonly final_metrics: Metrics | null;
  readonly error_message: string | null;
  readonly error: JobError | null;
  /** null before its first event. */
  readonly last_event_id: string | null;
  readonly timestamp: string;
}

export function messageOf(job: Snapshot): Progress | Complete | Failure {
  if (job.status === 'succeeded') {
    const { model_id, final_metrics } = job;
    return { ...common(job), type: 'complete', model_id, final_metrics: final_metrics ?? {}, duration_s: null };
  }
  if (job.status === 'failed' && job.error) {
    const { error_message, error } = job;
    return { ...common(job), type: 'error', error_message: error_message ?? error.message, error };
  }
  return progressOf(job);
}

export function progressOf(job: Snapshot): Progress {
  const { current_loss, metrics, eta_s, attempt, stop_requested } = job;
  return { ...common(job), type: 'progress', current_loss, metrics, eta_s, attempt, stop_requested };
}

function common(job: Snapshot) {
  const { job_id, status, progress, current_epoch, total_epochs, timestamp } = job;
  return { id: job.last_event_id ?? '0', job_id, status, progress, current_epoch, total_epochs, timestamp };
}
