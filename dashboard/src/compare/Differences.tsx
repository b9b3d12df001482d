/** Results and settings of several jobs as a table; what differs stands first and stands out. */

import { useState } from 'react';
import { Link } from '../app/router.tsx';
import { own } from '../curves/columns.ts';
import type { Job } from '../rest/types.ts';
import { duration, number, shown } from '../ui/format.ts';
import type { Compared } from './comparison.ts';
import { differences } from './comparison.ts';

export function Differences({ compared }: { compared: readonly Compared[] }) {
  const [all, setAll] = useState(false);
  const jobs = compared.map(({ job }) => job);
  const settings = differences(jobs);
  const alike = settings.filter((one) => !one.differs).length;
  const metrics = [...new Set(compared.flatMap(({ history }) => Object.keys(history)))].filter(
    (name) => name !== 'epoch' && name !== 'step',
  );
  return (
    <section aria-labelledby="settings-title">
      <div className="section-head">
        <h2 id="settings-title">Results and settings</h2>
        {alike > 0 && jobs.length > 1 && (
          <label className="check">
            <input type="checkbox" checked={all} onChange={(event) => setAll(event.target.checked)} /> Show {alike} that
            are alike
          </label>
        )}
      </div>
      <div className="scroll-x" tabIndex={0} role="region" aria-label="Table of results and settings">
        <table className="plain compare">
          <thead>
            <tr>
              <td />
              {jobs.map((job) => (
                <th key={job.job_id} scope="col">
                  <Link href={`/jobs/${job.job_id}`}>
                    #{job.job_id} {job.name}
                  </Link>
                </th>
              ))}
            </tr>
          </thead>
          <tbody>
            <tr>
              <th scope="row">took</th>
              {jobs.map((job) => (
                <td key={job.job_id} className="num">
                  {took(job)}
                </td>
              ))}
            </tr>
            {metrics.map((name) => (
              <Results key={name} name={name} compared={compared} />
            ))}
            {settings
              .filter((one) => all || one.differs || jobs.length === 1)
              .map((one) => (
                <tr key={one.name} className={one.differs ? 'differs' : ''}>
                  <th scope="row">{one.name}</th>
                  {one.values.map((value, at) => (
                    <td key={jobs[at]!.job_id}>{shown(value)}</td>
                  ))}
                </tr>
              ))}
          </tbody>
        </table>
      </div>
    </section>
  );
}

function Results({ name, compared }: { name: string; compared: readonly Compared[] }) {
  const lasts = compared.map(({ history }) => own(history, name)?.findLast((value) => value !== null) ?? null);
  const best = bestOf(name, lasts);
  return (
    <tr>
      <th scope="row">last {name}</th>
      {lasts.map((value, at) => (
        <td
          key={compared[at]!.job.job_id}
          className={compared.length > 1 && value !== null && value === best ? 'num best' : 'num'}
        >
          {value === null ? '–' : number(value)}
          {compared.length > 1 && value !== null && value === best && <span className="hidden"> (best)</span>}
        </td>
      ))}
    </tr>
  );
}

/** Only where it is known which way is better. */
function bestOf(name: string, values: readonly (number | null)[]): number | null {
  const known = values.filter((value) => value !== null);
  if (known.length === 0) return null;
  if (/loss|error|perplexity/.test(name)) return Math.min(...known);
  return /acc|f1|auc|precision|recall/.test(name) ? Math.max(...known) : null;
}

function took({ started_at: start, finished_at: end }: Job): string {
  return start && end ? duration((Date.parse(end) - Date.parse(start)) / 1000) : '–';
}
