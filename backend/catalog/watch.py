"""Tells when models come, go or change, and works out their hashes meanwhile.

The folders are watched by the system's own means. Where those see nothing, as on network drives, there is a look every
few minutes.
"""

import logging
import os
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import watchfiles

from backend.catalog.catalog import Catalog

log = logging.getLogger(__name__)

LOOKS_EVERY = 300.0
"""Seconds between looks that nothing has called for."""
SETTLES, AT_MOST = 500, 10_000
"""Milliseconds of quiet before a change is looked at, and how long at most: a download writes all the time."""
TELLS_EVERY = 20.0
"""Seconds between hashes becoming known to the page."""


class Watch:
    """`changed` is called, from a thread, whenever the catalogue has become another one."""

    def __init__(self, catalog: Catalog, changed: Callable[[], object], *, hashing: bool = True) -> None:
        self._catalog = catalog
        self._changed = changed
        self._hashing = hashing
        self._ends = threading.Event()
        self._news = threading.Event()
        self._threads: list[threading.Thread] = []

    def start(self) -> None:
        self._ends.clear()
        self._catalog.trust(True)
        jobs = {"models": self._watch, **({"model hashes": self._hash} if self._hashing else {})}
        self._threads = [threading.Thread(target=job, name=name, daemon=True) for name, job in jobs.items()]
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        self._ends.set()
        self._news.set()
        for thread in self._threads[1:]:
            thread.join()  # the first one only waits for the system to tell it something
        self._catalog.trust(False)

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
        looked = -LOOKS_EVERY  # what came before the watch began
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
            if changes or time.monotonic() - looked > LOOKS_EVERY:
                self._look()
                looked = time.monotonic()
                if self._folders() != folders:
                    return

    def _folders(self) -> list[Path]:
        """Those that are there, without what lies in another one."""
        places = {self._catalog.folder, *(place.folder for place in self._catalog.roots.places())}
        there = {folder.resolve() for folder in places if folder.is_dir()}
        return sorted(folder for folder in there if not there & {*folder.parents})

    def _look(self) -> None:
        try:
            if self._catalog.refresh():
                self._news.set()
                self._changed()
        except Exception:  # one look that fails must not be the last one
            log.exception("the models cannot be looked at")

    # --- hashes

    def _hash(self) -> None:
        _give_way()
        unreadable: set[Path] = set()
        while not self._ends.is_set():
            self._news.clear()
            told, fresh = time.monotonic(), False
            for model in self._catalog.all():
                if model.sha256 or model.kind == "annotator" or model.path in unreadable:
                    continue
                try:
                    self._catalog.fingerprint(model.path, self._go_on)
                    fresh = True
                except _Ended:
                    return
                except OSError as error:
                    log.info("%s cannot be hashed: %s", model.path, error.strerror)
                    unreadable.add(model.path)
                if time.monotonic() - told > TELLS_EVERY:
                    self._look()
                    told, fresh = time.monotonic(), False
            if fresh:
                self._look()
            self._news.wait()

    def _go_on(self) -> None:
        if self._ends.is_set():
            raise _Ended


class _Ended(Exception):
    """It is to stop in the middle of a file."""


def _give_way() -> None:
    """To whoever else wants the processor."""
    if sys.platform == "linux":  # only there a thread has a priority of its own
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), 19)
