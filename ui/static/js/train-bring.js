// How pictures come to a set on the page: the drop zone, the file picker, the gallery, and the bar that shows progress.
import { button, dialog, h, icon } from "./dom.js";
import * as gallery from "./pictures.js";
import { url } from "./server.js";
import { complain, go, look, lookAtSets, said, send, state, way } from "./train-state.js";
import { bring, createSet, filesOf, nameFor, plain, TAKEN } from "./train-upload.js";
import { t } from "./words.js";

let bar = null; // while something is on its way
const bars = new Set();

// Pictures for the set in hand, or for a new one.
export async function take(files, { fresh = false } = {}) {
  if (!files.length) return;
  if (bar) return complain(new Error(t("train.upload.busy")));
  const stop = new AbortController();
  bar = { words: t("train.upload.begin"), share: 0, stop: () => stop.abort() };
  paint();
  try {
    const name = fresh || !state.name ? await createSet(nameFor(files)) : state.name;
    if (name !== state.name) go("set", { name });
    const show = ({ done, total, share, name: now }) => {
      bar = { ...bar, words: t("train.upload.at", { n: Math.min(done + 1, total), total, name: now }), share };
      paint();
    };
    await bring(name, files, show, stop.signal);
  } catch (error) {
    complain(error);
  } finally {
    bar = null;
    paint();
  }
  await Promise.all([look(), lookAtSets()]);
}

const paint = () => bars.forEach((draw) => draw());

// Shows what is on its way, with a way to stop it.
export function drawProgress() {
  const words = h("span");
  const fill = h("i", { class: "fill" });
  const stop = button({ label: t("stop"), icon: "close", class: "small", onclick: () => bar?.stop() });
  const element = h("div", { class: "bringing", role: "status", hidden: true }, fill, icon("upload"), words, stop);
  bars.add(() => {
    element.hidden = !bar;
    if (!bar) return;
    words.textContent = bar.words;
    fill.style.transform = `scaleX(${bar.share})`;
  });
  return element;
}

export function pickFiles(options) {
  const input = h("input", { type: "file", multiple: true, accept: TAKEN, hidden: true });
  input.addEventListener("change", () => {
    take(plain(input.files), options);
    input.remove();
  });
  input.addEventListener("cancel", () => input.remove());
  document.body.append(input);
  input.click();
}

export const dropped = async (transfer, options) => take(await filesOf(transfer), options);

// Finished pictures of the gallery, several at once; their prompts become captions.
export function pickPictures(options = {}) {
  const chosen = new Set();
  const grid = h("div", {
    class: "picking",
    role: "listbox",
    "aria-multiselectable": "true",
    "aria-label": t("train.gallery"),
  });
  const add = button({
    label: t("train.gallery.add"),
    text: t("train.gallery.add"),
    class: "primary",
    onclick: () => agree(),
  });
  const drawn = new Map();
  const draw = () => {
    for (const picture of gallery.pictures.filter((one) => !gallery.isMap(one))) {
      if (drawn.has(picture.id)) continue;
      const one = h(
        "button",
        {
          type: "button",
          role: "option",
          "aria-selected": "false",
          "aria-label": gallery.nameOf(picture),
          onclick: () => {
            if (!chosen.delete(picture.id)) chosen.add(picture.id);
            one.setAttribute("aria-selected", String(chosen.has(picture.id)));
            count();
          },
        },
        h("img", { src: url(picture.thumb), alt: "", loading: "lazy", draggable: false }),
        h("span", { class: "tick" }, icon("check")),
      );
      drawn.set(picture.id, one);
      grid.append(one);
    }
    more.hidden = !gallery.state.more;
    none.hidden = drawn.size > 0;
  };
  const count = () => {
    add.disabled = !chosen.size;
    add.querySelector(".text").textContent = t("train.gallery.take", { n: chosen.size, count: chosen.size });
  };
  const more = button({
    label: t("train.gallery.more"),
    text: t("train.gallery.more"),
    onclick: async () => (await gallery.loadMore(), draw()),
  });
  const none = h("p", { class: "nothing" }, t("train.gallery.none"));
  const sheet = dialog(
    t("train.gallery"),
    t("close"),
    h("p", { class: "small" }, t("train.gallery.how")),
    h("div", { class: "picking-room" }, grid, none, more),
    h("div", { class: "answers" }, add),
  );
  sheet.classList.add("train-gallery");
  sheet.addEventListener("close", () => sheet.remove());
  const agree = async () => {
    add.disabled = true;
    try {
      const name = options.fresh || !state.name ? await createSet(t("train.set.untitled")) : state.name;
      const { ids } = await send(way("/pictures", name), { pictures: [...chosen] });
      sheet.close();
      said(t("train.upload.done", { n: ids.length, count: ids.length }));
      if (name !== state.name) go("set", { name });
      else look();
      lookAtSets();
    } catch (error) {
      complain(error);
      add.disabled = false;
    }
  };
  draw();
  count();
  sheet.showModal();
}
