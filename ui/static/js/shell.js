// Header, rail's foot, settings and help.
import * as create from "./create.js";
import { button, dialog, drawSelect, h, icon, keep, kept } from "./dom.js";
import { drawPills, drawQueue } from "./jobs.js";
import * as stage from "./stage.js";
import { LANGUAGES, t } from "./words.js";

let help = null;
let settings = null;

export function drawTop({ element }) {
  element
    .querySelector(".surface")
    .append(
      h("a", { class: "brand", href: "./", "aria-label": "Atelier" }, icon("spark"), h("span", {}, "Atelier")),
      create.drawModelPicker(),
      h("div", { class: "space" }),
      h("div", { class: "pills" }, ...drawPills()),
      button({ label: t("theme.switch"), icon: "theme", id: "theme", onclick: switchTheme }),
      button({ label: t("settings"), icon: "settings", class: "narrow-only", onclick: openSettings }),
      button({ label: t("help"), icon: "help", id: "help", class: "narrow-only", onclick: openHelp }),
    );
  drawQueue(stage.look);
}

export function drawFoot({ element }) {
  const entry = (name, words, run) =>
    h("button", { type: "button", id: `foot-${name}`, onclick: run }, icon(name), h("span", {}, words));
  element
    .querySelector(".surface")
    .append(entry("settings", t("settings.short"), openSettings), entry("help", t("help"), openHelp));
  startTabs();
}

// The tab in front is in the address, so that a reload comes back to it.
function startTabs() {
  document.addEventListener("click", ({ target }) => {
    const tab = target.closest("#rail [role=tab]");
    if (tab) history.replaceState(null, "", `#/${tab.id.replace(/^tab-|-button$/g, "")}`);
  });
  document.getElementById(`tab-${location.hash.slice(2)}-button`)?.click();
}

function switchTheme() {
  setTheme(document.documentElement.classList.contains("dark") ? "light" : "dark");
}

function setTheme(theme) {
  keep("theme", theme);
  window.atelierTheme = theme; // where storage is forbidden
  window.atelierPaint();
}

function openSettings() {
  settings ??= buildSettings();
  for (const input of settings.querySelectorAll("input[name=theme]"))
    input.checked = input.value === kept("theme", "dark");
  settings.showModal();
}

function buildSettings() {
  const themes = h(
    "div",
    { class: "segments", role: "radiogroup", "aria-label": t("theme") },
    ...["dark", "light", "system"].map((theme) =>
      h(
        "label",
        {},
        h("input", { type: "radio", name: "theme", value: theme, onchange: () => setTheme(theme) }),
        h("span", {}, t(`theme.${theme}`)),
      ),
    ),
  );
  const languages = drawSelect(
    {
      id: "language",
      onchange: (event) => {
        keep("language", event.target.value || null);
        location.reload(); // words are everywhere; the form is kept
      },
    },
    h("option", { value: "" }, t("language.browser")),
    ...Object.entries(LANGUAGES).map(([code, name]) => h("option", { value: code }, name)),
  );
  languages.value = kept("language", "");
  return dialog(
    t("settings"),
    t("close"),
    h("div", { class: "field" }, h("div", { class: "head" }, h("label", {}, t("theme"))), themes),
    h(
      "div",
      { class: "field" },
      h("div", { class: "head" }, h("label", { for: "language" }, t("language"))),
      h("div", { class: "selecting" }, languages, icon("down")),
    ),
    h("p", { class: "small" }, t("settings.where")),
  );
}

const KEYS = [
  [["Ctrl", "Enter"], "key.generate"],
  [["Esc"], "key.stop"],
  [["Alt", "Enter"], "key.skip"],
  [["Ctrl", "V"], "key.paste"],
  [["←", "→"], "key.walk"],
  [["F"], "key.large"],
  [["I"], "key.details"],
  [["0", "1", "+", "−"], "key.zoom"],
];

const CANVAS_KEYS = [
  [["B", "E", "L", "M", "G"], "key.brush"],
  [["Q", "W"], "key.size"],
  [["Ctrl", "Z"], "key.undo"],
  [["Ctrl", "I"], "key.invert"],
  [["Space"], "key.move"],
  [["R"], "key.fit"],
  [["O"], "key.mask"],
];

function drawKeys(rows) {
  const named = (key) => (key === "Ctrl" && /Mac|iP/.test(navigator.platform) ? "⌘" : t(`keyboard.${key}`, {}, key));
  return h(
    "dl",
    { class: "keys" },
    ...rows.flatMap(([keys, words]) => [
      h("dt", {}, ...keys.map((key) => h("kbd", {}, named(key)))),
      h("dd", {}, t(words)),
    ]),
  );
}

function openHelp() {
  help ??= dialog(
    t("help.title"),
    t("close"),
    h("h3", {}, t("help.keys")),
    drawKeys(KEYS),
    h("h3", {}, t("help.canvas")),
    drawKeys(CANVAS_KEYS),
    h("h3", {}, t("help.mouse")),
    h("ul", {}, ...["help.drop", "help.image", "help.zoom", "help.queue"].map((key) => h("li", {}, t(key)))),
  );
  help.showModal();
}
