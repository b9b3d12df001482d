/** One call beside a stream, when the stream is silent. */

import type { StreamOptions } from './TrainingJobStream.ts';
import { apiUrl } from './urls.ts';

const PATIENCE_MS = 5_000;

/** Rejects when nobody answers. */
export function ask({ url, token }: Pick<StreamOptions, 'url' | 'token'>, path: string): Promise<Response> {
  return fetch(apiUrl(url, path), {
    headers: token ? { Authorization: `Bearer ${token}` } : {},
    signal: AbortSignal.timeout(PATIENCE_MS),
    cache: 'no-store',
  });
}
