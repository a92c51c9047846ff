// What all views share: the daemon's overview, asked for again and again while somebody looks.

import { Poll } from '@lumino/polling';
import { type ISignal, Signal } from '@lumino/signaling';

import { type Action, type Client, type Overview, type RunGlance, Trouble } from './client';

const RECENT = 20;
/** Seconds between looks while only the status bar shows something. */
const UNSEEN_S = 15;
const OVER = new Set(['succeeded', 'failed', 'cancelled']);

export function isOver(state: string): boolean {
  return OVER.has(state);
}

/** Whether nothing of a run happens any more unless somebody resumes it: it is over, or its daemon died. */
export function isAtRest(state: string): boolean {
  return isOver(state) || state === 'interrupted';
}

export class Model {
  /** The latest one; stays when the daemon leaves, for its figures are still true. */
  overview: Overview | null = null;
  /** Why there is none now. */
  trouble: Trouble | null = null;
  /** The last run that ended, in a sentence, for those who listen. */
  news = '';
  /** How often something was done to a run from here. */
  acted = 0;

  private readonly poll: Poll;
  private readonly _changed = new Signal<this, void>(this);
  private readonly watchers = new Set<object>();
  private seconds = 2;

  constructor(readonly client: Client) {
    this.poll = new Poll({
      auto: true,
      name: 'voidbox:overview',
      factory: () => this.look(),
      frequency: { interval: UNSEEN_S * 1000, backoff: false },
      standby: 'when-hidden'
    });
  }

  get changed(): ISignal<this, void> {
    return this._changed;
  }

  /** Seconds between looks while a view is open. */
  set pollSeconds(seconds: number) {
    this.seconds = Math.min(60, Math.max(0.5, seconds));
    this.pace();
  }

  /** Count `watcher` among the open views, or no more. */
  watch(watcher: object, visible: boolean): void {
    const before = this.watchers.size;
    if (visible) {
      this.watchers.add(watcher);
    } else {
      this.watchers.delete(watcher);
    }
    if ((before === 0) !== (this.watchers.size === 0)) {
      this.pace();
      if (visible) {
        void this.refresh();
      }
    }
  }

  find(id: string): RunGlance | undefined {
    return this.overview?.runs.find(run => run.id === id);
  }

  async refresh(): Promise<void> {
    await this.poll.refresh();
    await this.poll.tick;
  }

  /** Cancel, pause or resume a run, and look what became of it. */
  async act(id: string, action: Action): Promise<void> {
    await this.client.act(id, action);
    this.acted++;
    await this.refresh();
  }

  private pace(): void {
    const seconds = this.watchers.size ? this.seconds : UNSEEN_S;
    this.poll.frequency = { ...this.poll.frequency, interval: seconds * 1000 };
  }

  private async look(): Promise<void> {
    const before = new Map(this.overview?.runs.map(run => [run.id, run.state]));
    const midnight = new Date();
    midnight.setHours(0, 0, 0, 0);
    try {
      this.overview = await this.client.overview(midnight.getTime() / 1000, RECENT);
      this.trouble = null;
      const ended = this.overview.runs.filter(
        run => isOver(run.state) && before.has(run.id) && !isOver(before.get(run.id)!)
      );
      if (ended.length) {
        this.news = ended.map(run => `Run ${run.title} ${run.state}.`).join(' ');
      }
    } catch (error) {
      this.trouble = error instanceof Trouble ? error : new Trouble(String(error), '');
    }
    this._changed.emit();
  }
}
