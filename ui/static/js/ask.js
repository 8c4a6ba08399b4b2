// A small dialog that asks: a way out, and a way on, which is waited for and says what went wrong.
import { button, dialog, h, sentence } from "./dom.js";
import { t } from "./words.js";

// `look` are classes of the dialog, beside its own.
export function ask(title, words, children, run, look = "") {
  const problem = h("p", { class: "problem", role: "alert", hidden: true });
  const cancel = button({ label: t("cancel"), text: t("cancel"), onclick: () => sheet.close() });
  const agree = h("button", { type: "submit", class: "button primary agree" }, h("span", { class: "text" }, words));
  const submit = async (event) => {
    event.preventDefault();
    agree.disabled = true;
    try {
      await run();
      sheet.close();
    } catch (error) {
      problem.textContent = sentence(error.message);
      problem.hidden = false;
    }
    agree.disabled = false;
  };
  const body = h("form", { onsubmit: submit }, ...children, problem, h("div", { class: "answers" }, cancel, agree));
  const sheet = dialog(title, t("close"), body);
  sheet.className += ` ask ${look}`;
  sheet.addEventListener("close", () => sheet.remove());
  sheet.showModal();
  const first = body.querySelector("input, select") ?? cancel;
  first.focus();
  if (first.type === "text") first.select();
  return sheet;
}
