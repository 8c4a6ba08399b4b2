// What the server says about jobs, as it comes in; the header's pills and the queue drawer show it.
import { button, h, icon, sentence, toast } from "./dom.js";
import { call, listen, post } from "./server.js";
import { ordinal, seconds, t } from "./words.js";

export const jobs = new Map();
export const state = { online: false, known: false, engine: { state: "starting", device: "", detail: "" } };
export const events = new Set(); // who hears what comes in as it is
const hearers = new Set();
const KEPT = 60;

// `hear(change)` with change = {jobs: [job]}, {models: true} when some came or went, or {} when only the engine or the
// line changed; returns what ends it.
export function hear(hearer) {
  hearers.add(hearer);
  return () => hearers.delete(hearer);
}

const tell = (change = {}) => hearers.forEach((hearer) => hearer(change));

export const running = () => [...jobs.values()].find((job) => job.state === "running") ?? null;
export const isOver = (job) => ["done", "failed", "cancelled"].includes(job.state);

// In the order in which they will run.
export const waiting = () =>
  [...jobs.values()].filter((job) => job.state === "queued").sort((a, b) => position(a) - position(b) || a.id - b.id);

// 1 = next. The server's figure is as old as its last word on this job; those before it may have gone since.
function position(job) {
  return job.position ?? Infinity;
}

export function placeWords(job) {
  const place = waiting().indexOf(job) + 1;
  return place === 1 ? t("queue.next") : t("queue.place", { place: ordinal(place) });
}

export let reconnect = () => {};

export function start() {
  reconnect = listen((event) => {
    events.forEach((hearer) => hearer(event));
    if (event.type === "online") {
      state.online = event.online;
      tell();
    } else if (event.type === "snapshot") {
      state.known = true;
      state.engine = event.engine ?? state.engine;
      const now = new Set(event.jobs.map((job) => job.id));
      for (const job of [...jobs.values()].filter((one) => !isOver(one) && !now.has(one.id))) {
        jobs.delete(job.id); // it ended while we were away
        call(`api/jobs/${job.id}`).then(
          (ended) => take([ended]),
          () => {},
        );
      }
      take(event.jobs);
    } else if (event.type === "engine") {
      state.engine = event.engine;
      tell();
    } else if (event.type === "job") {
      take([event.job]);
    } else if (event.type === "models") {
      tell({ models: true });
    }
  });
}

export function take(given) {
  for (const job of given) {
    remark(job);
    jobs.set(job.id, job);
  }
  const over = [...jobs.values()].filter(isOver).sort((a, b) => a.id - b.id);
  for (const job of over.slice(0, -KEPT)) jobs.delete(job.id);
  tell({ jobs: given });
}

// What the server has to say of how a job goes, once each.
function remark(job) {
  const known = jobs.get(job.id);
  if (!known && isOver(job)) return;
  for (const notice of (job.notices ?? []).slice(known?.notices?.length ?? 0)) {
    toast(t("notice.title"), { detail: sentence(notice), close: t("close") });
  }
}

async function order(job, what) {
  try {
    await post(`api/jobs/${job.id}/${what}`); // its answer may be older than what the socket has brought meanwhile
  } catch (error) {
    ending.delete(job.id);
    toast(error.message, { kind: "error", close: t("close") });
  }
}

export const ending = new Set(); // ids of jobs that were told to stop; a large model takes a while for its step

export function cancel(job) {
  ending.add(job.id);
  tell();
  return order(job, "cancel");
}

export const skip = (job) => order(job, "skip");
export const stop = () => running() && cancel(running());

// "Step 7 of 20 · about 3 s left" and what else can be said of a running job.
export function describe(job) {
  const { progress } = job;
  if (ending.has(job.id)) return t("stage.stopping");
  if (!progress) return t("stage.starting");
  if (progress.stage !== "sampling" || !progress.steps) return t(`stage.${progress.stage}`);
  const parts = [t("stage.step", { step: progress.step, steps: progress.steps })];
  if (progress.batches > 1) parts.push(t("stage.batch", { n: progress.batch + 1, batches: progress.batches }));
  if (progress.eta) parts.push(t("stage.left", { time: seconds(Math.max(1, progress.eta)) }));
  return parts.join(" · ");
}

function pillWords(job) {
  const { progress } = job;
  const words = [];
  if (progress?.stage === "sampling" && progress.steps) {
    words.push(`${progress.step}/${progress.steps}`);
    if (progress.batches > 1) words.push(t("pill.batch", { n: progress.batch + 1, batches: progress.batches }));
    if (progress.eta) words.push(seconds(Math.max(1, Math.ceil(progress.eta))));
  } else {
    words.push(t(`stage.${progress?.stage ?? "starting"}`));
  }
  return words;
}

// The pills in the header: the engine's state, and what is being done.
export function drawPills() {
  const engine = h("span", { class: "pill engine", role: "status" });
  const fill = h("i", { class: "fill" });
  const words = h("span");
  const work = h("button", { type: "button", class: "pill work", popovertarget: "queue", hidden: true }, fill, words);
  const paint = () => {
    const job = running();
    const queued = waiting().length;
    const idle = !job && !queued;
    work.hidden = idle || !state.online;
    if (!idle) {
      const parts = job ? pillWords(job) : [];
      if (queued) parts.push(t("pill.waiting", { n: queued, count: queued }));
      words.textContent = parts.join(" · ");
      fill.style.transform = `scaleX(${job?.progress?.fraction ?? 0})`;
      work.setAttribute("aria-label", t("pill.label", { state: words.textContent }));
    }
    const kind =
      !state.online && state.known
        ? "offline"
        : state.online && isKnown(state.engine)
          ? state.engine.state
          : "starting";
    engine.dataset.state = kind;
    engine.replaceChildren(h("i", { class: "dot" }), h("span", {}, engineWords(kind)));
    engine.title = state.engine.detail ?? "";
    engine.hidden = !idle && kind === "ready";
    document.title = job ? `${Math.round((job.progress?.fraction ?? 0) * 100)} % · Atelier` : "Atelier";
  };
  hear(paint);
  paint();
  return [work, engine];
}

const isKnown = (engine) => ["ready", "failed"].includes(engine.state);

function engineWords(kind) {
  const device = state.engine.device ? ` · ${state.engine.device.toUpperCase()}` : "";
  return t(`engine.${kind}`) + (kind === "ready" ? device : "");
}

// What runs and what waits, each with a cross.
export function drawQueue(look) {
  const list = h("ol");
  const clear = h(
    "button",
    { type: "button", class: "link", onclick: () => waiting().forEach(cancel) },
    t("queue.clear"),
  );
  const drawer = h(
    "div",
    { id: "queue", popover: "auto", "aria-label": t("queue.title") },
    h("header", {}, h("h2", {}, t("queue.title")), clear),
    list,
    h("p", { class: "nothing" }, t("queue.empty")),
  );
  const row = (job) => {
    const live = job.state === "running";
    const still = job.preview ? h("img", { alt: "", src: job.preview }) : icon(live ? "spark" : "queue");
    const about = live ? describe(job) : placeWords(job);
    return h(
      "li",
      { class: job.state, data: { job: job.id } },
      h(
        "button",
        { type: "button", class: "what", onclick: () => (drawer.hidePopover(), look(job)) },
        h("span", { class: "still" }, still),
        h("span", { class: "about" }, h("b", {}, job.request.prompt || t("queue.untitled")), h("small", {}, about)),
      ),
      button({
        label: t(live ? "stop" : "queue.cancel"),
        icon: live ? "stop" : "close",
        class: "small",
        onclick: () => cancel(job),
      }),
    );
  };
  let focused = null;
  const paint = ({ newState } = {}) => {
    if (newState !== "open" && !drawer.matches(":popover-open")) return;
    const shown = [running(), ...waiting()].filter(Boolean);
    const active = document.activeElement?.closest("#queue li");
    focused = active ? [active.dataset.job, document.activeElement.className] : focused;
    list.replaceChildren(...shown.map(row));
    drawer.classList.toggle("empty", !shown.length);
    clear.hidden = waiting().length < 2;
    if (focused) list.querySelector(`[data-job="${focused[0]}"] [class="${focused[1]}"]`)?.focus(); // redrawn under the keyboard
    focused = null;
  };
  drawer.addEventListener("beforetoggle", paint);
  hear(paint);
  document.body.append(drawer);
}
