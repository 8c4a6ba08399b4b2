// One picture of a set: with the part that is learnt, or that part alone; and large, with what is wrong with it.
import { dialog, h } from "./dom.js";
import { url } from "./server.js";
import { complain, look, seen, send, way } from "./train-state.js";
import { t } from "./words.js";

// The whole picture with the part that is learnt, or that part alone.
export function drawPaper(picture, eye = "crops", s = 256) {
  const { crop, width, height } = picture;
  if (eye === "seen") {
    const alone = h("img", {
      src: url(`${picture.image.replace("?", "/crop?")}&${seen()}`),
      alt: "",
      loading: "lazy",
      draggable: false,
    });
    const paper = h("span", { class: "print" }, alone);
    shape(paper, crop.width, crop.height);
    return h("span", { class: "mat" }, paper);
  }
  const whole = h("img", { src: url(`${picture.thumb}&s=${s}`), alt: "", loading: "lazy", draggable: false });
  const cut = h("i", { class: "crop" });
  const [across, down] = crop.scaled;
  const isCut = crop.width < across || crop.height < down;
  Object.assign(cut.style, {
    left: `${(crop.left / across) * 100}%`,
    top: `${(crop.top / down) * 100}%`,
    width: `${(crop.width / across) * 100}%`,
    height: `${(crop.height / down) * 100}%`,
  });
  const paper = h("span", { class: "print" }, whole, isCut ? cut : null);
  shape(paper, width, height);
  return h("span", { class: "mat" }, paper);
}

function shape(paper, width, height) {
  paper.style.aspectRatio = `${width} / ${height}`;
  if (width >= height) paper.style.width = "100%";
  else paper.style.height = "100%";
}

// One picture, large: what is wrong with it and its caption.
export function openPicture(picture) {
  const caption = h("textarea", { class: "prompt", rows: 3, "aria-label": t("train.caption") });
  caption.value = picture.caption;
  const { crop } = picture;
  const facts = [
    `${picture.width} × ${picture.height}`,
    t("train.becomes", { size: `${crop.width} × ${crop.height}` }),
    picture.name,
  ];
  const sheet = dialog(
    picture.name.split("/").at(-1),
    t("close"),
    h(
      "div",
      { class: "large" },
      h("figure", {}, drawPaper(picture, "crops", 512), h("figcaption", {}, t("train.eye.crops"))),
      h("figure", {}, drawPaper(picture, "seen"), h("figcaption", {}, t("train.eye.seen"))),
    ),
    h("p", { class: "small" }, facts.join(" · ")),
    picture.flags.length
      ? h(
          "ul",
          { class: "flags" },
          ...picture.flags.map((flag) => h("li", {}, `${t(`train.flag.${flag.kind}`)}: ${flag.message}`)),
        )
      : "",
    h("div", { class: "field" }, h("div", { class: "head" }, h("label", {}, t("train.caption"))), caption),
  );
  sheet.classList.add("train-picture");
  sheet.addEventListener("close", async () => {
    sheet.remove();
    if (caption.value === picture.caption) return;
    try {
      await send(way(`/images/${picture.id}/caption`), { caption: caption.value });
      look();
    } catch (error) {
      complain(error);
    }
  });
  sheet.showModal();
}
