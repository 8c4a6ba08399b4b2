"""Images by name: a request says which images it uses, it never carries them."""

import hashlib
import io
import os
import re
import threading
import time
import warnings
from collections.abc import Iterator
from contextlib import suppress
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
PREVIEW_SIDE, THUMB_SIDE = 768, 384
DAY = 24 * 60 * 60
BACKGROUND = "#ffffff"  # A1111's `img2img_background_color`


class ImageStore:
    """Input images in a folder, each once, under the hash of its bytes; the file's time is that of its last use."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._lock = threading.Lock()

    def put(self, data: bytes) -> str:
        """Keep an uploaded file as it came; raises ImageRefused if it is no whole picture of a known format."""
        check(data)
        ref = hashlib.sha256(data).hexdigest()
        path = self.path(ref)
        with self._lock:
            if not _in_use(path):
                path.parent.mkdir(parents=True, exist_ok=True)
                write_atomically(path, data)
        return ref

    def get(self, ref: str) -> Image.Image:
        """The picture, upright, decoded; mode RGB or RGBA."""
        return decode(self.read(ref))

    def read(self, ref: str) -> bytes:
        return self.file(ref).read_bytes()

    def file(self, ref: str) -> Path:
        """Where it lies. Raises NotFound."""
        path = self.path(ref)
        if not _in_use(path):
            raise NotFound(f"there is no image {ref[:12]}; upload it again")
        return path

    def unused_since(self, moment: float) -> Iterator[str]:
        """Those that nobody has asked for since then, to about a day."""
        for path in self.folder.glob("??/*"):
            if re.fullmatch(r"[0-9a-f]{64}", path.name) and _used(path) < moment:
                yield path.name

    def forget(self, ref: str, moment: float) -> bool:
        """Delete it, unless it has been used since that moment."""
        path = self.path(ref)
        with self._lock:
            if _used(path) >= moment:
                return False
            path.unlink(missing_ok=True)
        return True

    def path(self, ref: str) -> Path:
        if not re.fullmatch(r"[0-9a-f]{64}", ref):
            raise NotFound("that is not the name of an image")
        return self.folder / ref[:2] / ref

    def __contains__(self, ref: str) -> bool:
        return _in_use(self.path(ref))


class Previews:
    """Pictures that stand for models: one beside the file, and a small copy in `folder`, made when first asked for."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._decoding = threading.Semaphore(2)  # a picture may take 160 MB of memory

    def keep(self, picture: Image.Image, file: Path) -> None:
        """Beside the model, as a PNG."""
        write_atomically(file, _shrunk(picture, PREVIEW_SIDE, "PNG"))

    def small(self, id: str, source: Path) -> Path:
        """A WebP of the picture in the file `source`. Raises NotFound."""
        try:
            path = self._folder / f"{id}-{source.stat().st_mtime_ns:x}.webp"
            if path.exists():
                return path
            with self._decoding:
                data = _shrunk(decode(source.read_bytes()), THUMB_SIDE, "WEBP")
        except (ImageRefused, OSError) as error:
            raise NotFound(f"{source.name}: {error}") from None
        path.parent.mkdir(parents=True, exist_ok=True)
        for old in path.parent.glob(f"{id}-*.webp"):
            old.unlink(missing_ok=True)
        write_atomically(path, data)
        return path


def _shrunk(picture: Image.Image, side: int, kind: str) -> bytes:
    small = flatten(picture)
    small.thumbnail((side, side), Image.Resampling.LANCZOS)
    file = io.BytesIO()
    small.save(file, kind)
    return file.getvalue()


def _used(path: Path) -> float:
    """When it was used last; in the future if it is not there."""
    try:
        return path.stat().st_mtime
    except FileNotFoundError:
        return float("inf")


def _in_use(path: Path) -> bool:
    """Whether it is there; that somebody asks is a use, which is noted once a day."""
    used = _used(path)
    if used < time.time() - DAY:
        with suppress(PermissionError):  # another user's file; it is there all the same
            os.utime(path)
    return used < float("inf")


def check(data: bytes) -> tuple[int, int]:
    """Width and height of a picture that can be decoded in full; ImageRefused says what is wrong with it."""
    return decode(data).size


def refuse_large(size: int) -> None:
    """Raises ImageRefused for an image file of more bytes than are taken."""
    if size > MAX_BYTES:
        raise ImageRefused(f"the image file has {size / 2**20:.0f} MB; at most {MAX_BYTES // 2**20} are taken")


def decode(data: bytes) -> Image.Image:
    """RGB or RGBA, turned upright as its EXIF says. Raises ImageRefused."""
    refuse_large(len(data))
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
            if upright.mode.startswith("I"):  # 16 bits of grey, as depth maps have: Pillow would cut off all above 255
                upright = upright.point(lambda value: value / 257).convert("L")
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
