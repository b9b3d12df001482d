/** What would happen with the draft now, and how a terminal or a program submits the same. */

import { useState } from 'react';
import type { Plan, Recipe } from '../rest/types.ts';
import { Facts } from '../ui/Facts.tsx';
import { asCommand, asPython, type Draft } from './draft.ts';

interface PanelProps {
  readonly plan: Plan | null;
  readonly problem: Error | null;
  readonly draft: Draft;
  readonly recipe: Recipe | null;
}

export function PlanPanel({ plan, problem, draft, recipe }: PanelProps) {
  const lacksCode = recipe === null && !draft.script.bundle;
  return (
    <section aria-labelledby="plan-title" className="plan">
      <h2 id="plan-title">Plan</h2>
      <div aria-live="polite">
        {problem && <p className="trouble">{problem.message}</p>}
        {!problem && lacksCode && (
          <p className="soft">
            A script goes with its folder: choose an archive of it, or use one of these where it is.
          </p>
        )}
        {!problem && !lacksCode && !plan && <p className="soft">Asking …</p>}
        {!problem && plan && (
          <Facts
            facts={[
              ['would start', startOf(plan)],
              ['hosts that fit', plan.hosts_that_fit.join(', ') || 'none now'],
              ...(plan.pending_reason ? [['waits because', plan.pending_reason] as const] : []),
              ...(plan.queue_position !== null ? [['place in queue', plan.queue_position] as const] : []),
              ['epochs', plan.spec.total_epochs ?? 1],
            ]}
          />
        )}
      </div>
      <Snippet title="In a terminal" text={asCommand(draft, recipe)} />
      <Snippet title="In Python" text={asPython(draft, recipe)} />
    </section>
  );
}

function startOf({ pending_reason: reason, expected_start_at: at }: Plan): string {
  if (reason === null) return 'at once';
  return at === null ? 'nobody knows yet' : new Date(at).toLocaleString();
}

function Snippet({ title, text }: { title: string; text: string }) {
  const [copied, setCopied] = useState(false);
  const copy = () => {
    void navigator.clipboard.writeText(text).then(() => {
      setCopied(true);
      setTimeout(() => setCopied(false), 1500);
    });
  };
  return (
    <div className="snippet">
      <div className="snippet-head">
        <h3>{title}</h3>
        {/* Only secure pages may write to the clipboard. */}
        {navigator.clipboard && (
          <button type="button" className="quiet" onClick={copy}>
            {copied ? 'Copied' : 'Copy'}
          </button>
        )}
      </div>
      <pre tabIndex={0} aria-label={title}>
        {text}
      </pre>
    </div>
  );
}
