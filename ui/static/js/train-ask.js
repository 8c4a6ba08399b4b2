// A small dialog of the Train tab.
import { button, dialog, h } from "./dom.js";
import { t } from "./words.js";

// A question with a way out and a way on.
export function ask(title, what, words, run, ...more) {
  const cancel = button({ label: t("train.cancel"), text: t("train.cancel"), onclick: () => sheet.close() });
  const agree = h("button", { type: "submit", class: "button primary agree" }, h("span", { class: "text" }, words));
  const submit = (event) => {
    event.preventDefault();
    sheet.close();
    run();
  };
  const body = h(
    "form",
    { onsubmit: submit },
    what ? h("p", {}, what) : null,
    ...more,
    h("div", { class: "answers" }, cancel, agree),
  );
  const sheet = dialog(title, t("close"), body);
  sheet.classList.add("train-ask");
  sheet.addEventListener("close", () => sheet.remove());
  sheet.showModal();
  return sheet;
}
