/** One picture of curves over epochs or steps: uPlot, with a legend that also says the values under the pointer. */

import { useEffect, useMemo, useRef, useState } from 'react';
import uPlot from 'uplot';
import 'uplot/dist/uPlot.min.css';
import { useIsDark } from '../app/theme.ts';
import { number } from '../ui/format.ts';
import { colour } from './colours.ts';
import { smoothed } from './columns.ts';
import { options } from './chartOptions.ts';

export interface Curve {
  readonly label: string;
  readonly values: readonly (number | null)[];
  readonly colour: number;
  readonly note?: string;
}

export type Unit = 'epoch' | 'step';

export interface Mark {
  readonly x: number;
  readonly text: string;
}

export interface View {
  readonly isLog: boolean;
  /** 0 to 0.99. */
  readonly smoothing: number;
  readonly range: Range;
}

/** What was zoomed to: from and to; null: the first and the last there is. */
export type Range = readonly [number | null, number | null];

interface ChartProps {
  readonly title: string;
  /** What `x` counts. */
  readonly unit?: Unit;
  readonly x: readonly number[];
  readonly curves: readonly Curve[];
  readonly marks?: readonly Mark[];
  readonly view: View;
  readonly onRange: (range: Range) => void;
}

const NO_MARKS: readonly Mark[] = [];

export function Chart({ title, unit = 'epoch', x, curves, marks = NO_MARKS, view, onRange }: ChartProps) {
  const place = useRef<HTMLDivElement>(null);
  const chart = useRef<uPlot | null>(null);
  const isDark = useIsDark();
  const [at, setAt] = useState<number | null>(null);
  const data = useMemo(() => dataOf(x, curves, view), [x, curves, view.isLog, view.smoothing]);

  // What the chart's callbacks read, without building it again.
  const now = useRef({ onRange, marks });
  now.current = { onRange, marks };
  const shape = JSON.stringify([
    curves.map((curve) => [curve.label, curve.colour]),
    view.isLog,
    view.smoothing > 0,
    isDark,
  ]);

  useEffect(() => {
    const element = place.current!;
    const drawn = new uPlot(
      options({
        width: element.clientWidth,
        unit,
        curves: curves.map((curve) => ({ label: curve.label, colour: colour(curve.colour, isDark) })),
        isLog: view.isLog,
        isSmoothed: view.smoothing > 0,
        colours: getComputedStyle(element),
        marks: () => now.current.marks,
        onRange: (range) => now.current.onRange(range),
        onPointer: setAt,
      }),
      data as uPlot.AlignedData,
      element,
    );
    chart.current = drawn;
    const observer = new ResizeObserver(() => drawn.setSize({ width: element.clientWidth, height: drawn.height }));
    observer.observe(element);
    return () => {
      observer.disconnect();
      drawn.destroy();
      chart.current = null;
    };
  }, [shape]);

  useEffect(() => {
    const drawn = chart.current;
    if (!drawn) return;
    drawn.setData(data as uPlot.AlignedData, false);
    const [min, max] = [view.range[0] ?? x[0] ?? 0, view.range[1] ?? x.at(-1) ?? 1];
    drawn.setScale('x', { min, max: max > min ? max : min + 1 });
  }, [shape, data, view.range, x, marks]);

  const isEmpty = view.isLog && !curves.some(({ values }) => values.some((value) => value !== null && value > 0));
  const index = at !== null && at < x.length ? at : x.length - 1;
  return (
    <figure className="chart">
      <figcaption>
        <span className="chart-title">{title}</span>
        <span className="legend">
          {curves.map((curve) => (
            <span key={curve.label} className="legend-item">
              <span className="swatch" style={{ background: colour(curve.colour, isDark) }} aria-hidden="true" />
              {curve.label} <b className="num">{number(curve.values[index] ?? undefined)}</b>
              {curve.note && <span className="bad"> {curve.note}</span>}
            </span>
          ))}
          <span className="legend-at soft num">{x.length > 0 ? `${unit} ${x[index]}` : ''}</span>
        </span>
      </figcaption>
      {isEmpty && <p className="chart-note soft">Nothing here is above 0, so a log scale has no place for it.</p>}
      <div ref={place} className="chart-canvas" role="img" aria-label={described(title, unit, x, curves)} />
    </figure>
  );
}

function dataOf(x: readonly number[], curves: readonly Curve[], view: View): (readonly (number | null)[])[] {
  const positive = (values: readonly (number | null)[]) =>
    view.isLog ? values.map((value) => (value !== null && value > 0 ? value : null)) : values;
  const drawn = curves.map((curve) => positive(smoothed(curve.values, view.smoothing)));
  // The values themselves, pale, behind what was made of them.
  const behind = view.smoothing > 0 ? curves.map((curve) => positive(curve.values)) : [];
  return [x, ...behind, ...drawn];
}

/** The picture in words. */
function described(title: string, unit: Unit, x: readonly number[], curves: readonly Curve[]): string {
  const texts = curves.map(({ label, values }) => {
    const known = values.filter((value) => value !== null);
    if (known.length === 0) return `${label}: no values`;
    const least = Math.min(...known);
    const most = Math.max(...known);
    return `${label}: last ${number(known.at(-1))}, lowest ${number(least)}, highest ${number(most)}`;
  });
  return `${title} over ${x.length} ${unit}s. ${texts.join('. ')}.`;
}
