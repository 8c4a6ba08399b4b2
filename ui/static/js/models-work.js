// What is under way: downloads, merges and conversions, with how far each has come. Asked for while somebody looks.
import { button, h, sentence, toast } from "./dom.js";
import { kindName, size } from "./models.js";
import { call, post } from "./server.js";
import { seconds, t } from "./words.js";

const PACE = 1000;
const ENDED = ["done", "stopped"];

let home = null;
let finished = () => {};
let timer = 0;
let known = new Map(); // what was under way, to notice when it is done

export function startWork(element, whenDone) {
  home = element;
  finished = whenDone;
  new IntersectionObserver((seen) => seen.some((one) => one.isIntersecting) && look()).observe(home.parentElement);
}

export async function look() {
  clearTimeout(timer);
  let rows;
  try {
    const [{ downloads }, { chores }] = await Promise.all([call("api/models/downloads"), call("api/models/chores")]);
    rows = [...downloads.map(asDownload), ...chores.map(asChore)];
  } catch {
    timer = setTimeout(look, 5 * PACE); // the line is down
    return;
  }
  notice(rows);
  const shown = rows.filter((row) => !ENDED.includes(row.state));
  paint(shown);
  const isBusy = rows.some((row) => row.state === "running" || row.state === "waiting");
  if (isBusy && home.checkVisibility()) timer = setTimeout(look, PACE);
}

function notice(rows) {
  for (const row of rows)
    if (row.state === "done" && known.has(row.id) && known.get(row.id) !== "done") {
      toast(t("models.ready", { name: row.name }), { kind: "done", close: t("close") });
      finished();
    }
  known = new Map(rows.map((row) => [row.id, row.state]));
}

const asDownload = (one) => {
  const left = one.eta === null ? "" : t("models.left", { time: seconds(one.eta) });
  const come = one.total ? `${size(one.done)} / ${size(one.total)}` : size(one.done);
  const speed = one.speed ? `${size(one.speed)}/s` : "";
  const act = (verb) => async () => (await post(`api/models/downloads/${one.id}/${verb}`), look());
  return {
    ...one,
    title: one.name,
    at: one.total ? one.done / one.total : 0,
    facts: [kindName(one.kind), come, one.state === "running" ? speed : "", left].filter(Boolean).join(" · "),
    actions: [
      ["running", "waiting"].includes(one.state) ? ["pause", act("pause")] : null,
      ["paused", "failed"].includes(one.state) ? ["resume", act("resume")] : null,
      ["cancel", act("cancel")],
    ].filter(Boolean),
  };
};

const asChore = (one) => {
  const stop = async () => (await post(`api/models/chores/${one.id}/stop`), look());
  return {
    ...one,
    title: one.name,
    facts: [t(`models.what.${one.what}`), one.models.join(" + ")].join(" · "),
    actions: [["cancel", stop]],
  };
};

function paint(rows) {
  const focused = document.activeElement?.id;
  home.replaceChildren(...rows.map(drawRow));
  if (focused?.startsWith("work-")) document.getElementById(focused)?.focus();
}

function drawRow(row) {
  const percent = Math.round(row.at * 100);
  return h(
    "div",
    { class: `job ${row.state}`, data: { work: row.name } },
    h("div", { class: "head" }, h("strong", {}, row.title), h("span", { class: "state" }, t(`models.state.${row.state}`)), h("span", { class: "percent" }, `${percent} %`)),
    h("div", { class: "track", role: "progressbar", "aria-valuenow": percent, "aria-label": row.title }, h("i", { style: `width: ${percent}%` })),
    h(
      "div",
      { class: "foot" },
      h("p", { class: row.error ? "problem" : "small" }, row.error ? sentence(row.error) : row.facts),
      ...row.actions.map(([verb, run]) =>
        button({
          text: t(`models.${verb}`),
          class: "small",
          id: `work-${verb}-${row.id}`,
          onclick: () => run().catch((error) => toast(error.message, { kind: "error", close: t("close") })),
        }),
      ),
    ),
  );
}
