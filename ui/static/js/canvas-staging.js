// Below the canvas: the picture as it is and what came of it, side by side; one is looked at, taken or put away.
import { button, h, icon, reveal, tip } from "./dom.js";
import { url } from "./server.js";
import { t } from "./words.js";

// `ask` knows what there is: {candidates() -> [{picture, request, place}], coming() -> [{id, preview, place}],
// isOver(job id)}; `act` what to do: {accept, discard, again}. A place is a rectangle in the picture's pixels.
export function drawStaging(board, ask, act) {
  const list = h("div", { class: "candidates", role: "listbox", "aria-label": t("candidates"), hidden: true });
  const compare = h(
    "button",
    { type: "button", class: "button compare", "data-tip": t("candidate.compare.help") },
    icon("compare"),
    h("span", { class: "text" }, t("candidate.compare")),
  );
  const again = button({
    text: t("candidate.again"),
    icon: "recycle",
    id: "candidate-again",
    "data-help": t("candidate.again.help"),
    onclick: () => act.again(chosen()),
  });
  const discard = button({
    text: t("candidate.discard"),
    icon: "trash",
    id: "candidate-discard",
    onclick: () => discardChosen(),
  });
  const accept = button({
    text: t("candidate.accept"),
    icon: "check",
    class: "primary",
    id: "candidate-accept",
    "data-help": t("candidate.accept.help"),
    onclick: () => act.accept(chosen()),
  });
  const actions = h("div", { class: "staging-actions", hidden: true }, compare, again, discard, accept);

  // null: the picture itself; {picture: id}: a candidate; {job: id}: what is being drawn
  let chose = null;
  const chosen = () => ask.candidates().find(({ picture }) => picture.id === chose?.picture) ?? null;

  const choose = (what) => {
    chose = what;
    paint();
  };

  const hold = (to) => (event) => {
    event.preventDefault();
    board.compare(to);
  };
  compare.addEventListener("pointerdown", (event) => {
    compare.setPointerCapture(event.pointerId);
    hold(true)(event);
  });
  for (const end of ["pointerup", "pointercancel", "blur"]) compare.addEventListener(end, hold(false));
  compare.addEventListener("keydown", (event) => [" ", "Enter"].includes(event.key) && hold(true)(event));
  compare.addEventListener("keyup", hold(false));

  function discardChosen() {
    const all = ask.candidates();
    const at = all.findIndex(({ picture }) => picture.id === chose?.picture);
    const next = all[at + 1] ?? all[at - 1];
    act.discard(all[at]);
    choose(next ? { picture: next.picture.id } : null);
  }

  const tile = (selected, label, run, inside) =>
    h(
      "button",
      { type: "button", role: "option", class: "tile", "aria-selected": String(selected), ...tip(label), onclick: run },
      inside,
    );

  let drawn = "";
  const paint = () => {
    const all = ask.candidates();
    const coming = ask.coming();
    if (chose?.job && ask.isOver(chose.job)) {
      const made = all.find(({ picture }) => picture.job === chose.job); // it is finished
      chose = made ? { picture: made.picture.id } : null;
    }
    if (chose?.picture && !all.some(({ picture }) => picture.id === chose.picture)) chose = null;
    list.hidden = !all.length && !coming.length;
    const key = JSON.stringify([
      all.map(({ picture }) => picture.id),
      coming.map(({ id }) => id),
      chose,
      board.picture?.ref,
    ]);
    if (key !== drawn) {
      drawn = key;
      const original = h("img", { alt: "", draggable: false, src: board.picture?.image.src });
      const made = all.map(({ picture }, n) => {
        const image = h("img", { alt: "", draggable: false, src: url(picture.thumb) });
        return tile(
          chose?.picture === picture.id,
          t("candidate.nth", { n: n + 1 }),
          () => choose({ picture: picture.id }),
          image,
        );
      });
      const awaited = coming.map(({ id }) =>
        tile(
          chose?.job === id,
          t("stage.live"),
          () => choose({ job: id }),
          h("img", { class: "now", alt: "", draggable: false, data: { job: id }, hidden: true }),
        ),
      );
      list.replaceChildren(
        tile(chose === null, t("candidate.original"), () => choose(null), original),
        h("i", { class: "rule" }),
        ...made,
        ...awaited,
      );
      const selected = list.querySelector('[aria-selected="true"]');
      if (selected) reveal(selected, list);
    }
    for (const { id, preview } of coming) {
      const now = list.querySelector(`img[data-job="${id}"]`);
      if (preview && now.src !== preview) Object.assign(now, { src: preview, hidden: false });
    }
    show(coming.find(({ id }) => id === chose?.job));
    actions.hidden = !chosen();
  };

  function show(live) {
    const candidate = chosen();
    if (candidate) board.look({ src: url(candidate.picture.url), ...candidate.place });
    else if (live?.preview) board.look({ src: live.preview, isPreview: true, ...live.place });
    else if (board.shown) board.look(null);
  }

  // Painting goes on: the candidates wait.
  board.hear((what) => what === "resume" && chose && choose(null));

  // To the next or the one before; false if there is none.
  const step = (by) => {
    const all = [null, ...ask.candidates().map(({ picture }) => picture.id)];
    if (all.length < 2) return false;
    const next = all[(all.indexOf(chose?.picture ?? null) + by + all.length) % all.length];
    choose(next && { picture: next });
    return true;
  };

  return { list, actions, paint, choose, chosen, step, isLooking: () => chose !== null };
}
