import assert from 'node:assert/strict';
import { test } from 'node:test';
import { apply, MAX_EPOCHS, MAX_LINES, unknownJob } from '../src/stream/jobState.ts';
import type { Message } from '../src/stream/messages.ts';

const common = {
  job_id: 1,
  status: 'running' as const,
  progress: 0,
  current_epoch: 0,
  total_epochs: 4,
  timestamp: '2026-11-24T10:00:00Z',
};
const JOB_ERROR = {
  type: 'user_error',
  message: 'broken',
  detail: null,
  retryable: true,
  rank: null,
  host: null,
  gpu: null,
  epoch: null,
  step: null,
  exit_code: 1,
  signal: null,
  memory: null,
  verdict: null,
  traceback: null,
};

function epoch(id: string, number: number, loss: number | null, more: object = {}): Message {
  return {
    ...common,
    type: 'progress',
    id,
    current_epoch: number,
    progress: number / 4,
    current_loss: loss,
    metrics: { train_loss: loss },
    eta_s: 1,
    attempt: 1,
    stop_requested: false,
    ...more,
  };
}

function line(id: string, message = id): Message {
  return { ...common, type: 'log', id, level: 'INFO', message };
}

const complete: Message = {
  ...common,
  type: 'complete',
  id: '2-9',
  status: 'succeeded',
  progress: 1,
  model_id: 7,
  final_metrics: { train_loss: 0.1 },
  duration_s: 3,
};

test('epochs and lines are gathered in their order', () => {
  const state = apply(unknownJob(1), [epoch('2-1', 1, 0.9), line('2-2'), epoch('2-3', 2, 0.5)]);
  assert.deepEqual(
    state.epochs.map((one) => [one.epoch, one.metrics.train_loss]),
    [
      [1, 0.9],
      [2, 0.5],
    ],
  );
  assert.deepEqual(
    state.lines.map((one) => one.id),
    ['2-2'],
  );
  assert.equal(state.currentLoss, 0.5);
  assert.equal(state.lastId, '2-3');
});

test('a message that comes twice, or late, changes nothing', () => {
  const state = apply(unknownJob(1), [epoch('2-9', 1, 0.9), epoch('2-10', 2, 0.5)]);
  assert.equal(apply(state, [epoch('2-10', 2, 0.5), epoch('2-9', 1, 0.9)]), state);
});

test('one at a time gives the same as all at once', () => {
  const messages = [epoch('2-1', 1, 1), line('2-2'), epoch('2-3', 2, 0.5), epoch('4-1', 2, 0.4), complete];
  const whole = apply(unknownJob(1), messages);
  assert.deepEqual(
    messages.reduce((state, message) => apply(state, [message]), unknownJob(1)),
    whole,
  );
});

test('the given state is never touched', () => {
  const before = apply(unknownJob(1), [epoch('2-1', 1, 0.9)]);
  const copy = structuredClone(before);
  apply(before, [epoch('2-2', 1, 0.1), line('2-3')]);
  assert.deepEqual(before, copy);
});

test('an epoch that a resumed attempt repeats has its newest values', () => {
  const messages = [
    epoch('2-1', 1, 0.9),
    epoch('2-2', 2, 0.8),
    epoch('2-3', 3, 0.7),
    epoch('4-1', 2, 0.5, { attempt: 2 }),
  ];
  const { epochs } = apply(unknownJob(1), messages);
  assert.deepEqual(
    epochs.map((one) => [one.epoch, one.metrics.train_loss, one.attempt]),
    [
      [1, 0.9, 1],
      [2, 0.5, 2],
      [3, 0.7, 1],
    ],
  );
});

test('a completed job has its model, and its last epoch stays', () => {
  const state = apply(unknownJob(1), [epoch('2-1', 4, 0.1), complete]);
  assert.equal(state.completed, true);
  assert.equal(state.progress, 1);
  assert.equal(state.modelId, 7);
  assert.equal(state.epochs.length, 1);
});

test('a restarted job has neither the end nor the error of its earlier run', () => {
  const failed: Message = {
    ...common,
    type: 'error',
    id: '2-5',
    status: 'failed',
    error_message: 'broken',
    error: JOB_ERROR,
  };
  const ended = apply(unknownJob(1), [failed]);
  assert.equal(ended.errorMessage, 'broken');
  const again = apply(ended, [epoch('3-1', 0, null, { status: 'queued' })]);
  assert.deepEqual([again.status, again.errorMessage, again.error, again.completed], ['queued', null, null, false]);
});

test('an announced hole is counted, also where its id is an old one', () => {
  const state = apply(unknownJob(1), [epoch('2-8', 3, 0.5)]);
  assert.equal(apply(state, [epoch('2-8', 3, 0.5, { resync: true })]).resyncs, 1);
});

test('the state before the first epoch is no point of a curve', () => {
  assert.deepEqual(apply(unknownJob(1), [epoch('1-1', 0, null, { metrics: {} })]).epochs, []);
});

test('only the newest lines are kept', () => {
  const many = Array.from({ length: MAX_LINES + 10 }, (_, index) => line(`2-${index + 1}`));
  const { lines } = apply(unknownJob(1), many);
  assert.equal(lines.length, MAX_LINES);
  assert.equal(lines.at(-1)?.id, `2-${MAX_LINES + 10}`);
});

test('a page that stays open keeps the newest epochs', () => {
  const many = Array.from({ length: MAX_EPOCHS + 10 }, (_, at) => epoch(`2-${at + 1}`, at + 1, 0.5));
  const { epochs } = apply(unknownJob(1), many);
  assert.deepEqual([epochs.length, epochs[0]?.epoch, epochs.at(-1)?.epoch], [MAX_EPOCHS, 11, MAX_EPOCHS + 10]);
});
