// What is known of one LoRA, and may be changed: trigger words, weight, notes, its picture.

export async function openAbout(api, id, families, changed) {
  const { element, words } = api;
  const answer = await fetch(api.url(`cards/${id}`));
  const card = await answer.json();
  if (!answer.ok) throw new Error(card.detail);
  const own = card.own;

  const text = (name, value, rows = 0) => {
    const given = rows
      ? element("textarea", { class: "prompt", rows, name, spellcheck: "false" })
      : element("input", { class: "line", type: "text", name, autocomplete: "off" });
    given.value = value;
    return given;
  };
  const labelled = (name, control, help = null) =>
    element("label", { class: "lora-field" }, element("span", { class: "lora-label", "data-help": help }, words(name)), control);

  const title = text("title", card.title);
  const trigger = text("trigger", card.trigger, 2);
  const negative = text("negative", card.negative);
  const weight = element("input", { type: "number", class: "box", name: "weight", min: -10, max: 10, step: 0.05 });
  weight.value = card.weight || "";
  weight.placeholder = "1";
  const family = element(
    "select",
    { class: "select", name: "family" },
    element("option", { value: "" }, words("family.")),
    ...Object.entries(families).map(([key, name]) => element("option", { value: key }, name)),
  );
  family.value = card.family;
  const description = text("description", card.description, 3);
  const notes = text("notes", card.notes, 3);
  const tags = text("tags", card.tags.join(", "));

  const picture = element("div", { class: "lora-picture" });
  const paint = ({ preview }) =>
    picture.replaceChildren(
      preview
        ? element("img", { src: api.url(preview), alt: words("preview") })
        : element("span", { class: "lora-blank", "aria-hidden": "true" }, card.title.slice(0, 1).toUpperCase()),
    );
  const take = async (blob) => {
    const shown = await api.post(`cards/${id}/preview`, { image: await api.upload(blob) });
    paint(shown);
    changed(shown);
  };
  const onStage = api.button({
    label: words(api.picture ? "preview.stage" : "preview.none"),
    text: words("preview.stage"),
    class: "small lora-from-stage",
    run: async () => take(await (await fetch(api.picture.url)).blob()),
  });
  onStage.disabled = !api.picture;
  const file = element("input", { type: "file", accept: "image/png,image/jpeg,image/webp", hidden: true });
  file.addEventListener("change", () => file.files[0] && take(file.files[0]).catch((error) => api.toast(error.message)));
  const fromFile = api.button({
    label: words("preview.file"),
    text: words("preview.file"),
    class: "small",
    run: () => file.click(),
  });

  const listed = () => trigger.value.split(",").map((word) => word.trim()).filter(Boolean);
  const most = card.cloud[0]?.count ?? 1;
  const cloud = card.cloud.slice(0, 60).map(({ tag, count }) => {
    const size = 11 + 6 * Math.sqrt(count / most);
    const chip = element("button", { type: "button", class: "lora-word", title: String(count) }, tag);
    chip.style.fontSize = `${size.toFixed(1)}px`;
    chip.addEventListener("click", () => {
      const known = listed();
      trigger.value = (known.includes(tag) ? known.filter((word) => word !== tag) : [...known, tag]).join(", ");
      press();
    });
    return chip;
  });
  const press = () => {
    const known = listed();
    for (const chip of cloud) chip.setAttribute("aria-pressed", String(known.includes(chip.textContent)));
  };
  trigger.addEventListener("input", press);
  press();

  const facts = {
    name: card.file,
    alias: card.alias,
    base: card.base,
    author: card.author,
    licence: card.licence,
    hash: card.hash,
    size: `${new Intl.NumberFormat(api.language, { maximumFractionDigits: 1 }).format(card.size / 2 ** 20)} MB`,
  };
  const lines = [
    ...Object.entries(facts).map(([key, value]) => [words(`fact.${key}`), value]),
    ...Object.entries(card.made).map(([label, value]) => [words(`fact.${label}`), value]),
  ].filter(([, value]) => value);

  async function save() {
    const now = {
      title: title.value.trim(),
      trigger: trigger.value,
      negative: negative.value,
      weight: Number(weight.value) || 0,
      family: family.value,
      description: description.value,
      notes: notes.value,
      tags: tags.value.split(",").map((tag) => tag.trim()).filter(Boolean),
    };
    const before = { ...card, tags: card.tags };
    const isSame = (key) => JSON.stringify(now[key]) === JSON.stringify(before[key] ?? own[key]);
    const edit = Object.fromEntries(Object.entries(now).filter(([key]) => !isSame(key)));
    try {
      if (Object.keys(edit).length) changed(await api.post(`cards/${id}`, edit));
      dialog.close();
    } catch (error) {
      problem.textContent = error.message;
      problem.hidden = false;
    }
  }
  const problem = element("p", { class: "lora-problem", role: "alert" });
  problem.hidden = true;

  const dialog = api.dialog(
    card.title,
    element(
      "form",
      { class: "lora-about-form", onsubmit: (event) => (event.preventDefault(), save()) },
      element(
        "div",
        { class: "lora-side" },
        picture,
        onStage,
        fromFile,
        file,
        element("h3", {}, words("facts")),
        element("dl", {}, ...lines.flatMap(([key, value]) => [element("dt", {}, key), element("dd", {}, String(value))])),
      ),
      element(
        "div",
        { class: "lora-fields" },
        labelled("name", title),
        labelled("trigger", trigger, words("trigger.help")),
        cloud.length
          ? element(
              "div",
              { class: "lora-cloud", "aria-label": words("cloud") },
              element("h3", { "data-help": words("cloud.help") }, words("cloud")),
              element("div", {}, ...cloud),
            )
          : null,
        element("div", { class: "lora-pair" }, labelled("weight", weight), labelled("family", element("span", { class: "lora-select" }, family))),
        labelled("negative", negative),
        labelled("description", description),
        labelled("notes", notes),
        labelled("tags", tags),
        problem,
        element("button", { type: "submit", class: "button primary lora-save" }, words("save")),
      ),
    ),
  );
  dialog.classList.add("lora-about-dialog");
  paint(card);
}
