"""Pictures as numbers."""

import io

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from backend.images import ImageStore
from backend.result import Picture


def pixels(picture: Picture) -> NDArray[np.int16]:
    return np.asarray(Image.open(io.BytesIO(picture.data))).astype(np.int16)


def difference(a: Picture, b: Picture) -> int:
    """The largest, in steps of 255."""
    return int(np.abs(pixels(a) - pixels(b)).max())


def photo(width: int = 64, height: int = 64) -> Image.Image:
    """No two pixels alike."""
    rows, columns = np.mgrid[0:height, 0:width]
    return Image.fromarray(np.stack([columns * 255 // width, rows * 255 // height, columns], 2).astype(np.uint8))


def left_half(size: int = 64) -> Image.Image:
    """A mask of it."""
    mask = Image.new("L", (size, size))
    mask.paste(255, (0, 0, size // 2, size))
    return mask


def put(images: ImageStore, picture: Image.Image) -> str:
    file = io.BytesIO()
    picture.save(file, "PNG")
    return images.put(file.getvalue())
