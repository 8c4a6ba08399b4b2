// The map of a ControlNet unit: made at once where that is quick, drawn by hand, or from a pose.
import { editPose } from "./pose-editor.js";
import { loaded, sketch } from "./sketch.js";

const WATCH = 1000; // ms between two looks at what is being fetched
const PAUSE = 250; // ms of rest after the last change before the map is made anew
const ICONS = {
  pose: "M12 3.2a2 2 0 1 1 0 4 2 2 0 0 1 0-4Z M12 9v6 M5.5 10.5 12 9l6.5 1.5 M8.5 21 12 15l3.5 6",
};
const OF_THE_MAP = ["module", "processor_res", "threshold_a", "threshold_b", "pixel_perfect", "resize_mode", "mask"];

// What the server has: preprocessors, control types with their models, and weights on their way.
class Shelf {
  constructor(api) {
    Object.assign(this, { api, modules: new Map(), types: {}, isOpen: false, fetches: [], hearers: new Map() });
  }

  // Calls `hear` when something has changed, as long as `element` is in the page.
  hear(element, hear) {
    this.hearers.set(element, hear);
  }

  // `anew`: what the server has is another; else what the request says.
  tell(anew = true) {
    for (const [element, hear] of this.hearers) {
      if (element.isConnected) hear(anew);
      else this.hearers.delete(element);
    }
  }

  async load() {
    const ask = async (route) => (await fetch(this.api.url(route))).json();
    const [modules, types, downloads] = await Promise.all(["preprocessors", "types", "downloads"].map(ask));
    this.modules = new Map(modules.map((module) => [module.name, module]));
    Object.assign(this, { types, isOpen: downloads.allowed, fetches: downloads.files });
    this.tell();
    const again = () => this.load().catch(() => setTimeout(again, 5 * WATCH)); // the line may be down
    if (this.fetching().length) setTimeout(again, WATCH);
  }

  // Those of these files, or of all, that are on their way.
  fetching(files = null) {
    const mine = ({ file }) => !files || files.some((each) => each.file === file);
    return this.fetches.filter((fetch) => mine(fetch) && ["waiting", "running"].includes(fetch.state));
  }

  failed(files) {
    return this.fetches.find(({ file, state }) => state === "failed" && files.some((each) => each.file === file));
  }

  async fetch(module) {
    await this.api.post("downloads", { module });
    await this.load();
  }
}

function drawMap(api, field, shelf) {
  const { element, button, words } = api;
  let found = null; // the last preview: {image, pose}, and what it was made of
  let told = null; // what was wrong, and with what
  let turn = 0;
  let timer = 0;

  const picture = element("img", { alt: words("map.alt"), draggable: false });
  const look = element("button", { type: "button", class: "look", "aria-label": words("map.large"), onclick: enlarge });
  look.append(picture);
  const preview = button({ text: words("map.make"), icon: "eye", class: "small make", run: () => make() });
  preview.id = field.id;
  const badge = element("span", { class: "badge" });
  const empty = element("div", { class: "empty" }, preview);
  const again = button({ label: words("map.make"), icon: "recycle", class: "small again", run: () => make() });
  const pose = button({ label: words("pose.edit"), icon: ICONS.pose, class: "small pose", run: openPose });
  const draw = button({ label: words("sketch.edit"), icon: "sketch", class: "small draw", run: openSketch });
  const reset = button({ label: words("map.reset"), icon: "reset", class: "small reset-map", run: clear });
  const tools = element("div", { class: "buttons" }, again, pose, draw, reset);
  const well = element("div", { class: "map-well" }, look, empty, badge);
  const problem = element("p", { class: "problem", role: "alert", hidden: true });
  const hint = element("p", { class: "hint" });
  const crop = element("p", { class: "hint crop", hidden: true }, words("pose.cut"));
  const fetches = button({ text: words("weights.fetch"), icon: "download", class: "small fetch", run: fetchWeights });
  const below = element("div", { class: "below" }, problem, crop, hint, fetches);
  const main = element("div", { class: "controlnet-map" }, element("div", { class: "map-box" }, well, tools), below);

  // --- what there is

  // by the server, for an earlier picture; one from a pose that is not here any more stays as it is
  const isMade = () => Boolean(field.value && field.get("made_from")) && !field.get("made_from").startsWith("pose-");
  const own = () => (field.get("pose") ? "pose" : field.value && !isMade() ? "map" : null);
  const module = () => shelf.modules.get(field.get("module")) ?? {};
  const image = () => field.get("image") ?? api.request().init_image ?? null;

  // All that the map follows from.
  function origin() {
    if (own() === "map") return field.value;
    if (own() === "pose") return field.get("pose");
    const { width, height } = field.get("pixel_perfect") ? api.request() : {};
    return JSON.stringify([image(), width, height, ...OF_THE_MAP.map((name) => field.get(name))]);
  }

  function paint() {
    const isOwn = own();
    const current = found?.of === origin() ? found : null;
    const shown = current?.image ?? (isOwn === "map" ? field.value : null);
    if (shown && picture.dataset.ref !== shown) {
      picture.dataset.ref = shown;
      picture.src = api.image(shown);
    }
    look.hidden = !shown;
    empty.hidden = Boolean(shown);
    badge.hidden = !isOwn;
    badge.textContent = isOwn ? words(`map.${isOwn}`) : "";
    const { pose: isPose } = module();
    const isFree = field.get("module") === "none";
    pose.hidden = !(isPose || isFree || isOwn === "pose");
    draw.hidden = isPose || isOwn === "pose";
    again.hidden = !shown || Boolean(isOwn);
    reset.hidden = !isOwn;
    problem.hidden = told?.of !== origin();
    problem.textContent = told?.text ?? "";
    crop.hidden = !isCut(current);
    paintLacking();
  }

  // Whether joints lie in what Crop and Resize leaves out of a pose of another shape.
  function isCut(current) {
    const text = field.get("pose");
    const people = text ? JSON.parse(text) : current?.pose;
    if (!people || field.get("resize_mode") !== "Crop and Resize") return false;
    const { width, height, init_image } = api.request();
    if (init_image && !text && !field.get("image")) return false; // it goes the way of the picture
    const { canvas_width: across, canvas_height: along } = people;
    const scale = Math.max(width / across, height / along);
    const [left, top] = [(across - width / scale) / 2, (along - height / scale) / 2];
    const isOut = (x, y) => x < left || y < top || x > across - left || y > along - top;
    return people.people.some(({ pose_keypoints_2d: joints }) =>
      joints.some((x, n) => n % 3 === 0 && joints[n + 2] > 0 && isOut(x, joints[n + 1])),
    );
  }

  // Weights that the preprocessor needs and that are not here.
  function paintLacking() {
    const { missing = [], hint: lacks = "" } = module();
    hint.hidden = fetches.hidden = !missing.length || Boolean(own());
    if (hint.hidden) return;
    const coming = shelf.fetching(missing);
    const failed = shelf.failed(missing);
    const [done, total] = ["done", "total"].map((key) => coming.reduce((sum, fetch) => sum + fetch[key], 0));
    const share = Math.floor((100 * done) / (total || 1));
    hint.textContent = coming.length ? words("weights.coming", { share }) : (failed?.error ?? lacks);
    fetches.hidden = !shelf.isOpen || Boolean(coming.length);
    problem.hidden = true;
  }

  // A control model of the type that was chosen, if the one that is there is for none or for the type before.
  let chosen = field.get("module");
  function suit() {
    const of = field.get("module");
    if (of === chosen || !shelf.modules.size) return;
    const [before, now] = [chosen, of].map((name) => shelf.types[shelf.modules.get(name)?.types[0]]);
    chosen = of;
    const model = field.get("model");
    if (!now || now.default_model === "None" || now.models.includes(model)) return;
    if (model === "None" || before?.models.includes(model)) field.set({ model: now.default_model });
  }

  let before = null;
  function changed() {
    suit();
    const now = origin();
    if (now !== before) {
      before = now;
      clearTimeout(timer);
      if (isQuick()) timer = setTimeout(() => make(true), PAUSE);
    }
    paint();
  }

  // Made without being asked for: what takes no time, and only for somebody who sees it.
  function isQuick() {
    if (found?.of === origin() || own() === "map") return false;
    if (own() === "pose") return true;
    const { weightless, needs_mask } = module();
    return weightless && Boolean(image()) && (!needs_mask || Boolean(field.get("mask")));
  }

  // --- making

  async function make(unasked = false) {
    clearTimeout(timer);
    if (unasked && !main.isConnected) return null;
    const mine = ++turn;
    const of = origin();
    well.classList.add("busy");
    try {
      const text = field.get("pose");
      const { width, height, init_image } = api.request();
      const answer = text
        ? await api.post("pose/draw", { pose: text })
        : await api.post("preview", { unit: field.values(), width, height, init_image: init_image ?? null });
      if (mine !== turn) return null;
      found = { ...answer, of };
      if (module().missing?.length) shelf.load(); // somebody has put them there
      return found;
    } catch (error) {
      if (mine === turn) told = { of, text: error.problems?.map(({ message }) => message).join("; ") || error.message };
      return null;
    } finally {
      if (mine === turn) {
        well.classList.remove("busy");
        paint();
      }
    }
  }

  function clear() {
    found = null;
    field.set({ map: null, pose: "", made_from: "" });
  }

  // --- large, drawn, posed

  function enlarge() {
    const large = element("img", { src: picture.src, alt: words("map.alt") });
    const dialog = api.dialog(words("map.alt"), element("div", { class: "cn-room" }, large));
    dialog.classList.add("controlnet-large");
    dialog.addEventListener("click", () => dialog.close());
  }

  async function sizeOf(ref) {
    if (!ref) {
      const { width, height } = api.request();
      return [width, height];
    }
    const { naturalWidth, naturalHeight } = await loaded(api.image(ref));
    return [naturalWidth, naturalHeight];
  }

  const addressOf = (ref) => (ref ? api.image(ref) : null);

  async function openSketch() {
    const made = found?.of === origin() && field.get("module") !== "none" ? found.image : null;
    const base = own() === "map" ? field.value : made; // an image that is its own map is only drawn over
    await sketch(api, {
      base: addressOf(base),
      size: await sizeOf(image()),
      image: addressOf(image()),
      use: async (file) => field.set({ map: await api.upload(file), pose: "", made_from: "" }),
    });
  }

  async function openPose() {
    let start = field.get("pose");
    if (!start && module().pose && !module().missing?.length && image()) {
      const detected = found?.of === origin() ? found : await make();
      if (detected?.pose) start = JSON.stringify(detected.pose);
    }
    editPose(api, {
      start,
      size: await sizeOf(image()),
      image: addressOf(image()),
      use: async (text) => {
        const answer = await api.post("pose/draw", { pose: text });
        field.set({ map: null, pose: text, made_from: "" });
        found = { ...answer, of: origin() };
        paint();
      },
    });
  }

  async function fetchWeights() {
    fetches.disabled = true;
    try {
      await shelf.fetch(field.get("module"));
    } finally {
      fetches.disabled = false;
    }
  }

  if (isMade()) found = { image: field.value, of: origin() };
  shelf.hear(main, (anew) => {
    if (anew) before = null;
    changed();
  });
  field.hear(changed);
  changed();
  return main;
}

window.atelier.extend("controlnet", (api) => {
  const shelf = new Shelf(api);
  api.onRequest(() => shelf.tell(false));
  api.widget("units.map", (field) => drawMap(api, field, shelf));
  for (const name of ["pose", "made_from"]) api.widget(`units.${name}`, () => null); // parts of the map's
  return shelf.load();
});
