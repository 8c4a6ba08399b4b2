// Between form and stage: drag it, or move it with the arrow keys; the width is kept.
import { h, keep } from "./dom.js";
import { t } from "./words.js";

export function drawSash() {
  const root = document.documentElement;
  const limits = [300, 620];
  const sash = h("div", {
    class: "sash",
    role: "separator",
    tabindex: "0",
    "aria-orientation": "vertical",
    "aria-label": t("sash"),
    "aria-valuemin": limits[0],
    "aria-valuemax": limits[1],
  });
  const width = () => document.getElementById("params").getBoundingClientRect().width;
  const tell = () => sash.setAttribute("aria-valuenow", String(Math.round(width())));
  const set = (to) => {
    const now = Math.round(Math.min(limits[1], Math.max(limits[0], to)));
    root.style.setProperty("--params-width", `${now}px`);
    keep("width", now);
    tell();
  };
  sash.addEventListener("pointerdown", (event) => {
    event.preventDefault();
    sash.setPointerCapture(event.pointerId);
    const start = width() - event.clientX;
    const move = (moved) => set(start + moved.clientX);
    sash.addEventListener("pointermove", move);
    sash.addEventListener("pointerup", () => sash.removeEventListener("pointermove", move), { once: true });
  });
  sash.addEventListener("dblclick", () => {
    root.style.removeProperty("--params-width");
    keep("width", null);
    tell();
  });
  sash.addEventListener("keydown", (event) => {
    const by = { ArrowLeft: -16, ArrowRight: 16 }[event.key];
    if (by) set(width() + by);
  });
  tell();
  return sash;
}
