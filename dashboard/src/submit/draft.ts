/** What is typed into the form, what it means as a submission, and the same as command and as Python. Pure. */

import type { Recipe, Schema, Spec } from '../rest/types.ts';

/** Everything as typed; empty: the default. */
export interface Draft {
  readonly recipe: string;
  readonly hyperparameters: Readonly<Record<string, string>>;
  readonly options: Readonly<Record<OptionName, string>>;
}

export type OptionName =
  | 'name'
  | 'total_epochs'
  | 'seed'
  | 'gpus'
  | 'gpu_memory_gib'
  | 'nodes'
  | 'priority'
  | 'max_restarts'
  | 'on_oom'
  | 'tags';

interface Option {
  readonly label: string;
  readonly flag: string;
  readonly kind: 'text' | 'integer' | 'number' | 'words' | readonly string[];
  readonly fallback: string;
  readonly help?: string;
}

export const OPTIONS: Readonly<Record<OptionName, Option>> = {
  name: { label: 'Name', flag: '--name', kind: 'text', fallback: "the recipe's" },
  total_epochs: { label: 'Epochs', flag: '--epochs', kind: 'integer', fallback: "the recipe's" },
  seed: { label: 'Seed', flag: '--seed', kind: 'integer', fallback: '0' },
  gpus: { label: 'GPUs on each host', flag: '--gpus', kind: 'integer', fallback: '0' },
  gpu_memory_gib: { label: 'Free memory on each GPU, GiB', flag: '--gpu-memory', kind: 'number', fallback: 'any' },
  nodes: { label: 'Hosts', flag: '--nodes', kind: 'integer', fallback: '1' },
  priority: {
    label: 'Priority',
    flag: '--priority',
    kind: 'integer',
    fallback: '0',
    help: 'Higher goes first, -1000 to 1000',
  },
  max_restarts: { label: 'Restarts after a failure', flag: '--max-restarts', kind: 'integer', fallback: '0' },
  on_oom: { label: 'When GPU memory runs out', flag: '--on-oom', kind: ['fail', 'shrink'], fallback: 'fail' },
  tags: { label: 'Tags', flag: '--tag', kind: 'words', fallback: 'none', help: 'Words, with spaces between them' },
};

export const OPTION_NAMES = Object.keys(OPTIONS) as OptionName[];
const NO_OPTIONS = Object.fromEntries(OPTION_NAMES.map((name) => [name, ''])) as Record<OptionName, string>;

export function emptyDraft(recipe: string): Draft {
  return { recipe, hyperparameters: {}, options: NO_OPTIONS };
}

/** The draft that submits the same as `spec` did. */
export function draftLike(spec: Spec, recipe: Recipe): Draft {
  const properties = recipe.hyperparameters.properties ?? {};
  const hyperparameters = Object.entries(spec.hyperparameters).filter(
    ([name, value]) => value !== null && value !== properties[name]?.default,
  );
  const { resources } = spec;
  const given: Partial<Record<OptionName, unknown>> = {
    name: spec.name,
    total_epochs: spec.total_epochs === recipe.default_epochs ? null : spec.total_epochs,
    seed: spec.seed || null,
    gpus: resources.gpus || null,
    gpu_memory_gib: resources.gpu_memory_gib,
    nodes: resources.nodes === 1 ? null : resources.nodes,
    priority: spec.priority || null,
    max_restarts: spec.max_restarts || null,
    on_oom: spec.on_oom === 'fail' ? null : spec.on_oom,
    tags: spec.tags.join(' '),
  };
  const options = Object.fromEntries(OPTION_NAMES.map((name) => [name, String(given[name] ?? '')])) as Record<
    OptionName,
    string
  >;
  return {
    recipe: recipe.name,
    hyperparameters: Object.fromEntries(hyperparameters.map(([name, value]) => [name, String(value)])),
    options,
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

function given(
  draft: Draft,
  recipe: Recipe,
): { hyperparameters: Record<string, unknown>; options: Partial<Record<OptionName, unknown>> } {
  const properties = recipe.hyperparameters.properties ?? {};
  const hyperparameters: Record<string, unknown> = {};
  for (const [name, schema] of Object.entries(properties)) {
    const text = draft.hyperparameters[name] ?? '';
    if (text !== '') hyperparameters[name] = valueOf(text, schema);
  }
  const options: Partial<Record<OptionName, unknown>> = {};
  for (const name of OPTION_NAMES) {
    const text = draft.options[name].trim();
    const { kind } = OPTIONS[name];
    if (text === '') continue;
    if (kind === 'words') options[name] = text.split(/[\s,]+/);
    else if (kind === 'integer' || kind === 'number')
      options[name] = Number.isFinite(Number(text)) ? Number(text) : text;
    else options[name] = text;
  }
  return { hyperparameters, options };
}

/** The body of `POST /training-jobs`. */
export function submission(draft: Draft, recipe: Recipe): Record<string, unknown> {
  const { hyperparameters, options } = given(draft, recipe);
  const { gpus, gpu_memory_gib, nodes, ...rest } = options;
  const resources = Object.fromEntries(
    Object.entries({ gpus, gpu_memory_gib, nodes }).filter(([, value]) => value !== undefined),
  );
  return {
    recipe: recipe.name,
    ...(Object.keys(hyperparameters).length > 0 ? { hyperparameters } : {}),
    ...(Object.keys(resources).length > 0 ? { resources } : {}),
    ...rest,
  };
}

export function asCommand(draft: Draft, recipe: Recipe): string {
  const { hyperparameters, options } = given(draft, recipe);
  const words = ['epochcast', 'submit', '--recipe', recipe.name];
  for (const [name, value] of Object.entries(hyperparameters)) words.push('-p', `${name}=${parameter(value)}`);
  for (const [name, value] of Object.entries(options)) {
    const { flag } = OPTIONS[name as OptionName];
    for (const one of Array.isArray(value) ? value : [value]) words.push(flag, String(one));
  }
  return words.map(quoted).join(' ');
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

function quoted(word: string): string {
  return /^[\w./:=,@%+-]+$/.test(word) ? word : `'${word.replaceAll("'", "'\\''")}'`;
}

export function asPython(draft: Draft, recipe: Recipe): string {
  const { hyperparameters, options } = given(draft, recipe);
  const lines = [`    recipe=${literal(recipe.name)},`];
  if (Object.keys(hyperparameters).length > 0) lines.push(`    hyperparameters=${literal(hyperparameters)},`);
  for (const [name, value] of Object.entries(options)) lines.push(`    ${name}=${literal(value)},`);
  return ['import epochcast', '', 'job = epochcast.Client().submit(', ...lines, ')', ''].join('\n');
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
