"""A file of weights, opened: which tensors it holds, and the numbers of one."""

import pickle
import zipfile
from collections.abc import Collection, Mapping
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors import safe_open
from torch import Tensor

from backend import weights
from backend.catalog import fingerprint
from backend.consents import is_pickle
from backend.diffusion.reading.errors import Unreadable, first_line


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
            raise Unreadable(f"holds more than weights, or is damaged ({first_line(error)})") from error
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
