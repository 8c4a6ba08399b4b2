// Fills Gradio's empty surfaces with ours, and connects them with the server.
import * as create from "./create.js";
import { startTips } from "./dom.js";
import * as extend from "./extend.js";
import * as extensions from "./extensions.js";
import * as jobs from "./jobs.js";
import * as models from "./models.js";
import * as pictures from "./pictures.js";
import * as running from "./running.js";
import * as shell from "./shell.js";
import * as stage from "./stage.js";
import * as strip from "./strip.js";
import * as train from "./train.js";
import { startTrainings } from "./trainings.js";

const SURFACES = {
  top: shell.drawTop,
  foot: shell.drawFoot,
  core: create.drawCore,
  added: create.drawExtensionPanels,
  running: running.drawRunning,
  stage: stage.draw,
  strip: strip.draw,
  models: models.draw,
  extensions: extensions.draw,
  train: train.draw,
  web: extend.load,
  answer: () => {},
};
const FIRST = ["core"]; // the others read its values

// Gradio mounts its components when it likes: each one announces itself, those that came early wait in a list.
const early = (window.atelierSurfaces ??= []);
const late = [];
function mount(surface) {
  if (!create.core && !FIRST.includes(surface.name)) return late.push(surface);
  SURFACES[surface.name](surface);
  if (FIRST.includes(surface.name)) late.splice(0).forEach(mount);
}
window.atelierSurfaces = { push: mount };

window.atelier = {
  request: create.request,
  answered: create.answered,
  jobs: jobs.jobs,
  state: jobs.state,
  extend: extend.extend,
};

early.forEach(mount);
startTips();
create.startInput();
startTrainings();
jobs.start();
pictures.start();

let wasOnline = true;
jobs.hear(({ models: news }) => {
  if (news || (jobs.state.online && !wasOnline)) models.reload();
  wasOnline = jobs.state.online;
});
