// The left panel: the runs of all notebooks, their boxes, the host's room, today's cost.

import { ReactWidget, refreshIcon, runIcon, stopIcon, launchIcon, addBelowIcon } from '@jupyterlab/ui-components';
import type { Message } from '@lumino/messaging';
import * as React from 'react';

import type { Action, BoxGlance, Overview, RunGlance, Trouble } from './client';
import { pauseIcon, voidboxIcon } from './icons';
import { isAtRest, isOver, type Model } from './model';
import { Badge, Dot, IconButton, Meter, Progress, Sentence, Spark, took, useModel, useNow } from './parts';
import * as words from './words';

/** What the panel has others do. */
export interface Deeds {
  open(run: string): unknown;
  attach(run: string): unknown;
  retry(run: string): unknown;
  act(run: string, action: Action): unknown;
}

export class RunsPanel extends ReactWidget {
  constructor(
    private readonly model: Model,
    private readonly deeds: Deeds
  ) {
    super();
    this.id = 'voidbox-panel';
    this.addClass('vbl-panel');
    this.title.icon = voidboxIcon;
    this.title.caption = 'voidbox: runs, boxes, cost';
    this.node.setAttribute('role', 'region');
    this.node.setAttribute('aria-label', 'voidbox');
  }

  protected render(): JSX.Element {
    return <Runs model={this.model} deeds={this.deeds} />;
  }

  protected onAfterAttach(message: Message): void {
    super.onAfterAttach(message);
    this.model.watch(this, this.isVisible);
  }

  protected onAfterShow(message: Message): void {
    super.onAfterShow(message);
    this.model.watch(this, true);
  }

  protected onAfterHide(message: Message): void {
    super.onAfterHide(message);
    this.model.watch(this, false);
  }

  dispose(): void {
    this.model.watch(this, false);
    super.dispose();
  }
}

function Runs({ model, deeds }: { model: Model; deeds: Deeds }): JSX.Element {
  const { overview, trouble, news } = useModel(model);
  const live = overview?.runs.filter(run => !isAtRest(run.state)) ?? [];
  const recent = overview?.runs.filter(run => isAtRest(run.state)) ?? [];
  const time = useNow(live.length > 0 && trouble === null);
  return (
    <>
      <header className="vbl-header">
        <h2>voidbox</h2>
        <IconButton icon={refreshIcon} label="Look again" onClick={() => model.refresh()} />
      </header>
      {trouble && <Absent trouble={trouble} />}
      {overview && <Today overview={overview} />}
      <div className="vbl-scroll">
        {overview && (
          <>
            {!trouble && (
              <Section title="In progress" count={live.length}>
                {live.length ? (
                  <ul>
                    {live.map(run => (
                      <Run key={run.id} run={run} boxes={overview.boxes} time={time} deeds={deeds} />
                    ))}
                  </ul>
                ) : (
                  <p className="vbl-dim">Nothing runs.</p>
                )}
              </Section>
            )}
            {!trouble && overview.boxes.length > 0 && (
              <Section title="Boxes" count={overview.boxes.length}>
                <ul>
                  {overview.boxes.map(box => (
                    <Box key={`${box.run}/${box.stage}`} box={box} alone={boxesOf(overview, box.run) === 1} />
                  ))}
                </ul>
              </Section>
            )}
            {!trouble && <Host overview={overview} />}
            {recent.length > 0 && (
              <Section title="Recent" count={recent.length}>
                <ul>
                  {recent.map(run => (
                    <Run key={run.id} run={run} boxes={[]} time={time} deeds={deeds} />
                  ))}
                </ul>
              </Section>
            )}
          </>
        )}
      </div>
      <div className="vbl-unseen" role="status" aria-live="polite">
        {news}
      </div>
    </>
  );
}

function Absent({ trouble }: { trouble: Trouble }): JSX.Element {
  const absent = trouble.cause === 'no-daemon';
  return (
    <div className="vbl-absent" role="status" data-kind={absent ? 'absent' : 'trouble'}>
      <strong>{absent ? 'No daemon runs.' : 'Not reachable.'}</strong> <Sentence>{trouble.message}</Sentence>
    </div>
  );
}

function Today({ overview }: { overview: Overview }): JSX.Element {
  const { spent } = overview;
  return (
    <div className="vbl-today">
      <span className="vbl-figure">{words.dollars(spent.cost_usd)}</span>
      <span className="vbl-dim">
        today · {words.count(spent.runs, 'run')} · {words.count(spent.tokens, 'token')}
        {spent.unpriced > 0 && ` · ${spent.unpriced} unpriced`}
      </span>
    </div>
  );
}

function Section(props: { title: string; count?: number; children: React.ReactNode }): JSX.Element {
  return (
    <details className="vbl-section" open>
      <summary>
        <h3>{props.title}</h3>
        {props.count !== undefined && <span className="vbl-count">{props.count}</span>}
      </summary>
      {props.children}
    </details>
  );
}

function Run(props: { run: RunGlance; boxes: BoxGlance[]; time: number; deeds: Deeds }): JSX.Element {
  const { run, deeds } = props;
  const over = isOver(run.state);
  const time = took(run, props.time);
  const boxes = props.boxes.filter(box => box.run === run.id);
  const name = `${run.title} (${run.id})`;
  const badges = [...run.isolation, ...run.sources].map(kind => <Badge key={kind} kind={kind} />);
  return (
    <li className="vbl-run" data-state={run.state} data-run={run.id}>
      <div className="vbl-line">
        <Dot state={run.state} />
        <button type="button" className="vbl-name" title={`Open ${name}`} onClick={() => void deeds.open(run.id)}>
          {run.title}
        </button>
        <span className="vbl-time vbl-dim">
          {over
            ? `${words.seconds(props.time - (run.finished_at ?? run.created_at))} ago`
            : time !== null && words.seconds(time)}
        </span>
      </div>
      <div className="vbl-line vbl-second">
        <span className="vbl-dim">
          {over || run.state === 'paused' || !run.at_work.length ? run.state : run.at_work.join(', ')}
        </span>
        {over && badges}
        <span className="vbl-cost">{words.cost(run.cost_usd, run.unpriced, run.sources)}</span>
      </div>
      {!over && <Progress stages={run.stages} />}
      {!over && boxes.length > 0 && (
        <div className="vbl-sparks">
          <Spark label="CPU" values={mean(boxes.map(box => box.cpu))} />
          <Spark label="mem" values={mean(boxes.map(box => box.memory))} />
        </div>
      )}
      {run.trouble && run.state !== 'cancelled' && (
        <div className="vbl-trouble" title={run.trouble}>
          <Sentence>{run.trouble}</Sentence>
        </div>
      )}
      <div className="vbl-buttons" role="group" aria-label={`Actions on ${name}`}>
        <IconButton icon={launchIcon} label={`Open ${name}`} onClick={() => deeds.open(run.id)} />
        <IconButton
          icon={addBelowIcon}
          label={`Show ${name} in the notebook`}
          onClick={() => deeds.attach(run.id)}
        />
        {over && run.state !== 'succeeded' && (
          <IconButton
            icon={refreshIcon}
            label={`Retry ${name} in the notebook`}
            onClick={() => deeds.retry(run.id)}
          />
        )}
        {(run.state === 'running' || run.state === 'queued') && (
          <IconButton icon={pauseIcon} label={`Pause ${name}`} onClick={() => deeds.act(run.id, 'pause')} />
        )}
        {(run.state === 'paused' || run.state === 'interrupted') && (
          <IconButton icon={runIcon} label={`Resume ${name}`} onClick={() => deeds.act(run.id, 'resume')} />
        )}
        {!over && (
          <IconButton
            icon={stopIcon}
            danger
            label={`Cancel ${name}`}
            onClick={() => deeds.act(run.id, 'cancel')}
          />
        )}
        {!over && <span className="vbl-badges">{badges}</span>}
      </div>
    </li>
  );
}

function boxesOf(overview: Overview, run: string): number {
  return overview.boxes.filter(box => box.run === run).length;
}

/** A box; the curves of one that is `alone` in its run are shown with the run. */
function Box({ box, alone }: { box: BoxGlance; alone: boolean }): JSX.Element {
  const { facts } = box;
  return (
    <li className="vbl-box" data-stage={box.stage}>
      <div className="vbl-line">
        <Dot state={box.state} />
        <span className="vbl-name" title={`${facts.domain} of ${box.run}`}>
          {box.stage}
        </span>
        <Badge kind={facts.isolation} />
        <span className="vbl-time vbl-dim">
          {words.mib(facts.memory_mb)} · {facts.vcpus} vCPU{facts.vcpus === 1 ? '' : 's'}
        </span>
      </div>
      {!alone && box.cpu.length > 0 && (
        <div className="vbl-sparks">
          <Spark label="CPU" values={box.cpu} />
          <Spark label="mem" values={box.memory} />
        </div>
      )}
    </li>
  );
}

function Host({ overview }: { overview: Overview }): JSX.Element {
  const { room, health, boxes } = overview;
  const others = health.boxes - boxes.length;
  return (
    <Section title="Host">
      <Meter
        label="memory"
        used={room.memory_used_mb}
        all={room.memory_mb}
        words={`${words.mib(room.memory_used_mb)} of ${words.mib(room.memory_mb)}`}
      />
      <Meter label="vCPUs" used={room.vcpus_used} all={room.vcpus} words={`${room.vcpus_used} of ${room.vcpus}`} />
      <p className="vbl-dim">
        {room.spares
          ? `${words.count(room.spares, 'box').replace(/boxs$/, 'boxes')} ready for the next stage, ${words.mib(room.spares_mb)}`
          : 'No box is kept ready now.'}
        {others > 0 && ` ${others} more without telemetry.`}
      </p>
    </Section>
  );
}

/** The mean curve of several, aligned at their ends. */
function mean(curves: readonly (readonly number[])[]): number[] {
  const length = Math.max(...curves.map(curve => curve.length));
  return Array.from({ length }, (_, i) => {
    const values = curves.map(curve => curve[curve.length - length + i]).filter(value => value !== undefined);
    return values.reduce((sum, value) => sum + value, 0) / values.length;
  });
}
