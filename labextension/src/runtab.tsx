// One run in a tab of the main area: its stages, and the latest of what they do.

import { ReactWidget, addBelowIcon, refreshIcon, runIcon, stopIcon } from '@jupyterlab/ui-components';
import type { Message } from '@lumino/messaging';
import { Signal } from '@lumino/signaling';
import * as React from 'react';

import { Activity, type Line } from './activity';
import { type BoxGlance, type RunRecord, type StageRecord, Trouble } from './client';
import { pauseIcon, voidboxIcon } from './icons';
import { isAtRest, isOver, type Model } from './model';
import type { Deeds } from './panel';
import { Badge, Dot, IconButton, Sentence, Spark, took, useModel, useNow } from './parts';
import * as words from './words';

const MAX_STAGES = 200;

export class RunTab extends ReactWidget {
  private readonly shown = new Signal<this, boolean>(this);

  constructor(
    private readonly model: Model,
    private readonly deeds: Deeds,
    readonly run: string
  ) {
    super();
    this.addClass('vbl-tab');
    this.title.icon = voidboxIcon;
    this.title.label = model.find(run)?.title ?? run;
    this.title.caption = run;
    this.title.closable = true;
  }

  protected render(): JSX.Element {
    return (
      <Run
        id={this.run}
        model={this.model}
        deeds={this.deeds}
        shown={this.shown}
        onTitle={title => (this.title.label = title)}
      />
    );
  }

  protected onAfterAttach(message: Message): void {
    super.onAfterAttach(message);
    this.model.watch(this, this.isVisible);
  }

  protected onAfterShow(message: Message): void {
    super.onAfterShow(message);
    this.model.watch(this, true);
    this.shown.emit(true);
  }

  protected onAfterHide(message: Message): void {
    super.onAfterHide(message);
    this.model.watch(this, false);
    this.shown.emit(false);
  }

  dispose(): void {
    this.model.watch(this, false);
    super.dispose();
  }
}

function Run(props: {
  id: string;
  model: Model;
  deeds: Deeds;
  shown: Signal<RunTab, boolean>;
  onTitle: (title: string) => void;
}): JSX.Element {
  const { id, deeds, model } = props;
  const visible = useShown(props.shown);
  const [record, trouble] = useRecord(id, model, visible);
  const over = record !== null && isOver(record.state);
  const rests = record !== null && isAtRest(record.state);
  const lines = useActivity(id, model, visible && record !== null, rests);
  const time = useNow(record !== null && !rests);
  React.useEffect(() => {
    if (record) {
      props.onTitle(titleOf(record));
    }
  }, [record?.id]);
  if (!record) {
    return (
      <div className="vbl-absent">
        <Sentence>{trouble?.message ?? 'Looking for the run …'}</Sentence>
      </div>
    );
  }
  const boxes = model.overview?.boxes.filter(box => box.run === id) ?? [];
  const stages = Object.values(record.stages ?? {});
  const sum = (of: (stage: StageRecord) => number) => stages.reduce((all, stage) => all + of(stage), 0);
  const sources = stages.flatMap(stage => stage.model_source ?? []);
  const usd = words.cost(
    sum(s => s.cost_usd ?? 0),
    stages.some(s => s.unpriced),
    sources
  );
  const seconds = took(record, time);
  const facts = [...(seconds === null ? [] : [words.seconds(seconds)]), words.count(sum(tokensOf), 'token'), usd];
  return (
    <>
      <header className="vbl-run-header" data-state={record.state}>
        <Dot state={record.state} />
        <h2>{titleOf(record)}</h2>
        <span className="vbl-id">{id}</span>
        <span className="vbl-state">{record.state}</span>
        <span className="vbl-dim">{facts.join(' · ')}</span>
        <div className="vbl-buttons" role="group" aria-label="Actions">
          <IconButton icon={addBelowIcon} label="Show in the notebook" onClick={() => deeds.attach(id)} />
          {over && <IconButton icon={refreshIcon} label="Retry in the notebook" onClick={() => deeds.retry(id)} />}
          {(record.state === 'running' || record.state === 'queued') && (
            <IconButton icon={pauseIcon} label="Pause" onClick={() => deeds.act(id, 'pause')} />
          )}
          {(record.state === 'paused' || record.state === 'interrupted') && (
            <IconButton icon={runIcon} label="Resume" onClick={() => deeds.act(id, 'resume')} />
          )}
          {!over && <IconButton icon={stopIcon} danger label="Cancel" onClick={() => deeds.act(id, 'cancel')} />}
        </div>
      </header>
      {trouble && (
        <p className="vbl-trouble">
          <Sentence>{trouble.message}</Sentence>
        </p>
      )}
      {record.trouble && (
        <p className="vbl-trouble" data-state={record.state}>
          <Sentence>{record.trouble.message}</Sentence>
        </p>
      )}
      <ul className="vbl-stages" aria-label="Stages">
        {record.spec.stages.slice(0, MAX_STAGES).map(({ box, needs }) => {
          const stage = record.stages?.[box.name];
          const glance = boxes.find(b => b.stage === box.name);
          const now = rests ? null : time;
          return stage && <Stage key={box.name} stage={stage} needs={needs ?? []} box={glance} time={now} />;
        })}
        {stages.length > MAX_STAGES && (
          <li className="vbl-dim">
            and {stages.length - MAX_STAGES} more; `voidbox show {id}` lists them
          </li>
        )}
      </ul>
      <Lines lines={lines} many={stages.length > 1} />
    </>
  );
}

function Stage(props: { stage: StageRecord; needs: string[]; box?: BoxGlance; time: number | null }): JSX.Element {
  const { stage, box } = props;
  const from = stage.started_at;
  const end = stage.finished_at ?? props.time;
  const facts = [
    ...(from && end !== null ? [words.seconds(end - from)] : []),
    ...(stage.model ? [stage.model] : []),
    ...(tokensOf(stage) ? [words.count(tokensOf(stage), 'token')] : []),
    ...(stage.turns ? [words.cost(stage.cost_usd ?? 0, stage.unpriced, [stage.model_source ?? ''])] : []),
    ...(stage.tool_calls ? [words.count(stage.tool_calls, 'tool call')] : []),
    ...(stage.denied ? [`${stage.denied} denied`] : []),
    ...(stage.attempts > 1 ? [`attempt ${stage.attempts}`] : [])
  ];
  const files = Object.keys(stage.files ?? {});
  return (
    <li className="vbl-stage" data-state={stage.state} data-stage={stage.name}>
      <div className="vbl-line">
        <Dot state={stage.state} />
        <strong>{stage.name}</strong>
        <span className="vbl-dim">{stage.state}</span>
        {stage.box && <Badge kind={stage.box.isolation} />}
        {stage.model_source && <Badge kind={stage.model_source} />}
        {stage.cached && <Badge kind="cached" />}
        {props.needs.length > 0 && <span className="vbl-dim vbl-needs">after {props.needs.join(', ')}</span>}
        <span className="vbl-time vbl-dim">{facts.join(' · ')}</span>
      </div>
      {box && box.cpu.length > 0 && (
        <div className="vbl-sparks">
          <Spark label="CPU" values={box.cpu} />
          <Spark label="mem" values={box.memory} />
        </div>
      )}
      {stage.queue && <div className="vbl-dim">{stage.queue.message}</div>}
      {stage.trouble && (
        <div className="vbl-trouble">
          <Sentence>{stage.trouble.message}</Sentence>
        </div>
      )}
      {stage.output && (
        <details open={stage.output.length < 2000}>
          <summary>answer</summary>
          <pre tabIndex={0}>{words.plain(stage.output)}</pre>
        </details>
      )}
      {files.length > 0 && (
        <div className="vbl-dim">output files: {words.plain(files.slice(0, 20).join(', '))}</div>
      )}
    </li>
  );
}

function Lines({ lines, many }: { lines: Line[]; many: boolean }): JSX.Element | null {
  const end = React.useRef<HTMLDivElement>(null);
  const stick = React.useRef(true);
  React.useEffect(() => {
    if (stick.current && end.current) {
      end.current.scrollTop = end.current.scrollHeight;
    }
  }, [lines]);
  if (!lines.length) {
    return null;
  }
  return (
    <section className="vbl-activity">
      <h3>Latest</h3>
      <div
        ref={end}
        role="log"
        aria-label="What the run did last"
        tabIndex={0}
        onScroll={({ currentTarget: node }) => {
          stick.current = node.scrollHeight - node.scrollTop - node.clientHeight < 24;
        }}
      >
        {lines.map(line => (
          <div key={line.key} className="vbl-entry" data-kind={line.kind}>
            {many && <span className="vbl-entry-stage">{line.stage}</span>}
            <span>{line.text}</span>
          </div>
        ))}
      </div>
    </section>
  );
}

function titleOf({ spec }: RunRecord): string {
  return (
    spec.name ??
    spec.stages
      .slice(0, 3)
      .map(stage => stage.box.name)
      .join(', ')
  );
}

function tokensOf({ tokens }: StageRecord): number {
  return tokens.input + tokens.output + tokens.cache_read + tokens.cache_write;
}

function useShown(shown: Signal<RunTab, boolean>): boolean {
  const [visible, set] = React.useState(true);
  React.useEffect(() => {
    const take = (_: unknown, yes: boolean) => set(yes);
    shown.connect(take);
    return () => void shown.disconnect(take);
  }, [shown]);
  return visible;
}

/**
 * The record of a run, read again whenever the overview has been. That is use of the daemon, which keeps it: of a run
 * that rests or is gone, it is done only when the overview has it in another state, or something was done from here.
 */
function useRecord(id: string, model: Model, visible: boolean): [RunRecord | null, Trouble | null] {
  const [record, set] = React.useState<RunRecord | null>(null);
  const [trouble, setTrouble] = React.useState<Trouble | null>(null);
  const { acted, overview } = useModel(model);
  const seen = model.find(id)?.state;
  const quiet = trouble ? trouble.cause === 'unknown-run' : record !== null && isAtRest(record.state);
  React.useEffect(() => {
    let wanted = true;
    if (visible) {
      model.client.run(id).then(
        found => wanted && (set(found), setTrouble(null)),
        error => wanted && setTrouble(error instanceof Trouble ? error : new Trouble(String(error), ''))
      );
    }
    return () => {
      wanted = false;
    };
  }, [id, visible, acted, seen, quiet || overview, quiet || model.trouble]);
  return [record, trouble];
}

/** The latest of a run while it is to `follow`, begun anew when it no longer `rests`. */
function useActivity(id: string, model: Model, follow: boolean, rests: boolean): Line[] {
  const [lines, show] = React.useState<Line[]>([]);
  const [rested, setRested] = React.useState(rests);
  const [resumed, count] = React.useReducer((n: number) => n + 1, 0);
  if (rests !== rested) {
    setRested(rests);
    // Not at its end as well: there may be more lines here than the stream tells again.
    if (!rests) {
      count();
    }
  }
  React.useEffect(() => {
    if (!follow) {
      return;
    }
    const activity = new Activity(model.client, id, show);
    return () => activity.close();
  }, [id, follow, resumed]);
  return lines;
}
