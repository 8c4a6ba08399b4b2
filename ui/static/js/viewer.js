// A picture that can be zoomed and moved: wheel, drag, pinch, double click between "fits" and 100 %.

export class Viewer {
  // `room` clips; `paper` inside it holds the picture(s) at their own size.
  constructor(room, paper, onzoom = () => {}) {
    Object.assign(this, { room, paper, onzoom, width: 1, height: 1, fitted: true, z: 1, x: 0, y: 0 });
    this.fingers = new Map();
    room.addEventListener("wheel", (event) => this.wheel(event), { passive: false });
    room.addEventListener("dblclick", (event) => this.toggle(event));
    room.addEventListener("pointerdown", (event) => this.down(event));
    room.addEventListener("pointermove", (event) => this.move(event));
    for (const end of ["pointerup", "pointercancel"]) room.addEventListener(end, (event) => this.up(event));
    new ResizeObserver(() => (this.fitted ? this.fit() : this.place())).observe(room);
  }

  // The picture's size in pixels; another size starts over, the same keeps zoom and place for comparing.
  hold(width, height) {
    if (width === this.width && height === this.height) return this.place();
    Object.assign(this, { width, height });
    this.paper.style.width = `${width}px`;
    this.paper.style.height = `${height}px`;
    this.fit();
  }

  get density() {
    return window.devicePixelRatio || 1;
  }

  // Large pictures fill the room; small ones grow by whole multiples, so that every pixel is a square of one size.
  get fitting() {
    const { clientWidth, clientHeight } = this.room;
    const style = getComputedStyle(this.room);
    const across = clientWidth - parseFloat(style.paddingLeft) - parseFloat(style.paddingRight);
    const along = clientHeight - parseFloat(style.paddingTop) - parseFloat(style.paddingBottom);
    const z = Math.max(0.01, Math.min(across / this.width, along / this.height));
    const whole = Math.floor(z * this.density) / this.density;
    return z > 2 ? Math.min(whole, 8) : z;
  }

  fit() {
    this.fitted = true;
    this.z = this.fitting;
    this.x = this.y = 0;
    this.place();
  }

  // To `z` with the point (in room coordinates from its middle) staying where it is.
  zoom(z, [px, py] = [0, 0]) {
    z = Math.min(32, Math.max(Math.min(this.fitting, 1) / 2, z));
    this.x = px - ((px - this.x) * z) / this.z;
    this.y = py - ((py - this.y) * z) / this.z;
    this.z = z;
    this.fitted = false;
    this.place();
  }

  place() {
    const style = getComputedStyle(this.room);
    const { clientWidth, clientHeight } = this.room;
    const reachX = Math.max(0, (this.width * this.z - clientWidth) / 2) + clientWidth / 3;
    const reachY = Math.max(0, (this.height * this.z - clientHeight) / 2) + clientHeight / 3;
    this.x = Math.min(reachX, Math.max(-reachX, this.x));
    this.y = Math.min(reachY, Math.max(-reachY, this.y));
    const centreX = (clientWidth + parseFloat(style.paddingLeft) - parseFloat(style.paddingRight)) / 2;
    const centreY = (clientHeight + parseFloat(style.paddingTop) - parseFloat(style.paddingBottom)) / 2;
    const snap = (value) => Math.round(value * this.density) / this.density; // a border between pixels would blur
    const left = snap(centreX + this.x - (this.width * this.z) / 2);
    const top = snap(centreY + this.y - (this.height * this.z) / 2);
    this.paper.style.transform = `translate(${left}px, ${top}px) scale(${this.z})`;
    this.paper.style.setProperty("--thin", 1 / this.z);
    this.paper.classList.toggle("pixels", this.z > 2);
    this.room.classList.toggle("movable", !this.fitted);
    this.onzoom(this.z, this.fitted);
  }

  at(event) {
    const box = this.room.getBoundingClientRect();
    return [event.clientX - box.left - box.width / 2, event.clientY - box.top - box.height / 2];
  }

  wheel(event) {
    event.preventDefault();
    const lines = event.deltaMode === 1 ? 16 : 1;
    this.zoom(this.z * Math.exp(-event.deltaY * lines * (event.ctrlKey ? 0.01 : 0.0016)), this.at(event));
  }

  toggle(event) {
    if (event.target.closest("button")) return;
    if (this.fitted && Math.abs(this.z - 1) > 0.001) this.zoom(1, this.at(event));
    else this.fit();
  }

  down(event) {
    if (event.button || event.target.closest("button, a")) return;
    this.fingers.set(event.pointerId, [event.clientX, event.clientY]);
  }

  move(event) {
    const before = this.fingers.get(event.pointerId);
    if (!before) return;
    const now = [event.clientX, event.clientY];
    if (this.fingers.size === 1) {
      if (this.fitted) return;
      if (!this.room.hasPointerCapture(event.pointerId)) this.room.setPointerCapture(event.pointerId);
      this.x += now[0] - before[0];
      this.y += now[1] - before[1];
      this.place();
    } else {
      const other = [...this.fingers].find(([id]) => id !== event.pointerId)[1];
      const apart = (point) => Math.hypot(point[0] - other[0], point[1] - other[1]);
      const middle = { clientX: (now[0] + other[0]) / 2, clientY: (now[1] + other[1]) / 2 };
      this.zoom((this.z * apart(now)) / Math.max(1, apart(before)), this.at(middle));
    }
    this.fingers.set(event.pointerId, now);
  }

  up(event) {
    this.fingers.delete(event.pointerId);
  }
}
