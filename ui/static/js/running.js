// Stop and Skip, beside Generate.
import { core } from "./create.js";
import { button } from "./dom.js";
import * as jobs from "./jobs.js";
import { t } from "./words.js";

export function drawRunning({ element }) {
  const stop = button({
    label: t("stop"),
    text: t("stop"),
    icon: "stop",
    id: "stop",
    "data-help": t("stop.help"),
    onclick: jobs.stop,
  });
  const skip = button({
    label: t("skip"),
    text: t("skip"),
    icon: "skip",
    id: "skip",
    "data-help": t("skip.help"),
    onclick: () => jobs.skip(jobs.running()),
  });
  element.querySelector(".surface").append(stop, skip);
  const paint = () => {
    const running = jobs.running();
    stop.disabled = skip.disabled = !running || !jobs.state.online || jobs.ending.has(running.id);
  };
  // how many pictures Generate will make, where it is more than one
  const count = () => {
    const pictures = (core.get("batch_size") ?? 1) * (core.get("n_iter") ?? 1);
    document.documentElement.style.setProperty("--pictures", pictures > 1 ? `" · ${pictures}"` : '""');
  };
  jobs.hear(paint);
  core.hear(count);
  paint();
  count();
}
