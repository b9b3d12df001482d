/** What is known of one job by its messages: a pure reducer, `apply(state, messages)`. */

import { compareIds } from './eventIds.ts';
import { isTerminal, type JobError, type Level, type Message, type Metrics, type Status } from './messages.ts';

export interface Epoch {
  readonly epoch: number;
  readonly metrics: Metrics;
  readonly attempt: number;
}

export interface LogLine {
  readonly id: string;
  readonly level: Level;
  readonly message: string;
  readonly timestamp: string;
}

export interface JobState {
  readonly jobId: number;
  /** null before the first message. */
  readonly status: Status | null;
  /** 0 to 1. */
  readonly progress: number;
  readonly currentEpoch: number;
  readonly totalEpochs: number;
  readonly currentLoss: number | null;
  readonly metrics: Metrics;
  readonly etaS: number | null;
  readonly attempt: number;
  readonly stopRequested: boolean;
  /** Stays true when the socket closes after the end. */
  readonly completed: boolean;
  readonly modelId: number | null;
  readonly finalMetrics: Metrics | null;
  readonly durationS: number | null;
  readonly errorMessage: string | null;
  readonly error: JobError | null;
  readonly timestamp: string | null;
  /** Ascending, one each, the last MAX_EPOCHS; a repeated epoch has its newest values. */
  readonly epochs: readonly Epoch[];
  /** The newest MAX_LINES. */
  readonly lines: readonly LogLine[];
  /** Counts the announced holes: what `epochs` and `lines` lack then has to be read elsewhere. */
  readonly resyncs: number;
  /** The cursor: null before the first message. */
  readonly lastId: string | null;
}

export const MAX_LINES = 5_000;
/** More than a chart has room for; a page may stay open for weeks. */
export const MAX_EPOCHS = 5_000;

export function unknownJob(jobId: number): JobState {
  return {
    jobId,
    status: null,
    progress: 0,
    currentEpoch: 0,
    totalEpochs: 1,
    currentLoss: null,
    metrics: {},
    etaS: null,
    attempt: 0,
    stopRequested: false,
    completed: false,
    modelId: null,
    finalMetrics: null,
    durationS: null,
    errorMessage: null,
    error: null,
    timestamp: null,
    epochs: [],
    lines: [],
    resyncs: 0,
    lastId: null,
  };
}

/** Messages in their order; those that the state has seen change nothing. */
export function apply(state: JobState, messages: readonly Message[]): JobState {
  const epochs = state.epochs.slice();
  const lines = state.lines.slice();
  let next = state;
  for (const message of messages) {
    if (isSeen(next, message)) continue;
    next = { ...next, ...common(message), ...change(next, message) };
    if (message.type === 'log') lines.push(lineOf(message));
    if (message.type === 'progress' && message.current_epoch > 0) {
      const { current_epoch: epoch, metrics, attempt } = message;
      if (Object.keys(metrics).length > 0) placeEpoch(epochs, { epoch, metrics, attempt });
    }
  }
  if (next === state) return state;
  if (lines.length > MAX_LINES) lines.splice(0, lines.length - MAX_LINES);
  if (epochs.length > MAX_EPOCHS) epochs.splice(0, epochs.length - MAX_EPOCHS);
  return { ...next, epochs, lines };
}

/** Whether the message tells nothing new. The announcement of a hole always does. */
export function isSeen(state: Pick<JobState, 'lastId'>, message: Message): boolean {
  if (message.type === 'progress' && message.resync) return false;
  return state.lastId !== null && compareIds(message.id, state.lastId) <= 0;
}

function common(message: Message): Partial<JobState> {
  return {
    status: message.status,
    progress: message.progress,
    currentEpoch: message.current_epoch,
    totalEpochs: message.total_epochs,
    timestamp: message.timestamp,
    lastId: message.id,
    completed: message.status === 'succeeded',
  };
}

function change(state: JobState, message: Message): Partial<JobState> {
  switch (message.type) {
    case 'progress':
      return {
        currentLoss: message.current_loss,
        metrics: message.metrics,
        etaS: message.eta_s,
        attempt: message.attempt,
        stopRequested: message.stop_requested,
        resyncs: state.resyncs + (message.resync ? 1 : 0),
        // Another run of a job that had ended.
        ...(isTerminal(message.status) ? {} : NO_END),
      };
    case 'complete':
      return {
        modelId: message.model_id,
        finalMetrics: message.final_metrics,
        durationS: message.duration_s,
        progress: 1,
        etaS: null,
      };
    case 'error':
      return { errorMessage: message.error_message, error: message.error, etaS: null };
    case 'log':
      return {};
  }
}

const NO_END = { modelId: null, finalMetrics: null, durationS: null, errorMessage: null, error: null };

function lineOf(message: Message & { type: 'log' }): LogLine {
  return { id: message.id, level: message.level, message: message.message, timestamp: message.timestamp };
}

/** Into its place: nearly always the end; a resumed attempt repeats some. */
export function placeEpoch(epochs: Epoch[], one: Epoch): void {
  let at = epochs.length;
  while (at > 0 && epochs[at - 1]!.epoch > one.epoch) at -= 1;
  if (at > 0 && epochs[at - 1]!.epoch === one.epoch) epochs[at - 1] = one;
  else epochs.splice(at, 0, one);
}
