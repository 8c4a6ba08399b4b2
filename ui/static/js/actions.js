// What can be done with a finished picture: the buttons under the stage and in the lightbox.
import * as create from "./create.js";
import { button, copy, h, toast } from "./dom.js";
import { url } from "./server.js";
import { t } from "./words.js";

const done = (words) => toast(words, { kind: "done", close: t("close") });

const ACTIONS = {
  use: { icon: "image", run: (picture) => create.usePicture(picture, "image") },
  inpaint: { icon: "brush", run: (picture) => create.usePicture(picture, "inpaint"), isThere: create.canInpaint },
  seed: {
    icon: "seed",
    run: (picture) => {
      create.core.set("seed", picture.seed);
      done(t("action.seed.done", { seed: picture.seed }));
    },
  },
  parameters: { icon: "recall", run: (picture) => create.recallText(picture.infotext) },
  copy: {
    icon: "copy",
    bare: true,
    run: async (picture) => {
      await copy(picture.infotext);
      done(t("action.copy.done"));
    },
  },
  download: {
    icon: "download",
    bare: true,
    run: (picture) => {
      const link = h("a", { href: url(`${picture.url}?download=1`), download: "" });
      document.body.append(link);
      link.click();
      link.remove();
    },
  },
};

const added = []; // by extensions: functions that draw a button for a bar
const bars = []; // {current, after, last: the last button there}

// `current` gives the picture in question, or null; `after` is called with the action's name.
export function drawActions(current, after = () => {}) {
  const there = Object.entries(ACTIONS).filter(([, { isThere }]) => !isThere || isThere());
  const bar = { current, after };
  const drawn = there.map(([name, { icon, bare, run }]) =>
    drawAction(bar, name, {
      icon,
      run,
      label: t(`action.${name}`),
      text: bare ? null : t(`action.${name}`),
      help: bare ? null : t(`action.${name}.help`),
    }),
  );
  drawn.push(...added.map((draw) => draw(bar)));
  bar.last = drawn.at(-1);
  bars.push(bar);
  return drawn;
}

// One more button in every bar.
export function addAction(name, action) {
  const draw = (bar) => drawAction(bar, name, action);
  added.push(draw);
  for (const bar of bars) {
    const element = draw(bar);
    element.disabled = bar.last.disabled;
    bar.last.after(element);
    bar.last = element;
  }
}

function drawAction({ current, after }, name, { run, help, ...look }) {
  return button({
    ...look,
    "data-help": help,
    data: { action: name },
    onclick: async () => {
      const picture = current();
      if (!picture) return;
      await run(picture);
      after(name);
    },
  });
}
