"""Whose turn it is to compute on a device: pictures go first, a training gives way between two of its steps."""

import threading
from collections.abc import Callable

POLL = 0.1
"""Seconds between two questions whether somebody who waits still wants his turn."""


class Device:
    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._waiting: list[Turn] = []
        """In the order of their coming; those who go first before the others."""
        self._holder: Turn | None = None

    def turn(self, goes_first: bool = False, give_way: Callable[[], None] = lambda: None) -> "Turn":
        """For somebody who computes now and then; `give_way` tells him that another, who goes first, waits."""
        return Turn(self, goes_first, give_way)

    def _take(self, turn: "Turn", go_on: Callable[[], object]) -> None:
        with self._changed:
            if self._holder is turn:
                return
            self._waiting.append(turn)
            self._waiting.sort(key=lambda t: not t.goes_first)
            if (holder := self._holder) and turn.goes_first and not holder.goes_first:
                holder.give_way()
            try:
                while self._holder is not None or self._waiting[0] is not turn:
                    self._changed.wait(POLL)
                    go_on()
                self._holder = turn
            finally:
                self._waiting.remove(turn)
                self._changed.notify_all()

    def _take_if_free(self, turn: "Turn") -> bool:
        with self._changed:
            if self._holder is None and not self._waiting:
                self._holder = turn
            return self._holder is turn

    def _give_back(self, turn: "Turn") -> None:
        with self._changed:
            if self._holder is turn:
                self._holder = None
                self._changed.notify_all()


class Turn:
    """What one who computes holds while he does."""

    def __init__(self, device: Device, goes_first: bool, give_way: Callable[[], None]) -> None:
        self.goes_first = goes_first
        self.give_way = give_way
        self._device = device

    def take(self, go_on: Callable[[], object] = lambda: None) -> None:
        """Wait for it, if it is not held already; what `go_on` raises, which is called meanwhile, ends the waiting."""
        self._device._take(self, go_on)

    def take_if_free(self) -> bool:
        return self._device._take_if_free(self)

    def give_back(self) -> None:
        self._device._give_back(self)
