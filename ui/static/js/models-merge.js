// Merging: two or three models and how much of each, another VAE, a LoRA worked in, or one taken out.
import { drawSelect, h, icon, sentence, toast } from "./dom.js";
import { drawPrecision, send } from "./models-about.js";
import { look } from "./models-work.js";
import { call } from "./server.js";
import { number, t } from "./words.js";

// What each way asks for: fields of models with their kinds, and numbers.
const WAYS = {
  sum: { models: { a: "checkpoint", b: "checkpoint" }, share: [0, 1, 0.5], blocks: true },
  difference: { models: { a: "checkpoint", b: "checkpoint", c: "checkpoint" }, share: [0, 2, 1], blocks: true },
  vae: { models: { a: "checkpoint", vae: "vae" } },
  lora: { models: { a: "checkpoint", lora: "lora" }, share: [-1, 2, 1], blocks: true },
  extract: { models: { a: "checkpoint", b: "checkpoint" }, rank: true },
};

let ui = null;
let way = "sum";
let wanted = {}; // the models that were chosen, by field

export function drawMerge(pane) {
  const ways = Object.keys(WAYS).map((name) =>
    h(
      "label",
      {},
      h("input", { type: "radio", name: "merge-way", value: name, checked: name === way, onchange: () => ((way = name), paint()) }),
      h("span", {}, t(`models.what.${name}`)),
    ),
  );
  const form = h("form", { class: "merging", onsubmit: submit });
  const about = h("p", { class: "small" });
  ui = { form, about };
  pane.append(h("div", { class: "segments ways", role: "radiogroup", "aria-label": t("models.view.merge") }, ...ways), about, form);
}

export async function showMerge(id = null) {
  if (id) wanted = { ...wanted, a: id };
  await paint();
}

async function listOf(kind) {
  const found = [];
  for (let total = 1; found.length < total; ) {
    const page = await call(`api/models/search?${new URLSearchParams({ kind, offset: found.length, limit: 200 })}`);
    found.push(...page.models);
    total = page.models.length ? page.total : 0; // some may have gone meanwhile
  }
  return found.filter((model) => !model.problem && !model.pickle);
}

async function paint() {
  const { models, share, blocks, rank } = WAYS[way];
  let lists;
  try {
    const kinds = [...new Set(Object.values(models))];
    lists = Object.fromEntries(await Promise.all(kinds.map(async (kind) => [kind, await listOf(kind)])));
  } catch (error) {
    return void toast(error.message, { kind: "error", close: t("close") });
  }
  const part = (label, control, help = null) =>
    h("label", { class: "part" }, h("span", { "data-help": help }, label), control);
  const taken = new Set(); // each starts with another one
  const pickers = Object.entries(models).map(([field, kind]) => {
    const select = drawSelect({ name: field, onchange: () => (wanted[field] = select.value) });
    select.append(...lists[kind].map((model) => h("option", { value: model.id }, model.badge ? `${model.title} – ${model.badge}` : model.title)));
    const ids = lists[kind].map((model) => model.id);
    select.value = ids.includes(wanted[field]) ? wanted[field] : (ids.find((id) => !taken.has(id)) ?? ids[0]);
    taken.add(select.value);
    return part(t(`models.merge.${field}`), h("span", { class: "selecting" }, select, icon("down")));
  });
  const numbers = [];
  if (share) {
    const [min, max, value] = share;
    const shown = h("output", {});
    const range = h("input", { type: "range", class: "range", name: "share", min, max, step: 0.01, value });
    const tell = () => {
      shown.textContent = number(Number(range.value), 2);
      range.style.setProperty("--share", (range.value - min) / (max - min));
    };
    range.addEventListener("input", tell);
    tell();
    numbers.push(h("label", { class: "part share" }, h("span", {}, t("models.share"), shown), range));
  }
  if (rank) numbers.push(part(t("models.rank"), h("input", { type: "number", class: "box", name: "rank", min: 1, max: 512, value: 64 })));
  if (blocks) {
    const box = h("input", { class: "line", name: "blocks", placeholder: t("models.blocks.none"), autocomplete: "off", spellcheck: "false" });
    numbers.push(part(t("models.blocks"), box, t("models.blocks.help")));
  }
  const precision = drawPrecision();
  if (rank) precision.value = "fp16";
  const name = h("input", { class: "line", name: "name", required: true, autocomplete: "off", spellcheck: "false" });
  const problem = h("p", { class: "problem", role: "alert", hidden: true });
  ui.about.textContent = t(`models.what.${way}.about`);
  ui.form.replaceChildren(
    h("div", { class: "pickers" }, ...pickers),
    ...numbers,
    h(
      "div",
      { class: "pair" },
      part(t("models.precision"), h("span", { class: "selecting" }, precision, icon("down"))),
      part(t("models.name"), name),
    ),
    problem,
    h("div", { class: "answers" }, h("button", { class: "button primary", id: "merge-go" }, t("models.merge.go"))),
  );
  ui.problem = problem;
}

async function submit(event) {
  event.preventDefault();
  const given = Object.fromEntries(new FormData(ui.form));
  const values = { what: way, ...given };
  for (const name of ["share", "rank"]) if (name in values) values[name] = Number(values[name]);
  ui.problem.hidden = true;
  try {
    await send("api/models/merge", values);
    look();
  } catch (error) {
    ui.problem.textContent = sentence(error.message);
    ui.problem.hidden = false;
  }
}
