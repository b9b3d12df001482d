/** Dark or light: the system's, until somebody chooses; the choice is kept in this browser. */

import { useSyncExternalStore } from 'react';

export type Theme = 'system' | 'light' | 'dark';

const KEY = 'epochcast-theme';
const watchers = new Set<() => void>();

export function chosenTheme(): Theme {
  const kept = localStorage.getItem(KEY);
  return kept === 'light' || kept === 'dark' ? kept : 'system';
}

export function applyTheme(theme: Theme = chosenTheme()): void {
  if (theme === 'system') {
    localStorage.removeItem(KEY);
    delete document.documentElement.dataset.theme;
  } else {
    localStorage.setItem(KEY, theme);
    document.documentElement.dataset.theme = theme;
  }
  for (const watcher of watchers) watcher();
}

function watch(watcher: () => void): () => void {
  const system = matchMedia('(prefers-color-scheme: dark)');
  watchers.add(watcher);
  system.addEventListener('change', watcher);
  return () => {
    watchers.delete(watcher);
    system.removeEventListener('change', watcher);
  };
}

export function useTheme(): Theme {
  return useSyncExternalStore(watch, chosenTheme);
}

/** What is on the screen now: canvases have to be painted again when it changes. */
export function useIsDark(): boolean {
  return useSyncExternalStore(watch, () => {
    const chosen = chosenTheme();
    return chosen === 'system' ? matchMedia('(prefers-color-scheme: dark)').matches : chosen === 'dark';
  });
}
