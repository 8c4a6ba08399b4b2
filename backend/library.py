"""What people do with the models that they have: look for one, describe it, rename it, delete and restore it.

A model is called by its id here, and never by a path. What people say of it stands beside it, in `cat.atelier.json`
for `cat.safetensors` and in `atelier.json` of a folder; keys that are not known here stay in that file.
"""

import contextlib
import hashlib
import json
import os
import secrets
import shutil
import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from PIL import Image
from pydantic import BaseModel, ConfigDict, Field, StringConstraints

from backend.catalog import Catalog, Model, defaults, scan, sidecars
from backend.catalog.catalog import CHECKPOINTS
from backend.catalog.roots import STARTER
from backend.consents import PICKLES
from backend.downloads.sources import safe_name
from backend.errors import Conflict, InvalidRequest, NotFound, Problem, Refused, StorageFull
from backend.files import move_together, write_atomically
from backend.images import Previews

Line = Annotated[str, StringConstraints(strip_whitespace=True, max_length=500)]
Text = Annotated[str, StringConstraints(strip_whitespace=True, max_length=20_000)]
Sort = Literal["name", "newest", "largest"]
TRASH = ".trash"
"""In the models folder: on the same disk, as a rule."""
RECORD = "trash.json"


class Edit(BaseModel):
    """What a person says about a model; what is left out stays as it is."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    title: Line | None = None
    description: Text | None = None
    notes: Text | None = None
    trigger: Line | None = None
    """Words that call it in a prompt."""
    variant: Literal["", "plain", "edit"] | None = None
    """Where no header tells: whether it draws from words, or changes a picture by instruction."""
    licence: Line | None = None
    source: Line | None = None
    defaults: Annotated[dict[str, Any], Field(max_length=20)] | None = None
    """All of them; one that is left out is none any more."""


@dataclass(frozen=True)
class Trashed:
    """A model in the trash."""

    id: str
    name: str
    kind: str
    size: int
    when: int
    """Seconds since 1970."""

    def view(self) -> dict[str, Any]:
        return vars(self)


class Library:
    """`data` is the instance's folder: for small pictures, and the default model's name."""

    def __init__(self, catalog: Catalog, data: Path) -> None:
        self._catalog = catalog
        self._trash = catalog.folder / TRASH
        self._previews = Previews(data / "thumbs" / "models")
        self._kept = data / "default-model.json"
        self._lock = threading.Lock()

    def recall(self) -> None:
        """Take the default model that a person has chosen, if it is still there."""
        try:
            name = str(json.loads(self._kept.read_bytes())["name"])
        except (OSError, ValueError, KeyError, TypeError):
            return
        if any(model.name == name for model in self._catalog.models()):
            self._catalog.prefer(name)

    def prefer(self, id: str) -> Model:
        """Make it the model that is taken where none is named. Raises NotFound, InvalidRequest."""
        model = self.get(id)
        if model.kind not in CHECKPOINTS or model.problem:
            raise InvalidRequest(Problem("", f"{model.name} is no model that pictures can be drawn with"))
        self._prefer(model.name)
        return model

    def is_default(self, model: Model) -> bool:
        return model.kind in CHECKPOINTS and model.name == self._catalog.default

    def get(self, id: str) -> Model:
        """Raises NotFound."""
        for model in self._catalog.all():
            if id_of(model) == id:
                return next(self._catalog.consented([model]))
        raise NotFound("this model is not there any more")

    def search(self, text: str, kind: str, family: str, sort: Sort, *, broken: bool = False) -> list[Model]:
        """Of the models that hold every word, are of this kind and family (empty: of any), and cannot be used."""
        words = text.casefold().split()
        found = [
            model
            for model in self._catalog.consented(self._catalog.all())
            if (not kind or model.kind == kind)
            and (not family or model.family == family)
            and (not broken or model.problem)
            and (not words or _holds(model, words))
        ]
        keys = {"name": lambda m: m.name.casefold(), "newest": lambda m: -m.changed, "largest": lambda m: -m.size}
        return sorted(found, key=keys[sort])

    def counts(self) -> dict[str, dict[str, int]]:
        """How many there are of each kind and family, and how many cannot be used."""
        models = [*self._catalog.consented(self._catalog.all())]
        return {
            "kinds": Counter(model.kind for model in models),
            "families": Counter(model.family for model in models if model.family),
            "problems": {"all": sum(bool(model.problem) for model in models)},
        }

    def edit(self, id: str, edit: Edit) -> Model:
        """Raises NotFound, Refused, Conflict, InvalidRequest."""
        model = self._own(id)
        given = edit.model_dump(exclude_none=True)
        if "defaults" in given:
            given["defaults"] = defaults.checked(given["defaults"], model.family)
        path = sidecars.card_of(model.path)
        with self._lock:
            write_atomically(path, _edited(path, given))
        return self._anew(id)

    def rename(self, id: str, name: str) -> Model:
        """Another name for its file or folder, and for all that goes with it. Raises as `edit`."""
        model = self._own(id)
        suffix = "" if model.path.is_dir() else model.path.suffix
        stem = safe_name(name.removesuffix(suffix)) if name.strip() else ""
        if not stem:
            raise InvalidRequest(Problem("name", "give it a name"))
        target = model.path.with_name(stem + suffix)
        with self._lock, _explained():
            moves = [(path, path.with_name(stem + ending)) for path, ending in _files(model)]
            if there := [to.name for path, to in moves if to.exists() and not os.path.samefile(to, path)]:
                raise Conflict(f"{there[0]} is there already; choose another name")
            move_together(moves)
        renamed = self._anew(_id(target))
        if model.name == self._catalog.default:
            self._prefer(renamed.name)
        return renamed

    def delete(self, id: str) -> Trashed:
        """Into the trash, from where it can be restored. Raises as `edit`."""
        model = self._own(id)
        token = secrets.token_hex(8)
        folder = self._trash / token
        trashed = Trashed(token, model.name, model.kind, model.size, int(time.time()))
        with self._lock, _explained():
            folder.mkdir(parents=True)
            try:
                record = {**trashed.view(), "place": str(model.path.parent)}
                write_atomically(folder / RECORD, json.dumps(record).encode())
                move_together([(path, folder / path.name) for path, _ in _files(model)])
            except BaseException:
                if all(path.name == RECORD for path in folder.iterdir()):  # as a rule: all is where it was
                    shutil.rmtree(folder)
                raise
        if model.name == self._catalog.default:
            self._prefer("")
        self._catalog.refresh()
        return trashed

    def trash(self) -> list[Trashed]:
        """The newest first."""
        found = [self._trashed(folder.name) for folder in self._trash.glob("*")]
        return sorted((trashed for trashed, _ in filter(None, found)), key=lambda t: -t.when)

    def restore(self, token: str) -> None:
        """Raises NotFound, Conflict."""
        with self._lock, _explained():
            found = self._trashed(token)
            if found is None:
                raise NotFound("this is not in the trash any more")
            place, folder = found[1], self._trash / token
            paths = [path for path in folder.iterdir() if path.name != RECORD]
            if there := [path.name for path in paths if (place / path.name).exists()]:
                raise Conflict(f"{there[0]} is there again; rename that first")
            place.mkdir(parents=True, exist_ok=True)
            move_together([(path, place / path.name) for path in paths])
            shutil.rmtree(folder, ignore_errors=True)
        self._catalog.refresh()

    def destroy(self, token: str) -> None:
        """Out of the trash, for good. Raises NotFound."""
        with self._lock, _explained():
            if self._trashed(token) is None:
                raise NotFound("this is not in the trash any more")
            shutil.rmtree(self._trash / token)

    def show(self, id: str, picture: Image.Image) -> Model:
        """Make this its picture."""
        model = self._own(id)
        self._previews.keep(picture, _own_picture(model))
        return self._anew(id)

    def thumb(self, id: str) -> Path:
        """A small WebP of its picture. Raises NotFound."""
        model = self.get(id)
        source = picture_of(model)
        if source is None:
            raise NotFound(f"there is no picture of {model.title}")
        return self._previews.small(id, source)

    def _own(self, id: str) -> Model:
        """One that may be changed. Raises Refused for those of other programs, and for the embedded one."""
        model = self.get(id)
        if model.root:
            raise Refused(f"{model.name} belongs to {model.root}, whose models are used as they are")
        if model.path == self._catalog.folder / STARTER:
            raise Refused("the embedded model stays as it is")
        return model

    def _prefer(self, name: str) -> None:
        write_atomically(self._kept, json.dumps({"name": name}, ensure_ascii=False).encode())
        self._catalog.prefer(name)

    def _anew(self, id: str) -> Model:
        self._catalog.refresh()
        return self.get(id)

    def _trashed(self, token: str) -> tuple[Trashed, Path] | None:
        """And where it was; None if that cannot be read, or is no place of ours."""
        try:
            said = json.loads((self._trash / token / RECORD).read_bytes())
            place = Path(said.pop("place"))
            trashed = Trashed(**said)
        except (OSError, ValueError, TypeError, KeyError):
            return None
        return (trashed, place) if place.is_relative_to(self._catalog.folder) and trashed.id == token else None


def id_of(model: Model) -> str:
    return _id(model.path)


def _id(path: Path) -> str:
    return hashlib.sha256(os.fsencode(path)).hexdigest()[:16]


def card(model: Model) -> dict[str, Any]:
    """What stands on its card; empty, too, if that cannot be read (`Model.card_problem`)."""
    try:
        return sidecars.card(sidecars.card_of(model.path))
    except ValueError:
        return {}


def _edited(path: Path, given: Mapping[str, Any]) -> bytes:
    """A card with what is `given`. Raises Conflict if it cannot be read: it would be lost."""
    try:
        known = sidecars.card(path)
    except ValueError as error:
        raise Conflict(f"{path.name} {error}; it would be lost, so nothing was saved") from None
    return json.dumps({**known, **given}, ensure_ascii=False, indent=2).encode()


def picture_of(model: Model) -> Path | None:
    if model.path.is_dir():
        own = _own_picture(model)
        return own if own.is_file() else None
    return model.preview


def picture_time(model: Model) -> int:
    """When its picture was made, in nanoseconds; 0: there is none."""
    path = picture_of(model)
    try:
        return path.stat().st_mtime_ns if path else 0
    except OSError:
        return 0


def _own_picture(model: Model) -> Path:
    return model.path / "preview.png" if model.path.is_dir() else model.path.with_suffix(".preview.png")


def _files(model: Model) -> Iterator[tuple[Path, str]]:
    """All that goes with it, itself last, each with the ending behind the model's name.

    What another model of the same name goes by too, `cat.ckpt` beside `cat.safetensors`, stays with that.
    """
    if not model.path.is_dir() and not _has_namesake(model.path):
        for ending in scan.BESIDE:
            path = model.path.with_name(model.path.stem + ending)
            if path.is_file() and path != model.path:
                yield path, ending
    yield model.path, "" if model.path.is_dir() else model.path.suffix


def _has_namesake(path: Path) -> bool:
    others = (path.with_suffix(suffix) for suffix in (*scan.READABLE, *PICKLES) if suffix != path.suffix)
    return any(other.is_file() for other in others)


def _holds(model: Model, words: list[str]) -> bool:
    said = (model.relative, model.name, model.title, model.trigger, model.notes, model.description)
    text = "\n".join(said).casefold()
    return all(word in text or (len(word) >= 8 and model.sha256.startswith(word)) for word in words)


@contextlib.contextmanager
def _explained() -> Iterator[None]:
    """What the disk says against it, plainly."""
    try:
        yield
    except FileNotFoundError as error:
        raise NotFound(f"{Path(str(error.filename)).name} is not there any more") from error
    except OSError as error:
        raise StorageFull(f"the disk does not take it: {error.strerror} ({Path(str(error.filename)).name})") from error
