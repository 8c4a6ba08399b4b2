// Getting models: what lies at an address, downloads, tokens, and three offers to begin with.
import { button, drawSelect, h, icon, sentence } from "./dom.js";
import { askHere, send } from "./models-about.js";
import { kindName, size } from "./models.js";
import { look } from "./models-work.js";
import { call } from "./server.js";
import { number, t } from "./words.js";

const KINDS = ["checkpoint", "diffusion_model", "lora", "vae", "controlnet", "embedding", "upscaler", "text_encoder", "tiny_vae"];
let ui = null;

export function drawGet(pane) {
  const source = h("input", {
    class: "line",
    id: "models-source",
    placeholder: t("models.address"),
    "aria-label": t("models.address"),
    autocomplete: "off",
    spellcheck: "false",
  });
  const go = h("button", { class: "button primary", id: "models-look" }, h("span", { class: "text" }, t("models.look")));
  const problem = h("p", { class: "problem", role: "alert", hidden: true });
  const found = h("div", { class: "found" });
  const refusal = h("div", { class: "refusal", hidden: true });
  const form = h("form", { class: "adding", onsubmit: (event) => (event.preventDefault(), find(source.value)) }, source, go);
  const offers = h("div", { class: "offers" });
  const tokens = h("div", { class: "tokens" });
  ui = { source, go, problem, found, refusal, form, offers, tokens };
  pane.append(
    h("p", { class: "small" }, t("models.get.about")),
    refusal,
    form,
    problem,
    found,
    h("h3", {}, t("models.offers")),
    h("p", { class: "small" }, t("models.offers.about")),
    offers,
    h("h3", {}, t("models.tokens")),
    h("p", { class: "small" }, t("models.tokens.about")),
    tokens,
  );
}

export async function showGet() {
  try {
    const [{ offers, refusal }, tokens] = await Promise.all([call("api/models/offers"), call("api/models/tokens")]);
    ui.refusal.hidden = !refusal;
    ui.refusal.replaceChildren(h("p", {}, `${sentence(refusal)}.`));
    ui.source.disabled = ui.go.disabled = Boolean(refusal);
    ui.offers.replaceChildren(...offers.map((offer) => drawOffer(offer, refusal)));
    ui.tokens.replaceChildren(...Object.entries(tokens).map(drawToken));
  } catch (error) {
    complain(error);
  }
}

function complain(error) {
  ui.problem.textContent = error ? sentence(error.message) : "";
  ui.problem.hidden = !error;
}

// --- what lies at an address

async function find(source) {
  if (!source.trim()) return;
  complain(null);
  ui.go.disabled = true;
  ui.found.replaceChildren(h("p", { class: "small" }, t("models.looking")));
  try {
    const found = await send("api/models/look", { source });
    ui.found.replaceChildren(drawFound(source, found));
  } catch (error) {
    ui.found.replaceChildren();
    complain(error);
  }
  ui.go.disabled = false;
}

function drawFound(source, found) {
  const facts = [found.licence ? t("models.licensed", { licence: found.licence }) : t("models.unlicensed"), found.page];
  return h(
    "div",
    { class: "source" },
    h("h3", {}, found.title),
    h("p", { class: "small" }, facts.join(" · ")),
    h("ul", {}, ...found.options.slice(0, 40).map((option) => drawOption(source, option))),
  );
}

function drawOption(source, option) {
  const facts = [
    option.folder ? t("models.files", { n: option.files, count: option.files }) : null,
    option.size ? size(option.size) : null,
    option.checked ? t("models.checked") : null,
    option.pickle ? t("models.pickle") : null,
  ].filter(Boolean);
  return h(
    "li",
    { data: { option: option.name } },
    h("div", { class: "words" }, h("strong", {}, option.folder ? `${option.name}/` : option.name), h("small", {}, facts.join(" · "))),
    button({ text: t("models.download"), icon: "download", class: "small", onclick: () => openDownload(source, option) }),
  );
}

function openDownload(source, option) {
  const name = h("input", { class: "line", value: option.name, autocomplete: "off", spellcheck: "false" });
  const kind = drawSelect({ name: "kind" }, ...KINDS.map((value) => h("option", { value }, kindName(value))));
  kind.value = option.kind;
  const sha256 = h("input", { class: "line", placeholder: t("models.sha256.none"), autocomplete: "off", spellcheck: "false" });
  const trust = h("input", { type: "checkbox", class: "switch", role: "switch" });
  const part = (label, control) => h("label", { class: "part" }, h("span", {}, label), control);
  askHere(
    t("models.download.title", { name: option.name }),
    t("models.download"),
    [
      part(t("models.name"), name),
      part(t("models.kind"), h("span", { class: "selecting" }, kind, icon("down"))),
      option.folder || option.checked ? null : part(t("models.sha256"), sha256),
      option.pickle ? h("p", { class: "problem" }, t("models.pickle.why")) : null,
      option.pickle ? h("label", { class: "turn" }, trust, h("span", {}, t("models.pickle.keep"))) : null,
    ].filter(Boolean),
    async () => {
      await send("api/models/downloads", {
        source,
        key: option.key,
        name: name.value,
        kind: kind.value,
        sha256: sha256.value.trim(),
        pickle: trust.checked,
      });
      look();
    },
  );
}

// --- to begin with

function drawOffer(offer, refusal) {
  const get = async () => {
    ui.source.value = offer.source;
    await find(offer.source);
    ui.found.scrollIntoView({ block: "nearest", behavior: "smooth" });
  };
  return h(
    "article",
    { class: `offer ${offer.best ? "best" : ""}` },
    h("h3", {}, offer.title, offer.best ? h("span", { class: "badge" }, t("models.offer.best")) : null),
    h("p", {}, t(`models.${offer.about}`)),
    h(
      "p",
      { class: "small" },
      [size(offer.size), t("models.offer.memory", { n: number(offer.memory / 2 ** 30, 0) }), offer.licence].join(" · "),
    ),
    refusal
      ? h("code", {}, `python app.py models add ${offer.source}`)
      : button({ text: t("models.look"), class: "small", onclick: get }),
  );
}

// --- tokens

const SITES = { huggingface: "Hugging Face", civitai: "Civitai" };

function drawToken([site, isKnown]) {
  const token = h("input", {
    type: "password",
    class: "line",
    placeholder: t(isKnown ? "models.token.known" : "models.token.none"),
    "aria-label": t("models.token", { site: SITES[site] ?? site }),
    autocomplete: "off",
  });
  const save = async (event) => {
    event.preventDefault();
    try {
      await send("api/models/tokens", { site, token: token.value });
      showGet();
    } catch (error) {
      complain(error);
    }
  };
  return h(
    "form",
    { onsubmit: save },
    h("span", {}, SITES[site] ?? site),
    token,
    h("button", { class: "button small" }, t("models.save")),
  );
}
