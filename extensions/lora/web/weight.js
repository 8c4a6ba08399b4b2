// Ctrl+Up and Ctrl+Down change the weight of the tag at the caret, as in A1111.

const TAG = /(<(?:lora|lyco):[^<>:]+)((?::[^<>]*)?>)/gi;
const WEIGHT = /(:(?:te=|unet=)?)(-?(?:\d+\.?\d*|\.\d+))(?=[:>])/gi;
const STEP = 0.05;

export function startWeight({ promptBox: area }) {
  area.addEventListener("keydown", (event) => {
    const by = { ArrowUp: STEP, ArrowDown: -STEP }[event.key];
    if (!by || !(event.ctrlKey || event.metaKey) || event.altKey || event.shiftKey || event.isComposing) return;
    const change = changed(area.value, area.selectionStart, by);
    if (!change) return;
    event.preventDefault();
    area.setSelectionRange(change.from, change.to);
    document.execCommand("insertText", false, change.put); // keeps the text box's own undo
    area.setSelectionRange(change.from, change.from + change.put.length);
  });
}

// The weight that the caret is at, or the first one of its tag: where it stands, and what comes there.
function changed(text, caret, by) {
  const tag = [...text.matchAll(TAG)].find(({ 0: { length }, index }) => index < caret && caret < index + length);
  if (!tag) return null;
  const behind = tag.index + tag[1].length; // the name
  const weights = [...tag[2].matchAll(WEIGHT)].slice(0, 2).map(({ index, 1: { length }, 2: weight }) => {
    const from = behind + index + length;
    return { from, to: from + weight.length, put: step(weight, by) };
  });
  const at = weights.find(({ from, to }) => from <= caret && caret <= to);
  return at ?? weights[0] ?? { from: behind, to: behind, put: `:${step(1, by)}` };
}

const step = (weight, by) => String(Number((Number(weight) + by).toFixed(2)));
