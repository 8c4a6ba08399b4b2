// Beside the pictures of a set: what looks wrong with them, folders with their repeats, the note of where they come from.
import { button, h, icon } from "./dom.js";
import { change, complain, form, go, send, state, way } from "./train-state.js";
import { number, t } from "./words.js";

const KINDS = ["corrupt", "ignored", "duplicate", "small", "blurred", "caption"];
export const SIGNS = {
  corrupt: "alert",
  ignored: "alert",
  duplicate: "copy",
  small: "expand",
  blurred: "eye",
  caption: "sketch",
};

export const badgeTip = (picture, name) =>
  picture.flags
    .filter((flag) => flag.kind === name)
    .map((flag) => `${t(`train.flag.${name}`)}: ${flag.message}`)
    .join("; ");

export function drawSide(show) {
  const problems = h("div", { class: "problems" });
  const folders = h("div", { class: "folders" });
  const note = drawNote();
  const next = button({
    label: t("train.next.captions"),
    text: t("train.next.captions"),
    icon: "next",
    class: "primary onward",
    onclick: () => go("captions"),
  });
  const element = h(
    "aside",
    { class: "side" },
    h("section", {}, h("h3", {}, t("train.problems")), problems),
    h("section", {}, h("h3", { "data-help": t("train.folders.help"), class: "helped" }, t("train.folders")), folders),
    h("section", {}, h("h3", { "data-help": t("train.note.help"), class: "helped" }, t("train.note")), note.element),
    next,
  );
  const paint = (kind) => {
    const { set } = state;
    const flags = [...set.pictures.flatMap((picture) => picture.flags), ...set.broken];
    const rows = KINDS.map((name) => [name, flags.filter((flag) => flag.kind === name)]).filter(
      ([, found]) => found.length,
    );
    problems.replaceChildren(
      ...(rows.length
        ? rows.map(([name, found]) => drawProblem(name, found, kind === name, show))
        : [h("p", { class: "fine" }, icon("check"), t(set.images ? "train.problems.none" : "train.problems.empty"))]),
    );
    if (!folders.contains(document.activeElement)) folders.replaceChildren(...drawFolders(set));
    note.paint(set);
    next.disabled = !set.images;
  };
  return { element, paint };
}

function drawProblem(name, found, isShown, show) {
  const broken = found.filter((flag) => flag.id);
  const words = h("span", {}, h("b", {}, t(`train.flag.${name}`)), h("small", {}, t(`train.flag.${name}.what`)));
  if (!broken.length)
    return h(
      "button",
      { type: "button", class: "problem-row", data: { flag: name }, "aria-pressed": String(isShown), onclick: () => show(name) },
      h("i", { class: `badge ${name}` }, icon(SIGNS[name])),
      words,
      h("span", { class: "count" }, number(found.length, 0)),
    );
  words.append(...broken.slice(0, 5).map((flag) => h("small", { class: "file" }, `${flag.file} ${flag.message}`)));
  const clear = button({
    label: t("train.remove"),
    icon: "trash",
    class: "small",
    onclick: () => change("remove", { ids: broken.map(({ id }) => id) }),
  });
  return h(
    "div",
    { class: "problem-row" },
    h("i", { class: `badge ${name}` }, icon(SIGNS[name])),
    words,
    name === "corrupt" ? clear : h("span", { class: "count" }, number(found.length, 0)),
  );
}

function drawFolders(set) {
  const by = Map.groupBy(
    set.pictures.filter(({ excluded }) => !excluded),
    ({ folder }) => folder,
  );
  if (!by.size) return [h("p", { class: "small" }, t("train.folders.none"))];
  return [...by].sort().map(([folder, pictures]) => {
    const [, reg, repeats, name] = /^(reg\/)?(?:(\d+)_(.*))?$/.exec(folder) ?? [null, "", "1", folder];
    const box = h("input", {
      type: "number",
      class: "box",
      min: 1,
      max: 1000,
      value: repeats ?? String(form.get("repeats")),
      "aria-label": t("train.repeats.of", { name: name || t("train.folder.none") }),
    });
    box.addEventListener("change", () => {
      const times = Number(box.value);
      if (!Number.isInteger(times) || times < 1 || times > 9999) return void (box.value = repeats ?? "1");
      box.blur();
      if (!folder) form.set("repeats", Math.min(times, 1000));
      else change("move", { ids: pictures.map(({ id }) => id), folder: `${reg ?? ""}${times}_${name}` });
    });
    return h(
      "label",
      { class: "folder-row" },
      h(
        "span",
        {},
        h("b", {}, name || t("train.folder.none")),
        h(
          "small",
          {},
          [reg ? t("train.regular") : null, t("train.pictures", { n: pictures.length, count: pictures.length })]
            .filter(Boolean)
            .join(" · "),
        ),
      ),
      h("span", { class: "by" }, "×"),
      box,
    );
  });
}

function drawNote() {
  const fields = ["source", "licence", "consent"].map((name) => {
    const line = h("input", {
      type: "text",
      class: "line",
      id: `train-note-${name}`,
      placeholder: t(`train.note.${name}.hint`),
      autocomplete: "off",
    });
    line.addEventListener("change", save);
    return [name, line];
  });
  async function save() {
    try {
      await send(way("/note"), Object.fromEntries(fields.map(([name, line]) => [name, line.value.trim()])));
    } catch (error) {
      complain(error);
    }
  }
  const element = h(
    "div",
    { class: "fields" },
    ...fields.map(([name, line]) =>
      h(
        "div",
        { class: "field" },
        h("div", { class: "head" }, h("label", { for: line.id }, t(`train.note.${name}`))),
        line,
      ),
    ),
  );
  const paint = (set) => {
    for (const [name, line] of fields) if (document.activeElement !== line) line.value = set.note[name] ?? "";
  };
  return { element, paint };
}
