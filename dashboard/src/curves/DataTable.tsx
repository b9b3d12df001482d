/** The curves' values as a table: for who can't see a picture, and to copy from. */

import { useState } from 'react';
import { number } from '../ui/format.ts';
import type { Columns } from './columns.ts';

const MOST_ROWS = 200;

export function DataTable({ columns }: { columns: Columns }) {
  const [isOpen, setOpen] = useState(false);
  const names = Object.keys(columns.series);
  const first = Math.max(0, columns.x.length - MOST_ROWS);
  return (
    <details onToggle={(event) => setOpen(event.currentTarget.open)}>
      <summary>Values as a table{first > 0 ? ` (the last ${MOST_ROWS} epochs)` : ''}</summary>
      {isOpen && (
        <div className="scroll-x" tabIndex={0} role="region" aria-label="Values of every epoch">
          <table className="plain">
            <thead>
              <tr>
                <th scope="col" className="num">
                  epoch
                </th>
                {names.map((name) => (
                  <th key={name} scope="col" className="num">
                    {name}
                  </th>
                ))}
              </tr>
            </thead>
            <tbody>
              {columns.x.slice(first).map((epoch, at) => (
                <tr key={epoch}>
                  <th scope="row" className="num">
                    {epoch}
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
