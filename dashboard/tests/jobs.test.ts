import assert from 'node:assert/strict';
import { test } from 'node:test';
import {
  chosen,
  countByStatus,
  hasGap,
  hasNewJob,
  isUsuallyDescending,
  lossOf,
  merged,
  type Wanted,
  withFleet,
  withMessage,
} from '../src/jobs/liveJobs.ts';
import type { JobMessage } from '../src/stream/index.ts';
import { nextPart } from '../src/ui/useSpread.ts';
import { job } from './samples.ts';

const complete: JobMessage = {
  type: 'complete',
  id: '2-9',
  job_id: 1,
  status: 'succeeded',
  progress: 1,
  current_epoch: 10,
  total_epochs: 10,
  timestamp: '2026-11-24T10:05:00Z',
  model_id: 7,
  final_metrics: { loss: 0.1 },
  duration_s: 9,
};

test('a newer message moves a job in the list, an older one does not', () => {
  const moved = withMessage(job(1), complete);
  assert.deepEqual(
    [moved.status, moved.model_id, moved.finished_at, moved.hosts],
    ['succeeded', 7, complete.timestamp, []],
  );
  const read = job(1, { last_event_id: '3-1', status: 'queued' });
  assert.equal(withMessage(read, complete), read);
});

test('a job that no new message has moved stays the same object, so that its row is not painted again', () => {
  const list = [job(1), job(2), job(3)];
  const other: JobMessage = { ...complete, job_id: 2 };
  const before = withFleet(list, new Map([[1, complete]]));
  const after = withFleet(
    list,
    new Map([
      [1, complete],
      [2, other],
    ]),
  );
  assert.equal(after[0], before[0]);
  assert.equal(after[2], list[2]);
  assert.deepEqual([before[1]!.status, after[1]!.status], ['running', 'succeeded']);
});

test('a job without a loss is no job whose loss is NaN', () => {
  assert.equal(lossOf(job(1, { current_loss: 0.5, metrics: { loss: 0.5 } })), 0.5);
  assert.equal(lossOf(job(1, { current_loss: null, metrics: { loss: null } })), null);
  assert.equal(lossOf(job(1, { current_loss: null, metrics: { val_accuracy: 0.9 } })), undefined);
});

test('running jobs count also while they are older than what was read', () => {
  const older: JobMessage = { ...complete, status: 'running', job_id: 1 };
  assert.deepEqual(countByStatus([job(2, { status: 'queued' }), job(3)], new Map([[1, older]])), {
    queued: 1,
    running: 2,
  });
});

test('more new jobs than a page holds leave a gap', () => {
  assert.ok(hasGap([job(3), job(2)], [job(9), job(8)]));
  assert.ok(!hasGap([job(8), job(7)], [job(9), job(8)]));
  assert.ok(!hasGap([], [job(9)]));
  assert.ok(!hasGap([job(9)], []));
});

test('pages read at different times make one list, each job as it was read last', () => {
  const list = merged([job(1), job(2)], [job(3), job(2, { status: 'failed' })]);
  assert.deepEqual(
    list.map((one) => [one.job_id, one.status]),
    [
      [3, 'running'],
      [2, 'failed'],
      [1, 'running'],
    ],
  );
  assert.ok(hasNewJob([job(1)], new Map([[2, complete]])));
  assert.ok(!hasNewJob([job(2)], new Map([[1, complete]])));
});

test('jobs are found by any of their words, and what has no value stands last whichever way they are sorted', () => {
  const jobs = [
    job(1, { current_loss: 0.2 }),
    job(2, { current_loss: null }),
    job(3, { current_loss: 0.1, owner: 'bob' }),
  ];
  const by = (more: Partial<Wanted>) =>
    chosen(jobs, { status: '', search: '', sort: 'job', descending: true, ...more }).map((one) => one.job_id);
  assert.deepEqual(by({ search: 'bob gpu-3' }), [3]);
  assert.deepEqual(by({ search: '#2' }), [2]);
  assert.deepEqual(by({ search: 'demo' }), [3, 2, 1]);
  assert.deepEqual(by({ sort: 'loss', descending: true }), [1, 3, 2]);
  assert.deepEqual(by({ sort: 'loss', descending: false }), [3, 1, 2]);
  assert.deepEqual(by({ status: 'failed' }), []);
});

test('a list that changes is painted a part at a time, and each row has its turn', () => {
  const wanted = ['a2', 'b1', 'c2', 'd2', 'e2'];
  const first = nextPart(['a1', 'b1', 'c1', 'd1', 'e1'], wanted, 0, 2);
  assert.deepEqual(first, { painted: ['a2', 'b1', 'c2', 'd1', 'e1'], end: 3 });
  const newer = ['a3', 'b3', 'c3', 'd3', 'e3'];
  const second = nextPart(first.painted, newer, first.end, 2);
  assert.deepEqual(second, { painted: ['a2', 'b1', 'c2', 'd3', 'e3'], end: 5 });
  const third = nextPart(second.painted, newer, second.end, 9);
  assert.deepEqual(third.painted, newer);
  assert.deepEqual(nextPart(newer, newer, third.end, 2).painted, newer);
});

test('words are sorted from A first, numbers of jobs and progress from the top', () => {
  const columns = ['job', 'name', 'owner', 'status', 'progress', 'loss', 'eta'] as const;
  assert.deepEqual(columns.filter(isUsuallyDescending), ['job', 'progress']);
});
