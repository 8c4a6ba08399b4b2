// Drawing a map by hand: white on black, on a map that there is, over its image if there is one.
import { gap, openEditor, shape, toggle } from "./editor.js";
import { Steps } from "./steps.js";

const ICONS = {
  image: "M4 5h16v14H4Z M4 16l4.5-4.5L13 16l3-3 4 4 M15.5 9v.1",
  clear: "M5 7h14 M10 7V4h4v3 M7 7l1 13h8l1-13",
};
const [THINNEST, THICKEST] = [1, 200];

// `base` is the address of a map to draw on, or null; `size` [width, height] is for none. `image` is the address of
// what lies under it, or null. `use(file)` gets a PNG and gives a promise.
export async function sketch(api, { base, size, image, use }) {
  const { words } = api;
  const under = base ? await loaded(base) : null;
  const [width, height] = under ? [under.naturalWidth, under.naturalHeight] : size;
  const steps = new Steps([], () => paint());
  const canvas = api.element("canvas", { width, height, class: "sketch", "aria-label": words("sketch.canvas") });
  const context = canvas.getContext("2d");
  const ring = api.element("i", { class: "cn-ring", hidden: true });
  const ground = image ? api.element("img", { src: image, alt: "", draggable: false, class: "cn-ground" }) : null;
  const paper = api.element("div", { class: "cn-paper" }, ground, canvas, ring);
  shape(paper, width, height);
  let isErasing = false;
  let thickness = Math.max(3, Math.round(Math.min(width, height) / 90));
  let stroke = null;
  let last = null; // where the last stroke ended: with Shift the next one begins there

  const pick = (erases) => {
    isErasing = erases;
    brush.setAttribute("aria-pressed", String(!erases));
    eraser.setAttribute("aria-pressed", String(erases));
  };
  const brush = api.button({ label: words("sketch.brush"), icon: "brush", class: "toggle", run: () => pick(false) });
  const eraser = api.button({ label: words("sketch.eraser"), icon: "eraser", class: "toggle", run: () => pick(true) });
  const range = api.element("input", {
    type: "range",
    class: "range",
    min: 0,
    max: 1,
    step: 0.005,
    "aria-label": words("sketch.size"),
  });
  const number = api.element("span", { class: "measure" });
  const undo = api.button({ label: words("undo"), icon: "undo", class: "undo", run: () => steps.undo() });
  const redo = api.button({ label: words("redo"), icon: "redo", class: "redo", run: () => steps.redo() });
  const clear = api.button({ label: words("sketch.clear"), icon: ICONS.clear, class: "clear", run: empty });
  const shows =
    ground &&
    toggle(api, { label: words("ground"), icon: ICONS.image, pressed: true, run: (isOn) => (ground.hidden = !isOn) });
  const sizing = api.element("label", { class: "sizing" }, range, number);
  const { say } = openEditor(api, {
    name: "sketch-editor",
    title: words("sketch.title"),
    tools: [brush, eraser, sizing, gap(api), undo, redo, clear, ground && gap(api), shows],
    paper,
    use: async () => use(await written(canvas)),
    isChanged: () => steps.isChanged,
    keys,
  });

  // --- brush

  // even steps feel even: the thickness grows with its square
  const share = () => Math.sqrt((thickness - THINNEST) / (THICKEST - THINNEST));
  const thick = (pixels) => {
    thickness = Math.min(THICKEST, Math.max(THINNEST, Math.round(pixels)));
    range.value = share();
    range.style.setProperty("--share", share());
    number.textContent = words("sketch.pixels", { n: thickness });
    ring.style.width = `${thickness * scale()}px`;
  };
  range.addEventListener("input", () => thick(THINNEST + Number(range.value) ** 2 * (THICKEST - THINNEST)));

  const scale = () => canvas.getBoundingClientRect().width / width || 1;

  function place(event) {
    const { left, top } = canvas.getBoundingClientRect();
    const pressure = event.pointerType === "pen" ? 0.25 + 0.75 * event.pressure : 1;
    return [(event.clientX - left) / scale(), (event.clientY - top) / scale(), pressure];
  }

  canvas.addEventListener("pointerdown", (event) => {
    if (stroke || ![0, 5].includes(event.button)) return;
    event.preventDefault();
    canvas.setPointerCapture(event.pointerId);
    const point = place(event);
    const points = event.shiftKey && last ? [last, point] : [point, point];
    stroke = { id: event.pointerId, erases: isErasing || event.button === 5, size: thickness, points };
    trace(context, stroke, 1);
  });

  canvas.addEventListener("pointermove", (event) => {
    follow(event);
    if (stroke?.id !== event.pointerId) return;
    const from = stroke.points.length;
    const all = event.getCoalescedEvents?.() ?? [];
    stroke.points.push(...(all.length ? all : [event]).map(place));
    trace(context, stroke, from);
  });

  for (const end of ["pointerup", "pointercancel"])
    canvas.addEventListener(end, (event) => {
      if (stroke?.id !== event.pointerId) return;
      const done = stroke;
      stroke = null;
      if (end === "pointercancel") return paint();
      last = done.points.at(-1);
      steps.put([...steps.now, done]);
    });

  function follow({ clientX, clientY, pointerType }) {
    const { left, top } = canvas.getBoundingClientRect();
    ring.hidden = pointerType === "touch";
    Object.assign(ring.style, { left: `${clientX - left}px`, top: `${clientY - top}px` });
  }
  canvas.addEventListener("pointerleave", () => (ring.hidden = true));

  function empty() {
    last = null;
    steps.put([...steps.now, { clears: true }]);
  }

  function keys(event) {
    if (steps.key(event)) return event.preventDefault();
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const run = {
      b: () => pick(false),
      e: () => pick(true),
      "+": () => thick(thickness * 1.25 + 1),
      "-": () => thick(thickness / 1.25 - 1),
    }[event.key];
    if (!run) return;
    event.preventDefault();
    run();
  }

  // --- drawing

  function paint() {
    const from = steps.now.findLastIndex(({ clears }) => clears);
    context.fillStyle = "#000";
    context.fillRect(0, 0, width, height);
    if (from < 0 && under) context.drawImage(under, 0, 0);
    for (const each of steps.now.slice(from + 1)) trace(context, each, 1);
    undo.disabled = !steps.done.length;
    redo.disabled = !steps.undone.length;
    say(words("sketch.hint"));
  }

  new ResizeObserver(() => thick(thickness)).observe(canvas);
  pick(false);
  thick(thickness);
  paint();
}

// The part of a stroke from its point number `from` on.
function trace(context, { erases, size, points }, from) {
  context.strokeStyle = erases ? "#000" : "#fff";
  context.lineCap = context.lineJoin = "round";
  for (let n = from; n < points.length; n++) {
    const [x, y, pressure] = points[n];
    context.lineWidth = size * pressure;
    context.beginPath();
    context.moveTo(...points[n - 1].slice(0, 2));
    context.lineTo(x, y);
    context.stroke();
  }
}

const written = (canvas) =>
  new Promise((resolve, reject) =>
    canvas.toBlob((file) => (file ? resolve(file) : reject(new Error())), "image/png"),
  );

export async function loaded(address) {
  const image = new Image();
  image.src = address;
  await image.decode();
  return image;
}
