/** Who is to hear of changes; many changes in a row are told as one. */

export class Watchers {
  private readonly paceMs: number;
  /** Done before the watchers are told. */
  before: () => void = () => undefined;
  private readonly watchers = new Set<() => void>();
  private timer: ReturnType<typeof setTimeout> | undefined;

  constructor(paceMs: number) {
    this.paceMs = paceMs;
  }

  add(watcher: () => void): () => void {
    this.watchers.add(watcher);
    return () => this.watchers.delete(watcher);
  }

  tell(): void {
    this.timer ??= setTimeout(() => {
      this.timer = undefined;
      this.before();
      for (const watcher of this.watchers) watcher();
    }, this.paceMs);
  }
}
