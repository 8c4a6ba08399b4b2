"""Which part of a picture is worked on, and at what size: the broker between any picture and what a model can do.

All boxes are in pixels of the picture.
"""

from __future__ import annotations

import math
import re
from typing import TYPE_CHECKING, NamedTuple

from PIL import Image, ImageFilter, ImageOps

from backend.extension import GenerationRequest, ImageStore, InvalidRequest, Problem

if TYPE_CHECKING:
    from . import InpaintParams

SIDES = 64, 4096
"""What a request may ask for as width or height."""
STEP = 8
NEAR = 0.8, 1.25
"""Scales so near to 1 that the picture is rather left as it is than resampled."""


class Box(NamedTuple):
    left: int
    top: int
    right: int
    bottom: int

    @classmethod
    def read(cls, text: str) -> Box:
        """From "512x384+64+0". Raises ValueError."""
        found = re.fullmatch(r"(\d{1,5})x(\d{1,5})\+(\d{1,5})\+(\d{1,5})", text)
        if not found or not int(found[1]) or not int(found[2]):
            raise ValueError("should be written as 512x384+64+0: width x height + left + top")
        width, height, left, top = map(int, found.groups())
        return cls(left, top, left + width, top + height)

    def __str__(self) -> str:
        return f"{self.width}x{self.height}+{self.left}+{self.top}"

    @property
    def width(self) -> int:
        return self.right - self.left

    @property
    def height(self) -> int:
        return self.bottom - self.top

    def holds(self, other: Box) -> bool:
        return (
            self.left <= other.left
            and self.top <= other.top
            and self.right >= other.right
            and self.bottom >= other.bottom
        )


def find(request: GenerationRequest, params: InpaintParams, images: ImageStore) -> tuple[Box, tuple[int, int]] | None:
    """The box that is worked on and the size for it; None: all, as the resize mode brings it to width and height.

    Raises InvalidRequest.
    """
    assert request.init_image
    size = images.get(request.init_image).size
    mask = read_mask(params, images, size)
    whole, masked = Box(0, 0, *size), mask.getbbox()
    if masked is None:
        raise _wrong("the mask is empty: paint over what is to be drawn anew")
    asked = request.width, request.height
    if params.region:
        box = Box.read(params.region)
        if whole.holds(box) and box.holds(Box(*masked)):  # else it was that of another mask
            return box, asked
    if params.area == "whole" and params.resolution == "exact":
        return None
    box = whole if params.area == "whole" else around(Box(*masked), params.padding, asked, size)
    return box, asked if params.resolution == "exact" else working_size(box, asked)


def read_mask(params: InpaintParams, images: ImageStore, size: tuple[int, int]) -> Image.Image:
    """An L picture of that size, 255 where it is drawn anew. Raises InvalidRequest if the mask has another shape."""
    image = images.get(params.mask)
    clear = image.mode == "RGBA" and image.getchannel("A").getextrema() != (255, 255)
    mask = image.getchannel("A") if clear else image.convert("L")
    if mask.size != size:
        if abs(mask.width * size[1] - mask.height * size[0]) > max(size):  # by more than a row of pixels
            sizes = f"{mask.width} x {mask.height} pixels, the picture {size[0]} x {size[1]}"
            raise _wrong(f"the mask has {sizes}: they must be of one shape")
        mask = mask.resize(size, Image.Resampling.BILINEAR)
    if params.mode == "not_masked":
        mask = ImageOps.invert(mask)
    return mask.filter(ImageFilter.GaussianBlur(params.blur)) if params.blur else mask


def around(masked: Box, padding: int, ratio: tuple[int, int], size: tuple[int, int]) -> Box:
    """`masked` and `padding` pixels more, grown to the ratio of width to height as far as the picture allows."""
    left, right = max(masked.left - padding, 0), min(masked.right + padding, size[0])
    top, bottom = max(masked.top - padding, 0), min(masked.bottom + padding, size[1])
    wide, high = right - left, bottom - top
    width = min(max(wide, round(high * ratio[0] / ratio[1])), size[0])
    height = min(max(high, round(wide * ratio[1] / ratio[0])), size[1])
    left, top = _within(left + right - width, size[0] - width), _within(top + bottom - height, size[1] - height)
    return Box(left, top, left + width, top + height)


def working_size(box: Box, budget: tuple[int, int]) -> tuple[int, int]:
    """Width and height in the shape of the box, in steps of 8, with about as many pixels as the budget."""
    scale = math.sqrt(budget[0] * budget[1] / (box.width * box.height))
    if NEAR[0] <= scale <= NEAR[1]:
        scale = 1.0
    scale = max(scale, SIDES[0] / min(box.width, box.height))
    scale = min(scale, SIDES[1] / max(box.width, box.height))
    return _side(box.width * scale), _side(box.height * scale)


def _side(length: float) -> int:
    return min(max(round(length / STEP) * STEP, SIDES[0]), SIDES[1])


def _within(twice: int, last: int) -> int:
    """The nearest place to half of `twice` that is in 0 .. last."""
    return min(max(twice // 2, 0), last)


def _wrong(message: str) -> InvalidRequest:
    return InvalidRequest(Problem("extensions.inpaint.mask", message))
