/** A job's curves: one chart for each metric, train and validation together, attempts marked. */

import { useMemo, useState } from 'react';
import { save } from '../rest/Rest.ts';
import { Chart, type Curve, type Mark } from './Chart.tsx';
import { placeOf } from './colours.ts';
import { type Columns, csv, groups } from './columns.ts';
import { DataTable } from './DataTable.tsx';
import { ViewControls, WHOLE } from './ViewControls.tsx';

export function Curves({ columns, marks, name }: { columns: Columns; marks: readonly Mark[]; name: string }) {
  const [view, setView] = useState(WHOLE);
  const charts = useMemo(
    () =>
      groups(Object.keys(columns.series)).map(({ title, names }) => ({
        title,
        curves: names.map((one, at) => curveOf(columns, one, at)),
      })),
    [columns],
  );
  const title = <h2 id="curves-title">Curves</h2>;
  if (columns.x.length === 0)
    return (
      <section aria-labelledby="curves-title">
        {title}
        <p className="waiting">No epoch has been reported yet.</p>
      </section>
    );
  return (
    <section aria-labelledby="curves-title">
      <div className="section-head">
        {title}
        <div className="section-tools">
          <ViewControls view={view} onView={setView} />
          <button
            type="button"
            className="quiet"
            onClick={() => save(new Blob([csv(columns)], { type: 'text/csv' }), `${name}.csv`)}
          >
            Download CSV
          </button>
        </div>
      </div>
      <div className="charts" data-epochs={columns.x.length}>
        {charts.map(({ title, curves }) => (
          <Chart
            key={title}
            title={title}
            x={columns.x}
            curves={curves}
            marks={marks}
            view={view}
            onRange={(range) => setView({ ...view, range })}
          />
        ))}
      </div>
      <p className="hint soft">Drag across a chart to zoom, double-click to see all of it again.</p>
      <DataTable columns={columns} />
    </section>
  );
}

function curveOf(columns: Columns, name: string, at: number): Curve {
  const bad = columns.nonFinite[name];
  return {
    label: name,
    values: columns.series[name]!,
    colour: placeOf(name, at),
    ...(bad ? { note: `NaN in ${bad} ${bad === 1 ? 'epoch' : 'epochs'}` } : {}),
  };
}
