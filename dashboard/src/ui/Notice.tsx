/** A sentence that stands where content would: nothing there yet, or why it can't be shown. */

import type { ReactNode } from 'react';

export function Notice(props: { title: string; kind?: 'plain' | 'bad'; children?: ReactNode }) {
  return (
    <div className={`notice ${props.kind ?? 'plain'}`} role={props.kind === 'bad' ? 'alert' : undefined}>
      <h2>{props.title}</h2>
      {props.children && <div>{props.children}</div>}
    </div>
  );
}

/** What one should know of the page, without being interrupted by it. */
export function Hint({ children }: { children: ReactNode }) {
  return (
    <p className="trouble mild" role="status">
      {children}
    </p>
  );
}

/** What a call failed with, while what was there before stays on the page. */
export function Trouble({ error }: { error: Error | null }) {
  return error ? (
    <p className="trouble" role="alert">
      {error.message}
    </p>
  ) : null;
}
