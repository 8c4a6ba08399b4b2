// Parameters within a parameter: a group with a switch of its own, and repeated units as tabs.
import { button, h, icon, sentence, tip } from "./dom.js";
import { Part, fit, fitAll, isSame } from "./form.js";
import { t } from "./words.js";

// `draw(home, part)` draws the fields of a part. Optional parameters have a switch; off is null.
export function drawParams(form, field, id, draw) {
  const label = form.label(field);
  const help = form.help(field);
  const input = h("input", { type: "checkbox", role: "switch", class: "switch", id, ...tip(label) });
  const problem = drawProblem(id);
  const body = h("div", { class: "fields" });
  const summary = h(
    "summary",
    {},
    icon("next"),
    h("span", help ? { "data-help": help } : {}, label),
    field.optional ? input : null,
  );
  const element = h("details", { class: "group nested", data: { field: field.name } }, summary, problem, body);
  let part = null;
  let last = null; // what it held before it was turned off
  const show = () => {
    if (!element.open || !part || body.hasChildNodes()) return;
    draw(body, part);
    part.sync();
  };
  const paint = (changed) => {
    if (changed && !changed.has(field.name) && !field.shownFor) return;
    const value = fit(field, form.get(field.name));
    element.hidden = !form.isShown(field.name);
    element.classList.toggle("on", value !== null);
    input.checked = value !== null;
    problem.say(form.problems.get(field.name));
    if (!value) {
      part = null;
      body.replaceChildren();
      element.open = false;
      return;
    }
    last = value;
    if (!part || !isSame(part.whole(), value)) {
      part = new Part(form, field, value, { assemble: () => part.whole() });
      body.replaceChildren();
    }
    if (isWrongIn(form, field.name)) element.open = true;
    show();
    part.sync();
  };
  element.addEventListener("toggle", show);
  summary.addEventListener("click", (event) => {
    if (!part && event.target !== input) event.preventDefault(); // there is nothing in it
  });
  input.addEventListener("click", (event) => event.stopPropagation());
  input.addEventListener("change", () => {
    form.set(field.name, input.checked ? (last ?? fitAll(field.rows, {})) : null);
    element.open = input.checked;
  });
  form.hear(paint);
  paint();
  return element;
}

// Only the unit that is chosen is in the document.
export function drawUnits(form, field, id, draw) {
  const label = form.label(field);
  const help = form.help(field);
  const problem = drawProblem(id);
  const tabs = h("div", { class: "unit-tabs", role: "tablist", "aria-label": label });
  const body = h("div", { class: "fields unit", role: "tabpanel", id: `${id}-unit` });
  const change = (units, to) => {
    chosen = to;
    form.set(field.name, units);
    (tabs.children[chosen] ?? add).focus();
  };
  const units = () => parts.map((part) => part.whole());
  const add = button({
    label: t("units.add", { label }),
    icon: "plus",
    class: "small add",
    id,
    onclick: () => change([...units(), fitAll(field.rows, {})], parts.length),
  });
  const copy = button({
    label: t("units.copy"),
    icon: "copy",
    class: "tiny copy",
    onclick: () => change(units().toSpliced(chosen + 1, 0, parts[chosen].whole()), chosen + 1),
  });
  const remove = button({
    label: t("units.remove"),
    icon: "trash",
    class: "tiny remove",
    onclick: () => change(units().toSpliced(chosen, 1), Math.max(0, Math.min(chosen, parts.length - 2))),
  });
  const element = h(
    "div",
    { class: "field kind-units", data: { field: field.name } },
    h(
      "div",
      { class: "head" },
      h("label", { for: id, ...(help ? { "data-help": help, class: "helped" } : {}) }, label),
    ),
    h("div", { class: "unit-bar" }, tabs, add, copy, remove),
    body,
    problem,
  );
  let parts = [];
  let chosen = 0;
  let shown = null;
  let wrong = "";
  const choose = (index) => {
    chosen = index;
    paint();
    tabs.children[chosen].focus();
  };
  const drawTab = (_, index) =>
    h(
      "button",
      {
        type: "button",
        role: "tab",
        class: "chip",
        "aria-label": t("units.tab", { label, n: index + 1 }),
        "aria-controls": body.id,
        onclick: () => choose(index),
      },
      String(index + 1),
    );
  const paint = (changed) => {
    if (changed && !changed.has(field.name) && !field.shownFor) return;
    const value = fit(field, form.get(field.name));
    element.hidden = !form.isShown(field.name);
    if (!isSame(units(), value) || tabs.children.length !== value.length) {
      parts = value.map((unit, index) => new Part(form, field, unit, { index, assemble: units }));
      tabs.replaceChildren(...parts.map(drawTab));
      shown = null;
    }
    const bad = parts.map((part) => isWrongIn(form, part.path));
    const now = bad.map(Number).join("");
    if (now !== wrong && bad.includes(true) && !bad[chosen]) chosen = bad.indexOf(true);
    wrong = now;
    chosen = Math.max(0, Math.min(chosen, parts.length - 1));
    [...tabs.children].forEach((tab, index) => {
      tab.setAttribute("aria-selected", String(index === chosen));
      tab.tabIndex = index === chosen ? 0 : -1;
      tab.classList.toggle("wrong", bad[index]);
    });
    add.hidden = copy.hidden = field.most !== undefined && parts.length >= field.most;
    copy.hidden ||= !parts.length;
    remove.hidden = parts.length <= (field.fewest ?? 0);
    body.hidden = !parts.length;
    body.setAttribute("aria-label", t("units.tab", { label, n: chosen + 1 }));
    problem.say(form.problems.get(field.name));
    element.classList.toggle("wrong", form.problems.has(field.name));
    if (shown !== (parts[chosen] ?? null)) {
      shown = parts[chosen] ?? null;
      body.replaceChildren();
      shown?.hearers.clear();
      if (shown) draw(body, shown);
    }
    shown?.sync();
  };
  tabs.addEventListener("keydown", ({ key }) => {
    const to = { ArrowLeft: chosen - 1, ArrowRight: chosen + 1, Home: 0, End: parts.length - 1 }[key];
    if (to !== undefined) choose((to + parts.length) % parts.length);
  });
  form.hear(paint);
  paint();
  return element;
}

const isWrongIn = (form, path) => [...form.problems.keys()].some((known) => known.startsWith(`${path}.`));

function drawProblem(id) {
  const element = h("p", { class: "problem", id: `${id}-problem`, role: "alert", hidden: true });
  element.say = (words) => {
    element.hidden = !words;
    element.textContent = sentence(words);
  };
  return element;
}
