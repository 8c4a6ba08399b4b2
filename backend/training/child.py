"""The process that trains, and the one that looks before and after: what it is asked for, and when it waits."""

import time
from collections.abc import Collection
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from backend.catalog import Catalog
from backend.catalog.roots import Roots
from backend.errors import Conflict
from backend.jobs import child, wire
from backend.jobs.child import Run
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

        def each() -> None:
            run.say(wire.PROGRESS, {"drawn": sum(path.is_file() for _, _, path in grid.cells())})
            if run.cancelled:
                raise JobCancelled

        compare.draw(base, training, grid, each)
        return {}

    def caption(self, run: Run) -> dict[str, Any]:
        def each(number: int, text: str) -> None:
            run.say("caption", {"number": number, "caption": text})
            if run.cancelled:
                raise JobCancelled

        captioner = captioners.find(self._models, run.values["captioner"])
        where = torch.device(self._device or device.best())
        captioning.caption(captioner, [Path(path) for path in run.values["pictures"]], where, each)
        return {}

    def _session(self, training: records.Training) -> Session:
        return Session(training, self._catalog, self._loras, self._trainings / ".latents", self._device)


class _Reporting:
    """The session's report: says how far it is, and does what it is asked meanwhile."""

    def __init__(self, run: Run, session: Session) -> None:
        self._run, self._session = run, session
        self._wishes: set[Wish] = set()

    def __call__(self, progress: Progress) -> Collection[Wish]:
        self._run.say(wire.PROGRESS, {**asdict(progress), "sample": progress.sample and progress.sample.name})
        while not self._run.asked.empty():
            if self._next() == "rest":
                self._run.say("resting", {})
                with self._session.aside():
                    while self._next() != "go on":
                        pass
        if progress.stage != "training":
            return ()
        wishes, self._wishes = self._wishes, set()
        return wishes

    def _next(self) -> str:
        asked = self._run.asked.get().kind
        if asked == "cancel":
            raise JobCancelled
        if asked in ("save", "sample"):
            self._wishes.add(asked)  # type: ignore[arg-type]
        return asked


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
