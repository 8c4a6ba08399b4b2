// The pose editor: people on black, over their image if there is one; joints are dragged, people moved, turned, scaled.
import { gap, openEditor, shape, toggle } from "./editor.js";
import * as pose from "./pose.js";
import { Steps } from "./steps.js";

const SVG = "http://www.w3.org/2000/svg";
const ICONS = {
  add: "M9 4.5a2.5 2.5 0 1 1 0 5 2.5 2.5 0 0 1 0-5Z M4 20v-3a5 5 0 0 1 8-4 M17 13v7 M13.5 16.5h7",
  remove: "M9 4.5a2.5 2.5 0 1 1 0 5 2.5 2.5 0 0 1 0-5Z M4 20v-3a5 5 0 0 1 8-4 M13.5 16.5h7",
  flip: "M12 4v2 M12 9v2 M12 14v2 M12 19v2 M9 7 3.5 17H9Z M15 7l5.5 10H15Z",
  hide: "M4 4l16 16 M9.5 5.9A9 9 0 0 1 12 5.5c6 0 9.5 6.5 9.5 6.5a17 17 0 0 1-3 3.7 M6.5 7.5A16 16 0 0 0 2.5 12S6 18.5 12 18.5a9 9 0 0 0 4-1",
  image: "M4 5h16v14H4Z M4 16l4.5-4.5L13 16l3-3 4 4 M15.5 9v.1",
  open: "M3.5 19V5.5H9l2 2.5h8v3 M3.5 19 6.5 11H21l-3 8Z",
  save: "M12 4v11 M7.5 11l4.5 4.5 4.5-4.5 M5 20h14",
};
const [SMALL, LARGE] = [1, 10]; // pixels that an arrow key moves
const REACH = 14; // pixels of the screen around a joint that take hold of it
const MOST = 32;

// `start` is a pose's text, or empty for one standing figure; `size` [width, height] is for that; `image` an address or
// null. `use(text)` gives a promise.
export function editPose(api, { start, size, image, use }) {
  const { words } = api;
  const begun = start ? pose.read(start) : { people: [pose.standing(...size)], width: size[0], height: size[1] };
  const steps = new Steps(begun, () => paint());
  let at = begun.people.length ? 0 : null; // the person chosen
  let joint = null;
  let drag = null;

  const svg = draw("svg", { class: "people", role: "group", "aria-label": words("pose.canvas") });
  const ground = image ? api.element("img", { src: image, alt: "", draggable: false, class: "cn-ground" }) : null;
  const paper = api.element("div", { class: "cn-paper" }, ground, svg);
  const file = api.element("input", { type: "file", accept: ".json,application/json", class: "file", hidden: true });
  const buttons = {
    add: api.button({ label: words("pose.add"), icon: ICONS.add, class: "add", run: add }),
    remove: api.button({ label: words("pose.remove"), icon: ICONS.remove, class: "remove", run: remove }),
    flip: api.button({ label: words("pose.flip"), icon: ICONS.flip, class: "flip", run: () => change(pose.flipped) }),
    hide: api.button({ label: words("pose.hide"), icon: ICONS.hide, class: "hide", run: hide }),
    undo: api.button({ label: words("undo"), icon: "undo", class: "undo", run: () => steps.undo() }),
    redo: api.button({ label: words("redo"), icon: "redo", class: "redo", run: () => steps.redo() }),
  };
  const sizes = ["width", "height"].map((side) => sizeBox(side));
  const { add: more, remove: fewer, flip, hide: out, undo, redo } = buttons;
  const tools = [
    ...[more, fewer, gap(api), flip, out, gap(api), undo, redo, gap(api)],
    api.element("span", { class: "sizes" }, sizes[0], "×", sizes[1]),
    gap(api),
    ground &&
      toggle(api, {
        label: words("ground"),
        icon: ICONS.image,
        pressed: true,
        run: (isOn) => (ground.hidden = !isOn),
      }),
    api.button({ label: words("pose.open"), icon: ICONS.open, run: () => file.click() }),
    api.button({ label: words("pose.save"), icon: ICONS.save, run: save }),
    file,
  ];
  const { say } = openEditor(api, {
    name: "pose-editor",
    title: words("pose.title"),
    tools,
    paper,
    use: () => use(pose.written(steps.now)),
    isChanged: () => steps.isChanged,
    keys,
  });

  // --- changes

  const person = () => steps.now.people[at];
  const withPerson = (one, state = steps.now) => ({ ...state, people: state.people.with(at, one) });

  function change(make, kind = null) {
    if (at !== null) steps.put(withPerson(make(person())), kind);
  }

  function add() {
    const { people, width, height } = steps.now;
    if (people.length >= MOST) return;
    at = people.length;
    joint = null;
    steps.put({ ...steps.now, people: [...people, pose.standing(width, height, people.length)] });
  }

  function remove() {
    if (at === null) return;
    const people = steps.now.people.toSpliced(at, 1);
    at = people.length ? Math.min(at, people.length - 1) : null;
    joint = null;
    steps.put({ ...steps.now, people });
  }

  function hide() {
    if (joint !== null) change((one) => pose.jointTurned(one, joint));
  }

  function resize(side, value) {
    const sides = { [side]: Math.min(8192, Math.max(64, Math.round(value) || steps.now[side])) };
    if (sides[side] !== steps.now[side]) steps.put({ ...steps.now, ...sides });
    else paint();
  }

  function sizeBox(side) {
    const attributes = { type: "number", class: "box", min: 64, max: 8192, "aria-label": words(`pose.${side}`) };
    const box = api.element("input", attributes);
    box.addEventListener("change", () => resize(side, Number(box.value)));
    return box;
  }

  file.addEventListener("change", async () => {
    const [given] = file.files;
    file.value = "";
    if (!given) return;
    try {
      const read = pose.read(await given.text());
      at = read.people.length ? 0 : null;
      joint = null;
      steps.put(read);
    } catch {
      api.toast(words("pose.unreadable"));
    }
  });

  function save() {
    const address = URL.createObjectURL(new Blob([pose.written(steps.now)], { type: "application/json" }));
    api.element("a", { href: address, download: "pose.json" }).click();
    setTimeout(() => URL.revokeObjectURL(address), 10_000);
  }

  // --- dragging

  const scale = () => svg.getBoundingClientRect().width / steps.now.width || 1;

  function place(event) {
    const { left, top } = svg.getBoundingClientRect();
    return [(event.clientX - left) / scale(), (event.clientY - top) / scale()];
  }

  svg.addEventListener("pointerdown", (event) => {
    if (event.button || drag) return;
    const { target } = event;
    const held = ["joint", "corner", "turn", "body"].find((kind) => kind in target.dataset);
    if ("person" in target.dataset) at = Number(target.dataset.person);
    joint = held === "joint" ? Number(target.dataset.joint) : null;
    if (!held) at = null;
    if (held && at !== null) {
      event.preventDefault();
      svg.setPointerCapture(event.pointerId);
      const origin = person();
      const { left, top, right, bottom } = pose.boxOf(origin);
      const corner = Number(target.dataset.corner);
      const anchor =
        held === "corner" ? [corner % 2 ? left : right, corner > 1 ? top : bottom] : pose.middleOf(origin);
      drag = { id: event.pointerId, held, joint, origin, anchor, from: place(event), state: steps.now };
    }
    paint();
    if (joint !== null) circles(at)[joint].focus({ preventScroll: true });
  });

  svg.addEventListener("pointermove", (event) => {
    if (drag?.id !== event.pointerId) return;
    const [x, y] = place(event);
    const [dx, dy] = [x - drag.from[0], y - drag.from[1]];
    if (!drag.isMoved && Math.hypot(dx, dy) * scale() < 2) return;
    drag.isMoved = true;
    drag.live = withPerson(dragged(drag, [x, y], [dx, dy]), drag.state);
    paint(drag.live);
  });

  for (const end of ["pointerup", "pointercancel"])
    svg.addEventListener(end, (event) => {
      if (drag?.id !== event.pointerId) return;
      const { live } = drag;
      drag = null;
      if (live && end === "pointerup") steps.put(live);
      else paint();
    });

  svg.addEventListener("dblclick", hide);

  // --- keys: those of the joint that has the focus, and those of the person

  svg.addEventListener("focusin", ({ target }) => {
    if (!("joint" in target.dataset) || drag) return;
    [at, joint] = [Number(target.dataset.person), Number(target.dataset.joint)];
    paint();
  });

  function keys(event) {
    if (event.target.closest("input")) return;
    if (!steps.key(event) && !pressed(event)) return;
    event.preventDefault();
    if (joint !== null && at !== null) circles(at)[joint].focus({ preventScroll: true });
  }

  function pressed({ key, shiftKey, ctrlKey, metaKey, altKey, target }) {
    if (ctrlKey || metaKey || altKey) return false;
    const by = shiftKey ? LARGE : SMALL;
    const way = { ArrowLeft: [-by, 0], ArrowRight: [by, 0], ArrowUp: [0, -by], ArrowDown: [0, by] }[key];
    if (way) {
      const move = (one) => (joint === null ? pose.moved(one, ...way) : pose.jointMoved(one, joint, ...way));
      change(move, `${key} ${at} ${joint}`);
      return at !== null;
    }
    if ([" ", "Enter"].includes(key)) {
      if (!("joint" in target.dataset)) return false; // a button's own
      hide();
      return true;
    }
    const around = (factor, angle) => () => change((one) => pose.turned(one, pose.middleOf(one), factor, angle), key);
    const run = {
      "+": around(1.05, 0),
      "-": around(1 / 1.05, 0),
      ",": around(1, -Math.PI / 60),
      ".": around(1, Math.PI / 60),
      a: add,
      f: () => change(pose.flipped),
      h: hide,
      Delete: remove,
    }[key];
    run?.();
    return Boolean(run);
  }

  // --- drawing

  const drawn = []; // by person: {group, limbs, joints, extras}
  const handles = draw("g", { class: "handles" });
  const frame = draw("rect", { class: "body", data: { body: "" } });
  const stem = draw("line", { class: "stem" });
  const knob = draw("circle", { class: "knob", data: { turn: "" } });
  const corners = [0, 1, 2, 3].map((corner) => draw("rect", { class: `corner corner-${corner}`, data: { corner } }));
  handles.append(stem, knob, ...corners);

  const circles = (index) => drawn[index].joints;

  function paint(state = steps.now) {
    const { people, width, height } = state;
    if (at !== null && at >= people.length) at = people.length ? people.length - 1 : null;
    shape(paper, width, height);
    svg.setAttribute("viewBox", `0 0 ${width} ${height}`);
    while (drawn.length > people.length) drawn.pop().group.remove();
    while (drawn.length < people.length) drawn.push(drawPerson(drawn.length));
    const z = svg.getBoundingClientRect().width / width || 1;
    people.forEach((one, index) => paintPerson(drawn[index], one, index, z));
    paintHandles(people[at], z);
    order();
    sizes[0].value = width;
    sizes[1].value = height;
    more.disabled = people.length >= MOST;
    fewer.disabled = flip.disabled = at === null;
    out.disabled = at === null || joint === null;
    undo.disabled = !steps.done.length;
    redo.disabled = !steps.undone.length;
    say(told(state));
  }

  // What is chosen lies on top. What is in place already stays there: moving it would take the focus from it.
  function order() {
    const others = drawn.filter((_, index) => index !== at).map(({ group }) => group);
    const wanted = at === null ? others : [frame, ...others, drawn[at].group, handles];
    if (wanted.some((each, n) => svg.children[n] !== each) || svg.children.length > wanted.length)
      svg.replaceChildren(...wanted);
  }

  function told({ people }) {
    if (at === null) return words(people.length ? "pose.choose" : "pose.nobody");
    if (joint === null) return words("pose.hint");
    const { x, y, on } = people[at].joints[joint];
    const name = words(`joint.${pose.JOINTS[joint]}`);
    return words(on ? "pose.joint" : "pose.hidden", { name, x: Math.round(x), y: Math.round(y) });
  }

  function drawPerson(index) {
    const limbs = pose.LIMBS.map((_, n) => draw("line", { class: "limb", data: { body: "", person: index, limb: n } }));
    const joints = pose.JOINTS.map((name, n) => {
      const circle = draw("circle", { class: "joint", data: { joint: n, person: index }, tabindex: 0, role: "button" });
      circle.setAttribute("aria-label", words("pose.of", { name: words(`joint.${name}`), n: index + 1 }));
      circle.style.setProperty("--colour", pose.colourOf(n));
      return circle;
    });
    const holds = pose.JOINTS.map((_, n) => draw("circle", { class: "hold", data: { joint: n, person: index } }));
    const extras = draw("path", { class: "extras" });
    const group = draw("g", { class: "person" });
    group.append(...limbs, extras, ...joints, ...holds);
    return { group, limbs, joints, holds, extras };
  }

  function paintPerson({ group, limbs, joints, holds, extras }, { joints: points, extras: hanging }, index, z) {
    const isChosen = index === at;
    group.classList.toggle("chosen", isChosen);
    pose.LIMBS.forEach(([from, to], n) => {
      const [a, b] = [points[from], points[to]];
      set(limbs[n], { x1: a.x, y1: a.y, x2: b.x, y2: b.y, "stroke-width": Math.max(8, 5 / z) });
      limbs[n].style.stroke = pose.colourOf(n);
      limbs[n].classList.toggle("away", !(a.on && b.on));
    });
    points.forEach(({ x, y, on }, n) => {
      const near = Math.min(...points.map((p, m) => (m === n ? Infinity : Math.hypot(p.x - x, p.y - y))));
      const isThere = on || isChosen;
      for (const circle of [joints[n], holds[n]]) {
        set(circle, { cx: x, cy: y });
        circle.classList.toggle("away", !isThere);
      }
      set(joints[n], { r: Math.max(4, 5 / z), tabindex: isChosen ? 0 : -1 });
      set(holds[n], { r: Math.max(3 / z, Math.min(REACH / z, near * 0.5)) });
      joints[n].classList.toggle("off", !on);
      joints[n].classList.toggle("current", isChosen && joint === n);
    });
    const dot = Math.max(2, 2.5 / z);
    extras.setAttribute(
      "d",
      Object.values(hanging)
        .flat()
        .filter(({ on }) => on)
        .map(({ x, y }) => `M${x - dot} ${y}a${dot} ${dot} 0 1 0 ${2 * dot} 0a${dot} ${dot} 0 1 0 ${-2 * dot} 0`)
        .join(""),
    );
  }

  function paintHandles(one, z) {
    if (!one) return;
    const { left, top, right, bottom } = pose.boxOf(one);
    const around = 16 / z;
    const [x, y, width, height] = [left - around, top - around, right - left + 2 * around, bottom - top + 2 * around];
    set(frame, { x, y, width, height, "stroke-width": 1 / z, "stroke-dasharray": `${4 / z}` });
    const side = 10 / z;
    corners.forEach((corner, n) => {
      const [cx, cy] = [n % 2 ? x + width : x, n > 1 ? y + height : y];
      set(corner, { x: cx - side / 2, y: cy - side / 2, width: side, height: side, "stroke-width": 1 / z });
    });
    // above the head, or below the feet where there is no room
    const above = y - 22 / z > -20 / z;
    const [from, to] = above ? [y, y - 20 / z] : [y + height, y + height + 20 / z];
    set(stem, { x1: x + width / 2, x2: x + width / 2, y1: from, y2: to, "stroke-width": 1 / z });
    set(knob, { cx: x + width / 2, cy: to, r: 6 / z, "stroke-width": 1 / z });
  }

  new ResizeObserver(() => paint(drag?.live)).observe(svg);
  paint();
}

function dragged({ held, joint, origin, anchor, from }, to, [dx, dy]) {
  if (held === "joint") return pose.jointMoved(origin, joint, dx, dy);
  if (held === "body") return pose.moved(origin, dx, dy);
  const [fromX, fromY, toX, toY] = [from[0] - anchor[0], from[1] - anchor[1], to[0] - anchor[0], to[1] - anchor[1]];
  if (held === "turn") return pose.turned(origin, anchor, 1, Math.atan2(toY, toX) - Math.atan2(fromY, fromX));
  const along = (fromX * toX + fromY * toY) / (fromX * fromX + fromY * fromY || 1);
  return pose.turned(origin, anchor, Math.max(0.05, along));
}

function draw(tag, { data = {}, ...attributes } = {}) {
  const element = document.createElementNS(SVG, tag);
  Object.assign(element.dataset, data);
  set(element, attributes);
  return element;
}

function set(element, attributes) {
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
}
