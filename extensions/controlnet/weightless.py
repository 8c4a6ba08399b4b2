"""Preprocessors that need no weights: OpenCV and numpy, quick enough for the web process."""

import zlib
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

Pixels = NDArray[np.uint8]
"""(H, W, 3), RGB."""
Mask = NDArray[np.uint8]
"""(H, W), 255 where it holds."""

BLOCK = 64
"""Annotators take sides that are multiples of this."""
MOST = 2**24
"""Pixels of a map."""
LATENT = 8
"""Pixels of a latent."""
SEAM = (7, 7)
"""Pixels: sd-webui-controlnet's control_net_inpaint_blur_sigma, which it takes for the size of a box."""


class Sliders(NamedTuple):
    a: float
    b: float


def resized(picture: Pixels, resolution: int) -> Pixels:
    """At `resolution` pixels on the shorter side. Raises ValueError for a strip that would be too long."""
    height, width = picture.shape[:2]
    factor = resolution / min(height, width)
    wanted = max(1, round(width * factor)), max(1, round(height * factor))
    if wanted[0] * wanted[1] > MOST:
        raise ValueError(f"a picture of {width} x {height} is too long for a map of {resolution} pixels")
    if wanted == (width, height):
        return picture
    return _pixels(cv2.resize(picture, wanted, interpolation=cv2.INTER_CUBIC if factor > 1 else cv2.INTER_AREA))


def padded(picture: Pixels) -> Pixels:
    """With its last row and column repeated until the sides are multiples of 64."""
    height, width = picture.shape[:2]
    return _pixels(np.pad(picture, ((0, -height % BLOCK), (0, -width % BLOCK), (0, 0)), mode="edge"))


def make(name: str, picture: Pixels, mask: Mask | None, resolution: int, sliders: Sliders) -> NDArray[np.uint8]:
    """The map, (H, W, 3); of `inpaint` ones (H, W, 4), transparent where the mask is white.

    `resolution` is 0 for what works at the picture's own size. Raises ValueError.
    """
    if resolution:
        picture = resized(picture, resolution)
    if name in ("inpaint", "inpaint_only"):
        if mask is None:
            raise ValueError(f"{name} needs a mask")
        return _with_hole(picture, mask)
    return _MAKERS[name](picture, sliders)


def finished(name: str, drawn: Pixels, original: Pixels, mask: Mask | None, sliders: Sliders) -> Pixels:
    """What an `is_finishing` preprocessor makes of the drawn picture and the unit's image, both of one size."""
    if name == "inpaint_only":
        return drawn if mask is None else _pasted(drawn, original, mask)
    if name == "recolor_luminance":
        return _with_channel(drawn, original, cv2.COLOR_RGB2LAB, cv2.COLOR_LAB2RGB, 0, sliders.a)
    if name == "recolor_intensity":
        return _with_channel(drawn, original, cv2.COLOR_RGB2HSV, cv2.COLOR_HSV2RGB, 2, sliders.a)
    fixed = _colours_of(drawn, original, int(sliders.a))
    return _sharpened(fixed, sliders.b) if name == "tile_colorfix+sharp" else fixed


# the makers


def _same(picture: Pixels, sliders: Sliders) -> Pixels:
    return picture


def _invert(picture: Pixels, sliders: Sliders) -> Pixels:
    return _pixels(255 - picture)


def _canny(picture: Pixels, sliders: Sliders) -> Pixels:
    return _rgb(cv2.Canny(np.ascontiguousarray(picture), sliders.a, sliders.b))


def _threshold(picture: Pixels, sliders: Sliders) -> Pixels:
    return _rgb(np.where(picture.min(axis=2) > sliders.a, 255, 0))


def _scribble_xdog(picture: Pixels, sliders: Sliders) -> Pixels:
    """White where a pixel is darker than what surrounds it."""
    darker = np.min(_blurred(picture, 5.0) - _blurred(picture, 0.5), axis=2)
    return _rgb(np.where(2 * darker > sliders.a, 255, 0))


def _lineart_standard(picture: Pixels, sliders: Sliders) -> Pixels:
    """White lines where the picture has dark ones, whatever its lighting (Apache-2.0 controlnet-aux has the idea)."""
    darker = np.min(_blurred(picture, 6.0) - picture, axis=2).clip(0, 255)
    lines = darker[darker > 8]
    usual = float(np.median(lines)) if lines.size else 0.0
    return _rgb((darker * (127 / max(16.0, usual))).clip(0, 255))


def _tile_resample(picture: Pixels, sliders: Sliders) -> Pixels:
    if sliders.a < 1.1:
        return picture
    height, width = picture.shape[:2]
    size = max(1, round(width / sliders.a)), max(1, round(height / sliders.a))
    return _pixels(cv2.resize(picture, size, interpolation=cv2.INTER_AREA))


def _blur_gaussian(picture: Pixels, sliders: Sliders) -> Pixels:
    return _pixels(cv2.GaussianBlur(picture, (0, 0), sliders.a))


def _shuffle(picture: Pixels, sliders: Sliders) -> Pixels:
    """The picture's colours and textures elsewhere: every pixel is taken from a place that a smooth noise names."""
    height, width = picture.shape[:2]
    rng = np.random.default_rng(zlib.crc32(picture.tobytes()))  # the same picture gives the same map
    x, y = (_smooth_noise(rng, height, width) * (side - 1) for side in (width, height))
    return _pixels(cv2.remap(picture, x, y, cv2.INTER_LINEAR))


def _smooth_noise(rng: np.random.Generator, height: int, width: int, size: int = 256) -> NDArray[np.float32]:
    """(H, W) in 0..1, whose hills are `size` pixels wide."""
    coarse = rng.random((height // size + 2, width // size + 2), np.float32)
    fine = cv2.resize(coarse, (width + 2 * size, height + 2 * size), interpolation=cv2.INTER_CUBIC)
    cut = fine[size : size + height, size : size + width]
    low, high = float(cut.min()), float(cut.max())
    return np.asarray((cut - low) / max(high - low, 1e-6), np.float32)


def _luminance(picture: Pixels, sliders: Sliders) -> Pixels:
    return _rgb(_corrected(cv2.cvtColor(picture, cv2.COLOR_RGB2LAB)[:, :, 0], sliders.a))


def _intensity(picture: Pixels, sliders: Sliders) -> Pixels:
    return _rgb(_corrected(cv2.cvtColor(picture, cv2.COLOR_RGB2HSV)[:, :, 2], sliders.a))


def _corrected(channel: NDArray[np.uint8], gamma: float) -> NDArray[np.uint8]:
    of_all = _pixels((np.arange(256) / 255) ** gamma * 255)
    return np.asarray(cv2.LUT(channel, of_all), np.uint8)


def _colour_grid(picture: Pixels, sliders: Sliders) -> Pixels:
    height, width = picture.shape[:2]
    cells = max(1, width // BLOCK), max(1, height // BLOCK)
    coarse = cv2.resize(picture, cells, interpolation=cv2.INTER_CUBIC)
    return _pixels(cv2.resize(coarse, (width, height), interpolation=cv2.INTER_NEAREST))


_MAKERS: Mapping[str, Callable[[Pixels, Sliders], Pixels]] = {
    "none": _same,
    "invert": _invert,
    "canny": _canny,
    "threshold": _threshold,
    "scribble_xdog": _scribble_xdog,
    "lineart_standard": _lineart_standard,
    "tile_resample": _tile_resample,
    "tile_colorfix": _same,
    "tile_colorfix+sharp": _same,
    "blur_gaussian": _blur_gaussian,
    "shuffle": _shuffle,
    "recolor_luminance": _luminance,
    "recolor_intensity": _intensity,
    "color": _colour_grid,
}


def _with_hole(picture: Pixels, mask: Mask) -> NDArray[np.uint8]:
    opaque = np.where(_fitted(mask, picture) > 127, 0, 255).astype(np.uint8)
    return np.dstack([picture, opaque])


# the finish


def _pasted(drawn: Pixels, original: Pixels, mask: Mask) -> Pixels:
    """The drawn picture inside the mask, the original elsewhere, with a soft seam beyond the mask's edge."""
    grown = cv2.dilate(np.where(_fitted(mask, drawn) > 127, 1.0, 0.0).astype(np.float32), np.ones(SEAM, np.uint8))
    share = cv2.blur(grown, SEAM)[:, :, None]
    return _pixels(drawn * share + original * (1 - share))


def _with_channel(drawn: Pixels, original: Pixels, there: int, back: int, index: int, gamma: float) -> Pixels:
    """The drawn picture's colours with the original's light."""
    ours, theirs = cv2.cvtColor(drawn, there), cv2.cvtColor(original, there)
    ours[:, :, index] = _corrected(theirs[:, :, index], gamma)
    return _pixels(cv2.cvtColor(ours, back))


def _colours_of(drawn: Pixels, original: Pixels, variation: int) -> Pixels:
    """The drawn picture's detail upon the original's colours; `variation` is how far it may stray, in latents."""
    side = LATENT * 2 * variation + 1
    stray = cv2.blur(original.astype(np.float32), (side, side)) - cv2.blur(drawn.astype(np.float32), (side, side))
    return _pixels(drawn + stray)


def _sharpened(picture: Pixels, sharpness: float) -> Pixels:
    return _pixels(picture + 0.5 * sharpness * (picture - _blurred(picture, 1.0)))


# numbers


def _blurred(picture: Pixels, sigma: float) -> NDArray[np.float32]:
    return np.asarray(cv2.GaussianBlur(picture.astype(np.float32), (0, 0), sigma))


def _fitted(mask: Mask, picture: Pixels) -> Mask:
    height, width = picture.shape[:2]
    if mask.shape == (height, width):
        return mask
    return _pixels(cv2.resize(mask, (width, height), interpolation=cv2.INTER_LINEAR))


def _rgb(grey: NDArray[Any]) -> Pixels:
    return np.repeat(_pixels(grey)[:, :, None], 3, axis=2)


def _pixels(values: Any) -> Pixels:
    if values.dtype == np.uint8:
        return np.asarray(values)
    return np.asarray(np.rint(values).clip(0, 255).astype(np.uint8))
