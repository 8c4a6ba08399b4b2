// Step 1, the set: its pictures as they are and as the trainer sees them, what is wrong with them, folders, the note.
import { button, dialog, drawSelect, h, icon } from "./dom.js";
import { url } from "./server.js";
import { pickFiles, pickPictures } from "./train-bring.js";
import { drawDrop } from "./train-home.js";
import { change, complain, form, go, learnt, look, lookAtSets, seen, send, state, way } from "./train-state.js";
import { number, t } from "./words.js";

const KINDS = ["corrupt", "ignored", "duplicate", "small", "blurred", "caption"];
const FILTERS = ["all", "flagged", "regular", "excluded"];
const SIDES = [128, 256, 512, 768, 1024];

export function drawSetStep() {
  const chosen = new Set();
  let filter = "all";
  let kind = null; // of flags
  let last = null; // where a range of chosen ones begins
  let eye = "crops";

  const title = h("h2");
  const facts = h("p", { class: "small" });
  const grid = h("div", { class: "pictures", role: "listbox", "aria-multiselectable": "true", "aria-label": t("train.set.pictures") });
  const chips = h("div", { class: "chips", role: "group", "aria-label": t("train.filter") });
  const selection = h("div", { class: "selection", role: "toolbar", "aria-label": t("train.selection"), hidden: true });
  const drop = drawDrop();
  const none = h("p", { class: "nothing", hidden: true }, t("train.filter.none"));
  const side = drawSide((asked) => {
    filter = "all";
    kind = kind === asked ? null : asked;
    paint();
  });
  const bare = (label, name, run) => button({ label, icon: name, onclick: run });
  const head = h(
    "div",
    { class: "set-head" },
    h("div", { class: "names" }, title, facts),
    button({ label: t("train.files"), text: t("train.files"), icon: "plus", onclick: () => pickFiles() }),
    button({ label: t("train.gallery"), text: t("train.gallery"), icon: "image", onclick: () => pickPictures() }),
    bare(t("train.set.rename"), "sketch", renameSet),
    h("a", { class: "button bare", download: "", "aria-label": t("train.set.zip"), "data-tip": t("train.set.zip") }, icon("download")),
    bare(t("train.set.delete"), "trash", deleteSet),
  );
  const eyes = drawEyes((value) => {
    eye = value;
    paint();
  });
  const element = h(
    "div",
    { class: "step two" },
    h("div", { class: "desk" }, head, h("div", { class: "looking" }, chips, eyes), selection, grid, none, drop),
    side.element,
  );

  const shown = () =>
    (state.set?.pictures ?? []).filter((picture) => {
      if (kind) return picture.flags.some((flag) => flag.kind === kind);
      if (filter === "flagged") return picture.flags.length;
      if (filter === "regular") return picture.regular && !picture.excluded;
      return filter === "excluded" ? picture.excluded : !picture.excluded;
    });

  function paint() {
    const { set } = state;
    element.setAttribute("aria-busy", String(!set));
    if (!set) return void grid.replaceChildren(); // those of another set
    title.textContent = set.name;
    facts.textContent = factsOf(set);
    head.querySelector("a").href = url(way("/zip"));
    const known = new Set(set.pictures.map(({ id }) => id));
    for (const id of chosen) if (!known.has(id)) chosen.delete(id);
    paintChips();
    paintTiles();
    paintSelection();
    side.paint(kind);
    drop.classList.toggle("slim", set.pictures.length > 0);
    eyes.hidden = chips.hidden = !set.pictures.length;
    none.hidden = !set.pictures.length || shown().length > 0;
  }

  function paintChips() {
    const counts = {
      all: state.set.pictures.filter(({ excluded }) => !excluded).length,
      flagged: state.set.pictures.filter(({ flags }) => flags.length).length,
      regular: state.set.regular,
      excluded: state.set.excluded,
    };
    if (filter !== "all" && !counts[filter]) filter = "all";
    const chip = (name) =>
      h(
        "button",
        {
          type: "button",
          class: "chip",
          "aria-pressed": String(filter === name && !kind),
          onclick: () => {
            [filter, kind] = [name, null];
            paint();
          },
        },
        t(`train.filter.${name}`),
        h("small", {}, number(counts[name], 0)),
      );
    const one = kind && h("button", { type: "button", class: "chip", "aria-pressed": "true", onclick: () => ((kind = null), paint()) }, t(`train.flag.${kind}`), icon("close"));
    chips.replaceChildren(...FILTERS.filter((name) => name === "all" || counts[name]).map(chip), ...(one ? [one] : []));
  }

  const drawn = new Map(); // id -> {tile, key}
  function paintTiles() {
    const pictures = shown();
    const now = pictures.map((picture) => {
      const key = JSON.stringify([picture, eye, eye === "crops" ? seen() : ""]);
      const before = drawn.get(picture.id);
      if (before?.key === key) return before.tile;
      const tile = drawTile(picture);
      drawn.set(picture.id, { tile, key });
      return tile;
    });
    for (const [at, tile] of now.entries()) if (grid.children[at] !== tile) grid.insertBefore(tile, grid.children[at] ?? null);
    while (grid.children.length > now.length) grid.lastChild.remove();
    for (const picture of pictures)
      drawn.get(picture.id).tile.setAttribute("aria-selected", String(chosen.has(picture.id)));
    const current = now.find((tile) => tile.tabIndex === 0) ?? now[0];
    for (const tile of now) tile.tabIndex = tile === current ? 0 : -1;
    grid.classList.toggle("choosing", chosen.size > 0);
  }

  function drawTile(picture) {
    const names = [...new Set(picture.flags.map((flag) => flag.kind))];
    const words = picture.flags.map((flag) => t(`train.flag.${flag.kind}`)).join(", ");
    const tile = h(
      "div",
      {
        role: "option",
        class: `shot ${picture.excluded ? "out" : ""}`,
        data: { picture: picture.id, name: picture.name },
        tabIndex: -1,
        "aria-label": [picture.name, picture.caption, words].filter(Boolean).join(", "),
        onclick: (event) => choose(picture, event),
        ondblclick: () => openPicture(picture),
      },
      drawPaper(picture, eye),
      h("span", { class: "tick" }, icon("check")),
      picture.repeats > 1 ? h("span", { class: "times" }, `× ${picture.repeats}`) : null,
      picture.regular ? h("span", { class: "times" }, t("train.regular.short")) : null,
      h("span", { class: "badges" }, ...names.map((name) => h("i", { class: `badge ${name}`, "data-tip": badgeTip(picture, name) }, icon(SIGNS[name])))),
      h("span", { class: "below" }, picture.caption || t("train.nocaption")),
      button({
        label: t(picture.excluded ? "train.restore" : "train.exclude"),
        icon: picture.excluded ? "undo" : "eye",
        class: "small out-in",
        tabIndex: -1,
        onclick: (event) => {
          event.stopPropagation();
          change(picture.excluded ? "restore" : "exclude", { ids: [picture.id] });
        },
      }),
    );
    return tile;
  }

  function choose(picture, event) {
    const ids = shown().map(({ id }) => id);
    if (event.shiftKey && last && ids.includes(last)) {
      const [from, to] = [ids.indexOf(last), ids.indexOf(picture.id)].sort((a, b) => a - b);
      for (const id of ids.slice(from, to + 1)) chosen.add(id);
    } else if (!chosen.delete(picture.id)) chosen.add(picture.id);
    last = picture.id;
    for (const { tile } of drawn.values()) tile.tabIndex = -1;
    drawn.get(picture.id).tile.tabIndex = 0;
    paintTiles();
    paintSelection();
  }

  grid.addEventListener("keydown", (event) => {
    const tile = event.target.closest(".shot");
    if (!tile || event.target !== tile) return;
    const picture = state.set.pictures.find(({ id }) => id === tile.dataset.picture);
    const across = Math.max(1, Math.round(grid.clientWidth / (tile.offsetWidth + 8)));
    const by = { ArrowRight: 1, ArrowLeft: -1, ArrowDown: across, ArrowUp: -across }[event.key];
    const tiles = [...grid.children];
    const run = {
      " ": () => choose(picture, event),
      Enter: () => openPicture(picture),
      Delete: () => change(picture.excluded ? "remove" : "exclude", { ids: chosen.size ? [...chosen] : [picture.id] }),
      a: event.ctrlKey || event.metaKey ? () => chooseAll() : null,
    }[event.key];
    if (by) {
      const next = tiles[Math.min(tiles.length - 1, Math.max(0, tiles.indexOf(tile) + by))];
      tile.tabIndex = -1;
      next.tabIndex = 0;
      next.focus();
    } else if (run) run();
    else return;
    event.preventDefault();
  });

  function chooseAll() {
    for (const { id } of shown()) chosen.add(id);
    paintTiles();
    paintSelection();
  }

  function paintSelection() {
    selection.hidden = !chosen.size;
    if (!chosen.size) return;
    const ids = [...chosen];
    const out = state.set.pictures.filter(({ id, excluded }) => excluded && chosen.has(id)).length;
    const act = (what, words, name, values = {}) =>
      button({ label: words, text: words, icon: name, class: "small", onclick: async () => (await change(what, { ids, ...values })) && clear() });
    const clear = () => {
      chosen.clear();
      paint();
    };
    selection.replaceChildren(
      h("strong", {}, t("train.chosen", { n: ids.length, count: ids.length })),
      out < ids.length ? act("exclude", t("train.exclude"), "eye") : "",
      out ? act("restore", t("train.restore"), "undo") : "",
      button({ label: t("train.move"), text: t("train.move"), icon: "take", class: "small", onclick: () => moveTo(ids, clear) }),
      button({
        label: t("train.remove"),
        text: t("train.remove"),
        icon: "trash",
        class: "small",
        onclick: () => ask(t("train.remove.title", { n: ids.length, count: ids.length }), t("train.remove.what"), t("train.remove"), () => change("remove", { ids }).then(clear)),
      }),
      h("span", { class: "space" }),
      h("button", { type: "button", class: "link", onclick: chooseAll }, t("train.choose.all")),
      h("button", { type: "button", class: "link", onclick: clear }, t("train.choose.none")),
    );
  }

  let before = seen();
  let timer = 0;
  form.hear(() => {
    if (seen() === before) return;
    before = seen();
    clearTimeout(timer);
    timer = setTimeout(() => state.name && look(), 400);
  });
  return { element, paint };
}

const SIGNS = { corrupt: "alert", ignored: "alert", duplicate: "copy", small: "expand", blurred: "eye", caption: "sketch" };

const badgeTip = (picture, name) =>
  picture.flags
    .filter((flag) => flag.kind === name)
    .map((flag) => `${t(`train.flag.${name}`)}: ${flag.message}`)
    .join("; ");

export function factsOf(set) {
  const facts = [t("train.pictures", { n: set.images, count: set.images })];
  if (set.regular) facts.push(t("train.regulars", { n: set.regular, count: set.regular }));
  if (set.excluded) facts.push(t("train.left", { n: set.excluded, count: set.excluded }));
  return facts.join(" · ");
}

// The whole picture with the part that is learnt, or that part alone.
export function drawPaper(picture, eye = "crops", s = 256) {
  const { crop, width, height } = picture;
  if (eye === "seen") {
    const alone = h("img", { src: url(`${picture.image.replace("?", "/crop?")}&${seen()}`), alt: "", loading: "lazy", draggable: false });
    const paper = h("span", { class: "print" }, alone);
    shape(paper, crop.width, crop.height);
    return h("span", { class: "mat" }, paper);
  }
  const whole = h("img", { src: url(`${picture.thumb}&s=${s}`), alt: "", loading: "lazy", draggable: false });
  const cut = h("i", { class: "crop" });
  const [across, down] = crop.scaled;
  const isCut = crop.width < across || crop.height < down;
  Object.assign(cut.style, {
    left: `${(crop.left / across) * 100}%`,
    top: `${(crop.top / down) * 100}%`,
    width: `${(crop.width / across) * 100}%`,
    height: `${(crop.height / down) * 100}%`,
  });
  const paper = h("span", { class: "print" }, whole, isCut ? cut : null);
  shape(paper, width, height);
  return h("span", { class: "mat" }, paper);
}

function shape(paper, width, height) {
  paper.style.aspectRatio = `${width} / ${height}`;
  if (width >= height) paper.style.width = "100%";
  else paper.style.height = "100%";
}

function drawEyes(turned) {
  const inputs = ["crops", "seen"].map((name) =>
    h("label", {}, h("input", { type: "radio", name: "train-eye", value: name, checked: name === "crops", onchange: () => turned(name) }), h("span", {}, t(`train.eye.${name}`))),
  );
  const field = form.fields.get("resolution");
  const side = drawSelect({ id: "train-side", "aria-label": form.label(field), onchange: () => form.set("resolution", Number(side.value)) });
  const set = () => {
    const now = form.get("resolution");
    const sides = [...new Set([...SIDES, now])].sort((a, b) => a - b);
    side.replaceChildren(...sides.map((value) => h("option", { value: String(value) }, `${value} px`)));
    side.value = String(now);
  };
  form.hear(set);
  set();
  return h(
    "div",
    { class: "eyes" },
    h("div", { class: "segments", role: "radiogroup", "aria-label": t("train.eye") }, ...inputs),
    h("div", { class: "selecting" }, side, icon("down")),
  );
}

// One picture, large: what is wrong with it and its caption.
function openPicture(picture) {
  const caption = h("textarea", { class: "prompt", rows: 3, "aria-label": t("train.caption") });
  caption.value = picture.caption;
  const { crop } = picture;
  const facts = [
    `${picture.width} × ${picture.height}`,
    t("train.becomes", { size: `${crop.width} × ${crop.height}` }),
    picture.name,
  ];
  const sheet = dialog(
    picture.name.split("/").at(-1),
    t("close"),
    h(
      "div",
      { class: "large" },
      h("figure", {}, drawPaper(picture, "crops", 512), h("figcaption", {}, t("train.eye.crops"))),
      h("figure", {}, drawPaper(picture, "seen"), h("figcaption", {}, t("train.eye.seen"))),
    ),
    h("p", { class: "small" }, facts.join(" · ")),
    picture.flags.length ? h("ul", { class: "flags" }, ...picture.flags.map((flag) => h("li", {}, `${t(`train.flag.${flag.kind}`)}: ${flag.message}`))) : "",
    h("div", { class: "field" }, h("div", { class: "head" }, h("label", {}, t("train.caption"))), caption),
  );
  sheet.classList.add("train-picture");
  sheet.addEventListener("close", async () => {
    sheet.remove();
    if (caption.value === picture.caption) return;
    try {
      await send(way(`/images/${picture.id}/caption`), { caption: caption.value });
      look();
    } catch (error) {
      complain(error);
    }
  });
  sheet.showModal();
}

// --- the side: problems, folders, note

function drawSide(show) {
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
    const rows = KINDS.map((name) => [name, flags.filter((flag) => flag.kind === name)]).filter(([, found]) => found.length);
    problems.replaceChildren(
      ...(rows.length ? rows.map(([name, found]) => drawProblem(name, found, kind === name, show)) : [
        h("p", { class: "fine" }, icon("check"), t(set.images ? "train.problems.none" : "train.problems.empty")),
      ]),
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
      { type: "button", class: `problem-row ${name}`, "aria-pressed": String(isShown), onclick: () => show(name) },
      h("i", { class: `badge ${name}` }, icon(SIGNS[name])),
      words,
      h("span", { class: "count" }, number(found.length, 0)),
    );
  words.append(...broken.slice(0, 5).map((flag) => h("small", { class: "file" }, `${flag.file} ${flag.message}`)));
  const clear = button({ label: t("train.remove"), icon: "trash", class: "small", onclick: () => change("remove", { ids: broken.map(({ id }) => id) }) });
  return h("div", { class: `problem-row ${name}` }, h("i", { class: `badge ${name}` }, icon(SIGNS[name])), words, name === "corrupt" ? clear : h("span", { class: "count" }, number(found.length, 0)));
}

function drawFolders(set) {
  const by = Map.groupBy(set.pictures.filter(({ excluded }) => !excluded), ({ folder }) => folder);
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
      h("span", {}, h("b", {}, name || t("train.folder.none")), h("small", {}, [reg ? t("train.regular") : null, t("train.pictures", { n: pictures.length, count: pictures.length })].filter(Boolean).join(" · "))),
      h("span", { class: "by" }, "×"),
      box,
    );
  });
}

function drawNote() {
  const fields = ["source", "licence", "consent"].map((name) => {
    const line = h("input", { type: "text", class: "line", id: `train-note-${name}`, placeholder: t(`train.note.${name}.hint`), autocomplete: "off" });
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
    ...fields.map(([name, line]) => h("div", { class: "field" }, h("div", { class: "head" }, h("label", { for: line.id }, t(`train.note.${name}`))), line)),
  );
  const paint = (set) => {
    for (const [name, line] of fields) if (document.activeElement !== line) line.value = set.note[name] ?? "";
  };
  return { element, paint };
}

// --- dialogs

// A question with a way out and a way on.
export function ask(title, what, words, run, ...more) {
  const cancel = button({ label: t("train.cancel"), text: t("train.cancel"), onclick: () => sheet.close() });
  const agree = h("button", { type: "submit", class: "button primary agree" }, h("span", { class: "text" }, words));
  const submit = (event) => {
    event.preventDefault();
    sheet.close();
    run();
  };
  const body = h("form", { onsubmit: submit }, what ? h("p", {}, what) : null, ...more, h("div", { class: "answers" }, cancel, agree));
  const sheet = dialog(title, t("close"), body);
  sheet.classList.add("train-ask");
  sheet.addEventListener("close", () => sheet.remove());
  sheet.showModal();
  return sheet;
}

function renameSet() {
  const line = h("input", { type: "text", class: "line", value: state.name, maxlength: 80, required: true, "aria-label": t("train.set.name"), autofocus: true });
  ask(t("train.set.rename"), "", t("train.set.rename"), async () => {
    try {
      const { name } = await send(way("/rename"), { name: line.value.trim() });
      go("set", { name });
      lookAtSets();
    } catch (error) {
      complain(error);
    }
  }, line);
  line.select();
}

function deleteSet() {
  const n = state.set.pictures.length;
  ask(t("train.set.delete.title", { name: state.name }), t("train.set.delete.what", { n, count: n }), t("train.set.delete"), async () => {
    try {
      await send(way("/delete"));
      go("home", { name: null });
      lookAtSets();
    } catch (error) {
      complain(error);
    }
  });
}

function moveTo(ids, moved) {
  const known = [...new Set(learnt().map(({ folder }) => folder).filter((folder) => folder && !folder.startsWith("reg/")))];
  const name = h("input", { type: "text", class: "line", maxlength: 60, list: "train-folders", placeholder: t("train.move.name.hint"), "aria-label": t("train.move.name"), autofocus: true });
  const repeats = h("input", { type: "number", class: "box", min: 1, max: 9999, value: "1", "aria-label": t("train.repeats") });
  const regular = h("input", { type: "checkbox", role: "switch", class: "switch", "aria-label": t("train.regular") });
  name.addEventListener("input", () => {
    const match = known.map((folder) => /^(\d+)_(.*)$/.exec(folder)).find((found) => found?.[2] === name.value);
    if (match) repeats.value = match[1];
  });
  const labelled = (words, input, help) => h("div", { class: "field" }, h("div", { class: "head" }, h("label", help ? { "data-help": help, class: "helped" } : {}, words), input.type === "checkbox" ? input : null), input.type === "checkbox" ? null : input);
  ask(
    t("train.move"),
    t("train.move.what"),
    t("train.move"),
    async () => {
      const called = name.value.trim();
      const folder = called || regular.checked ? `${regular.checked ? "reg/" : ""}${repeats.value}_${called}` : "";
      if (await change("move", { ids, folder })) moved();
    },
    h("datalist", { id: "train-folders" }, ...known.map((folder) => h("option", { value: folder.replace(/^\d+_/, "") }))),
    labelled(t("train.move.name"), name),
    labelled(t("train.repeats"), repeats, t("train.folders.help")),
    labelled(t("train.regular"), regular, t("train.regular.help")),
  );
}
