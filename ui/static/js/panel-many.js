// Several of a list, or several words: chips, and a box that finds what can be added.
import { button, h } from "./dom.js";
import { t } from "./words.js";

const MOST_SHOWN = 100;

export function drawMany(form, field, id, refresh) {
  const named = typeof field.choices === "string";
  const list = () => form.choices(field.name).map((choice) => [choice[0], form.choice(field, choice)]);
  const chips = h("div", { class: "chosen" });
  const options = h("div", { class: "options", role: "listbox", id: `${id}-list`, popover: "manual" });
  const box = h("input", {
    type: "text",
    class: "line",
    id,
    role: field.choices ? "combobox" : null,
    autocomplete: "off",
    spellcheck: "false",
    placeholder: t(field.choices ? "many.find" : "many.add"),
    "aria-expanded": field.choices ? "false" : null,
    "aria-controls": field.choices ? options.id : null,
  });
  const main = h("div", { class: "many" }, chips, box, options);
  let at = 0;
  const value = () => form.get(field.name) ?? [];
  const found = () => {
    const words = box.value.trim().toLowerCase();
    return list().filter(([known, label]) => known && !value().includes(known) && label.toLowerCase().includes(words));
  };
  const take = (known) => {
    box.value = "";
    at = 0;
    if (known && !value().includes(known)) form.set(field.name, [...value(), known]);
    if (options.matches(":popover-open")) open();
  };
  const drop = (known) => form.set(field.name, value().filter((each) => each !== known));
  const close = () => {
    if (options.matches(":popover-open")) options.hidePopover();
    box.setAttribute("aria-expanded", "false");
    box.removeAttribute("aria-activedescendant");
  };
  const open = () => {
    if (!field.choices || document.activeElement !== box) return;
    const all = found().slice(0, MOST_SHOWN);
    at = Math.max(0, Math.min(at, all.length - 1));
    if (!all.length) return close();
    options.replaceChildren(
      ...all.map(([known, label], index) =>
        h(
          "div",
          {
            role: "option",
            id: `${options.id}-${index}`,
            "aria-selected": String(index === at),
            // before the box loses the focus
            onpointerdown: (event) => {
              event.preventDefault();
              take(known);
            },
          },
          label,
        ),
      ),
    );
    if (!options.matches(":popover-open")) options.showPopover();
    box.setAttribute("aria-expanded", "true");
    box.setAttribute("aria-activedescendant", `${options.id}-${at}`);
    place();
    options.children[at].scrollIntoView({ block: "nearest" });
  };
  const place = () => {
    const { left, bottom, top, width } = box.getBoundingClientRect();
    options.style.width = `${width}px`;
    options.style.left = `${left}px`;
    const height = options.offsetHeight;
    options.style.top = `${bottom + height + 8 < innerHeight ? bottom + 4 : Math.max(4, top - height - 4)}px`;
  };
  box.addEventListener("focus", () => {
    addEventListener("scroll", place, { capture: true, passive: true });
    refresh();
    open();
  });
  box.addEventListener("click", open);
  box.addEventListener("input", () => {
    at = 0;
    open();
  });
  box.addEventListener("blur", () => {
    removeEventListener("scroll", place, { capture: true });
    close();
    if (!field.choices) take(box.value.trim());
  });
  box.addEventListener("keydown", (event) => {
    const isOpen = options.matches(":popover-open");
    const step = { ArrowDown: 1, ArrowUp: -1 }[event.key];
    if (step && field.choices) {
      if (isOpen) at += step;
      open();
    } else if (event.key === "Enter" && !event.ctrlKey && !event.metaKey && !event.altKey) {
      if (field.choices) isOpen && take(found()[at]?.[0]);
      else take(box.value.trim());
    } else if (event.key === "Backspace" && !box.value && value().length) drop(value().at(-1));
    else if (event.key === "Escape" && isOpen) close();
    else return;
    if (event.key !== "Backspace") event.preventDefault();
  });
  const set = () => {
    const known = new Map(list());
    const isLoaded = !named || field.choices in form.lists;
    chips.hidden = !value().length;
    chips.replaceChildren(
      ...value().map((each) => {
        const isGone = Boolean(field.choices) && isLoaded && !known.has(each);
        const label = isGone ? t("choice.missing", { value: each }) : (known.get(each) ?? each);
        const away = button({
          label: t("many.remove", { label }),
          icon: "close",
          class: "tiny",
          onclick: () => drop(each),
        });
        const attributes = { class: `chip ${isGone ? "missing" : ""}`, data: { value: each } };
        return h("span", attributes, h("span", {}, label), away);
      }),
    );
    box.hidden = field.most !== undefined && value().length >= field.most;
    if (options.matches(":popover-open")) open();
  };
  return { main, set };
}
