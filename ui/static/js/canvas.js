// Inpainting and outpainting on the stage: what is painted goes into the form, what comes of it is a candidate.
// Which extension takes the mask and which the frame is read from their declarations: fields of these two kinds.
import { drawBar } from "./canvas-bar.js";
import { Board, LARGEST } from "./canvas-board.js";
import { SIDES } from "./canvas-frame.js";
import { blackAndWhite } from "./canvas-png.js";
import { drawStaging } from "./canvas-staging.js";
import * as create from "./create.js";
import { h, icon, isOpen, isTaken, keep, kept, tip, toast } from "./dom.js";
import * as jobs from "./jobs.js";
import * as gallery from "./pictures.js";
import { post, url } from "./server.js";
import { number, t } from "./words.js";

const PAUSE = 350; // ms of rest after a stroke before the mask goes to the server
const MODE = "inpaint";

let board = null;
let ui = null;
let staging = null;
let opened = () => {};
const saved = { ref: null, sketch: null, bakes: {}, discarded: [], ...kept("canvas", {}) };
const previews = new Map(); // job id -> its last preview
let baked = null; // picture and mask as they go out where there are colours: {init_image, mask}
let loading = null; // the image that is on its way onto the board
let sent = null; // the mask as the server has it

export const isOn = () => create.core.mode === MODE;

// The canvas's element; `show` puts it on the stage.
export function build(show) {
  opened = show;
  board = new Board();
  board.limit = limit;
  const zoom = h("button", { type: "button", class: "zoom", ...tip(t("zoom.fit")), onclick: toggleZoom });
  const meta = h("p", { class: "meta" });
  staging = drawStaging(board, { candidates, coming, isOver }, { accept, discard, again });
  const card = drawEmpty();
  const footer = h("footer", {}, h("div", { class: "facts" }, zoom, meta), staging.actions);
  const element = h(
    "section",
    { class: "canvas", "aria-label": t("canvas.label") },
    drawBar(board),
    board.room,
    card,
    staging.list,
    footer,
  );
  ui = { element, zoom, meta, card };
  board.hear(changed);
  create.core.hear((names) => names.has("init_image") && sync());
  create.on("image", forget);
  create.on("mask", takeMask);
  create.on("submitted", (id) => isOn() && staging.choose({ job: id }));
  create.contribute(contribute);
  create.check(check);
  jobs.hear(heard);
  gallery.onPictures(() => staging.paint());
  document.addEventListener("keydown", keys);
  document.addEventListener("atelier:escape", (event) => {
    if (!isVisible() || !(board.gesture || staging.chosen())) return;
    event.preventDefault();
    if (board.gesture) board.stop();
    else staging.choose(null);
  });
  sync();
  return element;
}

const isVisible = () => Boolean(ui?.element.offsetParent);

// --- who takes what is painted

function taker(kind) {
  for (const [id, { form }] of create.extensions) {
    const fields = [...form.fields.values()].filter((field) => field.kind === kind);
    if (fields.length) return { id, form, fields };
  }
  return null;
}

const masking = () => taker("mask");
const framing = () => taker("frame");
const maskField = () => masking()?.fields[0].name;

// An outpainting extension names the fields of its frame after the sides.
const sideOf = (side) => framing()?.fields.find(({ name }) => name === side);

function limit(side) {
  const across = side === "left" || side === "right";
  const sizes = [...create.core.fields.values()].filter(({ kind }) => kind === "size");
  const size = sizes[across ? 0 : 1]?.max ?? 4096;
  const { left, top, right, bottom } = board.frame.sides;
  const others = { left: right, right: left, top: bottom, bottom: top }[side];
  return Math.max(0, Math.min(sideOf(side)?.max ?? 0, size - (across ? board.view.width : board.view.height) - others));
}

// --- form -> board

function forget() {
  const { form } = masking() ?? {};
  form?.set(maskField(), null);
  Object.assign(saved, { ref: null, sketch: null, bakes: {}, discarded: [] });
  ask({});
  if (isOn()) opened();
}

// What somebody else has put into the form: a mask recalled or taken away, a frame typed in the panel.
const heardOf = new Set();
function watch(form, run) {
  if (!form || heardOf.has(form)) return;
  heardOf.add(form);
  form.hear(run);
}

async function masked() {
  const ref = masking().form.get(maskField());
  if (ref === sent || loading || !board.picture) return;
  sent = ref;
  const { picture } = board;
  const pixels = await pixelsOf(ref, picture.width, picture.height);
  if (picture !== board.picture || sent !== ref) return;
  if (pixels) board.takeMask(pixels);
  else board.clear("mask");
}

function framed() {
  const sides = sidesAsked();
  const isOther = SIDES.some((side) => sides[side] !== board.frame.sides[side]);
  if (isOther && board.picture && !loading && SIDES.every((side) => sides[side] >= 0)) board.frame.set(sides);
}

// All at once: the form tells of each change.
function ask(sides) {
  framing()?.form.fill(Object.fromEntries(SIDES.filter(sideOf).map((side) => [side, sides[side] ?? 0])));
}

const sidesAsked = () => Object.fromEntries(SIDES.map((side) => [side, sideOf(side) ? framing().form.get(side) : 0]));

async function sync() {
  watch(masking()?.form, masked);
  watch(framing()?.form, framed);
  const ref = create.core.get("init_image");
  ui.card.hidden = Boolean(ref);
  ui.element.classList.toggle("empty", !ref);
  board.works = framing() ? ["mask", "sketch", "frame"] : ["mask", "sketch"];
  if (!isOn() || !ref || ref === board.picture?.ref || ref === loading) return;
  loading = ref;
  try {
    const image = await load(ref);
    if (loading !== ref) return;
    const { naturalWidth: width, naturalHeight: height } = image;
    if (width * height > LARGEST) throw new Error(t("canvas.tooLarge", { width, height }));
    const [mask, sketch] = await Promise.all([
      pixelsOf(masking()?.form.get(maskField()), width, height),
      pixelsOf(saved.ref === ref ? saved.sketch : null, width, height),
    ]);
    if (loading !== ref) return;
    board.start({ picture: { ref, image, width, height }, sides: sidesAsked() });
    if (mask) board.takeMask(mask);
    if (sketch) board.takeSketch(sketch);
    board.history.clear();
    clearTimeout(timer);
    isDirty = false;
    sent = masking()?.form.get(maskField()) ?? null;
    if (saved.ref !== ref) Object.assign(saved, { ref, sketch: null });
    keep("canvas", saved);
    create.core.shape = { width, height };
  } catch (error) {
    toast(error.message || t("image.gone"), { kind: "error", close: t("close") });
  } finally {
    if (loading === ref) loading = null;
  }
}

async function load(ref) {
  const image = new Image();
  image.src = url(`api/images/${ref}`);
  try {
    await image.decode();
  } catch {
    throw new Error(t("image.gone"));
  }
  return image;
}

// An uploaded image's pixels, at the picture's size; null where there is none any more.
async function pixelsOf(ref, width, height) {
  if (!ref) return null;
  try {
    return read(await load(ref), width, height);
  } catch {
    return null;
  }
}

function read(image, width, height) {
  const context = h("canvas", { width, height }).getContext("2d", { willReadFrequently: true });
  context.imageSmoothingEnabled = false;
  context.drawImage(image, 0, 0, width, height);
  return context.getImageData(0, 0, width, height);
}

// A mask from a file: white or opaque is painted.
async function takeMask(file) {
  if (!board.picture) return;
  const image = new Image();
  image.src = URL.createObjectURL(file);
  try {
    await image.decode();
    board.takeMask(read(image, board.picture.width, board.picture.height));
  } catch {
    toast(t("mask.unreadable"), { kind: "error", close: t("close") });
  } finally {
    URL.revokeObjectURL(image.src);
  }
}

// --- board -> form

function changed(what) {
  if (what === "view") paintFacts();
  if (what === "painted" || what === "picture") {
    baked = null;
    schedule();
  }
  if (what === "frame" || what === "picture") ask(board.frame.sides);
  if (what === "picture") follow();
  if (["picture", "frame", "painted"].includes(what)) paintFacts();
}

// The form has the picture that the board shows, also after an accepted one was taken back.
function follow() {
  const { ref, width, height } = board.picture;
  if (create.core.get("init_image") !== ref) create.startFrom({ id: ref, width, height });
  if (saved.ref && saved.ref !== ref) Object.assign(saved, { ref, sketch: null });
  keep("canvas", saved);
  staging.paint();
}

let timer = 0;
let isDirty = false;
let saving = Promise.resolve();

function schedule() {
  isDirty = true;
  clearTimeout(timer);
  timer = setTimeout(rested, PAUSE);
}

function rested() {
  if (board.gesture)
    schedule(); // never in the middle of a stroke
  else flush().catch((error) => toast(error.message, { kind: "error", close: t("close") }));
}

// Everything painted is on the server and named in the form.
function flush() {
  clearTimeout(timer);
  saving = saving.catch(() => {}).then(save);
  return saving;
}

async function save() {
  if (!isDirty || !board.picture) return;
  isDirty = false;
  const { picture, layers } = board;
  try {
    const [mask, sketch] = await Promise.all([
      sendMask(picture, layers.mask),
      layers.sketch?.count() ? send(await board.sketchFile()) : null,
    ]);
    if (picture !== board.picture) return;
    sent = mask;
    masking()?.form.set(maskField(), mask);
    Object.assign(saved, { ref: picture.ref, sketch });
    keep("canvas", saved);
  } catch (error) {
    isDirty = true;
    throw error;
  }
}

async function sendMask({ width, height }, ...layers) {
  const file = await blackAndWhite(width, height, ...layers.map(({ pixels }) => pixels));
  return file && send(file);
}

const send = async (body) => (await post("api/images", { body, type: "image/png" })).id;

// With colours: the picture under them, and a mask that covers them too.
async function bake() {
  const { picture, layers } = board;
  const { mask, sketch } = layers;
  const [init_image, union] = await Promise.all([send(await board.flatFile()), sendMask(picture, mask, sketch)]);
  baked = { init_image, mask: union };
  saved.bakes[init_image] = picture.ref;
  keep("canvas", saved);
}

// What takes part: a picture is either painted over or grown. Where both are prepared, what is being worked on counts.
function taking() {
  if (!isOn() || !board?.picture) return null;
  const { frame, layers, work } = board;
  const isPainted = Boolean(layers.mask.count() || layers.sketch?.count());
  const asks = framing()?.fields[0] && (frame.isGrown || (work === "frame" && isFramedInWords()));
  if (asks && (work === "frame" || !isPainted)) return "frame";
  return isPainted ? "mask" : null;
}

// The panel can ask for more than the frame shows.
function isFramedInWords() {
  const { form } = framing();
  return [...form.fields.values()].some(({ kind, name }) => kind !== "frame" && form.isChanged(name));
}

// Before sending: true, false (nothing to do, said why) or a promise.
function check() {
  if (!isOn() || !board.picture) return true; // that an image is missing is said at its field
  const what = taking();
  if (!what) {
    toast(t("canvas.nothing"), { close: t("close") });
    opened();
    return false;
  }
  if (what === "mask" && board.frame.isGrown) toast(t("canvas.frameWaits"), { close: t("close") });
  const hasColours = what === "mask" && Boolean(board.layers.sketch?.count());
  if (!isDirty && (baked || !hasColours)) return saving.then(() => true);
  return flush()
    .then(() => (hasColours && !baked ? bake() : null))
    .then(() => true);
}

// What the form sends: the extensions that are painted for take part in this mode only.
function contribute(request) {
  const { [masking()?.id]: mask, [framing()?.id]: frame, ...extensions } = request.extensions;
  const what = taking();
  if (what === "frame") return { ...request, extensions: { ...extensions, [framing().id]: framing().form.values() } };
  if (what !== "mask") return { ...request, extensions };
  const { id, form } = masking();
  const given = { ...form.values(), [maskField()]: baked?.mask ?? form.get(maskField()) };
  return { ...request, ...(baked ? { init_image: baked.init_image } : {}), extensions: { ...extensions, [id]: given } };
}

// --- what comes of it

function isOurs({ request }) {
  const from = saved.bakes[request.init_image] ?? request.init_image;
  const takers = [masking()?.id, framing()?.id];
  return Boolean(board.picture) && from === board.picture.ref && takers.some((id) => id in (request.extensions ?? {}));
}

const ours = () => [...jobs.jobs.values()].filter(isOurs).sort((a, b) => a.id - b.id);

function candidates() {
  return ours()
    .flatMap((job) =>
      (job.pictures ?? []).map((picture) => ({ picture, request: job.request, place: place(job.request, picture) })),
    )
    .filter(({ picture }) => !saved.discarded.includes(picture.id));
}

const coming = () =>
  ours()
    .filter((job) => !jobs.isOver(job))
    .map((job) => ({
      id: job.id,
      preview: previews.get(job.id),
      place: part(place(job.request), job.progress?.region),
    }));

// A preview may show a part only, "512x384+64+0".
function part(whole, region) {
  const found = /^(\d+)x(\d+)\+(\d+)\+(\d+)$/.exec(region ?? "");
  if (!found) return whole;
  const [width, height, left, top] = found.slice(1).map(Number);
  return { left: whole.left + left, top: whole.top + top, width, height };
}

const isOver = (id) => jobs.jobs.has(id) && jobs.isOver(jobs.jobs.get(id));

// The job at work on this picture.
export const working = () => ours().find((job) => job.state === "running") ?? null;

// Where its result lies on the picture. What it grew beyond its frame, to a ratio, it grew evenly.
function place(request, made = null) {
  const sides = request.extensions?.[framing()?.id];
  const { width, height } = board.picture;
  if (!sides) return { left: 0, top: 0, width, height };
  const [left, top, right, bottom] = SIDES.map((side) => sides[side] ?? 0);
  const [across, down] = [width + left + right, height + top + bottom];
  const more = made ? [made.width - across, made.height - down].map((value) => Math.max(0, value)) : [0, 0];
  const [x, y] = [-left - Math.floor(more[0] / 2), -top - Math.floor(more[1] / 2)];
  return { left: x, top: y, width: across + more[0], height: down + more[1] };
}

function heard({ jobs: news = [] }) {
  for (const job of news) if (job.preview) previews.set(job.id, job.preview);
  for (const id of previews.keys()) if (!jobs.jobs.has(id)) previews.delete(id);
  if (board.picture) staging.paint();
  paintFacts();
}

async function accept(candidate) {
  if (!candidate) return;
  try {
    const { id, width, height } = await post(`api/pictures/${candidate.picture.id}/use`);
    const image = await load(id);
    staging.choose(null);
    board.advance({ ref: id, image, width, height });
    toast(t("candidate.accepted"), { kind: "done", close: t("close") });
  } catch (error) {
    toast(error.message, { kind: "error", close: t("close") });
  }
}

function discard(candidate) {
  if (!candidate) return;
  saved.discarded = [...saved.discarded, candidate.picture.id].slice(-200);
  keep("canvas", saved);
}

async function again(candidate) {
  if (!candidate) return;
  try {
    const request = { ...candidate.request, seed: -1 };
    const job = await post("api/jobs", { body: JSON.stringify(request), type: "application/json" });
    jobs.take([job]);
    staging.choose({ job: job.id });
  } catch (error) {
    toast(error.message, { kind: "error", close: t("close") });
  }
}

// --- showing

function drawEmpty() {
  const newest = h(
    "button",
    { type: "button", class: "button", onclick: () => create.usePicture(gallery.newest(), MODE) },
    t("canvas.newest"),
  );
  const card = h(
    "div",
    { class: "card" },
    h("span", { class: "mark" }, icon("brush")),
    h("h2", {}, t("canvas.empty")),
    h("p", {}, t("canvas.empty.how")),
    h(
      "div",
      { class: "buttons" },
      h("label", { class: "button primary", for: "field-init_image" }, icon("upload"), h("span", {}, t("image.pick"))),
      newest,
    ),
  );
  gallery.onPictures(() => (newest.hidden = !gallery.newest()));
  newest.hidden = !gallery.newest();
  return card;
}

function paintFacts() {
  const { picture, view, frame } = board;
  ui.zoom.textContent = `${number(view.z * 100, view.z < 0.1 ? 1 : 0)} %`;
  ui.zoom.setAttribute("aria-pressed", String(view.fitted));
  ui.zoom.hidden = !picture;
  if (!picture) return (ui.meta.textContent = "");
  const job = working();
  const size = `${picture.width} × ${picture.height}`;
  const grown = frame.isGrown ? ` → ${frame.whole.join(" × ")}` : "";
  const doing = job ? jobs.describe(job) : coming().length ? t("stage.waiting") : "";
  ui.meta.textContent = doing || size + grown;
}

function toggleZoom() {
  if (board.view.fitted) board.view.zoom(1);
  else board.view.fit();
}

function keys(event) {
  if (!isVisible() || isOpen() || isTaken(event)) return;
  const plain = !event.ctrlKey && !event.metaKey && !event.altKey;
  if ((plain && lookKey(event)) || board.key(event)) event.preventDefault();
}

function lookKey({ key }) {
  if (key === "ArrowRight" || key === "ArrowLeft") return staging.step(key === "ArrowRight" ? 1 : -1);
  if (!staging.chosen()) return false;
  if (key === "Enter") accept(staging.chosen());
  else if (key === "Delete" || key === "Backspace") ui.element.querySelector("#candidate-discard").click();
  else return false;
  return true;
}
