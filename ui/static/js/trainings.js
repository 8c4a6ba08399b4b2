// What the server says about trainings, as it comes in: all in short, and the one in hand with its curves and samples.
import { isSame } from "./form.js";
import * as jobs from "./jobs.js";
import { call } from "./server.js";
import { complain, state, tell } from "./train-state.js";

export const trainings = new Map(); // name -> in short
export let whole = null; // the one in hand, with parameters, curves, samples and checkpoints

const AGAIN = 8000; // ms after which the curves are asked for anew while it runs
const REACH = 4000; // points of a curve that are kept between two answers

export const training = (name = state.training) => trainings.get(name) ?? null;
export const isLive = (one) => ["queued", "running"].includes(one?.state);
export const inOrder = () =>
  [...trainings.values()].sort((a, b) => isLive(b) - isLive(a) || b.started.localeCompare(a.started));

export const address = (more = "", name = state.training) => `api/trainings/${encodeURIComponent(name)}${more}`;

export async function lookAtTrainings() {
  try {
    const found = (await call("api/trainings")).trainings;
    trainings.clear();
    for (const one of found) trainings.set(one.name, one);
    if (state.training && !trainings.has(state.training)) state.training = null;
    if (state.training) lookAtWhole();
    tell();
  } catch (error) {
    complain(error);
  }
}

let looked = 0;
let lastLook = 0;
export async function lookAtWhole() {
  const name = state.training;
  const mine = ++looked;
  lastLook = Date.now();
  try {
    const found = await call(address());
    if (mine !== looked || name !== state.training) return;
    whole = found;
    trainings.set(name, { ...trainings.get(name), ...found });
    tell();
  } catch (error) {
    if (mine === looked && error.status !== 404) complain(error);
  }
}

export function startTrainings() {
  jobs.events.add((event) => {
    if (event.type === "snapshot") for (const one of event.trainings ?? []) take(one);
    else if (event.type === "training") take(event.training);
    else return;
    tell();
  });
}

function take(one) {
  if (one.state === "deleted") {
    trainings.delete(one.name);
    if (state.training === one.name) [state.training, whole] = [null, null];
    return;
  }
  const before = trainings.get(one.name);
  trainings.set(one.name, one);
  if (one.name !== state.training) return;
  if (whole?.name !== one.name) return void lookAtWhole();
  for (const curve of ["loss", "smoothed", "rate"]) extend(whole.history[curve], one.step, one[curve]);
  extend(whole.history.validation, one.step, one.validation, true);
  const isNews =
    ["state", "preview", "stage"].some((key) => before?.[key] !== one[key]) || !isSame(before?.grid, one.grid);
  if (isNews || Date.now() - lastLook > AGAIN) lookAtWhole();
}

// `isKept`: the value is told again until there is another.
function extend(points, step, value, isKept = false) {
  const [at, last] = points.at(-1) ?? [0, null];
  if (typeof value !== "number" || !step || step <= at || (isKept && value === last)) return;
  points.push([step, value]);
  if (points.length > REACH) points.shift();
}
