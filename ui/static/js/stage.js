// The middle of the page: what is being drawn, the finished picture, or what to do first.
import { drawActions } from "./actions.js";
import * as canvas from "./canvas.js";
import { cardKey, drawCard, isCard } from "./cards.js";
import * as create from "./create.js";
import { button, h, icon, isOpen, isTaken, keep, kept, reduced, reveal, sentence, tip, toast } from "./dom.js";
import * as jobs from "./jobs.js";
import * as lightbox from "./lightbox.js";
import * as gallery from "./pictures.js";
import { drawSash } from "./sash.js";
import { url } from "./server.js";
import { Viewer } from "./viewer.js";
import { number, seconds, t } from "./words.js";

// What the stage shows: {job: id, index: a picture's place in the job, "all" or null}, {picture}, {batch: pictures}
// {image: true} (the image to start from), {canvas: true} (to be painted on) or {sending: true} (Generate was pressed); null = what to do first.
export let focus = null;
let before = null; // what was shown before a job that came to nothing
const lastPreviews = new Map(); // job id -> preview, also after it was stopped
let ui = null;

export function draw({ element }) {
  const home = element.querySelector(".surface");
  ui = build();
  home.append(...ui.all);
  ui.viewer = new Viewer(ui.room, ui.paper, (z, fitted) => {
    ui.zoom.textContent = `${number(z * 100, z < 0.1 ? 1 : 0)} %`;
    ui.zoom.setAttribute("aria-pressed", String(fitted));
  });
  jobs.hear(onJobs);
  gallery.onPictures(render);
  create.showing(picture);
  create.on("models", render);
  create.on("sending", sending);
  create.on("submitted", submitted);
  create.on("refused", () => focus?.sending && show(before));
  create.on("image", () => {
    if (canvas.isOn()) show({ canvas: true });
    else if (!jobs.running()) show({ image: true });
  });
  create.on("mode", () => (canvas.isOn() ? show({ canvas: true }) : focus?.canvas && show({ image: true })));
  create.core.hear((names) => (names.has("init_image") || names.size > 3) && focus?.image && render());
  document.addEventListener("atelier:escape", (event) => {
    if (ui.details.hidden) return;
    event.preventDefault();
    details(false);
  });
  document.addEventListener("keydown", keys);
  details(kept("details", false));
  if (canvas.isOn()) focus = { canvas: true };
  render();
}

function build() {
  const paper = h("div", { class: "paper" });
  const status = h("div", { class: "status", hidden: true });
  const room = h(
    "div",
    {
      class: "room",
      tabindex: "0",
      role: "group",
      "aria-label": t("stage.label"),
      "aria-keyshortcuts": "F ArrowLeft ArrowRight",
    },
    paper,
    status,
  );
  const card = h("div", { class: "card", hidden: true });
  const grid = h("div", { class: "tiles", hidden: true });
  const thread = h(
    "div",
    { class: "thread", role: "progressbar", "aria-label": t("stage.progress"), hidden: true },
    h("i"),
  );
  const line = h(
    "div",
    { class: "offline", role: "alert", hidden: true },
    icon("offline"),
    h("span", {}, t("offline.lost")),
    h("button", { type: "button", class: "link", onclick: () => jobs.reconnect() }, t("offline.again")),
  );
  const live = h(
    "button",
    { type: "button", class: "live", hidden: true, onclick: () => show({ job: jobs.running()?.id }) },
    h("img", { alt: "" }),
    h("span", {}, t("stage.live")),
  );
  const painting = canvas.build(() => show({ canvas: true }));
  const back = h(
    "button",
    { type: "button", class: "live back", hidden: true, onclick: () => show({ canvas: true }) },
    icon("brush"),
    h("span", {}, t("canvas.back")),
  );
  const film = h("div", { class: "film", role: "listbox", "aria-label": t("film"), hidden: true });
  const meta = h("p", { class: "meta" });
  const zoom = h("button", { type: "button", class: "zoom", ...tip(t("zoom.fit")), onclick: () => toggleZoom() });
  const info = button({
    label: t("details.title"),
    icon: "info",
    id: "details-button",
    "aria-expanded": "false",
    onclick: () => details(ui.details.hidden),
  });
  const expand = button({ label: t("lightbox.open"), icon: "expand", id: "expand", onclick: () => openLightbox() });
  const actions = h("div", { class: "actions" }, ...drawActions(picture));
  const bar = h(
    "footer",
    {},
    h("div", { class: "facts" }, zoom, meta),
    actions,
    h("div", { class: "ends" }, expand, info),
  );
  const body = h("div", { class: "facts-of" });
  const aside = h(
    "aside",
    { class: "details", "aria-label": t("details.title"), hidden: true },
    h(
      "header",
      {},
      h("h2", {}, t("details.title")),
      button({ label: t("close"), icon: "close", onclick: () => details(false) }),
    ),
    body,
  );
  const voice = h("p", { class: "voice", role: "status", "aria-live": "polite" });
  const sash = drawSash();
  return {
    paper,
    room,
    card,
    grid,
    thread,
    line,
    live,
    film,
    meta,
    zoom,
    info,
    expand,
    actions,
    bar,
    voice,
    status,
    body,
    painting,
    back,
    details: aside,
    all: [sash, thread, line, room, card, grid, live, back, film, bar, painting, aside, voice],
  };
}

// --- what is shown

export function show(what) {
  focus = what;
  render();
}

const watchers = new Set();
// Called whenever another picture is on the stage.
export const onShown = (watcher) => watchers.add(watcher);

// Follow a job from now on.
export function look(job) {
  if (focus && !focus.job && !focus.sending) before = focus;
  show({ job: job.id, index: null });
}

// Generate was pressed: that is seen at once, however long the answer takes.
function sending() {
  if (canvas.isOn()) return show({ canvas: true });
  const watched = jobs.jobs.get(focus?.job);
  if (jobs.running() || (watched && !jobs.isOver(watched))) return;
  if (!focus?.sending) before = focus;
  show({ sending: true });
}

// A new job: what is being drawn already stays in view, the new one follows when its turn comes.
function submitted(id) {
  const watched = jobs.jobs.get(focus?.job);
  const running = jobs.running();
  if (canvas.isOn()) show({ canvas: true });
  else if (watched && !jobs.isOver(watched)) show({ job: watched.id, index: null });
  else look(running ?? { id });
  if (running && running.id !== id) toast(t("queue.added"), { kind: "done", close: t("close") });
}

// The finished picture on the stage; null while there is none.
export function picture() {
  if (focus?.picture) return focus.picture;
  const job = jobs.jobs.get(focus?.job);
  const made = job?.pictures ?? [];
  if (!job || focus.index === "all") return null;
  if (typeof focus.index === "number") return [...made, ...job.maps].find((one) => one.index === focus.index) ?? null;
  return jobs.isOver(job) && job.state !== "failed" && made.length === 1 ? made[0] : null;
}

const states = new Map(); // job id -> its state as last heard
let attached = false;

function onJobs({ jobs: news = [] }) {
  for (const job of news) {
    if (job.preview) lastPreviews.set(job.id, job.preview);
    const was = states.get(job.id);
    states.set(job.id, job.state);
    if (was && was !== job.state && jobs.isOver(job)) announce(job);
  }
  for (const id of lastPreviews.keys()) if (!jobs.jobs.has(id)) lastPreviews.delete(id);
  const running = jobs.running();
  const shown = jobs.jobs.get(focus?.job);
  if (jobs.state.known && !attached) {
    attached = true; // a reload or a second tab: back to what runs
    if (running && (!focus || focus.unasked)) focus = { job: running.id, index: null };
  } else if (running && shown && focus.index === null && running.id > shown.id) {
    // what was shown is finished: on to the next
    if (["done", "cancelled"].includes(shown.state)) focus = { job: running.id, index: null };
  }
  render();
}

function announce(job) {
  if (job.id === focus?.job) ui.voice.textContent = t(`voice.${job.state}`);
  else if (job.state === "failed") {
    const action = { text: t("failed.show"), run: () => look(job) };
    const told = toast(t("voice.failed"), { kind: "error", detail: sentence(job.error), action, close: t("close") });
    complaints.set(job.id, told);
  }
}

const complaints = new Map(); // job id -> its toast, until the stage says the same

function render() {
  if (!ui) return;
  const job = jobs.jobs.get(focus?.job) ?? null;
  const kind = kindOf(job);
  if (kind === "failed") complaints.get(job.id)?.remove();
  const shown = picture();
  ui.room.parentElement.dataset.shows = kind;
  ui.line.hidden = jobs.state.online || !jobs.state.known;
  ui.card.hidden = !isCard(kind);
  ui.grid.hidden = kind !== "all";
  ui.room.hidden = isCard(kind) || kind === "all" || kind === "canvas";
  ui.painting.hidden = kind !== "canvas";
  ui.back.hidden = kind === "canvas" || !canvas.isOn();
  if (isCard(kind)) fillCard(kind, job);
  if (kind === "all") drawGrid(batch(job).pictures, (one) => choose(job, one));
  else if (kind === "picture") lay(url(shown.url), shown.width, shown.height, gallery.nameOf(shown));
  else if (kind === "live") layPreview(lastPreviews.get(job.id), job.request);
  else if (kind === "waiting") layBlank(job?.request);
  else if (kind === "image") layImage();
  drawStatus(kind, job);
  drawThread(kind === "canvas" ? canvas.working() : job);
  drawLive(kind === "canvas" ? canvas.working() : job);
  drawFilm(job, shown);
  drawBar(kind, job, shown);
  if (!ui.details.hidden) drawDetails(shown);
  if (shown?.id !== lastShown) {
    lastShown = shown?.id;
    watchers.forEach((watcher) => watcher());
  }
}
let lastShown;

let card = "";
function fillCard(kind, job) {
  const key = cardKey(kind, job);
  if (key === card) return;
  card = key;
  ui.card.className = `card ${kind}`;
  ui.card.replaceChildren(...drawCard(kind, job, before && (() => show(before))));
}

function kindOf(job) {
  if (focus?.picture) return "picture";
  if (focus?.batch) return "all";
  if (focus?.canvas) return canvas.isOn() ? "canvas" : fallback();
  if (focus?.image) return create.core?.isShown("init_image") && create.core.get("init_image") ? "image" : fallback();
  if (!focus) return fallback();
  if (!job && states.has(focus.job)) {
    const made = gallery.ofJob(focus.job).pictures; // too long ago to be among the jobs
    focus = made.length > 1 ? { batch: made } : made.length ? { picture: made[0] } : null;
    return kindOf(null);
  }
  if (!job) return "waiting";
  if (picture()) return "picture";
  if (job.state === "queued") return "waiting";
  if (job.state === "running") return lastPreviews.has(job.id) ? "live" : "waiting";
  if (job.state === "failed") return "failed";
  if (job.pictures?.length) return "all";
  if (job.state === "cancelled" && lastPreviews.has(job.id)) return "live";
  if (job.state === "cancelled" && before) {
    focus = before;
    return kindOf(jobs.jobs.get(focus.job) ?? null);
  }
  return "nothing";
}

// Nothing asked for: the newest picture, or the first steps.
function fallback() {
  if (jobs.state.engine.state === "failed") return "broken";
  const newest = gallery.newest();
  if (!newest) return "empty";
  focus = { picture: newest, unasked: true };
  return "picture";
}

// --- the paper

let laid = null;
let turn = 0;

// Puts a finished picture on the paper once it can be painted, over what lies there.
async function lay(src, width, height, alt) {
  if (laid === src) return;
  laid = src;
  const mine = ++turn;
  const image = new Image();
  Object.assign(image, { src, alt, draggable: false, className: "done" });
  try {
    await image.decode();
  } catch {
    if (mine === turn) toast(t("stage.unreadable"), { kind: "error", close: t("close") });
  }
  if (mine !== turn) return;
  ui.viewer.hold(width, height);
  const under = [...ui.paper.children];
  ui.paper.append(image);
  const fade = image.animate([{ opacity: 0 }, { opacity: 1 }], {
    duration: reduced() || !under.length ? 0 : 240,
    easing: "ease-out",
  });
  fade.onfinish = () => under.forEach((old) => old.remove());
}

function layPreview(src, request) {
  laid = null;
  turn++;
  ui.viewer.hold(request.width, request.height);
  let image = ui.paper.querySelector("img.preview");
  if (!image) {
    image = h("img", { class: "preview", alt: t("stage.preview"), draggable: false });
    ui.paper.replaceChildren(image);
  }
  if (image.src !== src) image.src = src;
}

function layBlank(request) {
  const size = request ?? { width: create.core.get("width"), height: create.core.get("height") };
  laid = null;
  turn++;
  ui.viewer.hold(size.width, size.height);
  if (!ui.paper.querySelector(".blank")) ui.paper.replaceChildren(h("div", { class: "blank" }));
}

function layImage() {
  const src = url(`api/images/${create.core.get("init_image")}`);
  const { width, height } = create.core.shape ?? {
    width: create.core.get("width"),
    height: create.core.get("height"),
  };
  lay(src, width, height, t("param.init_image", {}, "Image"));
}

function drawStatus(kind, job) {
  let words = "";
  if (kind === "waiting") {
    if (jobs.state.engine.state === "starting") words = t("status.engine");
    else if (job?.state === "queued" && jobs.running()) words = jobs.placeWords(job);
    else words = job?.progress ? jobs.describe(job) : t("status.soon");
  } else if (kind === "live" && job.state === "cancelled") words = t("status.stopped");
  else if (kind === "image") words = t("status.image");
  ui.status.hidden = !words;
  ui.status.textContent = words;
  ui.status.classList.toggle("busy", kind === "waiting");
}

function drawThread(job) {
  const live = job?.state === "running" ? job : null;
  ui.thread.hidden = !live;
  if (!live) return;
  const fraction = live.progress?.fraction ?? 0;
  const known = live.progress?.stage === "sampling" || fraction > 0;
  ui.thread.classList.toggle("unknown", !known);
  ui.thread.firstChild.style.transform = known ? `scaleX(${fraction})` : "";
  ui.thread.setAttribute("aria-valuenow", String(Math.round(fraction * 100)));
}

// Something else is being looked at while a job runs: the way back.
function drawLive(job) {
  const running = jobs.running();
  const away = running && (running.id !== job?.id || typeof focus.index === "number" || focus.index === "all");
  ui.live.hidden = !away;
  const preview = lastPreviews.get(running?.id);
  ui.live.firstChild.hidden = !preview;
  if (away && preview) ui.live.firstChild.src = preview;
}

// What belongs together: of the job in question, or of the one that a finished picture came from.
function batch(job) {
  return job ?? gallery.ofJob((focus?.picture ?? focus?.batch?.[0])?.job);
}

function choose(job, one) {
  show(job ? { job: job.id, index: one.index } : { picture: one });
}

// Them side by side, with places for those to come.
function drawFilm(job, shown) {
  const { pictures: made, maps } = batch(job);
  const total = job && !jobs.isOver(job) ? job.request.batch_size * job.request.n_iter : made.length;
  ui.film.hidden = total + maps.length < 2;
  if (ui.film.hidden) return;
  const all = focus.batch || focus.index === "all" || (!shown && Boolean(job) && jobs.isOver(job));
  const key = JSON.stringify([job?.id, [...made, ...maps].map((one) => one.id), total, shown?.id, all, focus.index]);
  if (ui.film.dataset.key !== key) {
    ui.film.dataset.key = key;
    const tile = (selected, label, run, inside) => {
      const attributes = {
        type: "button",
        role: "option",
        class: "tile",
        "aria-selected": String(Boolean(selected)),
        ...tip(label),
      };
      return h("button", { ...attributes, onclick: run }, inside);
    };
    const thumb = (label) => (one) => {
      const image = h("img", { src: url(one.thumb), alt: "", draggable: false });
      return tile(one.id === shown?.id, label(one), () => choose(job, one), image);
    };
    const tiles = made.map(thumb((one) => t("film.picture", { n: one.index + 1 })));
    if (made.length > 1) {
      const run = () => show(job ? { job: job.id, index: "all" } : { batch: made });
      tiles.unshift(tile(all, t("film.all"), run, icon("grid")));
    }
    if (total > made.length) {
      const now = h("img", { alt: "", class: "now", hidden: true });
      tiles.push(tile(focus.index === null, t("stage.live"), () => show({ job: job.id, index: null }), now));
      for (let i = made.length + 1; i < total; i++) tiles.push(h("span", { class: "tile to-come" }));
    }
    tiles.push(...maps.map(thumb(() => t("map.title"))).map((one) => h("span", { class: "map", data: { mark: t("map") } }, one)));
    ui.film.replaceChildren(...tiles);
    const selected = ui.film.querySelector('[aria-selected="true"]');
    if (selected) reveal(selected, ui.film);
  }
  const now = ui.film.querySelector("img.now");
  const preview = job?.state === "running" ? lastPreviews.get(job.id) : null;
  if (now) now.hidden = !preview;
  if (now && preview) now.src = preview;
}

function drawGrid(made, choose) {
  const key = made.map((one) => one.id).join();
  if (ui.grid.dataset.key === key) return;
  ui.grid.dataset.key = key;
  const columns = Math.ceil(Math.sqrt(made.length));
  ui.grid.style.setProperty("--columns", columns);
  ui.grid.style.setProperty("--rows", Math.ceil(made.length / columns));
  const tile = (one) => {
    const image = h("img", {
      src: url(one.url),
      alt: gallery.nameOf(one),
      width: one.width,
      height: one.height,
      draggable: false,
    });
    const attributes = { type: "button", ...tip(t("film.picture", { n: one.index + 1 })), draggable: true };
    return h(
      "button",
      { ...attributes, onclick: () => choose(one), ondragstart: (event) => gallery.drag(event, one) },
      image,
    );
  };
  ui.grid.replaceChildren(...made.map(tile));
}

// --- the bar below, details, keys

function drawBar(kind, job, shown) {
  const seen = ["picture", "live", "waiting", "image"].includes(kind);
  ui.bar.hidden = !seen && kind !== "all";
  ui.zoom.hidden = !["picture", "live", "image"].includes(kind);
  for (const action of [...ui.actions.children, ui.expand, ui.info]) action.disabled = !shown;
  ui.actions.classList.toggle("away", !shown);
  let words = "";
  if (shown) {
    words = [t("meta.seed", { seed: shown.seed }), `${shown.width}\u00a0×\u00a0${shown.height}`, tookOf(shown)]
      .filter(Boolean)
      .join(" · ");
  } else if (job?.state === "running" && (kind === "live" || kind === "waiting")) words = jobs.describe(job);
  else if (kind === "all") words = t("meta.all", { n: batch(job).pictures.length });
  ui.meta.textContent = ui.meta.dataset.tip = words; // it may be cut off
}

function tookOf(shown) {
  const job = jobs.jobs.get(shown.job);
  if (!job?.started || !job.finished) return "";
  return seconds((new Date(job.finished) - new Date(job.started)) / 1000);
}

function details(open) {
  ui.details.hidden = !open;
  ui.info.setAttribute("aria-expanded", String(open));
  ui.room.parentElement.classList.toggle("with-details", open);
  keep("details", open);
  described = null;
  if (open) drawDetails(picture());
  else if (ui.details.contains(document.activeElement)) ui.info.focus();
}

let described = null;
function drawDetails(shown) {
  ui.details.classList.toggle("none", !shown);
  if (shown?.id === described) return;
  described = shown?.id ?? null;
  if (shown) gallery.drawDetails(ui.body, shown, create.named);
  else ui.body.replaceChildren(h("p", { class: "nothing" }, t("details.none")));
}

function toggleZoom() {
  if (ui.viewer.fitted) ui.viewer.zoom(1);
  else ui.viewer.fit();
}

function openLightbox() {
  if (picture()) large(picture());
}

// Over the whole window; the stage follows.
export function large(one) {
  lightbox.open(one, (last) => last.id !== picture()?.id && show({ picture: last }));
}

function keys(event) {
  if (!ui.bar.checkVisibility() || isOpen() || isTaken(event)) return;
  const { viewer } = ui;
  const run = {
    ArrowLeft: () => step(-1),
    ArrowRight: () => step(1),
    Enter: openLightbox,
    f: openLightbox,
    i: () => details(ui.details.hidden),
    "+": () => viewer.zoom(viewer.z * 1.25),
    "=": () => viewer.zoom(viewer.z * 1.25),
    "-": () => viewer.zoom(viewer.z / 1.25),
    0: () => viewer.fit(),
    1: () => viewer.zoom(1),
  }[event.key];
  if (!run || event.ctrlKey || event.metaKey || event.altKey) return;
  event.preventDefault();
  run();
}

// To the neighbour in the history: +1 older, -1 newer.
function step(by) {
  const shown = picture();
  const at = gallery.pictures.findIndex((one) => one.id === shown?.id);
  const next = gallery.pictures[at + by];
  if (at >= 0 && next) show({ picture: next });
}
