// Where the Train tab begins: a place to drop pictures, the sets that are there, and the trainings.
import { button, h, icon } from "./dom.js";
import { url } from "./server.js";
import { pickFiles, pickPictures } from "./train-bring.js";
import { drawTrainings } from "./train-list.js";
import { go, state } from "./train-state.js";
import { t } from "./words.js";

export function drawHome() {
  const sets = h("div", { class: "sets" });
  const title = h("h3", {}, t("train.sets"));
  const trainings = drawTrainings();
  const element = h(
    "div",
    { class: "home" },
    h("header", {}, h("h2", {}, t("train.title")), h("p", {}, t("train.about"))),
    drawDrop({ fresh: true }),
    trainings.element,
    title,
    sets,
  );
  const paint = () => {
    title.hidden = !state.sets?.length;
    sets.replaceChildren(...(state.sets ?? []).map(drawSet));
    trainings.paint();
  };
  return { element, paint };
}

// A place for files: dropped, chosen, or from the gallery.
export function drawDrop({ fresh = false } = {}) {
  const choose = button({
    label: t("train.files"),
    text: t("train.files"),
    icon: "upload",
    class: "primary",
    onclick: () => pickFiles({ fresh }),
  });
  const pictures = button({
    label: t("train.gallery"),
    text: t("train.gallery"),
    icon: "image",
    onclick: () => pickPictures({ fresh }),
  });
  return h(
    "div",
    { class: "drop", data: fresh ? { fresh: "" } : {} },
    h("span", { class: "mark" }, icon("upload")),
    h("strong", {}, t(fresh ? "train.drop" : "train.drop.more")),
    h("p", { class: "small" }, t("train.drop.what")),
    h("div", { class: "buttons" }, choose, pictures),
  );
}

function drawSet(set) {
  const facts = [
    t("train.pictures", { n: set.images, count: set.images }),
    set.images && set.captioned < set.images ? t("train.uncaptioned", { n: set.images - set.captioned }) : null,
  ].filter(Boolean);
  return h(
    "button",
    { type: "button", class: "set", data: { set: set.name }, onclick: () => go("set", { name: set.name }) },
    h(
      "span",
      { class: "cover" },
      ...set.cover.map((path) => h("img", { src: url(`${path}&s=128`), alt: "", loading: "lazy", draggable: false })),
      set.cover.length ? null : icon("image"),
    ),
    h("strong", {}, set.name),
    h("small", {}, facts.join(" · ")),
  );
}
