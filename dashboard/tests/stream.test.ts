import assert from 'node:assert/strict';
import { test } from 'node:test';
import { delayMs } from '../src/stream/backoff.ts';
import { isCrowded, verdictOn, wantsToken } from '../src/stream/closes.ts';
import { compareIds, cursorBefore, isNext, parseId } from '../src/stream/eventIds.ts';
import { applyFleet } from '../src/stream/FleetStream.ts';
import type { Message } from '../src/stream/messages.ts';
import { messageOf } from '../src/stream/snapshot.ts';
import { socketUrl } from '../src/stream/urls.ts';
import { job } from './samples.ts';

const LOST = { code: 1006, reason: '' };

test('ids are ordered as numbers, not as text', () => {
  assert.ok(compareIds('2-9', '2-10') < 0);
  assert.ok(compareIds('10-1', '9-99') > 0);
  assert.equal(compareIds('0', '0-0'), 0);
  assert.throws(() => parseId('2:46'), /not an event id/);
});

test('what follows an id is the next of its generation, or the first of a later one', () => {
  assert.ok(isNext('2-46', '2-47'));
  assert.ok(isNext('2-46', '4-1'));
  assert.ok(!isNext('2-46', '2-48'));
  assert.ok(!isNext('2-46', '4-2'));
});

test('a cursor in the past stays a cursor', () => {
  assert.equal(cursorBefore('2-5000', 2000), '2-3000');
  assert.equal(cursorBefore('2-46', 2000), '0');
  assert.equal(cursorBefore('6-46', 2000), '4-0');
});

test('1000 ends, what the contract refuses is refused, everything else comes back', () => {
  assert.equal(verdictOn({ code: 1000, reason: 'succeeded' }), 'ended');
  for (const code of [1008, 1003]) assert.equal(verdictOn({ code, reason: '' }), 'refused');
  for (const code of [1001, 1005, 1006, 1011, 1012, 1013, 4408]) assert.equal(verdictOn({ code, reason: '' }), 'lost');
});

test('only what is wrong with the token asks for another', () => {
  for (const reason of ['token expired', 'invalid token', 'authentication required']) {
    assert.ok(wantsToken({ code: 1008, reason }));
  }
  assert.ok(!wantsToken({ code: 1008, reason: 'job not found' }));
});

test('only the close of an 11th subscriber is for want of a place', () => {
  assert.ok(isCrowded({ code: 1013, reason: 'too many connections' }));
  for (const close of [{ code: 1013, reason: 'slow consumer' }, LOST, null]) assert.ok(!isCrowded(close));
});

test('the wait is anything up to a ceiling that doubles and has a cap', () => {
  assert.equal(delayMs(3, LOST, 0), 0);
  assert.equal(delayMs(0, LOST, 1), 400);
  assert.equal(delayMs(3, LOST, 1), 3200);
  assert.equal(delayMs(1000, LOST, 1), 15_000);
  assert.ok(delayMs(0, { code: 1013, reason: 'too many connections' }, 0) >= 4000);
});

test('the fleet has the newest message of each job and no lines', () => {
  const message = (job_id: number, id: string, type = 'progress') => ({ type, job_id, id }) as Message;
  const state = applyFleet(new Map(), [
    message(1, '2-1'),
    message(2, '2-1'),
    message(1, '2-3'),
    message(1, '2-2'),
    message(1, '2-9', 'log'),
  ]);
  assert.deepEqual(
    [...state].map(([job, { id }]) => [job, id]),
    [
      [1, '2-3'],
      [2, '2-1'],
    ],
  );
  assert.equal(applyFleet(state, [message(1, '2-1')]), state);
});

test('a cursor goes into the address, a token never', () => {
  assert.equal(
    socketUrl('https://host:1/', '/training-jobs/4/ws', '2-46'),
    'wss://host:1/api/v1/training-jobs/4/ws?after=2-46',
  );
  assert.equal(socketUrl('http://host', '/training-jobs/ws'), 'ws://host/api/v1/training-jobs/ws');
});

test('a job as it was read is the message that a new subscriber would get', () => {
  const read = { last_event_id: '2-8', current_epoch: 8, model_id: 3, final_metrics: { loss: 0.1 } };
  assert.equal(messageOf(job(1, read)).type, 'progress');
  const { id, type } = messageOf(job(1, { ...read, status: 'succeeded' }));
  assert.deepEqual([id, type], ['2-8', 'complete']);
  assert.equal(messageOf(job(1, { ...read, status: 'stopped' })).type, 'progress');
  assert.equal(messageOf(job(1, { last_event_id: null })).id, '0');
});
