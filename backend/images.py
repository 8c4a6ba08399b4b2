"""Images by name: a request says which images it uses, it never carries them."""

import hashlib
import io
import re
import threading
import warnings
from pathlib import Path
from typing import Annotated

from PIL import Image, ImageOps, UnidentifiedImageError
from pydantic import StringConstraints

from backend.errors import ImageRefused, NotFound
from backend.files import write_atomically

ImageRef = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
"""The SHA-256 of an image file's bytes, in hexadecimal."""

FORMATS = ("PNG", "JPEG", "WEBP")
MAX_PIXELS = 40_000_000
MAX_BYTES = 64 * 1024 * 1024
BACKGROUND = "#ffffff"  # A1111's `img2img_background_color`


class ImageStore:
    """Input images in a folder, each once, under the hash of its bytes."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._lock = threading.Lock()

    def put(self, data: bytes) -> str:
        """Keep an uploaded file as it came; raises ImageRefused if it is no whole picture of a known format."""
        check(data)
        ref = hashlib.sha256(data).hexdigest()
        path = self.path(ref)
        with self._lock:
            if not path.exists():
                path.parent.mkdir(parents=True, exist_ok=True)
                write_atomically(path, data)
        return ref

    def get(self, ref: str) -> Image.Image:
        """The picture, upright, decoded; mode RGB or RGBA."""
        return decode(self.read(ref))

    def read(self, ref: str) -> bytes:
        try:
            return self.path(ref).read_bytes()
        except FileNotFoundError:
            raise NotFound(f"there is no image {ref[:12]}; upload it again") from None

    def path(self, ref: str) -> Path:
        if not re.fullmatch(r"[0-9a-f]{64}", ref):
            raise NotFound("that is not the name of an image")
        return self.folder / ref[:2] / ref

    def __contains__(self, ref: str) -> bool:
        return self.path(ref).exists()


def check(data: bytes) -> tuple[int, int]:
    """Width and height of a picture that can be decoded in full; ImageRefused says what is wrong with it."""
    return decode(data).size


def decode(data: bytes) -> Image.Image:
    """RGB or RGBA, turned upright as its EXIF says. Raises ImageRefused."""
    if len(data) > MAX_BYTES:
        raise ImageRefused(f"the image file has {len(data) / 2**20:.0f} MB; at most {MAX_BYTES // 2**20} are taken")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # the limit below is stricter
            picture = Image.open(io.BytesIO(data), formats=FORMATS)
            width, height = picture.size
            if width * height > MAX_PIXELS:
                raise ImageRefused(
                    f"the image has {width} x {height} pixels; at most {MAX_PIXELS // 10**6} million are taken"
                )
            picture.load()
            upright = ImageOps.exif_transpose(picture)
    except UnidentifiedImageError:
        raise ImageRefused(f"the file is not a whole picture in one of the formats {', '.join(FORMATS)}") from None
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise ImageRefused(f"the image file is damaged or cut short ({error})") from None
    has_alpha = upright.mode in ("RGBA", "LA", "PA") or "transparency" in upright.info
    return upright.convert("RGBA" if has_alpha else "RGB")


def flatten(picture: Image.Image) -> Image.Image:
    """RGB; what is transparent shows the background."""
    if picture.mode != "RGBA":
        return picture.convert("RGB")
    background = Image.new("RGBA", picture.size, BACKGROUND)
    return Image.alpha_composite(background, picture).convert("RGB")
