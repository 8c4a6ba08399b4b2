"""What people see of a LoRA and may change: a card, kept in a JSON file beside it as A1111 keeps it.

`cat.json` beside `cat.safetensors` has A1111's keys ("activation text", "preferred weight", "notes" ...), so that both
programs show the same; keys that are not known here stay in it. What the Models tab or a download says of it stands in
`cat.atelier.json`, and what Civitai's helpers fetch in `cat.civitai.info`. The picture is `cat.preview.png`.
"""

import json
import logging
import math
import threading
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from PIL import Image
from pydantic import Field, StringConstraints

from backend.catalog import sidecars
from backend.catalog.scan import PICTURES
from backend.errors import Conflict
from backend.extension import NotFound, Params, write_atomically
from backend.images import Previews

from .header import FAMILIES, Family, family_named
from .shelf import File, Shelf

log = logging.getLogger(__name__)

MAX_SIDECAR = 2**20
MAX_TAGS = 50
Line = Annotated[str, StringConstraints(strip_whitespace=True, max_length=500)]
Text = Annotated[str, StringConstraints(strip_whitespace=True, max_length=20_000)]
Sort = Literal["name", "newest", "oldest"]


class Edit(Params):
    """What a person says about a LoRA; what is left out stays as it is."""

    title: Line | None = None
    description: Text | None = None
    notes: Text | None = None
    trigger: Text | None = None
    """Words that go into the prompt with it."""
    negative: Text | None = None
    """Words for the negative prompt."""
    weight: Annotated[float, Field(ge=-10, le=10)] | None = None
    """Recommended; 0: none is."""
    family: Family | None = None
    tags: Annotated[tuple[Line, ...], Field(max_length=MAX_TAGS)] | None = None


KEYS = {
    "title": "title",
    "description": "description",
    "notes": "notes",
    "trigger": "activation text",
    "negative": "negative text",
    "weight": "preferred weight",
    "family": "sd version",
    "tags": "tags",
}
"""What the file calls them."""
OURS, FETCHED = ".atelier.json", ".civitai.info"
IN_OURS = ("title", "description", "notes", "trigger")
"""What the Models tab knows of a LoRA too."""
A1111_FAMILIES = {
    "sd1": "SD1",
    "sd2": "SD2",
    "sdxl": "SDXL",
    "sd3": "SD3",
    "flux": "Flux",
    "": "Unknown",
    "flux2": "Flux2",
    "chroma": "Chroma",
    "z-image": "ZImage",
    "qwen-image": "QwenImage",
    "pixart": "PixArt",
    "sana": "Sana",
}


@dataclass(frozen=True)
class Card:
    file: File
    said: Mapping[str, Any]
    """What stands beside it, by the names of Edit."""
    is_favourite: bool
    tag: str
    """What a tag calls it: its stem where there is only one of that name."""

    @property
    def title(self) -> str:
        return self.said["title"] or self.file.facts.title or self.file.stem

    @property
    def family(self) -> str:
        return self.said["family"] or self.file.facts.family

    @property
    def trigger(self) -> str:
        return self.said["trigger"] or self.file.facts.trigger

    @property
    def tags(self) -> tuple[str, ...]:
        return tuple(self.said["tags"])

    @property
    def preview(self) -> tuple[Path, int] | None:
        return picture_of(self.file)

    def nearness(self, text: str) -> int:
        """How near its names are to what somebody types: 0 if one begins so, 1 if one holds it."""
        names = [name.casefold() for name in (self.tag, self.file.stem, self.file.facts.alias, self.title)]
        return 0 if any(name.startswith(text) for name in names) else 2 - any(text in name for name in names)

    def holds(self, words: Sequence[str]) -> bool:
        if not words:
            return True
        facts = self.file.facts
        texts = (self.file.name, facts.alias, self.title, self.trigger, self.said["description"], self.said["notes"])
        text = "\n".join((*texts, *self.tags, facts.author, *facts.tags)).casefold()
        return all(word in text for word in words)

    def summary(self) -> dict[str, Any]:
        return {
            "id": self.file.id,
            "name": self.file.name,
            "tag": self.tag,
            "alias": self.file.facts.alias,
            "title": self.title,
            "family": self.family,
            "badge": FAMILIES.get(self.family, self.file.facts.base),
            "trigger": self.trigger,
            "negative": self.said["negative"],
            "weight": self.said["weight"],
            "tags": self.tags,
            "favourite": self.is_favourite,
            "preview": f"cards/{self.file.id}/preview?v={self.preview[1]:x}" if self.preview else None,
            "problem": self.file.facts.problem,
        }

    def details(self) -> dict[str, Any]:
        facts = self.file.facts
        return {
            **self.summary(),
            "own": dict(self.said),
            "description": self.said["description"] or facts.description,
            "notes": self.said["notes"],
            "cloud": [{"tag": tag, "count": count} for tag, count in facts.tags.items()],
            "author": facts.author,
            "licence": facts.licence,
            "base": facts.base,
            "made": dict(facts.made),
            "file": "/".join((*self.file.name.split("/")[:-1], self.file.filename)),
            "hash": self.file.hash[:12],
            "size": self.file.size,
            "changed": self.file.time // 1_000_000,
        }


class Cards:
    """`kept` is a folder for what belongs to this instance alone: favourites and small pictures."""

    def __init__(self, shelf: Shelf, kept: Path) -> None:
        self._shelf = shelf
        self._kept = kept
        self._lock = threading.Lock()
        self._previews = Previews(kept / "previews")
        self._said: dict[str, tuple[object, Mapping[str, Any]]] = {}

    def all(self) -> list[Card]:
        favourites, files = self._favourites(), self._shelf.look().files.values()
        stems = Counter(file.stem.lower() for file in files)
        tags = {file.name: file.stem if stems[file.stem.lower()] == 1 else file.name for file in files}
        return [Card(file, self._beside(file), file.name in favourites, tags[file.name]) for file in files]

    def get(self, id: str) -> Card:
        """Raises NotFound."""
        found = next((card for card in self.all() if card.file.id == id), None)
        if found is None:
            raise NotFound("this LoRA is not there any more")
        return found

    def search(self, text: str, family: str, favourites: bool, sort: Sort) -> list[Card]:
        """Those that hold every word; by name come first those whose names it is."""
        words = text.casefold().split()
        found = [
            card
            for card in self.all()
            if card.holds(words)
            and (not favourites or card.is_favourite)
            and (not family or card.family in (family, ""))
        ]
        if sort == "name":
            typed = text.strip().casefold()
            return sorted(found, key=lambda card: (card.nearness(typed), card.title.casefold()))
        return sorted(found, key=lambda card: card.file.time, reverse=sort == "newest")

    def edit(self, id: str, edit: Edit) -> Card:
        file = self._file(id)
        given = edit.model_dump(mode="json", exclude_none=True)
        if "family" in given:
            given["family"] = A1111_FAMILIES[given["family"]]
        new = {".json": {KEYS[name]: value for name, value in given.items()}}
        ours = {name: given[name] for name in IN_OURS if name in given}
        if ours and OURS in file.beside:  # it has the first word
            new[OURS] = ours
        with self._lock:
            tables = {(path := file.path.with_suffix(ending)): _table(path) | table for ending, table in new.items()}
            for path, table in tables.items():
                write_atomically(path, json.dumps(table, indent=4, ensure_ascii=False).encode())
        return self.get(id)

    def favour(self, id: str, favourite: bool) -> Card:
        file = self._file(id)
        with self._lock:
            names = self._favourites() | {file.name} if favourite else self._favourites() - {file.name}
            self._kept.mkdir(parents=True, exist_ok=True)
            write_atomically(self._kept / "favourites.json", json.dumps(sorted(names), ensure_ascii=False).encode())
        return self.get(id)

    def show(self, id: str, picture: Image.Image) -> Card:
        """Make this its picture."""
        file = self._file(id)
        self._previews.keep(picture, file.path.with_suffix(".preview.png"))
        return self.get(id)

    def thumb(self, id: str) -> Path:
        """A small WebP of its picture. Raises NotFound."""
        picture = picture_of(self._shelf.known(id) or self._file(id))
        if picture is None:
            raise NotFound("there is no picture of this LoRA")
        return self._previews.small(id, picture[0])

    def _file(self, id: str) -> File:
        return self.get(id).file

    def _beside(self, file: File) -> Mapping[str, Any]:
        """What stands in the files beside it, by the names of Edit; as before, unless they have changed."""
        stamp = tuple(file.beside.get(ending) for ending in (".json", OURS, FETCHED, ".txt"))
        known = self._said.get(file.name)
        if known is None or known[0] != stamp:
            known = self._said[file.name] = stamp, _said(file)
        return known[1]

    def _favourites(self) -> set[str]:
        try:
            return {str(name) for name in json.loads((self._kept / "favourites.json").read_bytes())}
        except FileNotFoundError:
            return set()
        except (OSError, ValueError, TypeError) as error:
            log.warning("the favourites among LoRAs cannot be read: %s", error)
            return set()


def _said(file: File) -> Mapping[str, Any]:
    content = (_json(file.path.with_suffix(".json")) if ".json" in file.beside else {}) or {}
    texts = {name: _text(content.get(key)) for name, key in KEYS.items()}
    ours, fetched = (
        sidecars.read({ending: file.path.with_suffix(ending)} if ending in file.beside else {})
        for ending in (OURS, FETCHED)
    )
    texts |= {name: ours.get(name) or texts[name] or fetched.get(name, "") for name in IN_OURS}
    weight, tags = content.get(KEYS["weight"]), content.get(KEYS["tags"])
    is_number = isinstance(weight, int | float) and math.isfinite(weight)
    if not texts["description"] and ".txt" in file.beside:
        texts["description"] = _text_file(file.path.with_suffix(".txt"))
    return {
        **texts,
        "family": family_named(texts["family"]),
        "weight": float(weight) if is_number else 0.0,  # type: ignore[arg-type]
        "tags": tuple(_text(tag)[:500] for tag in tags[:MAX_TAGS]) if isinstance(tags, list) else (),
    }


def picture_of(file: File) -> tuple[Path, int] | None:
    """The file with its picture, and its time."""
    found = next((ending for ending in PICTURES if ending in file.beside), None)
    return (file.path.with_name(file.path.stem + found), file.beside[found]) if found else None


def _table(path: Path) -> dict[str, Any]:
    """What stands in a file that is to be written. Raises Conflict if that is no table."""
    content = _json(path) if path.exists() else {}
    if content is None:
        raise Conflict(f"{path.name} is no JSON table; it would be lost, so nothing was saved")
    return content


def _json(path: Path) -> dict[str, Any] | None:
    """The table in a file; None: it is none."""
    try:
        if path.stat().st_size > MAX_SIDECAR:
            return None
        content = json.loads(path.read_text("utf-8-sig"))
    except (OSError, ValueError, RecursionError) as error:
        log.warning("%s cannot be read: %s", path.name, error)
        return None
    return content if isinstance(content, dict) else None


def _text(value: Any) -> str:
    return value[:20_000].strip() if isinstance(value, str) else ""


def _text_file(path: Path) -> str:
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.read(4000).strip()
    except OSError as error:
        log.warning("%s cannot be read: %s", path.name, error)
        return ""
