"""Workers: whatever draws a request. Here, an engine in a process of its own, one for each device."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

from backend.catalog.roots import Roots, roots_of
from backend.hardware import Hardware
from backend.images import ImageStore
from backend.jobs import wire
from backend.jobs.errands import Answer
from backend.jobs.host import PATIENCE, Host, State
from backend.jobs.wire import Message
from backend.params import Params
from backend.request import GenerationRequest, parse_request
from backend.result import BatchSkipped, Picture, Progress, Report, Result


class Worker(Protocol):
    def generate(
        self, request: GenerationRequest, images: ImageStore, report: Report, done: frozenset[int] = frozenset()
    ) -> Result:
        """Draw; the pictures whose index is in `done` were delivered by an earlier attempt.

        `report` is called at every step, and now and then between them. What it raises stops the work: JobCancelled
        and BatchSkipped as their names say, anything else comes out of here. Raises WorkerDied.
        """
        ...

    def errand(self, extension: str, name: str, values: Mapping[str, Any], go_on: Callable[[], None]) -> Answer:
        """What `Extension.errand` gives; `go_on` is called now and then, and what it raises stops the work."""
        ...

    def start(self) -> None:
        """Begin to get ready; returns at once."""
        ...

    def close(self) -> None: ...

    def state(self) -> State: ...

    def watch(self, listener: Callable[[State], None]) -> None:
        """`listener` is told, from any thread, whenever the state changes."""
        ...


class ProcessWorker(Host):
    """An engine in a process of its own.

    It loads the extensions that are named in `extensions`, with the types of their parameters; what they keep is in
    `kept`. `engine` names another one, for tests.
    """

    def __init__(
        self,
        models: Path | Roots,
        extensions_dir: Path,
        inputs_dir: Path,
        *,
        extensions: Mapping[str, type[Params]] | None = None,
        kept: Path | None = None,
        device: str | None = None,
        hardware: Hardware | None = None,
        engine: str = "backend.diffusion.engine:Engine",
        patience: float = PATIENCE,
    ) -> None:
        setup = {
            "models": roots_of(models).described(),
            "extensions": str(extensions_dir.resolve()),
            "only": sorted(extensions or ()),
            "inputs": str(inputs_dir.resolve()),
            "kept": str((kept or inputs_dir.parent / "extensions").resolve()),
            "device": device,
            "hardware": (hardware or Hardware()).model_dump(),
            "engine": engine,
        }
        super().__init__("backend.jobs.engine_child", setup, patience)
        self._extensions = extensions or {}

    def generate(
        self, request: GenerationRequest, images: ImageStore, report: Report, done: frozenset[int] = frozenset()
    ) -> Result:
        values = {"request": request.model_dump(mode="json"), "done": sorted(done)}
        at = Progress("loading")

        def hear(message: Message | None) -> Message | None:
            nonlocal at
            at = self._progress(message) if message else replace(at, preview=None, picture=None)
            try:
                report(at)
            except BatchSkipped:
                return Message("skip", {"batch": at.batch})
            return None

        answer = self.run("generate", values, hear, kept=wire.PICTURE)
        return Result(parse_request(answer["request"], self._extensions), tuple(answer["pictures"]))

    def errand(self, extension: str, name: str, values: Mapping[str, Any], go_on: Callable[[], None]) -> Answer:
        asked = {"extension": extension, "name": name, "values": values}
        answer: Answer = self.run("errand", asked, lambda message: go_on())["answer"]
        return answer

    def _progress(self, message: Message) -> Progress:
        said = message.values
        at = {name: said[name] for name in wire.AT} | {"notices": tuple(said["notices"])}
        if message.kind == wire.PROGRESS:
            return Progress(**at, preview=message.blob or None)
        request = parse_request(said["picture"]["request"], self._extensions)
        return Progress(**at, picture=Picture(**{**said["picture"], "request": request, "data": message.blob}))
