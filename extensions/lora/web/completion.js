// A list under the prompt box while a name is typed behind <lora: -- arrows, Enter or Tab, Escape.
import { tagOf } from "./prompt.js";

const BEGUN = /<(?:lora|lyco):([^<>:\n]*)$/i;
const SHOWN = 8;

export function startCompletion(api) {
  const area = api.promptBox;
  const list = api.element("ul", { id: "lora-completions", role: "listbox", "aria-label": api.words("completions") });
  list.hidden = true;
  document.body.append(list);
  area.setAttribute("aria-controls", list.id);
  let found = [];
  let chosen = 0;
  let asked = 0;
  let timer = 0;

  const close = () => {
    asked += 1;
    clearTimeout(timer);
    list.hidden = true;
    area.removeAttribute("aria-activedescendant");
  };

  const begun = () => area.selectionStart === area.selectionEnd && BEGUN.exec(area.value.slice(0, area.selectionStart));

  function look() {
    const match = begun();
    if (!match) return close();
    const now = ++asked;
    clearTimeout(timer);
    timer = setTimeout(async () => {
      const query = new URLSearchParams({ q: match[1], limit: SHOWN, family: api.model?.family ?? "" });
      const answer = await fetch(api.url(`cards?${query}`)).catch(() => null);
      const { cards = [] } = answer?.ok ? await answer.json() : {};
      if (now === asked) show(cards.filter((card) => !card.problem));
    }, 90);
  }

  function show(cards) {
    if (!cards.length) return close();
    found = cards;
    chosen = 0;
    list.replaceChildren(...cards.map(draw));
    list.hidden = false;
    const { left, top, bottom, width } = area.getBoundingClientRect();
    Object.assign(list.style, { left: `${left}px`, width: `${width}px` });
    const height = list.offsetHeight;
    list.style.top = `${bottom + height + 8 > innerHeight ? Math.max(4, top - height - 4) : bottom + 4}px`;
    mark();
  }

  const draw = (card, index) =>
    api.element(
      "li",
      {
        id: `lora-completion-${index}`,
        role: "option",
        onpointerdown: (event) => (event.preventDefault(), accept(card)),
      },
      api.element("strong", {}, card.tag),
      card.badge ? api.element("span", { class: "lora-badge" }, card.badge) : null,
      api.element("small", {}, card.trigger || (card.title === card.tag ? "" : card.title)),
    );

  function mark() {
    [...list.children].forEach((item, index) => item.setAttribute("aria-selected", String(index === chosen)));
    area.setAttribute("aria-activedescendant", `lora-completion-${chosen}`);
    list.children[chosen].scrollIntoView({ block: "nearest" });
  }

  function accept(card) {
    const match = begun();
    if (!match) return close();
    const end = area.selectionStart + /^[^<>\n,]*>?/.exec(area.value.slice(area.selectionStart))[0].length;
    const closed = area.value.slice(area.selectionStart, end).endsWith(">");
    area.focus();
    area.setSelectionRange(match.index, closed ? end : area.selectionStart);
    document.execCommand("insertText", false, tagOf(card)); // keeps the text box's own undo
    close();
  }

  area.addEventListener("input", look);
  area.addEventListener("click", look);
  area.addEventListener("blur", close);
  area.addEventListener("keydown", (event) => {
    if (list.hidden || event.isComposing || event.ctrlKey || event.metaKey || event.altKey) return;
    const by = { ArrowDown: 1, ArrowUp: -1 }[event.key];
    if (by) {
      chosen = (chosen + by + found.length) % found.length;
      mark();
    } else if (event.key === "Enter" || event.key === "Tab") accept(found[chosen]);
    else return;
    event.preventDefault();
  });
  // Escape is the page's key for stopping; here it only closes the list
  document.addEventListener("atelier:escape", (event) => {
    if (list.hidden) return;
    event.preventDefault();
    close();
  });
  addEventListener("resize", close);
  document.addEventListener("scroll", (event) => event.target !== list && close(), true);
}
