// LoRA on the page: the browser of cards behind a button at the prompt, and completion of <lora: in the prompt box.
import { startBrowser } from "./browser.js";
import { startCompletion } from "./completion.js";

window.atelier.extend("lora", (api) => {
  startBrowser(api);
  startCompletion(api);
});
