// The trash: models that were deleted, to be taken out again or to go for good.
import { button, h, toast } from "./dom.js";
import { askHere, send } from "./models-about.js";
import { kindName, size } from "./models.js";
import { call } from "./server.js";
import { language, t } from "./words.js";

let list = null;
let changed = () => {};

export function drawTrash(pane, whenChanged) {
  changed = whenChanged;
  list = h("ul", { class: "trash" });
  pane.append(h("p", { class: "small" }, t("models.trash.about")), list);
}

export async function showTrash() {
  try {
    paint(await call("api/models/trash"));
  } catch (error) {
    complain(error);
  }
}

const complain = (error) => void toast(error.message, { kind: "error", close: t("close") });

function paint({ models }) {
  const none = h("li", { class: "nothing" }, t("models.trash.empty"));
  list.replaceChildren(...(models.length ? models.map(drawOne) : [none]));
}

function drawOne(one) {
  const when = new Intl.DateTimeFormat(language, { dateStyle: "medium", timeStyle: "short" }).format(one.when * 1000);
  const facts = [kindName(one.kind), one.size ? size(one.size) : "", when].filter(Boolean).join(" · ");
  const restore = () => send(`api/models/trash/${one.id}/restore`).then((left) => (paint(left), changed()), complain);
  const destroy = () =>
    askHere(t("models.destroy.title", { name: one.name }), t("models.destroy"), [h("p", {}, t("models.destroy.what"))], async () =>
      paint(await send(`api/models/trash/${one.id}`, null, "DELETE")),
    );
  return h(
    "li",
    { data: { trashed: one.name } },
    h("div", { class: "words" }, h("strong", {}, one.name), h("small", {}, facts)),
    button({ text: t("models.restore"), class: "small restore", onclick: restore }),
    button({ text: t("models.destroy"), class: "small", onclick: destroy }),
  );
}
