/** One job: reads it once, then follows it live from a little before what was read. */

import { usePlatform } from '../app/platform.tsx';
import { Link } from '../app/router.tsx';
import { Problem } from '../rest/Rest.ts';
import type { Job } from '../rest/types.ts';
import { useAnswer } from '../rest/useAnswer.ts';
import { cursorBefore } from '../stream/index.ts';
import { Notice } from '../ui/Notice.tsx';
import { useTitle } from '../ui/useTitle.ts';
import { LiveJob } from './LiveJob.tsx';
import '../styles/job.css';

/** About as many of the job's earlier lines are shown at once. */
const EARLIER = 2_000;

export default function JobPage({ jobId }: { jobId: number }) {
  const { rest } = usePlatform();
  const first = useAnswer(`job ${jobId}`, (signal) => rest.get<Job>(`/training-jobs/${jobId}`, signal));
  useTitle(`Job ${jobId}`);
  if (first.data) {
    const { generation, last_event_id: newest } = first.data;
    return (
      <LiveJob
        key={generation}
        first={first.data}
        after={cursorBefore(newest ?? '0', EARLIER)}
        onAgain={first.reload}
      />
    );
  }
  if (first.error instanceof Problem && first.error.status === 404) {
    return (
      <Notice isPage title={`There is no job ${jobId}`}>
        Or it is somebody else's. <Link href="/">All jobs</Link>
      </Notice>
    );
  }
  if (first.error) {
    return (
      <Notice isPage kind="bad" title="The job can't be read">
        {first.error.message}{' '}
        <button type="button" onClick={first.reload}>
          Try again
        </button>
      </Notice>
    );
  }
  return <p className="waiting">Loading job {jobId} …</p>;
}
