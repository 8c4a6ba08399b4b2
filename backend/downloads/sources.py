"""What an address means: which files lie at Hugging Face, at Civitai or anywhere else, and what they are.

Only small tables are asked for here. Where a file goes and what it is called is decided here too; what a server says
of names is cut down to harmless letters.
"""

import re
import unicodedata
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import PurePosixPath
from typing import Annotated, Any
from urllib.parse import parse_qs, quote, unquote, urlsplit

from pydantic import BaseModel, ConfigDict, Field

from backend.catalog import roots
from backend.consents import PICKLES
from backend.downloads.fetch import TEXTS, File
from backend.downloads.network import Network
from backend.errors import DownloadFailed, NotFound, Refused

SINGLE = (".safetensors", ".gguf", *PICKLES)
"""Files that may be a whole model."""
FOLDERS: Mapping[str, str] = {kind: names[0] for kind, names in roots.FOLDERS.items()}
"""Where in the models folder a kind lies."""
MAX_NAME = 120
"""Bytes, without the suffix."""
_REPO = r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}"
_RESERVED = r"(?i)(con|prn|aux|nul|(com|lpt)[\d¹²³])"
_CIVITAI_KINDS = {
    "Checkpoint": "checkpoint",
    "LORA": "lora",
    "LoCon": "lora",
    "DoRA": "lora",
    "TextualInversion": "embedding",
    "VAE": "vae",
    "Controlnet": "controlnet",
    "Upscaler": "upscaler",
}
_WORDS = {
    "lora": "lora",
    "controlnet": "controlnet",
    "control_": "controlnet",
    "taesd": "tiny_vae",
    "vae": "vae",
    "clip": "text_encoder",
    "t5xxl": "text_encoder",
}
"""What in a name hints at a kind; in this order."""


@dataclass(frozen=True)
class Hosts:
    """Where the two hubs are."""

    huggingface: str = "https://huggingface.co"
    civitai: str = "https://civitai.com"


HUBS = Hosts()


@dataclass(frozen=True)
class Option:
    """One thing at a source that can be had."""

    key: str
    """What a caller calls it: the path of its file there; empty: the whole repository as a folder."""
    name: str
    """What it will be called here, with the suffix of a file."""
    kind: str
    """A key of FOLDERS, as far as names tell."""
    files: tuple[File, ...]
    about: Mapping[str, Any] = field(default_factory=dict)
    """What goes onto its card: title, licence, source, trigger ..."""
    roughly: int = 0
    """Bytes, where the source only rounds."""

    @property
    def size(self) -> int:
        """Bytes, as far as the source says."""
        return sum(file.size or 0 for file in self.files) or self.roughly

    @property
    def is_folder(self) -> bool:
        return not self.key

    @property
    def is_pickle(self) -> bool:
        return any(file.suffix in PICKLES for file in self.files)


@dataclass(frozen=True)
class Found:
    """What lies at an address."""

    title: str
    page: str
    """For people to look at."""
    licence: str
    options: tuple[Option, ...]
    """The best first."""

    def option(self, key: str | None) -> Option:
        """The one of that key; the best if it is None. Raises NotFound."""
        for option in self.options:
            if key in (None, option.key):
                return option
        raise NotFound(f"there is no {str(key)[:100]!r} at {self.page}")


def look(text: str, network: Network, hosts: Hosts = Hosts(), *, half: bool = True) -> Found:
    """What a person means by `text`; `half`: weights of half precision where there are both.

    Raises Refused, NotFound or DownloadFailed.
    """
    text = text.strip()
    if re.fullmatch(_REPO, text):
        return _repository(network, hosts.huggingface, text, "main", "", half)
    if "://" not in text:
        raise Refused(
            f"{text[:100]!r} is no address: give owner/name of Hugging Face or one that begins with https://"
        )
    parts = network.check(text)
    places = [unquote(place) for place in parts.path.split("/") if place]
    host = parts.netloc.lower().removesuffix(":443")
    if host in (urlsplit(hosts.huggingface).netloc, "hf.co", "www.huggingface.co"):
        repo, (verb, revision), rest = "/".join(places[:2]), (*places[2:4], "", "")[:2], places[4:]
        if not re.fullmatch(_REPO, repo) or verb not in ("", "tree", "blob", "resolve"):
            raise Refused(
                "this address of Hugging Face is not that of a model: give https://huggingface.co/owner/name"
            )
        return _repository(network, hosts.huggingface, repo, revision or "main", "/".join(rest), half)
    if host in (urlsplit(hosts.civitai).netloc, "www.civitai.com"):
        return _civitai(network, hosts.civitai, places, parse_qs(parts.query))
    return _plain(text, places)


# --- Hugging Face


class _Answer(BaseModel):
    """What is read of an answer; whatever else there is is passed over."""

    model_config = ConfigDict(frozen=True)


class _Large(_Answer):
    sha256: str | None = None
    oid: str | None = None


class _Sibling(_Answer):
    rfilename: str
    size: Annotated[int, Field(ge=0, lt=2**50)] | None = None
    lfs: _Large | None = None


class _Card(_Answer):
    license: Any = None
    license_name: Any = None


class _Repository(_Answer):
    sha: str | None = None
    siblings: tuple[_Sibling, ...] | None = None
    card: _Card | None = Field(None, alias="cardData")


def _repository(network: Network, hub: str, repo: str, revision: str, within: str, half: bool) -> Found:
    said = network.table(f"{hub}/api/models/{repo}/revision/{quote(revision, safe='')}?blobs=true", _Repository)
    card = said.card or _Card()
    files = [_sibling(hub, repo, said.sha or revision, each) for each in said.siblings or ()]
    licence, page = _short(card.license_name or card.license), f"{hub}/{repo}"
    about = {"source": page, "licence": licence, "author": repo.split("/")[0]}
    is_folder = any(file.name == "model_index.json" for file in files)
    options = []
    for file in files:
        if file.suffix in SINGLE and f"{file.name}/".startswith(f"{within}/" if within else ""):
            if is_folder and "/" in file.name and file.name != within:
                continue  # a part of it
            name = safe_name(PurePosixPath(file.name).name)
            if re.fullmatch(r"(diffusion_pytorch_model|model|pytorch_model).*", name):  # says nothing
                name = safe_name(f"{repo.split('/')[1]}{file.suffix}")
            kind = _kind_of(f"{repo}/{file.name}")
            options.append(Option(file.name, name, kind, (replace(file, name=name),), about))
    options.sort(key=lambda o: (o.is_pickle, half and "fp16" not in o.key.lower(), o.key))
    folder = _folder(files, half) if not within else ()
    if folder:
        options.insert(0, Option("", safe_name(repo.split("/")[1]), "checkpoint", folder, about))
    if not options:
        raise NotFound(f"there is no model in {repo}" + (f" at {within}" if within else ""))
    return Found(repo, page, licence, tuple(options))


def _sibling(hub: str, repo: str, commit: str, said: _Sibling) -> File:
    url = f"{hub}/{repo}/resolve/{quote(commit, safe='')}/{quote(said.rfilename)}"
    return File(said.rfilename, url, said.size, _digest(said.lfs.sha256 or said.lfs.oid) if said.lfs else "")


def _folder(files: list[File], half: bool) -> tuple[File, ...]:
    """The files of a diffusers folder: each part's weights once, in safetensors, and no code; empty: it is none."""
    if not any(file.name == "model_index.json" for file in files):
        return ()
    texts = [f for f in files if f.name == "model_index.json" or (f.suffix in TEXTS and f.name.count("/") == 1)]
    kept = [f for f in texts if _is_harmless(f.name) and not f.name.endswith(".index.fp16.json")]
    weights = [f for f in files if f.suffix == ".safetensors" and f.name.count("/") == 1 and _is_harmless(f.name)]
    by_place: dict[str, dict[bool, list[File]]] = {}
    for file in weights:
        place, _, name = file.name.partition("/")
        if ".non_ema" not in name and not re.search(r"\.(bf16|fp8)\b", name):
            by_place.setdefault(place, {True: [], False: []})[".fp16" in name].append(file)
    for versions in by_place.values():
        is_one = len(versions[True]) == 1  # of several the list beside them would have to be rewritten
        chosen = versions[True] if is_one and (half or not versions[False]) else versions[False]
        kept += [replace(f, name=f.name.replace(".fp16", "")) for f in chosen]
    is_whole = any(f.suffix == ".safetensors" for f in kept)
    return tuple(sorted(kept, key=lambda f: f.name)) if is_whole else ()


def _is_harmless(name: str) -> bool:
    return name.count("/") < 3 and all(part == safe_name(part) for part in name.split("/"))


# --- Civitai


class _CivitaiFile(_Answer):
    name: str
    url: str | None = Field(None, alias="downloadUrl")
    type: str | None = None
    primary: bool | None = None
    kilobytes: Annotated[float, Field(ge=0, lt=2**40)] | None = Field(None, alias="sizeKB")
    hashes: dict[str, Any] | None = None


class _CivitaiModel(_Answer):
    name: str | None = None
    type: str | None = None


class _Version(_Answer):
    of: int | None = Field(None, alias="modelId")
    name: str | None = None
    base: str | None = Field(None, alias="baseModel")
    words: tuple[str, ...] | None = Field(None, alias="trainedWords")
    model: _CivitaiModel = _CivitaiModel()
    files: tuple[_CivitaiFile, ...] | None = None


class _Numbered(_Answer):
    id: int


class _Versions(_Answer):
    versions: tuple[_Numbered, ...] | None = Field(None, alias="modelVersions")
    """The newest first."""


def _civitai(network: Network, site: str, places: list[str], query: Mapping[str, list[str]]) -> Found:
    number = query.get("modelVersionId", [""])[0]
    if places[:3] == ["api", "download", "models"] and len(places) == 4:
        number = places[3]
    elif places[:1] == ["model-versions"] and len(places) == 2:
        number = places[1]
    elif places[:1] == ["models"] and len(places) > 1 and places[1].isdecimal() and not number:
        versions = network.table(f"{site}/api/v1/models/{places[1]}", _Versions).versions
        number = str(versions[0].id) if versions else ""
    if not re.fullmatch(r"\d{1,12}", number):
        raise Refused("this address of Civitai is not that of a model: give https://civitai.com/models/12345")
    version = network.table(f"{site}/api/v1/model-versions/{number}", _Version)
    kind = _CIVITAI_KINDS.get(version.model.type or "")
    if kind is None:
        raise DownloadFailed(f"a {_short(version.model.type)} of Civitai is of no use here")
    title = " ".join(filter(None, (_short(version.model.name), _short(version.name))))
    page = f"{site}/models/{version.of}?modelVersionId={number}"
    about = {
        "title": title,
        "source": page,
        "trigger": ", ".join(map(_short, version.words or ())),
        "base": _short(version.base),
        "licence": "",
    }
    options = [*_civitai_files(site, kind, version, about)]
    if not options:
        raise NotFound(f"there is no file of a model at {page}")
    return Found(title, page, "", tuple(options))


def _civitai_files(site: str, kind: str, version: _Version, about: Mapping[str, Any]) -> Iterator[Option]:
    for said in sorted(version.files or (), key=lambda file: (not file.primary, file.name)):
        suffix = PurePosixPath(said.name).suffix.lower()
        if suffix not in SINGLE or not said.url or not said.url.startswith(f"{site}/"):
            continue
        own = {"VAE": "vae", "Text Encoder": "text_encoder"}.get(said.type or "", kind)
        here = safe_name(said.name)
        # its sizes are rounded, so they are shown, and the hash decides
        file = File(here, said.url, None, _digest((said.hashes or {}).get("SHA256")))
        yield Option(said.name, here, own, (file,), about, round((said.kilobytes or 0) * 1024))


# --- any address


def _plain(url: str, places: list[str]) -> Found:
    name = safe_name(places[-1] if places else "")
    suffix = PurePosixPath(name).suffix.lower()
    if suffix not in SINGLE:
        raise Refused(f"this address does not end in the name of a model ({', '.join(SINGLE)})")
    shown = url.split("?")[0]
    option = Option(name, name, _kind_of(name), (File(name, url),), {"source": shown})
    return Found(name, shown, "", (option,))


# --- names


def safe_name(given: str) -> str:
    """A file name of harmless letters of any script, made of what somebody calls it."""
    last = unicodedata.normalize("NFC", given).replace("\\", "/").rsplit("/", 1)[-1]
    name = re.sub(r"[^\w.() +-]+", lambda found: _marks(found[0]) or "-", last)
    stem, dot, suffix = name.strip(" .-").rpartition(".")
    stem = (stem or suffix).encode("utf-8", "replace")[:MAX_NAME].decode("utf-8", "ignore").strip(" .-")
    if not stem or re.fullmatch(_RESERVED, stem.partition(".")[0]):
        stem = f"model-{stem}".rstrip("-")
    return f"{stem}.{suffix.lower()}" if dot else stem


def _marks(text: str) -> str:
    """Vowels and accents that are characters of their own, as in Hindi and Thai."""
    return "".join(each for each in text if unicodedata.category(each).startswith("M"))


def _kind_of(name: str) -> str:
    low = name.lower()
    return next((kind for word, kind in _WORDS.items() if word in low), "checkpoint")


def _digest(said: Any) -> str:
    """A SHA-256 in small letters; empty: it is none."""
    return said.lower() if isinstance(said, str) and re.fullmatch("[0-9a-fA-F]{64}", said) else ""


def _short(text: Any) -> str:
    return str(text)[:200].strip() if isinstance(text, str) else ""
