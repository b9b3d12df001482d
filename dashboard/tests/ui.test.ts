import assert from 'node:assert/strict';
import { test } from 'node:test';
import { whoIs } from '../src/app/session.ts';
import { ago, bytes, duration, number, percent } from '../src/ui/format.ts';

test('a token says whose it is, whether its scopes are words or a list', () => {
  const token = (scope: unknown) =>
    `head.${Buffer.from(JSON.stringify({ sub: 'ällice', scope })).toString('base64url')}.`;
  const who = { owner: 'ällice', scopes: ['jobs:read', 'jobs:write'] };
  assert.deepEqual(whoIs(token('jobs:read jobs:write')), who);
  assert.deepEqual(whoIs(token(['jobs:read', 'jobs:write'])), who);
  assert.equal(whoIs('nonsense'), null);
});

test('numbers and times are short, and 100 % only when it is all', () => {
  assert.deepEqual([percent(0.999), percent(1), percent(0)], ['99 %', '100 %', '0 %']);
  assert.deepEqual(
    [duration(5.04), duration(75), duration(7_260), duration(200_000), duration(null)],
    ['5.0 s', '1 min 15 s', '2 h 01 min', '2 d 7 h', '–'],
  );
  assert.deepEqual(
    [number(0.123456), number(1e-5), number(null), number(undefined), number(12)],
    ['0.1235', '1.00e-5', 'NaN or ∞', '–', '12'],
  );
  assert.deepEqual([bytes(1023), bytes(1536), bytes(5 * 2 ** 30)], ['1023 B', '1.5 KiB', '5.0 GiB']);
  assert.equal(ago('2026-11-24T10:00:00Z', Date.parse('2026-11-24T12:30:00Z')), '2 h ago');
});
