// The strip of finished pictures at the side: newest first, more on scrolling, draggable.
import * as create from "./create.js";
import { button, h, reveal } from "./dom.js";
import * as gallery from "./pictures.js";
import * as stage from "./stage.js";
import { url } from "./server.js";
import { t } from "./words.js";

export function draw({ element }) {
  const list = h("div", { class: "thumbs", role: "listbox", "aria-label": t("history") });
  const end = h("div", { class: "end" });
  const none = h("p", { class: "nothing", hidden: true }, t("history.empty"));
  const inpaint = drawInpaint(list);
  element.querySelector(".surface").append(list, inpaint, none, end);
  const drawn = new Map();

  const thumb = (picture) =>
    h(
      "button",
      {
        type: "button",
        role: "option",
        tabindex: "-1",
        class: gallery.isMap(picture) ? "thumb map" : "thumb",
        data: { picture: picture.id, mark: t("map") },
        "aria-label": gallery.nameOf(picture),
        draggable: true,
        onclick: () => stage.show({ picture }),
        ondblclick: () => stage.large(picture),
        ondragstart: (event) => gallery.drag(event, picture),
      },
      h("img", {
        src: url(picture.thumb),
        alt: "",
        width: picture.width,
        height: picture.height,
        loading: "lazy",
        decoding: "async",
        draggable: false,
      }),
    );

  const paint = () => {
    const shown = stage.picture();
    gallery.pictures.forEach((picture, at) => {
      if (!drawn.has(picture.id)) {
        const made = thumb(picture);
        drawn.set(picture.id, made);
        list.insertBefore(made, list.children[at] ?? null);
      }
      const one = drawn.get(picture.id);
      const selected = String(picture.id === shown?.id);
      if (one.getAttribute("aria-selected") !== selected) {
        one.setAttribute("aria-selected", selected);
        if (selected === "true" && !one.matches(":hover, :focus")) reveal(one, list.closest("#strip"));
      }
      one.tabIndex = selected === "true" || (!shown && at === 0) ? 0 : -1;
    });
    none.hidden = !gallery.state.loaded || gallery.pictures.length > 0;
  };

  list.addEventListener("keydown", (event) => {
    const by = { ArrowDown: 1, ArrowRight: 1, ArrowUp: -1, ArrowLeft: -1 }[event.key];
    const now = document.activeElement.closest(".thumb");
    const target = by
      ? by > 0
        ? now?.nextElementSibling
        : now?.previousElementSibling
      : { Home: list.firstChild, End: list.lastChild }[event.key];
    if (!target) return;
    event.preventDefault();
    target.focus();
    target.click();
  });

  gallery.onPictures(paint);
  stage.onShown(paint);
  new IntersectionObserver((seen) => seen.some((one) => one.isIntersecting) && gallery.loadMore(), {
    root: null,
    rootMargin: "400px",
  }).observe(end);
  paint();
}

// On the picture under the mouse; with keys or fingers the same is below the stage.
function drawInpaint(list) {
  let picture = null;
  const run = () => create.usePicture(picture, "inpaint");
  const one = button({
    label: t("action.inpaint"),
    icon: "brush",
    class: "small on-thumb",
    hidden: true,
    tabIndex: -1,
    onclick: run,
  });
  list.addEventListener("pointerover", (event) => {
    const thumb = event.target.closest(".thumb");
    picture = gallery.pictures.find(({ id }) => String(id) === thumb?.dataset.picture) ?? null;
    one.hidden = !picture || event.pointerType === "touch" || !create.canInpaint();
    if (thumb)
      Object.assign(one.style, {
        top: `${thumb.offsetTop + 5}px`,
        left: `${thumb.offsetLeft + thumb.offsetWidth - 33}px`,
      });
  });
  for (const each of [list, one])
    each.addEventListener(
      "pointerleave",
      ({ relatedTarget }) => (one.hidden = !relatedTarget?.closest(".thumb, .on-thumb")),
    );
  return one;
}
