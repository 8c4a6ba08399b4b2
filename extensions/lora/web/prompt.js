// Tags in the prompt: found, put in with their trigger words, taken out again.

const TAG = /<(?:lora|lyco):([^<>:]+)((?::[^<>]*)?)>/gi;

const bare = (name) => name.trim().replace(/^"|"$/g, "").replace(/\.safetensors$/, "");

// The names that a card goes by in tags, in small letters.
const namesOf = ({ name, tag, alias }) => new Set([name, tag, alias].filter(Boolean).map((each) => each.toLowerCase()));

export function isIn(prompt, card) {
  const names = namesOf(card);
  return [...prompt.matchAll(TAG)].some(([, name]) => names.has(bare(name).toLowerCase()));
}

export const tagOf = ({ tag, weight }) => `<lora:${tag}:${weight || 1}>`;

export function withCard(api, card) {
  api.prompt = joined(withWords(api.prompt, card.trigger), tagOf(card), " ");
  api.negativePrompt = withWords(api.negativePrompt, card.negative);
}

export function withoutCard(api, card) {
  const names = namesOf(card);
  const prompt = api.prompt.replace(TAG, (whole, name) => (names.has(bare(name).toLowerCase()) ? "" : whole));
  api.prompt = withoutWords(prompt, card.trigger);
  api.negativePrompt = withoutWords(api.negativePrompt, card.negative);
}

const joined = (text, more, between) => [text.replace(/[\s,]+$/, ""), more].filter(Boolean).join(between);

const withWords = (text, words) => (!words || text.includes(words) ? text : joined(text, words, ", "));

function withoutWords(text, words) {
  const without = words ? text.replace(words, "") : text;
  return without
    .replace(/(,\s*)+,/g, ",")
    .replace(/^[\s,]+|[\s,]+$/g, "")
    .replace(/ {2,}/g, " ");
}
