/** Curves as columns: what the record has per epoch, with the stream's newer epochs over it; and what it has per step. Pure. */

import type { History } from '../rest/types.ts';
import type { Epoch } from '../stream/index.ts';

export interface Columns {
  /** Epochs or steps, ascending. */
  readonly x: readonly number[];
  /** By metric name, as long as `x`; null where there is no number. */
  readonly series: Readonly<Record<string, readonly (number | null)[]>>;
  /** By metric name: how often it was NaN or infinite. */
  readonly nonFinite: Readonly<Record<string, number>>;
}

export function columnsOf(history: History | null, live: readonly Epoch[]): Columns {
  const rows = new Map<number, Record<string, number | null | undefined>>();
  const { epoch: epochs = [], ...metrics } = history ?? {};
  const names = new Set(Object.keys(metrics).filter((name) => name !== 'step'));
  epochs.forEach((epoch, at) => {
    // The record has null for "NaN" and for "not reported" alike.
    rows.set(epoch!, Object.fromEntries([...names].map((name) => [name, metrics[name]![at] ?? undefined])));
  });
  for (const { epoch, metrics: reported } of live) {
    rows.set(epoch, { ...rows.get(epoch), ...reported });
    for (const name of Object.keys(reported)) names.add(name);
  }
  const x = [...rows.keys()].sort((a, b) => a - b);
  const columns = [...names].map((name) => [name, x.map((epoch) => own(rows.get(epoch)!, name))] as const);
  const bad = columns.map(([name, values]) => [name, values.filter((value) => value === null).length] as const);
  return {
    x,
    series: Object.fromEntries(columns.map(([name, values]) => [name, values.map((value) => value ?? null)])),
    nonFinite: Object.fromEntries(bad.filter(([, count]) => count > 0)),
  };
}

/** The value under a name that a script has chosen, be it `constructor`: every object answers to that one. */
export function own<Value>(named: Readonly<Record<string, Value>>, name: string): Value | undefined {
  return Object.hasOwn(named, name) ? named[name] : undefined;
}

export interface StepColumns extends Columns {
  /** In which epoch each step was; as long as `x`. */
  readonly epochs: readonly number[];
}

/** What was reported by step. Only the record has it: messages tell of epochs alone. */
export function stepColumnsOf(history: History | null): StepColumns {
  const { epoch: epochs = [], step: steps = [], ...series } = history ?? {};
  // The record has null for "NaN" and for "not reported" alike.
  return { x: countedOn(steps as readonly number[]), epochs: epochs as readonly number[], series, nonFinite: {} };
}

/** Steps that begin anew in each epoch are put one behind the other; those of the whole run stay as they are. */
function countedOn(steps: readonly number[]): readonly number[] {
  const x: number[] = [];
  let offset = 0;
  let stride = 1;
  for (const step of steps) {
    const before = x.at(-1);
    if (before !== undefined && step + offset <= before) offset = before + stride - step;
    else if (before !== undefined) stride = step + offset - before;
    x.push(step + offset);
  }
  return x;
}

/** Metrics that belong into one picture: `train_loss` and `val_loss` are both `loss`. */
export function groups(names: readonly string[]): readonly { title: string; names: readonly string[] }[] {
  const byTitle = new Map<string, string[]>();
  for (const name of names) {
    const title = name.replace(/^(train|val|valid|validation|test|eval)[_/]/, '');
    byTitle.set(title, [...(byTitle.get(title) ?? []), name]);
  }
  const place = (title: string) => (title === 'loss' ? 0 : title === 'lr' || title === 'learning_rate' ? 2 : 1);
  return [...byTitle]
    .map(([title, members]) => ({ title, names: members.sort() }))
    .sort((a, b) => place(a.title) - place(b.title) || a.title.localeCompare(b.title));
}

/** Exponential moving average without the pull to zero at its beginning; `weight` 0 leaves the values as they are. */
export function smoothed(values: readonly (number | null)[], weight: number): readonly (number | null)[] {
  if (weight === 0) return values;
  let mean = 0;
  let share = 1;
  return values.map((value) => {
    if (value === null) return null;
    mean = mean * weight + value * (1 - weight);
    share *= weight;
    return mean / (1 - share);
  });
}

/** As a file for a spreadsheet. */
export function csv({ x, series }: Columns, unit: string): string {
  const names = Object.keys(series);
  const lines = x.map((place, at) => [place, ...names.map((name) => series[name]![at] ?? '')].join(','));
  return [[unit, ...names.map(cell)].join(','), ...lines].join('\n') + '\n';
}

/** Quoted where it has to be (RFC 4180). */
function cell(text: string): string {
  return /[",\r\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
}
