// Words in the reader's language: one JSON table a language, English where a word is missing.
import { kept } from "./dom.js";
import { url } from "./server.js";

export const LANGUAGES = { en: "English", de: "Deutsch" };
export const language = [kept("language"), navigator.language.slice(0, 2), "en"].find((code) => code in LANGUAGES);

const load = async (code) => (await fetch(url(`ui/languages/${code}.json`))).json();
const tables = await Promise.all([...new Set([language, "en"])].map(load));
const ordinals = new Intl.PluralRules(language, { type: "ordinal" });
const plurals = new Intl.PluralRules(language);

// The words for `key` with {name} filled in; `key.one` is taken where `count` asks for it.
export function t(key, values = {}, otherwise = key) {
  const forms = "count" in values ? [`${key}.${plurals.select(values.count)}`, key] : [key];
  for (const form of forms)
    for (const table of tables)
      if (form in table) return table[form].replace(/\{(\w+)\}/g, (whole, name) => values[name] ?? whole);
  return otherwise;
}

export const ordinal = (n) => t(`ordinal.${ordinals.select(n)}`, { n });

export function seconds(value) {
  if (value < 9.95 && value !== Math.round(value)) return t("time.seconds", { n: number(value, 1) });
  if (value < 90) return t("time.seconds", { n: number(Math.round(value), 0) });
  const minutes = Math.round(value / 60);
  return minutes < 90 ? t("time.minutes", { n: minutes }) : t("time.hours", { n: number(value / 3600, 1) });
}

export const number = (value, digits = 2) =>
  new Intl.NumberFormat(language, { maximumFractionDigits: digits }).format(value);
