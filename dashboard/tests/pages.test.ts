import assert from 'node:assert/strict';
import { test } from 'node:test';
import { whoIs } from '../src/app/session.ts';
import { comparison, differences, jobIds } from '../src/compare/comparison.ts';
import { columnsOf, csv, groups, smoothed, stepColumnsOf } from '../src/curves/columns.ts';
import {
  chosen,
  countByStatus,
  hasGap,
  hasNewJob,
  lossOf,
  merged,
  withFleet,
  withMessage,
} from '../src/jobs/liveJobs.ts';
import type { Wanted } from '../src/jobs/liveJobs.ts';
import type { Job, Recipe, Spec } from '../src/rest/types.ts';
import type { JobMessage } from '../src/stream/index.ts';
import { asCommand, asPython, draftLike, emptyDraft, submission } from '../src/submit/draft.ts';
import { words } from '../src/submit/shell.ts';
import { ago, bytes, duration, number, percent } from '../src/ui/format.ts';
import { nextPart } from '../src/ui/useSpread.ts';

const SPEC: Spec = {
  name: 'digits',
  recipe: 'image-classifier',
  hyperparameters: { lr: 0.01, width: 32 },
  bundle: null,
  entrypoint: null,
  args: [],
  env: {},
  total_epochs: 20,
  seed: 0,
  threads: null,
  resources: { gpus: 0, gpu_memory_gib: null, nodes: 1, procs_per_node: null },
  priority: 0,
  max_restarts: 0,
  max_runtime_s: null,
  stall_timeout_s: null,
  fail_on_non_finite: false,
  on_oom: 'fail',
  tags: ['demo'],
};

function job(job_id: number, more: Partial<Job> = {}): Job {
  return {
    job_id,
    name: `job-${job_id}`,
    owner: 'alice',
    status: 'running',
    progress: 0.5,
    current_epoch: 5,
    total_epochs: 10,
    current_loss: 0.5,
    metrics: {},
    eta_s: 3,
    queue_position: null,
    pending_reason: null,
    expected_start_at: null,
    stop_requested: false,
    attempt: 1,
    generation: 2,
    model_id: null,
    final_metrics: null,
    error_message: null,
    error: null,
    spec: SPEC,
    hosts: [{ name: 'gpu-3', gpus: [0] }],
    last_event_id: '2-5',
    created_at: '2026-11-24T10:00:00Z',
    started_at: null,
    finished_at: null,
    timestamp: '2026-11-24T10:00:00Z',
    ...more,
  };
}

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
  assert.deepEqual(jobIds('1, #2 2 x 0'), [1, 2]);
});

const RECIPE: Recipe = {
  name: 'image-classifier',
  title: 'Image classifier',
  description: '',
  default_epochs: 20,
  hyperparameters: {
    properties: {
      lr: { type: 'number', default: 0.003 },
      width: { type: 'integer', default: 32 },
      compile: { type: 'boolean', default: false },
      data_dir: { anyOf: [{ type: 'string' }, { type: 'null' }], default: null },
    },
  },
};

test('a draft says the same as body, command and Python', () => {
  const draft = emptyDraft('image-classifier');
  const filled = {
    ...draft,
    hyperparameters: { lr: '0.01', compile: 'true', data_dir: '7' },
    options: { ...draft.options, name: "it's", gpus: '2', tags: 'a b' },
  };
  assert.deepEqual(submission(filled, RECIPE), {
    recipe: 'image-classifier',
    hyperparameters: { lr: 0.01, compile: true, data_dir: '7' },
    resources: { gpus: 2 },
    name: "it's",
    tags: ['a', 'b'],
  });
  const command = `epochcast submit --recipe image-classifier -p lr=0.01 -p compile=true -p 'data_dir="7"' --name 'it'\\''s' --gpus 2 --tag a --tag b`;
  assert.equal(asCommand(filled, RECIPE), command);
  assert.match(asPython(filled, RECIPE), /hyperparameters=\{"lr": 0.01, "compile": True, "data_dir": "7"\},/);
});

test('a script of one’s own says the same as body, command and Python, and an earlier one becomes the same draft', () => {
  const bundle = `sha256:${'0'.repeat(64)}`;
  const spec: Spec = {
    ...SPEC,
    name: null,
    recipe: null,
    bundle,
    entrypoint: 'src/train.py',
    args: ['--note', "it's 1"],
    env: { A: 'b=c' },
    hyperparameters: { lr: 0.1, text: '7' },
    total_epochs: 3,
    tags: [],
  };
  const draft = draftLike(spec, null);
  assert.deepEqual(submission(draft, null), {
    bundle,
    entrypoint: 'src/train.py',
    args: ['--note', "it's 1"],
    env: { A: 'b=c' },
    hyperparameters: { lr: 0.1, text: '7' },
    total_epochs: 3,
  });
  const command = `epochcast submit -p lr=0.1 -p 'text="7"' --env A=b=c --epochs 3 --folder . src/train.py -- --note 'it'\\''s 1'`;
  assert.equal(asCommand(draft, null), command);
  assert.match(
    asPython(draft, null),
    /submit\(\n    choose\("src\/train.py", "."\),\n    args=\["--note", "it's 1"\],/,
  );
  const plain = {
    ...emptyDraft(null),
    script: { ...draft.script, entrypoint: 'train.py', args: '', env: '', params: '' },
  };
  assert.equal(asCommand(plain, null), 'epochcast submit train.py');
  assert.match(asPython(plain, null), /submit\(\n    "train.py",\n\)/);
  assert.deepEqual(words(`a "b c" d\\ e '' f"g"`), ['a', 'b c', 'd e', '', 'fg']);
});

test('a draft like an earlier job submits the same, with its limits', () => {
  const limits = { max_runtime_s: 3600, stall_timeout_s: 90, fail_on_non_finite: true, on_oom: 'shrink' };
  const resources = { gpus: 2, gpu_memory_gib: 40, nodes: 2, procs_per_node: 4 };
  const draft = draftLike({ ...SPEC, ...limits, resources }, RECIPE);
  assert.deepEqual(submission(draft, RECIPE), {
    recipe: 'image-classifier',
    name: 'digits',
    hyperparameters: { lr: 0.01 },
    tags: ['demo'],
    resources,
    ...limits,
  });
  const flags = '--procs-per-node 4 --max-runtime 3600 --stall-timeout 90 --fail-on-non-finite --on-oom shrink';
  assert.ok(asCommand(draft, RECIPE).endsWith(`${flags} --tag demo`));
  assert.match(asPython(draft, RECIPE), /fail_on_non_finite=True,/);
});

test('a draft like an earlier job holds only what was not the default', () => {
  const draft = draftLike(SPEC, RECIPE);
  assert.deepEqual(draft.hyperparameters, { lr: '0.01' });
  assert.deepEqual(
    [draft.options.name, draft.options.tags, draft.options.total_epochs, draft.options.nodes],
    ['digits', 'demo', '', ''],
  );
});

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
    ['0.1235', '1.00e-5', 'NaN', '–', '12'],
  );
  assert.deepEqual([bytes(1023), bytes(1536), bytes(5 * 2 ** 30)], ['1023 B', '1.5 KiB', '5.0 GiB']);
  assert.equal(ago('2026-11-24T10:00:00Z', Date.parse('2026-11-24T12:30:00Z')), '2 h ago');
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
