// What can be done with a finished picture: the buttons under the stage and in the lightbox.
import * as create from "./create.js";
import { button, copy, h, toast } from "./dom.js";
import { url } from "./server.js";
import { t } from "./words.js";

const done = (words) => toast(words, { kind: "done", close: t("close") });

const ACTIONS = {
  use: { icon: "image", run: create.usePicture },
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

// `current` gives the picture in question, or null; `after` is called with the action's name.
export function drawActions(current, after = () => {}) {
  return Object.entries(ACTIONS).map(([name, { icon, bare, run }]) => {
    const element = button({
      label: t(`action.${name}`),
      text: bare ? null : t(`action.${name}`),
      icon,
      "data-help": bare ? null : t(`action.${name}.help`),
      data: { action: name },
      onclick: async () => {
        const picture = current();
        if (!picture) return;
        await run(picture);
        after(name);
      },
    });
    return element;
  });
}
