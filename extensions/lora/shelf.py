"""The LoRAs in models/loras, by name: what is there, what it says of itself, and which one a tag means.

Headers are read once: what they say is kept in an index by name, time and size. Nothing that a person types becomes a
path; a name is looked up among the files that are there.
"""

import difflib
import hashlib
import logging
import re
import threading
import unicodedata
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from backend import weights
from backend.catalog import scan
from backend.catalog.index import Index, Row
from backend.catalog.roots import Roots
from backend.catalog.scan import Found, shown
from backend.weights import BrokenFile

from . import header
from .header import Facts
from .tags import named

log = logging.getLogger(__name__)

FOLDER = "loras"
SUFFIXES = (".safetensors", ".sft")
MAX_FILES = 20_000
SEARCHED = 4 * 2**30
"""Bytes that are read to find a file by its hash, where hashes are not known yet."""
VERSION = 5


@dataclass(frozen=True)
class File:
    """A LoRA."""

    name: str
    """Path in the folder, with slashes, without the ending."""
    path: Path
    time: int
    """When it was changed, in nanoseconds."""
    size: int
    beside: Mapping[str, int]
    """When the files that belong to it were changed, by what follows its name: `.json`, `.preview.png`."""
    facts: Facts = field(default_factory=Facts)
    known_hash: str = ""
    """Of its tensors, where the file does not bring it and it has been worked out."""

    @property
    def id(self) -> str:
        return hashlib.sha256(self.name.encode()).hexdigest()[:16]

    @property
    def stamp(self) -> str:
        return f"{self.size} {self.time}"

    @property
    def stem(self) -> str:
        return self.name.rpartition("/")[2]

    @property
    def filename(self) -> str:
        return shown(self.path.name)

    @property
    def hash(self) -> str:
        """SHA-256, hexadecimal; empty: not known yet."""
        return self.facts.hash or self.known_hash

    @property
    def mention(self) -> str:
        """Its name in `Lora hashes`, as A1111 writes it."""
        return re.sub("[:,]", "", self.stem)


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
        files, plain = self.files.values(), _plain(name)
        for same in (
            [file for file in files if file.stem == name],
            [file for file in files if file.facts.alias == name and name],
            [file for file in files if plain in (_plain(file.name), _plain(file.stem))],
        ):
            if len(same) == 1:
                return same[0]
            if same:
                paths = ", ".join(file.name for file in same[:5])
                raise Unknown(f"{name[:80]!r} could be {paths}: say which by its folder")
        for path in self.refused:
            stem = path.rpartition(".")[0]
            if name in (stem, stem.rpartition("/")[2], path):
                raise Unknown(
                    f"{path} is not taken, since opening such a file can run code; convert it to .safetensors"
                )
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
    """`kept` is a folder for the index."""

    def __init__(self, roots: Roots, kept: Path) -> None:
        self._roots = roots
        self._index = Index(kept / "index.db", VERSION)
        self._lock = threading.Lock()
        self._known: Mapping[str, Row] | None = None
        self._files: Mapping[str, File] = {}

    def look(self) -> Look:
        """All that is there now; headers that are not known yet are read."""
        with self._lock:
            return self._look()

    def known(self, id: str) -> File | None:
        """As the latest look has found it."""
        return next((file for file in self._files.values() if file.id == id), None)

    def hash_of(self, file: File) -> str:
        """SHA-256 of its tensors, hexadecimal; read from the whole file unless it is known."""
        if file.hash:
            return file.hash
        try:
            found = weights.data_hash(file.path, weights.read(file.path).start)
        except OSError as error:
            raise BrokenFile(f"cannot be read: {error.strerror}") from None
        self._index.keep_hash(str(file.path), file.stamp, found)
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

    def _look(self) -> Look:
        if self._known is None:
            self._known = self._index.headers()
        hashes = self._index.hashes()
        read: dict[str, tuple[str, Any]] = {}
        files: dict[str, File] = {}
        refused: list[str] = []
        for found in scan.walk(self._roots.places("lora")):
            if found.relative.lower().endswith(scan.PICKLES):
                refused.append(shown(found.relative))
            name = self._name(found, files)
            if not name:
                continue
            file = File(name, Path(found.path), found.time, found.size, found.beside)
            known, row = self._files.get(name), self._known.get(found.path)
            if known and (known.path, known.stamp) == (file.path, file.stamp) and not known.facts.problem:
                facts = known.facts
            elif row and row.stamp == file.stamp:
                facts = Facts(**row.read())
            else:
                facts = header.facts(file.path)
                if not facts.problem:
                    read[found.path] = file.stamp, {key: value for key, value in vars(facts).items() if value}
            if reason := _why_not_named(found):
                facts = replace(facts, problem=reason)
            stamp, hash = hashes.get(found.path, ("", ""))
            files[name] = replace(file, facts=facts, known_hash=hash if stamp == file.stamp else "")
            if len(files) >= MAX_FILES:
                log.warning("there are more than %d LoRAs; the others are not seen", MAX_FILES)
                break
        if read:
            gone = self._known.keys() - {str(file.path) for file in files.values()}
            self._index.keep_headers(read, gone)
            self._known = self._index.headers()
        self._files = files
        return Look(files, refused)

    def _name(self, found: Found, taken: Container[str]) -> str:
        """Empty: it is none of ours."""
        if found.is_folder or found.problem or not found.path.lower().endswith(SUFFIXES):
            return ""
        name = shown(scan.without_ending(found.relative))
        if name in taken:  # of another root too
            name = f"{found.place.root or found.place.folder.name}/{name}"
        return "" if name in taken else name


def _plain(name: str) -> str:
    """The same for names that look the same: capitals, and accents of their own, as a Mac writes them."""
    return unicodedata.normalize("NFC", named(name)).casefold()


def _why_not_named(found: Found) -> str:
    """Why no tag can name it."""
    if shown(found.path) != found.path:
        return "has a name that is not UTF-8: rename it"
    mark = re.search("[:<>]", found.stem)
    return f"has a {mark[0]} in its name, which no tag can hold: rename it" if mark else ""
