/** One line of the form: a label, what it takes, what it means, what is wrong with it. */

import { type ChangeEvent, type ReactNode, useId } from 'react';
import type { Schema } from '../rest/types.ts';
import { shown } from '../ui/format.ts';
import { ANSWERS, kindOf, type OptionName, OPTIONS } from './draft.ts';

interface FieldProps {
  readonly text: string;
  readonly error: string | null;
  readonly onText: (text: string) => void;
}

export function HyperparameterField({ name, schema, ...field }: FieldProps & { name: string; schema: Schema }) {
  const kind = kindOf(schema);
  const fallback = schema.default === null || schema.default === undefined ? 'not given' : shown(schema.default);
  const choices = kind.enum ?? (kind.type === 'boolean' ? ['true', 'false'] : null);
  const isNumber = kind.type === 'number' || kind.type === 'integer';
  return (
    <Field
      label={name}
      help={schema.description}
      fallback={fallback}
      choices={choices}
      isNumber={isNumber}
      {...field}
    />
  );
}

export function OptionField({ name, epochs, ...field }: FieldProps & { name: OptionName; epochs: number }) {
  const { label, kind, help, fallback } = OPTIONS[name];
  const choices = kind === 'flag' ? ANSWERS : typeof kind === 'string' ? null : kind;
  const usual = name === 'total_epochs' ? String(epochs) : fallback;
  return (
    <Field
      label={label}
      help={help}
      fallback={usual}
      choices={choices}
      isNumber={kind === 'integer' || kind === 'number'}
      {...field}
    />
  );
}

interface AnyFieldProps extends FieldProps {
  readonly label: string;
  readonly help?: string | undefined;
  readonly fallback: string;
  readonly choices?: readonly string[] | null;
  readonly isNumber?: boolean;
  /** Several lines. */
  readonly isLong?: boolean;
}

export function Field(props: AnyFieldProps) {
  const { label, help, fallback, choices = null, isNumber = false, isLong = false, text, error, onText } = props;
  const id = useId();
  const described = [help ? `${id}-help` : '', error ? `${id}-error` : ''].filter(Boolean).join(' ') || undefined;
  const common = { id, 'aria-describedby': described, 'aria-invalid': error ? true : undefined, value: text };
  const typed = {
    placeholder: fallback,
    spellCheck: false,
    onChange: (event: ChangeEvent<HTMLInputElement | HTMLTextAreaElement>) => onText(event.target.value),
  };
  let control: ReactNode;
  if (choices) {
    control = (
      <select {...common} onChange={(event) => onText(event.target.value)}>
        <option value="">{fallback} (default)</option>
        {choices
          .filter((choice) => choice !== fallback)
          .map((choice) => (
            <option key={choice} value={choice}>
              {choice}
            </option>
          ))}
      </select>
    );
  } else if (isLong) {
    control = <textarea {...common} {...typed} rows={3} />;
  } else {
    control = <input {...common} {...typed} type="text" inputMode={isNumber ? 'decimal' : 'text'} autoComplete="off" />;
  }
  return (
    <div className={text === '' ? 'field' : 'field changed'}>
      <label htmlFor={id}>{label}</label>
      {control}
      {error && (
        <p id={`${id}-error`} className="field-error">
          {error}
        </p>
      )}
      {help && (
        <p id={`${id}-help`} className="field-help">
          {help}
        </p>
      )}
    </div>
  );
}
