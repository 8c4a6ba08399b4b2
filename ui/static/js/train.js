// The Train tab: a walk from pictures to a LoRA that is tried in Create.
import * as create from "./create.js";
import { button, h } from "./dom.js";
import { drawProgress, dropped, take } from "./train-bring.js";
import { drawCaptionsStep } from "./train-captions.js";
import { drawHome } from "./train-home.js";
import { drawResultStep } from "./train-result.js";
import { drawRunStep } from "./train-run.js";
import { drawSetStep } from "./train-set.js";
import { drawSettingsStep } from "./train-settings.js";
import { go, hear, lookAtSets, look, startForm, state, STEPS } from "./train-state.js";
import { lookAtTrainings, training } from "./trainings.js";
import { plain } from "./train-upload.js";
import { t } from "./words.js";

const DRAWN = {
  home: drawHome,
  set: drawSetStep,
  captions: drawCaptionsStep,
  settings: drawSettingsStep,
  training: drawRunStep,
  result: drawResultStep,
};

export function draw({ element, props }) {
  startForm(props.schema);
  const steps = new Map(); // drawn when first seen
  const body = h("div", { class: "body" });
  const walk = drawWalk();
  const page = h("div", { class: "page", tabindex: "-1" }, walk.element, drawProgress(), body);
  element.querySelector(".surface").append(page);

  const paint = ({ went } = {}) => {
    if (!(state.step in DRAWN) || !isOpen(state.step)) state.step = "home";
    if (!steps.has(state.step)) steps.set(state.step, DRAWN[state.step]());
    const step = steps.get(state.step);
    if (body.firstChild !== step.element) body.replaceChildren(step.element);
    walk.paint();
    step.paint();
    page.dataset.step = state.step;
    if (went) page.scrollTop = 0;
  };
  hear(paint);
  paint();

  new IntersectionObserver((seen) => {
    if (!seen.some((one) => one.isIntersecting)) return;
    lookAtSets();
    lookAtTrainings();
    if (state.name) look();
  }).observe(page);

  const isFresh = (place) => state.step === "home" || "fresh" in place.dataset;
  create.addZone({
    at: "#train",
    words: () => t(state.step === "home" || !state.name ? "train.drop.new" : "train.drop.here", { name: state.name }),
    files: (transfer, place) => dropped(transfer, { fresh: isFresh(place) }),
    paste: (files, place) => take(plain(files), { fresh: isFresh(place) }),
  });
}

// Whether a step has what it is about.
export const isOpen = (step) => {
  if (step === "home") return true;
  if (["set", "captions", "settings"].includes(step)) return Boolean(state.name);
  return Boolean(state.training);
};

function drawWalk() {
  const home = button({ label: t("train.home"), icon: "grid", class: "to-home", onclick: () => go("home") });
  const items = STEPS.map((step, at) => {
    const about = h("small");
    const one = h(
      "button",
      { type: "button", data: { step }, onclick: () => go(step) },
      h("i", {}, String(at + 1)),
      h("span", {}, h("b", {}, t(`train.step.${step}`)), about),
    );
    return { step, one, about };
  });
  const element = h(
    "nav",
    { class: "walk", "aria-label": t("train.walk") },
    home,
    h("ol", {}, ...items.map(({ one }) => h("li", {}, one))),
  );
  const paint = () => {
    element.hidden = state.step === "home";
    for (const { step, one, about } of items) {
      one.disabled = !isOpen(step);
      one.setAttribute("aria-current", step === state.step ? "step" : "false");
      one.classList.toggle("done", isDone(step));
      about.textContent = isOpen(step) ? aboutStep(step) : "";
    }
  };
  return { element, paint };
}

const isDone = (step) => {
  const { set } = state;
  if (step === "set") return Boolean(set?.images);
  if (step === "captions")
    return (
      Boolean(set?.images) && set.pictures.every(({ caption, regular, excluded }) => caption || regular || excluded)
    );
  if (step === "training") return training()?.state === "done";
  return false;
};

function aboutStep(step) {
  const { set } = state;
  if (step === "set") return set?.name ?? "";
  if (step === "captions" && set) {
    const lacking = set.pictures.filter(({ caption, regular, excluded }) => !caption && !regular && !excluded).length;
    return set.images
      ? t(lacking ? "train.about.lacking" : "train.about.captioned", { n: lacking, count: lacking })
      : "";
  }
  if (step === "training" && training()) return t(`train.state.${training().state}`);
  return "";
}
