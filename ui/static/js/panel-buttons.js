// Buttons that an extension adds to its panel: each sends the panel's values to a route of the extension's own.
import { button, h, sentence } from "./dom.js";
import { post, url } from "./server.js";
import { t } from "./words.js";

export function drawButtons(form) {
  const image = h("img", { alt: t("answer.image"), hidden: true });
  const text = h("p", { role: "status", hidden: true });
  const show = ({ image: shown = null, text: said = null }) => {
    const address = shown ? addressOf(String(shown)) : null;
    image.hidden = !address;
    if (address) image.src = address;
    text.hidden = !said;
    text.textContent = said ? sentence(String(said)) : "";
  };
  const press = async (pressed, route) => {
    pressed.disabled = true;
    text.classList.remove("problem");
    try {
      const body = JSON.stringify(form.values());
      const answer = (await post(`extensions/${form.id}/${route}`, { body, type: "application/json" })) ?? {};
      if (answer.values) take(form, answer.values);
      show(answer);
    } catch (error) {
      const strays = [];
      for (const { field, message } of error.problems ?? []) {
        const path = field.replace(new RegExp(`^(body|extensions\\.${form.id})\\.`), "");
        if (form.fields.has(path.split(".")[0])) form.refuse(path, message);
        else strays.push(message);
      }
      show({ text: strays.join("; ") || (error.problems?.length ? null : error.message) });
      text.classList.add("problem");
    } finally {
      pressed.disabled = false;
    }
  };
  const buttons = form.buttons.map(({ label, route, help }) => {
    const text = t(`button.${form.id}.${route}`, {}, label);
    const made = button({ text, class: "small", data: { route }, ...(help ? { "data-help": help } : {}) });
    made.addEventListener("click", () => press(made, route));
    return made;
  });
  return h("div", { class: "panel-buttons" }, h("div", { class: "buttons" }, ...buttons), image, text);
}

// An image in the store by its name, or an address on this server.
function addressOf(shown) {
  if (/^[0-9a-f]{64}$/.test(shown)) return url(`api/images/${shown}`);
  if (/^data:image\/(png|jpeg|webp);/.test(shown)) return shown;
  const address = new URL(url(shown));
  return address.origin === location.origin ? address.href : null;
}

function take(form, values) {
  const known = Object.entries(values).filter(([name]) => form.fields.has(name));
  form.fill(Object.fromEntries(known.map(([name, value]) => [name, form.coerce(name, value)])));
}
