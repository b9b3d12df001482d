/** The page of one job, kept up to date by its stream. */

import { useEffect, useMemo } from 'react';
import { useFleet, usePlatform } from '../app/platform.tsx';
import { columnsOf, stepColumnsOf } from '../curves/columns.ts';
import { Curves } from '../curves/Curves.tsx';
import type { Attempt, History, Items, Job } from '../rest/types.ts';
import { useAnswer } from '../rest/useAnswer.ts';
import { compareIds, isTerminal, MAX_EPOCHS } from '../stream/index.ts';
import { useTrainingJob } from '../stream/useTrainingJob.ts';
import { percent } from '../ui/format.ts';
import { useLast } from '../ui/useLast.ts';
import { Hint, Trouble } from '../ui/Notice.tsx';
import { useTitle } from '../ui/useTitle.ts';
import { Artifacts } from './Artifacts.tsx';
import { Attempts } from './Attempts.tsx';
import { ErrorPanel } from './ErrorPanel.tsx';
import { JobHead } from './JobHead.tsx';
import { LogPanel } from './LogPanel.tsx';
import { Machines } from './Machines.tsx';
import { newest } from './newest.ts';
import { SpecPanel } from './SpecPanel.tsx';
import { Standing } from './Standing.tsx';

/** The place in the queue changes without an event. */
const QUEUED_AGAIN_MS = 5_000;
/** So do metrics by step, and which checkpoint an attempt has loaded. */
const RUNNING_AGAIN_MS = 5_000;

interface LiveJobProps {
  readonly first: Job;
  readonly after: string;
  /** Called when the job goes on after its end: the stream of the run before has closed for good. */
  readonly onAgain: () => void;
}

export function LiveJob({ first, after, onAgain }: LiveJobProps) {
  const { rest, token } = usePlatform();
  const jobId = first.job_id;
  const told = useTrainingJob(jobId, { token, after });
  const moved = newest(told, first);
  // What messages don't tell (hosts, queue, files) is read again whenever the job has moved.
  const turn = `${jobId} ${moved.status} ${moved.attempt} ${moved.stopRequested}`;
  const asked = useAnswer(
    `job ${turn}`,
    (signal) => rest.get<Job>(`/training-jobs/${jobId}`, signal),
    moved.status === 'queued' ? QUEUED_AGAIN_MS : 0,
  );
  const job = useLast(asked.data, first);
  const live = newest(moved, job);
  const status = live.status ?? job.status;
  // The stream keeps the newest epochs only: those that it forgets are in the record by then.
  const forgotten = Math.floor((told.epochs[0]?.epoch ?? 0) / (MAX_EPOCHS / 2));
  const history = useAnswer(`metrics ${turn} ${told.resyncs} ${forgotten}`, (signal) =>
    rest.get<History>(`/training-jobs/${jobId}/metrics?max_points=5000`, signal),
  );
  const steps = useAnswer(
    `steps ${turn}`,
    (signal) => rest.get<History>(`/training-jobs/${jobId}/metrics?by=step&max_points=2000`, signal),
    status === 'running' ? RUNNING_AGAIN_MS : 0,
  );
  const attempts = useAnswer(
    `attempts ${turn}`,
    (signal) => rest.get<Items<Attempt>>(`/training-jobs/${jobId}/attempts`, signal),
    status === 'running' ? RUNNING_AGAIN_MS : 0,
  );
  const known = useLast(history.data, null);
  const knownSteps = useLast(steps.data, null);
  const runs = useLast(attempts.data, null)?.items ?? [];

  const columns = useMemo(() => columnsOf(known, live.epochs), [known, live.epochs]);
  const byStep = useMemo(() => stepColumnsOf(knownSteps), [knownSteps]);
  const marks = useMemo(
    () =>
      runs
        .filter((run) => run.number > 1)
        .map((run) => ({ x: (run.resumed_epoch ?? 0) + 1, text: `attempt ${run.number}` })),
    [runs],
  );
  const stepMarks = useMemo(
    () =>
      marks.flatMap(({ x: epoch, text }) => {
        const x = byStep.x[byStep.epochs.findIndex((one) => one >= epoch)];
        return x === undefined ? [] : [{ x, text }];
      }),
    [marks, byStep],
  );
  useTitle(`${isTerminal(status) ? status : percent(live.progress)} · ${job.name}`);

  const ofFleet = useFleet().get(jobId);
  const goesOn =
    live.connection.phase === 'ended' &&
    ofFleet !== undefined &&
    !isTerminal(ofFleet.status) &&
    compareIds(ofFleet.id, live.lastId ?? '0') > 0;
  useEffect(() => {
    if (goesOn) onAgain();
  }, [goesOn, onAgain]);

  return (
    <>
      <JobHead job={job} live={live} status={status} onDone={asked.reload} />
      {live.connection.phase === 'polling' && (
        <Hint>
          All places on this job's live stream are taken, so this page asks for what is new, a second or two later. It
          goes live by itself when one is free.
        </Hint>
      )}
      <Trouble error={asked.error ?? history.error ?? steps.error ?? attempts.error} />
      <Standing job={job} live={live} status={status} />
      {live.error && <ErrorPanel error={live.error} />}
      <div className="job-columns">
        <div className="job-main">
          <Curves title="Curves" unit="epoch" columns={columns} marks={marks} name={`job-${jobId}`} />
          {byStep.x.length > 0 && (
            <Curves title="By step" unit="step" columns={byStep} marks={stepMarks} name={`job-${jobId}-steps`} />
          )}
          <LogPanel jobId={jobId} lines={live.lines} isPartial={after !== '0'} />
        </div>
        <div className="job-side">
          <Machines job={job} />
          <Artifacts jobId={jobId} modelId={live.modelId} turn={turn} epoch={live.currentEpoch} />
          <Attempts attempts={runs} />
          <SpecPanel job={job} />
        </div>
      </div>
    </>
  );
}
