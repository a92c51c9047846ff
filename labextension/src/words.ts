// Figures and identifiers as a person writes them, and text of others as it may be shown.

/** The id of a run: nothing else goes into a command or a cell. */
export const RUN_ID = /^run-[0-9a-f]{12}$/;

/** Text without what would make it read other than it is: controls, and overrides of its direction. */
export function plain(text: string): string {
  // eslint-disable-next-line no-control-regex
  return text.replace(/[\u0000-\u0008\u000b-\u001f\u007f-\u009f\u202a-\u202e\u2066-\u2069]/g, '');
}

export function seconds(value: number): string {
  const s = Math.max(0, value);
  if (s < 60) {
    return s < 10 ? `${s.toFixed(1)} s` : `${Math.floor(s)} s`;
  }
  const minutes = Math.floor(s / 60);
  if (minutes < 60) {
    return `${minutes} min ${String(Math.floor(s % 60)).padStart(2, '0')} s`;
  }
  const hours = Math.floor(minutes / 60);
  return hours < 48 ? `${hours} h ${String(minutes % 60).padStart(2, '0')} min` : `${Math.floor(hours / 24)} days`;
}

/** Dollars; `no cost` where no model was asked that costs anything. */
export function cost(usd: number, unpriced: boolean, sources: readonly string[]): string {
  if (usd === 0 && !unpriced) {
    return sources.includes('live') ? '$0' : 'no cost';
  }
  if (usd === 0) {
    return 'unpriced';
  }
  return dollars(usd) + (unpriced ? ' + unpriced' : '');
}

export function dollars(usd: number): string {
  if (usd === 0) {
    return '$0.00';
  }
  return usd >= 1 ? `$${usd.toFixed(2)}` : usd >= 0.0001 ? `$${usd.toFixed(4)}` : '<$0.0001';
}

export function count(n: number, noun: string): string {
  return `${n.toLocaleString('en-US')} ${noun}${n === 1 ? '' : 's'}`;
}

export function mib(value: number): string {
  return value >= 10240
    ? `${(value / 1024).toFixed(0)} GiB`
    : value >= 1024
      ? `${(value / 1024).toFixed(1)} GiB`
      : `${value} MiB`;
}

export function percent(share: number): string {
  return `${Math.round(share * 100)} %`;
}

export function now(): number {
  return Date.now() / 1000;
}
