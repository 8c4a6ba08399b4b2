// What the stage says where there is no picture: the first steps, and what went wrong.
import * as create from "./create.js";
import { button, copy, h, icon, sentence, toast } from "./dom.js";
import * as jobs from "./jobs.js";
import * as models from "./models.js";
import { t } from "./words.js";

// `kind` is a name of CARDS; `back` leads to what was shown before, if anything was.
export const drawCard = (kind, job, back) => CARDS[kind](job, back).filter(Boolean);

// Another card is due when this changes.
export const cardKey = (kind, job) =>
  JSON.stringify([kind, job?.id, jobs.state.engine.state, create.chosen()?.name, create.models.length]);

export const isCard = (kind) => kind in CARDS;

const CARDS = {
  empty() {
    const model = create.chosen();
    if (create.models.length && !model) return noModel();
    const prompts = model?.examples?.length ? model.examples : EXAMPLES;
    return [
      h("span", { class: "mark" }, icon("spark")),
      h("h2", {}, t("empty.title")),
      h("p", {}, t("empty.how")),
      h(
        "div",
        { class: "examples", role: "group", "aria-label": t("empty.examples") },
        ...prompts
          .slice(0, 6)
          .map((prompt) =>
            h("button", { type: "button", class: "chip", onclick: () => create.example(prompt) }, prompt),
          ),
      ),
      hasOnlyStarter() &&
        h(
          "p",
          {},
          h("button", { type: "button", class: "link", onclick: getMore }, t("empty.more")),
        ),
      jobs.state.engine.state === "starting" && h("p", { class: "small busy" }, t("empty.starting")),
      h("p", { class: "small" }, t("empty.image")),
    ];
  },

  failed(job, back) {
    return [
      h("span", { class: "mark" }, icon("alert")),
      h("h2", {}, t("failed.title")),
      h("p", { class: "reason" }, sentence(job.error) || t("failed.unknown")),
      h("p", { class: "small" }, t("failed.what")),
      h(
        "div",
        { class: "buttons" },
        h("button", { type: "button", class: "button primary", onclick: create.generate }, t("failed.again")),
        button({ text: t("failed.copy"), icon: "copy", onclick: () => copyDetails(job) }),
        back && button({ text: t("failed.back"), icon: "back", onclick: back }),
      ),
    ];
  },

  nothing(job) {
    const stopped = job?.state === "cancelled";
    return [
      h("span", { class: "mark" }, icon(stopped ? "stop" : "skip")),
      h("h2", {}, t(stopped ? "nothing.stopped" : "nothing.skipped")),
      h("p", {}, t("nothing.what")),
    ];
  },

  broken() {
    const { engine } = jobs.state;
    return [
      h("span", { class: "mark" }, icon("alert")),
      h("h2", {}, t("broken.title")),
      h("p", { class: "reason" }, sentence(engine.detail)),
      h("p", { class: "small" }, t("broken.what")),
      h(
        "div",
        { class: "buttons" },
        button({ text: t("failed.copy"), icon: "copy", onclick: () => copyDetails(null) }),
      ),
    ];
  },
};

// Nothing but the small embedded model: others are offered, not fetched.
const hasOnlyStarter = () => create.models.every(({ name, problem }) => problem || name === "starter");

function getMore() {
  document.getElementById("tab-models-button")?.click();
  models.show("get");
}

function noModel() {
  return [
    h("span", { class: "mark" }, icon("alert")),
    h("h2", {}, t("model.none")),
    h("p", {}, t("model.how")),
    h("ul", { class: "reason" }, ...create.models.map(({ title, problem }) => h("li", {}, `${title}: ${problem}`))),
    h(
      "div",
      { class: "buttons" },
      h("button", { type: "button", class: "button", onclick: create.loadModels }, t("model.look")),
    ),
  ];
}

// What a model draws well, where it does not say so itself.
// For models that bring no examples of their own.
const EXAMPLES = [
  "a lighthouse on a cliff at dusk, oil painting",
  "a small house in a birch forest, watercolour",
  "portrait of a fox, soft light, detailed",
  "a quiet harbour in the morning mist",
];

async function copyDetails(job) {
  const { preview, ...rest } = job ?? {};
  await copy(JSON.stringify({ ...rest, engine: jobs.state.engine }, null, 2));
  toast(t("action.copy.done"), { kind: "done", close: t("close") });
}
