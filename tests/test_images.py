"""Input images: whole pictures of known formats, each kept once, under a name that is no path."""

import errno
import io
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from backend.errors import ImageRefused, NotFound, StorageFull
from backend.files import write_atomically
from backend.images import ImageStore


def png(width: int = 8, height: int = 8, mode: str = "RGB", **options: object) -> bytes:
    stream = io.BytesIO()
    Image.new(mode, (width, height)).save(stream, "PNG", **options)
    return stream.getvalue()


@pytest.fixture
def store(tmp_path: Path) -> ImageStore:
    return ImageStore(tmp_path)


def test_an_image_comes_back_as_it_was(store: ImageStore) -> None:
    data = png()
    ref = store.put(data)
    assert store.read(ref) == data
    assert store.put(data) == ref
    assert ref in store
    assert len([p for p in store.folder.rglob("*") if p.is_file()]) == 1


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "not a whole picture"),
        (b"<svg onload='alert(1)'/>", "not a whole picture"),
        (png(2000, 2000)[:-400], "damaged"),
        (png(64, 64)[:60], "not a whole picture|damaged"),
        (png(10_000, 5_000, "1"), "50000000|pixels"),
    ],
)
def test_what_is_no_picture_is_refused(store: ImageStore, data: bytes, reason: str) -> None:
    with pytest.raises(ImageRefused, match=reason):
        store.put(data)
    assert not list(store.folder.rglob("*"))


def test_alpha_is_kept_and_palettes_are_not(store: ImageStore) -> None:
    assert store.get(store.put(png(mode="RGBA"))).mode == "RGBA"
    assert store.get(store.put(png(mode="P"))).mode == "RGB"
    assert store.get(store.put(png(mode="L"))).mode == "RGB"


def test_a_depth_map_of_16_bits_keeps_its_greys(store: ImageStore) -> None:
    file = io.BytesIO()
    Image.fromarray(np.arange(0, 65536, 257, np.uint16).reshape(16, 16)).save(file, "PNG")
    grey = np.asarray(store.get(store.put(file.getvalue())))
    assert np.array_equal(grey, np.arange(256).reshape(16, 16, 1).repeat(3, axis=2))


def test_a_photo_is_turned_upright(store: ImageStore) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    assert store.get(store.put(png(8, 16, exif=exif))).size == (16, 8)


@pytest.mark.parametrize("name", ["../secret", "a" * 63, "A" * 64, "", "/etc/passwd", "a" * 64 + "\n"])
def test_only_hashes_are_names(store: ImageStore, name: str) -> None:
    with pytest.raises(NotFound):
        store.get(name)


def test_a_write_that_fails_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a"
    write_atomically(path, b"old")

    def full(handle: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StorageFull, match="disk is full"):
        write_atomically(path, b"new")
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["a"]
