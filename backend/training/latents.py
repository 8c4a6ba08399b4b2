"""Pictures as latents, encoded once and kept on the disk: a second training on the same set begins at once."""

import hashlib
import os
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from safetensors.torch import load, save
from torch import Tensor

from backend.files import write_atomically
from backend.training.base import Base
from backend.training.dataset import Example, cropped, picture_of

KEPT = 2 << 30
"""Bytes that stay in memory; what is more is read from the disk each time."""
UNUSED = 30 * 24 * 60 * 60
"""Seconds after which those that no training has asked for are deleted."""


class Latents:
    """Those of a base model's VAE; `folder` may be shared by all trainings."""

    def __init__(self, base: Base, folder: Path) -> None:
        self._base = base
        self._folder = folder
        self._kept: dict[str, Tensor] = {}
        self._size = 0

    def of(self, example: Example) -> Tensor:
        """Scaled, (C, H/8, W/8), float32, on the CPU."""
        name = self._name(example)
        if name in self._kept:
            return self._kept[name]
        found = self._read(name)
        if found is None:
            found = self._base.latents_of(cropped(picture_of(example.item), example.crop, example.flipped))
            path = self._path(name)
            path.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(path, save({"latents": found}))
        if self._size < KEPT:
            self._kept[name] = found
            self._size += found.nbytes
        return found

    def encode(self, examples: list[Example], each: Callable[[int], object]) -> None:
        """All of them, beforehand; `each` is told how many are done."""
        for number, example in enumerate(examples, 1):
            self.of(example)
            each(number)
        self._base.park("vae")
        for path in self._folder.glob("*/*.safetensors"):
            with suppress(FileNotFoundError):  # another training has deleted it
                if path.stat().st_mtime < time.time() - UNUSED:
                    path.unlink()

    def _name(self, example: Example) -> str:
        what = example.item.sha256, example.crop, example.flipped, self._base.vae_fingerprint, self._base.vae.dtype
        return hashlib.sha256(repr(what).encode()).hexdigest()

    def _path(self, name: str) -> Path:
        return self._folder / name[:2] / f"{name}.safetensors"

    def _read(self, name: str) -> Tensor | None:
        path = self._path(name)
        if not path.exists():
            return None
        os.utime(path)
        found: Tensor = load(path.read_bytes())["latents"]
        return found
