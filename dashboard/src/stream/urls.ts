/** Addresses of a gateway's calls and sockets. */

function origin(gateway: string | undefined): string {
  return (gateway ?? globalThis.location?.origin ?? 'http://localhost:8000').replace(/\/$/, '');
}

export function apiUrl(gateway: string | undefined, path: string): string {
  return `${origin(gateway)}/api/v1${path}`;
}

export function socketUrl(gateway: string | undefined, path: string, after: string | null = null): string {
  const address = apiUrl(gateway, path).replace(/^http/, 'ws');
  return after === null ? address : `${address}?after=${encodeURIComponent(after)}`;
}
