"""Files that are whole or not there: written under a temporary name, flushed to the disk, then renamed."""

import errno
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
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
