// DOM made from data: text always goes in as text, never as markup.

export function h(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [key, value] of Object.entries(attributes)) {
    if (value === undefined || value === null || value === false) continue;
    if (key.startsWith("on")) element.addEventListener(key.slice(2), value);
    else if (key === "data") Object.assign(element.dataset, value);
    else if (key in PROPERTIES) element[key] = value;
    else element.setAttribute(key, value === true ? "" : value);
  }
  element.append(...children.flat().filter((child) => child !== null && child !== undefined && child !== false));
  return element;
}

const PROPERTIES = { value: 1, checked: 1, disabled: 1, hidden: 1, draggable: 1, indeterminate: 1, tabIndex: 1 };
const SVG = "http://www.w3.org/2000/svg";

// 24 x 24, drawn with strokes
const PATHS = {
  alert: "M12 4 21 19.5H3Z M12 10v4.5 M12 17v.1",
  back: "M15 5 8 12l7 7",
  brush: "M4 20c0-4 2-6 4.2-6 1.8 0 2.8 1.1 2.8 2.6C11 19 8 20 4 20Z M10.3 14.3 20 4.5",
  check: "m5 12.5 4.5 4.5L19 7",
  close: "M6 6l12 12 M18 6 6 18",
  compare: "M12 3v18 M9 6H4v12h5 M15 6h5v12h-5",
  copy: "M9 9h10v11H9Z M15 9V4H5v11h4",
  dice: "M5 5h14v14H5Z M9 9v.1 M15 9v.1 M12 12v.1 M9 15v.1 M15 15v.1",
  down: "m6 9.5 6 6 6-6",
  download: "M12 4v11 M7.5 11l4.5 4.5 4.5-4.5 M5 20h14",
  eraser:
    "M8.5 19 4 14.5a1.5 1.5 0 0 1 0-2L12.5 4a1.5 1.5 0 0 1 2 0L20 9.5a1.5 1.5 0 0 1 0 2L12.5 19Z M8 8.5l7 7 M12.5 19H20",
  expand: "M9.5 4H4v5.5 M14.5 20H20v-5.5 M4 4l6 6 M20 20l-6-6",
  eye: "M2.5 12S6 5.5 12 5.5 21.5 12 21.5 12 18 18.5 12 18.5 2.5 12 2.5 12Z M12 9.2a2.8 2.8 0 1 1 0 5.6 2.8 2.8 0 0 1 0-5.6Z",
  fill: "M11.5 4 4.7 10.8a1.5 1.5 0 0 0 0 2l4.8 4.8a1.5 1.5 0 0 0 2 0L18.3 11Z M4.4 11.2h13.7 M20 15c1 1.5 1.5 2.3 1.5 3.1a1.6 1.6 0 0 1-3.2 0c0-.8.6-1.6 1.7-3.1Z",
  frame: "M8 4H4v4 M16 4h4v4 M8 20H4v-4 M16 20h4v-4 M9 9h6v6H9Z",
  grid: "M4 4h6.5v6.5H4Z M13.5 4H20v6.5h-6.5Z M4 13.5h6.5V20H4Z M13.5 13.5H20V20h-6.5Z",
  help: "M9.4 9.4a2.6 2.6 0 1 1 4 2.2c-.9.6-1.4 1-1.4 2.1 M12 16.8v.1 M12 3a9 9 0 1 1 0 18 9 9 0 0 1 0-18Z",
  image: "M4 5h16v14H4Z M4 16l4.5-4.5L13 16l3-3 4 4 M15.5 9v.1",
  info: "M12 11v6 M12 7.5v.1 M12 3a9 9 0 1 1 0 18 9 9 0 0 1 0-18Z",
  invert: "M4.5 4.5h15v15h-15Z M19.5 4.5l-15 15 M13.5 15.5h4 M8.5 6.5v4 M6.5 8.5h4",
  lasso:
    "M12 4c5 0 8.5 2.1 8.5 5s-3.5 5-8.5 5-8.5-2.1-8.5-5S7 4 12 4Z M7.8 13.8a1.9 1.9 0 1 0-2.2 2.3c1.7.2 2.2-.9 2.2-2.3Z M5.6 16.3c.1 1.9 1 3.2 3 3.7",
  mask: "M4 5h16v14H4Z M12 8.2a3.8 3.8 0 1 1 0 7.6 3.8 3.8 0 0 1 0-7.6Z",
  minus: "M5 12h14",
  next: "m9 5 7 7-7 7",
  offline: "M4 4l16 16 M5 11a10 10 0 0 1 3-2 M12.5 8a10 10 0 0 1 6.5 3 M8.5 14.5a5 5 0 0 1 5.2-1.2 M12 18.5v.1",
  pipette: "M13.5 6.5l4 4 M12 8l-7.5 7.5v4h4L16 12 M14 6l2-2a2 2 0 0 1 3 0l1 1a2 2 0 0 1 0 3l-2 2",
  plus: "M12 5v14 M5 12h14",
  queue: "M4 6h16 M4 12h16 M4 18h10",
  recall: "M6 18 17 7 M6 9v9h9",
  rectangle: "M4 6h16v12H4Z",
  recycle: "M19.5 12a7.5 7.5 0 1 1-2.2-5.3 M20 3.5v4h-4",
  redo: "M15 6l4.5 4.5L15 15 M19 10.5h-9a5 5 0 0 0 0 10h3",
  reset: "M4.5 12a7.5 7.5 0 1 0 2.2-5.3 M4 3.5v4h4",
  seed: "M12 20v-7 M12 13c0-4-2.5-6-6.5-6 0 4 2.5 6 6.5 6Z M12 11c0-4 2.5-6 6.5-6 0 4-2.5 6-6.5 6Z",
  settings: "M4 7h9 M17 7h3 M13 4.8v4.4 M4 17h3 M11 17h9 M7 14.8v4.4 M4 12h4 M12 12h8 M12 9.8v4.4",
  sketch: "M4 20l1-4L16.5 4.5a1.4 1.4 0 0 1 2 0l1 1a1.4 1.4 0 0 1 0 2L8 19Z M14.5 6.5l3 3",
  skip: "m5 6 8 6-8 6Z M18 6v12",
  spark: "M12 3c.9 5.6 3.4 8.1 9 9-5.6.9-8.1 3.4-9 9-.9-5.6-3.4-8.1-9-9 5.6-.9 8.1-3.4 9-9Z",
  stop: "M7 7h10v10H7Z",
  swap: "M7 20V5 M3.5 8.5 7 5l3.5 3.5 M17 4v15 M13.5 15.5 17 19l3.5-3.5",
  take: "M4 5h16v9 M4 5v14h8 M4 16l4.5-4.5L12 15 M15.5 9v.1 M21 19.5h-6 M17.5 16.5l-3 3 3 3",
  theme: "M12 4a8 8 0 1 0 0 16Z M12 4a8 8 0 0 1 0 16",
  trash: "M5 7h14 M10 7V4h4v3 M7 7l1 13h8l1-13",
  turn: "M4 9.5h10.5V20H4Z M11 4.5h4.5a4 4 0 0 1 4 4V13 M16.8 10.5l2.7 2.7 2.5-2.7",
  undo: "M9 6 4.5 10.5 9 15 M5 10.5h9a5 5 0 0 1 0 10h-3",
  upload: "M12 16V5 M7.5 9.5 12 5l4.5 4.5 M5 20h14",
};

// One of ours by its name, or a path.
export function icon(name) {
  const svg = document.createElementNS(SVG, "svg");
  for (const [key, value] of Object.entries({
    class: `icon ${name in PATHS ? `icon-${name}` : ""}`,
    viewBox: "0 0 24 24",
    "aria-hidden": "true",
  }))
    svg.setAttribute(key, value);
  const path = document.createElementNS(SVG, "path");
  path.setAttribute("d", PATHS[name] ?? name);
  svg.append(path);
  return svg;
}

// A button with an icon; without `text` the label is its tooltip.
export function button({ label, icon: name, text, ...attributes }) {
  const { class: more = "", ...rest } = attributes;
  return h(
    "button",
    { type: "button", class: `button ${text ? "" : "bare"} ${more}`, ...(text ? {} : tip(label)), ...rest },
    name ? icon(name) : null,
    text ? h("span", { class: "text" }, text) : null,
  );
}

// A select whose own face can be cut off with dots; browsers that do not know <selectedcontent> ignore it.
export function drawSelect(attributes, ...options) {
  return h("select", { ...attributes, class: "select" }, drawFace(), ...options);
}

export const drawFace = () => h("button", { type: "button", tabIndex: -1 }, h("selectedcontent"));

export const tip = (label) => ({ "aria-label": label, "data-tip": label });

export const reduced = () => matchMedia("(prefers-reduced-motion: reduce)").matches;

// One bubble for every [data-tip] and every [data-help]: at the pointer after a moment, with the keyboard at once.
export function startTips() {
  const bubble = h("div", { class: "tip", role: "tooltip", hidden: true });
  document.body.append(bubble);
  let timer = 0;
  let owner = null;
  const hide = () => {
    clearTimeout(timer);
    bubble.hidden = true;
    owner = null;
  };
  const show = (element) => {
    bubble.textContent = element.dataset.help || element.dataset.tip;
    const home = element.closest("dialog") ?? document.body; // above a modal dialog only what is inside it shows
    if (bubble.parentNode !== home) home.append(bubble);
    bubble.hidden = false;
    const at = element.getBoundingClientRect();
    const size = bubble.getBoundingClientRect();
    const left = Math.min(Math.max(8, at.left + at.width / 2 - size.width / 2), innerWidth - size.width - 8);
    const above = at.top - size.height - 7;
    bubble.style.left = `${left}px`;
    bubble.style.top = `${above > 4 ? above : at.bottom + 7}px`;
  };
  const target = (event) => event.target.closest?.("[data-tip], [data-help]");
  document.addEventListener("pointerover", (event) => {
    const element = target(event);
    if (element === owner) return;
    hide();
    if (!element || event.pointerType === "touch") return;
    owner = element;
    timer = setTimeout(() => element.isConnected && show(element), 450);
  });
  document.addEventListener("focusin", (event) => {
    const element = target(event);
    if (!element?.matches(":focus-visible")) return;
    hide();
    owner = element;
    show(element);
  });
  for (const event of ["focusout", "pointerdown", "keydown", "scroll"]) document.addEventListener(event, hide, true);
}

// A line at the foot of the page; `action` is {text, run}. Errors stay until they are closed.
export function toast(text, { kind = "note", detail = "", action = null, close = "Close" } = {}) {
  let shelf = document.getElementById("toasts");
  if (!shelf) {
    shelf = h("div", { id: "toasts", role: "status", "aria-live": "polite" });
  }
  above(shelf);
  const away = () => {
    element.classList.add("leaving");
    setTimeout(() => element.remove(), reduced() ? 0 : 180);
  };
  const element = h(
    "div",
    { class: `toast ${kind}`, data: { text: text + detail } },
    icon(kind === "error" ? "alert" : kind === "done" ? "check" : "info"),
    h("div", { class: "words" }, h("strong", {}, kind === "error" ? sentence(text) : text), detail ? h("span", {}, detail) : null),
    action ? h("button", { type: "button", class: "link", onclick: () => (away(), action.run()) }, action.text) : null,
    button({ label: close, icon: "close", onclick: away }),
  );
  for (const other of [...shelf.children]) if (other.dataset.text === text + detail) other.remove(); // not twice
  while (shelf.children.length > 3) shelf.firstChild.remove();
  shelf.append(element);
  if (kind !== "error") setTimeout(away, action || detail ? 9000 : 3500);
  return element;
}

// Into the dialog that is open, since above a modal one only what is inside it shows; out again when it closes.
function above(shelf) {
  const home = [...document.querySelectorAll("dialog:modal")].at(-1) ?? document.body;
  if (shelf.parentNode === home) return;
  home.append(shelf);
  if (home !== document.body) home.addEventListener("close", () => document.body.append(shelf), { once: true });
}

// The server's messages begin in lower case, since some of them follow a field's name.
export const sentence = (words) => (words ? words[0].toUpperCase() + words.slice(1) : "");

// A modal <dialog>: closes on Esc, on its cross and on a click beside it; focus goes back to where it was.
export function dialog(title, close, ...children) {
  const element = sheet(title, close, ...children);
  element.addEventListener("click", (event) => event.target === element && element.close());
  return element;
}

// The same, but a click beside it does nothing, and whoever hears its "cancel" can keep it open.
export function sheet(title, close, ...children) {
  const ask = () => element.dispatchEvent(new Event("cancel", { cancelable: true })) && element.close();
  const element = h(
    "dialog",
    { class: "dialog", "aria-label": title },
    h(
      "div",
      { class: "sheet" },
      h("header", {}, h("h2", {}, title), button({ label: close, icon: "close", onclick: ask })),
      ...children,
    ),
  );
  document.body.append(element);
  return element;
}

// Scrolls `list`, and nothing around it, until `tile` is in sight.
export function reveal(tile, list, margin = 8) {
  const [at, room] = [tile, list].map((each) => each.getBoundingClientRect());
  const beyond = (start, end) =>
    Math.min(0, at[start] - room[start] - margin) + Math.max(0, at[end] - room[end] + margin);
  list.scrollBy(beyond("left", "right"), beyond("top", "bottom"));
}

export const isTyping = (target) =>
  Boolean(
    target.closest?.("textarea, select, [contenteditable], input:not([type=range], [type=radio], [type=checkbox])"),
  );

// Whether a key is for what has the focus: a text, or a control that is worked by it.
export function isTaken({ defaultPrevented, key, target }) {
  const onControl = target.closest("button, input, summary, a, [role=listbox], [role=separator]");
  const isWorking = onControl && [" ", "Enter", "ArrowLeft", "ArrowRight", "+", "-"].includes(key);
  return defaultPrevented || isTyping(target) || Boolean(isWorking);
}

export const isOpen = () => Boolean(document.querySelector("dialog[open], [popover]:popover-open"));

export function keep(key, value) {
  try {
    localStorage.setItem(`atelier:${key}`, JSON.stringify(value));
  } catch {
    // a private window without storage: nothing is kept, all else works
  }
}

export function kept(key, otherwise = null) {
  try {
    return JSON.parse(localStorage.getItem(`atelier:${key}`)) ?? otherwise;
  } catch {
    return otherwise;
  }
}

export async function copy(text) {
  if (navigator.clipboard) return navigator.clipboard.writeText(text);
  // plain http on a local network has no clipboard API
  const area = h("textarea", { class: "offscreen", value: text, readonly: true });
  (document.querySelector("dialog[open]") ?? document.body).append(area);
  area.select();
  document.execCommand("copy");
  area.remove();
}
