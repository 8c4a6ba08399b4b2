// Fields of a panel that its extension's script draws itself: `api.widget` in docs/extensions.md.

const drawers = new Map(); // a field's path, "controlnet.units.map" -> draw(field)
const hearers = new Set();

// `draw(field)` gives the element that takes the widget's place, null if the field is not to be shown by itself,
// and undefined if it cannot: then the usual widget is there.
export function own(path, draw) {
  drawers.set(path, draw);
  hearers.forEach((hearer) => hearer(path));
}

// Calls `hear` when a field of the form comes to be drawn by a script.
export const onOwn = (form, hear) => hearers.add((path) => path.startsWith(`${form.id}.`) && hear());

export const drawOwn = (form, field, id) => drawers.get(`${form.prefix}${field.name}`)?.(fieldOf(form, field, id));

// What a script sees of a field; "beside it" is the same unit, or the panel.
const fieldOf = (form, field, id) =>
  Object.freeze({
    id,
    get label() {
      return form.label(field);
    },
    get value() {
      return form.get(field.name);
    },
    set value(value) {
      form.set(field.name, value);
    },
    get: (name) => form.read(name),
    set: (values) => void form.fill(values),
    choices: (name) => structuredClone(form.choices(name)),
    values: () => form.values(),
    hear: (hearer) => form.hear(hearer),
  });
