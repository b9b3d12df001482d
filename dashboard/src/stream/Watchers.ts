/** Who is to hear of changes; many changes in a row are told as one. */

const PACE_MS = 33;

export class Watchers {
  /** Done before the watchers are told. */
  before: () => void = () => undefined;
  private readonly watchers = new Set<() => void>();
  private timer: ReturnType<typeof setTimeout> | undefined;

  add(watcher: () => void): () => void {
    this.watchers.add(watcher);
    return () => this.watchers.delete(watcher);
  }

  tell(): void {
    this.timer ??= setTimeout(() => {
      this.timer = undefined;
      this.before();
      for (const watcher of this.watchers) watcher();
    }, PACE_MS);
  }
}
