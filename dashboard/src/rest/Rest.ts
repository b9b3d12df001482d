/** The gateway's calls, with the token of this tab. */

import { bytes } from '../ui/format.ts';
import type { WrongField } from './types.ts';

/** Raised when the gateway says no; `message` is its own sentence. */
export class Problem extends Error {
  readonly status: number;
  readonly code: string;
  readonly fields: readonly WrongField[];

  constructor(status: number, code: string, detail: string, fields: readonly WrongField[] = []) {
    super(detail);
    this.status = status;
    this.code = code;
    this.fields = fields;
  }
}

/** Raised when nobody answers. */
export class Unreachable extends Error {}

const PATIENCE_MS = 15_000;

export class Rest {
  private readonly token: string | null;
  private readonly onRefused: (problem: Problem) => void;

  /** `onRefused`: called when the token is missing, wrong or has expired. */
  constructor(token: string | null, onRefused: (problem: Problem) => void) {
    this.token = token;
    this.onRefused = onRefused;
  }

  async get<Answer>(path: string, signal?: AbortSignal): Promise<Answer> {
    const patience = AbortSignal.timeout(PATIENCE_MS);
    const either = signal ? AbortSignal.any([signal, patience]) : patience;
    return (await (await this.call('GET', path, null, either)).json()) as Answer;
  }

  async post<Answer>(path: string, body?: unknown, headers: Record<string, string> = {}): Promise<Answer> {
    const content = body === undefined ? null : JSON.stringify(body);
    const kind: Record<string, string> = content === null ? {} : { 'Content-Type': 'application/json' };
    return (await (await this.call('POST', path, content, undefined, { ...kind, ...headers })).json()) as Answer;
  }

  /** Sends a file as it is, however long that takes. */
  async upload<Answer>(path: string, file: Blob, kind: string): Promise<Answer> {
    const { signal } = new AbortController();
    return (await (await this.call('POST', path, file, signal, { 'Content-Type': kind })).json()) as Answer;
  }

  /** A file, into the browser's downloads: fetched, because a link can't carry the token. `onPart`: 0 to 1, so much
   * has come. */
  async download(path: string, fallback: string, signal: AbortSignal, onPart: (part: number) => void): Promise<void> {
    const answer = await this.call('GET', path, null, signal);
    const named = /filename="?([^";]+)/.exec(answer.headers.get('Content-Disposition') ?? '');
    const size = Number(answer.headers.get('Content-Length'));
    let received = 0;
    const counted = new TransformStream<Uint8Array, Uint8Array>({
      transform(chunk, controller) {
        received += chunk.byteLength;
        if (size > 0) onPart(received / size);
        controller.enqueue(chunk);
      },
    });
    // The browser puts large ones on its disk.
    const content = await new Response(answer.body!.pipeThrough(counted)).blob().catch((error: Error) => {
      if (error.name === 'AbortError') throw error;
      throw new Unreachable(`the download broke off after ${bytes(received)}`);
    });
    save(content, named?.[1] ?? fallback);
  }

  private async call(
    method: string,
    path: string,
    body: string | Blob | null = null,
    signal: AbortSignal = AbortSignal.timeout(PATIENCE_MS),
    more: Record<string, string> = {},
  ): Promise<Response> {
    const headers: Record<string, string> = { ...more };
    if (this.token) headers.Authorization = `Bearer ${this.token}`;
    const answer = await fetch(`/api/v1${path}`, { method, headers, body, signal }).catch((error: Error) => {
      if (error.name === 'AbortError') throw error;
      throw new Unreachable('the gateway does not answer');
    });
    if (answer.ok) return answer;
    const problem = await problemOf(answer);
    if (problem.status === 401) this.onRefused(problem);
    throw problem;
  }
}

async function problemOf(answer: Response): Promise<Problem> {
  if (!/json/.test(answer.headers.get('Content-Type') ?? '')) {
    return new Problem(answer.status, 'unknown', `the gateway answered ${answer.status} ${answer.statusText}`);
  }
  const content = (await answer.json()) as { code?: string; detail?: string; title?: string; errors?: WrongField[] };
  return new Problem(
    answer.status,
    content.code ?? 'unknown',
    content.detail ?? content.title ?? `status ${answer.status}`,
    content.errors ?? [],
  );
}

export function save(content: Blob, filename: string): void {
  const link = document.createElement('a');
  link.href = URL.createObjectURL(content);
  link.download = filename;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
}
