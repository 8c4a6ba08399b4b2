"""The header of a safetensors file: names, types, shapes and places of its tensors, and metadata. No tensor is read.

Such a file is the length of its header (8 bytes), the header (JSON), then the tensors' bytes.
"""

import hashlib
import json
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import pydantic_core

LENGTH = 8
"""Bytes that say how long the header is."""
MAX_HEADER = 32 * 2**20
MAX_DIMENSIONS = 64
"""Of a tensor: what torch takes. The product of millions would take hours."""
SIZES = {
    **dict.fromkeys(("F64", "I64", "U64"), 8),
    **dict.fromkeys(("F32", "I32", "U32"), 4),
    **dict.fromkeys(("F16", "BF16", "I16", "U16"), 2),
    **dict.fromkeys(("F8_E4M3", "F8_E5M2", "F8_E8M0", "I8", "U8", "BOOL"), 1),
}
"""Bytes of a number, by the format's name of its type."""
_NAMES = (b'"dtype"', b'"shape"', b'"data_offsets"')


class BrokenFile(ValueError):
    """What is wrong with a file, in a sentence that follows its name."""


class Entry(NamedTuple):
    """Where a tensor lies."""

    dtype: str
    """As the format names it: "F16", "BF16" ..."""
    shape: tuple[int, ...]
    begin: int
    """Bytes behind the header."""
    end: int


@dataclass(frozen=True)
class Header:
    entries: Mapping[str, Entry]
    metadata: Mapping[str, str]
    start: int
    """Where the tensors begin, in bytes."""

    @property
    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        return {key: entry.shape for key, entry in self.entries.items()}

    @property
    def size(self) -> int:
        """Bytes of the whole file, if it is as its header says."""
        return self.start + max((entry.end for entry in self.entries.values()), default=0)


def read(path: Path) -> Header:
    """Raises BrokenFile."""
    try:
        with open(path, "rb") as file:
            size = os.fstat(file.fileno()).st_size
            if not size:
                raise BrokenFile("is empty")
            return parse(file.read(header_length(file.read(LENGTH), size)), size)
    except FileNotFoundError:
        raise BrokenFile("is not there any more") from None
    except OSError as error:
        raise BrokenFile(f"cannot be read: {error.strerror}") from None


def data_hash(path: Path, start: int) -> str:
    """SHA-256 of the tensors alone, which begin at `start`: what A1111 and Civitai (AutoV3) know a LoRA by."""
    with open(path, "rb") as file:
        file.seek(start)
        return hashlib.file_digest(file, "sha256").hexdigest()


def header_length(begin: bytes, size: int) -> int:
    """What the first eight bytes of a file of `size` bytes say. Raises BrokenFile."""
    length = int.from_bytes(begin, "little")
    if len(begin) < LENGTH or length > size - LENGTH:
        raise BrokenFile("is damaged or cut short: its header is not whole")
    if length > MAX_HEADER:
        raise BrokenFile(f"has a header of {length / 2**20:.0f} MB; at most {MAX_HEADER >> 20} are taken")
    return length


def parse(header: bytes, size: int) -> Header:
    """The header of a file that has `size` bytes in all. Raises BrokenFile."""
    try:
        content = _table(header)
    except (ValueError, RecursionError) as error:
        if isinstance(error, BrokenFile):
            raise
        raise BrokenFile("is damaged: its header is not JSON") from None
    metadata = content.pop("__metadata__", None) or {}
    if not isinstance(metadata, dict):
        raise BrokenFile("is damaged: its metadata is no table")
    room = size - LENGTH - len(header)
    entries = {}
    for key, tensor in content.items():  # in one piece: a checkpoint has thousands, and a catalogue thousands of those
        try:
            dtype, shape, (begin, end) = tensor["dtype"], tensor["shape"], tensor["data_offsets"]
            count = math.prod(shape) if len(shape) <= MAX_DIMENSIONS else None
            smallest = min(shape) if shape else 0  # with min's `default` it takes three times as long
        except (TypeError, KeyError, ValueError):
            raise _undescribed(key) from None
        if type(begin) is not int or type(end) is not int or type(count) is not int or type(dtype) is not str:
            raise _undescribed(key)
        each = SIZES.get(dtype)
        if not 0 <= begin <= end <= room or smallest < 0 or (each and end - begin != count * each):
            raise BrokenFile(f"is damaged or cut short: {key[:80]} is not in it as its header says")
        entries[key] = Entry(dtype, tuple(shape), begin, end)
    return Header(entries, {str(key): str(value) for key, value in metadata.items()}, LENGTH + len(header))


def _undescribed(key: str) -> BrokenFile:
    return BrokenFile(f"is damaged: {key[:80]} is not described in its header")


def _table(header: bytes) -> dict[str, Any]:
    """A name that comes twice is refused: another reader might take the other one."""
    content = pydantic_core.from_json(header, cache_strings="none")
    if not isinstance(content, dict):
        raise BrokenFile("is damaged: its header is no table")
    tensors = len(content) - ("__metadata__" in content)
    # a quote inside of a text is written \", so these bytes are names; nearly always that tells that all is well
    if header.count(b'"__metadata__"') > 1 or any(header.count(name) != tensors for name in _NAMES):
        json.loads(header, object_pairs_hook=_without_doubles)
    return content


def _without_doubles(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    table = dict(pairs)
    if len(table) < len(pairs):
        raise BrokenFile("is damaged: its header names something twice")
    return table
