// The latest of what a run does, line by line, from its event stream. For more there is the run view in a notebook.

import type { Client, RunEvent } from './client';
import { isOver } from './model';
import { plain } from './words';

/** Events to begin with; earlier ones are the run view's. */
const TAIL = 300;
const LINES = 300;
const CHARACTERS = 4000;
const FLUSH_MS = 150;

export interface Line {
  key: number;
  stage: string;
  kind: 'text' | 'tool' | 'error' | 'log' | 'note';
  text: string;
  /** Pieces of one text have the same. */
  block?: number;
}

/** Follows a run until `close`; `show` gets the lines at most a few times a second. */
export class Activity {
  private lines: Line[] = [];
  private readonly source: EventSource;
  private timer = 0;
  /** Of the run, as its last event had it. */
  private state = '';

  constructor(
    client: Client,
    run: string,
    private readonly show: (lines: Line[]) => void
  ) {
    this.source = client.events(run, TAIL);
    this.source.addEventListener('event', event => this.take(JSON.parse(event.data) as RunEvent));
    // The server's last word; without this the browser would ask again for ever.
    this.source.addEventListener('failed', () => this.source.close());
    // Nor may it ask again for a run that rests; that it was interrupted may also be history.
    this.source.addEventListener('error', () => this.state === 'interrupted' && this.source.close());
  }

  close(): void {
    this.source.close();
    window.clearTimeout(this.timer);
  }

  private take(event: RunEvent): void {
    const { body } = event;
    const last = this.lines[this.lines.length - 1];
    const stage = event.stage ?? '';
    if (body.type === 'run') {
      this.state = body.state;
      if (isOver(body.state)) {
        this.source.close();
      }
    }
    if (body.type === 'text' && last?.kind === 'text' && last.stage === stage && last.block === body.block) {
      // A new object: what is shown already is not changed.
      this.lines[this.lines.length - 1] = { ...last, text: cut(last.text + plain(body.text)) };
    } else {
      const line = lineOf(event);
      if (!line) {
        return;
      }
      this.lines.push({ key: event.seq, stage, ...line, text: plain(line.text) });
    }
    if (this.lines.length > LINES) {
      this.lines = this.lines.slice(-LINES);
    }
    this.timer ||= window.setTimeout(() => {
      this.timer = 0;
      this.show([...this.lines]);
    }, FLUSH_MS);
  }
}

function cut(text: string): string {
  return text.length <= CHARACTERS ? text : `…${text.slice(-CHARACTERS)}`;
}

function lineOf({ body }: RunEvent): Pick<Line, 'kind' | 'text' | 'block'> | null {
  switch (body.type) {
    case 'text':
      return { kind: 'text', text: cut(body.text), block: body.block };
    case 'tool_call':
      return { kind: 'tool', text: `${body.name} ${JSON.stringify(body.input).slice(0, 200)}` };
    case 'tool_result':
      return body.is_error ? { kind: 'error', text: body.content.slice(0, 400) } : null;
    case 'log':
      return { kind: 'log', text: cut(body.text) };
    case 'denied':
      return { kind: 'error', text: `denied: ${body.message}` };
    case 'egress':
      return {
        kind: body.verdict === 'allowed' ? 'note' : 'error',
        text: `${body.host}:${body.port} ${body.verdict}`
      };
    case 'notice':
      return { kind: 'note', text: body.message };
    case 'queued':
      return { kind: 'note', text: body.message };
    case 'stage':
      return {
        kind: body.trouble ? 'error' : 'note',
        text: body.trouble ? `${body.state}: ${body.trouble.message}` : body.state
      };
    default:
      return null;
  }
}
