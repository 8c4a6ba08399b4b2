// What the two editors share: a large dialog with tools above, paper that fills the room, and answers below.

// {say}. `use` is called with Use and gives a promise; then the dialog closes. While `isChanged()` it asks before it
// closes without. `keys` hears of every key.
export function openEditor(api, { name, title, tools, paper, use, isChanged, keys }) {
  const { element, button, words } = api;
  const say = element("p", { class: "cn-said", role: "status" });
  const keep = button({ text: words("use"), class: "primary use", run: finish });
  const answers = element(
    "div",
    { class: "cn-answers" },
    button({ text: words("cancel"), class: "cancel", run: () => ask() }),
    keep,
  );
  const doubt = element(
    "div",
    { class: "cn-answers", hidden: true },
    element("span", {}, words("drop.ask")),
    button({ text: words("drop.no"), class: "stay", run: () => turn(false) }),
    button({ text: words("drop.yes"), class: "drop", run: () => dialog.close() }),
  );
  const bar = element("div", { class: "cn-tools", role: "toolbar", "aria-label": title }, ...tools);
  const room = element("div", { class: "cn-room" }, paper);
  const dialog = api.dialog(title, bar, room, element("footer", {}, say, answers, doubt));
  dialog.classList.add("controlnet-editor", name);
  // on the page: a button that is off once it was pressed, as Undo, leaves the focus nowhere
  document.addEventListener("keydown", keys);
  dialog.addEventListener("close", () => document.removeEventListener("keydown", keys));
  dialog.addEventListener("cancel", (event) => {
    if (!isChanged() || !doubt.hidden) return;
    event.preventDefault();
    turn(true);
  });

  function turn(isInDoubt) {
    answers.hidden = isInDoubt;
    doubt.hidden = !isInDoubt;
    (isInDoubt ? doubt.querySelector(".stay") : keep).focus();
  }

  function ask() {
    if (isChanged()) turn(true);
    else dialog.close();
  }

  async function finish() {
    keep.disabled = true;
    try {
      await use();
      dialog.close();
    } catch (error) {
      say.textContent = error.message;
      say.classList.add("problem");
    } finally {
      keep.disabled = false;
    }
  }

  return { say: (text) => say.classList.contains("problem") || (say.textContent = text) };
}

// The paper's shape: as large as the room lets it be.
export function shape(paper, width, height) {
  paper.style.setProperty("--across", width);
  paper.style.setProperty("--down", height);
}

// A button that is pressed or not.
export function toggle(api, { label, icon, pressed, run }) {
  const made = api.button({ label, icon, class: "toggle", "aria-pressed": String(pressed), run: () => turn() });
  const turn = () => {
    const now = made.getAttribute("aria-pressed") !== "true";
    made.setAttribute("aria-pressed", String(now));
    run(now);
  };
  return made;
}

export const gap = (api) => api.element("span", { class: "cn-gap" });
