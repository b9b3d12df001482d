/** Words as a shell takes and gives them. Pure. */

/** A command line's words: spaces part them, quotes and backslashes keep them together. */
export function words(text: string): readonly string[] {
  const found = text.match(/(?:\\.|[^\s'"\\]|'[^']*'|"[^"]*")+/g) ?? [];
  return found.map((word) =>
    word.replace(
      /\\(.)|'([^']*)'|"([^"]*)"/g,
      (_, one?: string, two?: string, three?: string) => one ?? two ?? three ?? '',
    ),
  );
}

/** A word that a shell reads as itself. */
export function quoted(word: string): string {
  return /^[\w./:=,@%+-]+$/.test(word) ? word : `'${word.replaceAll("'", "'\\''")}'`;
}

/** Lines of NAME=VALUE. */
export function pairs(text: string): Readonly<Record<string, string>> {
  const lines = text.split('\n').map((line) => line.trim());
  return Object.fromEntries(
    lines.filter(Boolean).map((line) => {
      const [name = '', ...value] = line.split('=');
      return [name.trim(), value.join('=')];
    }),
  );
}
