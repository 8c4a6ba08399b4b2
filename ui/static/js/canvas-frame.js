// The frame of the new picture, dragged beyond the edges of the old one.
import { h } from "./dom.js";
import { number, t } from "./words.js";

export const SIDES = ["left", "top", "right", "bottom"];
const CORNERS = [
  ["left", "top"],
  ["right", "top"],
  ["right", "bottom"],
  ["left", "bottom"],
];
const OPPOSITE = { left: "right", right: "left", top: "bottom", bottom: "top" };
const NONE = { left: 0, top: 0, right: 0, bottom: 0 };

export class Frame {
  // `limit(side)` is the most that a side may grow; `changed(done)` is called while it moves and at the end.
  constructor(view, { limit, changed }) {
    Object.assign(this, { view, limit, changed, sides: { ...NONE }, snap: 8 });
    this.ground = h("div", { class: "new-ground" }); // below the picture
    this.labels = Object.fromEntries(SIDES.map((side) => [side, h("span", { class: `grown ${side}`, hidden: true })]));
    this.size = h("span", { class: "frame-size" });
    const handles = [...SIDES.map((side) => [side]), ...CORNERS].map((sides) => this.handle(sides));
    this.element = h(
      "div",
      { class: "frame", role: "group", "aria-label": t("frame") },
      ...handles,
      ...Object.values(this.labels),
      this.size,
    );
    this.handles = handles;
  }

  handle(sides) {
    const isEdge = sides.length === 1;
    const handle = h("button", {
      type: "button",
      class: `handle ${isEdge ? "edge" : "corner"} ${sides.join(" ")}`,
      data: { sides: sides.join(" ") },
      ...(isEdge
        ? { role: "slider", "aria-label": t(`frame.${sides[0]}`), "aria-valuemin": 0 }
        : { tabIndex: -1, "aria-hidden": "true" }),
      onpointerdown: (event) => this.drag(event, handle, sides),
      onkeydown: (event) => isEdge && this.keys(event, sides[0]),
      ondblclick: () => this.set({ ...this.sides, ...Object.fromEntries(sides.map((side) => [side, 0])) }),
    });
    return handle;
  }

  drag(event, handle, sides) {
    if (event.button) return;
    event.preventDefault();
    event.stopPropagation();
    handle.focus({ preventScroll: true });
    handle.setPointerCapture(event.pointerId);
    const start = { ...this.sides };
    const from = [event.clientX, event.clientY];
    const move = (moved) => {
      const now = { ...start };
      for (const side of sides) {
        const across = side === "left" || side === "right";
        const by = (across ? moved.clientX - from[0] : moved.clientY - from[1]) / this.view.z;
        const outward = side === "right" || side === "bottom" ? by : -by;
        now[side] = this.fitting(side, start[side] + outward);
        if (moved.shiftKey) now[OPPOSITE[side]] = this.fitting(OPPOSITE[side], start[OPPOSITE[side]] + outward);
      }
      this.show(now);
    };
    const listeners = new AbortController();
    const on = (name, run) => handle.addEventListener(name, run, { signal: listeners.signal });
    const end = () => {
      listeners.abort();
      const moved = this.sides;
      this.sides = start;
      this.set(moved);
    };
    on("pointermove", move);
    on("pointerup", end);
    on("pointercancel", end);
  }

  keys(event, side) {
    const outward = { left: "ArrowLeft", right: "ArrowRight", top: "ArrowUp", bottom: "ArrowDown" };
    const by = { [outward[side]]: 1, [outward[OPPOSITE[side]]]: -1 }[event.key];
    if (!by) return;
    event.preventDefault();
    event.stopPropagation();
    this.set({
      ...this.sides,
      [side]: this.fitting(side, this.sides[side] + by * this.snap * (event.shiftKey ? 8 : 1)),
    });
  }

  fitting(side, value) {
    const most = Math.floor(this.limit(side) / this.snap) * this.snap;
    return Math.max(0, Math.min(most, Math.round(value / this.snap) * this.snap));
  }

  // What a ratio needs beyond the picture, the same on both sides.
  toRatio(ratio) {
    const { width, height } = this.view;
    const grow = (more, one, other) => {
      const whole = Math.round(more / this.snap) * this.snap;
      const first = Math.floor(whole / 2 / this.snap) * this.snap;
      return { [one]: this.fitting(one, first), [other]: this.fitting(other, whole - first) };
    };
    this.set({
      ...grow(Math.max(0, height * ratio - width), "left", "right"),
      ...grow(Math.max(0, width / ratio - height), "top", "bottom"),
    });
  }

  get isGrown() {
    return SIDES.some((side) => this.sides[side] > 0);
  }

  // The whole new picture, in the old one's pixels.
  get whole() {
    const { left, top, right, bottom } = this.sides;
    return [this.view.width + left + right, this.view.height + top + bottom];
  }

  set(sides) {
    const before = this.sides;
    this.show({ ...NONE, ...sides });
    this.view.surround(this.sides);
    if (SIDES.some((side) => before[side] !== this.sides[side])) this.changed(before);
  }

  show(sides) {
    this.sides = sides;
    const [width, height] = this.whole;
    for (const side of SIDES) {
      this.labels[side].textContent = `+${sides[side]}`;
      this.labels[side].hidden = !sides[side];
      const handle = this.element.querySelector(`.edge.${side}`);
      handle.setAttribute("aria-valuenow", sides[side]);
      handle.setAttribute("aria-valuemax", this.limit(side));
      handle.setAttribute("aria-valuetext", t("frame.value", { n: sides[side] }));
    }
    this.size.textContent = `${number(width, 0)} × ${number(height, 0)}`;
    Object.assign(this.ground.style, {
      left: `${-sides.left}px`,
      top: `${-sides.top}px`,
      width: `${width}px`,
      height: `${height}px`,
    });
    this.ground.hidden = !this.isGrown;
    this.place();
  }

  // After the view has moved.
  place() {
    const { left, top } = this.sides;
    const [x, y] = this.view.spot([-left, -top]);
    const [width, height] = this.whole;
    Object.assign(this.element.style, {
      transform: `translate(${x}px, ${y}px)`,
      width: `${width * this.view.z}px`,
      height: `${height * this.view.z}px`,
    });
  }
}
