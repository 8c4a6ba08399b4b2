"""The other side of `host`: a worker process does one thing at a time, as its parent says (see `wire`).

It ends when the parent does: the pipe that commands come through ends with it, also after a kill -9. Nothing of the
page or the API is imported here.
"""

import logging
import os
import queue
import signal
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

from backend import errors
from backend.errors import AtelierError, InvalidRequest, TrainingFailed, unforeseen
from backend.jobs import wire
from backend.jobs.wire import Mailbox, Message
from backend.logs import Lines
from backend.result import JobCancelled

log = logging.getLogger(__name__)

_END = Message("end")


@dataclass
class Run:
    """Something in hand; the listener sets what it looks at now and then."""

    number: int
    kind: str
    values: dict[str, Any]
    outbox: Mailbox
    cancelled: bool = False
    asked: "queue.SimpleQueue[Message]" = field(default_factory=queue.SimpleQueue)
    """What the parent has said of it since; the last word is `cancel`."""

    def say(self, kind: str, values: dict[str, Any], blob: bytes = b"") -> None:
        self.outbox.put(Message(kind, {"run": self.number, **values}, blob))


Work = Callable[[Run], dict[str, Any]]
"""Does what the run asks for; what comes out, as JSON. Raises JobCancelled if that was asked of it."""
Start = Callable[[dict[str, Any]], tuple[str, Work]]
"""By the setup: the device's name, and what does the work."""


def serve(name: str, start: Start) -> None:
    """Work until the parent has no more; `name` is what the log calls this process."""
    commands, answers = _take_over_pipes()
    _be_a_good_child()
    setup = wire.read(commands)
    if setup is None:
        return
    handler = logging.StreamHandler()
    handler.setFormatter(Lines(f"%(asctime)s %(levelname)s %(name)s [{name}] %(message)s"))
    logging.basicConfig(level=setup.values["log_level"], handlers=[handler])
    outbox = Mailbox()
    sender = threading.Thread(target=_send, args=(outbox, answers), name="sender", daemon=True)
    sender.start()  # a slow parent must not hold up the work
    runs: queue.SimpleQueue[Run] = queue.SimpleQueue()
    threading.Thread(target=_listen, args=(commands, runs, outbox), name="listener", daemon=True).start()
    _work(name, start, setup.values, runs, outbox)
    outbox.put(_END)
    sender.join()


def _take_over_pipes() -> tuple[BinaryIO, BinaryIO]:
    """Standard input and output, for us alone: what a library prints goes to standard error."""
    commands, answers = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.close(nothing)
    os.dup2(2, 1)
    return commands, answers


def _be_a_good_child() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl+C is for the parent, which then ends us
    if sys.platform == "linux":
        try:
            Path("/proc/self/oom_score_adj").write_text("500")  # out of memory ends the engine, not the server
        except OSError:
            log.debug("the kernel keeps its own order of victims")


def _send(outbox: Mailbox, answers: BinaryIO) -> None:
    try:
        while (message := outbox.take()) is not _END:
            assert message is not None
            wire.write(answers, message)
    except OSError:  # the parent has gone
        os._exit(1)


def _listen(commands: BinaryIO, runs: "queue.SimpleQueue[Run]", outbox: Mailbox) -> None:
    current = Run(0, "", {}, outbox)
    while message := wire.read(commands):
        number = message.values["run"]
        if number > current.number:
            current = Run(number, message.kind, message.values, outbox)
            runs.put(current)
        elif number == current.number:
            current.cancelled |= message.kind == "cancel"
            current.asked.put(message)
    os._exit(0)  # the parent has gone, or wants us to go; whatever is in hand is for nobody


def _work(name: str, start: Start, setup: dict[str, Any], runs: "queue.SimpleQueue[Run]", outbox: Mailbox) -> None:
    started = time.monotonic()
    try:
        device, work = start(setup)
    except Exception as error:
        reason = unforeseen(error)
        log.exception("the %s cannot start: %s", name, reason)
        outbox.put(Message("unusable", {"reason": reason}))
        return
    log.info("%s ready on %s after %.1f s", name, device, time.monotonic() - started)
    outbox.put(Message("ready", {"device": device}))
    while True:
        answer = _answer(work, runs.get())
        outbox.put(answer)
        if answer.values.get("ruined"):
            return


def _answer(work: Work, run: Run) -> Message:
    run.say("begun", {})
    try:
        done = work(run)
    except JobCancelled:
        return Message("cancelled", {"run": run.number})
    except AtelierError as error:
        return Message("error", {"run": run.number, **_typed(error), "ruined": _is_ruined(error)})
    except BaseException as error:  # SystemExit too: an extension's sys.exit() must not end the engine
        message = unforeseen(error)
        log.exception("the %s failed: %s", run.kind, message)
        said = {"type": "EngineFailed", "message": message, "ruined": _is_ruined(error)}
        return Message("error", {"run": run.number, **said})
    return Message("done", {"run": run.number, **done})


def _typed(error: AtelierError) -> dict[str, Any]:
    """The error by the nearest class that the parent knows."""
    known = next(c for c in type(error).__mro__ if getattr(errors, c.__name__, None) is c)
    problems = [tuple(p) for p in error.problems] if isinstance(error, InvalidRequest) else []
    changes = error.changes if isinstance(error, TrainingFailed) else {}
    return {"type": known.__name__, "message": str(error), "problems": problems, "changes": changes}


def _is_ruined(error: BaseException) -> bool:
    """After any error of a CUDA kernel but a lack of memory every later call fails too: only a new process helps."""
    return "CUDA error" in str(error) and "OutOfMemory" not in type(error).__name__
