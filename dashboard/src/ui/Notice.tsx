/** A sentence that stands where content would: nothing there yet, or why it can't be shown. */

import type { ReactNode } from 'react';

interface NoticeProps {
  readonly title: string;
  readonly kind?: 'plain' | 'bad';
  /** Whether it is all that the page has, and so its title. */
  readonly isPage?: boolean;
  readonly children?: ReactNode;
}

export function Notice(props: NoticeProps) {
  const Heading = props.isPage ? 'h1' : 'h2';
  return (
    <div className={`notice ${props.kind ?? 'plain'}`} role={props.kind === 'bad' ? 'alert' : undefined}>
      <Heading>{props.title}</Heading>
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
