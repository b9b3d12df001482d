/** Event ids, `<generation>-<seq>`: the cursor of a stream, ordered as two numbers and never as text. */

export interface EventId {
  readonly generation: number;
  readonly seq: number;
}

/** Reads `2-46`; `0` is the time before the first event. Throws for anything else. */
export function parseId(text: string): EventId {
  if (text === '0') return { generation: 0, seq: 0 };
  const found = /^(\d+)-(\d+)$/.exec(text);
  if (!found) throw new Error(`${JSON.stringify(text)} is not an event id, such as 2-46`);
  return { generation: Number(found[1]), seq: Number(found[2]) };
}

/** Negative when `a` is the earlier one. */
export function compareIds(a: string, b: string): number {
  const [left, right] = [parseId(a), parseId(b)];
  return left.generation - right.generation || left.seq - right.seq;
}

/** Whether `next` comes right after `last`: within a generation the seq counts without holes, and from 1. */
export function isNext(last: string, next: string): boolean {
  const [before, after] = [parseId(last), parseId(next)];
  if (after.generation === before.generation) return after.seq === before.seq + 1;
  return after.generation > before.generation && after.seq === 1;
}

/** A cursor about `count` events before `id`; some more at the beginning of a generation. */
export function cursorBefore(id: string, count: number): string {
  const { generation, seq } = parseId(id);
  if (seq > count) return `${generation}-${seq - count}`;
  // How long earlier generations are can't be known: claim and requeue make two, so this is one attempt more.
  return generation > 2 ? `${generation - 2}-0` : '0';
}
