// A run in a notebook's output: the frozen view that was saved with it, or, where that may not be trusted, its facts.
//
// A saved notebook is somebody's file: nothing in it is taken for what it says it is.

import type { IRenderMime } from '@jupyterlab/rendermime-interfaces';
import { ReactWidget } from '@jupyterlab/ui-components';
import { Panel } from '@lumino/widgets';
import * as React from 'react';

import { isAtRest } from './model';
import { Badge, Dot } from './parts';
import * as words from './words';

/** As in voidbox_lab/widgets/display.py. */
export const RUN_MIME = 'application/vnd.voidbox.run+json';
const MAX_STAGES = 256;
const MAX_TEXT = 20000;

interface Stage {
  name: string;
  state: string;
  badges: string[];
  facts: string[];
  trouble: string;
  output: string;
}

interface Facts {
  run: string;
  state: string;
  stages: Stage[];
  more: number;
}

export class RunOutput extends Panel implements IRenderMime.IRenderer {
  constructor(
    private readonly html: () => IRenderMime.IRenderer,
    private readonly open: (run: string) => unknown
  ) {
    super();
    this.addClass('vbl-output');
  }

  async renderModel(model: IRenderMime.IMimeModel): Promise<void> {
    for (const widget of [...this.widgets]) {
      widget.dispose();
    }
    const facts = read(model.data[RUN_MIME]);
    const frozen = model.trusted && 'text/html' in model.data;
    const bar = ReactWidget.create(<Bar facts={facts} open={this.open} />);
    if (frozen) {
      const view = this.html();
      this.addWidget(view);
      this.addWidget(bar);
      await view.renderModel(model);
    } else {
      this.addWidget(ReactWidget.create(<Card facts={facts} />));
      this.addWidget(bar);
    }
  }
}

/** A way from the output to the run itself, where this machine's daemon may have it. */
function Bar({ facts, open }: { facts: Facts; open: (run: string) => unknown }): JSX.Element | null {
  if (!words.RUN_ID.test(facts.run)) {
    return null;
  }
  return (
    <div className="vbl-output-bar">
      {!isAtRest(facts.state) && <span className="vbl-dim">The notebook was saved while this ran.</span>}
      <button type="button" className="vbl-link" onClick={() => void open(facts.run)}>
        Open the run
      </button>
    </div>
  );
}

function Card({ facts }: { facts: Facts }): JSX.Element {
  return (
    <section className="vbl-card" aria-label={`Run ${facts.run}, ${facts.state}`} data-state={facts.state}>
      <div className="vbl-line vbl-card-head">
        <Dot state={facts.state} />
        <strong>run</strong>
        <span className="vbl-id">{facts.run}</span>
        <span className="vbl-dim">{facts.state}</span>
      </div>
      {facts.stages.map(stage => (
        <div key={stage.name} className="vbl-stage" data-state={stage.state} data-stage={stage.name}>
          <div className="vbl-line">
            <Dot state={stage.state} />
            <strong>{stage.name}</strong>
            <span className="vbl-dim">{stage.state}</span>
            {stage.badges.map(kind => (
              <Badge key={kind} kind={kind} />
            ))}
            <span className="vbl-time vbl-dim">{stage.facts.join(' · ')}</span>
          </div>
          {stage.trouble && <div className="vbl-trouble">{stage.trouble}</div>}
          {stage.output && <pre tabIndex={0}>{stage.output}</pre>}
        </div>
      ))}
      {facts.more > 0 && <div className="vbl-dim">and {facts.more} more stages</div>}
    </section>
  );
}

function read(data: unknown): Facts {
  const run = record(data);
  const stages = Object.entries(record(run.stages));
  return {
    run: text(run.run),
    state: text(run.state) || 'unknown',
    stages: stages.slice(0, MAX_STAGES).map(([name, value]) => stageOf(name, record(value))),
    more: Math.max(0, stages.length - MAX_STAGES)
  };
}

function stageOf(name: string, stage: Record<string, unknown>): Stage {
  const duration = number(stage.duration_s);
  const tokens = number(stage.tokens);
  const usd = number(stage.cost_usd);
  const source = text(stage.model_source);
  const model = text(stage.model);
  return {
    name: text(name, 100),
    state: text(stage.state) || 'unknown',
    badges: [text(stage.isolation), source, stage.cached ? 'cached' : ''].filter(Boolean),
    facts: [
      ...(duration === null ? [] : [words.seconds(duration)]),
      ...(model ? [model] : []),
      ...(tokens ? [words.count(tokens, 'token')] : []),
      ...(usd === null ? [] : [words.cost(usd, false, [source])]),
      ...(number(stage.denied) ? [`${number(stage.denied)} denied`] : [])
    ],
    trouble: text(record(stage.trouble).message),
    output: text(stage.output, MAX_TEXT)
  };
}

function record(value: unknown): Record<string, unknown> {
  return typeof value === 'object' && value !== null && !Array.isArray(value)
    ? (value as Record<string, unknown>)
    : {};
}

function text(value: unknown, most = 1000): string {
  return typeof value !== 'string' ? '' : words.plain(value.length > most ? `${value.slice(0, most)}…` : value);
}

function number(value: unknown): number | null {
  return typeof value === 'number' && Number.isFinite(value) ? value : null;
}
