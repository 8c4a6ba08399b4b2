// Step 5, the result: which checkpoint is best, the LoRA among the others, tried in Create, taken elsewhere.
import * as create from "./create.js";
import { button, h, icon } from "./dom.js";
import { url } from "./server.js";
import { pill } from "./train-list.js";
import { columnsOf, drawGrid } from "./train-samples.js";
import { said } from "./train-state.js";
import { training, whole } from "./trainings.js";
import { number, t } from "./words.js";

export function drawResultStep() {
  const title = h("h2");
  const mark = h("span");
  const about = h("p", { class: "where" });
  const samples = drawGrid({ label: t("train.samples"), empty: t("train.samples.none") });
  const files = h("div", { class: "files" });
  const test = button({ label: t("train.test"), text: t("train.test"), icon: "spark", class: "primary", data: { act: "test" }, "data-help": t("train.test.help"), onclick: tryOut });
  const element = h(
    "div",
    { class: "step run result" },
    h("header", { class: "run-head" }, h("div", { class: "names" }, h("div", { class: "title" }, title, mark), about), h("div", { class: "buttons" }, test)),
    h("section", {}, h("h3", { class: "helped", "data-help": t("train.checkpoints.help") }, t("train.checkpoints")), samples.element),
    h("section", {}, h("h3", {}, t("train.files.out")), files),
  );

  function paint() {
    const one = training();
    if (!one) return;
    title.textContent = one.name;
    mark.replaceChildren(pill(one));
    const here = whole?.name === one.name ? whole : null;
    test.disabled = !here?.checkpoints.length;
    about.textContent = t(one.state === "done" ? "train.result.done" : "train.result.soon", { name: one.name });
    samples.paint(columnsOf(here), here?.prompts ?? []);
    const link = (href, words) => h("a", { class: "button small", href: url(href), download: "" }, icon("download"), h("span", {}, words));
    files.replaceChildren(
      ...(here?.checkpoints ?? []).map(({ step, url: href }) => link(href, t("train.step.n", { n: number(step, 0) }))),
      ...(one.state === "done" ? [link(`api/trainings/${encodeURIComponent(one.name)}/export/diffusers`, "diffusers / peft")] : []),
    );
    if (!here?.checkpoints.length) files.replaceChildren(h("p", { class: "nothing" }, t("train.files.none")));
  }
  return { element, paint };
}

// The LoRA in the prompt box, with words that it has been told.
export function tryOut() {
  const one = training();
  const model = create.models.find(({ name }) => name === one.model);
  if (model && !model.problem) create.core.set("model", model.name);
  const words = (whole?.prompts?.[0] ?? "").trim();
  create.core.switchTo("text");
  create.core.set("prompt", `${words} <lora:${one.name}:1>`.trim());
  document.getElementById("tab-create-button")?.click();
  document.getElementById("field-prompt")?.focus();
  said(t("train.test.done", { name: one.name }));
}
