"""Files that are whole or not there: written under a temporary name, flushed to the disk, then renamed."""

import errno
import os
import secrets
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from backend.errors import StorageFull

_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


def write_atomically(path: Path, data: bytes) -> None:
    """Put `data` at `path`, replacing what is there. Raises StorageFull with nothing left behind."""
    with replacing(path) as file:
        file.write(data)


@contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """A file to write, which takes the place of `path` when it is whole. Raises StorageFull, nothing left behind."""
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        with open(temporary, "xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        _sync_folder(path.parent)
    except BaseException as error:
        temporary.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.errno in _FULL:
            raise StorageFull(f"the disk is full: {path.name} was not saved; make room in {path.parent}") from error
        if isinstance(error, OSError) and error.errno in (errno.EROFS, errno.EACCES, errno.EPERM):
            reason = f"{path.parent} cannot be written to ({error.strerror}); {path.name} was not saved"
            raise StorageFull(reason) from error
        raise


def move(source: Path, target: Path) -> None:
    """Move a file or folder to where nothing is, on another disk too; if it fails, it stays. Raises OSError."""
    try:
        os.replace(source, target)
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise
        _move_across(source, target)


def move_together(moves: Sequence[tuple[Path, Path]]) -> None:
    """All of them, or none. Raises OSError."""
    done: list[tuple[Path, Path]] = []
    try:
        for source, target in moves:
            move(source, target)
            done.append((source, target))
    except BaseException:
        for source, target in reversed(done):
            move(target, source)
        raise


def _move_across(source: Path, target: Path) -> None:
    copied, gone = (path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp") for path in (target, source))
    try:
        for path in (source, *source.rglob("*")):  # folders before what lies in them
            place = copied / path.relative_to(source)
            if path.is_dir() and not path.is_symlink():
                place.mkdir()
            else:
                _copy(path, place)
        os.replace(source, gone)  # or it is not allowed, and stays
        os.replace(copied, target)
    finally:
        remove(copied)
    remove(gone)


def _copy(source: Path, target: Path) -> None:
    """Flushed to the disk, with its times; a link stays one."""
    shutil.copyfile(source, target, follow_symlinks=False)
    if not target.is_symlink():
        with open(target, "r+b") as file:
            os.fsync(file.fileno())
    shutil.copystat(source, target, follow_symlinks=False)


def remove(path: Path) -> None:
    """A file or folder, as far as it is there and goes."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with suppress(OSError):
            path.unlink()


@contextmanager
def storing() -> Iterator[None]:
    """Says what the disk says against it. Raises StorageFull."""
    try:
        yield
    except OSError as error:
        raise StorageFull(f"the disk does not take it: {error.strerror}") from error


def _sync_folder(folder: Path) -> None:
    if os.name == "nt":  # Windows has no handle on folders to flush
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
