// The values of one panel. Only what the person changed is kept; all else follows the declaration and the model.
import { number, t } from "./words.js";

export class Form {
  constructor(schema, { overrides = {}, modes = false, lists = {} } = {}) {
    this.id = schema.id;
    this.rows = schema.rows;
    this.fields = new Map(schema.rows.flat().map((field) => [field.name, field]));
    this.lists = lists; // choices that the server names only: {models: [[value, label]]}
    this.modes = modes; // whether a switch above decides if images take part
    this.mode = "text";
    this.model = {}; // what the chosen model prefers
    this.problems = new Map();
    this.hearers = new Set();
    this.overrides = {};
    for (const [name, value] of Object.entries(overrides)) if (this.fields.has(name)) this.overrides[name] = value;
  }

  label(field) {
    return t(`param.${this.prefix}${field.name}`, {}, field.label);
  }

  help(field) {
    return t(`param.${this.prefix}${field.name}.help`, {}, field.help ?? "");
  }

  choice(field, [value, label]) {
    return t(`param.${this.prefix}${field.name}.${value}`, {}, label);
  }

  get prefix() {
    return this.id === "core" ? "" : `${this.id}.`;
  }

  base(name) {
    const declared = this.fields.get(name).default;
    return name in this.model ? this.model[name] : declared;
  }

  get(name) {
    return name in this.overrides ? this.overrides[name] : this.base(name);
  }

  isChanged(name) {
    return name in this.overrides;
  }

  set(name, value) {
    this.fill({ [name]: value });
  }

  fill(values) {
    for (const [name, value] of Object.entries(values)) {
      if (value === this.base(name)) delete this.overrides[name];
      else this.overrides[name] = value;
      this.problems.delete(name);
    }
    this.tell(Object.keys(values));
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
    if (Array.isArray(field.choices))
      return field.choices.find(([known]) => String(known) === String(value))?.[0] ?? value;
    if (typeof field.default === "number" && value !== null && value !== "") return Number(value);
    if (typeof field.default === "boolean") return value === true || value === "True" || value === "true";
    return value;
  }

  isShown(name) {
    const field = this.fields.get(name);
    if (this.modes && field.kind === "image") return this.mode === "image";
    if (!field.shownFor || !this.fields.has(field.shownFor)) return true;
    const other = this.fields.get(field.shownFor);
    return this.modes && other.kind === "image" ? this.mode === "image" : Boolean(this.get(field.shownFor));
  }

  values() {
    const names = [...this.fields.keys()].filter((name) => this.isShown(name));
    return Object.fromEntries(names.map((name) => [name, this.get(name)]));
  }

  // Finds what the server would refuse anyway and says it at once; the server checks again.
  check() {
    this.problems.clear();
    for (const [name, field] of this.fields) {
      const problem = this.isShown(name) ? this.problemOf(field, this.get(name)) : null;
      if (problem) this.problems.set(name, problem);
    }
    this.tell([...this.fields.keys()]);
    return this.problems.size === 0;
  }

  problemOf(field, value) {
    if (typeof field.default === "number" && !field.choices) {
      if (typeof value !== "number" || Number.isNaN(value)) return t("problem.number");
      if (value < field.min || value > field.max)
        return field.max >= Number.MAX_SAFE_INTEGER
          ? t("problem.atLeast", { min: number(field.min) })
          : t("problem.range", { min: number(field.min), max: number(field.max) });
      if (field.integer && !Number.isInteger(value)) return t("problem.integer");
      if (field.multiple && value % field.multiple) return t("problem.multiple", { n: field.multiple });
    }
    if (field.maxLength && value.length > field.maxLength)
      return t("problem.length", { max: number(field.maxLength), n: number(value.length) });
    if (this.modes && field.kind === "image" && !value) return t("problem.image");
    return null;
  }

  refuse(name, message) {
    this.problems.set(name, message);
    this.tell([name]);
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
    for (const [name, value] of Object.entries(overrides)) if (this.fields.has(name)) this.overrides[name] = value;
    this.problems.clear();
    this.tell([...this.fields.keys()]);
  }
}
