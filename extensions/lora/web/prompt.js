// Tags in the prompt: found, put in with their trigger words, taken out again.

const TAG = /[^\S\n]*<(?:lora|lyco):([^<>:]+)((?::[^<>]*)?)>/gi;

// What a tag says of a name that has it, in small letters.
const bare = (name) => name.trim().replace(/^"|"$/g, "").trim().replace(/\.safetensors$/, "").toLowerCase();

const namesOf = ({ name, tag, alias }) => new Set([name, tag, alias].filter(Boolean).map(bare));

export function isIn(prompt, card) {
  const names = namesOf(card);
  return [...prompt.matchAll(TAG)].some(([, name]) => names.has(bare(name)));
}

export const tagOf = ({ tag, weight }) => `<lora:${tag}:${weight || 1}>`;

export function withCard(api, card) {
  api.prompt = joined(withWords(api.prompt, card.trigger), tagOf(card), " ");
  api.negativePrompt = withWords(api.negativePrompt, card.negative);
}

export function withoutCard(api, card) {
  const names = namesOf(card);
  const prompt = api.prompt.replace(TAG, (whole, name) => (names.has(bare(name)) ? "" : whole));
  api.prompt = withoutWords(prompt.trimStart(), card.trigger);
  api.negativePrompt = withoutWords(api.negativePrompt, card.negative);
}

const joined = (text, more, between) => [text.replace(/[\s,]+$/, ""), more].filter(Boolean).join(between);

// People end them with a comma, to write on.
const neat = (words) => words.replace(/^[\s,]+|[\s,]+$/g, "");

function withWords(text, said) {
  const words = neat(said);
  return !words || holds(text, words) ? text : joined(text, words, ", ");
}

const escaped = (words) => words.replace(/[\\^$.*+?()[\]{}|/]/g, "\\$&");

// As words, not as a part of longer ones.
const holds = (text, words) => new RegExp(`(^|[^\\p{L}\\p{N}])${escaped(words)}($|[^\\p{L}\\p{N}])`, "u").test(text);

// Only where they stand by themselves between commas: "cat" stays in "a cat".
function withoutWords(text, said) {
  const words = neat(said);
  if (!words) return text;
  const alone = `[^\\S\\n]*${escaped(words)}[^\\S\\n]*`;
  return text
    .replace(new RegExp(`^${alone}(,[^\\S\\n]*|(?=<|\\n|$))`, "u"), "")
    .replace(new RegExp(`,${alone}(?=,|\\n|$)`, "u"), "")
    .replace(new RegExp(`,${alone}(?=<)`, "u"), " ");
}
