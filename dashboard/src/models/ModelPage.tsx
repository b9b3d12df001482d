/** One model: its metrics, where it comes from, and its file. */

import { useState } from 'react';
import { usePlatform } from '../app/platform.tsx';
import { Link } from '../app/router.tsx';
import type { Model, Spec } from '../rest/types.ts';
import { useAnswer } from '../rest/useAnswer.ts';
import { Facts } from '../ui/Facts.tsx';
import { bytes, moment, number, shown } from '../ui/format.ts';
import { DownloadButton } from '../ui/DownloadButton.tsx';
import { Notice, Trouble } from '../ui/Notice.tsx';
import { useTitle } from '../ui/useTitle.ts';

export default function ModelPage({ modelId }: { modelId: number }) {
  const { rest } = usePlatform();
  const { data: model, error } = useAnswer(`model ${modelId}`, (signal) =>
    rest.get<Model>(`/models/${modelId}`, signal),
  );
  const [refusal, setRefusal] = useState<Error | null>(null);
  useTitle(`Model ${modelId}`);
  if (error && !model)
    return (
      <Notice isPage kind="bad" title={`Model ${modelId} can't be shown`}>
        {error.message} <Link href="/models">All models</Link>
      </Notice>
    );
  if (!model) return <p className="waiting">Loading model {modelId} …</p>;
  const { spec, ...origin } = model.lineage as { spec?: Spec };
  return (
    <>
      <div className="page-head">
        <div className="job-title">
          <h1>{model.name}</h1>
          <span className="soft num">model {model.model_id}</span>
        </div>
        <div className="page-actions">
          <DownloadButton
            className="primary"
            path={`/models/${modelId}/file`}
            name={`${model.name}.safetensors`}
            onError={setRefusal}
          >
            Download {bytes(model.bytes)}
          </DownloadButton>
        </div>
      </div>
      <Trouble error={refusal} />
      <div className="model-columns">
        <section aria-labelledby="metrics-title">
          <h2 id="metrics-title">Metrics</h2>
          <Facts facts={Object.entries(model.metrics).map(([name, value]) => [name, number(value)])} />
        </section>
        <section aria-labelledby="lineage-title">
          <h2 id="lineage-title">Lineage</h2>
          <Facts
            facts={[
              [
                'job',
                <Link key="job" href={`/jobs/${model.job_id}`}>
                  job {model.job_id}
                </Link>,
              ],
              ['owner', model.owner],
              ['made', moment(model.created_at)],
              ...Object.entries(origin)
                .filter(([, value]) => value !== null)
                .map(([name, value]) => [name.replaceAll('_', ' '), shown(value)] as const),
              [
                'sha256',
                <code key="sha256" className="sha">
                  {model.sha256}
                </code>,
              ],
            ]}
          />
        </section>
        {spec && (
          <section aria-labelledby="trained-title">
            <h2 id="trained-title">Trained with</h2>
            <Facts
              facts={[...Object.entries(spec.hyperparameters), ['total epochs', spec.total_epochs], ['seed', spec.seed]]
                .filter(([, value]) => value !== null)
                .map(([name, value]) => [String(name), shown(value)])}
            />
          </section>
        )}
      </div>
    </>
  );
}
