"""Errands: what routes of extensions ask of the engine; they wait in memory for a gap between two jobs."""

import asyncio
import threading
from collections import deque
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

from backend.errors import Busy

PATIENCE = 60.0
"""Seconds that an errand waits to be begun."""
LIMIT = 300.0
"""Seconds that one may take; then the engine's process is ended."""
MOST = 16
"""How many may wait."""

Answer = dict[str, Any]


@dataclass(frozen=True)
class Errand:
    extension: str
    """Its id."""
    name: str
    values: Mapping[str, Any]
    answer: "Future[Answer]" = field(default_factory=Future, repr=False)


class Errands:
    """Those that wait; `wake` is called when there is one more."""

    def __init__(self, wake: Callable[[], None]) -> None:
        self._wake = wake
        self._waiting: deque[Errand] = deque()
        self._lock = threading.Lock()
        self._closed = False

    async def ask(self, extension: str, name: str, values: Mapping[str, Any], patience: float = PATIENCE) -> Answer:
        """What the extension's `errand` gives. Raises Busy if it is not begun in time, WorkerDied, what it raises."""
        errand = self.put(extension, name, values)
        answer = asyncio.wrap_future(errand.answer)
        try:
            await asyncio.wait({answer}, timeout=patience)
            if not answer.done() and errand.answer.cancel():
                raise Busy("the engine is busy with a picture; try again when the job is done")
            return await answer
        finally:
            errand.answer.cancel()  # whoever has asked is gone

    def put(self, extension: str, name: str, values: Mapping[str, Any]) -> Errand:
        """Raises Busy if too many wait, or none will be run any more."""
        errand = Errand(extension, name, values)
        with self._lock:
            self._waiting = deque(e for e in self._waiting if not e.answer.cancelled())
            if self._closed:
                raise Busy("the server is shutting down")
            if len(self._waiting) >= MOST:
                raise Busy(f"{MOST} others wait for the engine already; try again in a moment")
            self._waiting.append(errand)
        self._wake()
        return errand

    def take(self) -> Errand | None:
        """The oldest that somebody still waits for, begun; None if there is none."""
        with self._lock:
            while self._waiting:
                errand = self._waiting.popleft()
                if errand.answer.set_running_or_notify_cancel():
                    return errand
        return None

    def close(self) -> None:
        """Those that wait are told that nothing will come of them."""
        with self._lock:
            self._closed = True
        while errand := self.take():
            errand.answer.set_exception(Busy("the server is shutting down"))
