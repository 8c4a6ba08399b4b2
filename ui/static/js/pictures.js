// Finished pictures, newest first, and what is known of one.
import { h, sentence } from "./dom.js";
import { hear } from "./jobs.js";
import { call, post, url } from "./server.js";
import { t } from "./words.js";

export const pictures = []; // newest first
export const state = { loaded: false, more: true };
const hearers = new Set();
const PAGE = 60;
let cursor = null;
let loading = null;

// A control map that was kept with the pictures of its job.
export const isMap = (picture) => picture.role === "map";
export const newest = () => pictures.find((picture) => !isMap(picture));
export function nameOf(picture) {
  if (isMap(picture)) return t("map.title");
  const [first] = (picture.infotext ?? "").split("\n");
  return first && !WITHOUT_PROMPT.test(first) ? first : t("stage.picture");
}

const WITHOUT_PROMPT = /^(Steps: \d|Negative prompt: )/; // how a text then begins

export const onPictures = (hearer) => hearers.add(hearer);

const known = new Set();
function add(given) {
  const fresh = given.filter((picture) => !known.has(picture.id));
  if (!fresh.length) return;
  for (const picture of fresh) known.add(picture.id);
  pictures.push(...fresh);
  pictures.sort((a, b) => b.id - a.id);
  hearers.forEach((hearer) => hearer());
}

export function start() {
  hear(({ jobs = [] }) => add(jobs.flatMap((job) => [...(job.pictures ?? []), ...(job.maps ?? [])])));
  return loadMore();
}

export function loadMore() {
  if (!state.more) return loading;
  loading ??= load().finally(() => (loading = null));
  return loading;
}

async function load() {
  try {
    const before = cursor === null ? "" : `&before=${cursor}`;
    const page = (await call(`api/pictures?limit=${PAGE}${before}`)).pictures;
    state.more = page.length === PAGE;
    if (page.length) cursor = page[page.length - 1].id;
    add(page);
  } catch {
    // the line is down; the next scroll tries again
  }
  state.loaded = true;
  hearers.forEach((hearer) => hearer());
}

// As the server's view of a job has them.
export function ofJob(id) {
  const all = pictures.filter((one) => one.job === id).sort((a, b) => a.index - b.index);
  return { pictures: all.filter((one) => !isMap(one)), maps: all.filter(isMap) };
}

// For dragging out to the desktop, into another program, or onto a place of this page.
export function drag(event, picture) {
  const address = url(picture.url);
  event.dataTransfer.setData(DRAGGED, String(picture.id));
  event.dataTransfer.setData("text/uri-list", address);
  event.dataTransfer.setData("DownloadURL", `image/png:atelier-${picture.id}.png:${address}`);
  event.dataTransfer.effectAllowed = "copy";
}

export const DRAGGED = "application/x-atelier-picture";

const parsed = new Map();

// The picture's text taken apart by the server, for reading.
export function parameters(picture) {
  if (!parsed.has(picture.id))
    parsed.set(picture.id, post("api/infotext", { body: picture.infotext, type: "text/plain" }));
  return parsed.get(picture.id);
}

// What is known of a picture, to be read; `named` gives the words for a key of its text.
export function drawDetails(home, picture, named) {
  const pair = (label, value) =>
    h("div", { class: String(value).length > 16 ? "long" : "" }, h("dt", {}, label), h("dd", {}, String(value)));
  const facts = h("dl");
  const sources = h("div", { class: "sources", hidden: true });
  home.replaceChildren(facts, sources, h("h3", {}, t("details.raw")), h("pre", {}, picture.infotext ?? ""));
  parameters(picture).then(
    ({ text, fields, values }) => {
      drawSources(sources, values);
      const [prompt, negative] = text.split(/\nNegative prompt: ?/);
      const lines = (negative ?? prompt).split("\n").slice(0, -1).join("\n");
      const { Size, Version, ...others } = fields;
      const pairs = [
        [t("param.prompt", {}, "Prompt"), negative === undefined ? lines : prompt],
        [t("param.negative_prompt", {}, "Negative prompt"), negative === undefined ? "" : lines],
        [t("details.kind"), isMap(picture) ? t("map.title") : ""],
        [t("size.label"), `${picture.width} × ${picture.height}`],
        ...Object.entries(others).map(([key, value]) => [named(key), value]),
        [t("details.made"), new Date(picture.created).toLocaleString(document.documentElement.lang)],
        [t("details.by"), Version ?? ""],
      ];
      facts.replaceChildren(...pairs.filter(([, value]) => value).map(([label, value]) => pair(label, value)));
    },
    () => {}, // the text below says the same
  );
}

// The images that its request names: what it started from, masks, control maps.
function drawSources(home, values) {
  const named = [...refsIn(values ?? {}, "param")];
  home.hidden = !named.length;
  home.replaceChildren(
    ...named.map(([key, ref]) => {
      const label = t(key, {}, sentence(key.split(".").at(-1).replaceAll("_", " ")));
      const picture = h("img", { src: url(`api/images/${ref}`), alt: label, loading: "lazy" });
      const link = h("a", { href: picture.src, target: "_blank", class: "source" }, picture, h("span", {}, label));
      picture.addEventListener("error", () => link.remove()); // it is not here any more
      return link;
    }),
  );
}

// [key of its words, name] of each image, as deep as they lie: units have numbers, which are in no key.
function* refsIn(values, key) {
  for (const [name, value] of Object.entries(values)) {
    const inner = name === "extensions" || Array.isArray(values) ? key : `${key}.${name}`;
    if (typeof value === "string" && /^[0-9a-f]{64}$/.test(value)) yield [inner, value];
    else if (value && typeof value === "object") yield* refsIn(value, inner);
  }
}
