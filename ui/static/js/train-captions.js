// Step 2, captions: each is written beside its picture and kept at once; many are edited together; tags are counted.
import { button, drawFace, drawSelect, h, icon, sentence } from "./dom.js";
import { drawPaper } from "./train-picture.js";
import { complain, form, go, learnt, look, said, send, state, tagsOf, tell, way } from "./train-state.js";
import { number, t } from "./words.js";

const KINDS = ["prefix", "suffix", "replace", "rename", "remove", "set"];
const PAUSE = 600; // ms after the last key until a caption is kept
const CLOUD = 60;

export function drawCaptionsStep() {
  let tag = null; // only captions with it
  let onlyEmpty = false;

  const rows = h("div", { class: "caption-rows" });
  const search = h("input", {
    type: "search",
    class: "line",
    placeholder: t("train.captions.search"),
    "aria-label": t("train.captions.search"),
    oninput: () => paintRows(),
  });
  const empty = h(
    "button",
    {
      type: "button",
      class: "chip",
      "aria-pressed": "false",
      onclick: () => {
        onlyEmpty = !onlyEmpty;
        paintRows();
      },
    },
    "",
  );
  const tagged = h(
    "button",
    { type: "button", class: "chip", "aria-pressed": "true", hidden: true, onclick: () => pick(null) },
    "",
  );
  const none = h("p", { class: "nothing" }, t("train.filter.none"));
  const bulk = drawBulk(
    () => shown().map(({ id }) => id),
    () => isFiltered(),
  );
  const cloud = h("div", { class: "cloud" });
  const more = h(
    "button",
    { type: "button", class: "link", hidden: true, onclick: () => ((all = true), paintCloud()) },
    t("train.tags.all"),
  );
  let all = false;
  const auto = drawAuto(
    () => shown().map(({ id }) => id),
    () => isFiltered(),
  );
  const next = button({
    label: t("train.next.settings"),
    text: t("train.next.settings"),
    icon: "next",
    class: "primary onward",
    onclick: () => go("settings"),
  });
  const element = h(
    "div",
    { class: "step two captions" },
    h(
      "div",
      { class: "desk" },
      h("p", { class: "hint" }, t("train.captions.how")),
      h("div", { class: "looking" }, search, empty, tagged),
      rows,
      none,
    ),
    h(
      "aside",
      { class: "side" },
      h("section", {}, h("h3", {}, t("train.trigger")), drawTrigger()),
      h("section", {}, h("h3", {}, t("train.bulk")), bulk.element),
      auto.element,
      h("section", {}, h("h3", { "data-help": t("train.tags.help"), class: "helped" }, t("train.tags")), cloud, more),
      next,
    ),
  );

  const pictures = () => learnt().filter(({ regular }) => !regular);
  const isFiltered = () => Boolean(tag || onlyEmpty || search.value.trim());
  const shown = () => {
    const words = search.value.trim().toLowerCase();
    return pictures().filter(
      ({ caption }) =>
        (!onlyEmpty || !caption) && (!tag || tagsOf(caption).includes(tag)) && caption.toLowerCase().includes(words),
    );
  };

  function pick(one) {
    tag = tag === one ? null : one;
    paint();
  }

  const drawn = new Map(); // id -> row
  function paintRows() {
    const now = shown();
    const current = document.activeElement?.closest?.(".caption-row");
    const kept = current && rows.contains(current) ? current.dataset.picture : null;
    // a row that is being written in stays, whatever the filter says
    const listed = pictures().filter((picture) => now.includes(picture) || picture.id === kept);
    const elements = listed.map((picture) => {
      if (!drawn.has(picture.id)) drawn.set(picture.id, drawRow(picture));
      const row = drawn.get(picture.id);
      row.set(picture);
      return row.element;
    });
    for (const [at, row] of elements.entries())
      if (rows.children[at] !== row) rows.insertBefore(row, rows.children[at] ?? null);
    while (rows.children.length > elements.length) rows.lastChild.remove();
    const lacking = pictures().filter(({ caption }) => !caption).length;
    empty.hidden = !lacking && !onlyEmpty;
    empty.textContent = t("train.captions.empty", { n: lacking, count: lacking });
    empty.setAttribute("aria-pressed", String(onlyEmpty));
    tagged.hidden = !tag;
    tagged.replaceChildren(tag ?? "", icon("close"));
    none.hidden = elements.length > 0;
    bulk.paint();
  }

  function paintCloud() {
    const counts = new Map();
    for (const { caption } of pictures())
      for (const one of new Set(tagsOf(caption))) counts.set(one, (counts.get(one) ?? 0) + 1);
    const sorted = [...counts].sort((a, b) => b[1] - a[1] || a[0].localeCompare(b[0]));
    more.hidden = all || sorted.length <= CLOUD;
    cloud.replaceChildren(
      ...(all ? sorted : sorted.slice(0, CLOUD)).map(([one, count]) =>
        h(
          "button",
          { type: "button", class: "chip", "aria-pressed": String(one === tag), onclick: () => pick(one) },
          h("span", {}, one),
          h("small", {}, number(count, 0)),
        ),
      ),
    );
    if (!sorted.length) cloud.append(h("p", { class: "small" }, t("train.tags.none")));
  }

  function paint() {
    element.setAttribute("aria-busy", String(!state.set));
    if (!state.set) return;
    if (tag && !pictures().some(({ caption }) => tagsOf(caption).includes(tag))) tag = null;
    const there = new Set(state.set.pictures.map(({ id }) => id));
    for (const id of drawn.keys()) if (!there.has(id)) drawn.delete(id);
    paintRows();
    paintCloud();
    auto.paint();
    next.disabled = !state.set.images;
  }

  function drawRow(first) {
    let picture = first;
    let timer = 0;
    const mark = h("span", { class: "kept", role: "status" });
    const area = h("textarea", {
      class: "prompt",
      rows: 1,
      spellcheck: "true",
      "aria-label": t("train.caption.of", { name: picture.name }),
      placeholder: t("train.caption.hint"),
    });
    const save = async () => {
      clearTimeout(timer);
      timer = 0;
      const text = area.value;
      if (text === picture.caption) return;
      mark.replaceChildren();
      try {
        const { caption } = await send(way(`/images/${picture.id}/caption`), { caption: text });
        picture.caption = caption;
        const current = state.set?.pictures.find(({ id }) => id === picture.id);
        if (current) current.caption = caption;
        mark.replaceChildren(icon("check"));
        paintCloud();
        bulk.paint();
        tell({ captions: true });
      } catch (error) {
        mark.replaceChildren(icon("alert"));
        complain(error);
      }
    };
    area.addEventListener("input", () => {
      mark.replaceChildren();
      clearTimeout(timer);
      timer = setTimeout(save, PAUSE);
    });
    area.addEventListener("blur", () => timer && save());
    area.addEventListener("keydown", (event) => {
      const by =
        event.key === "Enter" && !event.shiftKey && !event.isComposing
          ? 1
          : { ArrowDown: event.altKey && 1, ArrowUp: event.altKey && -1 }[event.key];
      if (!by) return;
      event.preventDefault(); // a caption is one line; the next one is a key away
      const list = [...rows.children];
      list[list.indexOf(row) + by]?.querySelector("textarea").focus();
    });
    const paper = h("span", { class: "thumb-room" });
    const row = h("div", { class: "caption-row", data: { picture: picture.id } }, paper, area, mark);
    let shownAs = "";
    const set = (now) => {
      picture = now;
      if (!timer && area.value !== now.caption) area.value = now.caption;
      const key = now.thumb + JSON.stringify(now.crop);
      if (key === shownAs) return;
      shownAs = key;
      paper.replaceChildren(drawPaper(now, "crops", 128));
    };
    return { element: row, set };
  }

  return { element, paint };
}

function drawTrigger() {
  const line = h("input", {
    type: "text",
    class: "line",
    id: "train-trigger",
    maxlength: 200,
    placeholder: t("train.trigger.hint"),
    autocomplete: "off",
  });
  line.addEventListener("input", () => form.set("trigger", line.value));
  const set = () => {
    if (line.value !== form.get("trigger")) line.value = form.get("trigger");
  };
  form.hear(set);
  set();
  return h("div", { class: "fields" }, line, h("p", { class: "small" }, t("train.trigger.what")));
}

// One change of many captions: what it would do is said before it is done, and it can be undone.
function drawBulk(ids, isFiltered) {
  let kind = "prefix";
  let asked = 0;
  let timer = 0;
  const chips = h("div", { class: "chips", role: "radiogroup", "aria-label": t("train.bulk") });
  const find = h("input", {
    type: "text",
    class: "line",
    id: "train-find",
    maxlength: 500,
    autocomplete: "off",
    spellcheck: "false",
  });
  const text = h("input", { type: "text", class: "line", id: "train-text", maxlength: 500, autocomplete: "off" });
  const pattern = h("input", { type: "checkbox", role: "switch", class: "switch", id: "train-regex" });
  const cased = h("input", { type: "checkbox", role: "switch", class: "switch", id: "train-case" });
  const findLabel = h("label", { for: find.id });
  const textLabel = h("label", { for: text.id });
  const field = (label, input) => h("div", { class: "field" }, h("div", { class: "head" }, label), input);
  const turn = (words, input) =>
    h("div", { class: "field inline" }, h("div", { class: "head" }, h("label", { for: input.id }, words), input));
  const found = field(findLabel, find);
  const put = field(textLabel, text);
  const turns = [turn(t("train.bulk.regex"), pattern), turn(t("train.bulk.case"), cased)];
  const problem = h("p", { class: "problem", role: "alert", hidden: true });
  const sample = h("div", { class: "sample", hidden: true });
  const apply = button({
    label: t("train.bulk.apply"),
    text: t("train.bulk.apply"),
    class: "primary",
    disabled: true,
    onclick: () => run(),
  });
  const undo = button({
    label: t("train.bulk.undo"),
    text: t("train.bulk.undo"),
    icon: "undo",
    class: "small",
    onclick: takeBack,
  });
  const element = h(
    "div",
    { class: "fields bulk" },
    chips,
    found,
    put,
    ...turns,
    problem,
    sample,
    h("div", { class: "row-buttons" }, undo, apply),
  );

  chips.append(
    ...KINDS.map((name) =>
      h(
        "button",
        {
          type: "button",
          role: "radio",
          class: "chip",
          data: { kind: name },
          "data-help": t(`train.bulk.${name}.help`),
          onclick: () => ((kind = name), paint()),
        },
        t(`train.bulk.${name}`),
      ),
    ),
  );
  for (const input of [find, text, pattern, cased]) input.addEventListener("input", () => preview());

  const edit = () => ({
    kind,
    find: needsFind() ? find.value : "",
    text: kind === "remove" ? "" : text.value,
    regex: kind === "replace" && pattern.checked,
    case: needsFind() && cased.checked,
  });
  const needsFind = () => ["replace", "rename", "remove"].includes(kind);
  const isWhole = () => (needsFind() ? find.value.trim() : kind === "set" || text.value.trim());
  const wish = (dry) => ({ edit: edit(), ids: isFiltered() ? ids() : null, dry });

  function preview() {
    clearTimeout(timer);
    if (!isWhole()) return show(null);
    timer = setTimeout(async () => {
      const mine = ++asked;
      try {
        const { changed } = await send(way("/captions"), wish(true));
        if (mine === asked) show(changed);
      } catch (error) {
        if (mine === asked) show(null, error.problems?.[0]?.message ?? error.message);
      }
    }, 250);
  }

  function show(changed, wrong = "") {
    const entries = Object.entries(changed ?? {});
    problem.hidden = !wrong;
    problem.textContent = sentence(wrong);
    apply.disabled = !entries.length;
    apply.querySelector(".text").textContent = entries.length
      ? t("train.bulk.some", { n: entries.length, count: entries.length })
      : t(changed ? "train.bulk.nothing" : "train.bulk.apply");
    sample.hidden = !entries.length;
    if (!entries.length) return;
    const [id, after] = entries[0];
    const before = state.set.pictures.find((picture) => picture.id === id)?.caption ?? "";
    sample.replaceChildren(h("del", {}, before || t("train.nocaption")), h("ins", {}, after || t("train.nocaption")));
  }

  async function run() {
    apply.disabled = true;
    try {
      const { changed } = await send(way("/captions"), wish(false));
      const n = Object.keys(changed).length;
      said(t("train.bulk.done", { n, count: n }), { action: { text: t("undo"), run: takeBack } });
      find.value = text.value = "";
      show(null);
      await look();
    } catch (error) {
      complain(error);
    }
  }

  async function takeBack() {
    try {
      const { changed } = await send(way("/captions/undo"));
      said(t("train.bulk.undone", { n: changed, count: changed }));
      await look();
    } catch (error) {
      complain(error);
    }
  }

  function paint() {
    for (const chip of chips.children) {
      chip.setAttribute("aria-checked", String(chip.dataset.kind === kind));
      chip.setAttribute("aria-pressed", String(chip.dataset.kind === kind));
    }
    found.hidden = !needsFind();
    put.hidden = kind === "remove";
    turns[0].hidden = kind !== "replace";
    turns[1].hidden = !needsFind();
    findLabel.textContent = t(kind === "replace" ? "train.bulk.find" : "train.bulk.tag");
    textLabel.textContent = t(needsFind() ? "train.bulk.by" : "train.bulk.text");
    undo.hidden = !state.set?.undo;
    preview();
  }
  return { element, paint };
}

// Captions that a model writes, where one is there; each shows as soon as it is written.
function drawAuto(ids, isFiltered) {
  let timer = 0;
  const which = drawSelect({ id: "train-captioner", "aria-label": t("train.auto") });
  const write = button({
    label: t("train.auto.go"),
    text: t("train.auto.go"),
    icon: "spark",
    id: "train-auto",
    onclick: run,
  });
  const stop = button({
    label: t("train.stop"),
    text: t("train.stop"),
    icon: "stop",
    id: "train-auto-stop",
    onclick: halt,
  });
  const how = h("p", { class: "small", role: "status" });
  const picking = h("div", { class: "selecting" }, which, icon("down"));
  const element = h("section", {}, h("h3", {}, t("train.auto")), how, picking, write, stop);
  const wanted = () =>
    isFiltered()
      ? ids()
      : learnt()
          .filter(({ caption, regular }) => !caption && !regular)
          .map(({ id }) => id);

  async function run() {
    const asked = wanted();
    state.set.writing = { done: 0, of: asked.length }; // from now on the server says how far it is
    paint();
    try {
      const { changed } = await send(way("/captions/auto"), { ids: asked, captioner: which.value });
      said(t("train.bulk.done", { n: changed, count: changed }));
    } catch (error) {
      complain(error);
    }
    await look();
  }

  async function halt() {
    stop.disabled = true;
    try {
      await send(way("/captions/auto/stop"));
    } catch (error) {
      complain(error);
    }
  }

  function paint() {
    const names = state.captioners ?? [];
    const n = wanted().length;
    const writing = state.set?.writing;
    clearTimeout(timer);
    if (writing) timer = setTimeout(look, 2000);
    else stop.disabled = false;
    stop.hidden = !writing;
    write.hidden = Boolean(writing);
    picking.hidden = names.length < 2 || Boolean(writing);
    if (which.options.length !== names.length)
      which.replaceChildren(drawFace(), ...names.map((name) => h("option", { value: name }, name)));
    if (writing) how.textContent = t("train.auto.at", writing);
    else if (names.length) how.textContent = t(n ? "train.auto.what" : "train.auto.nothing", { n, count: n });
    else how.textContent = t("train.auto.none");
    write.disabled = !names.length || !n;
  }
  return { element, paint };
}
