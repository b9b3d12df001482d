import assert from 'node:assert/strict';
import { test } from 'node:test';
import { comparison, differences } from '../src/compare/comparison.ts';
import { columnsOf, csv, groups, own, smoothed, stepColumnsOf } from '../src/curves/columns.ts';
import { jobIds } from '../src/jobs/liveJobs.ts';
import { job, SPEC } from './samples.ts';

test('steps of the whole run stay as they are, those that begin anew in each epoch are put one behind the other', () => {
  const columns = stepColumnsOf({ epoch: [1, 1, 2, 2], step: [10, 20, 30, 40], loss: [4, 3, 2, 1] });
  assert.deepEqual(columns, {
    x: [10, 20, 30, 40],
    epochs: [1, 1, 2, 2],
    series: { loss: [4, 3, 2, 1] },
    nonFinite: {},
  });
  assert.deepEqual(stepColumnsOf({ epoch: [1, 1, 2, 2], step: [10, 20, 10, 20] }).x, [10, 20, 30, 40]);
  assert.deepEqual(stepColumnsOf({ epoch: [1, 1, 2, 2, 3], step: [0, 5, 0, 5, 0] }).x, [0, 5, 10, 15, 20]);
  assert.deepEqual(stepColumnsOf({ epoch: [1, 2, 3], step: [0, 0, 0] }).x, [0, 1, 2]);
  assert.deepEqual(stepColumnsOf(null).x, []);
});

test('live epochs stand over what the record has, and what was NaN is counted', () => {
  const history = { epoch: [1, 2], train_loss: [0.9, 0.8] };
  const live = [
    { epoch: 2, metrics: { train_loss: 0.7 }, attempt: 2 },
    { epoch: 3, metrics: { train_loss: null, val_loss: 1 }, attempt: 2 },
  ];
  const columns = columnsOf(history, live);
  assert.deepEqual(columns, {
    x: [1, 2, 3],
    series: { train_loss: [0.9, 0.7, null], val_loss: [null, null, 1] },
    nonFinite: { train_loss: 1 },
  });
  assert.equal(csv(columns, 'epoch'), 'epoch,train_loss,val_loss\n1,0.9,\n2,0.7,\n3,,1\n');
});

test('a metric may have any name, also one that every object answers to', () => {
  const odd = JSON.parse('{"__proto__": 1, "constructor": 2, "a,b": 3, "say \\"hi\\"": 4}') as Record<string, number>;
  const columns = columnsOf({ epoch: [1], loss: [0.5] }, [{ epoch: 2, metrics: odd, attempt: 1 }]);
  assert.deepEqual(Object.keys(columns.series), ['loss', ...Object.keys(odd)]);
  assert.deepEqual(own(columns.series, '__proto__'), [null, 1]);
  assert.deepEqual(columns.series.constructor, [null, 2]);
  assert.equal(own(columns.nonFinite, 'constructor'), undefined);
  assert.equal(csv(columns, 'epoch').split('\n')[0], 'epoch,loss,__proto__,constructor,"a,b","say ""hi"""');
  const settings = differences([job(1, { spec: { ...SPEC, hyperparameters: { constructor: 1 } } }), job(2)]);
  assert.deepEqual(settings.find((one) => one.name === 'constructor')?.values, [1, undefined]);
});

test('train and validation share a chart, loss first and the learning rate last', () => {
  const titles = groups(['lr', 'val_loss', 'val_accuracy', 'train_loss']).map((one) => [one.title, one.names.join()]);
  assert.deepEqual(titles, [
    ['loss', 'train_loss,val_loss'],
    ['accuracy', 'val_accuracy'],
    ['lr', 'lr'],
  ]);
});

test('smoothing begins at the first value, keeps gaps, and does nothing at zero', () => {
  const values = [2, null, 4];
  assert.equal(smoothed(values, 0), values);
  const [first, gap, last] = smoothed(values, 0.5);
  assert.equal(first, 2);
  assert.equal(gap, null);
  assert.ok(Math.abs(last! - 10 / 3) < 1e-9);
});

test('compared jobs share one axis, and what differs stands first', () => {
  const one = { job: job(1), history: { epoch: [1, 2], loss: [0.9, 0.8] } };
  const other = {
    job: job(2, { spec: { ...SPEC, hyperparameters: { lr: 0.02, width: 32 } } }),
    history: { epoch: [2, 3], loss: [0.7, 0.6] },
  };
  const { x, charts } = comparison([one, other]);
  assert.deepEqual(x, [1, 2, 3]);
  assert.deepEqual(
    charts[0]!.curves.map((curve) => curve.values),
    [
      [0.9, 0.8, null],
      [null, 0.7, 0.6],
    ],
  );
  const [first, second] = differences([one.job, other.job]);
  assert.deepEqual([first!.name, first!.values, first!.differs, second!.differs], ['lr', [0.01, 0.02], true, false]);
  assert.deepEqual(jobIds('1, #2 2 x 0 -3'), [1, 2]);
});
