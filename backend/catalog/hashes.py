"""SHA-256 of model files, and the short forms that A1111 knows them by."""

import hashlib
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

from backend.catalog.index import Index

BLOCK = 1 << 22


def fingerprint(path: Path) -> str:
    """SHA-256 of a file, or over the names and contents of the weights in a folder, in hexadecimal."""
    return _digest(path, lambda: None)


class Fingerprints:
    """The same, worked out once: the index keeps it as long as nothing changes."""

    def __init__(self, index: Index) -> None:
        self._index = index

    def of(self, path: Path, go_on: Callable[[], None] = lambda: None) -> str:
        """`go_on` is called between blocks, and raises to stop."""
        before = stamp(path)
        if known := self._index.hash_of(str(path), before):
            return known
        found = _digest(path, go_on)
        if stamp(path) == before:  # else it was written to meanwhile
            self._index.keep_hash(str(path), before, found)
        return found


def stamp(path: Path) -> str:
    """Differs when the file does, or the weights in the folder."""
    if not path.is_dir():
        return stamp_of(os.stat(path))
    text = "\n".join(f"{file.relative_to(path).as_posix()} {stamp_of(file.stat())}" for file in _weights(path))
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()


def stamp_of(stat: os.stat_result) -> str:
    return f"{stat.st_size} {stat.st_mtime_ns}"


def old_hash(path: Path) -> str:
    """Eight digits of 64 KB in the file: what A1111 called a model's hash in 2022, and ControlNet still does."""
    with open(path, "rb") as file:
        return old_hash_of(file)


def old_hash_of(file: BinaryIO) -> str:
    file.seek(0x100000)
    return hashlib.sha256(file.read(0x10000)).hexdigest()[:8]


def is_hash(text: str) -> bool:
    return re.fullmatch(r"[0-9a-f]{8}|[0-9a-f]{10}|[0-9a-f]{12}|[0-9a-f]{64}", text) is not None


def _digest(path: Path, go_on: Callable[[], None]) -> str:
    digest = hashlib.sha256()
    files = _weights(path) if path.is_dir() else [path]
    for file in files:
        if file != path:
            digest.update(file.relative_to(path).as_posix().encode("utf-8", "surrogateescape"))
        with open(file, "rb") as stream:
            while block := stream.read(BLOCK):
                digest.update(block)
                go_on()
    return digest.hexdigest()


def _weights(folder: Path) -> list[Path]:
    return sorted([*folder.glob("*.safetensors"), *folder.glob("*/*.safetensors")])
