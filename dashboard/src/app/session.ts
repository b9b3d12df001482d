/** Who this tab is signed in as: the token lives in sessionStorage and nowhere else. */

const KEY = 'epochcast-token';

/** The token of the address' fragment (`epochcast up` prints such a link), else the tab's own. */
export function takeToken(): string | null {
  const fragment = new URLSearchParams(location.hash.slice(1));
  const given = fragment.get('token');
  if (given) {
    sessionStorage.setItem(KEY, given);
    // Out of the address, before anybody copies it or it stays in the history.
    history.replaceState(null, '', location.pathname + location.search);
  }
  return sessionStorage.getItem(KEY);
}

export function keepToken(token: string | null): void {
  if (token) sessionStorage.setItem(KEY, token);
  else sessionStorage.removeItem(KEY);
}

export interface Who {
  readonly owner: string;
  readonly scopes: readonly string[];
}

/** What a token says of its owner, for the eye only: the gateway checks it. null: nothing readable. */
export function whoIs(token: string | null): Who | null {
  const part = token?.split('.')[1];
  if (!part) return null;
  try {
    const bytes = Uint8Array.from(atob(part.replace(/-/g, '+').replace(/_/g, '/')), (char) => char.charCodeAt(0));
    const claims = JSON.parse(new TextDecoder().decode(bytes)) as { sub?: string; scope?: string | string[] };
    const { sub = '', scope = '' } = claims;
    return { owner: sub, scopes: typeof scope === 'string' ? scope.split(' ') : scope };
  } catch {
    return null; // not one of ours; the gateway will say so
  }
}
