/** What is typed into the form, what it means as a submission, and the same as command and as Python. Pure. */

import type { Recipe, Schema, Spec } from '../rest/types.ts';
import { pairs, quoted, words } from './shell.ts';

/** Everything as typed; empty: the default. */
export interface Draft {
  /** null: a script of one's own. */
  readonly recipe: string | null;
  readonly hyperparameters: Readonly<Record<string, string>>;
  readonly options: Readonly<Record<OptionName, string>>;
  readonly script: Script;
}

export interface Script {
  /** `sha256:…`, as the gateway has named it; empty: nothing was uploaded yet. */
  readonly bundle: string;
  readonly entrypoint: string;
  /** As a shell takes them. */
  readonly args: string;
  /** NAME=VALUE, one a line. */
  readonly env: string;
  /** The same: what `run.params` holds. */
  readonly params: string;
}

export type OptionName =
  | 'name'
  | 'total_epochs'
  | 'seed'
  | 'gpus'
  | 'gpu_memory_gib'
  | 'nodes'
  | 'procs_per_node'
  | 'priority'
  | 'max_restarts'
  | 'max_runtime_s'
  | 'stall_timeout_s'
  | 'fail_on_non_finite'
  | 'on_oom'
  | 'tags';

interface Option {
  readonly label: string;
  readonly flag: string;
  /** `flag`: an option of the command line without a value. */
  readonly kind: 'text' | 'integer' | 'number' | 'words' | 'flag' | readonly string[];
  readonly fallback: string;
  readonly help?: string;
}

const NO = 'no';
const YES = 'yes';
export const ANSWERS = [NO, YES] as const;

export const OPTIONS: Readonly<Record<OptionName, Option>> = {
  name: { label: 'Name', flag: '--name', kind: 'text', fallback: 'as the recipe or script' },
  total_epochs: { label: 'Epochs', flag: '--epochs', kind: 'integer', fallback: "the recipe's" },
  seed: { label: 'Seed', flag: '--seed', kind: 'integer', fallback: '0' },
  gpus: { label: 'GPUs on each host', flag: '--gpus', kind: 'integer', fallback: '0' },
  gpu_memory_gib: { label: 'Free memory on each GPU, GiB', flag: '--gpu-memory', kind: 'number', fallback: 'any' },
  nodes: { label: 'Hosts', flag: '--nodes', kind: 'integer', fallback: '1' },
  procs_per_node: {
    label: 'Processes on each host',
    flag: '--procs-per-node',
    kind: 'integer',
    fallback: 'one for each GPU',
  },
  priority: {
    label: 'Priority',
    flag: '--priority',
    kind: 'integer',
    fallback: '0',
    help: 'Higher goes first, -1000 to 1000',
  },
  max_restarts: { label: 'Restarts after a failure', flag: '--max-restarts', kind: 'integer', fallback: '0' },
  max_runtime_s: {
    label: 'Longest run, seconds',
    flag: '--max-runtime',
    kind: 'number',
    fallback: 'no limit',
    help: 'It is ended then',
  },
  stall_timeout_s: {
    label: 'Longest silence, seconds',
    flag: '--stall-timeout',
    kind: 'number',
    fallback: 'no limit',
    help: 'It is ended when it reports nothing for that long',
  },
  fail_on_non_finite: {
    label: 'End it when a loss becomes NaN or infinite',
    flag: '--fail-on-non-finite',
    kind: 'flag',
    fallback: NO,
  },
  on_oom: { label: 'When GPU memory runs out', flag: '--on-oom', kind: ['fail', 'shrink'], fallback: 'fail' },
  tags: { label: 'Tags', flag: '--tag', kind: 'words', fallback: 'none', help: 'Words, with spaces between them' },
};

export const OPTION_NAMES = Object.keys(OPTIONS) as OptionName[];
const NO_OPTIONS = Object.fromEntries(OPTION_NAMES.map((name) => [name, ''])) as Record<OptionName, string>;
const NO_SCRIPT: Script = { bundle: '', entrypoint: 'train.py', args: '', env: '', params: '' };
const SCRIPTS_EPOCHS = 1;

export function emptyDraft(recipe: string | null): Draft {
  return { recipe, hyperparameters: {}, options: NO_OPTIONS, script: NO_SCRIPT };
}

export function usualEpochs(recipe: Recipe | null): number {
  return recipe?.default_epochs ?? SCRIPTS_EPOCHS;
}

/** The draft that submits the same as `spec` did. */
export function draftLike(spec: Spec, recipe: Recipe | null): Draft {
  const properties = recipe?.hyperparameters.properties ?? {};
  const hyperparameters = Object.entries(spec.hyperparameters).filter(
    ([name, value]) => value !== null && value !== properties[name]?.default,
  );
  const { resources } = spec;
  const given: Partial<Record<OptionName, unknown>> = {
    name: spec.name,
    total_epochs: spec.total_epochs === usualEpochs(recipe) ? null : spec.total_epochs,
    seed: spec.seed || null,
    gpus: resources.gpus || null,
    gpu_memory_gib: resources.gpu_memory_gib,
    nodes: resources.nodes === 1 ? null : resources.nodes,
    procs_per_node: resources.procs_per_node,
    priority: spec.priority || null,
    max_restarts: spec.max_restarts || null,
    max_runtime_s: spec.max_runtime_s,
    stall_timeout_s: spec.stall_timeout_s,
    fail_on_non_finite: spec.fail_on_non_finite ? YES : null,
    on_oom: spec.on_oom === 'fail' ? null : spec.on_oom,
    tags: spec.tags.join(' '),
  };
  const options = Object.fromEntries(OPTION_NAMES.map((name) => [name, String(given[name] ?? '')])) as Record<
    OptionName,
    string
  >;
  if (!recipe) return { ...emptyDraft(null), options, script: scriptLike(spec) };
  return {
    ...emptyDraft(recipe.name),
    hyperparameters: Object.fromEntries(hyperparameters.map(([name, value]) => [name, String(value)])),
    options,
  };
}

function scriptLike(spec: Spec): Script {
  const lines = (named: Readonly<Record<string, unknown>>) =>
    Object.entries(named).map(([name, value]) => `${name}=${parameter(value)}`);
  return {
    bundle: spec.bundle ?? '',
    entrypoint: spec.entrypoint ?? NO_SCRIPT.entrypoint,
    args: spec.args.map(quoted).join(' '),
    env: Object.entries(spec.env)
      .map(([name, value]) => `${name}=${value}`)
      .join('\n'),
    params: lines(spec.hyperparameters).join('\n'),
  };
}

/** A property without its null: what kind of value it takes. */
export function kindOf(schema: Schema): Schema {
  return schema.anyOf?.find((one) => one.type !== 'null') ?? schema;
}

/** Typed text as the value that the schema wants; text that is no such value stays text, and the gateway says why it is wrong. */
function valueOf(text: string, schema: Schema): unknown {
  const { type } = kindOf(schema);
  if (type === 'boolean') return text === 'true';
  if ((type === 'number' || type === 'integer') && text.trim() !== '' && Number.isFinite(Number(text)))
    return Number(text);
  return text;
}

/** What is not the default. */
interface Given {
  readonly hyperparameters: Readonly<Record<string, unknown>>;
  readonly options: Readonly<Partial<Record<OptionName, unknown>>>;
  readonly args: readonly string[];
  readonly env: Readonly<Record<string, string>>;
}

function given({ recipe: name, hyperparameters, options, script }: Draft, recipe: Recipe | null): Given {
  const isScript = name === null;
  return {
    hyperparameters: isScript ? params(script) : valuesOf(hyperparameters, recipe),
    options: valuesOfOptions(options),
    args: isScript ? words(script.args) : [],
    env: isScript ? pairs(script.env) : {},
  };
}

function valuesOf(texts: Draft['hyperparameters'], recipe: Recipe | null): Record<string, unknown> {
  const values: Record<string, unknown> = {};
  for (const [name, schema] of Object.entries(recipe?.hyperparameters.properties ?? {})) {
    const text = texts[name] ?? '';
    if (text !== '') values[name] = valueOf(text, schema);
  }
  return values;
}

/** As the command line's `-p` takes them: JSON where it is some, else text. */
function params(script: Script): Record<string, unknown> {
  return Object.fromEntries(
    Object.entries(pairs(script.params)).map(([name, text]) => {
      try {
        return [name, JSON.parse(text) as unknown];
      } catch {
        return [name, text];
      }
    }),
  );
}

function valuesOfOptions(texts: Draft['options']): Partial<Record<OptionName, unknown>> {
  const values: Partial<Record<OptionName, unknown>> = {};
  for (const name of OPTION_NAMES) {
    const text = texts[name].trim();
    const { kind } = OPTIONS[name];
    if (text === '') continue;
    if (kind === 'words') values[name] = text.split(/[\s,]+/);
    else if (kind === 'flag') {
      if (text === YES) values[name] = true;
    } else if (kind === 'integer' || kind === 'number')
      values[name] = Number.isFinite(Number(text)) ? Number(text) : text;
    else values[name] = text;
  }
  return values;
}

function isFilled(named: object): boolean {
  return Object.keys(named).length > 0;
}

/** The body of `POST /training-jobs`. */
export function submission(draft: Draft, recipe: Recipe | null): Record<string, unknown> {
  const { hyperparameters, options, args, env } = given(draft, recipe);
  const { gpus, gpu_memory_gib, nodes, procs_per_node, ...rest } = options;
  const resources = Object.fromEntries(
    Object.entries({ gpus, gpu_memory_gib, nodes, procs_per_node }).filter(([, value]) => value !== undefined),
  );
  const { bundle, entrypoint } = draft.script;
  return {
    ...(draft.recipe === null ? { bundle, entrypoint } : { recipe: draft.recipe }),
    ...(args.length > 0 ? { args } : {}),
    ...(isFilled(env) ? { env } : {}),
    ...(isFilled(hyperparameters) ? { hyperparameters } : {}),
    ...(isFilled(resources) ? { resources } : {}),
    ...rest,
  };
}

/** Of a script: to be called where its folder is. */
export function asCommand(draft: Draft, recipe: Recipe | null): string {
  const { hyperparameters, options, args, env } = given(draft, recipe);
  const { entrypoint } = draft.script;
  const command = ['epochcast', 'submit', ...(draft.recipe === null ? [] : ['--recipe', draft.recipe])];
  for (const [name, value] of Object.entries(hyperparameters)) command.push('-p', `${name}=${parameter(value)}`);
  for (const [name, value] of Object.entries(env)) command.push('--env', `${name}=${value}`);
  for (const [name, value] of Object.entries(options)) {
    const { flag, kind } = OPTIONS[name as OptionName];
    if (kind === 'flag') command.push(flag);
    else for (const one of Array.isArray(value) ? value : [value]) command.push(flag, String(one));
  }
  if (draft.recipe === null) {
    // A script in a subfolder goes with the whole folder, as it was uploaded.
    if (entrypoint.includes('/')) command.push('--folder', '.');
    command.push(entrypoint, ...(args.length > 0 ? ['--', ...args] : []));
  }
  return command.map(quoted).join(' ');
}

/** The command line reads JSON where it is some: text that looks like it needs its quotes. */
function parameter(value: unknown): string {
  if (typeof value !== 'string') return JSON.stringify(value);
  try {
    JSON.parse(value);
    return JSON.stringify(value);
  } catch {
    return value;
  }
}

/** Of a script: to be run where its folder is. */
export function asPython(draft: Draft, recipe: Recipe | null): string {
  const { hyperparameters, options, args, env } = given(draft, recipe);
  const { entrypoint } = draft.script;
  const isNested = draft.recipe === null && entrypoint.includes('/');
  const script = isNested ? `choose(${literal(entrypoint)}, ".")` : literal(entrypoint);
  const lines = [draft.recipe === null ? `    ${script},` : `    recipe=${literal(draft.recipe)},`];
  if (args.length > 0) lines.push(`    args=${literal(args)},`);
  if (isFilled(env)) lines.push(`    env=${literal(env)},`);
  if (isFilled(hyperparameters)) lines.push(`    hyperparameters=${literal(hyperparameters)},`);
  for (const [name, value] of Object.entries(options)) lines.push(`    ${name}=${literal(value)},`);
  const imports = ['import epochcast', ...(isNested ? ['from epochcast.packing import choose'] : [])];
  return [...imports, '', 'job = epochcast.Client().submit(', ...lines, ')', ''].join('\n');
}

function literal(value: unknown): string {
  if (value === true) return 'True';
  if (value === false) return 'False';
  if (value === null) return 'None';
  if (Array.isArray(value)) return `[${value.map(literal).join(', ')}]`;
  if (typeof value === 'object')
    return `{${Object.entries(value!)
      .map(([name, one]) => `${literal(name)}: ${literal(one)}`)
      .join(', ')}}`;
  return JSON.stringify(value);
}
