// Step 1, the set: its pictures as they are and as the trainer sees them, what is wrong with them, folders, the note.
import { ask } from "./ask.js";
import { button, drawSelect, h, icon } from "./dom.js";
import { url } from "./server.js";
import { pickFiles, pickPictures } from "./train-bring.js";
import { badgeTip, drawSide, SIGNS } from "./train-hints.js";
import { drawDrop } from "./train-home.js";
import { drawPaper, openPicture } from "./train-picture.js";
import {
  change,
  factsOf,
  form,
  go,
  learnt,
  look,
  lookAtSets,
  seen,
  send,
  state,
  way,
} from "./train-state.js";
import { number, t } from "./words.js";

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
  const grid = h("div", {
    class: "pictures",
    role: "listbox",
    "aria-multiselectable": "true",
    "aria-label": t("train.set.pictures"),
  });
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
    h(
      "a",
      { class: "button bare", download: "", "aria-label": t("train.set.zip"), "data-tip": t("train.set.zip") },
      icon("download"),
    ),
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
    const one =
      kind &&
      h(
        "button",
        { type: "button", class: "chip", "aria-pressed": "true", onclick: () => ((kind = null), paint()) },
        t(`train.flag.${kind}`),
        icon("close"),
      );
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
    for (const [at, tile] of now.entries())
      if (grid.children[at] !== tile) grid.insertBefore(tile, grid.children[at] ?? null);
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
      h(
        "span",
        { class: "badges" },
        ...names.map((name) =>
          h("i", { class: `badge ${name}`, "data-tip": badgeTip(picture, name) }, icon(SIGNS[name])),
        ),
      ),
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
      button({
        label: words,
        text: words,
        icon: name,
        class: "small",
        onclick: async () => (await change(what, { ids, ...values })) && clear(),
      });
    const clear = () => {
      chosen.clear();
      paint();
    };
    selection.replaceChildren(
      h("strong", {}, t("train.chosen", { n: ids.length, count: ids.length })),
      out < ids.length ? act("exclude", t("train.exclude"), "eye") : "",
      out ? act("restore", t("train.restore"), "undo") : "",
      button({
        label: t("train.move"),
        text: t("train.move"),
        icon: "take",
        class: "small",
        onclick: () => moveTo(ids, clear),
      }),
      button({
        label: t("train.remove"),
        text: t("train.remove"),
        icon: "trash",
        class: "small",
        onclick: () =>
          ask(
            t("train.remove.title", { n: ids.length, count: ids.length }),
            t("train.remove"),
            [h("p", {}, t("train.remove.what"))],
            () => change("remove", { ids }).then(clear),
          ),
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

function drawEyes(turned) {
  const inputs = ["crops", "seen"].map((name) =>
    h(
      "label",
      {},
      h("input", {
        type: "radio",
        name: "train-eye",
        value: name,
        checked: name === "crops",
        onchange: () => turned(name),
      }),
      h("span", {}, t(`train.eye.${name}`)),
    ),
  );
  const field = form.fields.get("resolution");
  const side = drawSelect({
    id: "train-side",
    "aria-label": form.label(field),
    onchange: () => form.set("resolution", Number(side.value)),
  });
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

// --- what is done to the whole set

function renameSet() {
  const line = h("input", {
    type: "text",
    class: "line",
    value: state.name,
    maxlength: 80,
    required: true,
    "aria-label": t("train.set.name"),
  });
  ask(t("train.set.rename"), t("train.set.rename"), [line], async () => {
    const { name } = await send(way("/rename"), { name: line.value.trim() });
    go("set", { name });
    lookAtSets();
  });
}

function deleteSet() {
  const n = state.set.pictures.length;
  const what = h("p", {}, t("train.set.delete.what", { n, count: n }));
  ask(t("train.set.delete.title", { name: state.name }), t("train.set.delete"), [what], async () => {
    await send(way("/delete"));
    await lookAtSets(); // else it is shown once more
    go("home", { name: null });
  });
}

function moveTo(ids, moved) {
  const known = [
    ...new Set(
      learnt()
        .map(({ folder }) => folder)
        .filter((folder) => folder && !folder.startsWith("reg/")),
    ),
  ];
  const name = h("input", {
    type: "text",
    class: "line",
    maxlength: 60,
    list: "train-folders",
    placeholder: t("train.move.name.hint"),
    "aria-label": t("train.move.name"),
  });
  const repeats = h("input", {
    type: "number",
    class: "box",
    min: 1,
    max: 9999,
    value: "1",
    "aria-label": t("train.repeats"),
  });
  const regular = h("input", { type: "checkbox", role: "switch", class: "switch", "aria-label": t("train.regular") });
  name.addEventListener("input", () => {
    const match = known.map((folder) => /^(\d+)_(.*)$/.exec(folder)).find((found) => found?.[2] === name.value);
    if (match) repeats.value = match[1];
  });
  const labelled = (words, input, help) =>
    h(
      "div",
      { class: "field" },
      h(
        "div",
        { class: "head" },
        h("label", help ? { "data-help": help, class: "helped" } : {}, words),
        input.type === "checkbox" ? input : null,
      ),
      input.type === "checkbox" ? null : input,
    );
  const fields = [
    h("p", {}, t("train.move.what")),
    h(
      "datalist",
      { id: "train-folders" },
      ...known.map((folder) => h("option", { value: folder.replace(/^\d+_/, "") })),
    ),
    labelled(t("train.move.name"), name),
    labelled(t("train.repeats"), repeats, t("train.folders.help")),
    labelled(t("train.regular"), regular, t("train.regular.help")),
  ];
  ask(t("train.move"), t("train.move"), fields, async () => {
    const called = name.value.trim();
    const folder = called || regular.checked ? `${regular.checked ? "reg/" : ""}${repeats.value}_${called}` : "";
    if (await change("move", { ids, folder })) moved();
  });
}
