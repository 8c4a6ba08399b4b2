"""Disks that are elsewhere, or full."""

import errno
import os
import shutil
from pathlib import Path
from typing import Any

import pytest


def elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every folder is on a disk of its own."""
    replace = os.replace

    def across(source: Any, target: Any) -> None:
        if Path(source).parent != Path(target).parent:
            raise OSError(errno.EXDEV, os.strerror(errno.EXDEV), str(source))
        replace(source, target)

    monkeypatch.setattr(os, "replace", across)


def full_at(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """There is no room for a copy of a file of that name."""
    copy = shutil.copyfile

    def copying(source: Any, target: Any, **how: Any) -> Any:
        if Path(source).name == name:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(target))
        return copy(source, target, **how)

    monkeypatch.setattr(shutil, "copyfile", copying)
