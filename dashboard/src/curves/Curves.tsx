/** A job's curves over epochs or over steps: one chart for each metric, train and validation together, attempts marked. */

import { useId, useMemo, useState } from 'react';
import { save } from '../rest/Rest.ts';
import { Chart, type Curve, type Mark, type Unit } from './Chart.tsx';
import { placeOf } from './colours.ts';
import { type Columns, csv, groups, own } from './columns.ts';
import { DataTable } from './DataTable.tsx';
import { ViewControls, WHOLE } from './ViewControls.tsx';

interface CurvesProps {
  readonly title: string;
  readonly unit: Unit;
  readonly columns: Columns;
  readonly marks: readonly Mark[];
  /** Of the file with the values, without `.csv`. */
  readonly name: string;
}

export function Curves({ title, unit, columns, marks, name }: CurvesProps) {
  const id = useId();
  const [view, setView] = useState(WHOLE);
  const charts = useMemo(
    () =>
      groups(Object.keys(columns.series)).map(({ title, names }) => ({
        title,
        curves: names.map((one, at) => curveOf(columns, one, at)),
      })),
    [columns],
  );
  const heading = <h2 id={id}>{title}</h2>;
  if (columns.x.length === 0)
    return (
      <section aria-labelledby={id}>
        {heading}
        <p className="waiting">No {unit} has been reported yet.</p>
      </section>
    );
  return (
    <section aria-labelledby={id}>
      <div className="section-head">
        {heading}
        <div className="section-tools">
          <ViewControls view={view} unit={unit} onView={setView} />
          <button
            type="button"
            className="quiet"
            onClick={() => save(new Blob([csv(columns, unit)], { type: 'text/csv' }), `${name}.csv`)}
          >
            Download CSV
          </button>
        </div>
      </div>
      <div className="charts" data-unit={unit} data-count={columns.x.length}>
        {charts.map(({ title, curves }) => (
          <Chart
            key={title}
            title={title}
            unit={unit}
            x={columns.x}
            curves={curves}
            marks={marks}
            view={view}
            onRange={(range) => setView({ ...view, range })}
          />
        ))}
      </div>
      <p className="hint soft">
        Drag across a chart to zoom, or say from where to where; double-click to see all of it again.
      </p>
      <DataTable columns={columns} unit={unit} />
    </section>
  );
}

function curveOf(columns: Columns, name: string, at: number): Curve {
  const bad = own(columns.nonFinite, name);
  return {
    label: name,
    values: columns.series[name]!,
    colour: placeOf(name, at),
    ...(bad ? { note: `NaN or infinite in ${bad} ${bad === 1 ? 'epoch' : 'epochs'}` } : {}),
  };
}
