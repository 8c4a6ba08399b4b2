"""A file that one process holds at a time; the operating system lets go of it when the holder dies."""

import contextlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

_BYTE = 1 << 30  # Windows locks bytes, and nobody else can read those: one far behind the content


@contextlib.contextmanager
def held(path: Path) -> Iterator[BinaryIO | None]:
    """The open file `path`, made if need be, while this process alone holds it; None if another one does."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(os.open(path, os.O_RDWR | os.O_CREAT, 0o600), "r+b", buffering=0) as file:
        if not _try_lock(file.fileno()):
            yield None
            return
        try:
            yield file
        finally:
            _unlock(file.fileno())


def _try_lock(handle: int) -> bool:
    try:
        if sys.platform == "win32":
            import msvcrt

            os.lseek(handle, _BYTE, os.SEEK_SET)
            msvcrt.locking(handle, msvcrt.LK_NBLCK, 1)
            os.lseek(handle, 0, os.SEEK_SET)
        else:
            import fcntl

            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def _unlock(handle: int) -> None:
    if sys.platform == "win32":
        import msvcrt

        os.lseek(handle, _BYTE, os.SEEK_SET)
        msvcrt.locking(handle, msvcrt.LK_UNLCK, 1)
    # elsewhere closing the file is enough
