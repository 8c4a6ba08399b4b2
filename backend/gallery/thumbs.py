"""Small WebP copies of pictures, made when first asked for and kept on disk under the picture's hash."""

import io
import logging
from pathlib import Path

from PIL import Image

from backend.errors import AtelierError, InvalidRequest, Problem
from backend.files import write_atomically
from backend.images import decode

log = logging.getLogger(__name__)

SIZES = (64, 128, 256, 512)
"""Pixels of the longer side."""


class Thumbs:
    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def of(self, picture: Path, sha256: str, size: int) -> bytes:
        """A WebP of the picture in the file `picture`. Raises InvalidRequest for a size that is not in SIZES."""
        if size not in SIZES:
            raise InvalidRequest(Problem("s", f"must be one of {', '.join(map(str, SIZES))}, not {size}"))
        kept = self.folder / str(size) / sha256[:2] / f"{sha256}.webp"
        try:
            return kept.read_bytes()
        except OSError:
            data = shrunk(picture.read_bytes(), size)
        try:
            kept.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(kept, data)
        except (OSError, AtelierError) as error:  # it can be seen all the same
            log.debug("thumbnail of %s is not kept: %s", picture.name, error)
        return data


def shrunk(data: bytes, size: int) -> bytes:
    """A picture file as a WebP of at most `size` pixels a side."""
    picture = decode(data)
    picture.thumbnail((size, size), Image.Resampling.LANCZOS)
    out = io.BytesIO()
    picture.save(out, "WEBP", quality=80, method=4)
    return out.getvalue()
