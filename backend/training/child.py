"""The process that trains, and the one that looks before and after: what it is asked for, and when it waits."""

import time
from collections.abc import Callable, Collection
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from backend.catalog import Catalog
from backend.catalog.roots import Roots
from backend.errors import Conflict
from backend.jobs import child, wire
from backend.jobs.child import Run
from backend.jobs.sharing import GO_ON, REST, RESTING
from backend.locks import held
from backend.params import validate
from backend.result import JobCancelled
from backend.training import base as bases
from backend.training import captioners, captioning, compare, device, grids, records
from backend.training.params import TrainParams
from backend.training.session import Progress, Session, Wish, precision

LINGERING = 20.0
"""Seconds that the process of a killed server may take to let go of its training."""


def main() -> None:
    child.serve("training", _start)


def _start(setup: dict[str, Any]) -> tuple[str, child.Work]:
    studio = _Studio(Path(setup["trainings"]), Roots.of(setup["models"]), setup["device"])
    works: dict[str, child.Work] = {
        "train": studio.train,
        "rehearse": studio.rehearse,
        "grid": studio.grid,
        "caption": studio.caption,
        "memory": lambda run: {"gigabytes": device.graphics_memory()},
    }

    def work(run: Run) -> dict[str, Any]:
        try:
            return works[run.kind](run)
        finally:
            device.free()

    return setup["device"] or device.best().type, work


class _Studio:
    def __init__(self, trainings: Path, models: Roots, device: str | None) -> None:
        self._trainings, self._loras, self._device = trainings, models.models / records.LORAS, device
        self._models = models.models
        self._catalog = Catalog(models)

    def train(self, run: Run) -> dict[str, Any]:
        training = records.read(self._trainings, run.values["name"])
        _wait_for(training)
        session = self._session(training)
        result = session.run(_Reporting(run, session))
        return {"files": {name: str(path) for name, path in result.files.items()}}

    def rehearse(self, run: Run) -> dict[str, Any]:
        params = validate(TrainParams, run.values["params"])
        session = self._session(records.draft(self._trainings, run.values["name"], Path(run.values["data"]), params))
        return asdict(session.rehearse(_Reporting(run, session)))

    def grid(self, run: Run) -> dict[str, Any]:
        training = records.read(self._trainings, run.values["name"])
        grid = grids.read(training, run.values["grid"])
        model, where = self._catalog.find(training.params.model), torch.device(self._device or device.best())
        base = bases.load(model, where, precision(where, training.params), training.params.clip_skip)
        asked = _Asked(run)

        def each() -> None:
            run.say(wire.PROGRESS, {"drawn": sum(path.is_file() for _, _, path in grid.cells())})
            asked.look()

        asked.rest()
        compare.draw(base, training, grid, each)
        return {}

    def caption(self, run: Run) -> dict[str, Any]:
        captioner = captioners.find(self._models, run.values["captioner"])
        written = captioning.load(captioner, torch.device(self._device or device.best()))
        asked = _Asked(run)
        asked.rest()
        for number, path in enumerate(run.values["pictures"]):
            run.say("caption", {"number": number, "caption": written(Path(path))})
            asked.look()
        return {}

    def _session(self, training: records.Training) -> Session:
        return Session(training, self._catalog, self._loras, self._trainings / ".latents", self._device)


class _Asked:
    """What the parent has said meanwhile (see backend/jobs/sharing.py); both methods raise JobCancelled."""

    def __init__(self, run: Run, aside: Callable[[], AbstractContextManager[None]] = nullcontext) -> None:
        self.wishes: set[Wish] = set()
        self._run, self._aside = run, aside

    def look(self) -> None:
        """Between two steps: rest if others compute."""
        while not self._run.asked.empty():
            if self._next() == REST:
                self.rest()

    def rest(self) -> None:
        """Compute nothing until it is our turn."""
        self._run.say(RESTING, {})
        with self._aside():
            while self._next() != GO_ON:
                pass

    def _next(self) -> str:
        asked = self._run.asked.get().kind
        if asked == "cancel":
            raise JobCancelled
        if asked in ("save", "sample"):
            self.wishes.add(asked)  # type: ignore[arg-type]
        return asked


class _Reporting:
    """The session's report: says how far it is, and does what it is asked meanwhile."""

    def __init__(self, run: Run, session: Session) -> None:
        self._run = run
        self._asked = _Asked(run, session.aside)
        self._computes = False

    def __call__(self, progress: Progress) -> Collection[Wish]:
        self._run.say(wire.PROGRESS, {**asdict(progress), "sample": progress.sample and progress.sample.name})
        if not self._computes and progress.stage != "loading":
            self._computes = True
            self._asked.rest()
        self._asked.look()
        if progress.stage != "training":
            return ()
        wishes, self._asked.wishes = self._asked.wishes, set()
        return wishes


def _wait_for(training: records.Training) -> None:
    """Until nobody holds it any more. Raises Conflict."""
    end = time.monotonic() + LINGERING
    while True:
        with held(training.folder / records.LOCK) as lock:
            if lock is not None:
                return
        if time.monotonic() > end:
            raise Conflict(f"the training {training.name} is running already")
        time.sleep(0.1)
