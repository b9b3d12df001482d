/** The colours of curves, told apart also by those who see red and green alike (after Okabe and Ito, 2008). */

const LIGHT = ['#2456c9', '#c2550a', '#00795a', '#9c3587', '#7a6a00', '#0077a3', '#b3261e', '#5b5f6b'];
const DARK = ['#7aa5ff', '#ffa35c', '#4fd0a5', '#e58bd0', '#e6d14f', '#62c8f2', '#ff8a80', '#b4b9c6'];

export function colour(place: number, isDark: boolean): string {
  const colours = isDark ? DARK : LIGHT;
  return colours[place % colours.length]!;
}

/** Training is always the first colour, validation the second. */
export function placeOf(name: string, at: number): number {
  if (/^train[_/]/.test(name) || name === 'loss') return 0;
  if (/^(val|valid|validation|eval)[_/]/.test(name)) return 1;
  return at + 2;
}
