// What goes into notebooks: a cell that shows a run, and the first cells of a new one.

import type { JupyterFrontEnd } from '@jupyterlab/application';
import { MarkdownCell } from '@jupyterlab/cells';
import { type INotebookTracker, NotebookActions, type NotebookPanel } from '@jupyterlab/notebook';

import { Trouble } from './client';

const LOAD = '%load_ext voidbox_lab';
type Cell = { cell_type: 'code' | 'markdown'; source: string };
const STARTER: Cell[] = [
  {
    cell_type: 'markdown',
    source: `# An agent in a box

A stage is an agent with a model, in a micro-VM of its own. Here the model is a script, so no key is needed. With a key in
the environment of Jupyter, \`--model anthropic:claude-sonnet-4-5\` (or \`openai:…\`, \`ollama:…\`) asks a real one; then
write what it is to do in your own words.`
  },
  { cell_type: 'code', source: LOAD },
  {
    cell_type: 'code',
    source: `%%voidbox stage visitor --model scripted:shell --memory 512
Look around in your box and say what you find.
\`\`\`sh
uname -sr; id; ls /sys/class/net; ls -la /workspace
\`\`\``
  },
  { cell_type: 'code', source: 'run = %voidbox run visitor' },
  { cell_type: 'code', source: 'run.result' }
];

/** Show a run, or run it again, in a new cell below the current one of the notebook that is in front. */
export async function inNotebook(
  app: JupyterFrontEnd,
  tracker: INotebookTracker,
  verb: 'attach' | 'retry',
  run: string
): Promise<void> {
  const panel = tracker.currentWidget;
  if (!panel) {
    throw new Trouble('No notebook is open; open one, then have the run in it.', 'no-notebook');
  }
  const { content, context, sessionContext } = panel;
  app.shell.activateById(panel.id);
  await Promise.all([context.ready, sessionContext.ready]);
  const kernel = sessionContext.session?.kernel;
  if (!kernel) {
    throw new Trouble(
      'The notebook in front has no kernel; choose one for it, then have the run in it.',
      'no-kernel'
    );
  }
  // Before the cell, for it decides how the cell is read; loading it twice is loading it once.
  await kernel.requestExecute({ code: LOAD, silent: true, store_history: false }).done;
  NotebookActions.insertBelow(content);
  content.activeCell?.model.sharedModel.setSource(`%voidbox ${verb} ${run}`);
  await NotebookActions.run(content, sessionContext);
}

/** A notebook in the directory `cwd` with a stage to begin with; nothing of it is run. */
export async function createStarter(app: JupyterFrontEnd, cwd: string): Promise<NotebookPanel> {
  const kernelName = app.serviceManager.kernelspecs.specs?.default ?? 'python3';
  const panel: NotebookPanel = await app.commands.execute('notebook:create-new', { cwd, kernelName });
  await panel.context.ready;
  const notebook = panel.content.model!.sharedModel;
  notebook.transact(() => {
    notebook.deleteCellRange(0, notebook.cells.length);
    notebook.insertCells(0, STARTER);
  });
  // The first one to be run; text is shown as text.
  panel.content.widgets.forEach(cell => cell instanceof MarkdownCell && (cell.rendered = true));
  panel.content.activeCellIndex = 1;
  return panel;
}
