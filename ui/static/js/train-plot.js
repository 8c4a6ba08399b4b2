// Curves over steps, drawn as SVG: the raw values faint, what is smoothed strong, values under the pointer.
import { h } from "./dom.js";
import { number } from "./words.js";

const SVG = "http://www.w3.org/2000/svg";
const PAD = { left: 54, right: 12, top: 10, bottom: 24 };

function s(tag, attributes = {}, ...children) {
  const element = document.createElementNS(SVG, tag);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  element.append(...children);
  return element;
}

// `curves`: [{key, label, points: [[step, value]], dots}]; `paint(curves, {log, until})` draws them anew.
export function drawPlot({ label, empty = "", height = 240 }) {
  const svg = s("svg", { role: "img", "aria-label": label, preserveAspectRatio: "none" });
  const bubble = h("div", { class: "values", hidden: true });
  const legend = h("div", { class: "legend" });
  const none = h("p", { class: "nothing" }, empty);
  const element = h("div", { class: "plot" }, svg, none, bubble, legend);
  element.style.setProperty("--plot-height", `${height}px`);
  let now = { curves: [], log: false, until: 1 };
  let scale = null;

  const paint = (curves, { log = false, until = 1 } = {}) => {
    now = { curves: curves.filter(({ points }) => points.length), log, until };
    redraw();
  };

  function redraw() {
    const width = element.clientWidth || 600;
    svg.setAttribute("viewBox", `0 0 ${width} ${height}`);
    scale = scaleOf(now, width, height);
    none.hidden = Boolean(scale);
    svg.replaceChildren(
      ...(scale ? [...drawGrid(scale), ...now.curves.map((curve) => drawCurve(curve, scale)), marker] : []),
    );
    marker.setAttribute("visibility", "hidden");
    bubble.hidden = true;
    legend.hidden = now.curves.length < 2;
    legend.replaceChildren(...now.curves.map(({ key, label: words }) => h("span", { class: key }, h("i"), words)));
    element.dataset.points = String(Math.max(0, ...now.curves.map(({ points }) => points.length)));
  }

  const marker = s("line", { class: "marker", y1: PAD.top, y2: height - PAD.bottom });
  const point = (event) => {
    if (!scale) return;
    const box = svg.getBoundingClientRect();
    const x = ((event.clientX - box.left) / box.width) * scale.width;
    const step = scale.stepAt(x);
    const rows = now.curves.map(({ key, label: words, points }) => [key, words, nearest(points, step)]);
    const at = nearest(now.curves[0].points, step);
    if (!at) return;
    marker.setAttribute("x1", scale.x(at[0]));
    marker.setAttribute("x2", scale.x(at[0]));
    marker.setAttribute("visibility", "visible");
    bubble.replaceChildren(
      h("b", {}, number(at[0], 0)),
      ...rows.map(([key, words, found]) => h("span", { class: key }, h("i"), `${words} `, h("b", {}, short(found[1])))),
    );
    bubble.hidden = false;
    bubble.style.left = `${Math.min(box.width - bubble.offsetWidth - 4, Math.max(4, (scale.x(at[0]) / scale.width) * box.width + 10))}px`;
  };
  svg.addEventListener("pointermove", point);
  svg.addEventListener("pointerleave", () => {
    bubble.hidden = true;
    marker.setAttribute("visibility", "hidden");
  });
  new ResizeObserver(redraw).observe(element);
  return { element, paint };
}

export const short = (value) => {
  if (value !== 0 && (Math.abs(value) < 0.001 || Math.abs(value) >= 1e5)) return value.toExponential(1);
  return number(value, Math.abs(value) < 1 ? 4 : 2);
};

function nearest(points, step) {
  let [low, high] = [0, points.length - 1];
  while (high - low > 1) {
    const middle = (low + high) >> 1;
    if (points[middle][0] <= step) low = middle;
    else high = middle;
  }
  return !points[high] || Math.abs(points[low][0] - step) <= Math.abs(points[high][0] - step)
    ? points[low]
    : points[high];
}

function scaleOf({ curves, log, until }, width, height) {
  const values = curves.flatMap(({ points, key }) =>
    key === "raw" && points.length > 20 ? clipped(points) : points.map(([, value]) => value),
  );
  const positive = log ? values.filter((value) => value > 0) : values;
  if (!positive.length) return null;
  const [least, most] = [Math.min(...positive), Math.max(...positive)];
  const to = log ? Math.log10 : (value) => value;
  const room = (to(most) - to(least)) * 0.06 || Math.abs(to(most)) * 0.1 || 0.1;
  const [low, high] = [to(least) - room, to(most) + room];
  const last = Math.max(until, ...curves.map(({ points }) => points.at(-1)[0]));
  const [across, down] = [width - PAD.left - PAD.right, height - PAD.top - PAD.bottom];
  const y = (value) => PAD.top + (1 - (to(Math.max(value, log ? least : -Infinity)) - low) / (high - low)) * down;
  return {
    width,
    height,
    x: (step) => PAD.left + (step / last) * across,
    y: (value) => Math.min(PAD.top + down, Math.max(PAD.top, y(value))),
    stepAt: (x) => Math.min(last, Math.max(0, ((x - PAD.left) / across) * last)),
    steps: ticks(0, last, 6).filter(Number.isInteger),
    values: log ? logTicks(least, most) : ticks(low, high, 5),
    low,
  };
}

// Without the few highest: one bad batch must not flatten all the rest.
function clipped(points) {
  const sorted = points.map(([, value]) => value).sort((a, b) => a - b);
  return sorted.slice(0, Math.ceil(sorted.length * 0.98));
}

function ticks(low, high, count) {
  const rough = (high - low) / count;
  const size = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 2.5, 5, 10].map((each) => each * size).find((each) => each >= rough);
  const found = [];
  for (let at = Math.ceil(low / step) * step; at <= high + step * 1e-9; at += step)
    found.push(Number(at.toPrecision(12)));
  return found;
}

function logTicks(least, most) {
  const found = [];
  for (let power = Math.floor(Math.log10(least)); power <= Math.ceil(Math.log10(most)); power += 1)
    for (const digit of [1, 2, 5]) {
      const value = Number(`${digit}e${power}`);
      if (value >= least && value <= most) found.push(value);
    }
  return found.length >= 2 ? found : [least, most];
}

function drawGrid({ steps, values, x, y, width, height }) {
  return [
    ...values.flatMap((value) => [
      s("line", { class: "line", x1: PAD.left, x2: width - PAD.right, y1: y(value), y2: y(value) }),
      s("text", { class: "scale", x: PAD.left - 8, y: y(value) + 4, "text-anchor": "end" }, short(value)),
    ]),
    ...steps.map((step) =>
      s("text", { class: "scale", x: x(step), y: height - 6, "text-anchor": "middle" }, number(step, 0)),
    ),
  ];
}

function drawCurve({ key, points, dots = false }, { x, y }) {
  const path = points
    .map(([step, value], at) => `${at ? "L" : "M"}${x(step).toFixed(1)} ${y(value).toFixed(1)}`)
    .join("");
  const line = s("path", { class: `curve ${key}`, d: path });
  if (!dots) return line;
  return s(
    "g",
    {},
    line,
    ...points.map(([step, value]) => s("circle", { class: `dot ${key}`, cx: x(step), cy: y(value), r: 3 })),
  );
}
