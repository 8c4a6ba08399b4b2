"""How a map comes to the size that is drawn, without losing its lines or its colours; no torch.

The rules are those of sd-webui-controlnet: a map of few colours keeps them, a binary one stays binary, and lines that
are one pixel wide stay so.
"""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from .weightless import MOST

Pixels = NDArray[np.uint8]
"""(H, W, C), C is 3, or 4 with what is transparent."""
Box = tuple[int, int, int, int]
FEW = 200
"""Colours: a segmentation has fewer."""
_AROUND = ((0, 1), (1, 0), (1, 1), (1, -1))


def fitted(picture: Image.Image, size: tuple[int, int], mode: str) -> Image.Image:
    """RGB or RGBA as the picture is, of just that width and height."""
    if picture.size == size:
        return picture
    pixels = np.asarray(picture if picture.mode == "RGBA" else picture.convert("RGB"))
    if mode == "Just Resize":
        return Image.fromarray(resized(pixels, size))
    ratios = size[0] / picture.width, size[1] / picture.height
    scale = min(ratios) if mode == "Resize and Fill" else max(ratios)
    if mode == "Crop and Resize" and scale**2 * picture.width * picture.height > MOST:  # a strip
        pixels = _middle(pixels, size[0] / scale, size[1] / scale)
    height, width = pixels.shape[:2]
    within = max(1, round(width * scale)), max(1, round(height * scale))
    left, top = abs(size[0] - within[0]) // 2, abs(size[1] - within[1]) // 2
    scaled = resized(pixels, within)
    if mode == "Crop and Resize":
        return Image.fromarray(scaled[top : top + size[1], left : left + size[0]])
    filled = np.empty((size[1], size[0], pixels.shape[2]), np.uint8)
    filled[:] = border(pixels)
    filled[top : top + within[1], left : left + within[0]] = scaled
    return Image.fromarray(filled)


def _middle(pixels: Pixels, width: float, height: float) -> Pixels:
    """As much as shows, or a row or column more on each side: all of a strip would need gigabytes at its scale."""
    top, left = (int(max(0, have - want) / 2) for have, want in zip(pixels.shape, (height, width), strict=False))
    return pixels[top : pixels.shape[0] - top, left : pixels.shape[1] - left]


def border(pixels: Pixels) -> Pixels:
    """The usual colour of the outermost pixels; beside what is transparent, all is to be drawn: it is so too."""
    edge = np.concatenate([pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]])
    colour: Pixels = np.median(edge, axis=0).astype(np.uint8)
    if pixels.shape[2] == 4:
        colour[3] = 0
    return colour


def resized(pixels: Pixels, size: tuple[int, int]) -> Pixels:
    """A map at another width and height, by what kind of map it is."""
    if pixels.shape[2] == 4:
        opaque = cv2.resize(pixels[:, :, 3], size, interpolation=_interpolation(pixels, size))
        return np.dstack([resized(pixels[:, :, :3], size), np.where(opaque > 127, 255, 0).astype(np.uint8)])
    if (pixels.shape[1], pixels.shape[0]) == size:
        return pixels
    colours = _colours(pixels)
    if colours == 2 and pixels.min() < 16 and pixels.max() > 240 and not np.ptp(pixels, axis=2).any():
        return _binary(pixels, size)
    way = cv2.INTER_NEAREST if colours < FEW else _interpolation(pixels, size)
    return np.asarray(cv2.resize(pixels, size, interpolation=way), np.uint8)


def _interpolation(pixels: Pixels, size: tuple[int, int]) -> int:
    is_smaller = size[0] * size[1] < pixels.shape[0] * pixels.shape[1]
    return int(cv2.INTER_AREA if is_smaller else cv2.INTER_CUBIC)


def _colours(pixels: Pixels) -> int:
    """How many there are; no more than FEW are counted."""
    sample = np.unique(_packed(pixels[:: max(1, len(pixels) // 64)]))
    return len(sample) if len(sample) >= FEW else len(np.unique(_packed(pixels)))


def _packed(pixels: Pixels) -> NDArray[np.uint32]:
    wide = pixels.astype(np.uint32)
    return np.asarray(wide[..., 0] << 16 | wide[..., 1] << 8 | wide[..., 2])


def _binary(pixels: Pixels, size: tuple[int, int]) -> Pixels:
    lines = _is_of_lines(pixels[:, :, 0])
    grey = cv2.resize(pixels, size, interpolation=_interpolation(pixels, size)).mean(axis=2).astype(np.uint8)
    if lines:
        grey = _ridges(grey)
    _, high = cv2.threshold(grey, 0, 255, cv2.THRESH_BINARY + cv2.THRESH_OTSU)
    return np.repeat((_thinned(high) if lines else high)[:, :, None], 3, axis=2)


def _is_of_lines(grey: NDArray[Any]) -> bool:
    """Whether more than half of what is white is gone when the picture is opened by 3 x 3."""
    opened = cv2.morphologyEx(grey, cv2.MORPH_OPEN, np.ones((3, 3), np.uint8))
    return bool(2 * np.count_nonzero(opened < grey) > np.count_nonzero(grey > 127))


def _ridges(grey: NDArray[Any]) -> NDArray[Any]:
    """What is no less bright than both its neighbours, along one direction at least; black is the rest."""
    around = np.pad(grey, 1)
    height, width = grey.shape

    def moved(down: int, right: int) -> NDArray[Any]:
        return np.asarray(around[1 + down : 1 + down + height, 1 + right : 1 + right + width])

    high = np.zeros(grey.shape, bool)
    for down, right in _AROUND:
        before, after = moved(-down, -right), moved(down, right)
        high |= (grey >= before) & (grey >= after) & ((grey > before) | (grey > after))
    return np.where(high, grey, 0)


def _thinned(white: NDArray[Any]) -> NDArray[Any]:
    """Lines one pixel wide: pixels that hold nothing together are taken from each side in turn until none is left."""
    edge = np.array([[-1, -1, -1], [0, 1, 0], [1, 1, 1]], np.int8)
    corner = np.array([[0, -1, -1], [1, 1, -1], [0, 1, 0]], np.int8)
    kernels = [np.rot90(kernel, turn).copy() for turn in range(4) for kernel in (edge, corner)]
    while True:
        before = np.count_nonzero(white)
        for kernel in kernels:
            white = white - cv2.morphologyEx(white, cv2.MORPH_HITMISS, kernel)
        if np.count_nonzero(white) == before:
            return white
