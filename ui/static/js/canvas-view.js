// Zoom and place of a picture that is painted on; what a gesture means is decided in canvas-board.js.

const AROUND = 28;

export class View {
  // `room` clips; `paper` inside it is as large as the picture; `moved` is called after every change.
  constructor(room, paper, moved) {
    Object.assign(this, { room, paper, moved, width: 1, height: 1, z: 1, x: 0, y: 0, left: 0, top: 0, fitted: true });
    this.sides = { left: 0, top: 0, right: 0, bottom: 0 };
    this.box = room.getBoundingClientRect();
    new ResizeObserver(() => {
      this.measure();
      if (this.fitted) this.fit();
      else this.place();
    }).observe(room);
    addEventListener("scroll", () => this.measure(), { capture: true, passive: true });
  }

  // Asking for the layout in the middle of a stroke is slow: it is read when it can have changed.
  measure() {
    this.box = this.room.getBoundingClientRect();
  }

  hold(width, height) {
    Object.assign(this, { width, height });
    this.paper.style.width = `${width}px`;
    this.paper.style.height = `${height}px`;
    this.measure();
    this.fit();
  }

  // How far the frame reaches beyond the picture: that belongs into view, too.
  surround(sides) {
    this.sides = sides;
    if (this.fitted) this.fit();
  }

  get density() {
    return window.devicePixelRatio || 1;
  }

  // Large pictures fill the room; small ones grow by whole multiples, so that every pixel is a square of one size.
  get fitting() {
    const { left, top, right, bottom } = this.sides;
    const around = Math.min(AROUND, this.box.width / 16);
    const across = (this.box.width - 2 * around) / (this.width + left + right);
    const along = (this.box.height - 2 * around) / (this.height + top + bottom);
    const z = Math.max(0.01, Math.min(across, along));
    return z > 2 ? Math.min(Math.floor(z * this.density) / this.density, 8) : z;
  }

  fit() {
    const { left, top, right, bottom } = this.sides;
    this.fitted = true;
    this.z = this.fitting;
    this.x = ((left - right) / 2) * this.z;
    this.y = ((top - bottom) / 2) * this.z;
    this.place();
  }

  // To `z`, with what is under the event staying there; without one, the middle.
  zoom(z, event = null) {
    z = Math.min(32, Math.max(Math.min(this.fitting, 1) / 2, z));
    const [px, py] = event
      ? [event.clientX - this.box.left - this.box.width / 2, event.clientY - this.box.top - this.box.height / 2]
      : [0, 0];
    this.x = px - ((px - this.x) * z) / this.z;
    this.y = py - ((py - this.y) * z) / this.z;
    this.z = z;
    this.fitted = false;
    this.place();
  }

  pan(dx, dy) {
    this.x += dx;
    this.y += dy;
    this.fitted = false;
    this.place();
  }

  place() {
    const { width, height } = this.box;
    const snap = (value) => Math.round(value * this.density) / this.density; // a border between pixels would blur
    const kept = (value, size, room) => Math.min(size + room - 40, Math.max(40 - size - room, value)); // never out of sight
    if (!this.fitted) {
      this.x = kept(this.x, (this.width * this.z) / 2, width / 2);
      this.y = kept(this.y, (this.height * this.z) / 2, height / 2);
    }
    this.left = snap(width / 2 + this.x - (this.width * this.z) / 2);
    this.top = snap(height / 2 + this.y - (this.height * this.z) / 2);
    this.paper.style.transform = `translate(${this.left}px, ${this.top}px) scale(${this.z})`;
    this.paper.style.setProperty("--thin", 1 / this.z);
    this.paper.classList.toggle("pixels", this.z > 2);
    this.moved();
  }

  // Where an event is on the picture, in its pixels.
  point(event) {
    return [(event.clientX - this.box.left - this.left) / this.z, (event.clientY - this.box.top - this.top) / this.z];
  }

  // Where a point of the picture is in the room.
  spot([x, y]) {
    return [this.left + x * this.z, this.top + y * this.z];
  }
}
