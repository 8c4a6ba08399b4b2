"""The LoRAs in models/loras, by name: what is there, what it says of itself, and which one a tag means.

Headers are read once: what they say is kept in an index by name, time and size. Nothing that a person types becomes a
path; a name is looked up among the files that are there.
"""

import contextlib
import difflib
import hashlib
import json
import logging
import os
import re
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from backend import weights
from backend.extension import write_atomically
from backend.weights import BrokenFile

from . import header
from .header import Facts

log = logging.getLogger(__name__)

FOLDER = "loras"
SUFFIX = ".safetensors"
REFUSED = (".pt", ".ckpt", ".bin", ".pth")
"""Pickles: opening one can run code."""
MAX_FILES = 20_000
SEARCHED = 4 * 2**30
"""Bytes that are read to find a file by its hash, where hashes are not known yet."""
VERSION = 4


@dataclass(frozen=True)
class File:
    """A LoRA."""

    name: str
    """Path in the folder, with slashes, without the ending."""
    path: Path
    time: int
    """When it was changed, in nanoseconds."""
    size: int
    beside: Mapping[str, tuple[str, int]]
    """Name and time of the files that belong to it, by what follows its name: `.json`, `.preview.png`."""
    facts: Facts = field(default_factory=Facts)
    known_hash: str = ""
    """Of its tensors, where the file does not bring it and it has been worked out."""

    @property
    def id(self) -> str:
        return hashlib.sha256(self.name.encode()).hexdigest()[:16]

    @property
    def stem(self) -> str:
        return self.name.rpartition("/")[2]

    @property
    def hash(self) -> str:
        """SHA-256, hexadecimal; empty: not known yet."""
        return self.facts.hash or self.known_hash

    @property
    def mention(self) -> str:
        """Its name in `Lora hashes`, as A1111 writes it."""
        return re.sub("[:,]", "", self.stem)


_Entry = tuple[str, Path, int, int, dict[str, tuple[str, int]]]
"""Name, path, time, size, and what lies beside it."""


class Unknown(ValueError):
    """No file is meant, or more than one."""


@dataclass(frozen=True)
class Look:
    """What was there at one moment."""

    files: Mapping[str, File]
    """By name."""
    refused: Sequence[str] = ()
    """Paths of files that are not taken."""

    def find(self, name: str) -> File:
        """The file of that name: its path in the folder, its stem or its alias. Raises Unknown."""
        if name in self.files:
            return self.files[name]
        files = self.files.values()
        for same in (
            [file for file in files if file.stem == name],
            [file for file in files if file.facts.alias == name and name],
            [file for file in files if name.lower() in (file.name.lower(), file.stem.lower())],
        ):
            if len(same) == 1:
                return same[0]
            if same:
                paths = ", ".join(file.name for file in same[:5])
                raise Unknown(f"{name[:80]!r} could be {paths}: say which by its folder")
        for path in self.refused:
            stem = path.rpartition(".")[0]
            if name in (stem, stem.rpartition("/")[2], path):
                raise Unknown(f"{path} is not taken, since opening such a file can run code; convert it to {SUFFIX}")
        raise Unknown(f"there is no LoRA {name[:80]!r}{self._nearest(name)}")

    def _nearest(self, name: str) -> str:
        if not self.files:
            return f"; put its file into models/{FOLDER}"
        names = {file.stem.lower(): file.stem for file in self.files.values()}
        names |= {file.facts.alias.lower(): file.facts.alias for file in self.files.values() if file.facts.alias}
        wanted = name.lower().rpartition("/")[2]
        near = difflib.get_close_matches(wanted, names, 5, 0.5)
        near += [known for known in names if wanted and wanted in known and known not in near]
        if near:
            return "; near to it: " + ", ".join(names[known] for known in near[:5])
        return "; there are " + ", ".join(sorted(names.values())[:5])


class Shelf:
    """`kept` is where the index lies. `further` gives folders that lie elsewhere, and what people call where."""

    def __init__(self, folder: Path, kept: Path, further: Callable[[], Sequence[tuple[str, Path]]] = tuple) -> None:
        self.folder = folder
        self._kept = kept
        self._further = further
        self._lock = threading.Lock()
        self._files: dict[str, File] = {}
        self._refused: list[str] = []
        self._index: dict[str, Any] | None = None

    def look(self) -> Look:
        """All that is there now; headers that are not known yet are read."""
        with self._lock:
            return Look(self._look(), tuple(self._refused))

    def hash_of(self, file: File) -> str:
        """SHA-256 of its tensors, hexadecimal; read from the whole file unless it is known."""
        if file.hash:
            return file.hash
        try:
            found = weights.data_hash(file.path, weights.read(file.path).start)
        except OSError as error:
            raise BrokenFile(f"cannot be read: {error.strerror}") from None
        with self._lock:
            if known := self._look().get(file.name):
                self._files[file.name] = replace(known, known_hash=found)
                self._save()
        return found

    def with_hash(self, start: str) -> File | None:
        """The file whose hash begins so."""
        files = list(self.look().files.values())
        if found := next((file for file in files if file.hash.startswith(start)), None):
            return found
        left = SEARCHED
        for file in sorted((f for f in files if not f.hash and not f.facts.problem), key=lambda f: f.size):
            left -= file.size
            if left < 0:
                log.info("not all of %d files were searched for the hash %s", len(files), start)
                break
            if self.hash_of(file).startswith(start):
                return file
        return None

    # --- looking

    def _look(self) -> dict[str, File]:
        before = self._files or self._load()
        self._refused = []
        found: dict[str, File] = {}
        for name, path, time, size, beside in self._all():
            known = before.get(name)
            if known and (known.time, known.size) == (time, size) and not known.facts.problem:
                found[name] = replace(known, path=path, beside=beside)
            else:
                found[name] = File(name, path, time, size, beside, header.facts(path))
            if len(found) >= MAX_FILES:
                log.warning("there are more than %d LoRAs in %s; the others are not seen", MAX_FILES, self.folder)
                break
        self._files = found
        if {n: (f.time, f.size) for n, f in found.items()} != {n: (f.time, f.size) for n, f in before.items()}:
            self._save()
        return found

    def _all(self) -> Iterator[_Entry]:
        seen: set[str] = set()
        names: set[str] = set()
        for root, folder in [("", self.folder), *self._further()]:
            for name, *others in self._walk(folder, seen):
                if name in names:  # of another root too
                    name = f"{root or folder.name}/{name}"
                if name not in names:
                    names.add(name)
                    yield name, *others

    def _walk(self, root: Path, seen: set[str]) -> Iterator[_Entry]:
        for place, folders, _ in os.walk(root, followlinks=True):
            real = os.path.realpath(place)
            if real in seen:  # a link that leads back
                folders.clear()
                continue
            seen.add(real)
            folders[:] = sorted(name for name in folders if not name.startswith("."))
            here = _entries(place)
            within = os.path.relpath(place, root).replace(os.sep, "/")
            prefix = "" if within == "." else f"{within}/"
            self._refused += [prefix + name for name in here if name.lower().endswith(REFUSED)]
            for name in sorted(name for name in here if name.endswith(SUFFIX)):
                stem = name.removesuffix(SUFFIX)
                beside = {
                    suffix: (stem + suffix, here[stem + suffix].st_mtime_ns)
                    for suffix in BESIDE
                    if stem + suffix in here
                }
                yield prefix + stem, Path(place, name), here[name].st_mtime_ns, here[name].st_size, beside

    # --- the index

    def _load(self) -> dict[str, File]:
        try:
            index = json.loads((self._kept / "index.json").read_bytes())
            if index["version"] != VERSION:
                return {}
            return {name: _file(name, entry) for name, entry in index["files"].items()}
        except FileNotFoundError:
            return {}
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            log.warning("the index of LoRAs in %s makes no sense; headers are read anew", self._kept)
            return {}

    def _save(self) -> None:
        elsewhere = self._load()  # the server and the engine's process each write it
        for name, file in self._files.items():
            other = elsewhere.get(name)
            if other and other.known_hash and (other.time, other.size) == (file.time, file.size):
                self._files[name] = replace(file, known_hash=other.known_hash)
        files = {
            file.name: {
                "time": file.time,
                "size": file.size,
                "hash": file.known_hash,
                "facts": {key: value for key, value in asdict(file.facts).items() if value},
            }
            for file in self._files.values()
        }
        self._kept.mkdir(parents=True, exist_ok=True)
        write_atomically(
            self._kept / "index.json", json.dumps({"version": VERSION, "files": files}, ensure_ascii=False).encode()
        )


PICTURES = (".png", ".jpg", ".jpeg", ".webp")
BESIDE = (".json", *(f".preview{suffix}" for suffix in PICTURES), *PICTURES, ".txt")


def _entries(place: str) -> dict[str, os.stat_result]:
    """The files in a folder; those that cannot be looked at are not there."""
    found = {}
    try:
        with os.scandir(place) as entries:
            for entry in entries:
                with contextlib.suppress(FileNotFoundError):  # gone meanwhile
                    if not entry.name.startswith(".") and entry.is_file():
                        found[entry.name] = entry.stat()
    except OSError as error:
        log.warning("%s cannot be looked at: %s", place, error)
    return found


def _file(name: str, entry: Mapping[str, Any]) -> File:
    known = {each.name for each in fields(Facts)}
    facts = {key: value for key, value in entry["facts"].items() if key in known}
    return File(name, Path(), entry["time"], entry["size"], {}, Facts(**facts), entry["hash"])
