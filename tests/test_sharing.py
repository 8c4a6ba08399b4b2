"""Whose turn it is to compute: pictures before looks before trainings, and nobody while he reads his model."""

import threading
from collections.abc import Callable
from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

import pytest

from backend.jobs.child import Run
from backend.jobs.device import Device, Rank
from backend.jobs.sharing import GO_ON, REST, RESTING, Sharing
from backend.jobs.wire import Mailbox, Message
from backend.result import JobCancelled
from backend.training.child import _Reporting
from backend.training.session import Progress


def taken(device: Device, rank: Rank, order: list[Rank]) -> threading.Thread:
    """Somebody who waits for his turn and notes when it has come."""
    turn = device.turn(rank)

    def take() -> None:
        turn.take()
        order.append(rank)
        turn.give_back()

    thread = threading.Thread(target=take, daemon=True)
    thread.start()
    while turn not in device._waiting:
        pass
    return thread


def test_pictures_go_first() -> None:
    device, told, order = Device(), [], list[Rank]()
    look = device.turn(Rank.LOOK, give_way=lambda: told.append("rest"))
    look.take()
    waiting = [taken(device, Rank.TRAINING, order), taken(device, Rank.LOOK, order)]
    assert told == []
    waiting.append(taken(device, Rank.PICTURE, order))
    assert told == ["rest"]
    look.give_back()
    for thread in waiting:
        thread.join(5)
    assert order == sorted(Rank)


class Scripted:
    """A host whose process says these messages, and what it is answered."""

    def __init__(self, *says: Message | None, then: Callable[[], None] = lambda: None) -> None:
        self.answers: list[Message | None] = []
        self._says, self._then = says, then

    def run(self, kind: str, values: Any, hear: Callable[[Message | None], Message | None]) -> dict[str, Any]:
        for message in self._says:
            self.answers.append(hear(message))
            self._then()
        return {}


def test_a_model_is_read_in_nobodys_turn() -> None:
    device = Device()
    picture = device.turn()

    def draws() -> None:
        """A picture comes as soon as anything has been said."""
        picture.want()
        assert picture.get(), "it had to wait"

    host: Any = Scripted(None, Message(RESTING), None, then=draws)
    Sharing(device, Rank.TRAINING).run(host, "train", {}, lambda message: None)
    assert host.answers == [None, None, None]


def test_it_rests_while_a_picture_is_drawn() -> None:
    device, heard = Device(), list[Message | None]()
    sharing = Sharing(device, Rank.TRAINING)
    picture = device.turn()
    said = Message("progress")
    host: Any = Scripted(Message(RESTING), said, None, Message(RESTING), None, None)
    steps = iter([lambda: None, picture.want, lambda: None, lambda: None, picture.give_back, lambda: None])
    host._then = lambda: next(steps)()

    def hear(message: Message | None) -> None:
        heard.append(message)
        picture.get()

    sharing.run(host, "train", {}, hear)
    assert host.answers == [Message(GO_ON), None, Message(REST), None, None, Message(GO_ON)]
    assert [message for message in heard if message] == [said]
    assert picture.get() is False


def test_what_is_raised_frees_the_device() -> None:
    device = Device()
    sharing = Sharing(device, Rank.LOOK)

    def hear(message: Message | None) -> None:
        if message:
            raise JobCancelled

    host: Any = Scripted(Message(RESTING), Message("progress"))
    with pytest.raises(JobCancelled):
        sharing.run(host, "grid", {}, hear)
    device.turn(Rank.TRAINING).take()


def test_a_training_asks_for_its_turn_when_its_model_is_there() -> None:
    run = Run(1, "train", {}, Mailbox())
    session: Any = SimpleNamespace(aside=nullcontext)
    report = _Reporting(run, session)
    report(Progress("loading"))
    for kind in ("save", GO_ON):
        run.asked.put(Message(kind))
    report(Progress("encoding"))
    said = [run.outbox.take(0) for _ in range(2)]  # of progress the latest
    assert [message and message.kind for message in said] == ["progress", RESTING]
    assert report(Progress("training")) == {"save"}
    assert report(Progress("training")) == set()
    run.asked.put(Message("cancel"))
    with pytest.raises(JobCancelled):
        report(Progress("training"))
