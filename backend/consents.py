"""Which files that could carry a program an administrator has consented to read all the same; no torch.

A consent is for one file as it is: it names the SHA-256 of its bytes.
"""

import hashlib
import json
import threading
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from backend import files

PICKLES = (".ckpt", ".pt", ".pth", ".bin")
"""Endings of files that are read by running the instructions in them."""


def _digest(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


class Consents:
    """`file` holds them: `{sha256: {"file": name, "size": bytes, "by": who, "at": time}}`."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._turn = threading.Lock()

    def give(self, path: Path, by: str = "") -> str:
        """Consent to reading this very file; its SHA-256."""
        digest = _digest(path)
        with self._turn:
            at = datetime.now(UTC).isoformat(timespec="seconds")
            about = {"file": path.name, "size": path.stat().st_size, "by": by, "at": at}
            self._write({**self._read(), digest: about})
        return digest

    def withdraw(self, digest: str) -> None:
        with self._turn:
            self._write({known: about for known, about in self._read().items() if known != digest})

    def given(self) -> frozenset[str]:
        """The SHA-256 of every file that there is consent for."""
        return frozenset(self._read())

    def is_given(self, path: Path, digest: Callable[[Path], str] = _digest) -> bool:
        """`digest` is one that may remember; only files of a size that there is consent for are read."""
        given = self._read()
        try:
            size = path.stat().st_size
            return any(about.get("size") == size for about in given.values()) and digest(path) in given
        except OSError:
            return False

    def _read(self) -> dict[str, Any]:
        """What cannot be read is no consent."""
        try:
            content = json.loads(self._file.read_text("utf-8"))
        except (OSError, ValueError):
            return {}
        known = content.items() if isinstance(content, dict) else ()
        return {digest: about for digest, about in known if isinstance(about, dict)}

    def _write(self, content: dict[str, Any]) -> None:
        self._file.parent.mkdir(parents=True, exist_ok=True)
        files.write_atomically(self._file, json.dumps(content, indent=2).encode())


def is_pickle(path: Path) -> bool:
    return path.suffix.lower() in PICKLES
