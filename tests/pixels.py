"""Pictures as numbers."""

import io

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from backend.result import Picture


def pixels(picture: Picture) -> NDArray[np.int16]:
    return np.asarray(Image.open(io.BytesIO(picture.data))).astype(np.int16)


def difference(a: Picture, b: Picture) -> int:
    """The largest, in steps of 255."""
    return int(np.abs(pixels(a) - pixels(b)).max())
