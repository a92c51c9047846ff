// Today's cost in the status bar; a click opens the panel.

import { ReactWidget } from '@jupyterlab/ui-components';
import * as React from 'react';

import { isAtRest, type Model } from './model';
import { Dot, useModel } from './parts';
import * as words from './words';

export class CostToday extends ReactWidget {
  constructor(
    private readonly model: Model,
    private readonly reveal: () => unknown
  ) {
    super();
    this.addClass('vbl-status');
  }

  protected render(): JSX.Element {
    return <Cost model={this.model} reveal={this.reveal} />;
  }
}

function Cost({ model, reveal }: { model: Model; reveal: () => unknown }): JSX.Element | null {
  const { overview, trouble } = useModel(model);
  if (!overview) {
    return null;
  }
  const { spent } = overview;
  const live = trouble ? 0 : overview.runs.filter(run => !isAtRest(run.state)).length;
  const figure = words.dollars(spent.cost_usd) + (spent.unpriced ? ' + unpriced' : '');
  const title = `voidbox today: ${figure}, ${words.count(spent.runs, 'run')}, ${words.count(spent.tokens, 'token')}`;
  return (
    <button type="button" title={title} aria-label={`${title}. Open the panel.`} onClick={() => void reveal()}>
      {live > 0 && <Dot state="running" />}
      {live > 0 && `${words.count(live, 'run')} · `}
      {figure} today
    </button>
  );
}
