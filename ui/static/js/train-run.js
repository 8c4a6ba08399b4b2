// Step 4, the training: how far it is, its curves, its samples, and the buttons that steer it.
import { ask } from "./ask.js";
import { button, h, icon, sentence } from "./dom.js";
import { describe, pill, share } from "./train-list.js";
import { drawPlot, short } from "./train-plot.js";
import { columnsOf, drawGrid } from "./train-samples.js";
import { complain, form, go, said, send, state } from "./train-state.js";
import { address, lookAtTrainings, lookAtWhole, training, trainings, whole } from "./trainings.js";
import { call } from "./server.js";
import { number, seconds, t } from "./words.js";

export function drawRunStep() {
  const title = h("h2");
  const where = h("p", { class: "where", role: "status" });
  const mark = h("span");
  const fill = h("i", { class: "fill" });
  const buttons = h("div", { class: "buttons steering" });
  const trouble = h("div", { class: "trouble", role: "alert", hidden: true });
  const numbers = h("dl", { class: "numbers" });
  const loss = drawPlot({ label: t("train.plot.loss"), empty: t("train.plot.none"), height: 250 });
  const rate = drawPlot({ label: t("train.plot.rate"), height: 90 });
  let log = false;
  const logs = h("input", {
    type: "checkbox",
    role: "switch",
    class: "switch",
    id: "train-log",
    onchange: () => ((log = logs.checked), paint()),
  });
  const samples = drawGrid({ label: t("train.samples"), empty: t("train.samples.none") });
  const drawn = h(
    "section",
    {},
    h("h3", { "data-help": t("train.samples.help"), class: "helped" }, t("train.samples")),
    samples.element,
  );
  const curves = h(
    "section",
    { class: "curves" },
    h(
      "div",
      { class: "plot-head" },
      h("h3", { "data-help": t("train.plot.help"), class: "helped" }, t("train.plot.loss")),
      h("label", { class: "log", for: "train-log" }, t("train.plot.log"), logs),
    ),
    loss.element,
    h("h3", {}, t("train.plot.rate")),
    rate.element,
    numbers,
  );
  const element = h(
    "div",
    { class: "step run" },
    h(
      "header",
      { class: "run-head" },
      h("div", { class: "names" }, h("div", { class: "title" }, title, mark), where),
      buttons,
      h("span", { class: "track" }, fill),
    ),
    trouble,
    drawn,
    curves,
  );

  function paint() {
    const one = training();
    if (!one) return;
    element.dataset.state = one.state;
    title.textContent = one.name;
    where.textContent = describe(one);
    mark.replaceChildren(pill(one));
    fill.style.transform = `scaleX(${share(one)})`;
    paintButtons(one);
    paintTrouble(one);
    const here = whole?.name === one.name ? whole : null;
    const { loss: raw = [], smoothed = [], validation = [], rate: rates = [] } = here?.history ?? {};
    const until = one.steps ?? 1;
    loss.paint(
      [
        { key: "raw", label: t("train.plot.raw"), points: raw },
        { key: "smooth", label: t("train.plot.smooth"), points: smoothed },
        { key: "held", label: t("train.plot.held"), points: validation, dots: true },
      ],
      { log, until },
    );
    rate.paint([{ key: "smooth", label: t("train.plot.rate"), points: rates }], { until });
    paintNumbers(one, smoothed);
    samples.paint(columnsOf(here), here?.prompts ?? []);
    // what ended before its first step has nothing to show
    for (const section of [drawn, curves]) section.hidden = one.state === "failed" && !here?.history.loss.length;
  }

  function paintNumbers(one, smoothed) {
    const last = smoothed.at(-1)?.[1];
    const rows = [
      [t("train.plot.smooth"), last === undefined ? "" : short(last)],
      [t("train.plot.held"), typeof one.validation === "number" ? short(one.validation) : ""],
      [t("train.plot.rate"), typeof one.rate === "number" ? one.rate.toExponential(1) : ""],
      [t("train.epoch"), one.epoch ? number(one.epoch, 0) : ""],
      [t("train.found.memory"), one.memory ? `${number(one.memory / 2 ** 30, 1)} GB` : ""],
      [t("train.left.time"), one.state === "running" && one.seconds_left ? seconds(Math.max(1, one.seconds_left)) : ""],
    ];
    numbers.replaceChildren(
      ...rows.filter(([, value]) => value).map(([key, value]) => h("div", {}, h("dt", {}, key), h("dd", {}, value))),
    );
  }

  let shownFor = "";
  function paintButtons(one) {
    const key = `${one.name} ${one.state}`;
    if (key === shownFor) return; // a button that is pressed stays there
    shownFor = key;
    const act = (what, name, run, look = {}) =>
      button({
        label: t(`train.${what}`),
        text: t(`train.${what}`),
        icon: name,
        data: { act: what },
        "data-help": t(`train.${what}.help`),
        onclick: (event) => run(event.currentTarget),
        ...look,
      });
    const order = (what) => (element) => steer(what, element);
    const all = {
      queued: [act("stop", "stop", order("stop"))],
      running: [
        act("sample", "image", order("sample")),
        act("save", "download", order("save")),
        act("pause", PAUSE, order("pause")),
        act("stop", "stop", order("stop")),
      ],
      paused: [act("delete", "trash", remove), act("resume", "next", order("resume"), { class: "primary" })],
      stopped: [act("delete", "trash", remove), act("resume", "next", order("resume"), { class: "primary" })],
      failed: [act("delete", "trash", remove), act("resume", "next", order("resume"))],
      done: [act("delete", "trash", remove), act("result", "next", () => go("result"), { class: "primary" })],
    };
    buttons.replaceChildren(...(all[one.state] ?? []));
  }

  // An error may bring a setting with which it would go on, or would have to begin anew.
  function paintTrouble(one) {
    trouble.hidden = one.state !== "failed";
    const key = JSON.stringify([one.name, one.state, one.error, one.changes]);
    if (trouble.dataset.key === key) return;
    trouble.dataset.key = key;
    const changes = Object.entries(one.changes ?? {});
    const words = changes.map(([field, value]) => {
      const declared = form.fields.get(field);
      const shown = typeof value === "boolean" ? t(value ? "train.on" : "train.off") : String(value);
      return `${declared ? form.label(declared) : field}: ${shown}`;
    });
    trouble.replaceChildren(
      icon("alert"),
      h(
        "div",
        {},
        h("strong", {}, sentence(one.error ?? t("failed.unknown"))),
        words.length ? h("p", {}, words.join(", ")) : null,
      ),
      changes.length
        ? button({
            label: t(one.changes_resume ? "train.apply" : "train.anew"),
            text: t(one.changes_resume ? "train.apply" : "train.anew"),
            class: "primary",
            data: { act: "apply" },
            onclick: (event) =>
              one.changes_resume
                ? steer("resume", event.currentTarget, { changes: one.changes })
                : beginAnew(one, event.currentTarget),
          })
        : "",
    );
  }
  return { element, paint };
}

const PAUSE = "M8.5 5.5v13 M15.5 5.5v13";

async function steer(what, element, values = {}) {
  element.disabled = true;
  try {
    const answer = await send(address(`/${what}`), values);
    trainings.set(answer.name, { ...trainings.get(answer.name), ...answer });
    if (["save", "sample"].includes(what)) said(t(`train.${what}.done`));
    await lookAtWhole();
  } catch (error) {
    complain(error);
  }
  element.disabled = false;
}

// Everything as it was but for what would have helped.
async function beginAnew(one, element) {
  element.disabled = true;
  try {
    const params = { ...whole.params, ...one.changes };
    await send("api/trainings", { name: one.name, dataset: one.data, params, overwrite: true });
    await lookAtTrainings();
  } catch (error) {
    complain(error);
  }
  element.disabled = false;
}

function remove() {
  const name = state.training;
  ask(t("train.delete.title", { name }), t("train.delete"), [h("p", {}, t("train.delete.what"))], async () => {
    await call(address("", name), { method: "DELETE" });
    await lookAtTrainings();
    go("home", { training: null });
  });
}
