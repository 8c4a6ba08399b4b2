// Step 3, the settings: a preset, the twelve fields that matter, everything; and a look before it begins.
import * as create from "./create.js";
import { button, drawSelect, h, icon, keep, kept, sentence } from "./dom.js";
import { drawPanel } from "./panel.js";
import { call } from "./server.js";
import { complain, factsOf, forgetChanges, form, go, send, state, usePreset } from "./train-state.js";
import { lookAtWhole, trainings } from "./trainings.js";
import { number, seconds, t } from "./words.js";

const GOALS = { character: "eye", style: "brush", object: "grid", concept: "spark" };

export function drawSettingsStep() {
  let presets = null; // the server's
  let memory = kept("train-memory", "");
  let goal = kept("train-goal", "");
  let found = null; // of the look before

  const name = h("input", {
    type: "text",
    class: "line",
    id: "train-name",
    maxlength: 80,
    autocomplete: "off",
    spellcheck: "false",
  });
  const nameProblem = h("p", { class: "problem", role: "alert", hidden: true });
  name.addEventListener("input", () => {
    keep("train-name", { [state.name]: name.value });
    refuseName("");
  });
  const cards = h("div", { class: "goals", role: "radiogroup", "aria-label": t("train.goal") });
  const tiers = drawSelect({
    id: "train-memory",
    "aria-label": t("train.memory"),
    onchange: () => ((memory = tiers.value), keep("train-memory", memory), paint()),
  });
  const basics = h("div", { class: "fields basics" });
  const rest = h("div", { class: "fields rest" });
  const all = [...form.fields.values()];
  const advanced = all.filter(({ group }) => group).map((field) => field.name);
  drawPanel(basics, form, { skip: advanced });
  const everything = h(
    "details",
    { class: "group everything" },
    h(
      "summary",
      {},
      icon("next"),
      h("span", {}, t("train.everything")),
      h("small", {}, t("train.everything.n", { n: advanced.length })),
    ),
    rest,
  );
  everything.addEventListener("toggle", () => {
    if (everything.open && !rest.hasChildNodes())
      drawPanel(rest, form, { skip: all.filter(({ group }) => !group).map((field) => field.name) });
  });
  const side = drawSide();
  const element = h(
    "div",
    { class: "step two settings" },
    h(
      "div",
      { class: "desk" },
      h(
        "div",
        { class: "naming" },
        h(
          "div",
          { class: "field" },
          h(
            "div",
            { class: "head" },
            h("label", { for: name.id, "data-help": t("train.name.help"), class: "helped" }, t("train.name")),
          ),
          name,
          nameProblem,
        ),
        h(
          "div",
          { class: "field" },
          h(
            "div",
            { class: "head" },
            h(
              "label",
              { for: "train-memory", "data-help": t("train.memory.help"), class: "helped" },
              t("train.memory"),
            ),
          ),
          h("div", { class: "selecting" }, tiers, icon("down")),
        ),
      ),
      h("h3", {}, t("train.goal")),
      cards,
      h("h3", {}, t("train.basics")),
      basics,
      everything,
    ),
    side.element,
  );

  call("api/trainings/presets").then((answer) => {
    presets = answer;
    paint();
  }, complain);

  const family = () => presets?.families?.[form.get("model") || create.chosen()?.name] ?? "sd1";
  const fitting = () => (presets?.presets ?? []).filter((preset) => preset.family === family());
  const tier = () => {
    const there = [...new Set(fitting().map((preset) => preset.memory))];
    return there.includes(memory) ? memory : there.includes(presets?.machine) ? presets.machine : there[0];
  };
  const presetFor = (which) => fitting().find((preset) => preset.goal === which && preset.memory === tier());

  let applied = null;
  function apply() {
    const preset = presetFor(goal) ?? null;
    if (preset === applied) return;
    applied = preset;
    usePreset(preset?.values ?? {});
  }

  function choose(which) {
    goal = which;
    keep("train-goal", goal);
    forgetChanges();
    paint();
  }

  const isAsPreset = () => applied && Object.keys(applied.values).every((key) => !form.isChanged(key));

  function paintCards() {
    const there = [...new Set(fitting().map((preset) => preset.memory))];
    tiers.replaceChildren(
      ...there.map((one) => h("option", { value: one }, t(`train.memory.${one.replace(" ", "")}`, {}, one))),
    );
    tiers.value = tier() ?? "";
    const focused = cards.contains(document.activeElement) ? document.activeElement.dataset.goal : null;
    cards.replaceChildren(
      ...Object.keys(GOALS).map((one) => {
        const preset = presetFor(one);
        const isChosen = one === goal;
        return h(
          "button",
          {
            type: "button",
            class: "goal",
            role: "radio",
            "aria-checked": String(isChosen),
            data: { goal: one },
            disabled: !preset,
            onclick: () => choose(one),
          },
          h("span", { class: "sign" }, icon(GOALS[one])),
          h("b", {}, t(`train.goal.${one}`)),
          h("small", {}, t(`train.goal.${one}.what`)),
          h(
            "span",
            { class: "cost" },
            preset
              ? t("train.cost", { time: seconds(preset.minutes * 60), memory: number(preset.gigabytes, 1) })
              : t("train.cost.none"),
          ),
          isChosen && !isAsPreset() ? h("em", {}, t("train.goal.changed")) : null,
        );
      }),
    );
    if (focused) cards.querySelector(`[data-goal="${focused}"]`)?.focus();
  }

  function paint() {
    if (!name.value || name.dataset.of !== state.name) {
      name.dataset.of = state.name;
      name.value = kept("train-name", {})[state.name] ?? free(state.name ?? "");
    }
    if (!form.get("model") && create.chosen()) form.set("model", create.chosen().name);
    apply();
    if (presets) paintCards();
    side.paint();
  }

  let timer = 0;
  form.hear(() => {
    found = null;
    clearTimeout(timer);
    timer = setTimeout(() => element.isConnected && paint(), 50);
  });

  function refuseName(message) {
    nameProblem.hidden = !message;
    nameProblem.textContent = sentence(message);
    if (message) name.setAttribute("aria-invalid", "true");
    else name.removeAttribute("aria-invalid");
  }

  const wish = (more = {}) => ({ name: name.value.trim(), dataset: state.name, params: form.values(), ...more });

  // What the server refuses stands at its field; what has none is said at the side.
  function refuse(error) {
    const strays = [];
    for (const { field, message } of error.problems ?? []) {
      const key = field.replace(/^params\./, "");
      if (key === "name") refuseName(message);
      else if (form.fields.has(key)) form.refuse(key, message);
      else strays.push(message);
    }
    if (advanced.some((one) => form.problems.has(one))) everything.open = true;
    if (!error.problems?.length) strays.push(error.message);
    document
      .querySelector("#train .field.wrong:not([hidden]), #train [aria-invalid=true]")
      ?.scrollIntoView({ block: "center" });
    return strays;
  }

  function isReady() {
    if (!name.value.trim()) return refuseName(t("train.name.missing"));
    if (form.check()) return true;
    if (advanced.some((one) => form.problems.has(one))) everything.open = true;
    document.querySelector("#train .field.wrong:not([hidden])")?.scrollIntoView({ block: "center" });
    return false;
  }

  async function begin(overwrite = false) {
    const made = await send("api/trainings", wish({ overwrite }));
    trainings.set(made.name, made);
    go("training", { training: made.name });
    lookAtWhole();
  }

  function drawSide() {
    const about = h("div", { class: "about" });
    const result = h("div", { class: "preflight", role: "status" });
    const check = button({ label: t("train.check"), text: t("train.check"), icon: "check", id: "train-check" });
    const start = button({
      label: t("train.start"),
      text: t("train.start"),
      icon: "spark",
      class: "primary onward",
      id: "train-start",
    });
    const again = button({ label: t("train.overwrite"), text: t("train.overwrite"), class: "small", hidden: true });
    const busy = (now) => {
      for (const each of [check, start, again]) each.disabled = now;
      result.setAttribute("aria-busy", String(now));
    };
    const attempt = async (run) => {
      if (!isReady()) return;
      busy(true);
      again.hidden = true;
      try {
        await run();
      } catch (error) {
        const strays = refuse(error);
        again.hidden = !(error.status === 409 || error.problems?.some(({ field }) => field === "name"));
        result.replaceChildren(
          h(
            "p",
            { class: "no" },
            icon("alert"),
            h("span", {}, strays.length ? sentence(strays.join("; ")) : t("train.refused")),
          ),
        );
      }
      busy(false);
      paint();
    };
    check.addEventListener("click", () =>
      attempt(async () => {
        result.replaceChildren(h("p", { class: "small busy" }, t("train.checking")));
        found = await send("api/trainings/preflight", wish());
        result.replaceChildren(...drawFound(found));
      }),
    );
    start.addEventListener("click", () => attempt(() => begin()));
    again.addEventListener("click", () => attempt(() => begin(true)));
    const box = h(
      "aside",
      { class: "side" },
      h("section", {}, h("h3", {}, t("train.plan")), about),
      h(
        "section",
        {},
        h("h3", { "data-help": t("train.check.help"), class: "helped" }, t("train.check.title")),
        result,
        check,
      ),
      again,
      start,
    );
    const paintSide = () => {
      const { set } = state;
      const preset = presetFor(goal);
      const used = set?.pictures.filter(({ excluded }) => !excluded) ?? [];
      const learnt = used.filter(({ regular }) => !regular);
      // a regularisation image comes with each of the others
      const each = learnt.length < used.length ? 2 : 1;
      const count =
        each * learnt.reduce((sum, { repeats, folder }) => sum + (folder ? repeats : form.get("repeats")), 0);
      const perStep = form.get("batch_size") * form.get("accumulation");
      const steps = form.get("epochs") ? Math.ceil((form.get("epochs") * count) / perStep) : form.get("steps");
      const rows = [
        [t("train.plan.set"), set ? `${set.name}, ${factsOf(set)}` : ""],
        [t("train.plan.steps"), t("train.plan.of", { steps: number(steps, 0), n: perStep, count: perStep })],
        [
          t("train.plan.seen"),
          count ? t("train.plan.times", { n: number(Math.round((steps * perStep) / count), 0) }) : "",
        ],
        [
          t("train.plan.time"),
          preset && isAsPreset()
            ? t("train.plan.about", { time: seconds(preset.minutes * 60) })
            : t("train.plan.unknown"),
        ],
      ];
      about.replaceChildren(
        h(
          "dl",
          {},
          ...rows.filter(([, value]) => value).flatMap(([key, value]) => [h("dt", {}, key), h("dd", {}, value)]),
        ),
      );
      if (!found && !result.querySelector(".busy, .no"))
        result.replaceChildren(h("p", { class: "small" }, t("train.check.what")));
      start.disabled = check.disabled = !set?.images || result.getAttribute("aria-busy") === "true";
    };
    return { element: box, paint: paintSide };
  }

  return { element, paint };
}

// What the look before has found: numbers, and what may be a mistake.
function drawFound({ numbers, warnings, seconds: time, memory, disk }) {
  const rows = [
    [t("train.found.images"), number(numbers.images, 0)],
    [
      t("train.found.steps"),
      `${number(numbers.steps, 0)} · ${t("train.found.epochs", { n: number(numbers.epochs, 0) })}`,
    ],
    [t("train.found.time"), seconds(time)],
    [t("train.found.memory"), `${number(memory / 2 ** 30, 1)} GB`],
    [t("train.found.disk"), `${number(disk / 2 ** 20, 0)} MB`],
    [
      t("train.found.shapes"),
      Object.entries(numbers.buckets)
        .map(([size, count]) => `${size.replace("x", " × ")} (${count})`)
        .join(", "),
    ],
  ];
  return [
    h("dl", {}, ...rows.flatMap(([key, value]) => [h("dt", {}, key), h("dd", {}, value)])),
    ...(warnings.length
      ? [h("ul", { class: "warnings" }, ...warnings.map((words) => h("li", {}, icon("alert"), h("span", {}, words))))]
      : [h("p", { class: "fine" }, icon("check"), t("train.found.fine"))]),
  ];
}

// A name for the LoRA that no training has yet.
function free(wanted) {
  const base = wanted.trim() || "lora";
  for (let number = 1; ; number += 1) {
    const name = number > 1 ? `${base} ${number}` : base;
    if (!trainings.has(name)) return name;
  }
}
