"""A file of weights, opened: which tensors it holds, and the numbers of one."""

import pickle
import zipfile
from collections.abc import Collection, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any, Protocol

import gguf
import numpy as np
import torch
from safetensors import safe_open
from torch import Tensor

from backend import gguf as headers_of_gguf
from backend import packed, weights
from backend.catalog import fingerprint
from backend.consents import is_pickle
from backend.diffusion.reading.errors import Unreadable
from backend.errors import gist


class Tensors(Protocol):
    def get_tensor(self, name: str) -> Tensor: ...


class Source(Protocol):
    file: Path

    @property
    def shapes(self) -> Mapping[str, tuple[int, ...]]: ...

    def open(self) -> AbstractContextManager[Tensors]:
        """Inside, numbers can be read; they stay valid after it."""


def source(file: Path, consented: Collection[str] = ()) -> Source:
    """`consented` are the SHA-256 of files that may be read though they could carry a program. Raises Unreadable."""
    try:
        if file.suffix.lower() == ".gguf":
            return Gguf(file)
        return _Pickled(file, consented) if is_pickle(file) else _Safe(file)
    except FileNotFoundError:
        raise Unreadable("is not there any more") from None
    except OSError as error:
        raise Unreadable(f"cannot be read: {error.strerror}") from error


class _Safe:
    def __init__(self, file: Path) -> None:
        self.file = file
        try:
            self.shapes = weights.read(file).shapes
        except weights.BrokenFile as error:
            raise Unreadable(str(error)) from error

    def open(self) -> AbstractContextManager[Tensors]:
        return safe_open(self.file, "pt")


class Gguf:
    """Quantised numbers, which are made whole when they are read, or stay in their blocks."""

    def __init__(self, file: Path) -> None:
        self.file = file
        try:
            self._header = headers_of_gguf.read(file)
        except weights.BrokenFile as error:
            raise Unreadable(str(error)) from error
        self.shapes, self.metadata = self._header.shapes, self._header.metadata
        self.packed = {
            name: entry.end - entry.begin
            for name, entry in self._header.entries.items()
            if entry.dtype in packed.KINDS and len(entry.shape) == 2
        }
        """Bytes of each matrix that can stay in its blocks."""
        self._mapped = np.empty(0, np.uint8)

    def kind(self, name: str) -> str:
        """What its numbers are: "F32", "Q8_0" ..."""
        return self._header.entries[name].dtype

    @contextmanager
    def open(self) -> Iterator[Tensors]:
        self._mapped = np.memmap(self.file, mode="c")  # torch wants memory that could be written to
        yield self
        self._mapped = np.empty(0, np.uint8)

    def get_tensor(self, name: str) -> Tensor:
        data, kind = self._data(name)
        return torch.from_numpy(gguf.dequantize(data, kind).copy()).reshape(self.shapes[name])

    def get_blocks(self, name: str) -> packed.Blocks:
        """One of `packed`, which stays where it is in the file."""
        return packed.blocks(*self._data(name))

    def _data(self, name: str) -> tuple[Any, gguf.GGMLQuantizationType]:
        entry, start = self._header.entries[name], self._header.start
        data = self._mapped[start + entry.begin : start + entry.end]
        return data.reshape(*entry.shape[:-1], -1), gguf.GGMLQuantizationType[entry.dtype]


class _Pickled:
    """The numbers are mapped, not read; nothing but numbers is taken out of the file."""

    def __init__(self, file: Path, consented: Collection[str]) -> None:
        self.file = file
        if fingerprint(file) not in consented:
            raise Unreadable("can carry a program; it is read when an administrator has consented to just this file")
        try:
            content = torch.load(file, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(file) or None)
        except (
            pickle.UnpicklingError,
            RuntimeError,
            ValueError,
            EOFError,
            KeyError,
            TypeError,
            AttributeError,
        ) as error:
            raise Unreadable(f"holds more than weights, or is damaged ({gist(error)})") from error
        self._tensors = {name: value for name, value in _state(content).items() if isinstance(value, Tensor)}
        self.shapes = {name: tuple(tensor.shape) for name, tensor in self._tensors.items()}

    def open(self) -> AbstractContextManager[Tensors]:
        return nullcontext(self)

    def get_tensor(self, name: str) -> Tensor:
        return self._tensors[name]


def _state(content: Any) -> Mapping[str, Any]:
    """The weights among what a training has saved."""
    while isinstance(content, dict) and isinstance(inner := content.get("state_dict"), dict):
        content = inner
    return content if isinstance(content, dict) else {}
