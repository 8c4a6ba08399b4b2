// The browser API of extensions (docs/extensions.md), and the loading of their web/ files.
import { addAction } from "./actions.js";
import * as create from "./create.js";
import { button, h, sheet, toast } from "./dom.js";
import * as jobs from "./jobs.js";
import { own } from "./panel-own.js";
import { post, url } from "./server.js";
import { language, t } from "./words.js";

const titles = new Map(); // id -> title, of those whose scripts are loaded

// The scripts and styles in `props.given`, once the page stands. One that fails is named; the others go on.
export function load({ props }) {
  for (const { id, title, scripts, styles } of props.given) {
    titles.set(id, title);
    document.head.append(...styles.map((path) => h("link", { rel: "stylesheet", href: url(path) })));
    for (const path of scripts) import(url(path)).catch((error) => failed(id, error));
  }
}

function failed(id, error) {
  console.error(`extension ${id}:`, error);
  toast(t("extensions.failed", { title: titles.get(id) }), {
    kind: "error",
    detail: String(error?.message ?? error),
    close: t("close"),
  });
}

// Calls `start(api)` for the extension `id`.
export function extend(id, start) {
  if (!titles.has(id)) throw new Error(`there is no extension ${id} with scripts on this page`);
  guarded(id, start)(Object.freeze(apiOf(id)));
}

// `callback`, but what it raises, now or later, is reported and goes no further.
const guarded =
  (id, callback) =>
  async (...values) => {
    try {
      return await callback(...values);
    } catch (error) {
      return failed(id, error);
    }
  };

const apiOf = (id) => ({
  id,
  get prompt() {
    return create.core.get("prompt");
  },
  set prompt(text) {
    create.core.set("prompt", String(text));
  },
  get negativePrompt() {
    return create.core.get("negative_prompt");
  },
  set negativePrompt(text) {
    create.core.set("negative_prompt", String(text));
  },
  // A button under every picture: {label, help, icon, run(picture)}; `icon` is an SVG path in a square of 24.
  addAction({ label, help = null, icon = null, run }) {
    const act = guarded(id, run);
    const look = { label: String(label), text: String(label), help: help && String(help), icon: icon ?? "spark" };
    addAction(`${id}:${look.label}`, { ...look, run: (picture) => act(pictureOf(picture)) });
  },
  // A button beside the prompt's name: {label, icon, text, run}.
  addPromptButton({ run, ...look }) {
    const made = button({ ...look, class: `small ${look.class ?? ""}`, onclick: guarded(id, () => run?.()) });
    document.querySelector('[data-field="prompt"] > .head').append(made);
    return made;
  },
  get promptBox() {
    return document.getElementById("field-prompt");
  },
  get model() {
    const { name, title, family = "" } = create.chosen() ?? {};
    return name ? { name, title, family } : null;
  },
  get picture() {
    const shown = create.onStage();
    return shown && pictureOf(shown);
  },
  // Calls `hear(job)` whenever a job changes; what it returns ends that.
  onJob(hear) {
    const heard = guarded(id, hear);
    return jobs.hear(({ jobs: changed = [] }) => changed.forEach((job) => heard(structuredClone(job))));
  },
  // Calls `hear` whenever the request's own fields change.
  onRequest(hear) {
    create.core.hear(guarded(id, () => hear()));
  },
  // Draws the field at `path` of its panel, "units.map", in place of the usual widget.
  widget(path, draw) {
    own(`${id}.${path}`, (field) => {
      try {
        return draw(field);
      } catch (error) {
        return failed(id, error);
      }
    });
  },
  request: () => structuredClone(create.request()),
  post: (route, values = {}) =>
    post(`extensions/${id}/${route}`, { body: JSON.stringify(values), type: "application/json" }),
  upload: async (file) => (await post("api/images", { body: file, type: file.type || "image/png" })).id,
  image: (ref) => url(`api/images/${ref}`),
  language,
  words: (key, values = {}) => t(`${id}.${key}`, values, key),
  element: h,
  button: ({ run, ...look }) => button({ ...look, onclick: guarded(id, () => run?.()) }),
  dialog(title, ...children) {
    const element = sheet(String(title), t("close"), ...children);
    element.addEventListener("close", () => element.remove());
    element.showModal();
    return element;
  },
  toast: (text) => void toast(String(text), { close: t("close") }),
  url: (path = "") => url(`extensions/${id}/${path}`),
});

const pictureOf = (picture) => ({ ...picture, url: url(picture.url), thumb: url(picture.thumb) });
