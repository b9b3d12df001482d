/** Several jobs put side by side. Pure. */

import type { Curve } from '../curves/Chart.tsx';
import { own } from '../curves/columns.ts';
import type { History, Job } from '../rest/types.ts';

export interface Compared {
  readonly job: Job;
  readonly history: History;
}

/** One chart for each metric, one curve in it for each job that has it, over all their epochs. */
export function comparison(compared: readonly Compared[]): {
  x: readonly number[];
  charts: readonly { title: string; curves: readonly Curve[] }[];
} {
  const x = [...new Set(compared.flatMap(({ history }) => history.epoch ?? []))]
    .filter((epoch) => epoch !== null)
    .sort((a, b) => a - b);
  const names = [...new Set(compared.flatMap(({ history }) => Object.keys(history)))].filter(
    (name) => name !== 'epoch' && name !== 'step',
  );
  const charts = names.sort(byInterest).map((title) => ({
    title,
    curves: compared.flatMap(({ job, history }, at): Curve[] => {
      const column = own(history, title);
      if (!column) return [];
      const byEpoch = new Map((history.epoch ?? []).map((epoch, place) => [epoch, column[place] ?? null]));
      return [{ label: `#${job.job_id}`, values: x.map((epoch) => byEpoch.get(epoch) ?? null), colour: at }];
    }),
  }));
  return { x, charts };
}

function byInterest(a: string, b: string): number {
  const place = (name: string) => (/loss/.test(name) ? 0 : name === 'lr' ? 2 : 1);
  return place(a) - place(b) || a.localeCompare(b);
}

export interface Difference {
  readonly name: string;
  /** One for each job; undefined where it has no such thing. */
  readonly values: readonly unknown[];
  readonly differs: boolean;
}

/** Every setting of the jobs, those in which they differ first. */
export function differences(jobs: readonly Job[]): readonly Difference[] {
  const settings = jobs.map(settingsOf);
  const names = [...new Set(settings.flatMap(Object.keys))];
  const all = names.map((name) => {
    const values = settings.map((one) => own(one, name));
    return { name, values, differs: new Set(values.map((value) => JSON.stringify(value))).size > 1 };
  });
  return [...all.filter((one) => one.differs), ...all.filter((one) => !one.differs)];
}

function settingsOf({ spec }: Job): Record<string, unknown> {
  const { hyperparameters, resources, name: _name, ...rest } = spec;
  const given = Object.entries({ ...rest, ...resources }).filter(([, value]) => value !== null && !isEmpty(value));
  return { ...hyperparameters, ...Object.fromEntries(given) };
}

function isEmpty(value: unknown): boolean {
  return typeof value === 'object' && value !== null && Object.keys(value).length === 0;
}
