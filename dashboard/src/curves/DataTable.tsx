/** The curves' values as a table: for who can't see a picture, and to copy from. */

import { useState } from 'react';
import { number } from '../ui/format.ts';
import type { Unit } from './Chart.tsx';
import type { Columns } from './columns.ts';

const MOST_ROWS = 200;

export function DataTable({ columns, unit }: { columns: Columns; unit: Unit }) {
  const [isOpen, setOpen] = useState(false);
  const names = Object.keys(columns.series);
  const first = Math.max(0, columns.x.length - MOST_ROWS);
  return (
    <details onToggle={(event) => setOpen(event.currentTarget.open)}>
      <summary>Values as a table{first > 0 ? ` (the last ${MOST_ROWS} ${unit}s)` : ''}</summary>
      {isOpen && (
        <div className="scroll-x" tabIndex={0} role="region" aria-label={`Values of every ${unit}`}>
          <table className="plain">
            <thead>
              <tr>
                <th scope="col" className="num">
                  {unit}
                </th>
                {names.map((name) => (
                  <th key={name} scope="col" className="num">
                    {name}
                  </th>
                ))}
              </tr>
            </thead>
            <tbody>
              {columns.x.slice(first).map((place, at) => (
                <tr key={place}>
                  <th scope="row" className="num">
                    {place}
                  </th>
                  {names.map((name) => (
                    <td key={name} className="num">
                      {number(columns.series[name]![first + at] ?? undefined)}
                    </td>
                  ))}
                </tr>
              ))}
            </tbody>
          </table>
        </div>
      )}
    </details>
  );
}
