/** What the job has left: its model, checkpoints, logs and memory snapshots, to be downloaded. */

import { useState } from 'react';
import { usePlatform } from '../app/platform.tsx';
import { Link } from '../app/router.tsx';
import type { Artifact, Items } from '../rest/types.ts';
import { useAnswer } from '../rest/useAnswer.ts';
import { bytes, number } from '../ui/format.ts';
import { Trouble } from '../ui/Notice.tsx';

/** Checkpoints are kept without an event of their own. */
const EVERY_EPOCHS = 5;
const KINDS: Record<string, string> = { oom_snapshot: 'memory snapshot' };

export function Artifacts(props: { jobId: number; modelId: number | null; turn: string; epoch: number }) {
  const { jobId, modelId, turn, epoch } = props;
  const { rest } = usePlatform();
  const [error, setError] = useState<Error | null>(null);
  const key = `artifacts ${turn} ${modelId} ${Math.floor(epoch / EVERY_EPOCHS)}`;
  const { data } = useAnswer(key, (signal) => rest.get<Items<Artifact>>(`/training-jobs/${jobId}/artifacts`, signal));
  const [last, setLast] = useState<readonly Artifact[]>([]);
  if (data && data.items !== last) setLast(data.items);
  if (last.length === 0 && modelId === null) return null;

  const fetchFile = (path: string, name: string) => {
    setError(null);
    rest.download(path, name).catch(setError);
  };
  return (
    <section aria-labelledby="files-title">
      <h2 id="files-title">Files</h2>
      <Trouble error={error} />
      {modelId !== null && (
        <p className="model-line">
          <Link href={`/models/${modelId}`}>Model {modelId}</Link>
          <button
            type="button"
            className="primary"
            onClick={() => fetchFile(`/models/${modelId}/file`, `model-${modelId}.safetensors`)}
          >
            Download model
          </button>
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
              <button
                type="button"
                className="link num"
                aria-label={`Download ${KINDS[one.kind] ?? one.kind} ${one.artifact_id}, ${bytes(one.bytes)}`}
                onClick={() =>
                  fetchFile(
                    `/training-jobs/${jobId}/artifacts/${one.artifact_id}/file`,
                    `job-${jobId}-${one.kind}-${one.artifact_id}`,
                  )
                }
              >
                {bytes(one.bytes)} ↓
              </button>
            </li>
          ))}
      </ul>
    </section>
  );
}
