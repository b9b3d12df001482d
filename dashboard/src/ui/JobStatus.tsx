/** A job's status as a word with its colour, and its progress as a bar. */

import type { Status } from '../stream/index.ts';
import { percent } from './format.ts';

export function JobStatus({ status, stopping = false }: { status: Status; stopping?: boolean }) {
  const isStopping = stopping && (status === 'running' || status === 'queued');
  return <span className={`status ${status}`}>{isStopping ? 'stopping' : status}</span>;
}

export function Bar({ value, status, label }: { value: number; status: Status; label: string }) {
  return (
    <span
      className={`bar ${status}`}
      role="progressbar"
      aria-label={label}
      aria-valuemin={0}
      aria-valuemax={100}
      aria-valuenow={Math.floor(value * 100)}
      aria-valuetext={percent(value)}
    >
      <span style={{ width: `${value * 100}%` }} />
    </span>
  );
}
