// The plugins: panel, run tabs, status bar, launcher and palette; and the renderer of saved runs.

import { ILayoutRestorer, type JupyterFrontEnd, type JupyterFrontEndPlugin } from '@jupyterlab/application';
import {
  Dialog,
  ICommandPalette,
  InputDialog,
  MainAreaWidget,
  Notification,
  showDialog,
  WidgetTracker
} from '@jupyterlab/apputils';
import { ILauncher } from '@jupyterlab/launcher';
import { INotebookTracker } from '@jupyterlab/notebook';
import { IRenderMimeRegistry } from '@jupyterlab/rendermime';
import { ISettingRegistry } from '@jupyterlab/settingregistry';
import { IStatusBar } from '@jupyterlab/statusbar';
import { Token } from '@lumino/coreutils';

import { type Action, Client, type RunGlance } from './client';
import { voidboxIcon } from './icons';
import { RUN_MIME, RunOutput } from './mime';
import { isOver, Model } from './model';
import { createStarter, inNotebook } from './notebook';
import { type Deeds, RunsPanel } from './panel';
import { RunTab } from './runtab';
import { CostToday } from './status';
import { RUN_ID } from './words';

const CATEGORY = 'voidbox';
const command = {
  panel: 'voidbox:show-panel',
  refresh: 'voidbox:refresh',
  open: 'voidbox:open-run',
  attach: 'voidbox:attach-run',
  retry: 'voidbox:retry-run',
  cancel: 'voidbox:cancel-run',
  pause: 'voidbox:pause-run',
  resume: 'voidbox:resume-run',
  create: 'voidbox:new-notebook'
};

const IRuns = new Token<Model>('voidbox-lab:IRuns', 'What the daemon’s runs are doing.');

const runs: JupyterFrontEndPlugin<Model> = {
  id: 'voidbox-lab:runs',
  description: 'Asks the server extension for the daemon’s runs.',
  autoStart: true,
  provides: IRuns,
  activate: app => new Model(new Client(app.serviceManager.serverSettings))
};

const panel: JupyterFrontEndPlugin<void> = {
  id: 'voidbox-lab:panel',
  description: 'The panel of runs, boxes and cost; its commands, settings and launcher card.',
  autoStart: true,
  requires: [IRuns, ISettingRegistry, INotebookTracker],
  optional: [ILayoutRestorer, ICommandPalette, ILauncher, IStatusBar],
  activate: (
    app: JupyterFrontEnd,
    model: Model,
    settings: ISettingRegistry,
    notebooks: INotebookTracker,
    restorer: ILayoutRestorer | null,
    palette: ICommandPalette | null,
    launcher: ILauncher | null,
    statusBar: IStatusBar | null
  ) => {
    const { commands } = app;
    const deeds: Deeds = {
      open: run => commands.execute(command.open, { run }),
      attach: run => commands.execute(command.attach, { run }),
      retry: run => commands.execute(command.retry, { run }),
      act: (run, action) => commands.execute(command[action], { run })
    };
    const runsPanel = new RunsPanel(model, deeds);
    app.shell.add(runsPanel, 'left', { rank: 650 });
    restorer?.add(runsPanel, runsPanel.id);

    const tracker = new WidgetTracker<MainAreaWidget<RunTab>>({ namespace: 'voidbox-runs' });
    void restorer?.restore(tracker, {
      command: command.open,
      args: ({ content }) => ({ run: content.run }),
      name: ({ content }) => content.run
    });

    commands.addCommand(command.panel, {
      label: 'Show Runs, Boxes and Cost',
      icon: voidboxIcon,
      execute: () => app.shell.activateById(runsPanel.id)
    });
    commands.addCommand(command.refresh, { label: 'Look at Runs Again', execute: () => model.refresh() });
    commands.addCommand(command.open, {
      label: 'Open Run…',
      icon: voidboxIcon,
      execute: async args => {
        const run = await chosen(args.run, model, () => true, 'Open a run');
        if (!run) {
          return;
        }
        let tab = tracker.find(({ content }) => content.run === run);
        if (!tab) {
          tab = new MainAreaWidget({ content: new RunTab(model, deeds, run) });
          tab.id = `voidbox-${run}`;
          app.shell.add(tab, 'main');
          await tracker.add(tab);
        }
        app.shell.activateById(tab.id);
      }
    });
    commands.addCommand(command.create, {
      label: args => (args.isLauncher ? 'Agent in a box' : 'New voidbox Notebook'),
      caption: 'A notebook with a stage to begin with',
      icon: voidboxIcon,
      execute: args => saying(() => createStarter(app, String(args.cwd ?? '')))
    });
    commands.addCommand(command.attach, {
      label: 'Show Run in the Notebook…',
      caption: 'In a new cell of the notebook in front, live',
      execute: async args => {
        const run = await chosen(args.run, model, () => true, 'Show a run in the notebook');
        await saying(async () => run && inNotebook(app, notebooks, 'attach', run));
      }
    });
    commands.addCommand(command.retry, {
      label: 'Retry Run in the Notebook…',
      caption: 'As a new run, in a new cell of the notebook in front; what had succeeded comes from the cache',
      execute: async args => {
        const run = await chosen(args.run, model, ({ state }) => isOver(state), 'Retry a run in the notebook');
        await saying(async () => run && inNotebook(app, notebooks, 'retry', run));
      }
    });
    const act = (action: Action, label: string, fits: (run: RunGlance) => boolean) =>
      commands.addCommand(command[action], {
        label: `${label} Run…`,
        execute: async args => {
          const run = await chosen(args.run, model, fits, `${label} a run`);
          await saying(async () => run && model.act(run, action));
        }
      });
    act('cancel', 'Cancel', run => !isOver(run.state));
    act('pause', 'Pause', run => run.state === 'running' || run.state === 'queued');
    act('resume', 'Resume', run => run.state === 'paused' || run.state === 'interrupted');

    for (const name of Object.values(command)) {
      palette?.addItem({ command: name, category: CATEGORY });
    }
    launcher?.add({ command: command.create, category: CATEGORY, rank: 1, args: { isLauncher: true } });

    let showCost = true;
    const cost = new CostToday(model, () => commands.execute(command.panel));
    statusBar?.registerStatusItem('voidbox-lab:cost', {
      item: cost,
      align: 'right',
      rank: 30,
      isActive: () => showCost && model.overview !== null,
      activeStateChanged: model.changed
    });
    const apply = (loaded: ISettingRegistry.ISettings) => {
      model.pollSeconds = loaded.get('pollSeconds').composite as number;
      showCost = loaded.get('showCost').composite as boolean;
      void model.refresh();
    };
    settings.load(panel.id).then(
      loaded => {
        apply(loaded);
        loaded.changed.connect(apply);
      },
      error => console.error('The settings of voidbox-lab cannot be read.', error)
    );
  }
};

const renderer: JupyterFrontEndPlugin<void> = {
  id: 'voidbox-lab:renderer',
  description: 'Shows runs in saved notebooks, without a kernel.',
  autoStart: true,
  requires: [IRenderMimeRegistry],
  activate: (app: JupyterFrontEnd, rendermime: IRenderMimeRegistry) => {
    rendermime.addFactory(
      {
        safe: true,
        mimeTypes: [RUN_MIME],
        // Before HTML (50), after a live widget (-10).
        defaultRank: 45,
        createRenderer: () =>
          new RunOutput(
            () => rendermime.createRenderer('text/html'),
            run => app.commands.execute(command.open, { run })
          )
      },
      45
    );
  }
};

/** The run that a command is about: the one it was given, or one of those that `fits`, picked in a dialog. */
async function chosen(
  given: unknown,
  model: Model,
  fits: (run: RunGlance) => boolean,
  title: string
): Promise<string | null> {
  // It goes into a cell: a page may give a command what it likes, by a link in an output.
  if (typeof given === 'string' && RUN_ID.test(given)) {
    return given;
  }
  await model.refresh();
  const found = (model.overview?.runs ?? []).filter(fits);
  if (model.trouble || !found.length) {
    const body = model.trouble?.message ?? 'There is no run for that now.';
    await showDialog({ title, body, buttons: [Dialog.okButton()] });
    return null;
  }
  const items = found.map(run => `${run.title} · ${run.state} · ${run.id}`);
  const { value } = await InputDialog.getItem({ title, items });
  return value === null ? null : (found[items.indexOf(value)]?.id ?? null);
}

/** Do it; what goes wrong is said to the user. */
async function saying(deed: () => Promise<unknown>): Promise<void> {
  try {
    await deed();
  } catch (error) {
    Notification.error(error instanceof Error ? error.message : String(error), { autoClose: 8000 });
  }
}

export default [runs, panel, renderer];
