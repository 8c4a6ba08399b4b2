// The canvas's toolbar: what is painted (mask, colours, frame), with which tool, how large; undo; how it is seen.
import { TINTS, TOOLS } from "./canvas-board.js";
import { button, h, icon, tip } from "./dom.js";
import { number, t } from "./words.js";

const KEYS = { brush: "B", eraser: "E", lasso: "L", rectangle: "M", fill: "G", pipette: "I" };
const LARGEST_BRUSH = 1000;
const RATIOS = [
  [1, 1],
  [4, 3],
  [3, 2],
  [16, 9],
];

export function drawBar(board) {
  const parts = [
    drawWorks(board),
    drawTools(board),
    drawColour(board),
    drawSize(board),
    drawRatios(board),
    drawOnce(board),
    drawHistory(board),
  ];
  const bar = h(
    "div",
    { class: "bar", role: "toolbar", "aria-label": t("canvas.tools") },
    ...parts.map(({ element }) => element),
  );
  bar.insertBefore(h("div", { class: "space" }), bar.lastChild);
  bar.addEventListener("keydown", (event) => walk(bar, event));
  const paint = () => parts.forEach((part) => part.paint?.());
  board.hear((what) => ["tools", "painted", "picture", "frame"].includes(what) && paint());
  paint();
  return bar;
}

// Arrow keys go from button to button.
function walk(bar, event) {
  const by = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
  if (!by || !event.target.matches("button")) return;
  const all = [...bar.querySelectorAll("button:not(:disabled)")].filter(
    (each) => each.offsetParent && !each.closest("[popover]"),
  );
  event.preventDefault();
  all[(all.indexOf(event.target) + by + all.length) % all.length]?.focus();
}

const keyed = (words, key) => (key ? `${words} (${key})` : words);

function drawWorks(board) {
  const works = ["mask", "sketch", "frame"].map((work) => [
    work,
    h("input", {
      type: "radio",
      name: "canvas-work",
      id: `work-${work}`,
      value: work,
      onchange: () => board.choose({ work }),
    }),
  ]);
  const element = h(
    "div",
    { class: "segments works", role: "radiogroup", "aria-label": t("canvas.work") },
    ...works.map(([work, input]) =>
      h(
        "label",
        { "data-tip": t(`work.${work}.help`) },
        input,
        h("span", {}, icon(work), h("b", {}, t(`work.${work}`))),
      ),
    ),
  );
  const paint = () => {
    for (const [work, input] of works) {
      input.checked = work === board.work;
      input.parentElement.hidden = board.works && !board.works.includes(work);
    }
  };
  return { element, paint };
}

function drawTools(board) {
  const tools = TOOLS.sketch.map((name) => [
    name,
    button({
      label: keyed(t(`tool.${name}`), KEYS[name]),
      icon: name,
      data: { tool: name },
      onclick: () => board.pick(name),
    }),
  ]);
  const subtract = button({
    label: keyed(t("tool.subtract"), "X"),
    icon: "minus",
    id: "canvas-subtract",
    onclick: () => board.choose({ subtracts: !board.subtracts }),
  });
  const element = h(
    "div",
    { class: "tools", role: "group", "aria-label": t("canvas.tool") },
    ...tools.map(([, each]) => each),
    subtract,
  );
  const paint = () => {
    element.hidden = board.work === "frame";
    for (const [name, each] of tools) {
      each.hidden = !TOOLS[board.work].includes(name);
      each.setAttribute("aria-pressed", String(name === board.tool));
    }
    subtract.disabled = !["lasso", "rectangle", "fill"].includes(board.tool);
    subtract.setAttribute("aria-pressed", String(board.subtracts));
  };
  return { element, paint };
}

function drawColour(board) {
  const input = h("input", { type: "color", class: "colour", ...tip(t("canvas.colour")) });
  input.addEventListener("input", () => board.choose({ colour: input.value }));
  const paint = () => {
    input.hidden = board.work !== "sketch";
    input.value = board.colour;
  };
  return { element: input, paint };
}

// The slider's steps grow with the brush: 1, 2, 3 ... 100, 110 ...
const toShare = (size) => Math.log(size) / Math.log(LARGEST_BRUSH);
const toSize = (share) => Math.round(LARGEST_BRUSH ** share);

function drawSize(board) {
  const range = h("input", {
    type: "range",
    class: "range",
    min: 0,
    max: 1,
    step: 0.005,
    "aria-label": t("canvas.size"),
    "data-tip": t("canvas.size.help"),
  });
  const box = h("input", {
    type: "number",
    class: "box",
    min: 1,
    max: LARGEST_BRUSH,
    step: 1,
    inputmode: "numeric",
    "aria-label": t("canvas.size"),
  });
  range.addEventListener("input", () => {
    board.choose({ size: toSize(range.value) });
    board.showRingAtRest();
  });
  box.addEventListener("change", () => board.choose({ size: Number(box.value) || 1 }));
  box.addEventListener("keyup", (event) => event.key === "Enter" && board.room.focus());
  const element = h("div", { class: "brush-size" }, range, box);
  const paint = () => {
    element.hidden = board.work === "frame";
    element.classList.toggle("idle", !["brush", "eraser"].includes(board.tool));
    const share = toShare(board.size);
    range.value = share;
    range.style.setProperty("--share", share);
    range.setAttribute("aria-valuetext", t("canvas.pixels", { n: board.size }));
    if (document.activeElement !== box || Number(box.value) !== board.size) box.value = board.size;
  };
  return { element, paint };
}

function drawRatios(board) {
  let upright = false;
  const chips = RATIOS.map(([a, b]) => [
    a / b,
    h(
      "button",
      {
        type: "button",
        class: "chip",
        data: { ratio: `${a}:${b}` },
        onclick: () => board.frame.toRatio(upright ? b / a : a / b),
      },
      `${a}:${b}`,
    ),
  ]);
  const turn = button({
    label: t("frame.turn"),
    icon: "turn",
    onclick: () => {
      upright = !upright;
      paint();
    },
  });
  const element = h(
    "div",
    { class: "ratios", role: "group", "aria-label": t("frame.ratios") },
    ...chips.map(([, chip]) => chip),
    turn,
  );
  const paint = () => {
    element.hidden = board.work !== "frame";
    const [width, height] = board.frame.whole;
    for (const [ratio, chip] of chips) {
      chip.textContent = upright ? chip.dataset.ratio.split(":").reverse().join(":") : chip.dataset.ratio;
      const isIt = Math.abs(width / height / (upright ? 1 / ratio : ratio) - 1) < 0.012;
      chip.setAttribute("aria-pressed", String(isIt));
    }
    turn.setAttribute("aria-pressed", String(upright));
  };
  return { element, paint };
}

function drawOnce(board) {
  const invert = button({
    label: keyed(t("canvas.invert"), "Ctrl I"),
    icon: "invert",
    id: "canvas-invert",
    onclick: () => board.invert(),
  });
  const clear = button({ label: t("canvas.clear"), icon: "trash", id: "canvas-clear", onclick: () => board.clear() });
  const element = h("div", { class: "once" }, invert, clear);
  const paint = () => {
    invert.hidden = board.work !== "mask";
    const words = keyed(t(`canvas.clear.${board.work}`), board.work === "frame" ? "" : "Del");
    clear.setAttribute("aria-label", words);
    clear.dataset.tip = words;
    clear.disabled = board.work === "frame" && !board.frame.isGrown;
  };
  return { element, paint };
}

function drawHistory(board) {
  const undo = button({
    label: keyed(t("canvas.undo"), "Ctrl Z"),
    icon: "undo",
    id: "canvas-undo",
    onclick: () => board.undo(),
  });
  const redo = button({
    label: keyed(t("canvas.redo"), "Ctrl Shift Z"),
    icon: "redo",
    id: "canvas-redo",
    onclick: () => board.redo(),
  });
  const options = drawOptions(board);
  const element = h("div", { class: "ends" }, undo, redo, options.opener, options.sheet);
  const paint = () => {
    undo.disabled = !board.history.done.length;
    redo.disabled = !board.history.undone.length;
    options.paint();
  };
  return { element, paint };
}

// How the mask is seen, and what the pen does.
function drawOptions(board) {
  const opacity = h("input", { type: "range", class: "range", id: "mask-opacity", min: 0.1, max: 1, step: 0.05 });
  opacity.addEventListener("input", () => board.choose({ opacity: Number(opacity.value), seesMask: true }));
  const share = h("span", { class: "measure" });
  const tints = Object.keys(TINTS).map((name) =>
    h("button", {
      type: "button",
      class: `tint ${name}`,
      ...tip(t(`tint.${name}`)),
      data: { tint: name },
      onclick: () => board.choose({ tint: name }),
    }),
  );
  const sees = h("input", {
    type: "checkbox",
    role: "switch",
    class: "switch",
    id: "mask-seen",
    onchange: () => board.choose({ seesMask: sees.checked }),
  });
  const pen = h("input", {
    type: "checkbox",
    role: "switch",
    class: "switch",
    id: "pen-pressure",
    onchange: () => board.choose({ pressure: pen.checked }),
  });
  const sheet = h(
    "div",
    { class: "canvas-options", id: "canvas-options", popover: "auto" },
    h("div", { class: "line-of" }, h("label", { for: "mask-seen" }, keyed(t("canvas.sees"), "O")), sees),
    h("div", { class: "line-of" }, h("label", { for: "mask-opacity" }, t("canvas.opacity")), share),
    opacity,
    h("div", { class: "line-of" }, h("span", {}, t("canvas.tint")), h("span", { class: "tints" }, ...tints)),
    h("div", { class: "line-of" }, h("label", { for: "pen-pressure" }, t("canvas.pressure")), pen),
  );
  const opener = button({ label: t("canvas.options"), icon: "eye", id: "canvas-eye", popovertarget: "canvas-options" });
  sheet.addEventListener("toggle", (event) => {
    if (event.newState !== "open") return;
    const at = opener.getBoundingClientRect();
    sheet.style.top = `${at.bottom + 6}px`;
    sheet.style.left = `${Math.max(8, at.right - sheet.offsetWidth)}px`;
  });
  const paint = () => {
    opacity.value = board.opacity;
    opacity.style.setProperty("--share", (board.opacity - 0.1) / 0.9);
    share.textContent = `${number(board.opacity * 100, 0)} %`;
    sees.checked = board.seesMask;
    pen.checked = board.pressure;
    opener.classList.toggle("off", !board.seesMask);
    for (const each of tints) each.setAttribute("aria-pressed", String(each.dataset.tint === board.tint));
  };
  return { opener, sheet, paint };
}
