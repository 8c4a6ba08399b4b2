// The values of one panel. Only what the person changed is kept; all else follows the declaration and the model.
import { number, t } from "./words.js";

const NUMBERS = ["number", "slider", "size", "seed", "frame"];
const NESTED = ["params", "units", "many"];

export class Form {
  constructor(schema, { overrides = {}, modes = false, lists = {} } = {}) {
    this.id = schema.id;
    this.rows = schema.rows;
    this.buttons = schema.buttons ?? [];
    this.fields = new Map(schema.rows.flat().map((field) => [field.name, field]));
    this.lists = lists; // choices that the server names only: {models: [[value, label]]}
    this.modes = modes; // whether a switch above decides if images take part
    this.mode = "text";
    this.model = {}; // what the chosen model prefers
    this.problems = new Map();
    this.hearers = new Set();
    this.overrides = {};
    this.adopt(overrides);
  }

  label(field) {
    const key = `param.${this.prefix}${field.name}`;
    const facet = this.facet(field);
    const usual = t(key, {}, field.label);
    if (!facet) return usual;
    return t(`${key}.${this.get(field.decidedBy)}`, {}, facet.label === field.label ? usual : facet.label);
  }

  help(field) {
    return t(`param.${this.prefix}${field.name}.help`, {}, field.help ?? "");
  }

  choice(field, [value, label]) {
    return t(`param.${this.prefix}${field.name}.${value}`, {}, label);
  }

  // Pairs of value and label; none where the server's list has not come yet.
  choices(name) {
    const { choices = [] } = this.fields.get(name);
    return typeof choices === "string" ? (this.lists[choices] ?? []) : choices;
  }

  get prefix() {
    return this.id === "core" ? "" : `${this.id}.`;
  }

  get at() {
    return this.prefix.replaceAll(".", "-"); // in the ids of its elements
  }

  // What a field that another one decides means now; undefined where it means nothing, or always the same.
  facet(field) {
    return field.facets?.[this.get(field.decidedBy)];
  }

  // A value as people see it: of a decided field that has its default, the default of what it means now.
  read(name) {
    const field = this.fields.get(name);
    const value = this.get(name);
    return value === field.default ? (this.facet(field)?.default ?? value) : value;
  }

  write(name, value) {
    const field = this.fields.get(name);
    this.set(name, value === this.facet(field)?.default ? field.default : value);
  }

  base(name) {
    const declared = this.fields.get(name).default;
    return name in this.model ? this.model[name] : declared;
  }

  get(name) {
    return name in this.overrides ? this.overrides[name] : this.base(name);
  }

  isChanged(name) {
    return name in this.overrides && this.overrides[name] !== this.facet(this.fields.get(name))?.default;
  }

  set(name, value) {
    this.fill({ [name]: value });
  }

  // Gives the names of all that it changed: also of what these values decide.
  fill(values) {
    const all = { ...this.undecided(values), ...values };
    for (const [name, value] of Object.entries(all)) {
      this.override(name, value);
      this.forget(name);
    }
    this.tell(Object.keys(all));
    return Object.keys(all);
  }

  // The fields that mean something else by these values, with their defaults.
  undecided(values) {
    const isNew = ({ decidedBy: by }) => by in values && !isSame(values[by], this.get(by));
    const fields = [...this.fields.values()].filter(isNew);
    return Object.fromEntries(fields.map(({ name }) => [name, this.base(name)]));
  }

  // Changes what is at the paths `touched` inside the value of `name`; what is wrong elsewhere in it stays wrong.
  edit(name, value, touched) {
    this.override(name, value);
    for (const path of [name, ...touched]) this.forget(path, path !== name);
    this.tell([name]);
  }

  override(name, value) {
    if (isSame(value, this.base(name))) delete this.overrides[name];
    else this.overrides[name] = value;
  }

  forget(path, within = true) {
    for (const known of [...this.problems.keys()])
      if (known === path || (within && known.startsWith(`${path}.`))) this.problems.delete(known);
  }

  reset(name) {
    this.set(name, this.base(name));
  }

  prefer(defaults) {
    this.model = Object.fromEntries(Object.entries(defaults).filter(([name]) => this.fields.has(name)));
    this.tell([...this.fields.keys()]);
  }

  switchTo(mode) {
    this.mode = mode;
    this.tell([...this.fields.keys()]);
  }

  // Where the values come from outside, as text or of another kind, in the kind that the field takes.
  coerce(name, value) {
    const field = this.fields.get(name);
    if (NESTED.includes(field.kind)) return fit(field, value);
    if (Array.isArray(field.choices))
      return field.choices.find(([known]) => String(known) === String(value))?.[0] ?? value;
    if (typeof field.default === "number" && value !== null && value !== "") return Number(value);
    if (typeof field.default === "boolean") return value === true || value === "True" || value === "true";
    return value;
  }

  isShown(name) {
    const field = this.fields.get(name);
    if (this.modes && field.kind === "image") return this.mode !== "text";
    if (field.facets && !this.facet(field)) return false;
    if (!field.shownFor || !this.fields.has(field.shownFor)) return true;
    const other = this.fields.get(field.shownFor);
    return this.modes && other.kind === "image" ? this.mode !== "text" : Boolean(this.get(field.shownFor));
  }

  values() {
    const names = [...this.fields.keys()].filter((name) => this.isShown(name));
    return Object.fromEntries(names.map((name) => [name, sent(this.fields.get(name), this.get(name))]));
  }

  // Finds what the server would refuse anyway and says it at once; the server checks again.
  check() {
    this.problems.clear();
    for (const [name, field] of this.fields) {
      if (!this.isShown(name)) continue;
      for (const [path, problem] of this.problemsIn(field, this.get(name), name)) this.problems.set(path, problem);
    }
    this.tell([...this.fields.keys()]);
    return this.problems.size === 0;
  }

  *problemsIn(field, value, path, facet = this.facet(field)) {
    const own = this.problemOf(field, value, facet);
    if (own) yield [path, own];
    const inner = field.kind === "units" ? value.entries() : field.kind === "params" && value ? [[null, value]] : [];
    for (const [index, values] of inner)
      for (const each of shownOf(field.rows, values)) {
        const within = [path, index, each.name].filter((p) => p !== null).join(".");
        yield* this.problemsIn(each, values[each.name], within, each.facets?.[values[each.decidedBy]]);
      }
  }

  problemOf(field, value, facet = this.facet(field)) {
    if (facet && value === field.default) return null;
    if (field.most !== undefined && value.length > field.most) return t("problem.most", { n: field.most });
    if (field.fewest && value.length < field.fewest) return t("problem.fewest", { n: field.fewest });
    if (NUMBERS.includes(field.kind) && !(field.optional && value === null)) {
      if (typeof value !== "number" || Number.isNaN(value)) return t("problem.number");
      const { min, max } = facet ? { min: facet.ge, max: facet.le } : field;
      if (value < min || value > max)
        return max === undefined || max >= Number.MAX_SAFE_INTEGER
          ? t("problem.atLeast", { min: number(min) })
          : t("problem.range", { min: number(min), max: number(max) });
      if (field.integer && !Number.isInteger(value)) return t("problem.integer");
      if (field.multiple && value % field.multiple) return t("problem.multiple", { n: field.multiple });
    }
    if (field.maxLength && value?.length > field.maxLength)
      return t("problem.length", { max: number(field.maxLength), n: number(value.length) });
    if (this.modes && field.kind === "image" && !value) return t("problem.image");
    return null;
  }

  // `path` is a field's name, or leads into it: units.0.weight
  refuse(path, message) {
    this.problems.set(path, message);
    this.tell([path.split(".")[0]]);
  }

  hear(hearer) {
    this.hearers.add(hearer);
  }

  tell(names) {
    for (const hearer of this.hearers) hearer(new Set(names));
  }

  // What a draft keeps, and how it comes back.
  dump() {
    return { ...this.overrides };
  }

  restore(overrides) {
    this.overrides = {};
    this.adopt(overrides);
    this.problems.clear();
    this.tell([...this.fields.keys()]);
  }

  adopt(overrides) {
    for (const [name, value] of Object.entries(overrides))
      if (this.fields.has(name)) this.overrides[name] = fit(this.fields.get(name), value);
  }
}

// Parameters within a parameter: one of a form's fields, or one of its units. The form keeps the value of all of it.
export class Part extends Form {
  constructor(parent, field, value, { index = null, assemble }) {
    super({ id: `${parent.prefix}${field.name}`, rows: field.rows }, { lists: parent.lists });
    this.parent = parent;
    this.name = field.name;
    this.path = index === null ? field.name : `${field.name}.${index}`;
    this.assemble = assemble; // the parent's value with what is here
    for (const name of this.fields.keys()) this.override(name, value[name]);
  }

  get at() {
    return `${this.parent.at}${this.path.replaceAll(".", "-")}-`;
  }

  fill(values) {
    const names = super.fill(values);
    this.pass(names);
    return names;
  }

  edit(name, value, touched) {
    super.edit(name, value, touched);
    this.pass(touched);
  }

  pass(touched) {
    const paths = touched.map((path) => `${this.path}.${path}`);
    this.parent.edit(this.name, this.assemble(), paths);
  }

  refuse(path, message) {
    this.parent.refuse(`${this.path}.${path}`, message);
  }

  // Takes over what the parent knows: lists of choices, and what is wrong here.
  sync() {
    this.lists = this.parent.lists;
    const here = [...this.parent.problems].filter(([path]) => path.startsWith(`${this.path}.`));
    this.problems = new Map(here.map(([path, problem]) => [path.slice(this.path.length + 1), problem]));
    this.tell([...this.fields.keys()]);
  }

  whole() {
    return Object.fromEntries([...this.fields.keys()].map((name) => [name, this.get(name)]));
  }
}

export const isSame = (a, b) => a === b || (typeof a === "object" && JSON.stringify(a) === JSON.stringify(b));

// A value from a draft or a picture in the shape that its field has now: no names that are gone, none missing.
export function fit(field, value) {
  if (field.kind === "units") return Array.isArray(value) ? value.map((unit) => fitAll(field.rows, unit)) : [];
  if (field.kind === "params") return value || !field.optional ? fitAll(field.rows, value) : null;
  if (field.kind === "many") return Array.isArray(value) ? value : value ? [String(value)] : [];
  return value;
}

export function fitAll(rows, values) {
  const given = Object(values ?? {});
  const value = (field) => (field.name in given ? fit(field, given[field.name]) : (field.default ?? null));
  return Object.fromEntries(rows.flat().map((field) => [field.name, value(field)]));
}

const isShownIn = ({ shownFor, facets, decidedBy }, values) =>
  (!(shownFor in values) || values[shownFor]) && (!facets || values[decidedBy] in facets);

const shownOf = (rows, values) => rows.flat().filter((field) => isShownIn(field, values));

// What goes out: fields that mean nothing now are left out, as they are everywhere.
function sent(field, value) {
  const all = (values) =>
    Object.fromEntries(shownOf(field.rows, values).map((each) => [each.name, sent(each, values[each.name])]));
  if (field.kind === "units") return value.map(all);
  return field.kind === "params" && value ? all(value) : value;
}
