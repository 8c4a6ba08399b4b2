// What is painted on: pixels in our own memory, shown by a <canvas> that is only ever written to. And the way back.
import { h } from "./dom.js";

const TILE = 64;
const KEPT = 128 * 1024 * 1024;
const STEPS = 200;

export class Layer {
  // `only`: the one colour that this layer knows, whatever is put into it.
  constructor(width, height, { only = 0, classes = "" } = {}) {
    Object.assign(this, { width, height, only });
    this.image = new ImageData(width, height);
    this.pixels = new Uint32Array(this.image.data.buffer); // 0xAABBGGRR, 0 = nothing there
    this.canvas = h("canvas", { width, height, class: classes });
    this.context = this.canvas.getContext("2d");
    this.across = Math.ceil(width / TILE);
    this.down = Math.ceil(height / TILE);
    this.before = null; // tiles as they were when this stroke began
    this.shares = null; // how far this stroke covers each pixel, if its edges are soft
    this.clean();
  }

  clean() {
    this.dirty = { left: this.width, top: this.height, right: -1, bottom: -1 };
  }

  // --- painting; between `begin` and `end`

  begin(soft = false) {
    this.before = new Map();
    if (soft) this.shares = new Uint8Array(this.width * this.height);
  }

  fill(y, first, last, colour) {
    this.touch(y, first, last);
    const line = y * this.width;
    this.pixels.fill(colour, line + first, line + last + 1);
    this.shares?.fill(255, line + first, line + last + 1);
  }

  // One pixel of a stroke's soft edge, over what was there before the stroke; colour 0 takes away.
  blend(x, y, colour, share) {
    const at = y * this.width + x;
    const covered = Math.round(share * 255);
    if (covered <= this.shares[at]) return;
    this.shares[at] = covered;
    this.touch(y, x, x);
    this.pixels[at] = mix(this.was(x, y), colour, covered / 255);
  }

  was(x, y) {
    const tile = this.before.get((y >> 6) * this.across + (x >> 6));
    return typeof tile === "number" ? tile : tile[(y & 63) * TILE + (x & 63)];
  }

  touch(y, first, last) {
    const row = (y >> 6) * this.across;
    for (let tile = row + (first >> 6); tile <= row + (last >> 6); tile++)
      if (!this.before.has(tile)) this.before.set(tile, this.take(tile));
    this.soil(first, y, last, y);
  }

  soil(left, top, right, bottom) {
    const { dirty } = this;
    if (left < dirty.left) dirty.left = left;
    if (top < dirty.top) dirty.top = top;
    if (right > dirty.right) dirty.right = right;
    if (bottom > dirty.bottom) dirty.bottom = bottom;
  }

  // Every pixel: `change(colour)` gives the new one.
  map(change) {
    for (let tile = 0; tile < this.across * this.down; tile++)
      if (!this.before.has(tile)) this.before.set(tile, this.take(tile));
    const { pixels } = this;
    for (let at = 0; at < pixels.length; at++) pixels[at] = change(pixels[at], at);
    this.soil(0, 0, this.width - 1, this.height - 1);
  }

  // What the stroke has changed, for `swap` to take it back; null if it changed nothing.
  end() {
    const tiles = new Map([...this.before].filter(([tile, pixels]) => !same(pixels, this.take(tile))));
    this.before = this.shares = null;
    return tiles.size ? { tiles, bytes: weight(tiles) } : null;
  }

  // As if the stroke had never begun.
  rollback() {
    this.swap(this.before);
    this.before = this.shares = null;
  }

  // --- tiles

  swap(tiles) {
    for (const [tile, pixels] of tiles) {
      tiles.set(tile, this.take(tile));
      this.put(tile, pixels);
    }
  }

  place(tile) {
    const left = (tile % this.across) * TILE;
    const top = Math.floor(tile / this.across) * TILE;
    return { left, top, right: Math.min(this.width, left + TILE), bottom: Math.min(this.height, top + TILE) };
  }

  // A tile's pixels; one number where all are the same.
  take(tile) {
    const { left, top, right, bottom } = this.place(tile);
    const { pixels, width } = this;
    const first = pixels[top * width + left];
    let even = true;
    for (let y = top; even && y < bottom; y++)
      for (let at = y * width + left; at < y * width + right; at++)
        if (pixels[at] !== first) {
          even = false;
          break;
        }
    if (even) return first;
    const taken = new Uint32Array(TILE * TILE);
    for (let y = top; y < bottom; y++)
      taken.set(pixels.subarray(y * width + left, y * width + right), (y - top) * TILE);
    return taken;
  }

  put(tile, pixels) {
    const { left, top, right, bottom } = this.place(tile);
    for (let y = top; y < bottom; y++) {
      const at = y * this.width + left;
      if (typeof pixels === "number") this.pixels.fill(pixels && (this.only || pixels), at, at + right - left);
      else this.pixels.set(pixels.subarray((y - top) * TILE, (y - top) * TILE + right - left), at);
    }
    if (typeof pixels === "object" && this.only) this.unify(left, top, right, bottom);
    this.soil(left, top, right - 1, bottom - 1);
  }

  unify(left, top, right, bottom) {
    for (let y = top; y < bottom; y++)
      for (let at = y * this.width + left; at < y * this.width + right; at++)
        if (this.pixels[at]) this.pixels[at] = this.only;
  }

  recolour(only) {
    this.only = only;
    this.unify(0, 0, this.width, this.height);
    this.soil(0, 0, this.width - 1, this.height - 1);
  }

  // Everything that is not empty, to be kept; `lay` puts it back.
  keep() {
    const tiles = new Map();
    for (let tile = 0; tile < this.across * this.down; tile++) {
      const pixels = this.take(tile);
      if (pixels !== 0) tiles.set(tile, pixels);
    }
    return tiles;
  }

  lay(tiles) {
    this.pixels.fill(0);
    for (const [tile, pixels] of tiles) this.put(tile, pixels);
    this.soil(0, 0, this.width - 1, this.height - 1);
  }

  // --- showing

  show() {
    const { left, top, right, bottom } = this.dirty;
    if (right < left) return;
    this.context.putImageData(this.image, 0, 0, left, top, right - left + 1, bottom - top + 1);
    this.clean();
  }

  count() {
    let count = 0;
    for (const pixel of this.pixels) if (pixel) count++;
    return count;
  }
}

const same = (one, other) =>
  one === other ||
  (typeof one === "object" && typeof other === "object" && one.every((pixel, at) => pixel === other[at]));

export const weight = (tiles) => [...tiles.values()].reduce((sum, tile) => sum + (tile.byteLength ?? 8), 64);

// `colour` over `ground` with `share` of its strength; straight alpha, as ImageData has it.
function mix(ground, colour, share) {
  const under = ground >>> 24;
  if (!colour) {
    const alpha = Math.round(under * (1 - share));
    return alpha ? ((ground & 0xffffff) | (alpha << 24)) >>> 0 : 0;
  }
  const over = (colour >>> 24) * share;
  const rest = under * (1 - over / 255);
  const alpha = over + rest;
  if (alpha < 0.5) return 0;
  let mixed = Math.round(alpha) << 24;
  for (const shift of [0, 8, 16])
    mixed |= Math.round((((colour >> shift) & 255) * over + ((ground >> shift) & 255) * rest) / alpha) << shift;
  return mixed >>> 0;
}

// What was done, and undone. A step is {swap(), bytes}: `swap` takes it back, and again repeats it.
export class History {
  constructor(changed = () => {}) {
    Object.assign(this, { done: [], undone: [], changed });
  }

  add(step) {
    if (!step) return;
    this.done.push(step);
    this.undone.length = 0;
    let bytes = this.done.reduce((sum, each) => sum + each.bytes, 0);
    while (this.done.length > 1 && (bytes > KEPT || this.done.length > STEPS)) bytes -= this.done.shift().bytes;
    this.changed(step);
  }

  undo() {
    this.move(this.done, this.undone);
  }

  redo() {
    this.move(this.undone, this.done);
  }

  move(from, to) {
    const step = from.pop();
    if (!step) return;
    step.swap();
    to.push(step);
    this.changed(step);
  }

  clear() {
    this.done.length = this.undone.length = 0;
    this.changed(null);
  }
}
