// Pictures drawn on the way: rows are prompts, columns are steps, the untrained model's first; one large on a click.
import { button, dialog, h, icon } from "./dom.js";
import { url } from "./server.js";
import { number, t } from "./words.js";

// `paint(columns, rows)`: columns [{label, pictures: [address or null]}], rows [label]. An address never changes its picture.
export function drawGrid({ label, empty, choose = null }) {
  const table = h("table", { "aria-label": label });
  const none = h("p", { class: "nothing" }, empty);
  const element = h("div", { class: "samples" }, h("div", { class: "scroll" }, table), none);
  let before = "";
  const paint = (columns, rows) => {
    const key = JSON.stringify([columns, rows]);
    if (key === before) return;
    before = key;
    none.hidden = columns.length > 0;
    const scroll = table.parentElement;
    const isAtEnd = scroll.scrollLeft + scroll.clientWidth >= scroll.scrollWidth - 8;
    const head = h(
      "tr",
      {},
      h("th"),
      ...columns.map((column) => h("th", { scope: "col", class: baseOf(column) }, column.label)),
    );
    const lines = rows.map((words, row) =>
      h(
        "tr",
        {},
        h("th", { scope: "row" }, h("span", { "data-tip": words }, words)),
        ...columns.map((column, at) => h("td", { class: baseOf(column) }, drawCell(columns, rows, at, row))),
      ),
    );
    table.replaceChildren(...(columns.length ? [h("thead", {}, head), h("tbody", {}, ...lines)] : []));
    if (isAtEnd) scroll.scrollLeft = scroll.scrollWidth;
  };
  const drawCell = (columns, rows, at, row) => {
    const address = columns[at].pictures[row];
    if (!address) return h("span", { class: "blank" });
    return h(
      "button",
      {
        type: "button",
        "aria-label": `${rows[row]}, ${columns[at].label}`,
        onclick: () => enlarge(columns, rows, at, row, choose),
      },
      h("img", { src: url(`${address}?s=256`), alt: "", loading: "lazy", draggable: false }),
    );
  };
  return { element, paint };
}

// The untrained model's stays in sight, to compare with.
const baseOf = ({ step }) => (step === 0 ? "base" : null);

export const columnsOf = (training) =>
  (training?.samples ?? []).map(({ step, pictures }) => ({
    step,
    label: step ? t("train.step.n", { n: number(step, 0) }) : t("train.untrained"),
    pictures,
  }));

// Arrows walk: left and right through the columns, up and down through the rows.
function enlarge(columns, rows, at, row, choose) {
  const picture = h("img", { alt: "", draggable: false });
  const words = h("p", { class: "small" });
  const step = (dx, dy) => {
    const [next, line] = [at + dx, row + dy];
    if (!columns[next]?.pictures[line]) return;
    [at, row] = [next, line];
    show();
  };
  const pick =
    choose &&
    button({
      label: choose.words,
      text: choose.words,
      class: "primary",
      onclick: () => (sheet.close(), choose.run(columns[at], row)),
    });
  const turn = (dx, name, label) =>
    h("button", { type: "button", class: `turn ${name}`, "aria-label": label, onclick: () => step(dx, 0) }, icon(name));
  const back = turn(-1, "back", t("lightbox.back"));
  const next = turn(1, "next", t("lightbox.next"));
  const sheet = dialog(
    t("train.samples"),
    t("close"),
    h("div", { class: "enlarged" }, back, picture, next),
    words,
    pick ? h("div", { class: "answers" }, pick) : "",
  );
  const title = sheet.querySelector("h2");
  function show() {
    picture.src = url(columns[at].pictures[row]);
    title.textContent = columns[at].label;
    words.textContent = rows[row];
    back.disabled = !columns[at - 1]?.pictures[row];
    next.disabled = !columns[at + 1]?.pictures[row];
  }
  sheet.classList.add("train-large");
  sheet.addEventListener("keydown", (event) => {
    const by = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }[event.key];
    if (!by) return;
    event.preventDefault();
    step(...by);
  });
  sheet.addEventListener("close", () => sheet.remove());
  show();
  sheet.showModal();
}
