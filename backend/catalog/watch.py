"""Tells when models come, go or change, and has their hashes worked out meanwhile.

The folders are watched by the system's own means. Where those see nothing, as on network drives, there is a look every
few minutes.
"""

import logging
import subprocess
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import watchfiles

from backend.catalog import hashing
from backend.catalog.catalog import Catalog
from backend.catalog.model import Model

log = logging.getLogger(__name__)

LOOKS_EVERY = 300.0
"""Seconds between looks that nothing has called for."""
SETTLES, AT_MOST = 500, 10_000
"""Milliseconds of quiet before a change is looked at, and how long at most: a download writes all the time."""
HASHES_AFTER = 10.0
"""Seconds after a start or a change, from which on hashes are worked out."""
TELLS_EVERY = 20.0
"""Seconds between hashes becoming known to the page."""


class Watch:
    """`changed` is called, from a thread, whenever the catalogue has become another one."""

    def __init__(self, catalog: Catalog, changed: Callable[[], object], *, hashing: bool = True) -> None:
        self._catalog = catalog
        self._changed = changed
        self._hashes = _Hashes(catalog) if hashing and catalog.roots.index else None
        self._ends = threading.Event()
        self._looked = 0.0
        self._told: Sequence[Model] = ()

    def start(self) -> None:
        self._ends.clear()
        self._told = self._catalog.known()
        self._catalog.trust(True)
        threading.Thread(target=self._watch, name="models", daemon=True).start()

    def stop(self) -> None:
        """The thread itself ends a little later: it may just wait for the system to tell it something."""
        self._ends.set()
        self._catalog.trust(False)
        if self._hashes:
            self._hashes.stop()

    def _watch(self) -> None:
        while not self._ends.is_set():
            try:
                self._watch_folders(self._folders())
            except (OSError, RuntimeError) as error:  # a folder went, or there are more than the system watches
                log.info("models are looked for every %.0f s only: %s", LOOKS_EVERY, error)
                self._look()
                self._ends.wait(LOOKS_EVERY)

    def _watch_folders(self, folders: list[Path]) -> None:
        """Until there are others."""
        if not folders:
            raise FileNotFoundError("there are no folders of models")
        first = True
        for changes in watchfiles.watch(
            *folders,
            watch_filter=None,
            debounce=AT_MOST,
            step=SETTLES,
            stop_event=self._ends,
            rust_timeout=1000,
            yield_on_timeout=True,
            ignore_permission_denied=True,
        ):
            is_due = time.monotonic() - self._looked > LOOKS_EVERY or (self._hashes and self._hashes.have_news())
            if changes or first or is_due:  # the first time for what came before the watch began
                first = False
                self._look()
                if self._folders() != folders:
                    return
            if self._hashes:
                self._hashes.go_on(time.monotonic() - self._looked)

    def _folders(self) -> list[Path]:
        """Those that are there, without what lies in another one."""
        places = {self._catalog.folder, *(place.folder for place in self._catalog.roots.places())}
        there = {folder.resolve() for folder in places if folder.is_dir()}
        return sorted(folder for folder in there if not there & {*folder.parents})

    def _look(self) -> None:
        self._looked = time.monotonic()
        try:
            self._catalog.refresh()
            if (known := self._catalog.known()) != self._told:  # whoever it was that looked first
                self._told = known
                self._changed()
        except Exception:  # one look that fails must not be the last one
            log.exception("the models cannot be looked at")


class _Hashes:
    """A process that works them out, as long as there are any to be worked out."""

    def __init__(self, catalog: Catalog) -> None:
        self._catalog = catalog
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._stopped = False
        self._told = 0.0
        self._looked_at: Sequence[Model] | None = None
        self._tried: set[tuple[Path, int]] = set()
        """What a process has been started for: what cannot be read is not tried again and again."""

    def have_news(self) -> bool:
        """Whether a process has ended, or has worked for a while."""
        with self._lock:
            if self._process is None:
                return False
            if self._process.poll() is not None:
                hashing.stop(self._process)
                self._process = None
                return True
            is_time = time.monotonic() - self._told > TELLS_EVERY
            self._told = time.monotonic() if is_time else self._told
            return is_time

    def go_on(self, quiet: float) -> None:
        """Start one if there is something to do, and nothing has changed for some seconds."""
        with self._lock:
            if self._process or self._stopped or quiet < HASHES_AFTER:
                return
            models = self._catalog.known()
            if models is self._looked_at:  # asked each second
                return
            self._looked_at = models
            lacking = {(model.path, model.changed) for model in models if model.lacks_hash}
            if lacking - self._tried:
                self._tried |= lacking
                self._told = time.monotonic()
                self._process = hashing.start(self._catalog.roots)

    def stop(self) -> None:
        with self._lock:
            self._stopped = True
            if self._process:
                hashing.stop(self._process)
                self._process = None
