"""Control maps: what a preprocessor makes of a picture, and those that were made before, by their content."""

from __future__ import annotations

import hashlib
import io
import json
import logging
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image
from PIL.PngImagePlugin import PngImageFile, PngInfo

from backend.errors import StorageFull
from backend.extension import write_atomically
from backend.images import flatten

from . import pose, weightless
from .pose import Pose
from .preprocessors import Annotators, Preprocessor, find, located, missing, say_missing

log = logging.getLogger(__name__)

VERSION = 2
"""Goes into the names of kept maps: another one for each change in how maps are made."""
ROOM = 256 * 2**20
"""Bytes of the maps that are kept."""


@dataclass(frozen=True)
class MapValues:
    """What decides a map beside the picture."""

    module: str = "none"
    processor_res: int = -1
    """Pixels of the shorter side; outside of the module's range: its default."""
    threshold_a: float = -1
    threshold_b: float = -1
    pixel_perfect: tuple[int, int] | None = None
    """Width and height of the picture to be drawn, if the resolution is to follow from it."""
    resize_mode: str = "Crop and Resize"


class Made(NamedTuple):
    picture: Image.Image
    """RGB; of the inpaint modules RGBA, transparent where the picture is drawn anew: the models take -1 there."""
    pose: Pose | None = None
    """Whom an openpose module found; the picture is drawn from it."""


def make_map(
    picture: Image.Image,
    mask: Image.Image | None,
    values: MapValues,
    annotators: Annotators,
    cache: Cache | None = None,
) -> Image.Image:
    """The map, as `Made.picture` has it, at the module's resolution or, without one, at the picture's own size.

    Raises ValueError with a sentence that names the module: a mask or weights that lack, an annotator that failed.
    """
    return detect(picture, mask, values, annotators, cache).picture


def detect(
    picture: Image.Image,
    mask: Image.Image | None,
    values: MapValues,
    annotators: Annotators,
    cache: Cache | None = None,
) -> Made:
    """The map and the people in it; see `make_map`. `annotators` is where their weights are."""
    asked = _asked(picture, mask, values, annotators)
    if cache and (kept := cache.get(asked.key)):
        return kept
    made = _made(asked, annotators)
    if cache and asked.module.name != "none":
        cache.put(asked.key, made)
    return made


def known(
    picture: Image.Image, mask: Image.Image | None, values: MapValues, annotators: Annotators, cache: Cache
) -> Made | None:
    """What `detect` would give, if it has been made before. Raises ValueError as that does."""
    return cache.get(_asked(picture, mask, values, annotators).key)


def settled(module: Preprocessor, values: MapValues, size: tuple[int, int]) -> MapValues:
    """With the numbers that apply to a picture of that size in place of -1 and of pixel perfect."""
    resolution = values.processor_res
    if values.pixel_perfect and module.resolution:
        resolution = perfect(size, values.pixel_perfect, values.resize_mode)
        resolution = round(min(max(resolution, module.resolution.ge), module.resolution.le))
    resolution, a, b = module.resolved(resolution, values.threshold_a, values.threshold_b)
    return MapValues(module.name, resolution, a, b)


def perfect(size: tuple[int, int], drawn: tuple[int, int], resize_mode: str) -> int:
    """The resolution at which no pixel of the map is lost or invented, for a picture drawn at that size."""
    ratios = drawn[0] / size[0], drawn[1] / size[1]
    return round((min if resize_mode == "Resize and Fill" else max)(ratios) * min(size))


def as_mask(picture: Image.Image) -> weightless.Mask:
    """(H, W), white where it is painted: the transparency if there is any, else the brightness."""
    clear = picture.mode == "RGBA" and picture.getchannel("A").getextrema() != (255, 255)
    return np.asarray(picture.getchannel("A") if clear else picture.convert("L"))


class _Asked(NamedTuple):
    module: Preprocessor
    values: MapValues
    pixels: weightless.Pixels
    mask: weightless.Mask | None
    key: str
    """A digest of all of it, and of which weights there are."""


def _asked(picture: Image.Image, mask: Image.Image | None, values: MapValues, annotators: Annotators) -> _Asked:
    module = find(values.module)
    if files := missing(module, annotators):
        raise ValueError(say_missing(module, files))
    if module.needs_mask and mask is None:
        raise ValueError(f"{module.label} needs a mask: white is what is drawn anew")
    values = settled(module, values, picture.size)
    pixels = np.asarray(flatten(picture))
    covered = as_mask(mask) if mask and module.needs_mask else None
    return _Asked(module, values, pixels, covered, _key(pixels, covered, values, located(module, annotators)))


def _key(pixels: weightless.Pixels, mask: weightless.Mask | None, values: MapValues, files: Iterable[Path]) -> str:
    digest = hashlib.sha256(pixels.tobytes())
    if mask is not None:
        digest.update(mask.tobytes())
    weights = [(str(path), (stat := path.stat()).st_mtime_ns, stat.st_size) for path in files]
    shapes = pixels.shape, None if mask is None else mask.shape
    digest.update(json.dumps([VERSION, shapes, repr(values), weights]).encode())
    return digest.hexdigest()


def _made(asked: _Asked, annotators: Annotators) -> Made:
    module, values = asked.module, asked.values
    sliders = weightless.Sliders(values.threshold_a, values.threshold_b)
    if module.is_weightless:
        made = weightless.make(module.name, asked.pixels, asked.mask, values.processor_res, sliders)
        return Made(Image.fromarray(made))
    from . import annotators as heavy  # torch

    found = heavy.annotate(module, weightless.resized(asked.pixels, values.processor_res), sliders, annotators)
    if isinstance(found, Pose):
        return Made(pose.draw(found), found)
    return Made(Image.fromarray(found))


# kept


class Cache:
    """Maps in a folder, as PNG; those that were not asked for longest go when there is no room.

    Several processes may share the folder.
    """

    def __init__(self, folder: Path, room: int = ROOM) -> None:
        self._folder = folder
        self._room = room

    def get(self, key: str) -> Made | None:
        path = self._path(key)
        try:
            data = path.read_bytes()
        except OSError:
            return None
        try:
            made = _read(data)
        except (OSError, SyntaxError, ValueError) as error:
            log.warning("the kept map %s is damaged (%s); it is made anew", path.name, error)
            path.unlink(missing_ok=True)
            return None
        try:
            os.utime(path)
        except FileNotFoundError:
            log.debug("another process has let go of the map %s", path.name)
        return made

    def put(self, key: str, made: Made) -> None:
        """Keep it if the disk takes it."""
        data = _written(made)
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            self._make_room(len(data))
            write_atomically(self._path(key), data)
        except (OSError, StorageFull) as error:
            log.warning("the map is not kept: %s", error)

    def _path(self, key: str) -> Path:
        return self._folder / f"{key}.png"

    def _make_room(self, size: int) -> None:
        files = []
        for path in self._folder.glob("*.png"):
            try:
                stat = path.stat()
            except FileNotFoundError:
                continue
            files.append((stat.st_mtime_ns, stat.st_size, path))
        taken = sum(size for _, size, _ in files)
        for _, freed, path in sorted(files):
            if taken + size <= self._room:
                return
            path.unlink(missing_ok=True)
            taken -= freed


def _written(made: Made) -> bytes:
    chunk, out = PngInfo(), io.BytesIO()
    if made.pose:
        chunk.add_text("pose", pose.written(made.pose))
    made.picture.save(out, "PNG", pnginfo=chunk, compress_level=1)
    return out.getvalue()


def _read(data: bytes) -> Made:
    with Image.open(io.BytesIO(data), formats=["PNG"]) as picture:
        assert isinstance(picture, PngImageFile)
        picture.load()
        text = picture.text.get("pose")
        return Made(picture.copy(), pose.people(text) if text else None)
