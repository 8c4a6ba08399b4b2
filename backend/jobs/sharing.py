"""Work in a process that computes only in its turn: it rests where it is asked to, and goes on when it is told.

It begins at rest: while it reads its model, others compute. When it wants to begin it says `resting`, as it does
whenever it has been told to `rest`, and waits for `go on`.
"""

from collections import deque
from collections.abc import Callable, Mapping
from typing import Any

from backend.jobs.device import Device, Rank
from backend.jobs.host import Host
from backend.jobs.wire import Message

RESTING, REST, GO_ON = "resting", "rest", "go on"


class Sharing:
    """One such work. `asks` is what else is to be said to it; other threads may add to that."""

    def __init__(self, device: Device, rank: Rank) -> None:
        self.asks: deque[Message] = deque()
        self.is_resting = False
        """Whether it waits for its turn."""
        self._turn = device.turn(rank, give_way=lambda: self.asks.append(Message(REST)))

    def run(
        self, host: Host, kind: str, values: Mapping[str, Any], hear: Callable[[Message | None], object]
    ) -> dict[str, Any]:
        """Have it done; `hear` is as in `Host.run`. Raises whatever the work or `hear` does."""
        self._turn.take(lambda: hear(None))  # what computes now may need the memory
        self._turn.give_back()
        try:
            return host.run(kind, values, lambda message: self._answer(message, hear))
        finally:
            self._turn.give_back()

    def _answer(self, message: Message | None, hear: Callable[[Message | None], object]) -> Message | None:
        answer = None
        if message and message.kind == RESTING:
            self._turn.give_back()
            self._turn.want()
            self.is_resting = True
            message = None
        if self.is_resting and self._turn.get():
            self.is_resting = False
            answer = Message(GO_ON)
        hear(message)
        return answer or (self.asks.popleft() if self.asks else None)
