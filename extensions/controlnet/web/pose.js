// People as OpenPose writes them: COCO-18 joints, and further points that hang on one of them. No page here.
// A person is {joints: [{x, y, on}, ... 18], extras: {left, right, face}}; x, y in pixels of the canvas. A joint that
// is not `on` is not written, but keeps its place. Every change gives a new person.

export const JOINTS = [
  "nose",
  "neck",
  "rightShoulder",
  "rightElbow",
  "rightWrist",
  "leftShoulder",
  "leftElbow",
  "leftWrist",
  "rightHip",
  "rightKnee",
  "rightAnkle",
  "leftHip",
  "leftKnee",
  "leftAnkle",
  "rightEye",
  "leftEye",
  "rightEar",
  "leftEar",
];

// Pairs of joints; limb n has the colour of joint n.
export const LIMBS = [
  [1, 2],
  [1, 5],
  [2, 3],
  [3, 4],
  [5, 6],
  [6, 7],
  [1, 8],
  [8, 9],
  [9, 10],
  [1, 11],
  [11, 12],
  [12, 13],
  [1, 0],
  [0, 14],
  [14, 16],
  [0, 15],
  [15, 17],
];

export const colourOf = (joint) => `hsl(${joint * 20} 100% 50%)`;

const MIRRORED = [0, 1, 5, 6, 7, 2, 3, 4, 11, 12, 13, 8, 9, 10, 15, 14, 17, 16];
const BODY = "pose_keypoints_2d";
const EXTRAS = { left: "hand_left_keypoints_2d", right: "hand_right_keypoints_2d", face: "face_keypoints_2d" };
const HANGS_ON = { 0: "face", 4: "right", 7: "left" };

// Somebody who stands and looks at us, 1 high: their right is on our left.
const STANDING = [
  [0, 0.1],
  [0, 0.2],
  [-0.1, 0.205],
  [-0.13, 0.345],
  [-0.14, 0.475],
  [0.1, 0.205],
  [0.13, 0.345],
  [0.14, 0.475],
  [-0.062, 0.49],
  [-0.068, 0.715],
  [-0.072, 0.93],
  [0.062, 0.49],
  [0.068, 0.715],
  [0.072, 0.93],
  [-0.025, 0.08],
  [0.025, 0.08],
  [-0.055, 0.092],
  [0.055, 0.092],
];

export function standing(width, height, beside = 0) {
  const size = Math.min(height * 0.92, width * 2.4);
  const left = width / 2 + (beside % 2 ? 1 : -1) * Math.ceil(beside / 2) * size * 0.32;
  const middle = Math.min(width - size * 0.16, Math.max(size * 0.16, left));
  const top = (height - size) / 2;
  return { joints: STANDING.map(([x, y]) => ({ x: middle + x * size, y: top + y * size, on: true })), extras: {} };
}

// {people, width, height} of a file's text. Raises what JSON.parse does, or an Error without words.
export function read(text) {
  const given = JSON.parse(text);
  const file = Array.isArray(given) ? given[0] : given;
  const { canvas_width: width, canvas_height: height, people } = file ?? {};
  if (!(width > 0 && height > 0) || !Array.isArray(people)) throw new Error();
  const shares = people.every(isInParts) ? [width, height] : [1, 1];
  const drawn = people.map((person) => personOf(person, shares));
  return { people: drawn.filter(isThere), width, height };
}

const isThere = ({ joints, extras }) => joints.some(({ on }) => on) || Object.keys(extras).length > 0;

// Some write parts of the canvas: no figure has all of its points in its first pixel.
const isInParts = (person) =>
  [BODY, ...Object.values(EXTRAS)]
    .flatMap((key) => pointsOf(person[key]))
    .every(({ x, y }) => Math.abs(x) <= 1 && Math.abs(y) <= 1);

function personOf(person, [across, along]) {
  const pointsAt = (key) => pointsOf(person[key]).map((p) => ({ ...p, x: p.x * across, y: p.y * along }));
  const all = pointsAt(BODY);
  if (all.length && all.length !== JOINTS.length) throw new Error(); // BODY_25 has others
  const joints = JOINTS.map((_, n) => all[n] ?? { x: 0, y: 0, on: false });
  const extras = Object.fromEntries(
    Object.entries(EXTRAS)
      .map(([name, key]) => [name, pointsAt(key)])
      .filter(([, points]) => points.some(({ on }) => on)),
  );
  return { joints: placed(joints, extras), extras };
}

function pointsOf(numbers) {
  const points = [];
  for (let n = 0; n + 2 < (numbers?.length ?? 0); n += 3) {
    const [x, y, confidence] = numbers.slice(n, n + 3).map(Number);
    if (!Number.isFinite(x + y)) throw new Error();
    points.push({ x, y, on: confidence > 0 });
  }
  return points;
}

// Joints that are not there where they would be, if this person stood: the closest turned and scaled STANDING. Of a face
// or hands alone these tell where.
function placed(joints, extras) {
  const knownOf = (points) => points.flatMap(({ x, y, on }, n) => (on ? [[STANDING[n], [x, y]]] : []));
  let known = knownOf(joints);
  if (!known.length) known = knownOf(joints.map((joint, n) => extras[HANGS_ON[n]]?.find(({ on }) => on) ?? joint));
  if (known.length === joints.length || !known.length) return joints;
  const middle = (points) => [0, 1].map((axis) => points.reduce((sum, p) => sum + p[axis], 0) / points.length);
  const from = middle(known.map(([a]) => a));
  const to = middle(known.map(([, b]) => b));
  let [cos, sin, size] = [0, 0, 0];
  for (const [a, b] of known) {
    const [ax, ay, bx, by] = [a[0] - from[0], a[1] - from[1], b[0] - to[0], b[1] - to[1]];
    cos += ax * bx + ay * by;
    sin += ax * by - ay * bx;
    size += ax * ax + ay * ay;
  }
  [cos, sin] = size ? [cos / size, sin / size] : [200, 0];
  return joints.map((joint, n) => {
    if (joint.on) return joint;
    const [x, y] = [STANDING[n][0] - from[0], STANDING[n][1] - from[1]];
    return { x: to[0] + cos * x - sin * y, y: to[1] + sin * x + cos * y, on: false };
  });
}

export function written({ people, width, height }) {
  const numbers = (points) =>
    points.flatMap(({ x, y, on }) => (on ? [Math.round(x * 10) / 10, Math.round(y * 10) / 10, 1] : [0, 0, 0]));
  const persons = people.map(({ joints, extras }) => ({
    [BODY]: numbers(joints),
    ...Object.fromEntries(Object.entries(extras).map(([name, points]) => [EXTRAS[name], numbers(points)])),
  }));
  return JSON.stringify({ people: persons, canvas_width: Math.round(width), canvas_height: Math.round(height) });
}

// --- changes

const changed = ({ joints, extras }, move) => ({
  joints: joints.map(move),
  extras: Object.fromEntries(Object.entries(extras).map(([name, points]) => [name, points.map(move)])),
});

export const moved = (person, dx, dy) => changed(person, ({ x, y, on }) => ({ x: x + dx, y: y + dy, on }));

// Around a point; `angle` in radians, clockwise as we see it.
export function turned(person, [cx, cy], factor, angle = 0) {
  const [cos, sin] = [Math.cos(angle) * factor, Math.sin(angle) * factor];
  return changed(person, ({ x, y, on }) => ({
    x: cx + cos * (x - cx) - sin * (y - cy),
    y: cy + sin * (x - cx) + cos * (y - cy),
    on,
  }));
}

// Mirrored where they stand; what was the left hand is the right one.
export function flipped(person) {
  const { left, right } = boxOf(person);
  const { joints, extras } = changed(person, ({ x, y, on }) => ({ x: left + right - x, y, on }));
  const others = { left: extras.right, right: extras.left, face: extras.face };
  return {
    joints: MIRRORED.map((n) => joints[n]),
    extras: Object.fromEntries(Object.entries(others).filter(([, points]) => points)),
  };
}

// A hand goes with its wrist, the face with the nose.
export function jointMoved({ joints, extras }, joint, dx, dy) {
  const hanging = HANGS_ON[joint];
  const move = ({ x, y, on }) => ({ x: x + dx, y: y + dy, on });
  return {
    joints: joints.with(joint, { ...move(joints[joint]), on: true }),
    extras: hanging in extras ? { ...extras, [hanging]: extras[hanging].map(move) } : extras,
  };
}

export function jointTurned({ joints, extras }, joint) {
  const on = !joints[joint].on;
  const { [on ? null : HANGS_ON[joint]]: _, ...rest } = extras;
  return { joints: joints.with(joint, { ...joints[joint], on }), extras: rest };
}

export function boxOf({ joints }) {
  const there = joints.some(({ on }) => on) ? joints.filter(({ on }) => on) : joints;
  const [xs, ys] = [there.map(({ x }) => x), there.map(({ y }) => y)];
  return { left: Math.min(...xs), top: Math.min(...ys), right: Math.max(...xs), bottom: Math.max(...ys) };
}

export const middleOf = (person) => {
  const { left, top, right, bottom } = boxOf(person);
  return [(left + right) / 2, (top + bottom) / 2];
};
