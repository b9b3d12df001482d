/** A script of one's own: an archive of its folder, which script in it, and what it is given. */

import { type ChangeEvent, useId, useState } from 'react';
import { useMay, usePlatform } from '../app/platform.tsx';
import type { Bundle } from '../rest/types.ts';
import { bytes } from '../ui/format.ts';
import type { Script } from './draft.ts';
import { Field } from './fields.tsx';

interface ScriptProps {
  readonly script: Script;
  readonly onScript: (changes: Partial<Script>) => void;
  readonly errorOf: (name: string) => string | null;
}

export function ScriptFields({ script, onScript, errorOf }: ScriptProps) {
  const field = (name: 'entrypoint' | 'args' | 'env' | 'params') => ({
    text: script[name],
    error: errorOf(name === 'params' ? 'hyperparameters' : name),
    onText: (text: string) => onScript({ [name]: text }),
  });
  return (
    <fieldset>
      <legend>Script</legend>
      <div className="fields">
        <ArchiveField bundle={script.bundle} error={errorOf('bundle')} onBundle={(bundle) => onScript({ bundle })} />
        <Field
          label="Entrypoint"
          help="The script that runs, by its path in the folder"
          fallback="train.py"
          {...field('entrypoint')}
        />
        <Field label="Arguments" help="As in a shell" fallback="none" {...field('args')} />
        <Field
          isLong
          label="Environment"
          help="NAME=VALUE, one a line; kept with the job, so no secrets"
          fallback="none"
          {...field('env')}
        />
        <Field
          isLong
          label="Hyperparameters"
          help="NAME=VALUE, one a line: what run.params holds"
          fallback="none"
          {...field('params')}
        />
      </div>
    </fieldset>
  );
}

interface ArchiveProps {
  readonly bundle: string;
  readonly error: string | null;
  readonly onBundle: (bundle: string) => void;
}

function ArchiveField({ bundle, error, onBundle }: ArchiveProps) {
  const { rest } = usePlatform();
  const mayUpload = useMay('code:write');
  const id = useId();
  const [state, setState] = useState('');
  const [refusal, setRefusal] = useState<string | null>(null);

  const upload = async (event: ChangeEvent<HTMLInputElement>) => {
    const file = event.target.files?.[0];
    if (!file) return;
    setRefusal(null);
    setState('Uploading …');
    try {
      const kind = file.name.endsWith('.zip') ? 'application/zip' : 'application/gzip';
      const answer = await rest.upload<Bundle>('/code', file, kind);
      setState(`${answer.files} ${answer.files === 1 ? 'file' : 'files'}, ${bytes(answer.bytes)}`);
      onBundle(answer.bundle);
    } catch (problem) {
      setState('');
      setRefusal((problem as Error).message);
    }
  };

  return (
    <div className="field">
      <label htmlFor={id}>Archive of its folder</label>
      <input
        id={id}
        type="file"
        accept=".zip,.tar.gz,.tgz"
        disabled={!mayUpload}
        aria-describedby={`${id}-help`}
        onChange={(event) => void upload(event)}
      />
      {(refusal ?? error) && (
        <p className="field-error" role="alert">
          {refusal ?? error}
        </p>
      )}
      <p id={`${id}-help`} className="field-help" aria-live="polite">
        {state ||
          (mayUpload ? 'A .zip or .tar.gz, up to 256 MiB' : 'This token may not upload: it lacks the scope code:write')}
        {bundle && <code className="bundle"> {bundle.slice(0, 19)}…</code>}
      </p>
    </div>
  );
}
