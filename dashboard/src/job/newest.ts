/** Whichever is newer of what a job's stream has told and what was read of the job. Pure. */

import type { Job } from '../rest/types.ts';
import { compareIds, type JobState } from '../stream/index.ts';

/** How the job stands now: while its earlier messages are told again, nothing on the page goes back in time. Epochs and
 * lines are always those of the stream. */
export function newest<State extends JobState>(told: State, job: Job): State {
  if (told.lastId !== null && compareIds(told.lastId, job.last_event_id ?? '0') >= 0) return told;
  return {
    ...told,
    status: job.status,
    progress: job.progress,
    currentEpoch: job.current_epoch,
    totalEpochs: job.total_epochs,
    currentLoss: job.current_loss,
    metrics: job.metrics,
    etaS: job.eta_s,
    attempt: job.attempt,
    stopRequested: job.stop_requested,
    completed: job.status === 'succeeded',
    modelId: job.model_id,
    finalMetrics: job.final_metrics,
    durationS: null,
    errorMessage: job.error_message,
    error: job.error,
    timestamp: job.timestamp,
  };
}
