// The server extension's API: what it passes on from the daemon, with the daemon's own types.

import { URLExt } from '@jupyterlab/coreutils';
import { ServerConnection } from '@jupyterlab/services';

import type { components } from './openapi';

type Schemas = components['schemas'];
export type Overview = Schemas['Overview'];
export type RunGlance = Schemas['RunGlance'];
export type BoxGlance = Schemas['BoxGlance'];
export type RunRecord = Schemas['RunRecord'];
export type StageRecord = Schemas['StageRecord'];
export type RunEvent = Schemas['Event'];
export type Action = 'cancel' | 'pause' | 'resume';

/** What went wrong, in the server's words. */
export class Trouble extends Error {
  constructor(
    message: string,
    /** A stable name of the reason, such as `no-daemon`; empty if there is none. */
    readonly cause: string
  ) {
    super(message);
  }
}

export class Client {
  constructor(private readonly settings: ServerConnection.ISettings) {}

  overview(since: number, limit: number): Promise<Overview> {
    return this.request<Overview>('overview' + URLExt.objectToQueryString({ since, limit }));
  }

  run(id: string): Promise<RunRecord> {
    return this.request<RunRecord>(`runs/${encodeURIComponent(id)}`);
  }

  act(id: string, action: Action): Promise<RunRecord> {
    return this.request<RunRecord>(`runs/${encodeURIComponent(id)}/${action}`, { method: 'POST', body: '{}' });
  }

  /** The events of a run from its `tail` last ones on, as the browser's own reader of event streams. */
  events(id: string, tail: number): EventSource {
    // As for WebSockets, no header can be set: the server's cookie is sent, and the token where there is one.
    const { token, appendToken } = this.settings;
    const query = URLExt.objectToQueryString(token && appendToken ? { tail, token } : { tail });
    return new EventSource(this.url(`runs/${encodeURIComponent(id)}/events`) + query);
  }

  private url(path: string): string {
    return URLExt.join(this.settings.baseUrl, 'voidbox/api', path);
  }

  private async request<T>(path: string, init: RequestInit = {}): Promise<T> {
    let response: Response;
    try {
      response = await ServerConnection.makeRequest(this.url(path), init, this.settings);
    } catch {
      throw new Trouble('The Jupyter server does not answer; look whether it still runs.', 'no-server');
    }
    const body: unknown = await response.json().catch(() => null);
    if (response.ok) {
      return body as T;
    }
    const problem = body as Partial<Schemas['Problem']> | null;
    if (response.status === 404 && !problem?.error) {
      throw new Trouble(
        'The server extension voidbox_lab is not enabled; see `jupyter server extension list`.',
        'no-extension'
      );
    }
    throw new Trouble(
      problem?.error?.message ?? `The Jupyter server answered with HTTP status ${response.status}.`,
      problem?.error?.cause ?? ''
    );
  }
}
