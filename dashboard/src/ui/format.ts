/** Numbers and times as people read them. */

export function duration(seconds: number | null | undefined): string {
  if (seconds === null || seconds === undefined || !Number.isFinite(seconds)) return '–';
  if (seconds < 10) return `${seconds.toFixed(1)} s`;
  const whole = Math.round(seconds);
  if (whole < 60) return `${whole} s`;
  const [hours, minutes] = [Math.floor(whole / 3600), Math.floor((whole % 3600) / 60)];
  if (hours === 0) return `${minutes} min ${String(whole % 60).padStart(2, '0')} s`;
  if (hours < 48) return `${hours} h ${String(minutes).padStart(2, '0')} min`;
  return `${Math.floor(hours / 24)} d ${hours % 24} h`;
}

export function ago(time: string | null, now: number): string {
  if (time === null) return '–';
  const seconds = Math.max(0, (now - Date.parse(time)) / 1000);
  if (seconds < 5) return 'now';
  if (seconds < 60) return `${Math.floor(seconds)} s ago`;
  if (seconds < 3600) return `${Math.floor(seconds / 60)} min ago`;
  if (seconds < 86_400) return `${Math.floor(seconds / 3600)} h ago`;
  return `${Math.floor(seconds / 86_400)} d ago`;
}

export function between(start: string | null, end: string | null, now: number): number | null {
  if (start === null) return null;
  return Math.max(0, ((end === null ? now : Date.parse(end)) - Date.parse(start)) / 1000);
}

export function moment(time: string | null): string {
  if (time === null) return '–';
  return new Date(time).toLocaleString(undefined, { dateStyle: 'medium', timeStyle: 'medium' });
}

const CLOCK = new Intl.DateTimeFormat('en-GB', { timeStyle: 'medium' });

/** The time of day here, as a log's lines begin. */
export function clock(time: string): string {
  return CLOCK.format(new Date(time));
}

/** Four significant digits; null is what was NaN or infinite. */
export function number(value: number | null | undefined): string {
  if (value === undefined) return '–';
  if (value === null) return 'NaN or ∞';
  if (value === 0 || Number.isInteger(value)) return String(value);
  const size = Math.abs(value);
  return size >= 1e5 || size < 1e-3 ? value.toExponential(2) : String(Number(value.toPrecision(4)));
}

export function percent(part: number): string {
  // 100 % only when it is all.
  return `${part >= 1 ? 100 : Math.min(99, Math.floor(part * 100))} %`;
}

export function bytes(size: number): string {
  const units = ['B', 'KiB', 'MiB', 'GiB', 'TiB'];
  let unit = 0;
  let left = size;
  while (left >= 1024 && unit < units.length - 1) {
    left /= 1024;
    unit += 1;
  }
  return `${unit === 0 || left >= 100 ? Math.round(left) : left.toFixed(1)} ${units[unit]}`;
}

export function gib(size: number | null | undefined): string {
  return size === null || size === undefined ? '–' : `${size < 10 ? size.toFixed(1) : Math.round(size)} GiB`;
}

/** A value of a spec as text. */
export function shown(value: unknown): string {
  if (value === null || value === undefined) return '–';
  return typeof value === 'string' ? value : JSON.stringify(value);
}
