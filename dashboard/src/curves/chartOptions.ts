/** How uPlot draws a chart: axes, curves, the marks of attempts, zoom by dragging. */

import uPlot from 'uplot';
import { number } from '../ui/format.ts';
import type { Mark, Range, Unit } from './Chart.tsx';

export interface Wish {
  readonly width: number;
  readonly unit: Unit;
  readonly curves: readonly { readonly label: string; readonly colour: string }[];
  readonly isLog: boolean;
  readonly isSmoothed: boolean;
  readonly colours: CSSStyleDeclaration;
  readonly marks: () => readonly Mark[];
  readonly onRange: (range: Range) => void;
  readonly onPointer: (index: number | null) => void;
}

const HEIGHT = 210;
/** Epochs and steps are whole numbers. */
const INCREMENTS = [...Array(9).keys()].flatMap((power) => [1, 2, 5].map((digit) => digit * 10 ** power));

export function options(wish: Wish): uPlot.Options {
  const text = wish.colours.getPropertyValue('--chart-text').trim();
  const line = wish.colours.getPropertyValue('--chart-line').trim();
  const font = '11px system-ui, sans-serif';
  const axis = { stroke: text, font, grid: { stroke: line, width: 1 }, ticks: { show: false } };
  const pale = wish.isSmoothed
    ? wish.curves.map((curve) => ({ stroke: `${curve.colour}55`, width: 1, points: { show: false } }))
    : [];
  return {
    width: wish.width,
    height: HEIGHT,
    padding: [10, 24, 0, 0],
    legend: { show: false },
    cursor: { drag: { x: true, y: false }, points: { size: 6 }, sync: { key: wish.unit } },
    scales: { x: { time: false }, y: wish.isLog ? { distr: 3 } : {} },
    axes: [
      {
        ...axis,
        size: 28,
        space: 60,
        incrs: INCREMENTS,
      },
      { ...axis, size: 58, values: (_chart, splits) => splits.map((value) => (value === null ? '' : number(value))) },
    ],
    series: [
      {},
      ...pale,
      ...wish.curves.map((curve) => ({
        label: curve.label,
        stroke: curve.colour,
        width: 1.75,
        points: { size: 4, fill: curve.colour },
      })),
    ],
    hooks: {
      setCursor: [(chart) => wish.onPointer(chart.cursor.idx ?? null)],
      setSelect: [
        (chart) => {
          const { left, width } = chart.select;
          if (width < 4) return;
          wish.onRange([Math.floor(chart.posToVal(left, 'x')), Math.ceil(chart.posToVal(left + width, 'x'))]);
          chart.setSelect({ left: 0, top: 0, width: 0, height: 0 }, false);
        },
      ],
      ready: [(chart) => chart.over.addEventListener('dblclick', () => wish.onRange([null, null]))],
      draw: [(chart) => drawMarks(chart, wish.marks(), text)],
    },
  };
}

function drawMarks(chart: uPlot, marks: readonly Mark[], colour: string): void {
  const { ctx, bbox } = chart;
  const { min = 0, max = 0 } = chart.scales.x!;
  ctx.save();
  ctx.strokeStyle = ctx.fillStyle = colour;
  ctx.lineWidth = devicePixelRatio;
  ctx.setLineDash([4 * devicePixelRatio, 3 * devicePixelRatio]);
  ctx.font = `${11 * devicePixelRatio}px system-ui, sans-serif`;
  ctx.textAlign = 'left';
  ctx.textBaseline = 'alphabetic';
  for (const mark of marks) {
    if (mark.x < min! || mark.x > max!) continue;
    const left = Math.round(chart.valToPos(mark.x, 'x', true));
    ctx.beginPath();
    ctx.moveTo(left, bbox.top);
    ctx.lineTo(left, bbox.top + bbox.height);
    ctx.stroke();
    ctx.fillText(mark.text, left + 4 * devicePixelRatio, bbox.top + 11 * devicePixelRatio);
  }
  ctx.restore();
}
