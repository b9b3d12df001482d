/** What every page has at hand: the calls, the fleet's stream, and who is signed in. */

import { createContext, useContext, useEffect, useState, useSyncExternalStore } from 'react';
import type { Rest } from '../rest/Rest.ts';
import type { Connection, FleetState, FleetStream } from '../stream/index.ts';
import type { Who } from './session.ts';

export interface Platform {
  readonly rest: Rest;
  readonly token: string | null;
  /** null: without authentication. */
  readonly who: Who | null;
  readonly fleet: FleetStream;
}

export const PlatformContext = createContext<Platform | null>(null);

export function usePlatform(): Platform {
  const platform = useContext(PlatformContext);
  if (!platform) throw new Error('usePlatform outside PlatformContext');
  return platform;
}

export function useFleet(): FleetState {
  const { fleet } = usePlatform();
  return useSyncExternalStore(fleet.subscribe, () => fleet.state);
}

export function useFleetConnection(): Connection {
  const { fleet } = usePlatform();
  return useSyncExternalStore(fleet.subscribe, () => fleet.connection);
}

/** Whether the token may do what needs `scope`; the gateway has the last word. */
export function useMay(scope: string): boolean {
  const { who } = usePlatform();
  return who === null || who.scopes.includes(scope);
}

/** The time, again every `everyMs`, for ages and countdowns. */
export function useNow(everyMs = 1000): number {
  const [now, setNow] = useState(Date.now);
  useEffect(() => {
    const timer = setInterval(() => setNow(Date.now()), everyMs);
    return () => clearInterval(timer);
  }, [everyMs]);
  return now;
}
