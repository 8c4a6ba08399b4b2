"""The larger canvas: the old picture in its place, something to start from around it, and the mask over that."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from backend.images import flatten

if TYPE_CHECKING:
    from . import OutpaintParams

BAND = 16
"""Pixels from the edge on that the noise is taken from."""
Pixels = NDArray[np.uint8]


class Margins(NamedTuple):
    """Pixels to add."""

    left: int
    right: int
    top: int
    bottom: int

    def around(self, size: tuple[int, int]) -> tuple[int, int]:
        return self.left + size[0] + self.right, self.top + size[1] + self.bottom


def margins(params: OutpaintParams, size: tuple[int, int]) -> Margins:
    """What is asked for by side, and then what is lacking to the ratio, evenly on both sides."""
    asked = Margins(params.left, params.right, params.top, params.bottom)
    if not params.ratio:
        return asked
    wide, high = map(int, params.ratio.split(":"))
    width, height = asked.around(size)
    more, taller = max(round(height * wide / high) - width, 0), max(round(width * high / wide) - height, 0)
    return Margins(
        asked.left + more // 2,
        asked.right + more - more // 2,
        asked.top + taller // 2,
        asked.bottom + taller - taller // 2,
    )


def grown(picture: Image.Image, margins: Margins, fill: str, seed: int) -> Image.Image:
    """The picture on the larger canvas, RGB; every pixel of it is what it was."""
    pixels: Pixels = np.asarray(flatten(picture))
    sides = (margins.top, margins.bottom), (margins.left, margins.right), (0, 0)
    if fill != "noise":
        return Image.fromarray(np.pad(pixels, sides, mode="symmetric" if fill == "reflect" else "edge"))
    width, height = margins.around(picture.size)
    strewn = _strewn(_rim(pixels, margins), (height, width), seed)
    strewn[margins.top : margins.top + len(pixels), margins.left : margins.left + pixels.shape[1]] = pixels
    return Image.fromarray(strewn)


def mask(size: tuple[int, int], margins: Margins, seam: int) -> Image.Image:
    """White over what is new, falling smoothly to black over the outermost `seam` pixels of the old, L."""
    across = _fall(margins.left, size[0], margins.right, seam)
    down = _fall(margins.top, size[1], margins.bottom, seam)
    return Image.fromarray(np.maximum(across[None, :], down[:, None]))


def png(picture: Image.Image) -> bytes:
    file = io.BytesIO()
    picture.save(file, "PNG", compress_level=1)
    return file.getvalue()


def _rim(pixels: Pixels, margins: Margins) -> Pixels:
    """The pixels along the sides that grow, (N, 3)."""
    parts = (
        (margins.left, pixels[:, :BAND]),
        (margins.right, pixels[:, -BAND:]),
        (margins.top, pixels[:BAND]),
        (margins.bottom, pixels[-BAND:]),
    )
    return np.concatenate([part.reshape(-1, 3) for margin, part in parts if margin])


def _strewn(pixels: Pixels, shape: tuple[int, int], seed: int) -> Pixels:
    random = np.random.RandomState(seed % 2**32)  # the one generator that numpy promises not to change
    strewn: Pixels = pixels[random.randint(len(pixels), size=shape)]
    return strewn


def _fall(before: int, length: int, after: int, seam: int) -> Pixels:
    """The mask along one axis."""
    places = np.arange(length) + 0.5
    depth = np.full(length, np.inf)
    if before:
        depth = np.minimum(depth, places)
    if after:
        depth = np.minimum(depth, places[::-1])
    inside = np.clip(depth / seam, 0, 1) if seam else np.ones(length)
    new = 1 - inside * inside * (3 - 2 * inside)
    return np.pad(np.round(255 * new).astype(np.uint8), (before, after), constant_values=255)
