/** A job in a React component: `const { status, progress } = useTrainingJob(42, { token })`. */

import { useEffect, useState } from 'react';
import { type JobState, unknownJob } from './jobState.ts';
import type { Connection } from './ReconnectingSocket.ts';
import { type StreamOptions, TrainingJobStream } from './TrainingJobStream.ts';

export interface JobView extends JobState {
  readonly connection: Connection;
}

const BEFORE: Connection = { phase: 'connecting', tries: 0, retryAt: null, close: null };

/** Follows the job as long as the component is there; another job, token, gateway or `after` begins anew. */
export function useTrainingJob(jobId: number, options: Omit<StreamOptions, 'onMessage'> = {}): JobView {
  const { url, token, after } = options;
  const [view, setView] = useState<JobView>(() => ({ ...unknownJob(jobId), connection: BEFORE }));

  useEffect(() => {
    const stream = new TrainingJobStream(jobId, { url, token, after });
    const show = () => setView({ ...stream.state, connection: stream.connection });
    show();
    const leave = stream.subscribe(show);
    return () => {
      leave();
      stream.close();
    };
  }, [jobId, url, token, after]);

  return view;
}
