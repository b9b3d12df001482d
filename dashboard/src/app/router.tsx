/** Which page an address shows. The gateway serves the same document for each of these (api/page.py). */

import { type AnchorHTMLAttributes, type MouseEvent, useSyncExternalStore } from 'react';

export type Route =
  | { readonly page: 'jobs' | 'compare' | 'submit' | 'fleet' | 'models' | 'nowhere' }
  | { readonly page: 'job' | 'model'; readonly id: number };

export function routeOf(path: string): Route {
  const [first = '', second, third] = path.split('/').filter(Boolean);
  if (third !== undefined) return { page: 'nowhere' };
  if (second === undefined) {
    if (first === '' || first === 'jobs') return { page: 'jobs' };
    if (first === 'compare' || first === 'submit' || first === 'fleet' || first === 'models') return { page: first };
    return { page: 'nowhere' };
  }
  const id = /^[1-9][0-9]{0,15}$/.test(second) ? Number(second) : null;
  if (id !== null && first === 'jobs') return { page: 'job', id };
  if (id !== null && first === 'models') return { page: 'model', id };
  return { page: 'nowhere' };
}

const watchers = new Set<() => void>();

function watch(watcher: () => void): () => void {
  watchers.add(watcher);
  addEventListener('popstate', watcher);
  return () => {
    watchers.delete(watcher);
    removeEventListener('popstate', watcher);
  };
}

export function go(address: string, replace = false): void {
  if (replace) history.replaceState(null, '', address);
  else history.pushState(null, '', address);
  for (const watcher of watchers) watcher();
  if (!replace) scrollTo(0, 0);
}

export function usePath(): string {
  return useSyncExternalStore(watch, () => location.pathname);
}

export function useQuery(): URLSearchParams {
  return new URLSearchParams(useSyncExternalStore(watch, () => location.search));
}

/** Changes the address' query without a step in the history; empty values are left out. */
export function setQuery(changes: Readonly<Record<string, string>>): void {
  const query = new URLSearchParams(location.search);
  for (const [name, value] of Object.entries(changes)) {
    if (value) query.set(name, value);
    else query.delete(name);
  }
  const text = query.toString();
  go(location.pathname + (text ? `?${text}` : ''), true);
}

export function Link({ href = '/', onClick, ...rest }: AnchorHTMLAttributes<HTMLAnchorElement>) {
  const follow = (event: MouseEvent<HTMLAnchorElement>) => {
    onClick?.(event);
    if (event.defaultPrevented || event.button !== 0 || event.metaKey || event.ctrlKey || event.shiftKey) return;
    event.preventDefault();
    go(href);
  };
  return <a href={href} onClick={follow} {...rest} />;
}
