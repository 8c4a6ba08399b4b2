// What was done, to be taken back: whole states, none of which is ever changed.

export class Steps {
  constructor(state, paint) {
    Object.assign(this, { now: state, first: state, done: [], undone: [], kind: null, paint });
  }

  // Steps of the same `kind`, one right after the other, are one.
  put(state, kind = null) {
    if (!kind || kind !== this.kind) this.done.push(this.now);
    Object.assign(this, { now: state, undone: [], kind });
    this.paint();
  }

  undo() {
    this.go(this.done, this.undone);
  }

  redo() {
    this.go(this.undone, this.done);
  }

  go(from, to) {
    if (!from.length) return;
    to.push(this.now);
    Object.assign(this, { now: from.pop(), kind: null });
    this.paint();
  }

  get isChanged() {
    return this.now !== this.first;
  }

  // Ctrl+Z and its like; whether it was one of them.
  key(event) {
    if (!(event.ctrlKey || event.metaKey) || event.altKey) return false;
    const key = event.key.toLowerCase();
    if (key === "z" && !event.shiftKey) this.undo();
    else if (key === "y" || key === "z") this.redo();
    else return false;
    return true;
  }
}
