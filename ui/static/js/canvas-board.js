// The picture on the stage with what is painted over it: a mask, colours, and the frame of what is to be added.
// Knows pointers, keys and pixels; the server and the form are canvas.js's.
import { Frame } from "./canvas-frame.js";
import { History, Layer, weight } from "./canvas-layer.js";
import { flood, polygon, rectangle, softStroke, stroke } from "./canvas-raster.js";
import { View } from "./canvas-view.js";
import { h, isTyping, keep, kept } from "./dom.js";
import { t } from "./words.js";

export const TOOLS = {
  mask: ["brush", "eraser", "lasso", "rectangle", "fill"],
  sketch: ["brush", "eraser", "lasso", "rectangle", "fill", "pipette"],
  frame: [],
};
export const TINTS = { rose: 0xff6a2fff, green: 0xff4ade3b, blue: 0xffff8a1e, white: 0xffffffff };
export const LARGEST = 4096 * 4096; // what every browser can still paint on
const MOVE = 300; // ms within which a second finger means that the first was no stroke
const FILL_LIKENESS = 40;

export class Board {
  constructor() {
    this.picture = null; // {ref, image, width, height}
    this.layers = {};
    this.hearers = new Set();
    this.history = new History((step) => this.tell("painted", step));
    this.work = "mask";
    this.tools = { mask: "brush", sketch: "brush", frame: "" };
    const saved = kept("canvas:tools", {});
    this.sizes = { mask: 0, sketch: 0, ...saved.sizes }; // diameter in pixels; 0: fitting the picture
    this.colour = saved.colour ?? "#d4503a";
    this.opacity = saved.opacity ?? 0.6;
    this.tint = saved.tint in TINTS ? saved.tint : "rose";
    this.pressure = saved.pressure ?? true;
    this.subtracts = false;
    this.seesMask = true;
    this.pointers = new Map();
    this.held = new Set();
    this.gesture = null;
    this.hasPen = false;
    this.last = null; // where the last stroke ended
    this.shown = null; // a candidate over the picture
    this.frameRequest = 0;
    this.build();
  }

  build() {
    this.paper = h("div", { class: "paper" });
    this.over = h("img", { class: "over", alt: "", draggable: false, hidden: true });
    this.ring = h("div", { class: "ring", hidden: true });
    this.line = document.createElementNS("http://www.w3.org/2000/svg", "path");
    const drawing = document.createElementNS("http://www.w3.org/2000/svg", "svg");
    drawing.setAttribute("class", "outline");
    drawing.append(this.line);
    this.room = h(
      "div",
      { class: "easel", tabindex: "0", role: "application", "aria-label": t("canvas.label") },
      this.paper,
      drawing,
      this.ring,
    );
    this.view = new View(this.room, this.paper, () => this.moved());
    this.frame = new Frame(this.view, { limit: (side) => this.limit(side), changed: (before) => this.framed(before) });
    this.room.append(this.frame.element);
    const on = (name, run, options) => this.room.addEventListener(name, run, options);
    on("pointerdown", (event) => this.down(event));
    on("pointermove", (event) => this.move(event));
    on("pointerup", (event) => this.up(event));
    on("pointercancel", (event) => this.up(event));
    on("lostpointercapture", (event) => this.up(event));
    on("pointerenter", () => this.view.measure());
    on("pointerleave", () => (this.ring.hidden = true));
    on("focus", () => this.room.classList.toggle("by-key", this.room.matches(":focus-visible")));
    on("blur", () => this.room.classList.remove("by-key"));
    on("contextmenu", (event) => event.preventDefault());
    on("auxclick", (event) => event.preventDefault());
    on("wheel", (event) => this.wheel(event), { passive: false });
    document.addEventListener("keydown", (event) => !isTyping(event.target) && this.held.add(event.key), true);
    document.addEventListener("keyup", (event) => this.released(event), true);
    addEventListener("blur", () => this.held.clear());
    this.limit = () => 2048;
  }

  hear(hearer) {
    this.hearers.add(hearer);
  }

  // "painted", "tools", "view", "frame", "picture", "shown"
  tell(what, ...more) {
    if (what === "painted") this.refresh();
    for (const hearer of this.hearers) hearer(what, ...more);
  }

  // --- the picture

  // A picture to begin with.
  start(state) {
    this.open(state);
    this.history.clear();
  }

  // Another picture, or another state of the same: {picture, mask, sketch, sides}, tiles as `Layer.keep` gives them.
  open({ picture, mask = null, sketch = null, sides = {} }) {
    const { width, height } = picture;
    const resized = width !== this.picture?.width || height !== this.picture?.height;
    this.picture = picture;
    picture.image.className = "ground";
    picture.image.draggable = false;
    if (resized) this.layers = {};
    for (const [name, tiles] of Object.entries({ mask, sketch })) {
      if (tiles) this.layer(name).lay(tiles);
      else this.layers[name]?.lay(new Map());
    }
    this.layer("mask");
    this.arrange();
    this.look(null);
    this.frame.sides = { left: 0, top: 0, right: 0, bottom: 0, ...sides };
    this.view.sides = this.frame.sides;
    if (resized) this.view.hold(width, height);
    this.frame.show(this.frame.sides);
    this.view.surround(this.frame.sides);
    this.last = null;
    this.refresh();
    this.tell("picture");
  }

  arrange() {
    const { sketch, mask } = this.layers;
    this.paper.replaceChildren(
      ...[this.frame.ground, this.picture.image, sketch?.canvas, mask?.canvas, this.over].filter(Boolean),
    );
    this.paint();
  }

  layer(name) {
    if (!this.layers[name]) {
      const only = name === "mask" ? TINTS[this.tint] : 0;
      this.layers[name] = new Layer(this.picture.width, this.picture.height, { only, classes: `layer ${name}` });
      this.arrange();
    }
    return this.layers[name];
  }

  state() {
    return {
      picture: this.picture,
      mask: this.layers.mask?.keep() ?? null,
      sketch: this.layers.sketch?.keep() ?? null,
      sides: { ...this.frame.sides },
    };
  }

  // Goes on from another picture; the way back brings all of this one's work.
  advance(picture) {
    let other = this.state();
    const bytes = 1000 + weight(other.mask ?? new Map()) + weight(other.sketch ?? new Map());
    this.open({ picture });
    if (this.work === "frame") this.choose({ work: "mask" });
    this.history.add({
      bytes,
      swap: () => {
        const now = this.state();
        this.open(other);
        other = now;
      },
    });
  }

  // --- tools

  get tool() {
    return this.tools[this.work];
  }

  get size() {
    return this.sizes[this.work] || Math.max(4, Math.round(Math.max(this.view.width, this.view.height) / 12));
  }

  choose(changes) {
    if ("work" in changes) this.resume();
    if (changes.work === "frame") this.view.fit();
    if (changes.tool) this.tools = { ...this.tools, [this.work]: changes.tool };
    if (changes.size)
      this.sizes = { ...this.sizes, [this.work]: Math.round(Math.min(1000, Math.max(1, changes.size))) };
    const { tool, size, ...others } = changes;
    Object.assign(this, others);
    if (changes.tint) this.layers.mask?.recolour(TINTS[this.tint]);
    if (changes.tint) this.refresh();
    const { sizes, colour, opacity, tint, pressure } = this;
    keep("canvas:tools", { sizes, colour, opacity, tint, pressure });
    this.paint();
    this.tell("tools");
  }

  grow(by) {
    const { size } = this;
    this.choose({ size: by > 0 ? Math.max(size + 1, size * 1.15) : Math.min(size - 1, size / 1.15) });
    if (this.lastMove) this.showRing(this.lastMove);
  }

  get ink() {
    if (this.work === "mask") return TINTS[this.tint];
    const rgb = parseInt(this.colour.slice(1), 16);
    return (0xff000000 | ((rgb & 255) << 16) | (rgb & 0xff00) | (rgb >> 16)) >>> 0;
  }

  // One stroke, shape or fill: `draw(layer)` changes pixels.
  paintOnce(draw, name = this.work) {
    const layer = this.layer(name);
    layer.begin();
    draw(layer);
    this.commit(name);
  }

  commit(name) {
    const step = this.layers[name].end();
    this.refresh();
    if (step) this.history.add({ bytes: step.bytes, swap: () => this.layers[name].swap(step.tiles) });
  }

  invert() {
    const tint = TINTS[this.tint];
    this.paintOnce((layer) => layer.map((colour) => (colour ? 0 : tint)), "mask");
  }

  clear(what = this.work) {
    if (what === "frame") this.frame.set({});
    else this.paintOnce((layer) => layer.map(() => 0), what);
  }

  // A mask from elsewhere, as ImageData: what is opaque, or if all is, what is white.
  takeMask({ data }) {
    let isOpaque = true;
    for (let at = 3; at < data.length && isOpaque; at += 4) isOpaque = data[at] === 255;
    const tint = TINTS[this.tint];
    const bright = (at) => data[at] + data[at + 1] + data[at + 2] > 382;
    const isPainted = isOpaque ? (at) => bright(at * 4) : (at) => data[at * 4 + 3] > 127;
    this.paintOnce((layer) => layer.map((_, at) => (isPainted(at) ? tint : 0)), "mask");
  }

  takeSketch({ data }) {
    const pixels = new Uint32Array(data.buffer);
    this.paintOnce((layer) => layer.map((_, at) => (pixels[at] >>> 24 ? pixels[at] : 0)), "sketch");
  }

  // Gives up the stroke that is being made.
  stop() {
    this.gesture?.cancel?.();
    this.gesture = null;
    this.paint();
  }

  undo() {
    this.stop();
    this.resume();
    this.history.undo();
  }

  redo() {
    this.resume();
    this.history.redo();
  }

  framed(before) {
    let other = before;
    this.history.add({
      bytes: 200,
      swap: () => {
        const now = this.frame.sides;
        this.frame.show(other);
        this.view.surround(other);
        other = now;
        this.tell("frame");
      },
    });
    this.tell("frame");
  }

  // --- candidates

  // Shows {src, left, top, width, height}, in the picture's pixels, over the picture; null: the picture itself.
  look(shown) {
    const changed = shown?.src !== this.shown?.src;
    this.shown = shown;
    this.over.hidden = !shown;
    if (shown) {
      if (changed) this.over.src = shown.src;
      const { left, top, width, height } = shown;
      Object.assign(this.over.style, {
        left: `${left}px`,
        top: `${top}px`,
        width: `${width}px`,
        height: `${height}px`,
      });
    } else {
      this.over.removeAttribute("src");
    }
    if (!shown || (changed && !shown.isPreview)) this.compares = false;
    this.paint();
    if (changed) this.tell("shown");
  }

  // Back to painting, whatever was being looked at.
  resume() {
    this.look(null);
    this.tell("resume");
  }

  compare(to) {
    this.compares = to && Boolean(this.shown);
    this.paint();
  }

  // --- showing

  refresh() {
    if (this.frameRequest) return;
    this.frameRequest = requestAnimationFrame(() => {
      this.frameRequest = 0;
      for (const layer of Object.values(this.layers)) layer.show();
    });
  }

  // What is seen and how the pointer looks.
  paint() {
    const { room } = this;
    room.dataset.work = this.work;
    room.dataset.tool = this.shown ? "look" : this.tool;
    room.classList.toggle("looking", Boolean(this.shown));
    room.classList.toggle("comparing", Boolean(this.compares));
    room.classList.toggle("moving", this.wantsToMove || this.gesture?.kind === "pan");
    const { mask } = this.layers;
    if (mask) mask.canvas.style.opacity = this.seesMask ? this.opacity : 0;
    if (!this.drawsRound) this.ring.hidden = true;
  }

  moved() {
    this.frame?.place();
    this.tell("view");
  }

  get drawsRound() {
    return !this.shown && !this.wantsToMove && this.work !== "frame" && ["brush", "eraser"].includes(this.tool);
  }

  get wantsToMove() {
    return this.held.has(" ") || this.held.has("f");
  }

  showRing(event) {
    this.lastMove = { clientX: event.clientX, clientY: event.clientY, pointerType: event.pointerType };
    const isSeen = this.drawsRound && event.pointerType !== "touch" && !this.takesColour(event);
    if (this.ring.hidden === isSeen) this.ring.hidden = !isSeen;
    if (!isSeen) return;
    const { box, z } = this.view;
    const wide = Math.max(3, this.size * z);
    this.ring.style.width = this.ring.style.height = `${wide}px`;
    this.ring.style.transform = `translate(${event.clientX - box.left - wide / 2}px, ${event.clientY - box.top - wide / 2}px)`;
  }

  // In the middle, while the size is being set elsewhere.
  showRingAtRest() {
    const { box } = this.view;
    this.showRing({ clientX: box.left + box.width / 2, clientY: box.top + box.height / 2 });
    clearTimeout(this.resting);
    this.resting = setTimeout(() => (this.ring.hidden = true), 700);
  }

  outline(points, closed = false) {
    const at = points.map((point) =>
      this.view
        .spot(point)
        .map((value) => value.toFixed(1))
        .join(" "),
    );
    this.line.setAttribute("d", at.length ? `M${at.join("L")}${closed ? "Z" : ""}` : "");
  }

  // --- pointers

  down(event) {
    if (event.target.closest("button, a, label")) return;
    this.room.focus({ preventScroll: true });
    if (event.pointerType === "mouse") event.preventDefault(); // no scrolling by the middle button
    if (event.pointerType === "touch" && [...this.pointers.values()].some((each) => each.pointerType === "pen")) return; // the palm
    this.view.measure();
    this.pointers.set(event.pointerId, event);
    this.room.setPointerCapture(event.pointerId);
    if (event.pointerType === "pen") this.hasPen = true;
    const fingers = [...this.pointers.values()].filter(({ pointerType }) => pointerType === "touch");
    if (fingers.length === 2) {
      const isYoung = event.timeStamp - fingers[0].timeStamp < MOVE;
      if (isYoung) this.gesture?.cancel?.();
      else this.gesture?.end?.(fingers[0]);
      this.gesture = this.pinching(fingers);
    } else if (this.pointers.size === 1) {
      this.gesture = this.picture ? this.beginning(event) : null;
    }
    this.showRing(event);
  }

  beginning(event) {
    const isFinger = event.pointerType === "touch";
    if (event.button === 1 || this.wantsToMove || (isFinger && this.hasPen)) return this.panning();
    if (this.shown) return this.comparing();
    if (this.work === "frame" || event.button > 2) return event.button ? null : this.panning();
    this.tell("resume");
    const erases = event.button === 2 || (event.buttons & 32) > 0 || this.tool === "eraser";
    if (this.takesColour(event)) return this.picking(event);
    if (this.tool === "brush" || this.tool === "eraser") return this.stroking(event, erases);
    const takesAway = erases || event.altKey !== this.subtracts;
    if (this.tool === "fill") return this.filling(event, takesAway);
    return this.shaping(event, takesAway);
  }

  takesColour(event) {
    return this.work === "sketch" && (this.tool === "pipette" || (event.altKey && this.tool === "brush"));
  }

  move(event) {
    const isDown = this.pointers.has(event.pointerId);
    if (isDown) this.pointers.set(event.pointerId, event);
    if (isDown && this.gesture) this.gesture.move?.(event);
    this.showRing(event);
  }

  up(event) {
    if (!this.pointers.delete(event.pointerId)) return;
    const { gesture } = this;
    if (!gesture || (gesture.kind === "pinch" && this.pointers.size > 1)) return;
    this.gesture = null;
    gesture.end?.(event);
    this.paint();
  }

  // All positions since the last event: browsers report one a frame, a pen has more.
  *points(event) {
    const all = event.getCoalescedEvents?.() ?? [];
    for (const each of all.length ? all : [event]) yield each;
  }

  brushAt(event) {
    const [x, y] = this.view.point(event);
    const strength =
      event.pointerType === "pen" && this.pressure && event.pressure > 0 ? 0.15 + 0.85 * event.pressure : 1;
    return { x, y, r: Math.max(0.72, (this.size / 2) * strength) }; // smaller ones could miss every pixel
  }

  stroking(event, erases) {
    const name = this.work;
    const layer = this.layer(name);
    const colour = erases ? 0 : this.ink;
    const isSoft = name === "sketch";
    layer.begin(isSoft);
    const row = (y, first, last) => layer.fill(y, first, last, colour);
    const edge = (x, y, share) => layer.blend(x, y, colour, share);
    const draw = (from, to) => {
      if (isSoft) softStroke(from, to, layer, row, edge);
      else stroke(from, to, layer, row);
    };
    const start = this.brushAt(event);
    draw(event.shiftKey && this.last ? this.last : start, start);
    let at = start;
    this.refresh();
    return {
      kind: "stroke",
      move: (moved) => {
        for (const each of this.points(moved)) {
          const next = this.brushAt(each);
          draw(at, next);
          at = next;
        }
        this.refresh();
      },
      end: () => {
        this.last = at;
        this.commit(name);
      },
      cancel: () => {
        layer.rollback();
        this.refresh();
      },
    };
  }

  shaping(event, takesAway) {
    const name = this.work;
    const isLasso = this.tool === "lasso";
    const points = [this.view.point(event)];
    const corners = ([x0, y0], [x1, y1]) => [
      [x0, y0],
      [x1, y0],
      [x1, y1],
      [x0, y1],
    ];
    const squared = (at, isSquare) => {
      if (!isSquare) return at;
      const [dx, dy] = [at[0] - points[0][0], at[1] - points[0][1]];
      const side = Math.max(Math.abs(dx), Math.abs(dy));
      return [points[0][0] + side * Math.sign(dx), points[0][1] + side * Math.sign(dy)];
    };
    return {
      kind: "shape",
      move: (moved) => {
        if (isLasso) for (const each of this.points(moved)) points.push(this.view.point(each));
        else points[1] = squared(this.view.point(moved), moved.shiftKey);
        this.outline(isLasso ? points : corners(points[0], points[1]), true);
      },
      end: () => {
        this.outline([]);
        if (points.length < (isLasso ? 3 : 2)) return;
        this.paintOnce((layer) => {
          const row = (y, first, last) => layer.fill(y, first, last, takesAway ? 0 : this.ink);
          if (isLasso) polygon(points, layer, row);
          else rectangle(points[0], points[1], layer, row);
        }, name);
      },
      cancel: () => this.outline([]),
    };
  }

  filling(event, takesAway) {
    const name = this.work;
    const at = this.view.point(event);
    const { width, height } = this.picture;
    const isInside = at[0] >= 0 && at[1] >= 0 && at[0] < width && at[1] < height;
    return {
      kind: "fill",
      end: () => {
        if (!isInside) return;
        const { pixels } = this.layer(name);
        const isLike = name === "mask" ? maskLike(pixels, takesAway) : colourLike(this.flat(), at, width);
        this.paintOnce((layer) => {
          flood(at, layer, isLike, (y, first, last) => layer.fill(y, first, last, takesAway ? 0 : this.ink));
        }, name);
      },
    };
  }

  picking(event) {
    const source = this.flat();
    const take = (from) => {
      const [x, y] = this.view.point(from).map(Math.floor);
      if (x < 0 || y < 0 || x >= source.width || y >= source.height) return;
      const [r, g, b] = source.data.subarray((y * source.width + x) * 4);
      this.choose({ colour: `#${[r, g, b].map((value) => value.toString(16).padStart(2, "0")).join("")}` });
    };
    take(event);
    return {
      kind: "pick",
      move: take,
      end: () => this.tool === "pipette" && this.choose({ tool: "brush" }),
    };
  }

  panning() {
    const [{ clientX, clientY }] = this.pointers.values();
    let at = [clientX, clientY];
    queueMicrotask(() => this.paint());
    return {
      kind: "pan",
      move: (event) => {
        this.view.pan(event.clientX - at[0], event.clientY - at[1]);
        at = [event.clientX, event.clientY];
      },
    };
  }

  pinching(fingers) {
    const ids = fingers.map(({ pointerId }) => pointerId);
    const measure = () => {
      const [a, b] = ids.map((id) => this.pointers.get(id));
      if (!a || !b) return null;
      const middle = { clientX: (a.clientX + b.clientX) / 2, clientY: (a.clientY + b.clientY) / 2 };
      return { middle, apart: Math.max(1, Math.hypot(a.clientX - b.clientX, a.clientY - b.clientY)) };
    };
    let before = measure();
    return {
      kind: "pinch",
      move: () => {
        const now = measure();
        if (!now || !before) return;
        this.view.pan(now.middle.clientX - before.middle.clientX, now.middle.clientY - before.middle.clientY);
        this.view.zoom((this.view.z * now.apart) / before.apart, now.middle);
        before = now;
      },
    };
  }

  comparing() {
    this.compare(true);
    const end = () => this.compare(false);
    return { kind: "compare", end, cancel: end };
  }

  wheel(event) {
    event.preventDefault();
    if (!this.picture) return;
    const lines = event.deltaMode === 1 ? 16 : 1;
    // browsers report a pinch on a touchpad as a wheel with a Ctrl that nobody holds
    const isHeld = this.held.has("Control") || this.held.has("Meta");
    if ((event.ctrlKey || event.metaKey) && isHeld) return this.grow(-Math.sign(event.deltaY));
    this.view.zoom(this.view.z * Math.exp(-event.deltaY * lines * (event.ctrlKey ? 0.01 : 0.0016)), event);
    this.showRing(event);
  }

  // --- keys

  // Whether it was one of ours. Nobody is typing.
  key(event) {
    const { key } = event;
    const ctrl = event.ctrlKey || event.metaKey;
    if (!this.picture || event.altKey) return false;
    const run = ctrl
      ? this.withCtrl(key.toLowerCase(), event.shiftKey)
      : this.alone(key.length === 1 ? key.toLowerCase() : key);
    if (!run) return false;
    run();
    return true;
  }

  withCtrl(key, shift) {
    if (key === "z") return shift ? () => this.redo() : () => this.undo();
    if (key === "y") return () => this.redo();
    if (key === "i" && !shift && this.work === "mask") return () => this.invert();
    return null;
  }

  alone(key) {
    const tool = { b: "brush", e: "eraser", l: "lasso", m: "rectangle", g: "fill", i: "pipette" }[key];
    if (tool) return TOOLS[this.work].includes(tool) ? () => this.pick(tool) : null;
    return {
      "[": () => this.grow(-1),
      "]": () => this.grow(1),
      q: () => this.grow(-1),
      w: () => this.grow(1),
      x: () => this.choose({ subtracts: !this.subtracts }),
      o: () => this.choose({ seesMask: !this.seesMask }),
      r: () => this.view.fit(),
      s: () => this.view.fit(),
      0: () => this.view.fit(),
      1: () => this.view.zoom(1),
      "+": () => this.view.zoom(this.view.z * 1.25),
      "=": () => this.view.zoom(this.view.z * 1.25),
      "-": () => this.view.zoom(this.view.z / 1.25),
      " ": () => this.paint(),
      f: () => this.paint(),
      Delete: () => this.clear(),
      Backspace: () => this.clear(),
    }[key];
  }

  pick(tool) {
    this.resume();
    this.choose({ tool });
  }

  released(event) {
    this.held.delete(event.key);
    if (event.key === " " || event.key === "f") this.paint();
  }

  // --- what goes out

  // Picture and colours as one.
  flatten() {
    const { width, height, image } = this.picture;
    const canvas = h("canvas", { width, height });
    const context = canvas.getContext("2d", { willReadFrequently: true });
    context.drawImage(image, 0, 0, width, height);
    this.layers.sketch?.show();
    if (this.layers.sketch) context.drawImage(this.layers.sketch.canvas, 0, 0);
    return canvas;
  }

  flatFile() {
    return file(this.flatten());
  }

  sketchFile() {
    this.layers.sketch.show();
    return file(this.layers.sketch.canvas);
  }

  flat() {
    return this.flatten().getContext("2d").getImageData(0, 0, this.picture.width, this.picture.height);
  }
}

const file = (canvas) => new Promise((done) => canvas.toBlob(done, "image/png"));

const maskLike = (pixels, takesAway) => (takesAway ? (at) => pixels[at] !== 0 : (at) => pixels[at] === 0);

function colourLike({ data }, [x, y], width) {
  const start = (Math.floor(y) * width + Math.floor(x)) * 4;
  const [r, g, b] = data.subarray(start);
  return (at) =>
    Math.max(Math.abs(data[at * 4] - r), Math.abs(data[at * 4 + 1] - g), Math.abs(data[at * 4 + 2] - b)) <=
    FILL_LIKENESS;
}
