/** A call's answer in a component: asked at the beginning, and again every so often while the tab is looked at. */

import { useCallback, useEffect, useRef, useState } from 'react';
import { Problem } from './Rest.ts';

/** What nobody has answered is asked for again: the page is right after the network was away, without a reload. */
const AFTER_ERROR_MS = 5_000;

export interface Asked<Answer> {
  readonly data: Answer | null;
  /** Of the last try; what was answered before stays. */
  readonly error: Error | null;
  readonly reload: () => void;
}

/** `key` names what is asked for: another one begins anew. `everyMs` 0: once, when it is answered. */
export function useAnswer<Answer>(
  key: string,
  ask: (signal: AbortSignal) => Promise<Answer>,
  everyMs = 0,
): Asked<Answer> {
  const [state, setState] = useState<{ key: string; data: Answer | null; error: Error | null }>({
    key,
    data: null,
    error: null,
  });
  const [turn, setTurn] = useState(0);
  const asking = useRef(ask);
  asking.current = ask;

  useEffect(() => {
    const controller = new AbortController();
    let timer: ReturnType<typeof setTimeout> | undefined;
    let wasAsked = false;
    const again = (pauseMs: number) => {
      if (pauseMs > 0 && !controller.signal.aborted) timer = setTimeout(once, pauseMs);
    };
    const once = async () => {
      // The first time also behind another tab: it is to be there when one looks.
      if (document.hidden && wasAsked) return again(everyMs || AFTER_ERROR_MS);
      wasAsked = true;
      try {
        const data = await asking.current(controller.signal);
        if (!controller.signal.aborted) setState({ key, data, error: null });
        again(everyMs);
      } catch (error) {
        if (controller.signal.aborted) return;
        setState((before) => ({ key, data: before.key === key ? before.data : null, error: error as Error }));
        again(everyMs || (isAnswer(error) ? 0 : AFTER_ERROR_MS));
      }
    };
    void once();
    return () => {
      controller.abort();
      clearTimeout(timer);
    };
  }, [key, everyMs, turn]);

  const reload = useCallback(() => setTurn((number) => number + 1), []);
  const isOurs = state.key === key;
  return { data: isOurs ? state.data : null, error: isOurs ? state.error : null, reload };
}

/** A refusal stays one; a gateway in trouble, or none, may be another one later. */
function isAnswer(error: unknown): boolean {
  return error instanceof Problem && error.status < 500 && error.status !== 429;
}
