// What is known of one model, and may be changed: words, defaults, its picture, its name; converting; the trash.
import { ask } from "./ask.js";
import * as create from "./create.js";
import { button, dialog, drawSelect, h, icon, sentence, toast } from "./dom.js";
import { drawFaceOf, kindName, size } from "./models.js";
import { look } from "./models-work.js";
import { call, post, url } from "./server.js";
import { t } from "./words.js";

const JSON_TYPE = "application/json";
const DEFAULTS = ["sampler_name", "scheduler", "steps", "cfg_scale", "width", "height", "clip_skip", "vae"]; // that are drawn
const DRAWN = ["checkpoint", "diffusion_model"]; // kinds that a picture is drawn with

export const send = (path, values, method = "POST") =>
  call(path, { method, ...(values ? { body: JSON.stringify(values), type: JSON_TYPE } : {}) });

const complain = (error) => void toast(error.message, { kind: "error", close: t("close") });

export async function openAbout(id, { changed, merge }) {
  let model;
  try {
    model = await call(`api/models/${id}`);
  } catch (error) {
    return complain(error);
  }
  const picture = h("div", { class: "picture" }, drawFaceOf(model));
  const fields = drawFields(model);
  const problem = h("p", { class: "problem", role: "alert", hidden: true });
  const done = () => (sheet.close(), changed());
  const guarded = (run) => async () => {
    problem.hidden = true;
    try {
      await run();
    } catch (error) {
      problem.textContent = sentence(error.message);
      problem.hidden = false;
    }
  };
  const save = guarded(async () => {
    const edit = fields.read();
    if (Object.keys(edit).length) await send(`api/models/${id}`, edit, "PATCH");
    done();
  });
  const sheet = dialog(
    model.title,
    t("close"),
    h(
      "form",
      { class: "about", onsubmit: (event) => (event.preventDefault(), save()) },
      h(
        "div",
        { class: "side" },
        picture,
        h("div", { class: "buttons" }, ...drawPictures(id, picture, changed)),
        h("dl", {}, ...facts(model).flatMap(([key, value]) => [h("dt", {}, key), h("dd", {}, value)])),
      ),
      h(
        "div",
        { class: "fields" },
        model.problem ? h("p", { class: "problem" }, sentence(model.problem)) : null,
        model.card_problem ? h("p", { class: "problem" }, sentence(model.card_problem)) : null,
        model.pickle ? drawConsent(model, guarded, done) : null,
        ...fields.drawn,
        problem,
        h(
          "div",
          { class: "answers" },
          ...drawChores(model, guarded, done, merge && ((of) => (sheet.close(), merge(of)))),
          h("span", { class: "space" }),
          h("button", { type: "submit", class: "button primary" }, t("models.save")),
        ),
      ),
    ),
  );
  sheet.classList.add("about-model");
  sheet.addEventListener("close", () => sheet.remove());
  sheet.showModal();
}

// --- its fields

const labelled = (label, control) => h("label", { class: "part" }, h("span", {}, label), control);

function drawFields(model) {
  const line = (value) => h("input", { class: "line", value, autocomplete: "off", spellcheck: "false" });
  const text = (value) => h("textarea", { class: "prompt", rows: 2, spellcheck: "false", value });
  const controls = {
    title: line(model.title),
    trigger: line(model.trigger),
    description: text(model.description),
    notes: text(model.notes),
    licence: line(model.licence),
    source: line(model.source),
  };
  if (model.may_edit) controls.variant = drawVariant(model.said);
  const shown = DRAWN.includes(model.kind) ? drawDefaults(model.defaults) : null;
  const read = () => {
    const edit = {};
    for (const [name, control] of Object.entries(controls))
      if (control.value.trim() !== ((name === "variant" ? model.said : model[name]) ?? "").trim()) edit[name] = control.value.trim();
    const defaults = shown?.read();
    if (defaults && JSON.stringify(defaults) !== JSON.stringify(shown.before)) edit.defaults = defaults;
    return edit;
  };
  const drawn = [
    ...Object.entries(controls)
      .slice(0, 4)
      .map(([name, control]) => labelled(t(`models.${name}`), control)),
    h("div", { class: "pair" }, labelled(t("models.licence"), controls.licence), labelled(t("models.source"), controls.source)),
    controls.variant ? labelled(t("models.variant"), h("span", { class: "selecting" }, controls.variant, icon("down"))) : null,
    shown ? h("h3", {}, t("models.defaults")) : null,
    shown ? h("div", { class: "defaults" }, ...shown.drawn) : null,
  ].filter(Boolean);
  return { drawn, read };
}

// Kontext has the tensors of dev: what a file's name does not tell, a person can.
function drawVariant(said) {
  const options = ["", "plain", "edit"].map((value) => h("option", { value }, t(`models.variant.${value || "name"}`)));
  const control = drawSelect({ name: "variant" }, ...options);
  control.value = said;
  return control;
}

// Each from its declaration; what is empty is as for all models.
function drawDefaults(defaults) {
  const { core } = create;
  const known = DEFAULTS.filter((name) => core.fields.has(name));
  const controls = known.map((name) => {
    const field = core.fields.get(name);
    const choices = field.choices ? core.choices(name).map(([value, label]) => [value, core.choice(field, [value, label])]) : null;
    const given = defaults[name] ?? "";
    const control = choices
      ? drawSelect({ name }, h("option", { value: "" }, t("models.default.usual")), ...choices.filter(([value]) => value !== "").map(([value, label]) => h("option", { value }, label)))
      : h("input", { class: "box", type: "number", name, min: field.min, max: field.max, step: field.step ?? "any", placeholder: field.default ?? "" });
    control.value = given;
    return { name, control, isNumber: !choices, drawn: labelled(core.label(field), choices ? h("span", { class: "selecting" }, control, icon("down")) : control) };
  });
  const others = Object.entries(defaults).filter(([name]) => !known.includes(name));
  const read = () =>
    Object.fromEntries([
      ...controls
        .filter(({ control }) => control.value !== "")
        .map(({ name, control, isNumber }) => [name, isNumber ? Number(control.value) : control.value]),
      ...others,
    ]);
  return { drawn: controls.map(({ drawn }) => drawn), read, before: read() };
}

function facts(model) {
  const rows = [
    ["file", model.relative],
    ["kind", kindName(model.kind)],
    ["family", [model.badge, model.edition, model.variant].filter(Boolean).join(" · ")],
    ["base", model.base],
    ["precision", model.precision],
    ["size", model.size ? size(model.size) : ""],
    ["author", model.author],
    ["sha256", model.sha256.slice(0, 12)],
    ["from", model.root],
    ["merged", model.metadata["modelspec.merged_from"]],
  ];
  return rows.filter(([, value]) => value).map(([key, value]) => [t(`models.fact.${key}`), value]);
}

// --- its picture

function drawPictures(id, picture, changed) {
  const take = async (blob) => {
    const { id: image } = await post("api/images", { body: blob, type: blob.type || "image/png" });
    picture.replaceChildren(drawFaceOf(await send(`api/models/${id}/preview`, { image })));
    changed();
  };
  const shown = create.onStage();
  const file = h("input", { type: "file", accept: "image/png,image/jpeg,image/webp", hidden: true });
  file.addEventListener("change", () => file.files[0] && take(file.files[0]).catch(complain));
  return [
    shown?.url
      ? button({
          text: t("models.picture.stage"),
          class: "small",
          onclick: async () => take(await (await fetch(url(shown.url))).blob()).catch(complain),
        })
      : null,
    button({ text: t("models.picture.file"), class: "small", onclick: () => file.click() }),
    file,
  ].filter(Boolean);
}

// --- what can be done with it

function drawConsent(model, guarded, done) {
  const path = `api/models/${model.id}/consent`;
  return h(
    "div",
    { class: "consent" },
    h("p", {}, t(model.consented ? "models.consent.given" : "models.consent.why")),
    model.consented
      ? button({ text: t("models.consent.withdraw"), class: "small", onclick: guarded(async () => (await send(path, null, "DELETE"), done())) })
      : button({ text: t("models.consent.give"), class: "small", onclick: guarded(async () => (await send(path), done())) }),
  );
}

function drawChores(model, guarded, done, merge) {
  const isOwn = !model.root && model.name !== "starter";
  const use = () => {
    create.core.set("model", model.name);
    create.core.prefer(create.chosen()?.defaults ?? {});
    document.getElementById("tab-create-button")?.click();
  };
  return [
    DRAWN.includes(model.kind) && !model.problem
      ? button({ text: t("models.use"), icon: "check", class: "small use", onclick: () => (use(), done()) })
      : null,
    DRAWN.includes(model.kind) && !model.problem
      ? button({
          text: t(model.default ? "models.preferred" : "models.prefer"),
          class: "small prefer",
          disabled: model.default,
          onclick: guarded(async () => (await send(`api/models/${model.id}/default`), done())),
        })
      : null,
    merge && DRAWN.includes(model.kind) && !model.problem && !model.pickle
      ? button({ text: t("models.view.merge"), class: "small", onclick: () => merge(model.id) })
      : null,
    button({ text: t("models.convert"), class: "small convert", onclick: () => openConvert(model) }),
    isOwn ? button({ text: t("models.rename"), class: "small rename", onclick: () => openRename(model, done) }) : null,
    isOwn
      ? button({
          text: t("models.delete"),
          icon: "trash",
          class: "small delete",
          onclick: guarded(async () => {
            const { id } = await send(`api/models/${model.id}`, null, "DELETE");
            done();
            const back = () => send(`api/models/trash/${id}/restore`).then(done, complain);
            toast(t("models.deleted", { name: model.title }), { action: { text: t("models.restore"), run: back }, close: t("close") });
          }),
        })
      : null,
  ].filter(Boolean);
}

export const askHere = (title, words, children, run) => ask(title, words, children, run, "about-model narrow");

function openRename(model, done) {
  const name = h("input", { class: "line", value: model.name.split("/").pop(), autocomplete: "off", spellcheck: "false", id: "models-name" });
  askHere(t("models.rename"), t("models.rename"), [labelled(t("models.name"), name), h("p", { class: "small" }, t("models.rename.what"))], async () => {
    await send(`api/models/${model.id}/rename`, { name: name.value });
    done();
  });
}

const PRECISIONS = ["", "fp32", "fp16", "bf16", "fp8"];
export const drawPrecision = () =>
  drawSelect({ name: "precision" }, ...PRECISIONS.map((value) => h("option", { value }, value || t("models.precision.same"))));

function openConvert(model) {
  const precision = drawPrecision();
  const layout = drawSelect(
    { name: "layout" },
    h("option", { value: "" }, t("models.layout.same")),
    h("option", { value: model.folder ? "file" : "folder" }, t(`models.layout.${model.folder ? "file" : "folder"}`)),
  );
  const prune = h("input", { type: "checkbox", class: "switch", role: "switch", checked: true });
  const name = h("input", { class: "line", placeholder: t("models.name.usual"), autocomplete: "off", spellcheck: "false" });
  const select = (one) => h("span", { class: "selecting" }, one, icon("down"));
  askHere(
    t("models.convert.title", { name: model.title }),
    t("models.convert"),
    [
      labelled(t("models.precision"), select(precision)),
      labelled(t("models.layout"), select(layout)),
      h("label", { class: "turn" }, prune, h("span", {}, t("models.prune"))),
      labelled(t("models.name"), name),
    ],
    async () => {
      await send(`api/models/${model.id}/convert`, {
        precision: precision.value,
        layout: layout.value,
        prune: prune.checked,
        name: name.value,
      });
      look();
    },
  );
}
