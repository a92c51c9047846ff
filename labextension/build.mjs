// Compiles src/ and bundles it for JupyterLab into build/. Types are not looked at here: `jlpm check` does, with the
// packages of JupyterLab itself, which are large and which a build does not need.

import { execFileSync } from 'node:child_process';
import { copyFileSync, mkdirSync, rmSync } from 'node:fs';
import { createRequire } from 'node:module';

const require = createRequire(import.meta.url);
const node = (module, ...options) =>
  execFileSync(process.execPath, [require.resolve(module), ...options], { stdio: 'inherit' });

rmSync('lib', { recursive: true, force: true });
node('typescript/lib/tsc.js', '--noCheck');
// What JupyterLab has for all extensions, and in which versions; the builder looks for it under this name.
mkdirSync('lib/core', { recursive: true });
copyFileSync(require.resolve('@jupyterlab/core-meta/core.package.json'), 'lib/core/package.json');
node('@jupyterlab/builder/lib/build-labextension.js', '--core-path', 'lib/core', '.');
copyFileSync('install.json', 'build/install.json');
