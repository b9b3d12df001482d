/** epochcast-stream: a training job, live, in any browser code; `useTrainingJob` is in `epochcast-stream/react`. */

export { type Close, type Verdict, verdictOn, wantsToken } from './closes.ts';
export { compareIds, cursorBefore } from './eventIds.ts';
export { applyFleet, type FleetState, FleetStream, type JobMessage } from './FleetStream.ts';
export { apply, type Epoch, type JobState, type LogLine, MAX_EPOCHS, MAX_LINES, unknownJob } from './jobState.ts';
export * from './messages.ts';
export type { Connection } from './ReconnectingSocket.ts';
export type { Snapshot } from './snapshot.ts';
export { type StreamOptions, TrainingJobStream } from './TrainingJobStream.ts';
