"""The worker process: one engine, one device, one job at a time, as its parent says (see `wire`).

It ends when the parent does: the pipe that commands come through ends with it, also after a kill -9. Nothing of the
page or the API is imported here.
"""

import importlib
import json
import logging
import os
import queue
import signal
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from backend import errors, registry
from backend.catalog import Catalog
from backend.catalog.roots import Roots
from backend.errors import AtelierError, ExtensionFailed, InvalidRequest, NotFound
from backend.hardware import Hardware
from backend.images import ImageStore
from backend.jobs import wire
from backend.jobs.wire import Mailbox, Message
from backend.registry import Registry
from backend.request import parse_request
from backend.result import BatchSkipped, JobCancelled, Progress

log = logging.getLogger(__name__)

_END = Message("end")


def main() -> None:
    commands, answers = _take_over_pipes()
    _be_a_good_child()
    setup = wire.read(commands)
    if setup is None:
        return
    logging.basicConfig(
        level=setup.values["log_level"], format="%(asctime)s %(levelname)s %(name)s [engine] %(message)s"
    )
    outbox = Mailbox()
    sender = threading.Thread(target=_send, args=(outbox, answers), name="sender", daemon=True)
    sender.start()  # a slow parent must not hold up the drawing
    runs: queue.SimpleQueue[_Run] = queue.SimpleQueue()
    threading.Thread(target=_listen, args=(commands, runs), name="listener", daemon=True).start()
    _serve(setup.values, runs, outbox)
    outbox.put(_END)
    sender.join()


@dataclass
class _Run:
    """A job or an errand in hand; the listener sets what a job reads at its next report."""

    number: int
    kind: str
    values: dict[str, Any]
    cancelled: bool = False
    skipped: int | None = None
    """The batch to drop."""


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


def _listen(commands: BinaryIO, runs: "queue.SimpleQueue[_Run]") -> None:
    current = _Run(0, "", {})
    while message := wire.read(commands):
        if message.kind in ("generate", "errand"):
            current = _Run(message.values["run"], message.kind, message.values)
            runs.put(current)
        elif message.values["run"] == current.number:
            if message.kind == "cancel":
                current.cancelled = True
            elif message.kind == "skip":
                current.skipped = message.values["batch"]
    os._exit(0)  # the parent has gone, or wants us to go; whatever is being drawn is for nobody


def _serve(setup: dict[str, Any], runs: "queue.SimpleQueue[_Run]", outbox: Mailbox) -> None:
    images = ImageStore(Path(setup["inputs"]))
    started = time.monotonic()
    try:
        folder, kept, roots = Path(setup["extensions"]), Path(setup["kept"]), Roots.of(setup["models"])
        extensions = registry.load(folder, only=setup["only"], models=roots, kept=kept)
        for extension in extensions.extensions:
            extension.images = images
        engine = _engine(setup, extensions)
    except Exception as error:
        log.exception("the engine cannot start")
        outbox.put(Message("unusable", {"reason": _described(error)}))
        return
    device = str(getattr(engine, "device", setup["device"] or "cpu"))
    log.info("engine ready on %s after %.1f s", device, time.monotonic() - started)
    outbox.put(Message("ready", {"device": device}))
    while True:
        answer = _answer(engine, extensions, images, runs.get(), outbox)
        outbox.put(answer)
        if answer.values.get("ruined"):
            return


def _engine(setup: dict[str, Any], extensions: Registry) -> Any:
    module, _, name = setup["engine"].partition(":")
    make = getattr(importlib.import_module(module), name)
    catalog, hardware = Catalog(Roots.of(setup["models"])), Hardware(**setup["hardware"])
    return make(catalog, extensions, setup["device"], hardware=hardware)


def _answer(engine: Any, extensions: Registry, images: ImageStore, run: _Run, outbox: Mailbox) -> Message:
    outbox.put(Message("begun", {"run": run.number}))
    try:
        if run.kind == "errand":
            done = {"answer": _run_errand(extensions, **{k: run.values[k] for k in ("extension", "name", "values")})}
        else:
            done = _draw(engine, extensions, images, run, outbox)
    except JobCancelled:
        return Message("cancelled", {"run": run.number})
    except AtelierError as error:
        return Message("error", {"run": run.number, **_typed(error), "ruined": _is_ruined(error)})
    except BaseException as error:  # SystemExit too: an extension's sys.exit() must not end the engine
        log.exception("the %s failed", "errand" if run.kind == "errand" else "job")
        said = {"type": "EngineFailed", "message": _described(error), "ruined": _is_ruined(error)}
        return Message("error", {"run": run.number, **said})
    return Message("done", {"run": run.number, **done})


def _draw(engine: Any, extensions: Registry, images: ImageStore, run: _Run, outbox: Mailbox) -> dict[str, Any]:
    def report(progress: Progress) -> None:
        outbox.put(_told(progress, run.number))
        if run.cancelled:
            raise JobCancelled
        if run.skipped is not None:
            skip, run.skipped = run.skipped == progress.batch, None
            if skip:
                raise BatchSkipped

    request = parse_request(run.values["request"], extensions.params)
    result = engine.generate(request, images, report, frozenset(run.values["done"]))
    return {"request": result.request.model_dump(mode="json"), "pictures": list(result.pictures)}


def _run_errand(extensions: Registry, extension: str, name: str, values: dict[str, Any]) -> dict[str, Any]:
    """What the extension gives, which must be JSON; what it raises bears its title."""
    asked = next((e for e in extensions.extensions if e.id == extension), None)
    if asked is None:
        raise NotFound(f"the engine has no extension {extension}; restart Atelier")
    try:
        answer = asked.errand(name, values)
        json.dumps(answer)
    except AtelierError:
        raise
    except Exception as error:
        log.exception("the errand %s of %s failed", name, extension)
        raise ExtensionFailed(f"{asked.title}: {_described(error)}") from error
    return answer


def _told(progress: Progress, run: int) -> Message:
    at = {name: getattr(progress, name) for name in wire.AT} | {"notices": progress.notices}
    picture = progress.picture
    if picture is None:
        return Message(wire.PROGRESS, {"run": run, **at}, progress.preview or b"")
    described = {name: getattr(picture, name) for name in ("index", "infotext", "width", "height", "models", "role")}
    request = picture.request.model_dump(mode="json")
    return Message("picture", {"run": run, **at, "picture": {**described, "request": request}}, picture.data)


def _typed(error: AtelierError) -> dict[str, Any]:
    """The error by the nearest class that the parent knows."""
    known = next(c for c in type(error).__mro__ if getattr(errors, c.__name__, None) is c)
    problems = [tuple(p) for p in error.problems] if isinstance(error, InvalidRequest) else []
    return {"type": known.__name__, "message": str(error), "problems": problems}


def _described(error: BaseException) -> str:
    first_line = str(error).strip().partition("\n")[0]
    return f"{type(error).__name__}: {first_line}" if first_line else type(error).__name__


def _is_ruined(error: BaseException) -> bool:
    """After any error of a CUDA kernel but a lack of memory every later call fails too: only a new process helps."""
    return "CUDA error" in str(error) and "OutOfMemory" not in type(error).__name__
