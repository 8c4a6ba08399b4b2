// The trainings that there were and are, on the first page of the Train tab.
import { h, icon } from "./dom.js";
import { url } from "./server.js";
import { go, state } from "./train-state.js";
import { inOrder, isLive, lookAtWhole } from "./trainings.js";
import { number, seconds, t } from "./words.js";

export function drawTrainings() {
  const list = h("ul", { class: "trainings" });
  const title = h("h3", {}, t("train.trainings"));
  const element = h("section", {}, title, list);
  const paint = () => {
    const found = inOrder();
    element.hidden = !found.length;
    list.replaceChildren(...found.map(drawOne));
  };
  return { element, paint };
}

export const share = (one) => (one.steps ? Math.min(1, (one.step ?? 0) / one.steps) : 0);

// "Step 120 of 400 · about 2 min left"
export function describe(one) {
  if (one.state === "queued")
    return t(one.position === 1 ? "train.waits.next" : "train.waits", { n: one.position ?? 1 });
  const parts = [];
  if (one.steps) parts.push(t("train.at", { step: number(one.step ?? 0, 0), steps: number(one.steps, 0) }));
  if (one.state === "running" && one.resting) parts.push(t("train.resting"));
  else if (one.state === "running" && one.stage && one.stage !== "training")
    parts.push(t(`train.stage.${one.stage}`, {}, one.stage));
  if (one.state === "running" && one.seconds_left)
    parts.push(t("stage.left", { time: seconds(Math.max(1, one.seconds_left)) }));
  return parts.join(" · ");
}

export const pill = (one) =>
  h("span", { class: `state ${one.state}` }, h("i", { class: "dot" }), t(`train.state.${one.state}`));

export function open(one) {
  const isSet = state.sets?.some(({ name }) => name === one.data); // else a folder of the command line
  go(one.state === "done" ? "result" : "training", { training: one.name, name: isSet ? one.data : null });
  lookAtWhole();
}

function drawOne(one) {
  const fill = h("i", { class: "fill" });
  fill.style.transform = `scaleX(${share(one)})`;
  return h(
    "li",
    {},
    h(
      "button",
      { type: "button", data: { training: one.name }, onclick: () => open(one) },
      h(
        "span",
        { class: "still" },
        one.preview ? h("img", { src: url(`${one.preview}?s=128`), alt: "", loading: "lazy" }) : icon("spark"),
      ),
      h(
        "span",
        { class: "about" },
        h("b", {}, one.name),
        h("small", {}, [one.model, one.data].filter(Boolean).join(" · ")),
      ),
      h(
        "span",
        { class: "how-far" },
        isLive(one) ? h("span", { class: "track" }, fill) : null,
        h("small", {}, one.state === "failed" ? one.error : describe(one)),
      ),
      pill(one),
    ),
  );
}
