/** A job's name, how it stands, and what can be done with it. */

import { useState } from 'react';
import { useMay, usePlatform } from '../app/platform.tsx';
import { Link } from '../app/router.tsx';
import type { Job } from '../rest/types.ts';
import { isTerminal, type Status } from '../stream/index.ts';
import type { JobView } from '../stream/useTrainingJob.ts';
import { ConnectionState } from '../ui/ConnectionState.tsx';
import { Dialog } from '../ui/Dialog.tsx';
import { JobStatus } from '../ui/JobStatus.tsx';
import { Trouble } from '../ui/Notice.tsx';

interface HeadProps {
  readonly job: Job;
  readonly live: JobView;
  readonly status: Status;
  /** Called when the gateway has taken an order. */
  readonly onDone: () => void;
}

export function JobHead({ job, live, status, onDone }: HeadProps) {
  const { rest } = usePlatform();
  const mayWrite = useMay('jobs:write');
  const [asking, setAsking] = useState<'stop' | 'restart' | null>(null);
  const [fromScratch, setFromScratch] = useState(false);
  const [error, setError] = useState<Error | null>(null);
  const isStopping = live.stopRequested && !isTerminal(status);
  const canRestart = status === 'failed' || status === 'stopped';

  const order = (verb: 'stop' | 'restart', body?: object) => {
    setError(null);
    rest.post<Job>(`/training-jobs/${job.job_id}/${verb}`, body).then(onDone, setError);
  };

  return (
    <>
      <div className="page-head">
        <div className="job-title">
          <h1>{job.name}</h1>
          <span className="soft num">#{job.job_id}</span>
          <JobStatus status={status} stopping={isStopping} />
          <ConnectionState connection={live.connection} what="This job's stream" />
        </div>
        <div className="page-actions">
          <Link className="button" href={`/compare?jobs=${job.job_id}`}>
            Compare
          </Link>
          {mayWrite && (
            <Link className="button" href={`/submit?like=${job.job_id}`}>
              Run again …
            </Link>
          )}
          {mayWrite && !isTerminal(status) && (
            <button type="button" className="danger" disabled={isStopping} onClick={() => setAsking('stop')}>
              {isStopping ? 'Stopping …' : 'Stop'}
            </button>
          )}
          {mayWrite && canRestart && (
            <button type="button" className="primary" onClick={() => setAsking('restart')}>
              Restart
            </button>
          )}
        </div>
      </div>
      <Trouble error={error} />
      {asking === 'stop' && (
        <Dialog
          title={`Stop job ${job.job_id}?`}
          action="Stop the job"
          danger
          onAction={() => order('stop')}
          onClose={() => setAsking(null)}
        >
          <p>
            {status === 'running'
              ? `It keeps a checkpoint at epoch ${live.currentEpoch} if its script can make one, and can be restarted from there.`
              : 'It leaves the queue, and can be restarted later.'}
          </p>
        </Dialog>
      )}
      {asking === 'restart' && (
        <Dialog
          title={`Restart job ${job.job_id}?`}
          action="Restart the job"
          onAction={() => order('restart', { from_scratch: fromScratch })}
          onClose={() => setAsking(null)}
        >
          <p>It goes back into the queue as attempt {job.attempt + 1}.</p>
          <label className="check">
            <input type="checkbox" checked={fromScratch} onChange={(event) => setFromScratch(event.target.checked)} />
            From the beginning, without its last checkpoint
          </label>
        </Dialog>
      )}
    </>
  );
}
