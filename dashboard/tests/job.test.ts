import assert from 'node:assert/strict';
import { test } from 'node:test';
import { newest } from '../src/job/newest.ts';
import { apply, type Message, unknownJob } from '../src/stream/index.ts';
import { job } from './samples.ts';

const told = (id: string, current_epoch: number): Message => ({
  type: 'progress',
  id,
  job_id: 1,
  status: 'running',
  progress: current_epoch / 10,
  current_epoch,
  total_epochs: 10,
  timestamp: '2026-11-29T10:00:00Z',
  current_loss: 0.5,
  metrics: { train_loss: 0.5 },
  eta_s: 1,
  attempt: 1,
  stop_requested: false,
});

test('while earlier messages are told again, the job stands as it was read; epochs and lines come in', () => {
  const read = job(1, {
    last_event_id: '2-8',
    status: 'failed',
    current_epoch: 8,
    progress: 0.8,
    error_message: 'lost',
  });
  const behind = apply(unknownJob(1), [told('2-3', 3)]);
  const { status, currentEpoch, progress, errorMessage, epochs, lastId } = newest(behind, read);
  assert.deepEqual([status, currentEpoch, progress, errorMessage], ['failed', 8, 0.8, 'lost']);
  assert.deepEqual([epochs.length, lastId], [1, '2-3']);
});

test('from the message that was known when the job was read, the stream has the word', () => {
  const read = job(1, { last_event_id: '2-8', current_epoch: 8 });
  const caughtUp = apply(unknownJob(1), [told('2-8', 8)]);
  assert.equal(newest(caughtUp, read), caughtUp);
  assert.equal(newest(apply(caughtUp, [told('4-1', 8)]), read).attempt, 1);
});

test('a job that never had an event is as its stream says', () => {
  const first = apply(unknownJob(1), [told('1-1', 0)]);
  assert.equal(newest(first, job(1, { last_event_id: null })), first);
  assert.equal(newest(unknownJob(1), job(1, { last_event_id: null, current_epoch: 5 })).currentEpoch, 5);
});
