// Which pixels a shape covers: those whose centre lies in it, so that a mask is exactly what was painted.
// Shapes come as rows, `row(y, first, last)`; browsers' own drawing would soften every edge.

// The hull of two discs {x, y, r}: what a round brush covers on its way from one point to the next.
class Hull {
  constructor(a, b, grow = 0) {
    const along = Math.hypot(b.x - a.x, b.y - a.y);
    this.discs = [a, b].map(({ x, y, r }) => ({ x, y, r: Math.max(0, r + grow) })).filter(({ r }) => r > 0);
    this.corners = [];
    const [c, d] = this.discs;
    if (d && along > Math.abs(c.r - d.r)) {
      // where the two common tangents touch
      const [ux, uy] = [(b.x - a.x) / along, (b.y - a.y) / along];
      const sine = (c.r - d.r) / along;
      const cosine = Math.sqrt(1 - sine * sine);
      const [px, py] = [ux * sine - uy * cosine, uy * sine + ux * cosine];
      const [qx, qy] = [ux * sine + uy * cosine, uy * sine - ux * cosine];
      this.corners = [
        [c.x + px * c.r, c.y + py * c.r],
        [d.x + px * d.r, d.y + py * d.r],
        [d.x + qx * d.r, d.y + qy * d.r],
        [c.x + qx * c.r, c.y + qy * c.r],
      ];
    }
    this.top = Math.min(...this.discs.map(({ y, r }) => y - r));
    this.bottom = Math.max(...this.discs.map(({ y, r }) => y + r));
    this.left = this.right = 0;
  }

  // Sets `left` and `right` to where the line at height y enters and leaves; false if it passes by.
  cut(y) {
    let left = Infinity;
    let right = -Infinity;
    for (const disc of this.discs) {
      const rest = disc.r * disc.r - (y - disc.y) ** 2;
      if (rest < 0) continue;
      const half = Math.sqrt(rest);
      left = Math.min(left, disc.x - half);
      right = Math.max(right, disc.x + half);
    }
    for (let i = 0; i < this.corners.length; i++) {
      const [x0, y0] = this.corners[i];
      const [x1, y1] = this.corners[(i + 1) % 4];
      if (y0 > y === y1 > y) continue;
      const x = x0 + ((y - y0) / (y1 - y0)) * (x1 - x0);
      left = Math.min(left, x);
      right = Math.max(right, x);
    }
    this.left = left;
    this.right = right;
    return left <= right;
  }
}

const firstOf = (left) => Math.max(0, Math.ceil(left - 0.5));
const lastOf = (right, width) => Math.min(width - 1, Math.floor(right - 0.5));

export function stroke(a, b, { width, height }, row) {
  const hull = new Hull(a, b);
  const bottom = lastOf(hull.bottom, height);
  for (let y = firstOf(hull.top); y <= bottom; y++) {
    if (!hull.cut(y + 0.5)) continue;
    const [first, last] = [firstOf(hull.left), lastOf(hull.right, width)];
    if (first <= last) row(y, first, last);
  }
}

// The same with an edge one pixel wide, `edge(x, y, share)`: for colours.
export function softStroke(a, b, { width, height }, row, edge) {
  const inner = new Hull(a, b, -0.5);
  const outer = new Hull(a, b, 0.5);
  const [dx, dy] = [b.x - a.x, b.y - a.y];
  const squared = dx * dx + dy * dy;
  const shareOf = (x, y) => {
    const along = squared ? Math.min(1, Math.max(0, ((x - a.x) * dx + (y - a.y) * dy) / squared)) : 0;
    const apart = Math.hypot(x - a.x - along * dx, y - a.y - along * dy);
    return Math.min(1, 0.5 + a.r + along * (b.r - a.r) - apart);
  };
  const edges = (y, first, last) => {
    for (let x = first; x <= last; x++) {
      const share = shareOf(x + 0.5, y + 0.5);
      if (share > 0) edge(x, y, share);
    }
  };
  const bottom = lastOf(outer.bottom, height);
  for (let y = firstOf(outer.top); y <= bottom; y++) {
    if (!outer.cut(y + 0.5)) continue;
    const [first, last] = [firstOf(outer.left), lastOf(outer.right, width)];
    const isFull = inner.cut(y + 0.5);
    const [from, to] = isFull ? [firstOf(inner.left), lastOf(inner.right, width)] : [1, 0];
    if (from <= to) {
      edges(y, first, from - 1);
      row(y, from, to);
      edges(y, to + 1, last);
    } else {
      edges(y, first, last);
    }
  }
}

// A closed line through `points` [[x, y]]; where it crosses itself all that it goes round is inside.
export function polygon(points, { width, height }, row) {
  const ys = points.map(([, y]) => y);
  const bottom = lastOf(Math.max(...ys), height);
  for (let y = firstOf(Math.min(...ys)); y <= bottom; y++) {
    const crossings = [];
    for (let i = 0; i < points.length; i++) {
      const [x0, y0] = points[i];
      const [x1, y1] = points[(i + 1) % points.length];
      const at = y + 0.5;
      if (y0 > at === y1 > at) continue;
      crossings.push([x0 + ((at - y0) / (y1 - y0)) * (x1 - x0), y1 > y0 ? 1 : -1]);
    }
    crossings.sort((one, other) => one[0] - other[0]);
    let winding = 0;
    crossings.forEach(([x, turn], i) => {
      winding += turn;
      if (!winding) return;
      const [first, last] = [firstOf(x), lastOf(crossings[i + 1][0], width)];
      if (first <= last) row(y, first, last);
    });
  }
}

// Whole pixels from one corner to the other, both included.
export function rectangle([x0, y0], [x1, y1], { width, height }, row) {
  const clamp = (value, size) => Math.min(size - 1, Math.max(0, Math.floor(value)));
  if (Math.max(x0, x1) < 0 || Math.max(y0, y1) < 0 || Math.min(x0, x1) >= width || Math.min(y0, y1) >= height) return;
  const [left, right] = [clamp(Math.min(x0, x1), width), clamp(Math.max(x0, x1), width)];
  const [top, bottom] = [clamp(Math.min(y0, y1), height), clamp(Math.max(y0, y1), height)];
  for (let y = top; y <= bottom; y++) row(y, left, right);
}

// The area around [x, y] in which `isInside(index of a pixel)` holds.
export function flood([x, y], { width, height }, isInside, row) {
  const seen = new Uint8Array(width * height);
  const open = (at) => !seen[at] && isInside(at);
  const start = Math.floor(y) * width + Math.floor(x);
  const seeds = open(start) ? [start] : [];
  while (seeds.length) {
    const at = seeds.pop();
    if (!open(at)) continue;
    const line = Math.floor(at / width);
    const begin = line * width;
    let first = at;
    let last = at;
    while (first > begin && open(first - 1)) first--;
    while (last < begin + width - 1 && open(last + 1)) last++;
    seen.fill(1, first, last + 1);
    row(line, first - begin, last - begin);
    for (const by of [-width, width]) {
      if (line + Math.sign(by) < 0 || line + Math.sign(by) >= height) continue;
      let inside = false;
      for (let next = first + by; next <= last + by; next++) {
        const is = open(next);
        if (is && !inside) seeds.push(next);
        inside = is;
      }
    }
  }
}
