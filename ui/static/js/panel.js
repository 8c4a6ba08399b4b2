// Draws a panel of parameters from its description (ui/form.py); knows kinds of widgets, no parameter by name.
import { button, drawFace, drawSelect, h, icon, keep, kept, sentence, tip } from "./dom.js";
import { fitAll } from "./form.js";
import { drawButtons } from "./panel-buttons.js";
import { drawMany } from "./panel-many.js";
import { drawParams, drawUnits } from "./panel-nested.js";
import { drawOwn, onOwn } from "./panel-own.js";
import { post, url } from "./server.js";
import { t } from "./words.js";

// Fills `home` with the form's fields, group by group; `last` tells a seed what was used last.
// `refresh` asks anew for the lists of choices that the server names.
export function drawPanel(home, form, options = {}) {
  const { skip = [], onimage = () => {}, ...rest } = options;
  const { last = () => null, onmask = null, refresh = null, staged = null } = rest;
  const groups = new Map();
  for (const row of form.rows) {
    const fields = row.filter((field) => !skip.includes(field.name));
    if (!fields.length) continue;
    const group = fields[0].group ?? "";
    if (!groups.has(group)) groups.set(group, []);
    groups.get(group).push(fields);
  }
  const within = (inner, part) => drawPanel(inner, part, rest);
  const context = { last, onimage, onmask, refresh, staged, within, prompts: 0 };
  for (const [group, rows] of groups) {
    const all = rows.map((fields) => [fields, drawRow(form, fields, context)]);
    const there = all.filter(([, drawn]) => drawn.length); // a script may draw nothing for a field
    const [fields, drawn] = [0, 1].map((part) => there.flatMap((row) => row[part]));
    home.append(...(group && drawn.length ? [drawGroup(form, group, fields, drawn)] : drawn));
  }
}

function drawGroup(form, group, fields, rows) {
  const key = `open:${form.id}:${group}`;
  const count = h("span", { class: "count", hidden: true });
  const title = t(`group.${group}`, {}, group[0].toUpperCase() + group.slice(1));
  const element = h(
    "details",
    { class: "group", open: kept(key, group !== "advanced") },
    h("summary", {}, icon("next"), h("span", {}, title), count),
    h("div", { class: "fields" }, ...rows),
  );
  element.addEventListener("toggle", () => keep(key, element.open));
  const paint = () => {
    const changed = fields.filter((field) => form.isChanged(field.name)).length;
    count.hidden = !changed;
    count.textContent = t("group.changed", { count: changed, n: changed });
    if (fields.some((field) => form.problems.has(field.name))) element.open = true;
  };
  form.hear(paint);
  paint();
  return element;
}

function drawRow(form, fields, context) {
  const paired = fields.length === 2 && fields.every((field) => field.kind === "size");
  const drawn = paired ? [drawSize(form, ...fields)] : fields.map((field) => drawField(form, field, context));
  const there = drawn.filter(Boolean);
  return there.length > 1 ? [h("div", { class: "row" }, ...there)] : there;
}

function drawField(form, field, context) {
  const id = `field-${form.at}${field.name}`;
  const own = drawOwn(form, field, id);
  if (own !== undefined) return own && frame(form, [field], id, { main: own, resets: false });
  if (field.kind in NESTED) return NESTED[field.kind](form, field, id, context.within);
  const draw = WIDGETS[field.kind] ?? WIDGETS.text;
  return frame(form, [field], id, draw(form, field, id, context));
}

// Label, reset, the widget, and below it what is wrong in words. `parts`: {main, beside, set}; `resets` is false
// where the widget itself takes its value away.
function frame(form, fields, id, { main, beside = [], set, inline = false, label = null, resets = true }) {
  const field = fields[0];
  const names = fields.map((each) => each.name);
  const help = form.help(field);
  const title = h("label", { for: id, ...(help ? { "data-help": help, class: "helped" } : {}) });
  const problem = h("p", { class: "problem", id: `${id}-problem`, role: "alert", hidden: true });
  const reset = button({
    icon: "reset",
    class: "tiny reset",
    onclick: () => names.forEach((name) => form.reset(name)),
  });
  const element = h(
    "div",
    { class: `field kind-${field.kind} ${inline ? "inline" : ""}`, data: { field: names.join(" ") } },
    h(
      "div",
      { class: "head" },
      title,
      reset,
      ...[beside].flat(),
      inline ? main : null,
    ),
    inline ? null : main,
    problem,
  );
  let named = "";
  const name = () => {
    const text = label ?? form.label(field);
    if (text === named) return;
    title.textContent = named = text;
    for (const [key, value] of Object.entries(tip(t("reset", { label: text })))) reset.setAttribute(key, value);
  };
  const follows = fields.some(({ shownFor, decidedBy }) => shownFor || decidedBy);
  const keeps = !resets || ["prompt", "image", "mask"].includes(field.kind);
  const paint = (changed) => {
    if (changed && !follows && !names.some((name) => changed.has(name))) return;
    name();
    set?.();
    element.hidden = !names.some((name) => form.isShown(name));
    reset.hidden = keeps || !names.some((name) => form.isChanged(name));
    const wrong = names.map((name) => form.problems.get(name)).find(Boolean);
    problem.hidden = !wrong;
    problem.textContent = sentence(wrong);
    element.classList.toggle("wrong", Boolean(wrong));
    for (const input of element.querySelectorAll("input, textarea, select")) {
      const isWrong = input.dataset.name ? form.problems.has(input.dataset.name) : Boolean(wrong);
      if (isWrong) input.setAttribute("aria-describedby", problem.id);
      if (isWrong) input.setAttribute("aria-invalid", "true");
      else input.removeAttribute("aria-invalid");
    }
  };
  form.hear(paint);
  paint();
  return element;
}

// A box for one number; what is typed counts at once, how it is written is tidied on leaving.
function numberBox(form, field, id, { label = null, placeholder = null, blank = null } = {}) {
  const box = h("input", {
    type: "number",
    class: "box",
    id,
    inputmode: field.integer ? "numeric" : "decimal",
    min: field.min,
    max: field.max,
    step: field.step ?? "any",
    autocomplete: "off",
    placeholder,
    "aria-label": label,
    data: { name: field.name },
  });
  const shown = (value) => (value === blank || value === null || Number.isNaN(value) ? "" : String(value));
  box.set = () => {
    const value = form.read(field.name);
    const { ge: min, le: max, step } = form.facet(field) ?? {};
    if (step) Object.assign(box, { min, max, step });
    const written = box.value === "" ? blank : Number(box.value);
    if (document.activeElement !== box || written !== value) box.value = shown(value);
  };
  box.addEventListener("input", () => {
    const given = box.value === "" ? (box.validity.badInput ? null : blank) : Number(box.value);
    form.write(field.name, given);
  });
  box.addEventListener("change", () => {
    const problem = form.problemOf(field, form.get(field.name));
    if (problem) form.refuse(field.name, problem);
    else box.value = shown(form.read(field.name));
  });
  return box;
}

const NESTED = { params: drawParams, units: drawUnits };

const WIDGETS = {
  slider(form, field, id) {
    const box = numberBox(form, field, id);
    const range = h("input", {
      type: "range",
      class: "range",
      oninput: () => form.write(field.name, Number(range.value)),
    });
    const set = () => {
      box.set();
      const { ge, le, step = field.step } = form.facet(field) ?? {};
      const [low, high] = field.slider ?? [ge ?? field.min, le ?? field.max];
      Object.assign(range, { min: low, max: high, step: step ?? (field.integer ? 1 : "any") });
      range.setAttribute("aria-label", form.label(field));
      const value = form.read(field.name) ?? low;
      range.value = value;
      const share = Math.min(1, Math.max(0, (value - low) / (high - low)));
      range.style.setProperty("--share", share);
    };
    return { main: range, beside: box, set };
  },

  number(form, field, id) {
    const box = numberBox(form, field, id);
    return { main: box, set: box.set };
  },

  select(form, field, id, { refresh }) {
    const named = typeof field.choices === "string";
    const select = drawSelect({ id });
    select.addEventListener("change", () => form.set(field.name, JSON.parse(select.value)));
    const again = named && refresh ? drawRefresh(refresh) : null;
    if (again) for (const event of ["pointerdown", "focus"]) select.addEventListener(event, () => refresh());
    let drawn = "";
    const set = () => {
      const value = form.get(field.name) ?? null;
      const choices = form.choices(field.name).map((choice) => [choice[0], form.choice(field, choice)]);
      const isMissing = !choices.some(([known]) => known === value);
      const gone = isMissing && named && value && field.choices in form.lists;
      if (isMissing) choices.push([value, gone ? t("choice.missing", { value }) : String(value ?? "")]);
      const now = JSON.stringify(choices);
      if (now !== drawn) {
        drawn = now;
        const options = choices.map(([known, label]) => h("option", { value: JSON.stringify(known) }, label));
        select.replaceChildren(drawFace(), ...options);
      }
      select.value = JSON.stringify(value);
      select.classList.toggle("missing", Boolean(gone));
    };
    return { main: h("div", { class: "selecting" }, select, icon("down")), beside: again ?? [], set };
  },

  many(form, field, id, { refresh }) {
    const beside = typeof field.choices === "string" && refresh ? drawRefresh(refresh) : [];
    return { ...drawMany(form, field, id, refresh ?? (() => {})), beside };
  },

  segmented(form, field, id) {
    const inputs = field.choices.map(([value, label], i) => {
      const attributes = {
        type: "radio",
        name: id,
        id: i ? `${id}-${i}` : id,
        onchange: () => form.set(field.name, value),
      };
      return [value, h("input", attributes), form.choice(field, [value, label])];
    });
    const main = h(
      "div",
      { class: "segments", role: "radiogroup", "aria-label": form.label(field) },
      ...inputs.map(([, input, label]) => h("label", {}, input, h("span", {}, label))),
    );
    const set = () => inputs.forEach(([value, input]) => (input.checked = value === form.get(field.name)));
    return { main, set };
  },

  checkbox(form, field, id) {
    const input = h("input", { type: "checkbox", role: "switch", class: "switch", id });
    input.addEventListener("change", () => form.set(field.name, input.checked));
    return { main: input, inline: true, set: () => (input.checked = Boolean(form.get(field.name))) };
  },

  seed(form, field, id, { last }) {
    if (field.min >= 0) return WIDGETS.number(form, field, id); // none that is drawn at random
    const box = numberBox(form, field, id, { placeholder: t("seed.random"), blank: -1 });
    const dice = button({ label: t("seed.dice"), icon: "dice", onclick: () => form.set(field.name, -1) });
    const again = button({
      label: t("seed.again"),
      icon: "recycle",
      onclick: () => last() !== null && form.set(field.name, last()),
    });
    const set = () => {
      box.set();
      dice.setAttribute("aria-pressed", String(form.get(field.name) === -1));
    };
    return { main: h("div", { class: "joined" }, box, dice, again), set };
  },

  size(form, field, id) {
    return WIDGETS.number(form, field, id);
  },

  // a side of the frame on the canvas
  frame(form, field, id) {
    return WIDGETS.number(form, field, id);
  },

  // a part of the picture, "512x384+64+0"
  region(form, field, id) {
    return WIDGETS.text(form, field, id);
  },

  // painted on the canvas; here it can also come from a file
  mask(form, field, id, { onmask }) {
    const file = h("input", { type: "file", id, accept: "image/png,image/jpeg,image/webp", class: "offscreen" });
    file.addEventListener("change", () => {
      if (file.files[0]) onmask?.(file.files[0]);
      file.value = "";
    });
    const state = h("span", { class: "measure" });
    const pick = h("label", { class: "button small", for: id }, icon("upload"), h("span", {}, t("mask.file")));
    const set = () => (state.textContent = t(form.get(field.name) ? "mask.painted" : "mask.empty"));
    return { main: h("div", { class: "from-canvas" }, file, state, pick), set };
  },

  prompt(form, field, id, context) {
    const first = context.prompts++ === 0;
    const area = h("textarea", {
      id,
      class: `prompt ${first ? "first" : ""}`,
      rows: first ? 4 : 1,
      spellcheck: "false",
      autocapitalize: "off",
      autocomplete: "off",
      placeholder: t(`param.${form.prefix}${field.name}.placeholder`, {}, t(first ? "prompt.placeholder" : "prompt.negative")),
    });
    const clear = button({
      label: t("prompt.clear"),
      icon: "close",
      class: "tiny",
      onclick: () => {
        area.focus();
        area.select();
        document.execCommand("delete"); // keeps the text box's own undo
      },
    });
    area.addEventListener("input", () => form.set(field.name, area.value));
    const set = () => {
      const value = form.get(field.name) ?? "";
      if (area.value !== value) area.value = value;
      clear.hidden = !value;
      if (CSS.supports("field-sizing", "content")) return;
      area.style.height = "auto";
      area.style.height = `${area.scrollHeight + 2}px`;
    };
    return { main: area, beside: clear, set };
  },

  text(form, field, id) {
    const box = h("input", { type: "text", class: "line", id, autocomplete: "off" });
    box.addEventListener("input", () => form.set(field.name, box.value));
    const set = () => {
      const value = form.get(field.name) ?? "";
      if (box.value !== value) box.value = value;
    };
    return { main: box, set };
  },

  image(form, field, id, { onimage, staged }) {
    const file = h("input", { type: "file", id, accept: "image/png,image/jpeg,image/webp", class: "offscreen" });
    const picture = h("img", { alt: "", draggable: false });
    const size = h("span", { class: "measure" });
    const isOwn = !form.modes;
    const fromStage = () =>
      button({ label: t("image.staged"), icon: "take", class: "small staged", onclick: () => main.use(staged()) });
    const pick = h(
      "div",
      { class: "unfilled" },
      h(
        "label",
        { class: "pick", for: id },
        icon("upload"),
        h("span", {}, t("image.pick")),
        h("small", {}, t("image.ways")),
      ),
      isOwn && staged ? fromStage() : null,
    );
    const filled = h(
      "div",
      { class: "filled" },
      picture,
      h(
        "div",
        { class: "about" },
        size,
        h(
          "div",
          { class: "buttons" },
          h("label", { class: "button small replace", for: id }, t("image.replace")),
          isOwn && staged ? fromStage() : null,
          button({
            label: t("image.remove"),
            icon: "trash",
            class: "small",
            onclick: () => form.set(field.name, null),
          }),
        ),
      ),
    );
    const main = h("div", { class: `well ${isOwn ? "own" : ""}`, data: { well: field.name } }, file, pick, filled);
    picture.addEventListener("load", () => {
      const { naturalWidth: width, naturalHeight: height } = picture;
      size.textContent = `${width} × ${height}`;
      main.classList.remove("busy");
      form.shape = { width, height };
      form.tell([...form.fields.keys()]);
    });
    picture.addEventListener("error", () => {
      main.classList.remove("busy");
      if (form.get(field.name)) form.refuse(field.name, t("image.gone"));
    });
    main.take = async (given) => {
      main.classList.add("busy");
      try {
        const { id: ref, width, height } = await post("api/images", { body: given, type: given.type || "image/png" });
        form.set(field.name, ref);
        onimage(field, { width, height });
      } catch (error) {
        form.refuse(field.name, error.message);
      } finally {
        main.classList.remove("busy");
      }
    };
    main.use = async (finished) => {
      try {
        if (!finished) throw new Error(t("image.stagedNone"));
        if (typeof finished === "string") return form.set(field.name, finished);
        form.set(field.name, (await post(`api/pictures/${finished.id}/use`)).id);
      } catch (error) {
        form.refuse(field.name, error.message);
      }
    };
    file.addEventListener("change", () => {
      if (file.files[0]) main.take(file.files[0]);
      file.value = "";
    });
    let shown = null;
    const set = () => {
      const ref = form.get(field.name);
      pick.hidden = Boolean(ref);
      filled.hidden = !ref;
      if (ref === shown) return;
      shown = ref;
      if (ref) picture.src = url(`api/images/${ref}`);
      else picture.removeAttribute("src");
    };
    return { main, set };
  },
};

const drawRefresh = (refresh) =>
  button({ label: t("choices.refresh"), icon: "recycle", class: "tiny refresh", onclick: () => refresh(true) });

// Width and height as one: two boxes, a swap, and shapes that keep the model's own number of pixels.
function drawSize(form, across, down) {
  const id = `field-${form.at}${across.name}`;
  const boxes = [across, down].map((field, i) =>
    numberBox(form, field, i ? `${id}-other` : id, { label: form.label(field) }),
  );
  const both = (width, height) => form.fill({ [across.name]: width, [down.name]: height });
  boxes.forEach((box, i) => {
    const field = [across, down][i];
    box.addEventListener("paste", (event) => {
      const pair = /^\s*(\d+)\s*[x×*,]\s*(\d+)\s*$/i.exec(event.clipboardData.getData("text"));
      if (!pair) return;
      event.preventDefault();
      both(Number(pair[1]), Number(pair[2]));
    });
    box.addEventListener(
      "change",
      () => {
        const value = form.get(field.name);
        if (field.multiple && value) form.set(field.name, Math.round(value / field.multiple) * field.multiple);
      },
      true,
    );
  });
  const swap = button({
    label: t("size.swap"),
    icon: "swap",
    onclick: () => both(form.get(down.name), form.get(across.name)),
  });
  const shapes = h("div", { class: "shapes", role: "group", "aria-label": t("size.shapes") });
  let drawn = "";
  const set = () => {
    boxes.forEach((box) => box.set());
    const [width, height] = [form.get(across.name), form.get(down.name)];
    const upright = height > width;
    const options = shapesFor(form, across, down, upright);
    const now = JSON.stringify([options, upright]);
    if (now !== drawn) {
      drawn = now;
      shapes.replaceChildren(
        ...options.map(({ name, size: [w, h_] }) => {
          const mark = h("i", { class: "shape" });
          const scale = 12 / Math.max(w, h_);
          mark.style.width = `${Math.max(4, w * scale)}px`;
          mark.style.height = `${Math.max(4, h_ * scale)}px`;
          const attributes = {
            type: "button",
            class: "chip",
            "data-tip": `${w} × ${h_}`,
            data: { size: `${w}x${h_}` },
          };
          return h("button", { ...attributes, onclick: () => both(w, h_) }, mark, name);
        }),
      );
    }
    for (const chip of shapes.children)
      chip.setAttribute("aria-pressed", String(chip.dataset.size === `${width}x${height}`));
  };
  const main = h(
    "div",
    { class: "size" },
    h("div", { class: "boxes" }, boxes[0], h("span", { class: "times" }, "×"), boxes[1], swap),
    shapes,
  );
  return frame(form, [across, down], id, { main, set, label: t("size.label") });
}

const RATIOS = [
  [1, 1],
  [4, 3],
  [3, 2],
  [16, 9],
];

export function fitTo(form, ratio) {
  const sizes = [...form.fields.values()].filter((field) => field.kind === "size");
  if (sizes.length !== 2) return null;
  const [across, down] = sizes;
  const area = form.base(across.name) * form.base(down.name);
  const unit = area >= 512 * 512 ? 64 : (across.multiple ?? 1);
  const round = (value) => Math.min(across.max, Math.max(across.min, Math.round(value / unit) * unit));
  return { across, down, size: [round(Math.sqrt(area * ratio)), round(Math.sqrt(area / ratio))] };
}

function shapesFor(form, across, down, upright) {
  const native = [form.base(across.name), form.base(down.name)];
  const found = RATIOS.map(([a, b]) => {
    const [x, y] = upright ? [b, a] : [a, b];
    const size = a === b && native[0] === native[1] ? native : fitTo(form, x / y).size;
    return { name: `${x}:${y}`, size };
  });
  if (form.shape && form.mode !== "text") {
    const { size } = fitTo(form, form.shape.width / form.shape.height);
    if (!found.some((one) => String(one.size) === String(size))) found.push({ name: t("size.image"), size });
  }
  return found;
}

// An extension's panel: an accordion with a switch; off means that the request does not mention it.
// Without `turn` the mode of the form decides, and the panel is there only where it is on.
export function drawExtension(home, form, { title, isOn, turn, ...options }) {
  const input = h("input", { type: "checkbox", role: "switch", class: "switch", checked: isOn(), ...tip(title) });
  const body = h("div", { class: "fields" });
  const element = h(
    "details",
    { class: "group extension" },
    h("summary", {}, icon("next"), h("span", {}, title), turn ? input : null),
    body,
  );
  const draw = () => {
    if (!element.open || body.hasChildNodes()) return; // hundreds of parameters cost nothing while closed
    drawPanel(body, form, options);
    if (form.buttons.length) body.append(drawButtons(form));
  };
  element.addEventListener("toggle", () => {
    if (element.open && turn && !isOn()) begin(form);
    draw();
  });
  onOwn(form, () => {
    body.replaceChildren();
    draw();
  });
  if (!turn) element.open = [...form.fields.values()].some(({ kind }) => kind === "mask");
  input.addEventListener("click", (event) => event.stopPropagation());
  input.addEventListener("change", () => {
    turn(input.checked);
    if (input.checked) begin(form);
    element.open = input.checked;
  });
  const paint = () => {
    input.checked = isOn();
    element.classList.toggle("on", isOn());
    if (!turn) element.hidden = !isOn();
    if (!form.problems.size) return;
    element.open = true;
    draw();
  };
  form.hear(paint);
  paint();
  home.append(element);
}

// Whoever opens or turns on a panel of units wants to see one.
function begin(form) {
  for (const [name, field] of form.fields)
    if (field.kind === "units" && !form.get(name).length) form.set(name, [fitAll(field.rows, {})]);
}
