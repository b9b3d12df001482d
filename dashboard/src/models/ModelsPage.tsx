/** The registry: every model that a job has saved, newest first. */

import { useEffect, useState } from 'react';
import { useNow, usePlatform } from '../app/platform.tsx';
import { Link } from '../app/router.tsx';
import type { Model, Page } from '../rest/types.ts';
import { useAnswer } from '../rest/useAnswer.ts';
import { ago, bytes, number } from '../ui/format.ts';
import { Notice, Trouble } from '../ui/Notice.tsx';
import { useTitle } from '../ui/useTitle.ts';

const MOST_METRICS = 4;

export default function ModelsPage() {
  const { rest } = usePlatform();
  const now = useNow(10_000);
  const newest = useAnswer('models', (signal) => rest.get<Page<Model>>('/models?limit=100', signal));
  const [models, setModels] = useState<readonly Model[]>([]);
  const [cursor, setCursor] = useState<string | null>(null);
  const [error, setError] = useState<Error | null>(null);
  const [reading, setReading] = useState(false);
  useTitle('Models');

  useEffect(() => {
    if (!newest.data) return;
    setModels(newest.data.items);
    setCursor(newest.data.next_cursor);
  }, [newest.data]);

  const more = () => {
    setReading(true);
    setError(null);
    rest
      .get<Page<Model>>(`/models?limit=100&cursor=${encodeURIComponent(cursor ?? '')}`)
      .then((page) => {
        setModels((before) => [...before, ...page.items]);
        setCursor(page.next_cursor);
      })
      .catch(setError)
      .finally(() => setReading(false));
  };

  return (
    <>
      <div className="page-head">
        <h1>Models</h1>
      </div>
      <Trouble error={newest.error ?? error} />
      {newest.data && models.length === 0 && (
        <Notice title="No model yet">A job's model is listed here when it has succeeded.</Notice>
      )}
      {!newest.data && !newest.error && <p className="waiting">Loading …</p>}
      {models.length > 0 && (
        <table className="plain models">
          <thead>
            <tr>
              <th scope="col" className="num">
                Model
              </th>
              <th scope="col">Name</th>
              <th scope="col" className="col-metrics">
                Metrics
              </th>
              <th scope="col" className="col-owner">
                Owner
              </th>
              <th scope="col" className="num">
                Size
              </th>
              <th scope="col">Job</th>
              <th scope="col" className="col-when">
                Made
              </th>
            </tr>
          </thead>
          <tbody>
            {models.map((model) => (
              <tr key={model.model_id}>
                <td className="num">{model.model_id}</td>
                <td>
                  <Link href={`/models/${model.model_id}`}>{model.name}</Link>
                </td>
                <td className="metrics">
                  <MetricList metrics={model.metrics} />
                </td>
                <td className="col-owner">{model.owner}</td>
                <td className="num">{bytes(model.bytes)}</td>
                <td>
                  <Link href={`/jobs/${model.job_id}`}>{model.job_id}</Link>
                </td>
                <td className="col-when">{ago(model.created_at, now)}</td>
              </tr>
            ))}
          </tbody>
        </table>
      )}
      {cursor && (
        <p className="waiting">
          <button type="button" disabled={reading} onClick={more}>
            Older models
          </button>
        </p>
      )}
    </>
  );
}

function MetricList({ metrics }: { metrics: Model['metrics'] }) {
  return Object.entries(metrics)
    .slice(0, MOST_METRICS)
    .map(([name, value]) => (
      <span key={name} className="metric">
        <span className="soft">{name}</span> <span className="num">{number(value)}</span>
      </span>
    ));
}
