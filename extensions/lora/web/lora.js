// LoRA on the page: the browser of cards behind a button at the prompt, and completion and weights of its tags there.
import { startBrowser } from "./browser.js";
import { startCompletion } from "./completion.js";
import { startWeight } from "./weight.js";

window.atelier.extend("lora", (api) => {
  startBrowser(api);
  startCompletion(api);
  startWeight(api);
});
