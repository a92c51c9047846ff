import { LabIcon } from '@jupyterlab/ui-components';

/** A box in a box. */
export const voidboxIcon = new LabIcon({
  name: 'voidbox:box',
  svgstr: `<svg xmlns="http://www.w3.org/2000/svg" width="16" viewBox="0 0 24 24">
  <g class="jp-icon3" fill="#616161">
    <path fill-rule="evenodd" d="M4 2h16a2 2 0 0 1 2 2v16a2 2 0 0 1-2 2H4a2 2 0 0 1-2-2V4a2 2 0 0 1 2-2zm0 2v16h16V4z"/>
    <path d="M8.5 8h7a.5.5 0 0 1 .5.5v7a.5.5 0 0 1-.5.5h-7a.5.5 0 0 1-.5-.5v-7a.5.5 0 0 1 .5-.5z"/>
  </g>
</svg>`
});

export const pauseIcon = new LabIcon({
  name: 'voidbox:pause',
  svgstr: `<svg xmlns="http://www.w3.org/2000/svg" width="16" viewBox="0 0 24 24">
  <path class="jp-icon3" fill="#616161" d="M6 5h4v14H6zm8 0h4v14h-4z"/>
</svg>`
});
