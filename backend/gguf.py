"""The header of a GGUF file: names, types, shapes and places of its tensors, and metadata. No tensor is read.

Such a file is a magic number, a version, the numbers of tensors and of metadata, these two lists, the tensors' bytes.
"""

import math
import os
import struct
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from backend.weights import MAX_HEADER, BrokenFile, Entry, Header

MAX_ENTRIES = 200_000
TYPES = {
    0: ("F32", 1, 4),
    1: ("F16", 1, 2),
    2: ("Q4_0", 32, 18),
    3: ("Q4_1", 32, 20),
    6: ("Q5_0", 32, 22),
    7: ("Q5_1", 32, 24),
    8: ("Q8_0", 32, 34),
    9: ("Q8_1", 32, 36),
    10: ("Q2_K", 256, 84),
    11: ("Q3_K", 256, 110),
    12: ("Q4_K", 256, 144),
    13: ("Q5_K", 256, 176),
    14: ("Q6_K", 256, 210),
    15: ("Q8_K", 256, 292),
    16: ("IQ2_XXS", 256, 66),
    17: ("IQ2_XS", 256, 74),
    18: ("IQ3_XXS", 256, 98),
    19: ("IQ1_S", 256, 50),
    20: ("IQ4_NL", 32, 18),
    21: ("IQ3_S", 256, 110),
    22: ("IQ2_S", 256, 82),
    23: ("IQ4_XS", 256, 136),
    24: ("I8", 1, 1),
    25: ("I16", 1, 2),
    26: ("I32", 1, 4),
    27: ("I64", 1, 8),
    28: ("F64", 1, 8),
    29: ("IQ1_M", 256, 56),
    30: ("BF16", 1, 2),
}
"""Name, elements and bytes of a block."""
_NUMBERS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_TEXT, _LIST = 8, 9


def read(path: Path) -> Header:
    """Raises BrokenFile."""
    with _opened(path) as (file, size):
        return _read(file, size)


def lists(path: Path) -> Mapping[str, Sequence[Any]]:
    """What `read` passes over, by name: the words of a tokenizer, for instance. Raises BrokenFile."""
    with _opened(path) as (file, size):
        stream, _, described = _begun(file, size)
        said = {stream.text(): stream.value(stream.number("I"), lists=True) for _ in range(described)}
    return {name: value for name, value in said.items() if isinstance(value, list | tuple)}


@contextmanager
def _opened(path: Path) -> Iterator[tuple[BinaryIO, int]]:
    try:
        with open(path, "rb") as file:
            yield file, os.fstat(file.fileno()).st_size
    except FileNotFoundError:
        raise BrokenFile("is not there any more") from None
    except OSError as error:
        raise BrokenFile(f"cannot be read: {error.strerror}") from None
    except RecursionError:
        raise BrokenFile("is damaged: its metadata is nested too deeply") from None


def _begun(file: BinaryIO, size: int) -> tuple["_Stream", int, int]:
    """Where the metadata begins; the number of tensors, and of what is said of them all."""
    if file.read(4) != b"GGUF":
        raise BrokenFile("is no GGUF file" if size else "is empty")
    stream = _Stream(file, min(size, MAX_HEADER))
    if (version := stream.number("I")) not in (2, 3):
        raise BrokenFile(f"is GGUF of version {version}; 2 and 3 are read")
    count, described = stream.number("Q"), stream.number("Q")
    if count > MAX_ENTRIES or described > MAX_ENTRIES:
        raise BrokenFile("is damaged: its header promises more than a file holds")
    return stream, count, described


def _read(file: BinaryIO, size: int) -> Header:
    stream, count, described = _begun(file, size)
    metadata = {stream.text(): stream.value(stream.number("I")) for _ in range(described)}
    found = {stream.text(): stream.tensor() for _ in range(count)}
    if len(found) < count:
        raise BrokenFile("is damaged: its header names something twice")
    alignment = metadata.get("general.alignment", 32)
    step = alignment if isinstance(alignment, int) and 0 < alignment <= 2**20 else 32
    start = -(-stream.at // step) * step
    for key, entry in found.items():
        if entry.end > size - start:
            raise BrokenFile(f"is damaged or cut short: {key[:80]} is not in it as its header says")
    said = {key: str(value) for key, value in metadata.items() if value is not None}
    return Header(found, said, start)


class _Stream:
    """Numbers and texts from a file, as far as `end`."""

    def __init__(self, file: BinaryIO, end: int) -> None:
        self._file = file
        self._end = end
        self.at = file.tell()

    def number(self, format: str) -> Any:
        return struct.unpack("<" + format, self._take(struct.calcsize("<" + format)))[0]

    def text(self) -> str:
        return self._take(self.number("Q")).decode("utf-8", "replace")

    def tensor(self) -> Entry:
        dimensions = self.number("I")
        if dimensions > 8:
            raise BrokenFile(f"is damaged: a tensor of it has {dimensions} dimensions")
        shape = tuple(self.number("Q") for _ in range(dimensions))[::-1]  # the fastest comes first in the file
        kind, begin = self.number("I"), self.number("Q")
        dtype, elements, size = TYPES.get(kind, (f"type {kind}", 1, 0))
        return Entry(dtype, shape, begin, begin + math.prod(shape) // elements * size)

    def value(self, kind: int, lists: bool = False) -> Any:
        """A list is passed over and is None, unless `lists` are wanted."""
        if kind == _TEXT:
            return self.text()
        if kind in _NUMBERS:
            return self.number(_NUMBERS[kind])
        if kind != _LIST:
            raise BrokenFile(f"is damaged: its metadata has values of a kind {kind}")
        kind, count = self.number("I"), self.number("Q")
        if kind in _NUMBERS:
            size = count * struct.calcsize("<" + _NUMBERS[kind])
            return struct.unpack(f"<{count}{_NUMBERS[kind]}", self._take(size)) if lists else self._pass(size)
        if lists:
            return [self.value(kind, lists) for _ in range(count)]
        for _ in range(count):  # each takes bytes of the file: it ends
            self._pass(self.number("Q")) if kind == _TEXT else self.value(kind)
        return None

    def _take(self, count: int) -> bytes:
        self._claim(count)
        taken = self._file.read(count)
        if len(taken) < count:
            raise BrokenFile("is cut short: its header is not whole")
        return taken

    def _pass(self, count: int) -> None:
        self._claim(count)
        self._file.seek(count, os.SEEK_CUR)

    def _claim(self, count: int) -> None:
        self.at += count
        if self.at > self._end:
            raise BrokenFile("is damaged or cut short: its header is not whole")
