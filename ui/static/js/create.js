// The form of the Create tab: its panels, the model, the draft, recalling, dropping, pasting, and Generate.
import { drawFace, drawSelect, h, icon, isOpen, keep, kept, tip, toast } from "./dom.js";
import { Form } from "./form.js";
import * as jobs from "./jobs.js";
import { drawExtension, drawPanel, fitTo } from "./panel.js";
import { DRAGGED, pictures } from "./pictures.js";
import { call, post } from "./server.js";
import { t } from "./words.js";

export let core = null;
export let models = [];
export const extensions = new Map(); // id -> {form, on}
const draft = kept("draft", {});
const lists = { models: [], vaes: [] };
const hearers = Object.fromEntries(
  ["sending", "submitted", "refused", "image", "mask", "mode", "models"].map((what) => [what, new Set()]),
);
const contributors = []; // each may change the request that goes out
const checks = []; // each is asked before: true, false or a promise of one
let modes = [];
const painted = h("div", { class: "painted" }); // panels of what is painted on the canvas
let readElsewhere = new Set();
let defaultModel = "";

export const on = (what, hearer) => hearers[what].add(hearer);
const tell = (what, ...values) => hearers[what].forEach((hearer) => hearer(...values));
export const contribute = (contributor) => contributors.push(contributor);
export const check = (asked) => checks.push(asked);

// Whoever shows pictures says which one is there: a finished one, or null.
let shown = () => null;
export const showing = (picture) => (shown = picture);
export const onStage = () => shown();
const staged = () => shown() ?? (core.isShown("init_image") ? core.get("init_image") : null);

// --- panels

export function drawCore({ element, props }) {
  core = new Form(props.schema, { overrides: draft.core, modes: true, lists });
  modes = props.schema.modes;
  core.mode = modes.includes(draft.mode) ? draft.mode : "text";
  core.shape = draft.shape ?? null;
  readElsewhere = new Set(props.schema.readElsewhere);
  defaultModel = props.schema.defaultModel;
  const home = element.querySelector(".surface");
  home.append(drawModes());
  drawPanel(home, core, { skip: props.schema.header, last: lastSeed, onimage: (_, shape) => useShape(shape) });
  home.querySelector('[data-field="prompt"]').append(drawReadButton());
  home.querySelector(".kind-size").before(painted);
  core.hear((names) => {
    if (names.has("init_image") && !core.get("init_image")) core.shape = null;
    changed();
  });
  values.push([props, request]);
  loadModels();
}

export function drawExtensionPanels({ element, props }) {
  const home = element.querySelector(".surface");
  for (const schema of props.schemas) drawExtensionPanel(home, schema);
  values.push([props, () => Object.fromEntries([...extensions].map(([id, { form }]) => [id, form.values()]))]);
}

function drawExtensionPanel(home, schema) {
  const { id, title } = schema;
  const saved = draft.extensions?.[id] ?? {};
  const extension = { form: new Form(schema, { overrides: saved.overrides }), on: saved.on ?? false };
  const isPainted = [...extension.form.fields.values()].some(({ kind }) => kind === "mask" || kind === "frame");
  extensions.set(id, extension);
  const place = isPainted ? painted : h("div", { id: `extension-${id}` });
  if (!isPainted) home.append(place);
  drawExtension(place, extension.form, {
    title: t(`extension.${id}`, {}, title),
    isOn: () => (isPainted ? core.mode === "inpaint" : extension.on),
    turn: isPainted
      ? null
      : (to) => {
          extension.on = to;
          extension.form.tell([]);
        },
    last: lastSeed,
    onmask: (file) => tell("mask", file),
    refresh: refreshChoices,
    staged,
  });
  if (isPainted) core.hear((names) => names.size > 3 && extension.form.tell([]));
  extension.form.hear(changed);
  if (isOffered(extension.form.rows)) loadChoices();
}

// Lists that declarations only name: files of a folder, rows of a table.
let asking = null;
let asked = 0;
function loadChoices() {
  asked = Date.now();
  asking ??= call("api/choices")
    .then(({ request: own, extensions: offered }) => {
      lists.vaes = own.vaes;
      core.tell(["vae"]);
      for (const [id, { form }] of extensions) {
        form.lists = { ...own, ...offered[id] };
        form.tell([...form.fields.keys()]);
      }
    })
    .catch(() => {}) // the line is down; it asks again when it is back
    .finally(() => (asking = null));
}

// Whoever opens a list wants it as it is now, but not a question for every click.
const refreshChoices = (now = false) => (now || Date.now() - asked > 2000) && loadChoices();

const isOffered = (rows) =>
  rows.flat().some((field) => typeof field.choices === "string" || isOffered(field.rows ?? []));

function drawModes() {
  const choose = (mode) => {
    core.switchTo(mode);
    tell("mode");
  };
  const inputs = modes.map((mode) => [
    mode,
    h("input", { type: "radio", name: "mode", id: `mode-${mode}`, value: mode, onchange: () => choose(mode) }),
  ]);
  const element = h(
    "div",
    { class: "segments modes", role: "radiogroup", "aria-label": t("mode") },
    ...inputs.map(([mode, input]) => h("label", tip(t(`mode.${mode}.help`)), input, h("span", {}, t(`mode.${mode}`)))),
  );
  for (const label of element.children) label.removeAttribute("aria-label");
  const paint = () => inputs.forEach(([mode, input]) => (input.checked = mode === core.mode));
  core.hear(paint);
  paint();
  return element;
}

// A text as A1111 keeps it in pictures, pasted into the prompt, can be taken apart.
const LOOKS_LIKE_PARAMETERS = /\bSteps: *\d+, .*\b(Sampler|Seed|CFG scale|Size): /;

function drawReadButton() {
  const read = h(
    "button",
    {
      type: "button",
      class: "link read",
      id: "read-parameters",
      hidden: true,
      onclick: () => recallText(core.get("prompt")),
    },
    t("prompt.read"),
  );
  core.hear(() => (read.hidden = !LOOKS_LIKE_PARAMETERS.test(core.get("prompt"))));
  return read;
}

const values = []; // [Gradio's component, what it holds]
let saving = 0;
function changed() {
  clearTimeout(saving);
  saving = setTimeout(() => {
    for (const [props, value] of values) props.value = value(); // for events of extensions; Generate asks anew
    keep("draft", dump());
  }, 400);
}

function dump() {
  return {
    core: core.dump(),
    mode: core.mode,
    shape: core.shape,
    extensions: Object.fromEntries([...extensions].map(([id, { form, on }]) => [id, { on, overrides: form.dump() }])),
  };
}

function restore(saved) {
  core.shape = saved.shape;
  core.restore(saved.core);
  core.switchTo(saved.mode);
  core.prefer(chosen()?.defaults ?? {});
  for (const [id, { form, ...extension }] of extensions) {
    extensions.get(id).on = saved.extensions[id]?.on ?? extension.on;
    form.restore(saved.extensions[id]?.overrides ?? {});
  }
}

function lastSeed() {
  const done = [...jobs.jobs.values()].flatMap((job) => job.pictures ?? []);
  return [...done, ...pictures].sort((a, b) => b.id - a.id)[0]?.seed ?? null;
}

// --- the model

export async function loadModels() {
  if (!core) return; // told of new models before the form was drawn, which asks for them
  try {
    models = await call("api/models");
  } catch {
    return; // the line is down; it asks again when it is back
  }
  lists.models = models.map((model) => [model.name, model.title]);
  const wanted = core.get("model");
  if (wanted && !models.some((model) => model.name === wanted && !model.problem)) core.reset("model");
  core.prefer(chosen()?.defaults ?? {});
  tell("models");
  loadChoices();
}

// By any name that a picture's text or A1111 has for it: of two, the one that has it as its own.
function modelCalled(wanted) {
  if (!wanted) return undefined;
  const plain = wanted.replace(/ \[[0-9a-f]{8,64}\]$/, "");
  const file = (model) => model.relative.split("/").pop();
  return (
    models.find(({ name, title }) => wanted === name || wanted === title) ??
    models.find(({ a1111_title, sha256 }) => wanted === a1111_title || (sha256 && wanted === sha256)) ??
    models.find((model) => [model.relative, file(model), file(model).replace(/\.\w+$/, "")].includes(plain))
  );
}

export const chosen = () =>
  [core.get("model"), models.find((model) => model.default)?.name, defaultModel]
    .map(modelCalled)
    .find((model) => model && !model.problem) ??
  models.find((model) => !model.problem) ??
  null;

export function drawModelPicker() {
  const select = drawSelect({ id: "model", ...tip(t("param.model", {}, "Model")) });
  select.addEventListener("change", () => {
    core.set("model", select.value);
    core.prefer(chosen()?.defaults ?? {});
  });
  const paint = () => {
    select.replaceChildren(
      drawFace(),
      ...models.map(({ name, title, problem }) =>
        h("option", { value: name, disabled: Boolean(problem) }, problem ? `${title} – ${problem}` : title),
      ),
    );
    select.value = chosen()?.name ?? "";
    select.parentElement.hidden = !models.length;
  };
  on("models", () => {
    core.hear((names) => names.has("model") && (select.value = chosen()?.name ?? ""));
    paint();
  });
  return h("div", { class: "selecting model", hidden: true }, select, icon("down"));
}

// --- images to start from

function useShape(shape) {
  core.shape = shape;
  const fitting = fitTo(core, shape.width / shape.height);
  core.fill({ [fitting.across.name]: fitting.size[0], [fitting.down.name]: fitting.size[1] });
  tell("image");
}

// An image in the store becomes the one to start from. The new picture gets its size; painted over it comes back in
// its own size anyway, and width x height are what the model works with.
export function startFrom({ id, width, height }) {
  const { across, down, size } = fitTo(core, width / height);
  const isMuch = core.mode === "inpaint" && width * height > 1.6 * size[0] * size[1];
  const inSteps = (value, { min, max, multiple }) =>
    Math.min(max, Math.max(min, Math.round(value / multiple) * multiple));
  const asked = isMuch ? size : [inSteps(width, across), inSteps(height, down)];
  core.shape = { width, height };
  core.fill({ init_image: id, [across.name]: asked[0], [down.name]: asked[1] });
}

export const canInpaint = () => modes.includes("inpaint");

const withImage = (mode) => mode ?? (core.mode === "text" ? "image" : core.mode);

// A finished picture, in the mode asked for or the one that takes images already.
export async function usePicture(picture, mode = null) {
  try {
    const image = await post(`api/pictures/${picture.id}/use`);
    core.switchTo(withImage(mode));
    startFrom(image);
    tell("image");
    toast(t("image.used"), { kind: "done", close: t("close") });
  } catch (error) {
    toast(error.message, { kind: "error", close: t("close") });
  }
}

function uploadImage(file) {
  core.switchTo(withImage());
  return document.querySelector('[data-well="init_image"]').take(file);
}

// --- recalling

export async function recallText(text) {
  try {
    recall(await post("api/infotext", { body: text, type: "text/plain" }));
  } catch (error) {
    toast(error.message, { kind: "error", close: t("close") });
  }
}

async function recallFile(file, otherwise = null) {
  try {
    const answer = await post("api/infotext", { body: file, type: file.type || "application/octet-stream" });
    if (Object.keys(answer.values ?? {}).length) return recall(answer);
    if (otherwise) return otherwise();
    toast(t("recall.none"), { action: { text: t("use"), run: () => uploadImage(file) }, close: t("close") });
  } catch (error) {
    if (otherwise && error.status < 500) return otherwise();
    const action = file.type.startsWith("image/") ? { text: t("use"), run: () => uploadImage(file) } : null;
    toast(error.message, { kind: "error", action, close: t("close") });
  }
}

// Fills the form with what a picture's text says; what the text leaves out had its usual value then.
function recall({ values, fields, read = [], problems = [] }) {
  const before = dump();
  const { extensions: given = {}, ...rest } = values;
  const known = new Set([...readElsewhere, ...read]);
  const fill = (form, from) => {
    const all = {};
    for (const [name, field] of form.fields) {
      if (field.infotext) known.add(field.infotext);
      const said = name in from && (from[name] !== null || field.optional);
      if (said) all[name] = form.coerce(name, from[name]);
      else if (field.infotext && name !== "model") all[name] = field.default;
    }
    form.fill(all);
  };
  const model = modelCalled(rest.model);
  const missing = rest.model && !model ? rest.model : null;
  delete rest.model;
  if (model && !model.problem) core.set("model", model.name);
  core.prefer(chosen()?.defaults ?? {});
  fill(core, rest);
  core.switchTo(rest.init_image ? (isPaintedFor(given) ? "inpaint" : "image") : "text");
  for (const [id, extension] of extensions) {
    extension.on = id in given;
    fill(extension.form, given[id] ?? {});
    extension.form.tell([]);
  }
  const lost = Object.entries(fields).filter(([key]) => !known.has(key));
  const detail = [
    missing ? t("recall.model", { model: missing }) : "",
    ...problems.map(
      ({ field, message }) => `${core.fields.has(field) ? core.label(core.fields.get(field)) : field}: ${message}.`,
    ),
    lost.length ? t("recall.lost", { list: lost.map(([key, value]) => `${key}: ${value}`).join(", ") }) : "",
  ];
  toast(t("recall.done"), {
    kind: "done",
    detail: detail.filter(Boolean).join(" "),
    action: { text: t("undo"), run: () => restore(before) },
    close: t("close"),
  });
}

const isPaintedFor = (given) =>
  Object.keys(given).some((id) =>
    [...(extensions.get(id)?.form.fields.values() ?? [])].some(({ kind }) => kind === "mask" || kind === "frame"),
  );

// What the form calls a key of a picture's text.
export function named(key) {
  const field = [...core.fields.values()].find(({ infotext }) => infotext === key);
  return field ? core.label(field) : key;
}

// --- generating

export function request() {
  const on = [...extensions].filter(([, extension]) => extension.on);
  const values = { ...core.values(), extensions: Object.fromEntries(on.map(([id, { form }]) => [id, form.values()])) };
  return contributors.reduce((request, contributor) => contributor(request), values);
}

let offline = null; // what was said when there was no line to Generate on

// Whether the form can go out; if not, the first field that is wrong is shown and focused.
function isReady() {
  const forms = [core, ...[...extensions.values()].filter((extension) => extension.on).map(({ form }) => form)];
  const wrong = forms.filter((form) => !form.check());
  if (wrong.length) showProblem();
  else if (!jobs.state.online) offline = toast(t("offline.generate"), { kind: "error", close: t("close") });
  return !wrong.length && jobs.state.online;
}

// Whether all that the request names is on the server; if not, Generate is pressed again when it is.
let prepared = false;
function isPrepared() {
  const answers = prepared ? [] : checks.map((asked) => asked());
  if (answers.includes(false)) return false;
  tell("sending");
  const waits = answers.filter((answer) => answer !== true);
  if (!waits.length) return true;
  Promise.all(waits).then(
    () => {
      prepared = true;
      generate();
      prepared = false;
    },
    (error) => {
      tell("refused");
      toast(error.message, { kind: "error", close: t("close") });
    },
  );
  return false;
}

function showProblem() {
  for (const tabs of document.querySelectorAll(".unit-tabs"))
    if (!tabs.querySelector(".wrong[aria-selected=true]")) tabs.querySelector(".wrong")?.click();
  const field = document.querySelector(".field.wrong:not([hidden])");
  field?.scrollIntoView({ block: "nearest" });
  field?.querySelector("input:not([type=range]), textarea, select")?.focus();
}

// The server's answer to Generate: {job}, {problems} or {error}; null when it could not be reached.
export function answered(answer) {
  if (answer?.job) return tell("submitted", answer.job);
  tell("refused");
  const strays = [];
  for (const { field, message } of answer?.problems ?? []) {
    const [first, id, ...name] = field.split(".");
    const form = first === "extensions" ? extensions.get(id)?.form : core;
    const path = first === "extensions" ? name : [first, id, ...name].filter(Boolean);
    if (form?.fields.has(path[0]) && path[0] !== "model") form.refuse(path.join("."), message);
    else strays.push(field ? `${field}: ${message}` : message);
  }
  showProblem();
  if (answer?.error) strays.push(answer.error);
  if (!answer) strays.push(t("failed.sending"));
  if (strays.length) toast(t("failed.refused"), { kind: "error", detail: strays.join("; "), close: t("close") });
}

export const generate = () => document.getElementById("go")?.click();

export function example(prompt) {
  core.set("prompt", prompt);
  core.switchTo("text");
  generate();
}

// --- keys, dropping, pasting

export function startInput() {
  document.addEventListener(
    "click",
    (event) => {
      if (!event.target.closest("#go") || (isReady() && isPrepared())) return;
      event.preventDefault();
      event.stopImmediatePropagation();
    },
    true,
  );
  document.addEventListener("keydown", keys, true);
  document.addEventListener("paste", paste, true);
  jobs.hear(() => jobs.state.online && offline?.remove());
  startDropping();
}

function keys(event) {
  if (event.isComposing) return;
  const isCreating = document.getElementById("go")?.checkVisibility(); // else another tab is in front
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey) && isCreating && !isOpen()) {
    event.preventDefault();
    event.stopPropagation();
    generate();
  } else if (event.key === "Enter" && event.altKey && jobs.running()) {
    event.preventDefault();
    jobs.skip(jobs.running());
  } else if (event.key === "Escape" && !isOpen()) {
    if (!document.dispatchEvent(new CustomEvent("atelier:escape", { cancelable: true }))) event.preventDefault();
    else if (jobs.running()) jobs.stop();
  }
}

const isImage = (file) => file.type.startsWith("image/");

function paste(event) {
  const file = [...event.clipboardData.files].find(isImage);
  if (!file || isOpen()) return;
  event.preventDefault();
  event.stopPropagation();
  const place = added.map((zone) => [zone, document.querySelector(zone.at)]).find(([, at]) => at?.checkVisibility());
  if (place) return place[0].paste([...event.clipboardData.files], place[1]);
  const well = event.target.closest?.(".well.own");
  if (well) return well.take(file);
  const onForm = event.target.closest?.("#params") && !event.target.closest(".well");
  if (onForm) recallFile(file, () => uploadImage(file));
  else uploadImage(file);
}

// Places of other tabs: {at, words(), files(transfer, place), paste(files, place)}.
const added = [];
export const addZone = (zone) => added.push(zone);

// Where something may be dropped, and what happens to it there.
const ZONES = [
  {
    at: ".well.own",
    words: "drop.here",
    file: (file, well) => well.take(file),
    picture: (picture, well) => well.use(picture),
  },
  { at: ".well, #stage", words: "drop.image", file: (file) => uploadImage(file), picture: (p) => usePicture(p) },
  { at: "#params", words: "drop.recall", file: (file) => recallFile(file), picture: (p) => recallText(p.infotext) },
];

function startDropping() {
  const veil = h("div", { id: "veil", hidden: true }, h("span"));
  document.body.append(veil);
  const zoneAt = (event) => {
    for (const zone of [...ZONES, ...added]) {
      const place = event.target.closest?.(zone.at);
      if (place) return { ...zone, place };
    }
    return null;
  };
  const takes = (event) => event.dataTransfer.types.includes("Files") || event.dataTransfer.types.includes(DRAGGED);
  let leaving = 0;
  document.addEventListener("dragover", (event) => {
    if (!takes(event)) return;
    event.preventDefault(); // also beside the zones: a file dropped there must not replace the page
    clearTimeout(leaving);
    const zone = zoneAt(event);
    event.dataTransfer.dropEffect = zone ? "copy" : "none";
    veil.hidden = !zone;
    if (!zone) return;
    const { left, top, width, height } = zone.place.getBoundingClientRect();
    Object.assign(veil.style, { left: `${left}px`, top: `${top}px`, width: `${width}px`, height: `${height}px` });
    veil.firstChild.textContent = typeof zone.words === "string" ? t(zone.words) : zone.words();
  });
  document.addEventListener("dragleave", () => {
    clearTimeout(leaving);
    leaving = setTimeout(() => (veil.hidden = true), 80);
  });
  document.addEventListener(
    "drop",
    (event) => {
      veil.hidden = true;
      if (!takes(event)) return;
      event.preventDefault();
      event.stopPropagation();
      const zone = zoneAt(event);
      if (!zone) return;
      if (zone.files) return zone.files(event.dataTransfer, zone.place);
      const dragged = event.dataTransfer.getData(DRAGGED);
      const picture = dragged && pictures.find(({ id }) => String(id) === dragged);
      if (picture) return zone.picture(picture, zone.place);
      const file = [...event.dataTransfer.files].find(isImage);
      if (file) zone.file(file, zone.place);
      else toast(t("drop.unknown"), { kind: "error", close: t("close") });
    },
    true,
  );
}
