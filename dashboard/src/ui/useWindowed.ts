/** Which rows of a long list are on the screen, for rows of one height. */

import { type RefObject, useEffect, useState } from 'react';

/** Painted beyond each edge, so that scrolling shows no gap; of a live list they cost as much as those in sight. */
const BEYOND_PX = 264;

export interface Window {
  readonly first: number;
  /** Exclusive. */
  readonly end: number;
}

/** `container`: what scrolls; null: the page does, and `list` says where the rows begin in it. */
export function useWindowed(
  list: RefObject<HTMLElement | null>,
  container: RefObject<HTMLElement | null> | null,
  count: number,
  rowPx: number,
): Window {
  const [range, setRange] = useState<Window>({ first: 0, end: 60 });

  useEffect(() => {
    const scroller: HTMLElement | globalThis.Window = container?.current ?? window;
    const look = () => {
      const top = container?.current ? container.current.scrollTop : -(list.current?.getBoundingClientRect().top ?? 0);
      const height = container?.current?.clientHeight ?? innerHeight;
      const first = Math.max(0, Math.floor((top - BEYOND_PX) / rowPx));
      const end = Math.max(first, Math.ceil((top + height + BEYOND_PX) / rowPx));
      setRange((before) => (before.first === first && before.end === end ? before : { first, end }));
    };
    look();
    scroller.addEventListener('scroll', look, { passive: true });
    addEventListener('resize', look);
    return () => {
      scroller.removeEventListener('scroll', look);
      removeEventListener('resize', look);
    };
  }, [list, container, rowPx, count]);

  const first = Math.min(range.first, Math.max(0, count - 1));
  return { first, end: Math.min(count, Math.max(range.end, first)) };
}
