// Small pieces that more than one view is made of. All text goes through React, which escapes it.

import { type LabIcon } from '@jupyterlab/ui-components';
import * as React from 'react';

import { isAtRest, type Model } from './model';
import { now, percent, plain } from './words';

export const WAITING = new Set(['queued', 'retrying']);

/** What `model` knows, and again whenever that changes. */
export function useModel(model: Model): Model {
  const [, render] = React.useReducer((n: number) => n + 1, 0);
  React.useEffect(() => {
    model.changed.connect(render);
    return () => void model.changed.disconnect(render);
  }, [model]);
  return model;
}

/** The time, in seconds; once a second a new one while `ticking`. */
export function useNow(ticking: boolean): number {
  const [time, set] = React.useState(now);
  React.useEffect(() => {
    if (!ticking) {
      return;
    }
    const timer = window.setInterval(() => set(now()), 1000);
    return () => window.clearInterval(timer);
  }, [ticking]);
  return time;
}

export function Dot({ state }: { state: string }): JSX.Element {
  return <span className="vbl-dot" data-state={state} aria-hidden="true" />;
}

export function Badge({ kind }: { kind: string }): JSX.Element {
  const titles: Record<string, string> = {
    kvm: 'Isolation: the CPU’s virtualization extensions',
    tcg: 'Isolation: an emulated CPU, no hardware boundary',
    scripted: 'The model’s words come from a script',
    live: 'The model’s words came from a live model',
    replay: 'The model’s words are those of an earlier run',
    cached: 'The result of an earlier, equal stage'
  };
  const text = kind === 'kvm' || kind === 'tcg' ? kind.toUpperCase() : kind;
  return (
    <span className="vbl-badge" data-kind={kind} title={titles[kind]}>
      {text}
    </span>
  );
}

/** A curve of shares from 0 to 1, newest at the right, with the last one in words. */
export function Spark({ label, values }: { label: string; values: readonly number[] }): JSX.Element | null {
  const last = values[values.length - 1];
  if (last === undefined) {
    return null;
  }
  const shown = values.length > 1 ? values : [last, last];
  const step = 58 / (shown.length - 1);
  const point = (value: number, i: number) => `${(i * step + 1).toFixed(1)},${(13 - 12 * value).toFixed(1)}`;
  return (
    <span
      className="vbl-spark"
      title={label === 'mem' ? 'Guest memory, used share' : 'Guest CPU, busy share of all vCPUs'}
    >
      <svg viewBox="0 0 60 14" preserveAspectRatio="none" aria-hidden="true">
        <polyline points={shown.map(point).join(' ')} />
      </svg>
      <span>
        {label} {percent(last)}
      </span>
    </span>
  );
}

/** A message; what it has in backticks is code. */
export function Sentence({ children }: { children: string }): JSX.Element {
  const parts = plain(children).split('`');
  // An odd number of parts is an even number of backticks, and every second part is between two.
  return (
    <>
      {parts.length % 2 ? parts.map((part, i) => (i % 2 ? <code key={i}>{part}</code> : part)) : parts.join('`')}
    </>
  );
}

/** Used of all, as a bar with words. */
export function Meter(props: { label: string; used: number; all: number; words: string }): JSX.Element {
  const share = props.all > 0 ? Math.min(1, props.used / props.all) : 0;
  return (
    <div className="vbl-meter">
      <span className="vbl-meter-label">{props.label}</span>
      <span
        className="vbl-meter-bar"
        role="meter"
        aria-label={props.label}
        aria-valuemin={0}
        aria-valuemax={props.all}
        aria-valuenow={props.used}
        aria-valuetext={props.words}
      >
        <span style={{ width: `${share * 100}%` }} />
      </span>
      <span className="vbl-dim">{props.words}</span>
    </div>
  );
}

/** How far the stages of a run are, as one bar in the order done, failed, at work, to come. */
export function Progress({ stages }: { stages: Record<string, number> }): JSX.Element | null {
  let all = 0;
  const parts = { succeeded: 0, failed: 0, skipped: 0, working: 0 };
  for (const [state, n] of Object.entries(stages)) {
    all += n;
    if (state === 'cancelled' || state === 'skipped') {
      parts.skipped += n;
    } else if (state === 'succeeded' || state === 'failed') {
      parts[state] += n;
    } else if (!WAITING.has(state)) {
      parts.working += n;
    }
  }
  if (all < 2) {
    return null;
  }
  const done = parts.succeeded + parts.failed + parts.skipped;
  const words = `${done} of ${all} stages over`;
  return (
    <div className="vbl-progress">
      <span
        className="vbl-progress-bar"
        role="progressbar"
        aria-label="Stages"
        aria-valuemin={0}
        aria-valuemax={all}
        aria-valuenow={done}
        aria-valuetext={words}
      >
        {Object.entries(parts).map(([kind, n]) =>
          n ? <span key={kind} data-kind={kind} style={{ width: `${(100 * n) / all}%` }} /> : null
        )}
      </span>
      <span className="vbl-dim" title={words}>
        {done}/{all}
      </span>
    </div>
  );
}

/** A button that is an icon, with its name for those who do not see it. */
export function IconButton(props: {
  icon: LabIcon;
  label: string;
  onClick: () => unknown;
  danger?: boolean;
}): JSX.Element {
  return (
    <button
      type="button"
      className={props.danger ? 'vbl-button vbl-danger' : 'vbl-button'}
      title={props.label}
      aria-label={props.label}
      onClick={() => void props.onClick()}
    >
      <props.icon.react tag="span" aria-hidden="true" />
    </button>
  );
}

/** Seconds a run has taken until `time`, or until its end; null if nobody knows when that was. */
export function took(
  run: { state: string; created_at: number; finished_at?: number | null },
  time: number
): number | null {
  const end = isAtRest(run.state) ? (run.finished_at ?? null) : time;
  return end === null ? null : end - run.created_at;
}
