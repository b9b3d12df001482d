/** What the job has left: its model, checkpoints, logs and memory snapshots, to be downloaded. */

import { useState } from 'react';
import { usePlatform } from '../app/platform.tsx';
import { Link } from '../app/router.tsx';
import type { Artifact, Items } from '../rest/types.ts';
import { useAnswer } from '../rest/useAnswer.ts';
import { DownloadButton } from '../ui/DownloadButton.tsx';
import { bytes, number } from '../ui/format.ts';
import { Trouble } from '../ui/Notice.tsx';
import { useLast } from '../ui/useLast.ts';

/** Checkpoints are kept without an event of their own. */
const EVERY_EPOCHS = 5;
const KINDS: Record<string, string> = { oom_snapshot: 'memory snapshot' };

export function Artifacts(props: { jobId: number; modelId: number | null; turn: string; epoch: number }) {
  const { jobId, modelId, turn, epoch } = props;
  const { rest } = usePlatform();
  const [error, setError] = useState<Error | null>(null);
  const key = `artifacts ${turn} ${modelId} ${Math.floor(epoch / EVERY_EPOCHS)}`;
  const { data } = useAnswer(key, (signal) => rest.get<Items<Artifact>>(`/training-jobs/${jobId}/artifacts`, signal));
  const last = useLast(data, null)?.items ?? [];
  if (last.length === 0 && modelId === null) return null;

  return (
    <section aria-labelledby="files-title">
      <h2 id="files-title">Files</h2>
      <Trouble error={error} />
      {modelId !== null && (
        <p className="model-line">
          <Link href={`/models/${modelId}`}>Model {modelId}</Link>
          <DownloadButton
            className="primary"
            path={`/models/${modelId}/file`}
            name={`model-${modelId}.safetensors`}
            onError={setError}
          >
            Download model
          </DownloadButton>
        </p>
      )}
      <ul className="files">
        {last
          .filter((one) => one.kind !== 'model')
          .map((one) => (
            <li key={one.artifact_id}>
              <span>
                {KINDS[one.kind] ?? one.kind}
                {one.epoch !== null && <span className="soft"> epoch {one.epoch}</span>}
                {one.loss !== null && <span className="soft num"> · {number(one.loss)}</span>}
              </span>
              <DownloadButton
                className="link num"
                label={`Download ${KINDS[one.kind] ?? one.kind} ${one.artifact_id}, ${bytes(one.bytes)}`}
                path={`/training-jobs/${jobId}/artifacts/${one.artifact_id}/file`}
                name={`job-${jobId}-${one.kind}-${one.artifact_id}`}
                onError={setError}
              >
                {bytes(one.bytes)} ↓
              </DownloadButton>
            </li>
          ))}
      </ul>
    </section>
  );
}
