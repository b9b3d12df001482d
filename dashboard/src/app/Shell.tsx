/** What surrounds every page: where one can go, how the connection stands, who is signed in, dark or light. */

import { type ReactNode, useEffect, useRef } from 'react';
import { ConnectionState } from '../ui/ConnectionState.tsx';
import { useFleetConnection, useMay, usePlatform } from './platform.tsx';
import { Link, routeOf, usePath } from './router.tsx';
import { applyTheme, type Theme, useTheme } from './theme.ts';

const PLACES = [
  { href: '/', page: ['jobs', 'job'], text: 'Jobs' },
  { href: '/compare', page: ['compare'], text: 'Compare' },
  { href: '/models', page: ['models', 'model'], text: 'Models' },
  { href: '/fleet', page: ['fleet'], text: 'Fleet' },
  { href: '/submit', page: ['submit'], text: 'Submit', writes: true },
];

export function Shell({ children, onSignOut }: { children: ReactNode; onSignOut: () => void }) {
  const path = usePath();
  const { page } = routeOf(path);
  const { who } = usePlatform();
  const mayWrite = useMay('jobs:write');
  const connection = useFleetConnection();
  const main = useRef<HTMLElement>(null);
  const isFirst = useRef(true);

  useEffect(() => {
    // Another page: a screen reader begins at its top.
    if (!isFirst.current) main.current?.focus({ preventScroll: true });
    isFirst.current = false;
  }, [path]);

  return (
    <>
      <a
        className="skip"
        href="#main"
        onClick={(event) => {
          event.preventDefault();
          main.current?.focus();
        }}
      >
        Skip to the content
      </a>
      <header className="top">
        <Link className="brand" href="/">
          <span className="mark" aria-hidden="true" />
          epochcast
        </Link>
        <nav aria-label="Pages">
          {PLACES.filter((place) => mayWrite || !place.writes).map((place) => (
            <Link key={place.href} href={place.href} aria-current={place.page.includes(page) ? 'page' : undefined}>
              {place.text}
            </Link>
          ))}
        </nav>
        <div className="top-end">
          <ConnectionState connection={connection} what="Live updates" />
          <ThemeChoice />
          {who && (
            <span className="who" title={`Signed in as ${who.owner}`}>
              {who.owner}
            </span>
          )}
          {who && (
            <button type="button" className="quiet" onClick={onSignOut}>
              Sign out
            </button>
          )}
        </div>
      </header>
      <main id="main" ref={main} tabIndex={-1}>
        {children}
      </main>
    </>
  );
}

const NEXT: Record<Theme, Theme> = { system: 'light', light: 'dark', dark: 'system' };
const SIGN: Record<Theme, string> = { system: '◐', light: '☀', dark: '☾' };

function ThemeChoice() {
  const theme = useTheme();
  const label = `Colours: ${theme === 'system' ? 'as the system' : theme}; change to ${NEXT[theme]}`;
  return (
    <button
      type="button"
      className="quiet icon"
      aria-label={label}
      title={label}
      onClick={() => applyTheme(NEXT[theme])}
    >
      <span aria-hidden="true">{SIGN[theme]}</span>
    </button>
  );
}
