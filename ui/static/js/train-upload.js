// Bringing pictures, captions, folders and zips to a set: two at a time, with progress, one failure at a time.
import { Refusal, url } from "./server.js";
import { complain, said, send, way } from "./train-state.js";
import { t } from "./words.js";

const AT_ONCE = 2;
const PICTURE = /\.(png|jpe?g|webp)$/i;
const CAPTION = /\.(txt|caption)$/i;
const ZIP = /\.zip$/i;
const HIDDEN = /(^|\/)(\.|__MACOSX\/|Thumbs\.db$|desktop\.ini$)/;

export const TAKEN = ".png,.jpg,.jpeg,.webp,.txt,.caption,.zip,image/png,image/jpeg,image/webp,application/zip";

// {file, path} of all that was dropped, folders too; has to be called while the drop is being handled.
export function filesOf(transfer) {
  const entries = [...transfer.items].map((item) => item.webkitGetAsEntry?.()).filter(Boolean);
  if (!entries.length) return Promise.resolve(plain(transfer.files));
  return Promise.all(entries.map(walk)).then((found) => found.flat());
}

export const plain = (files) => [...files].map((file) => ({ file, path: file.webkitRelativePath || file.name }));

async function walk(entry) {
  if (entry.isFile) {
    const file = await new Promise((resolve, reject) => entry.file(resolve, reject));
    return [{ file, path: entry.fullPath.replace(/^\//, "") }];
  }
  const reader = entry.createReader();
  const found = [];
  for (;;) {
    const some = await new Promise((resolve, reject) => reader.readEntries(resolve, reject));
    if (!some.length) break;
    found.push(...some);
  }
  return (await Promise.all(found.map(walk))).flat();
}

// A name for the set that these files make.
export function nameFor(files) {
  const zip = files.find(({ file }) => ZIP.test(file.name));
  const [top, ...rest] = (files[0]?.path ?? "").split("/");
  const given = zip ? zip.file.name.replace(ZIP, "") : rest.length ? top : "";
  const clean = given
    .replace(/[^\p{L}\p{N}_ .+()-]/gu, " ")
    .replace(/\.{2,}/g, ".")
    .replace(/^[^\p{L}\p{N}]+/u, "");
  return clean.slice(0, 60).replace(/[ .]+$/, "") || t("train.set.untitled");
}

export async function createSet(wanted) {
  for (let number = 1; ; number += 1) {
    const name = number > 1 ? `${wanted} ${number}` : wanted;
    try {
      await send("api/datasets", { name });
      return name;
    } catch (error) {
      if (error.status !== 409 || number > 99) throw error;
    }
  }
}

// The folder of a set that a path asks for: "cats/10_cat/1.png" -> "10_cat".
function folderOf(path) {
  const parts = path.split("/").slice(0, -1);
  const at = parts.findLastIndex((part) => /^[1-9]\d{0,3}_/.test(part));
  return at < 0 ? "" : `${parts[at - 1] === "reg" ? "reg/" : ""}${parts[at]}`;
}

const stem = (path) => path.replace(/\.[^./]+$/, "");

// Tells `progress({done, total, share, name})`; answers when all of it is there.
export async function bring(name, given, progress, signal) {
  const files = given.filter(({ path }) => !HIDDEN.test(path));
  const captions = new Map(files.filter(({ path }) => CAPTION.test(path)).map(({ file, path }) => [stem(path), file]));
  const wanted = files.filter(({ file }) => PICTURE.test(file.name) || ZIP.test(file.name));
  const others = files.length - wanted.length - captions.size;
  const total = wanted.reduce((sum, { file }) => sum + file.size, 0) || 1;
  const sent = new Map();
  const refused = [];
  let done = 0;
  let added = 0;
  const say = (now) => {
    const bytes = [...sent.values()].reduce((sum, value) => sum + value, 0);
    progress({ done, total: wanted.length, share: bytes / total, name: now });
  };
  const queue = [...wanted];
  const work = async () => {
    for (let next = queue.shift(); next && !signal.aborted; next = queue.shift()) {
      const { file, path } = next;
      try {
        const query = new URLSearchParams({ name: file.name, folder: ZIP.test(file.name) ? "" : folderOf(path) });
        const answer = await upload(`${way("/files", name)}?${query}`, file, signal, (bytes) => {
          sent.set(path, Math.min(bytes, file.size));
          say(file.name);
        });
        added += answer.ids.length;
        refused.push(...answer.left_out.map(({ file: inner, message }) => `${inner} ${message}`));
        const caption = captions.get(stem(path));
        if (caption && answer.ids.length === 1)
          await send(way(`/images/${answer.ids[0]}/caption`, name), { caption: (await caption.text()).slice(0, 4000) });
      } catch (error) {
        if (!signal.aborted) refused.push(`${file.name}: ${error.message}`);
      }
      sent.set(path, file.size);
      done += 1;
      say(file.name);
    }
  };
  say("");
  await Promise.all(Array.from({ length: AT_ONCE }, work));
  if (others) refused.push(t("train.upload.others", { n: others, count: others }));
  if (added) said(t("train.upload.done", { n: added, count: added }), { detail: refused.join(" · ") });
  else if (refused.length) complain(new Error(refused.join(" · ")));
  else if (!signal.aborted) complain(new Error(t("train.upload.nothing")));
  return added;
}

// fetch cannot say how much it has sent
function upload(path, body, signal, progress) {
  return new Promise((resolve, reject) => {
    const request = new XMLHttpRequest();
    request.open("POST", url(path));
    request.responseType = "json";
    request.upload.onprogress = ({ loaded }) => progress(loaded);
    request.onload = () =>
      request.status < 300 ? resolve(request.response) : reject(new Refusal(request.status, request.response));
    request.onerror = () => reject(new Error(t("train.upload.broken")));
    request.onabort = () => reject(new Error(t("train.upload.stopped")));
    signal.addEventListener("abort", () => request.abort());
    request.send(body);
  });
}
