/** A list that changes all at once, painted a part a frame, so that no frame has more to do than it has time for. */

import { useEffect, useRef, useState } from 'react';

/** So many frames until all is painted, or twice as many where React needs one of its own for each part. */
const PARTS = 4;

/** What is to be painted now. A list with other items, or in another order, is painted at once and whole. */
export function useSpread<Item>(items: readonly Item[], keyOf: (item: Item) => unknown): readonly Item[] {
  const [painted, setPainted] = useState(items);
  const from = useRef(0);
  const isSame = painted.length === items.length && painted.every((item, at) => keyOf(item) === keyOf(items[at]!));

  useEffect(() => {
    if (!isSame) {
      setPainted(items);
      return;
    }
    if (painted.every((item, at) => item === items[at])) return;
    const frame = requestAnimationFrame(() => {
      const next = nextPart(painted, items, from.current, Math.ceil(items.length / PARTS));
      from.current = next.end;
      setPainted(next.painted);
    });
    return () => cancelAnimationFrame(frame);
  }, [painted, items, isSame]);

  return isSame ? painted : items;
}

/** The list with `most` more of its items as they are wanted, searched from index `from` on and around: whatever comes
 * meanwhile, each has its turn. */
export function nextPart<Item>(
  painted: readonly Item[],
  wanted: readonly Item[],
  from: number,
  most: number,
): { readonly painted: readonly Item[]; readonly end: number } {
  const next = [...painted];
  let end = from;
  for (let look = 0, done = 0; look < wanted.length && done < most; look++) {
    const at = (from + look) % wanted.length;
    if (next[at] === wanted[at]) continue;
    next[at] = wanted[at]!;
    done++;
    end = at + 1;
  }
  return { painted: next, end };
}
