/** A stream's calls by HTTP, beside its socket. */

import type { StreamOptions } from './TrainingJobStream.ts';
import { apiUrl } from './urls.ts';

const PATIENCE_MS = 5_000;

/** Rejects when nobody answers. */
export function ask(
  { url, token }: Pick<StreamOptions, 'url' | 'token'>,
  path: string,
  signal: AbortSignal = AbortSignal.timeout(PATIENCE_MS),
): Promise<Response> {
  return fetch(apiUrl(url, path), {
    headers: token ? { Authorization: `Bearer ${token}` } : {},
    signal,
    cache: 'no-store',
  });
}
