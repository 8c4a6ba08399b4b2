// The Extensions tab: what is installed, what is wrong with it, and installing more in two steps.
import { ask } from "./ask.js";
import { button, h, icon, sentence, tip, toast } from "./dom.js";
import { call, post } from "./server.js";
import { number, t } from "./words.js";

const COMMAND = "python app.py extensions";
const JSON_TYPE = "application/json";

let state = null; // the server's last word
let ui = null;

export function draw({ element }) {
  ui = build();
  element.querySelector(".surface").append(ui.home);
  new IntersectionObserver((seen) => seen.some((one) => one.isIntersecting) && look()).observe(ui.home);
}

function build() {
  const notices = h("div", { class: "notices" });
  const list = h("ul", { class: "installed", "aria-label": t("extensions.installed") });
  const add = h("div", { class: "add" });
  const found = h("div", { class: "catalogue" });
  const home = h(
    "div",
    { class: "page", tabindex: "-1" },
    h("h2", {}, t("extensions")),
    h("p", { class: "small" }, t("extensions.about")),
    notices,
    add,
    found,
    h("h3", {}, t("extensions.installed")),
    list,
  );
  return { home, notices, list, add, found };
}

async function look() {
  try {
    show(await call("api/extensions"));
  } catch (error) {
    complain(error);
  }
}

const complain = (error) => toast(error.message, { kind: "error", close: t("close") });

function show(answer) {
  const isFirst = !state;
  state = answer;
  if (isFirst) {
    ui.add.replaceChildren(...(state.refusal ? [drawRefusal()] : drawAdding()));
    if (state.catalogue) ui.found.append(...drawCatalogue());
  }
  const notices = [
    state.notice ? drawNotice("alert", state.notice) : null,
    state.restart ? drawNotice("recycle", t("extensions.restart")) : null,
  ];
  ui.notices.replaceChildren(...notices.filter(Boolean));
  const focused = ui.list.contains(document.activeElement) ? document.activeElement.id : null;
  ui.list.replaceChildren(...state.extensions.map(inWords).map(drawOne));
  if (focused) document.getElementById(focused)?.focus();
}

// In the reader's language, if the extension speaks it.
const inWords = (one) => ({
  ...one,
  title: t(`extension.${one.id}`, {}, one.title),
  description: t(`${one.id}.about`, {}, one.description),
});

const drawNotice = (kind, text) => h("p", { class: `notice ${kind}`, role: "status" }, icon(kind), h("span", {}, text));

// A file's name keeps its small letters.
const asSentence = (words) => (/^\S+\.toml/.test(words) ? words : sentence(words));

// --- what is installed

function drawOne(one) {
  const turn = h("input", {
    type: "checkbox",
    role: "switch",
    class: "switch",
    id: `turn-${one.id}`,
    checked: one.enabled && one.pending !== "remove",
    disabled: Boolean(state.refusal) || one.pending === "remove",
    ...tip(t("extensions.turn", { title: one.title })),
    onchange: () => change(one, turn.checked ? "enable" : "disable", turn),
  });
  const origin = one.builtin ? t("extensions.builtin") : one.from;
  const facts = [one.id, one.version, origin].filter(Boolean).join(" · ");
  const said = [
    one.description ? h("p", {}, one.description) : null,
    one.problem ? h("p", { class: "problem" }, asSentence(one.problem)) : null,
    one.pending ? h("p", { class: "pending" }, t(`extensions.pending.${one.pending}`)) : null,
  ];
  return h(
    "li",
    { class: one.state, data: { extension: one.id } },
    h(
      "div",
      { class: "head" },
      h("i", { class: "dot" }),
      h("h3", {}, one.title),
      h("span", { class: "state" }, t(`extensions.state.${one.state}`)),
      turn,
    ),
    h("p", { class: "small" }, facts),
    ...said,
    one.builtin || state.refusal || one.pending === "remove" ? null : drawChores(one),
  );
}

function drawChores(one) {
  const chore = (what, run) =>
    button({ label: t(`extensions.${what}`), text: t(`extensions.${what}`), class: "small", id: `${what}-${one.id}`, onclick: run });
  const pick = () => pickZip((file) => planZip(file, one.id));
  const isKnown = one.kind === "git" || (one.kind === "folder" && state.paths);
  return h(
    "div",
    { class: "chores" },
    isKnown ? chore("update", (event) => plan({ update: one.id }, event.currentTarget)) : null,
    one.kind === "zip" ? chore("update", pick) : null,
    one.can_roll_back ? chore("rollback", (event) => change(one, "rollback", event.currentTarget)) : null,
    chore("remove", (event) => remove(one, event.currentTarget)),
    one.homepage
      ? h("a", { class: "link", href: one.homepage, target: "_blank", rel: "noopener noreferrer" }, t("extensions.homepage"))
      : null,
  );
}

async function change(one, verb, element) {
  element.disabled = true;
  try {
    show(await post(`api/extensions/${one.id}/${verb}`));
  } catch (error) {
    complain(error);
    show(state);
  }
}

function remove(one, element) {
  const title = t("extensions.remove.title", { title: one.title });
  const what = h("p", {}, t("extensions.remove.what"));
  ask(title, t("extensions.remove"), [what], () => change(one, "remove", element), "about-extension");
}

// --- installing

function drawRefusal() {
  return h("div", { class: "refusal" }, h("p", {}, `${sentence(state.refusal)}.`), h("code", {}, `${COMMAND} install …`));
}

function drawAdding() {
  const source = h("input", {
    class: "line",
    id: "extension-source",
    placeholder: t(state.paths ? "extensions.source.local" : "extensions.source"),
    "aria-label": t("extensions.source"),
    autocomplete: "off",
    spellcheck: "false",
  });
  const ref = h("input", {
    class: "line",
    id: "extension-ref",
    placeholder: t("extensions.ref"),
    "aria-label": t("extensions.ref"),
    autocomplete: "off",
    spellcheck: "false",
  });
  const go = h("button", { class: "button primary", id: "extension-look" }, h("span", { class: "text" }, t("extensions.look")));
  const zip = button({
    label: t("extensions.zip"),
    text: t("extensions.zip"),
    icon: "upload",
    id: "extension-zip",
    onclick: () => pickZip((file) => planZip(file, "", zip)),
  });
  const submit = (event) => {
    event.preventDefault();
    if (source.value.trim()) plan({ source: source.value, ref: ref.value.trim() }, go);
  };
  return [
    h("h3", {}, t("extensions.add")),
    h("form", { class: "adding", onsubmit: submit }, source, ref, go, zip),
    h("p", { class: "small" }, t("extensions.trust")),
  ];
}

function pickZip(take) {
  const input = h("input", { type: "file", accept: ".zip,application/zip", hidden: true });
  input.addEventListener("change", () => input.files[0] && take(input.files[0]));
  input.addEventListener("cancel", () => input.remove());
  document.body.append(input);
  input.click();
}

const plan = (wish, element) =>
  propose(() => post("api/extensions/plan", { body: JSON.stringify(wish), type: JSON_TYPE }), element);

const planZip = (file, update = "", element = null) =>
  propose(
    () =>
      post(`api/extensions/plan/zip?${new URLSearchParams({ name: file.name, update })}`, {
        body: file,
        type: "application/zip",
      }),
    element,
  );

async function propose(asked, element) {
  if (element) element.disabled = true;
  ui.home.setAttribute("aria-busy", "true");
  try {
    showPlan(await asked());
  } catch (error) {
    complain(error);
  }
  ui.home.removeAttribute("aria-busy");
  if (element) element.disabled = false;
}

// What it is and what it asks for; nothing of it has run.
function showPlan(made) {
  const { extension } = made;
  if (made.before && !made.news) {
    post(`api/extensions/plans/${made.token}/cancel`).catch(() => {});
    return void toast(t("extensions.current", { title: extension.title, version: extension.version }), { close: t("close") });
  }
  const claims = [
    ...extension.capabilities.map((name) => t(`extensions.capability.${name}`)),
    extension.routes ? t("extensions.asks.routes", { routes: extension.routes }) : null,
    made.packages.length ? t("extensions.asks.packages", { list: made.packages.join(", ") }) : null,
  ].filter(Boolean);
  const facts = [extension.id, extension.version, made.from, made.commit.slice(0, 10)].filter(Boolean).join(" · ");
  const size = t("extensions.size", { n: made.files, size: number(Math.ceil(made.size / 1024), 0) });
  const licence = extension.licence || t("extensions.unlicensed");
  let answered = false;
  const body = h(
    "div",
    { class: "plan" },
    h("p", { class: "small" }, facts),
    extension.description ? h("p", {}, extension.description) : null,
    h("p", { class: "small" }, `${size} · ${licence}`),
    h("h3", {}, t("extensions.asks")),
    h("ul", { class: "asks" }, ...(claims.length ? claims : [t("extensions.asks.nothing")]).map((claim) => h("li", {}, claim))),
    made.wider ? h("p", { class: "problem" }, t("extensions.wider")) : null,
    made.changes.length ? drawChanges(made.changes) : null,
    made.edited ? h("p", { class: "problem" }, t("extensions.edited")) : null,
    h("p", { class: "small" }, t("extensions.trust")),
  );
  const title = `${extension.title} ${extension.version}`;
  const apply = async () => {
    answered = true; // a plan is good for once
    try {
      show(await post(`api/extensions/plans/${made.token}/apply`));
      toast(t("extensions.done", { title }), { kind: "done", close: t("close") });
    } catch (error) {
      complain(error);
    }
  };
  const words = t(made.before ? "extensions.update" : "extensions.install");
  const sheet = ask(title, words, [body], apply, "about-extension");
  sheet.addEventListener("close", () => {
    if (!answered) post(`api/extensions/plans/${made.token}/cancel`).catch(() => {}); // the server forgets it by itself
  });
}

function drawChanges(changes) {
  const rows = changes.flatMap(({ key, before, after }) => [
    h("dt", {}, key),
    h("dd", {}, h("del", {}, before || "–"), " ", h("ins", {}, after || "–")),
  ]);
  return h("div", {}, h("h3", {}, t("extensions.changes")), h("dl", { class: "changes" }, ...rows));
}

// --- the catalogue

function drawCatalogue() {
  const words = h("input", {
    class: "line",
    type: "search",
    id: "extension-search",
    placeholder: t("extensions.search"),
    "aria-label": t("extensions.search"),
  });
  const results = h("ul", { class: "results" });
  let timer = 0;
  let asked = 0;
  const search = async () => {
    const mine = ++asked;
    try {
      const { extensions } = await call(`api/extensions/catalogue?${new URLSearchParams({ q: words.value })}`);
      if (mine !== asked) return;
      const none = h("li", { class: "nothing" }, t("extensions.nothing"));
      results.replaceChildren(...(extensions.length ? extensions.map(drawEntry) : [none]));
    } catch (error) {
      if (mine === asked) results.replaceChildren(h("li", { class: "nothing" }, sentence(error.message)));
    }
  };
  words.addEventListener("input", () => {
    clearTimeout(timer);
    timer = setTimeout(search, 200);
  });
  search();
  return [h("h3", {}, t("extensions.catalogue")), words, results];
}

function drawEntry(entry) {
  const facts = [entry.id, entry.version, entry.author, ...entry.tags].filter(Boolean).join(" · ");
  const wish = { catalogue: entry.id };
  const add = button({
    label: t("extensions.look"),
    text: t(entry.installed ? "extensions.here" : "extensions.look"),
    class: "small",
    disabled: entry.installed || Boolean(state.refusal),
    onclick: () => plan(wish, add),
  });
  return h(
    "li",
    { data: { entry: entry.id } },
    h("div", { class: "head" }, h("h3", {}, entry.title), add),
    h("p", { class: "small" }, facts),
    entry.description ? h("p", {}, entry.description) : null,
  );
}
