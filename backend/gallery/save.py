"""Where a picture's file lies, and how it comes there: `outputs/<day>/<job>-<index>-<seed>.png`.

A map's name ends in `-map` in place of the seed. The name depends on nothing but the job and the index, so that a job
that is run again after a crash writes over what it had left. Prompts and user names are in the picture's text and the
database, not in file names.
"""

import os
from datetime import datetime
from pathlib import Path

from PIL import Image

from backend import infotext
from backend.errors import StorageFull
from backend.files import write_atomically
from backend.result import Picture


def save(folder: Path, job: int, created: datetime, picture: Picture) -> Path:
    """Write the picture, whole or not at all; where it is below `folder`. Raises StorageFull."""
    day = _day(folder, created)
    try:
        _make_folder(day)
        path = _free(day / f"{job:06}-{picture.index:02}-{_ending(picture)}.png", picture)
        write_atomically(path, picture.data)
    except OSError as error:
        raise StorageFull(f"{day} cannot be written to ({error.strerror}); the picture was not saved") from error
    return path.relative_to(folder)


def tidy(folder: Path, job: int, created: datetime) -> None:
    """Remove what an attempt at this job was writing when it was killed; nobody may be at it now."""
    for half_written in _day(folder, created).glob(f".{job:06}-*.tmp"):
        half_written.unlink(missing_ok=True)


def _ending(picture: Picture) -> str:
    return str(picture.request.seed) if picture.role == "picture" else picture.role


def _day(folder: Path, created: datetime) -> Path:
    return folder / created.astimezone().strftime("%Y-%m-%d")


def _make_folder(path: Path) -> None:
    if path.is_dir():
        return
    path.mkdir(parents=True, exist_ok=True)
    if os.name != "nt":
        handle = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(handle)  # a power cut keeps the folder too
        finally:
            os.close(handle)


def _free(path: Path, picture: Picture) -> Path:
    """`path`, or its next variant where another data folder's job of that number has saved something else."""
    found, number = path, 1
    while found.exists() and not _is_same(found, picture):
        number += 1
        found = path.with_stem(f"{path.stem}-{number}")
    return found


def _is_same(path: Path, picture: Picture) -> bool:
    try:
        if path.read_bytes() == picture.data:
            return True
        with Image.open(path) as image:
            return infotext.of_picture(image) == picture.infotext
    except (OSError, ValueError, SyntaxError):
        return False
