// One picture over the whole window; arrows walk through the history.
import { drawActions } from "./actions.js";
import { button, h, icon } from "./dom.js";
import * as gallery from "./pictures.js";
import { url } from "./server.js";
import { Viewer } from "./viewer.js";
import { t } from "./words.js";

let box = null;
let shown = null;
let done = () => {};

// `closed` is told the picture that was shown last.
export function open(picture, closed = () => {}) {
  box ??= build();
  done = closed;
  box.dialog.showModal();
  show(picture);
}

function build() {
  const paper = h("div", { class: "paper" });
  const room = h("div", { class: "room", tabindex: "-1", autofocus: true }, paper);
  const count = h("span", { class: "count" });
  const step = (by) =>
    h(
      "button",
      {
        type: "button",
        class: by > 0 ? "turn next" : "turn back",
        "aria-label": t(by > 0 ? "lightbox.next" : "lightbox.back"),
        onclick: () => walk(by),
      },
      icon(by > 0 ? "next" : "back"),
    );
  const back = step(-1);
  const next = step(1);
  const title = h("p", { class: "title" });
  const actions = h(
    "div",
    { class: "actions" },
    ...drawActions(
      () => shown,
      (name) => ["use", "inpaint", "parameters"].includes(name) && leave(),
    ),
  );
  const dialog = h(
    "dialog",
    { id: "lightbox", "aria-label": t("lightbox.title") },
    h("header", {}, count, title, button({ label: t("close"), icon: "close", onclick: () => dialog.close() })),
    room,
    back,
    next,
    h("footer", {}, actions),
  );
  // what was done shows on the stage, not this picture
  const leave = () => {
    done = () => {};
    dialog.close();
  };
  dialog.addEventListener("close", () => done(shown));
  dialog.addEventListener("keydown", (event) => {
    const run = {
      ArrowLeft: () => walk(-1),
      ArrowRight: () => walk(1),
      f: () => dialog.close(),
      s: () => dialog.querySelector('[data-action="download"]').click(),
      0: () => viewer.fit(),
      1: () => viewer.zoom(1),
      "+": () => viewer.zoom(viewer.z * 1.25),
      "-": () => viewer.zoom(viewer.z / 1.25),
    }[event.key];
    if (!run || event.ctrlKey || event.metaKey || event.altKey) return;
    event.preventDefault();
    run();
  });
  room.addEventListener("click", (event) => event.target === room && viewer.fitted && dialog.close());
  let start = null;
  room.addEventListener(
    "pointerdown",
    (event) => (start = event.pointerType === "touch" && event.isPrimary ? event : null),
  );
  room.addEventListener("pointerup", (event) => {
    if (!start || !viewer.fitted) return;
    const [dx, dy] = [event.clientX - start.clientX, event.clientY - start.clientY];
    if (Math.abs(dx) > 60 && Math.abs(dy) < 50) walk(dx < 0 ? 1 : -1); // a swipe
  });
  document.body.append(dialog);
  const viewer = new Viewer(room, paper);
  return { dialog, paper, room, count, back, next, title, viewer };
}

async function walk(by) {
  const at = gallery.pictures.findIndex((one) => one.id === shown.id);
  if (at + by >= gallery.pictures.length - 2) await gallery.loadMore();
  const next = gallery.pictures[at + by];
  if (next) show(next);
}

function show(picture) {
  shown = picture;
  const at = gallery.pictures.findIndex((one) => one.id === picture.id);
  box.count.textContent = t("lightbox.count", {
    n: at + 1,
    total: `${gallery.pictures.length}${gallery.state.more ? "+" : ""}`,
  });
  box.title.textContent = gallery.nameOf(picture);
  box.back.disabled = at <= 0;
  box.next.disabled = at < 0 || at === gallery.pictures.length - 1;
  const image = h("img", { src: url(picture.url), alt: box.title.textContent, draggable: false });
  image
    .decode()
    .catch(() => {})
    .then(() => {
      if (shown !== picture) return;
      box.viewer.hold(picture.width, picture.height);
      box.viewer.fit();
      box.paper.replaceChildren(image);
    });
}
