import assert from 'node:assert/strict';
import { test } from 'node:test';
import type { Recipe, Spec } from '../src/rest/types.ts';
import { asCommand, asPython, draftLike, emptyDraft, submission } from '../src/submit/draft.ts';
import { words } from '../src/submit/shell.ts';
import { SPEC } from './samples.ts';

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
