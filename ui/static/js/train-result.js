// Step 5, the result: which checkpoint is best, at which weight; the LoRA among the others, tried in Create, taken elsewhere.
import { ask } from "./ask.js";
import * as create from "./create.js";
import { button, h, icon, sentence } from "./dom.js";
import { url } from "./server.js";
import { pill } from "./train-list.js";
import { columnsOf, drawGrid } from "./train-samples.js";
import { complain, said, send } from "./train-state.js";
import { address, isLive, lookAtWhole, training, whole } from "./trainings.js";
import { number, t } from "./words.js";

const WEIGHTS = "0.6, 0.8, 1";
const AT_FIRST = 4; // checkpoints that a comparison begins with
const named = new Map(); // training -> the name under which a checkpoint of it was taken last

const stepWords = (step) => (step ? t("train.step.n", { n: number(step, 0) }) : t("train.untrained"));
const here = () => (whole?.name === training()?.name ? whole : null);

export function drawResultStep() {
  const title = h("h2");
  const mark = h("span");
  const about = h("p", { class: "where" });
  const choose = { words: t("train.take"), run: ({ step }) => takeStep(step) };
  const samples = drawGrid({ label: t("train.samples"), empty: t("train.samples.none"), choose });
  const comparison = drawComparison();
  const files = h("ul", { class: "files" });
  const diffusers = h(
    "a",
    { class: "button small", download: "" },
    icon("download"),
    h("span", {}, "diffusers / peft"),
  );
  const test = button({
    label: t("train.test"),
    text: t("train.test"),
    icon: "spark",
    class: "primary",
    data: { act: "test" },
    "data-help": t("train.test.help"),
    onclick: tryOut,
  });
  const element = h(
    "div",
    { class: "step run result" },
    h(
      "header",
      { class: "run-head" },
      h("div", { class: "names" }, h("div", { class: "title" }, title, mark), about),
      h("div", { class: "buttons" }, test),
    ),
    h(
      "section",
      {},
      h("h3", { class: "helped", "data-help": t("train.checkpoints.help") }, t("train.checkpoints")),
      samples.element,
    ),
    comparison.element,
    h(
      "section",
      {},
      h("h3", { class: "helped", "data-help": t("train.files.help") }, t("train.files.out")),
      files,
      diffusers,
    ),
  );

  function paint() {
    const one = training();
    if (!one) return;
    title.textContent = one.name;
    mark.replaceChildren(pill(one));
    const now = here();
    const isMade = one.state === "done" || named.has(one.name);
    test.disabled = !isMade;
    about.textContent = t(isMade ? "train.result.done" : "train.result.soon", {
      name: named.get(one.name) ?? one.name,
    });
    samples.paint(columnsOf(now), now?.prompts ?? []);
    comparison.paint(now);
    files.replaceChildren(...(now?.checkpoints ?? []).map(drawCheckpoint));
    if (!now?.checkpoints.length) files.replaceChildren(h("li", { class: "nothing" }, t("train.files.none")));
    diffusers.hidden = one.state !== "done";
    diffusers.href = url(address("/export/diffusers"));
  }
  return { element, paint };
}

const drawCheckpoint = ({ step, url: href }) =>
  h(
    "li",
    {},
    h("b", {}, stepWords(step)),
    button({
      label: t("train.take"),
      text: t("train.take"),
      icon: "check",
      class: "small",
      "data-help": t("train.take.help"),
      onclick: () => takeStep(step),
    }),
    h(
      "a",
      {
        class: "button small bare",
        href: url(href),
        download: "",
        "aria-label": t("train.download", { step: stepWords(step) }),
        "data-tip": t("train.download", { step: stepWords(step) }),
      },
      icon("download"),
    ),
  );

// A checkpoint becomes a LoRA that prompts can name.
function takeStep(step) {
  const { name } = training();
  if (!step) return complain(new Error(t("train.take.untrained")));
  const line = h("input", {
    type: "text",
    class: "line",
    value: named.get(name) ?? name,
    maxlength: 80,
    required: true,
    "aria-label": t("train.name"),
  });
  const run = async (overwrite) => {
    const as = line.value.trim();
    try {
      await send(address("/promote", name), { step, name: as, overwrite });
      named.set(name, as);
      said(t("train.take.done", { name: as, step: stepWords(step) }), {
        action: { text: t("train.test"), run: tryOut },
      });
      lookAtWhole();
    } catch (error) {
      if (error.status !== 409 || overwrite) throw error;
      const what = h("p", {}, sentence(error.message));
      ask(t("train.take.again", { name: as }), t("train.take.overwrite"), [what], () => run(true));
    }
  };
  const what = h("p", {}, t("train.take.what"));
  ask(t("train.take.title", { step: stepWords(step) }), t("train.take"), [what, line], () => run(false));
}

// Checkpoints by weights, drawn with one prompt and seed.
function drawComparison() {
  const steps = h("div", { class: "chips", role: "group", "aria-label": t("train.checkpoints") });
  const weights = h("input", { type: "text", class: "line", id: "train-weights", value: WEIGHTS, autocomplete: "off" });
  const words = h("input", { type: "text", class: "line", id: "train-words", maxlength: 2000, autocomplete: "off" });
  const seed = h("input", { type: "number", class: "box", id: "train-seed", value: "1", min: 0, step: 1 });
  const go = button({
    label: t("train.compare.go"),
    text: t("train.compare.go"),
    icon: "grid",
    id: "train-compare",
    onclick: draw,
  });
  const state = h("p", { class: "small", role: "status" });
  const grid = drawGrid({
    label: t("train.compare"),
    empty: t("train.compare.none"),
    choose: { words: t("train.take"), run: (_, row) => takeStep(shown.steps[row]) },
  });
  const field = (label, input, help) =>
    h(
      "div",
      { class: "field" },
      h(
        "div",
        { class: "head" },
        h("label", { for: input.id, ...(help ? { "data-help": help, class: "helped" } : {}) }, label),
      ),
      input,
    );
  const element = h(
    "section",
    { class: "compare" },
    h("h3", { class: "helped", "data-help": t("train.compare.help") }, t("train.compare")),
    steps,
    h(
      "div",
      { class: "asking" },
      field(t("param.prompt", {}, "Prompt"), words),
      field(t("train.weights"), weights, t("train.weights.help")),
      field(t("param.seed", {}, "Seed"), seed),
      go,
    ),
    state,
    grid.element,
  );
  let chosen = null; // steps
  let of = null; // the training that they are of
  let shown = null;

  function paint(now) {
    element.hidden = !now?.checkpoints.length;
    if (!now) return;
    const there = now.checkpoints.map(({ step }) => step);
    if (of !== now.name) {
      [of, chosen] = [now.name, null];
      words.value = now.prompts[0] ?? "";
    }
    const marked = new Set(chosen ?? [0, ...there.slice(-AT_FIRST)]);
    steps.replaceChildren(
      ...[0, ...there].map((step) =>
        h(
          "button",
          {
            type: "button",
            class: "chip",
            "aria-pressed": String(marked.has(step)),
            onclick: () => {
              if (!marked.delete(step)) marked.add(step);
              chosen = [...marked];
              paint(now);
            },
          },
          stepWords(step),
        ),
      ),
    );
    shown = now.grids[0] ?? null;
    const isBusy = isLive(shown);
    go.disabled = isBusy || !marked.size;
    const cells = shown?.cells.flat() ?? [];
    state.textContent =
      shown?.state === "failed"
        ? sentence(shown.error)
        : isBusy
          ? t("train.compare.at", { n: cells.filter(Boolean).length, total: cells.length })
          : "";
    const columns = (shown?.weights ?? []).map((weight, column) => ({
      label: t("train.weight.n", { n: number(weight) }),
      pictures: shown.cells.map((row) => row[column]),
    }));
    grid.paint(columns, (shown?.steps ?? []).map(stepWords));
  }

  async function draw() {
    go.disabled = true;
    const wanted = weights.value
      .split(/[,;\s]+/)
      .filter(Boolean)
      .map(Number);
    try {
      if (!wanted.length || wanted.some(Number.isNaN)) throw new Error(t("train.weights.wrong"));
      const pressed = [0, ...here().checkpoints.map(({ step }) => step)].filter(
        (_, at) => steps.children[at].getAttribute("aria-pressed") === "true",
      );
      await send(address("/grid"), {
        steps: pressed,
        weights: wanted,
        prompt: words.value.trim(),
        seed: Number(seed.value) || 0,
      });
      await lookAtWhole();
    } catch (error) {
      complain(error);
      go.disabled = false;
    }
  }

  return { element, paint };
}

// The LoRA in the prompt box, with words that it has been told.
function tryOut() {
  const one = training();
  const name = named.get(one.name) ?? one.name;
  const model = create.models.find((each) => each.name === one.model);
  if (model && !model.problem) create.core.set("model", model.name);
  const words = (here()?.prompts?.[0] ?? "").trim();
  create.core.switchTo("text");
  create.core.set("prompt", `${words} <lora:${name}:1>`.trim());
  document.getElementById("tab-create-button")?.click();
  document.getElementById("field-prompt")?.focus();
  said(t("train.test.done", { name }));
}
