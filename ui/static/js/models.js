// The Models tab: the models that are here as cards, searched on the server a page at a time.
import * as create from "./create.js";
import { button, drawSelect, h, icon, sentence, toast } from "./dom.js";
import { openAbout } from "./models-about.js";
import { drawGet, showGet } from "./models-get.js";
import { drawMerge, showMerge } from "./models-merge.js";
import { drawTrash, showTrash } from "./models-trash.js";
import { startWork } from "./models-work.js";
import { call, url } from "./server.js";
import { number, t } from "./words.js";

const PAGE = 60;
const MOST = 200; // that the server gives at once
const SORTS = ["name", "newest", "largest"];
const VIEWS = { here: null, get: showGet, merge: showMerge, trash: showTrash };
const asked = { q: "", kind: "checkpoint", family: "", sort: "name", problems: false };

let ui = null;
let cards = [];
let total = 0;
let turn = 0; // answers that come late are not shown
let timer = 0;
let first = "here"; // the view that the tab opens with

export function draw({ element }) {
  ui = build();
  element.querySelector(".surface").append(ui.home);
  new IntersectionObserver((seen) => seen.some((one) => one.isIntersecting) && load()).observe(ui.home);
  startWork(ui.work, reload);
  show(first);
}

// --- the frame

function build() {
  const views = Object.keys(VIEWS).map((name) =>
    h(
      "label",
      {},
      h("input", { type: "radio", name: "models-view", value: name, checked: name === "here", onchange: () => show(name) }),
      h("span", {}, t(`models.view.${name}`)),
    ),
  );
  const panes = {
    here: buildHere(),
    get: h("section", { class: "pane", hidden: true }),
    merge: h("section", { class: "pane", hidden: true }),
    trash: h("section", { class: "pane", hidden: true }),
  };
  drawGet(panes.get, show);
  drawMerge(panes.merge);
  drawTrash(panes.trash, reload);
  const work = h("div", { class: "work", "aria-live": "polite" });
  const home = h(
    "div",
    { class: "page", tabindex: "-1" },
    h(
      "header",
      { class: "top" },
      h("h2", {}, t("models")),
      h("div", { class: "segments views", role: "radiogroup", "aria-label": t("models") }, ...views),
    ),
    work,
    ...Object.values(panes),
  );
  return { ...here, home, panes, work };
}

export function show(name) {
  first = name;
  if (!ui) return; // the tab has not been drawn yet
  for (const [pane, element] of Object.entries(ui.panes)) element.hidden = pane !== name;
  for (const input of ui.home.querySelectorAll("input[name=models-view]")) input.checked = input.value === name;
  VIEWS[name]?.();
  if (name === "here") load();
}

let here = {};

function buildHere() {
  const search = h("input", {
    type: "search",
    class: "line",
    id: "models-search",
    placeholder: t("models.search"),
    "aria-label": t("models.search"),
    oninput: () => {
      clearTimeout(timer);
      timer = setTimeout(() => ask({ q: search.value }), 150);
    },
  });
  const family = drawSelect({ id: "models-family", "aria-label": t("models.family"), onchange: () => ask({ family: family.value }) });
  const sort = drawSelect(
    { id: "models-sort", "aria-label": t("models.sort"), onchange: () => ask({ sort: sort.value }) },
    ...SORTS.map((way) => h("option", { value: way }, t(`models.sort.${way}`))),
  );
  const kinds = h("div", { class: "kinds", role: "group", "aria-label": t("models.kind") });
  const count = h("p", { class: "small count", role: "status" });
  const grid = h("div", { class: "grid" });
  const end = h("div", { class: "end" }); // when it comes into view, the next page is due
  const nearing = new IntersectionObserver((seen) => seen.some((one) => one.isIntersecting) && more(), { rootMargin: "600px" });
  nearing.observe(end);
  here = { search, family, sort, kinds, count, grid, end, nearing };
  const select = (one) => h("div", { class: "selecting" }, one, icon("down"));
  return h("section", { class: "pane" }, kinds, h("div", { class: "bar" }, search, select(family), select(sort)), count, grid, end);
}

// --- what is there

function ask(changed) {
  Object.assign(asked, changed);
  load();
}

const load = () => fetchCards(0, PAGE);
const more = () => cards.length && cards.length < total && fetchCards(cards.length, PAGE);

// Some have come, gone or changed: as many are shown as before.
export const refresh = () => ui?.home.checkVisibility() && fetchCards(0, Math.max(PAGE, cards.length));

export function reload() {
  refresh();
  create.loadModels();
}

async function fetchCards(offset, count) {
  const mine = ++turn;
  const found = [];
  let answer;
  do {
    const query = new URLSearchParams({ ...asked, offset: offset + found.length, limit: Math.min(MOST, count - found.length) });
    try {
      answer = await call(`api/models/search?${query}`);
    } catch (error) {
      if (mine === turn) toast(error.message, { kind: "error", close: t("close") });
      return;
    }
    if (mine !== turn) return;
    found.push(...answer.models);
  } while (answer.models.length && found.length < count);
  total = answer.total;
  paintFilters(answer);
  ui.count.textContent = total ? t("models.count", { n: number(total, 0), count: total }) : "";
  paintCards(offset, found);
}

function paintCards(offset, found) {
  if (!offset && found.length && JSON.stringify(found) === JSON.stringify(cards)) return; // nobody loses their place
  cards = [...cards.slice(0, offset), ...found];
  const focused = document.activeElement?.dataset.model;
  const drawn = found.map(drawCard);
  if (offset) ui.grid.append(...drawn);
  else ui.grid.replaceChildren(...(drawn.length ? drawn : [drawNothing()]));
  drawn.find((card) => card.dataset.model === focused)?.focus({ preventScroll: true });
  ui.nearing.unobserve(ui.end); // on a large screen the end may still be near
  ui.nearing.observe(ui.end);
}

function paintFilters({ kinds, families, problems, names }) {
  const chip = (text, n, pressed, run) =>
    h("button", { type: "button", class: "chip", "aria-pressed": String(pressed), onclick: run }, text, h("small", {}, number(n, 0)));
  const known = Object.keys(kinds).filter(Boolean).sort((a, b) => order(a) - order(b));
  const all = Object.values(kinds).reduce((sum, n) => sum + n, 0);
  ui.kinds.replaceChildren(
    chip(t("models.all"), all, !asked.kind && !asked.problems, () => ask({ kind: "", problems: false })),
    ...known.map((kind) =>
      chip(kindName(kind, Infinity), kinds[kind], asked.kind === kind && !asked.problems, () => ask({ kind, problems: false })),
    ),
    problems.all
      ? chip(t("models.problems"), problems.all, asked.problems, () => ask({ kind: "", problems: !asked.problems }))
      : "",
  );
  const options = Object.keys(families).map((family) => h("option", { value: family }, names[family] ?? family));
  ui.family.replaceChildren(h("option", { value: "" }, t("models.family.all")), ...options);
  ui.family.value = asked.family;
}

const KINDS = ["checkpoint", "diffusion_model", "lora", "vae", "controlnet", "embedding", "upscaler", "text_encoder"];
const order = (kind) => (KINDS.includes(kind) ? KINDS.indexOf(kind) : KINDS.length);
export const kindName = (kind, count = 1) => t(`models.kind.${kind}`, { count }, kind.replaceAll("_", " "));

export const size = (bytes) => {
  const [amount, unit] = bytes >= 1e9 ? [bytes / 1e9, "GB"] : [bytes / 1e6, "MB"];
  return `${number(amount, amount < 10 ? 1 : 0)} ${unit}`;
};

function drawNothing() {
  return h(
    "div",
    { class: "nothing" },
    h("p", {}, t(asked.q || asked.family ? "models.nothing" : "models.none")),
    button({ text: t("models.view.get"), icon: "download", onclick: () => show("get") }),
  );
}

export function drawFaceOf(model) {
  return model.preview
    ? h("img", { src: url(model.preview), alt: "", loading: "lazy" })
    : h("span", { class: `blank ${model.family}`, "aria-hidden": "true" }, model.title.slice(0, 1).toUpperCase());
}

function drawCard(model) {
  const facts = [model.precision, model.size ? size(model.size) : "", model.root].filter(Boolean).join(" · ");
  return h(
    "button",
    {
      type: "button",
      class: `model-card ${model.problem ? "broken" : ""}`,
      data: { model: model.name },
      onclick: () => openAbout(model.id, { changed: reload, merge: (id) => (show("merge"), showMerge(id)) }),
    },
    drawFaceOf(model),
    model.badge ? h("span", { class: "badge" }, model.badge) : null,
    h(
      "span",
      { class: "words" },
      h("strong", {}, model.title),
      model.problem ? h("small", { class: "problem" }, sentence(model.problem)) : h("small", {}, facts),
    ),
  );
}
