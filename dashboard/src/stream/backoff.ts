/** How long to wait before the next try: full jitter, so that a crowd of clients doesn't come back as one. */

import { type Close, isCrowded } from './closes.ts';

const BASE_MS = 400;
const CAP_MS = 15_000;
/** All places of the job are taken: those of a dead gateway are free again after 8 s. */
const CROWDED_MS = 4_000;

/** `tries`: how many in a row failed before this one. `random`: from 0 to 1. */
export function delayMs(tries: number, close: Close, random: number): number {
  const ceiling = Math.min(CAP_MS, BASE_MS * 2 ** Math.min(tries, 20));
  return (isCrowded(close) ? CROWDED_MS : 0) + Math.round(random * ceiling);
}
