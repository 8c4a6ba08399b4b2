"""The downloads of an instance: several may wait, one at a time runs from each host, each can pause and go on.

What is not whole lies in `.downloads` in the models folder, with a record of what it is to be; it moves to its place
in one step when all of it is there and has been checked. After a restart all that was under way is paused: nothing is
fetched unasked.
"""

import json
import logging
import os
import re
import secrets
import shutil
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, Literal, cast

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from backend.catalog import Kind, sidecars
from backend.catalog.catalog import kind_of
from backend.downloads.fetch import TEXTS, File, fetch
from backend.downloads.network import Network, host_of
from backend.downloads.sources import FOLDERS, SINGLE, Option, safe_name
from backend.errors import AtelierError, Conflict, NotFound, Refused, StorageFull
from backend.files import move, write_atomically
from backend.locks import held

log = logging.getLogger(__name__)

PARTS = ".downloads"
RECORD = "download.json"
LOCK = "lock"
"""A file in a download's folder, which the process that fetches it holds."""
MAX_OPEN = 50
PACE = 8.0
"""Seconds over which the speed is taken."""
State = Literal["waiting", "running", "paused", "failed", "done"]


class Wanted(BaseModel):
    """What a download is to be; its record."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    id: Annotated[str, Field(pattern="^[0-9a-f]{16}$")]
    name: str
    """Of the file or folder, below the kind's folder."""
    kind: str
    files: tuple[File, ...]
    is_folder: bool
    roughly: int = 0
    """Bytes, where the source knows no better."""
    about: dict[str, Any] = {}
    """What goes onto its card."""


@dataclass
class Download:
    """How far one has come."""

    wanted: Wanted
    state: State = "waiting"
    done: int = 0
    """Bytes."""
    total: int = 0
    """0: not known yet."""
    error: str = ""
    marks: deque[tuple[float, int]] = field(default_factory=lambda: deque(maxlen=64))
    """When how many bytes were here."""

    def view(self) -> dict[str, Any]:
        speed = _speed(self.marks) if self.state == "running" else 0.0
        left = max(0, self.total - self.done)
        return {
            "id": self.wanted.id,
            "name": self.wanted.name,
            "kind": self.wanted.kind,
            "source": self.wanted.about.get("source", ""),
            "state": self.state,
            "done": self.done,
            "total": self.total,
            "speed": round(speed),
            "eta": round(left / speed) if speed and self.total else None,
            "error": self.error,
        }


class _Halted(Exception):
    """Somebody has paused or cancelled it."""


class Downloads:
    """`installed` is told of each new file or folder."""

    def __init__(
        self, models: Path, network: Callable[[], Network], installed: Callable[[Path], None] = lambda path: None
    ) -> None:
        self._models = models
        self._parts = models / PARTS
        self._network = network
        self._installed = installed
        self._lock = threading.Lock()
        self._busy: set[str] = set()
        """Hosts from which something is being fetched."""
        self._downloads = {d.wanted.id: d for d in self._left_over()}

    def view(self) -> list[dict[str, Any]]:
        with self._lock:
            return [download.view() for download in self._downloads.values()]

    def add(self, option: Option, *, name: str = "", kind: str = "", sha256: str = "", pickle: bool = False) -> str:
        """Queue what lies at a source, or go on with it where that was broken off; its id. Raises Refused or Conflict.

        `pickle`: an administrator wants it though it can run code when it is opened; it is stored, and not opened.
        """
        if option.is_pickle and not pickle:
            raise Refused(f"{option.name} is a pickle, which can run code when it is opened; say so if you want it")
        wanted = self._wanted(option, name, kind or option.kind, sha256)
        with self._lock:
            id = self._taken_up(wanted) or self._begun(wanted)
        self._go_on()
        return id

    def pause(self, id: str) -> None:
        with self._lock:
            download = self._get(id)
            if download.state in ("waiting", "running"):
                download.state = "paused"

    def resume(self, id: str) -> None:
        with self._lock:
            download = self._get(id)
            if download.state in ("paused", "failed"):
                download.state, download.error = "waiting", ""
        self._go_on()

    def cancel(self, id: str) -> None:
        """Forget it, with all that has come of it; what is whole and in its place stays."""
        with self._lock:
            download = self._downloads.pop(id) if id in self._downloads else self._get(id)
            was_running = download.state == "running"
            download.state = "paused"
            if not was_running:  # else its thread clears up when it notices
                self._discard(download.wanted)

    def close(self) -> None:
        """Pause everything."""
        with self._lock:
            for download in self._downloads.values():
                if download.state in ("waiting", "running"):
                    download.state = "paused"

    # --- how it is done

    def _taken_up(self, wanted: Wanted) -> str:
        """The id of one that was broken off and is the same; empty: there is none."""
        for known in self._downloads.values():
            is_same = wanted.model_copy(update={"id": known.wanted.id}) == known.wanted
            if is_same and known.state in ("paused", "failed"):
                known.state, known.error = "waiting", ""
                return known.wanted.id
        return ""

    def _begun(self, wanted: Wanted) -> str:
        target = self._target(wanted)
        open_ones = [download for download in self._downloads.values() if download.state != "done"]
        self._check_free(wanted)
        if any(self._target(download.wanted) == target for download in open_ones):
            raise Conflict(f"{wanted.name} is being downloaded already")
        if len(open_ones) >= MAX_OPEN:
            raise Conflict(f"{MAX_OPEN} downloads are under way; cancel some or wait for them")
        self._folder(wanted).mkdir(parents=True)
        write_atomically(self._folder(wanted) / RECORD, wanted.model_dump_json().encode())
        self._downloads[wanted.id] = Download(wanted, total=_total(wanted))
        return wanted.id

    def _go_on(self) -> None:
        """A thread for each host that has something waiting and none yet."""
        with self._lock:
            for download in self._downloads.values():
                host = host_of(download.wanted.files[0].url)
                if download.state == "waiting" and host not in self._busy:
                    self._busy.add(host)
                    threading.Thread(target=self._run, args=(host,), name=f"download {host}", daemon=True).start()

    def _run(self, host: str) -> None:
        while download := self._next(host):
            wanted = download.wanted
            try:
                with held(self._folder(wanted) / LOCK) as lock:
                    if lock is None:
                        raise Conflict("another process downloads it: the page, or `python app.py models add`")
                    target = self._fetch(download)
                self._end_well(download, target)
            except _Halted:
                pass
            except AtelierError as error:
                log.warning("%s was not downloaded: %s", wanted.name, error)
                self._fail(download, str(error))
            except Exception as error:  # whatever the disk or a server thinks of; the others go on
                log.exception("%s was not downloaded", wanted.name)
                self._fail(download, f"it failed ({type(error).__name__}); the server's log says more")
            with self._lock:
                if wanted.id not in self._downloads:  # cancelled
                    self._discard(wanted)

    def _next(self, host: str) -> Download | None:
        with self._lock:
            for download in self._downloads.values():
                if download.state == "waiting" and host_of(download.wanted.files[0].url) == host:
                    download.state = "running"
                    download.marks.clear()
                    return download
            self._busy.discard(host)
            return None

    def _fail(self, download: Download, error: str) -> None:
        with self._lock:
            if download.state == "running":
                download.state, download.error = "failed", error

    def _fetch(self, download: Download) -> Path:
        """Where it lies then."""
        wanted, folder = download.wanted, self._folder(download.wanted)
        self._check_free(wanted)
        network = self._network()
        before = 0
        for file in wanted.files:
            part = folder / "content" / PurePosixPath(file.name)
            if not (is_whole := part.exists()):
                fetch(network, file, _part_of(part), self._told(download, before))
            before += (part if is_whole else _part_of(part)).stat().st_size
            if not is_whole:
                os.replace(_part_of(part), part)
        return self._install(download)

    def _told(self, download: Download, before: int) -> Callable[[int, int], None]:
        of_all = _total(download.wanted)

        def told(done: int, total: int) -> None:
            with self._lock:
                if download.state != "running":
                    raise _Halted
                download.done = before + done
                download.total = before + total if len(download.wanted.files) == 1 and total else of_all
                download.marks.append((time.monotonic(), download.done))

        return told

    def _install(self, download: Download) -> Path:
        """Move it to its place, in one step."""
        wanted = download.wanted
        content = self._folder(wanted) / "content"
        if not wanted.is_folder:
            content /= wanted.files[0].name
            kind = kind_of(content, cast("Kind", wanted.kind))  # names may have told a wrong one
            wanted = wanted.model_copy(update={"kind": kind})
        with self._lock:
            if download.state != "running":
                raise _Halted
        self._check_free(wanted)
        target = self._target(wanted)
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            move(content, target)
            card = sidecars.card_of(target)
            if wanted.about and not card.exists():
                write_atomically(card, json.dumps(wanted.about, ensure_ascii=False, indent=2).encode())
        except OSError as error:
            raise StorageFull(f"{wanted.name} cannot be put into {target.parent}: {error.strerror}") from None
        return target

    def _end_well(self, download: Download, target: Path) -> None:
        wanted = download.wanted
        shutil.rmtree(self._folder(wanted), ignore_errors=True)
        log.info("downloaded %s from %s", wanted.name, host_of(wanted.files[0].url))
        self._installed(target)
        with self._lock:  # also if somebody wanted to pause it in the last moment
            download.state, download.done = "done", max(download.done, download.total)

    def _discard(self, wanted: Wanted) -> None:
        """All that has come of it, unless another process is at it."""
        with held(self._folder(wanted) / LOCK) as lock:
            is_free = lock is not None
        if is_free:
            shutil.rmtree(self._folder(wanted), ignore_errors=True)

    # --- what there is

    def _check_free(self, wanted: Wanted) -> None:
        """Raises Conflict."""
        if self._target(wanted).exists():
            raise Conflict(f"{wanted.name} is there already; choose another name")

    def _get(self, id: str) -> Download:
        if id not in self._downloads:
            raise NotFound("this download is not there any more")
        return self._downloads[id]

    def _folder(self, wanted: Wanted) -> Path:
        return self._parts / wanted.id

    def _target(self, wanted: Wanted) -> Path:
        return self._models / FOLDERS[wanted.kind] / wanted.name

    def _wanted(self, option: Option, name: str, kind: str, sha256: str) -> Wanted:
        if kind not in FOLDERS:
            raise Refused(f"{kind[:40]!r} is no kind of model; there are {', '.join(FOLDERS)}")
        suffix = "" if option.is_folder else PurePosixPath(option.name).suffix
        if name:
            name = safe_name(name)
            name = name.removesuffix(suffix) + suffix
        files = option.files
        if sha256:
            if len(files) > 1 or not re.fullmatch("[0-9a-fA-F]{64}", sha256):
                raise Refused("a SHA-256 has 64 digits of 0-9 and a-f, and belongs to a single file")
            files = (File(files[0].name, files[0].url, files[0].size, sha256.lower()),)
        about = {key: value for key, value in option.about.items() if value}
        return Wanted(
            id=secrets.token_hex(8),
            name=name or option.name,
            kind=kind,
            files=files,
            is_folder=option.is_folder,
            roughly=option.size,
            about=about,
        )

    def _left_over(self) -> list[Download]:
        """What an earlier run has not finished, paused."""
        found = []
        for folder in sorted(self._parts.glob("*")) if self._parts.is_dir() else ():
            try:
                wanted = Wanted.model_validate_json((folder / RECORD).read_bytes())
                if wanted.id != folder.name or not _is_sound(wanted):
                    raise ValueError("it is not of our making")
            except (OSError, ValueError, ValidationError) as error:
                log.warning("the download in %s cannot be read: %s", folder, error)
                continue
            done = sum(path.stat().st_size for path in (folder / "content").rglob("*") if path.is_file())
            found.append(Download(wanted, "paused", done, _total(wanted)))
        return found


def _is_sound(wanted: Wanted) -> bool:
    """Whether a record names only places that we would choose."""
    names = [part for file in wanted.files for part in file.name.split("/")]
    known = bool(wanted.files) and all(file.suffix in (*SINGLE, *TEXTS) for file in wanted.files)
    return known and wanted.kind in FOLDERS and all(name == safe_name(name) for name in (wanted.name, *names))


def _part_of(path: Path) -> Path:
    return path.with_name(path.name + ".part")


def _total(wanted: Wanted) -> int:
    return sum(file.size or 0 for file in wanted.files) or wanted.roughly


def _speed(marks: deque[tuple[float, int]]) -> float:
    """Bytes a second of late."""
    recent = [mark for mark in marks if mark[0] > time.monotonic() - PACE]
    if len(recent) < 2:
        return 0.0
    return (recent[-1][1] - recent[0][1]) / max(1e-6, recent[-1][0] - recent[0][0])
