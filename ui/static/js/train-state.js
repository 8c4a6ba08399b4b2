// What the Train tab knows: the set and the training in hand and where on the walk somebody is.
import * as create from "./create.js";
import { keep, kept, toast } from "./dom.js";
import { Form } from "./form.js";
import { call, post } from "./server.js";
import { t } from "./words.js";

export const STEPS = ["set", "captions", "settings", "training", "result"];
export const state = {
  step: "home",
  sets: null, // every set in short, once the server has said so
  captioners: [], // names of models that write captions
  set: null, // the one in hand, whole
  ...kept("train", {}),
};
export let form = null; // the parameters of a training; also decides how pictures are cropped

const hearers = new Set();
export const hear = (hearer) => hearers.add(hearer);
export const tell = (what = {}) => hearers.forEach((hearer) => hearer(what));

export function startForm(schema) {
  form = new Form(schema, { overrides: kept("train-form", {}) });
  form.hear(() => keep("train-form", form.dump()));
  const takeModels = () => {
    form.lists = { models: create.models.filter(({ problem }) => !problem).map(({ name, title }) => [name, title]) };
    followModel();
  };
  create.on("models", takeModels);
  if (create.models.length) takeModels();
  form.hear((names) => names.has("model") && names.size < form.fields.size && followModel());
}

// Pictures of the size that the model draws, unless somebody says otherwise.
function followModel() {
  const model = create.models.find(({ name }) => name === form.get("model")) ?? create.chosen();
  form.prefer({ ...(model?.defaults.width ? { resolution: model.defaults.width } : {}), ...preset });
}

// What a preset says is the usual value of its fields; what somebody has changed beside it stays.
let preset = {};
export function usePreset(values) {
  preset = values;
  followModel();
}

// Back to the preset, but for what is said of this very LoRA.
export function forgetChanges() {
  const own = ["model", "trigger", "sample_prompts"];
  form.restore(Object.fromEntries(Object.entries(form.dump()).filter(([name]) => own.includes(name))));
}

// Leads to a step; `changes` are of the state: {name} of a set, {training}.
export function go(step, changes = {}) {
  if ("name" in changes && changes.name !== state.name) state.set = null;
  Object.assign(state, changes, { step });
  keep("train", { step, name: state.name, training: state.training });
  tell({ went: true });
  if (state.name && !state.set) look();
}

export const complain = (error) =>
  void toast(error.message, {
    kind: "error",
    detail: (error.problems ?? []).length > 1 ? error.problems.map(({ message }) => message).join("; ") : "",
    close: t("close"),
  });

export const said = (text, more = {}) => void toast(text, { kind: "done", close: t("close"), ...more });

export const send = (path, values = {}) => post(path, { body: JSON.stringify(values), type: "application/json" });

// --- sets

export async function lookAtSets() {
  try {
    const found = await call("api/datasets");
    Object.assign(state, { sets: found.datasets, captioners: found.captioners });
    tell();
  } catch (error) {
    complain(error);
  }
}

export const way = (more = "", name = state.name) => `api/datasets/${encodeURIComponent(name)}${more}`;

// How the trainer would crop, as the form stands.
export function seen() {
  const names = ["resolution", "model", "buckets", "bucket_step", "largest_aspect"];
  const valid = names.filter((name) => !form.problemOf(form.fields.get(name), form.get(name)));
  return new URLSearchParams(valid.map((name) => [name, String(form.get(name) ?? "")])).toString();
}

let looked = 0;
export async function look() {
  const { name } = state;
  const mine = ++looked;
  try {
    const found = await call(`${way("", name)}?${seen()}`);
    if (mine === looked && name === state.name) take(found);
  } catch (error) {
    if (mine !== looked) return;
    if (error.status !== 404) return complain(error);
    // it was deleted elsewhere
    go(["training", "result"].includes(state.step) ? state.step : "home", { name: null });
    lookAtSets();
  }
}

function take(found) {
  state.set = found;
  tell();
}

// Something is done to the set in hand, which is answered with all of it.
export async function change(what, values) {
  try {
    take(await send(`${way(`/${what}`)}?${seen()}`, values));
    return true;
  } catch (error) {
    complain(error);
    look();
    return false;
  }
}

export const learnt = () => (state.set?.pictures ?? []).filter(({ excluded }) => !excluded);

export function factsOf(set) {
  const facts = [t("train.pictures", { n: set.images, count: set.images })];
  if (set.regular) facts.push(t("train.regulars", { n: set.regular, count: set.regular }));
  if (set.excluded) facts.push(t("train.left", { n: set.excluded, count: set.excluded }));
  return facts.join(" · ");
}

export const tagsOf = (caption) =>
  caption
    .split(",")
    .map((tag) => tag.trim())
    .filter(Boolean);
