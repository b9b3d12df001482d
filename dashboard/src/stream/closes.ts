/** What a close of the socket means for its client (docs/messages.md, close codes). */

export interface Close {
  readonly code: number;
  readonly reason: string;
}

/** `ended`: the job has. `refused`: coming back as before changes nothing. `lost`: come back with the cursor. */
export type Verdict = 'ended' | 'refused' | 'lost';

const REFUSED = new Set([1002, 1003, 1007, 1008, 1009]);

export function verdictOn(close: Close): Verdict {
  if (close.code === 1000) return 'ended';
  return REFUSED.has(close.code) ? 'refused' : 'lost';
}

/** Whether another token would help. */
export function wantsToken(close: Close): boolean {
  return close.code === 1008 && /token|authentication/.test(close.reason);
}

/** All places of the job's stream are taken; one may be free later. */
export function isCrowded(close: Close | null): boolean {
  return close?.code === 1013 && close.reason === 'too many connections';
}
