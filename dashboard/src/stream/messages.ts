/** The messages of a job's stream, as docs/messages.md describes them. */

export type Status = 'queued' | 'running' | 'succeeded' | 'failed' | 'stopped';
export type Level = 'DEBUG' | 'INFO' | 'WARNING' | 'ERROR' | 'CRITICAL';
/** By name; null where the value was NaN or infinite. */
export type Metrics = Readonly<Record<string, number | null>>;

interface Common {
  readonly id: string;
  readonly job_id: number;
  readonly status: Status;
  readonly progress: number;
  readonly current_epoch: number;
  readonly total_epochs: number;
  readonly timestamp: string;
}

export interface Progress extends Common {
  readonly type: 'progress';
  readonly current_loss: number | null;
  readonly metrics: Metrics;
  readonly eta_s: number | null;
  readonly attempt: number;
  readonly stop_requested: boolean;
  readonly non_finite?: readonly string[];
  readonly resync?: boolean;
}

export interface Log extends Common {
  readonly type: 'log';
  readonly level: Level;
  readonly message: string;
}

export interface Complete extends Common {
  readonly type: 'complete';
  readonly model_id: number | null;
  readonly final_metrics: Metrics;
  readonly duration_s: number | null;
}

export interface Failure extends Common {
  readonly type: 'error';
  readonly error_message: string;
  readonly error: JobError;
}

export type Message = Progress | Log | Complete | Failure;

/** GiB; null where the error did not say. */
export interface GpuMemory {
  readonly requested_gib: number | null;
  readonly free_gib: number | null;
  readonly allocated_gib: number | null;
  readonly reserved_gib: number | null;
  readonly total_gib: number | null;
  readonly others_gib: number | null;
}

export interface JobError {
  readonly type: string;
  readonly message: string;
  readonly detail: string | null;
  readonly retryable: boolean;
  readonly rank: number | null;
  readonly host: string | null;
  readonly gpu: string | null;
  readonly epoch: number | null;
  readonly step: number | null;
  readonly exit_code: number | null;
  readonly signal: string | null;
  readonly memory: GpuMemory | null;
  readonly verdict: string | null;
  readonly traceback: string | null;
}

export function isTerminal(status: Status | null): boolean {
  return status === 'succeeded' || status === 'failed' || status === 'stopped';
}
