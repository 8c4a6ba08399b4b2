"""Whose turn it is to compute on a device: pictures go first, and the others give way between two steps."""

import threading
from collections.abc import Callable
from enum import IntEnum

POLL = 0.1
"""Seconds between two questions whether somebody who waits still wants his turn."""


class Rank(IntEnum):
    """Who goes first."""

    PICTURE = 0
    LOOK = 1
    """What somebody waits for before or after a training: a pre-flight, captions, a grid."""
    TRAINING = 2


class Device:
    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._waiting: list[Turn] = []
        """By rank, and then in the order of their coming."""
        self._holder: Turn | None = None

    def turn(self, rank: Rank = Rank.PICTURE, give_way: Callable[[], None] = lambda: None) -> "Turn":
        """For somebody who computes now and then; `give_way` tells him that another, who goes first, waits."""
        return Turn(self, rank, give_way)

    def _want(self, turn: "Turn") -> None:
        with self._changed:
            if self._holder is turn or turn in self._waiting:
                return
            self._waiting.append(turn)
            self._waiting.sort(key=lambda t: t.rank)
            if (holder := self._holder) and turn.rank < holder.rank:
                holder.give_way()

    def _get(self, turn: "Turn", seconds: float) -> bool:
        def is_next() -> bool:
            return self._holder is None and self._waiting[:1] == [turn]

        with self._changed:
            if self._holder is not turn and self._changed.wait_for(is_next, seconds):
                self._holder = self._waiting.pop(0)
            return self._holder is turn

    def _give_back(self, turn: "Turn") -> None:
        with self._changed:
            if turn in self._waiting:
                self._waiting.remove(turn)
            if self._holder is turn:
                self._holder = None
            self._changed.notify_all()


class Turn:
    """What one who computes holds while he does."""

    def __init__(self, device: Device, rank: Rank, give_way: Callable[[], None]) -> None:
        self.rank = rank
        self.give_way = give_way
        self._device = device

    def take(self, go_on: Callable[[], object] = lambda: None) -> None:
        """Wait for it, if it is not held already; what `go_on` raises, which is called meanwhile, ends the waiting."""
        self.want()
        try:
            while not self.get(POLL):
                go_on()
        except BaseException:
            self.give_back()
            raise

    def want(self) -> None:
        """Wait in line for it."""
        self._device._want(self)

    def get(self, seconds: float = 0) -> bool:
        """Whether it is held, or could be taken by one who waits in line for it."""
        return self._device._get(self, seconds)

    def give_back(self) -> None:
        """Neither hold it nor wait for it."""
        self._device._give_back(self)
