"""Which model files and folders there are; nothing is opened but folders.

A folder that cannot be looked into, and a link that leads nowhere, are told as such; one that leads back is not
followed.
"""

import os
import stat
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

from backend.catalog.roots import Place, is_folder
from backend.consents import PICKLES as PICKLES

READABLE = (".safetensors", ".sft", ".gguf")
_TAKEN = READABLE + PICKLES
PICTURES = (".preview.png", ".preview.jpg", ".preview.jpeg", ".preview.webp", ".png", ".jpg", ".jpeg", ".webp")
BESIDE = (".atelier.json", ".json", ".civitai.info", ".yaml", ".sha256", ".txt", *PICTURES)
"""Endings of the files that belong to a model: they stand in place of its own."""
_PARTS = ("unet", "transformer", "vae", "text_encoder", "scheduler")
_WEIGHTS = ("diffusion_pytorch_model", "model", "pytorch_model")
_DEEPEST = 50
"""Folders in folders."""


class Found(NamedTuple):
    place: Place
    path: str
    relative: str
    """Below the place, with slashes."""
    is_folder: bool = False
    size: int = 0
    time: int = 0
    """When it was changed, in nanoseconds."""
    beside: Mapping[str, int] = MappingProxyType({})
    """When the files that belong to it were changed, by their endings."""
    problem: str = ""

    @property
    def stem(self) -> str:
        """Without its folders, nor an ending that says what it is."""
        name = self.relative.rpartition("/")[2]
        return name if self.is_folder else without_ending(name)


def without_ending(name: str) -> str:
    stem, dot, ending = name.rpartition(".")
    return stem if f".{ending.lower()}" in _TAKEN and dot else name


def shown(path: str) -> str:
    """A path as text that can be printed, whatever bytes it has."""
    return path if path.isascii() else os.fsencode(path).decode("utf-8", "replace")


def walk(places: Iterable[Place]) -> Iterator[Found]:
    """What lies in these places, each once, in their order."""
    seen: set[tuple[int, int]] = set()
    for place in places:
        yield from _below(place, str(place.folder), "", seen)


def _below(place: Place, folder: str, within: str, seen: set[tuple[int, int]]) -> Iterator[Found]:
    try:
        here = os.stat(folder)
        if (here.st_dev, here.st_ino) in seen:
            return
        seen.add((here.st_dev, here.st_ino))
        with os.scandir(folder) as listed:
            entries = {entry.name: entry for entry in listed if not entry.name.startswith(".")}
    except FileNotFoundError:
        return
    except OSError as error:
        yield Found(place, folder, within.rstrip("/") or place.folder.name, True, problem=_cannot(error))
        return
    if within and place.kind != "annotator" and _is_model(folder, entries):
        yield Found(place, folder, within.rstrip("/"), True, time=here.st_mtime_ns)
        return
    others = {name: entry for name, entry in entries.items() if name.endswith(BESIDE)}
    for name in sorted(entries):
        entry = entries[name]
        if is_folder(entry):
            if within.count("/") < _DEEPEST:
                yield from _below(place, entry.path, f"{within}{name}/", seen)
        elif _is_taken(place, name):
            try:
                about = entry.stat()
                beside = _beside(others, name) if others else {}
            except OSError as error:  # gone meanwhile, or a link that leads nowhere
                yield Found(place, entry.path, within + name, problem=_cannot(error))
            else:
                problem = "" if stat.S_ISREG(about.st_mode) else "is no file"  # a pipe would be waited for
                yield Found(place, entry.path, within + name, False, about.st_size, about.st_mtime_ns, beside, problem)


def _is_taken(place: Place, name: str) -> bool:
    ending = f".{name.lower().rpartition('.')[2]}"
    return ending in READABLE or (ending in PICKLES if place.kind else ending == ".ckpt")


def _is_model(folder: str, entries: Mapping[str, "os.DirEntry[str]"]) -> bool:
    """Whether this is one model or a part of one, as diffusers saves it, or what is left of one."""
    if "model_index.json" in entries:
        return True
    if "config.json" in entries and any(name.startswith(_WEIGHTS) and name.endswith(READABLE) for name in entries):
        return True
    parts = [name for name in _PARTS if name in entries and is_folder(entries[name])]
    return any(os.path.exists(os.path.join(folder, part, "config.json")) for part in parts)


def _beside(entries: Mapping[str, "os.DirEntry[str]"], name: str) -> dict[str, int]:
    stem, found = without_ending(name), {}
    for ending in BESIDE:
        if stem + ending in entries:
            with suppress(OSError):  # a link that leads nowhere
                about = entries[stem + ending].stat()
                if stat.S_ISREG(about.st_mode):
                    found[ending] = about.st_mtime_ns
    return found


def _cannot(error: OSError) -> str:
    return (
        "is a link that leads nowhere" if isinstance(error, FileNotFoundError) else f"cannot be read: {error.strerror}"
    )


def starter(folder: Path) -> list[Found]:
    """The embedded model, if it is there."""
    try:
        is_there = any(folder.iterdir())
    except OSError:
        return []
    place = Place("checkpoint", folder.parent, "")
    return [Found(place, str(folder), folder.name, True, time=folder.stat().st_mtime_ns)] if is_there else []
