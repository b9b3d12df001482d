/** A new job: a form made from the recipe's schema, or for a script of one's own; what would happen, and the same for
 * terminal and Python. */

import { type FormEvent, useEffect, useMemo, useState } from 'react';
import { useMay, usePlatform } from '../app/platform.tsx';
import { go, useQuery } from '../app/router.tsx';
import { Problem } from '../rest/Rest.ts';
import type { Items, Job, Plan, Recipe } from '../rest/types.ts';
import { useAnswer } from '../rest/useAnswer.ts';
import { Notice, Trouble } from '../ui/Notice.tsx';
import { useTitle } from '../ui/useTitle.ts';
import { type Draft, draftLike, emptyDraft, OPTION_NAMES, type Script, submission, usualEpochs } from './draft.ts';
import { HyperparameterField, OptionField } from './fields.tsx';
import { PlanPanel } from './PlanPanel.tsx';
import { ScriptFields } from './ScriptFields.tsx';

const TYPING_MS = 350;
const OWN = { name: null, title: 'A script of your own', description: 'It runs in a copy of its folder, unchanged' };

export default function SubmitPage() {
  const { rest } = usePlatform();
  const like = useQuery().get('like');
  useTitle('Submit');
  const { data, error } = useAnswer(`recipes ${like}`, async (signal) => ({
    recipes: (await rest.get<Items<Recipe>>('/recipes', signal)).items,
    earlier: like ? await rest.get<Job>(`/training-jobs/${like}`, signal) : null,
  }));
  if (error && !data)
    return (
      <Notice isPage kind="bad" title="The form can't be filled in">
        {error.message}
      </Notice>
    );
  if (!data) return <p className="waiting">Loading …</p>;
  const { recipes, earlier } = data;
  const known = recipes.find((one) => one.name === earlier?.spec.recipe) ?? null;
  const first =
    earlier && (known || earlier.spec.bundle) ? draftLike(earlier.spec, known) : emptyDraft(recipes[0]!.name);
  return <SubmitForm key={like} recipes={recipes} first={first} like={earlier} />;
}

function SubmitForm({ recipes, first, like }: { recipes: readonly Recipe[]; first: Draft; like: Job | null }) {
  const { rest } = usePlatform();
  const mayWrite = useMay('jobs:write');
  const [draft, setDraft] = useState(first);
  const [sending, setSending] = useState(false);
  const [refusal, setRefusal] = useState<Error | null>(null);
  const recipe = recipes.find((one) => one.name === draft.recipe) ?? null;
  const isReady = recipe !== null || draft.script.bundle !== '';
  const body = useMemo(() => submission(draft, recipe), [draft, recipe]);
  const wanted = useLater(JSON.stringify(body), TYPING_MS);
  const planned = useAnswer(wanted, async () =>
    isReady ? rest.post<Plan>('/training-jobs?dry_run=true', JSON.parse(wanted)) : null,
  );
  // The same until something is changed, so that a lost answer and a second click make no second job.
  const key = useMemo(() => randomKey(), [wanted]);

  const problem = refusal ?? planned.error;
  const fields = problem instanceof Problem ? problem.fields : [];
  const errorOf = (name: string) =>
    fields.find((one) => one.field === name || one.field.endsWith(`.${name}`))?.message ?? null;

  const submit = async (event: FormEvent) => {
    event.preventDefault();
    setSending(true);
    setRefusal(null);
    try {
      const job = await rest.post<Job>('/training-jobs', body, { 'Idempotency-Key': key });
      go(`/jobs/${job.job_id}`);
    } catch (error) {
      setRefusal(error as Error);
      setSending(false);
    }
  };

  const change = (next: Draft) => {
    setRefusal(null);
    setDraft(next);
  };

  // Over whatever the draft is by then: an upload takes its time, and one types meanwhile.
  const changeScript = (changes: Partial<Script>) => {
    setRefusal(null);
    setDraft((now) => ({ ...now, script: { ...now.script, ...changes } }));
  };

  return (
    <>
      <div className="page-head">
        <h1>{like ? `New job like #${like.job_id}` : 'New job'}</h1>
      </div>
      <form className="submit" onSubmit={submit} noValidate>
        <div className="submit-main">
          <fieldset className="recipes">
            <legend>What to run</legend>
            {[...recipes, OWN].map((one) => (
              <label key={one.name} className="recipe">
                <input
                  type="radio"
                  name="recipe"
                  checked={one.name === draft.recipe}
                  onChange={() => change({ ...draft, recipe: one.name, hyperparameters: {} })}
                />
                <span>
                  <b>{one.title}</b>
                  <span className="soft">{one.description}</span>
                </span>
              </label>
            ))}
          </fieldset>
          {recipe ? (
            <fieldset>
              <legend>Hyperparameters</legend>
              <div className="fields">
                {Object.entries(recipe.hyperparameters.properties ?? {}).map(([name, schema]) => (
                  <HyperparameterField
                    key={`${recipe.name} ${name}`}
                    name={name}
                    schema={schema}
                    text={draft.hyperparameters[name] ?? ''}
                    error={errorOf(name)}
                    onText={(text) => change({ ...draft, hyperparameters: { ...draft.hyperparameters, [name]: text } })}
                  />
                ))}
              </div>
            </fieldset>
          ) : (
            <ScriptFields script={draft.script} onScript={changeScript} errorOf={errorOf} />
          )}
          <fieldset>
            <legend>Job</legend>
            <div className="fields">
              {OPTION_NAMES.map((name) => (
                <OptionField
                  key={name}
                  name={name}
                  text={draft.options[name]}
                  error={errorOf(name)}
                  epochs={usualEpochs(recipe)}
                  onText={(text) => change({ ...draft, options: { ...draft.options, [name]: text } })}
                />
              ))}
            </div>
          </fieldset>
        </div>
        <div className="submit-side">
          <PlanPanel plan={planned.data} problem={problem} draft={draft} recipe={recipe} />
          {refusal && <Trouble error={refusal} />}
          <button className="primary wide" disabled={sending || !mayWrite || !isReady}>
            {sending ? 'Submitting …' : 'Submit job'}
          </button>
          {!mayWrite && <p className="soft">This token may not submit: it lacks the scope jobs:write.</p>}
        </div>
      </form>
    </>
  );
}

/** `value`, when it has stayed the same for a while. */
function useLater<Value>(value: Value, delayMs: number): Value {
  const [later, setLater] = useState(value);
  useEffect(() => {
    const timer = setTimeout(() => setLater(value), delayMs);
    return () => clearTimeout(timer);
  }, [value, delayMs]);
  return later;
}

/** `crypto.randomUUID` is missing where a page comes over plain HTTP from another machine. */
function randomKey(): string {
  return [...crypto.getRandomValues(new Uint8Array(16))].map((byte) => byte.toString(16).padStart(2, '0')).join('');
}
