"""Fetches weights of preprocessors from huggingface.co, one file after the other; what was broken off goes on later.

hf_hub_download of huggingface_hub 2 begins anew after a restart; its `http_get` goes on where a file ends.
"""

from __future__ import annotations

import hashlib
import logging
import os
import re
import shutil
import threading
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from backend.errors import gist

from .preprocessors import source

log = logging.getLogger(__name__)

PARTS = ".downloads"
"""Folder in the annotators' folder: files that are not whole yet."""
LARGEST = 8 * 2**30
"""Bytes of a file."""
SPARE = 2**28
"""Bytes that are left free on the disk."""


@dataclass
class Fetch:
    """How far a file has come."""

    file: str
    state: str = "waiting"
    """`waiting`, `running`, `done` or `failed`."""
    done: int = 0
    """Bytes."""
    total: int = 0
    error: str = ""


class Hub:
    """Downloads into a folder, in a thread that lives as long as there is something to fetch."""

    def __init__(self, folder: Path, endpoint: str | None = None) -> None:
        self._folder = folder
        self._endpoint = endpoint
        self._lock = threading.Lock()
        self._fetches: dict[str, Fetch] = {}
        self._thread: threading.Thread | None = None

    def start(self, files: Iterable[str]) -> None:
        """Fetch these files of `Preprocessor.needs`, unless that is under way."""
        with self._lock:
            for file in files:
                if file not in self._fetches or self._fetches[file].state in ("done", "failed"):
                    self._fetches[file] = Fetch(file)
            if self._thread is None:
                self._thread = threading.Thread(target=self._fetch_all, name="hub", daemon=True)
                self._thread.start()

    def state(self) -> list[dict[str, Any]]:
        with self._lock:
            return [asdict(fetch) for fetch in self._fetches.values()]

    def _fetch_all(self) -> None:
        while True:
            with self._lock:
                fetch = next((f for f in self._fetches.values() if f.state == "waiting"), None)
                if fetch is None:
                    self._thread = None
                    return
                fetch.state = "running"
            try:
                self._fetch(fetch)
            except Exception as error:  # noqa: BLE001 (the network, the hub, the disk; it is told)
                log.warning("%s was not fetched: %s", fetch.file, error)
                fetch.error = gist(error)
                fetch.state = "failed"
            else:
                log.info("%s was fetched, %d MB", fetch.file, fetch.total >> 20)
                fetch.state = "done"

    def _fetch(self, fetch: Fetch) -> None:
        from huggingface_hub import get_hf_file_metadata, hf_hub_url
        from huggingface_hub.file_download import http_get

        repo, path = source(fetch.file).repo, source(fetch.file).path
        found = get_hf_file_metadata(
            hf_hub_url(repo, path, endpoint=self._endpoint), token=False, endpoint=self._endpoint
        )
        size, tag = found.size, re.sub(r"[^\w-]", "", found.etag or "")[:64]
        if not size or size > LARGEST or not tag:
            raise OSError(f"the hub tells no fitting size of {path} ({size})")
        part = self._folder / PARTS / f"{Path(fetch.file).name}.{tag}"
        part.parent.mkdir(parents=True, exist_ok=True)
        fetch.total, fetch.done = size, part.stat().st_size if part.exists() else 0
        if shutil.disk_usage(part.parent).free < size - fetch.done + SPARE:
            raise OSError(f"the disk has no room for {path}: {size >> 20} MB are needed")
        with open(part, "ab") as file:
            if fetch.done < size:
                url = hf_hub_url(repo, path, revision=found.commit_hash, endpoint=self._endpoint)
                http_get(url, file, resume_size=fetch.done, expected_size=size, tqdm_class=_bar(fetch))
            file.flush()
            os.fsync(file.fileno())
        if len(tag) == 64 and _sha256(part) != tag:  # git LFS: the tag is the hash
            part.unlink()
            raise OSError(f"{path} arrived damaged; fetch it again")
        target = self._folder / fetch.file
        target.parent.mkdir(parents=True, exist_ok=True)
        part.replace(target)


def _bar(fetch: Fetch) -> Any:
    """A progress bar that is not drawn."""
    from huggingface_hub.utils import tqdm  # type: ignore[attr-defined]

    class Bar(tqdm):
        def __init__(self, *args: Any, **how: Any) -> None:
            how.pop("name", None)
            super().__init__(*args, **{**how, "disable": True})  # type: ignore[no-untyped-call]

        def update(self, n: float | None = 1) -> None:
            fetch.done += int(n or 0)

    return Bar


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
