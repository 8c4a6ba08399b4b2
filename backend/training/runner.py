"""Trainings as jobs: a thread has them done one by one in a process of their own, and gives way to pictures; no torch.

A training that is paused, stopped, or whose server or process died has lost at most what it learnt since its last
checkpoint, and nothing if there was time to save; whoever takes it up goes on with the very next step.
"""

import logging
import secrets
import shutil
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

from sqlalchemy import Engine

from backend.catalog.roots import Roots
from backend.errors import Busy, Conflict, NotFound
from backend.jobs import process, wire
from backend.jobs.device import Device, Rank
from backend.jobs.ending import LATE, RETRY, JobPaused, Stopping, ending
from backend.jobs.events import Hub
from backend.jobs.host import Host, has_accelerator
from backend.jobs.sharing import Sharing
from backend.jobs.store import RENEW, JobState, LeaseLost
from backend.jobs.wire import Message
from backend.locks import held
from backend.result import JobCancelled
from backend.training import captioners, grids, records
from backend.training.grids import GridParams
from backend.training.orders import Job, Order, Orders
from backend.training.params import TrainParams
from backend.training.promote import promote
from backend.training.records import Training
from backend.training.view import grid_view, view

log = logging.getLogger(__name__)

IDLE = 5.0
"""Seconds between two looks for trainings that another process has left behind."""
LINGER = 120.0
"""Seconds that an idle process keeps torch in memory: who has just looked mostly looks again."""
REFRESH = 0.25
"""Seconds between two views of a training that differ by steps only."""
PATIENCE = 180.0
"""Seconds that a training has to finish its step and save when it is to stop."""
STOP = 10.0
"""Seconds that it has when the server stops."""
SMOOTH = 0.95
"""How much of the smoothed loss is that of the step before."""


def build(
    root: Path, models: Roots, engine: Engine, hub: Hub, device: Device, torch_device: str | None = None
) -> "Trainings":
    """The trainings in `root`, whose LoRAs go to our own models; `torch_device`: else the best there is."""
    setup = {"trainings": str(root.resolve()), "models": models.described(), "device": torch_device}
    trainer, assistant = (Host("backend.training.child", setup, PATIENCE) for _ in range(2))
    orders, grid_orders = Orders(engine, "train", "training"), Orders(engine, "grid", "drawing")
    return Trainings(root, models, orders, grid_orders, hub, device, trainer, assistant)


class Trainings:
    """Those of this instance, in `root`."""

    def __init__(
        self,
        root: Path,
        models: Roots,
        orders: Orders,
        grid_orders: Orders,
        hub: Hub,
        device: Device,
        trainer: Host,
        assistant: Host,
    ) -> None:
        self.name = f"{process.me()}/{secrets.token_hex(4)}"
        """Who holds the leases."""
        self.root = root
        self._models = models
        self._orders, self._grid_orders = orders, grid_orders
        self._hub = hub
        self._device = device
        self._trainer, self._assistant = trainer, assistant
        self._run: _Run | None = None
        self._telling = threading.Lock()
        """Held while a state is read and published, so that views come out in the order of the states."""
        self._drawing: _Drawing | None = None
        self._stopping = threading.Event()
        self._lines = (
            _Line(orders, self.name, self._train, self._look_after, self._stopping),
            _Line(grid_orders, self.name, self._draw, lambda: None, self._stopping),
        )

    def start(self) -> None:
        """Take up what an earlier server left, and begin."""
        for orders in (self._orders, self._grid_orders):
            orders.recover()
        self._tell_all()
        for line in self._lines:
            line.start()

    def stop(self) -> None:
        """The training in hand saves and goes back to the queue."""
        self._stopping.set()
        for line in self._lines:
            line.wake()
        for line in self._lines:
            line.join(STOP)
        for each in self.processes:
            each.close()

    @property
    def processes(self) -> tuple[Host, Host]:
        """The one that trains, and the one that looks before and after."""
        return self._trainer, self._assistant

    # -- what somebody wants

    def begin(
        self, name: str, data: Path, params: TrainParams, owner: str = "local", overwrite: bool = False
    ) -> dict[str, Any]:
        """Queue a new one. Raises InvalidRequest for a name that cannot be, Conflict if there is one already, and to
        overwrite one if that waits or runs."""
        if overwrite:
            self._end_paused(self._orders.latest(name))
            self._end_grids(name)
        records.begin(self.root, name, data, params, overwrite)
        return self._queued(name, owner)

    def resume(self, name: str, changes: Mapping[str, Any], owner: str = "local") -> dict[str, Any]:
        """Go on with it, with what may change. Raises NotFound, InvalidRequest, Conflict if it waits or runs."""
        job = self._latest(name)
        if job and job.state in (JobState.QUEUED, JobState.RUNNING):
            raise Conflict(f"the training {name} is {job.state.value} already")
        records.resume(self.root, name, changes)
        if job and job.state is JobState.PAUSED:
            self._orders.resume(job.id)
            return self._told_all(name)
        return self._queued(name, owner)

    def pause(self, name: str) -> dict[str, Any]:
        """Save and put it aside, until it is resumed. Raises NotFound, Conflict if it neither waits nor runs."""
        job = self._unfinished(name)
        if job.state is JobState.RUNNING:
            self._running(job).is_paused = True
        else:
            self._orders.pause(job.id)
        return self._told_all(name)

    def stop_training(self, name: str) -> dict[str, Any]:
        """Save and end it; it can be resumed all the same. Raises NotFound, Conflict if there is nothing to stop."""
        job = self._orders.cancel(self._unfinished(name).id)
        if (run := self._run) and run.job.id == job.id:
            run.is_cancelled = True
        return self._told_all(name)

    def ask(self, name: str, wish: str) -> dict[str, Any]:
        """Have it `save` or `sample` after the step in hand. Raises NotFound, Conflict if it does not run."""
        self._running(self._unfinished(name)).sharing.asks.append(Message(wish))
        return self.view(name)

    def delete(self, name: str) -> None:
        """With all its files and grids, but not the LoRA. Raises NotFound, Conflict if it waits or runs."""
        self._end_paused(self._latest(name))
        self._end_grids(name)
        folder = records.read(self.root, name).folder
        with held(folder / records.LOCK) as lock:
            if lock is None:
                raise Conflict(f"the training {name} is running; stop it first")
        with self._telling:
            shutil.rmtree(folder)
            self._hub.forget_training(name)

    def rehearse(self, name: str, data: Path, params: TrainParams) -> dict[str, Any]:
        """What it would take, and what looks wrong, by one step. Raises whatever the training would."""
        asked = {"name": name, "data": str(data.absolute()), "params": params.model_dump(mode="json")}
        return self.assist("rehearse", asked)

    def learning_from(self, data: Path) -> str:
        """The name of a training that waits, runs or is paused, and learns from this folder; empty if none does."""
        for training in records.trainings(self.root):
            job = self._orders.latest(training.name)
            if training.data == data.absolute() and job and not job.state.is_final:
                return training.name
        return ""

    def caption(
        self,
        pictures: Sequence[Path],
        captioner: str,
        tell: Callable[[int, str], object],
        go_on: Callable[[], object] = lambda: None,
    ) -> None:
        """Have captions written: `tell` is given the number of a picture and its caption, `go_on` may raise to stop.

        Raises NotFound without a captioner, ModelBroken, ImageRefused.
        """
        found = captioners.find(self._models.models, captioner)

        def hear(message: Message | None) -> None:
            go_on()
            if message:
                tell(message.values["number"], message.values["caption"])

        asked = {"captioner": found.name, "pictures": [str(path.absolute()) for path in pictures]}
        self.assist("caption", asked, hear)

    def graphics_memory(self) -> float:
        """GB of the graphics card; 0 without one."""
        return float(self.assist("memory", {})["gigabytes"]) if has_accelerator() else 0.0

    def promote(self, name: str, step: int, as_name: str, overwrite: bool = False) -> dict[str, str]:
        """Put the LoRA of that step where prompts find it. Raises NotFound, InvalidRequest, Conflict, StorageFull."""
        training = records.read(self.root, name)
        files = promote(training, step, as_name, self._models.models / records.LORAS, overwrite)
        return {part: path.name for part, path in files.items()}

    def compare(self, name: str, wanted: GridParams, owner: str = "local") -> dict[str, Any]:
        """Queue a grid. Raises NotFound, InvalidRequest."""
        training = records.read(self.root, name)
        grid = grids.begin(training, wanted)
        self._grid_orders.submit(Order(training=name, grid=grid.id), owner)
        self._told_all(name)
        return grid_view(training, grid, self._grid_orders.latest(name, grid.id))

    def compared(self, name: str) -> list[dict[str, Any]]:
        """Its grids, the latest first. Raises NotFound."""
        training = records.read(self.root, name)
        found = grids.grids(training)
        return [grid_view(training, grid, self._grid_orders.latest(name, grid.id)) for grid in found]

    def assist(
        self, kind: str, values: Mapping[str, Any], hear: Callable[[Message | None], object] = lambda message: None
    ) -> dict[str, Any]:
        """Have it done beside the training that runs, which rests meanwhile; pictures go first.

        Raises whatever it or `hear` does.
        """

        def heard(message: Message | None) -> None:
            if self._stopping.is_set():
                raise Busy("the server is shutting down")
            hear(message)

        return Sharing(self._device, Rank.LOOK).run(self._assistant, kind, values, heard)

    # -- what is to be seen

    def view(self, name: str) -> dict[str, Any]:
        """Raises NotFound."""
        run = self._run
        if run and run.job.request.training == name:
            return self._view(run.training, run.job)
        training = records.read(self.root, name)
        return self._view(training, self._orders.latest(name))

    def views(self) -> list[dict[str, Any]]:
        return [self.view(training.name) for training in records.trainings(self.root)]

    def _view(self, training: Training, job: Job | None) -> dict[str, Any]:
        run = self._run
        progress = run.at if run and job and run.job.id == job.id else None
        waits = job and job.state is JobState.QUEUED
        position = self._orders.position(job.id) if job and waits else None
        drawing = self._drawing
        is_drawn = drawing is not None and drawing.job.request.training == training.name
        return {**view(training, job, position, progress), "grid": drawing.at if drawing and is_drawn else None}

    def _tell(self, name: str) -> dict[str, Any]:
        with self._telling:
            seen = self.view(name)
            self._hub.publish_training(seen)
        return seen

    def _tell_all(self) -> None:
        for training in records.trainings(self.root):
            self._tell(training.name)

    def _told_all(self, name: str) -> dict[str, Any]:
        """Something has changed with one, and perhaps with the place of the others."""
        for line in self._lines:
            line.wake()
        for job in self._orders.waiting():
            if job.request.training != name:
                self._tell(job.request.training)
        return self._tell(name)

    # -- jobs and what belongs to them

    def _queued(self, name: str, owner: str) -> dict[str, Any]:
        self._orders.submit(Order(training=name), owner)
        return self._told_all(name)

    def _latest(self, name: str) -> Job | None:
        return self._orders.latest(records.read(self.root, name).name)

    def _end_paused(self, job: Job | None) -> None:
        """Nobody goes on with it. Raises Conflict if it waits or runs."""
        if job and job.state in (JobState.QUEUED, JobState.RUNNING):
            raise Conflict(f"the training {job.request.training} is {job.state.value}; stop it first")
        if job and job.state is JobState.PAUSED:
            self._orders.cancel(job.id)

    def _end_grids(self, name: str) -> None:
        """Nobody draws any more for a training that goes."""
        for job in self._grid_orders.unfinished(name):
            self._grid_orders.cancel(job.id)
        if (drawing := self._drawing) and drawing.job.request.training == name:
            drawing.is_cancelled = True
            drawing.ended.wait()

    def _unfinished(self, name: str) -> Job:
        job = self._latest(name)
        if job is None or job.state.is_final:
            raise Conflict(f"the training {name} neither waits nor runs")
        return job

    def _running(self, job: Job) -> "_Run":
        run = self._run
        if run is None or run.job.id != job.id:
            raise Conflict(f"the training {job.request.training} is {job.state.value}; it does not run here")
        return run

    # -- the thread that has them done

    def _look_after(self) -> None:
        if self._orders.recover() + self._grid_orders.recover():
            self._tell_all()
        for each in self.processes:
            each.rest(LINGER)

    def _train(self, job: Job) -> None:
        name = job.request.training
        try:
            training = records.read(self.root, name)
        except NotFound as error:
            self._orders.fail(job.id, self.name, str(error))
            return
        run = self._run = _Run(job, training, self._device)
        run.is_cancelled = self._orders.get(job.id).stop  # asked for between the claim and the line above
        self._told_all(name)
        started = time.monotonic()
        try:
            ended = ending(self._orders, job, self.name, partial(self._have_done, run), self._stopping)
        finally:
            self._run = None
        log.info("training %s is %s after %.1f s", name, ended.state.value, time.monotonic() - started)
        self._told_all(name)

    def _have_done(self, run: "_Run") -> None:
        run.sharing.run(self._trainer, "train", {"name": run.training.name}, partial(self._hear, run))

    def _hear(self, run: "_Run", message: Message | None) -> None:
        self._renew(run)
        if message and message.kind == wire.PROGRESS:
            self._show(run, message.values)
        elif run.sharing.is_resting != run.at["resting"]:
            self._show(run, {})
        self._go_on(run)

    def _go_on(self, run: "_Run") -> None:
        if self._stopping.is_set():
            raise Stopping
        if run.is_cancelled:
            raise JobCancelled
        if run.is_paused:
            raise JobPaused

    def _renew(self, run: "_Run") -> None:
        now = time.monotonic()
        if now - run.renewed < RENEW:
            return
        late = now - run.renewed
        run.renewed = now
        try:
            done = run.training.done
            run.is_cancelled |= self._orders.renew(run.job.id, self.name, delivers=done > run.kept)
            run.kept = done
        except LeaseLost as error:
            raise LeaseLost(f"{LATE} ({late:.0f} s)") from error

    def _show(self, run: "_Run", said: Mapping[str, Any]) -> None:
        """Publish how far it is: at once if it is at something else now, else now and then."""
        now = time.monotonic()
        is_news = not said or said["stage"] != run.at.get("stage") or said["sample"]
        run.learn(said)
        if is_news or now - run.shown >= REFRESH:
            run.shown = now
            self._tell(run.training.name)

    # -- grids

    def _draw(self, job: Job) -> None:
        drawing = self._drawing = _Drawing(job)
        drawing.is_cancelled = self._grid_orders.get(job.id).stop  # asked for between the claim and the line above
        try:
            ending(self._grid_orders, job, self.name, partial(self._have_drawn, drawing), self._stopping)
        finally:
            self._drawing = None
            drawing.ended.set()
        with suppress(NotFound):
            self._tell(job.request.training)

    def _have_drawn(self, drawing: "_Drawing") -> None:
        job = drawing.job
        name, id = job.request.training, job.request.grid
        grid = grids.read(records.read(self.root, name), id)
        renewed = 0.0

        def hear(message: Message | None) -> None:
            nonlocal renewed
            if self._stopping.is_set():
                raise Stopping
            if time.monotonic() - renewed > RENEW:
                renewed = time.monotonic()
                drawing.is_cancelled |= self._grid_orders.renew(job.id, self.name)
            if drawing.is_cancelled:
                raise JobCancelled
            if message and message.values["drawn"] != (drawing.at or {}).get("drawn"):
                of = len(grid.steps) * len(grid.weights)
                drawing.at = {"training": name, "id": id, "drawn": message.values["drawn"], "of": of}
                self._tell(name)

        self.assist("grid", {"name": name, "grid": id}, hear)


class _Line:
    """A thread that takes up jobs one by one, and looks after things while there is none."""

    def __init__(
        self,
        orders: Orders,
        worker: str,
        work: Callable[[Job], None],
        idle: Callable[[], None],
        stopping: threading.Event,
    ) -> None:
        self._orders, self._worker = orders, worker
        self._do, self._idle = work, idle
        self._stopping = stopping
        self._news = threading.Event()
        self._thread = threading.Thread(target=self._run, name=orders.queue, daemon=True)

    def start(self) -> None:
        self._thread.start()

    def wake(self) -> None:
        self._news.set()

    def join(self, seconds: float) -> None:
        if self._thread.is_alive():
            self._thread.join(seconds)

    def _run(self) -> None:
        while not self._stopping.is_set():
            self._news.clear()
            try:
                if job := self._orders.claim(self._worker):
                    self._do(job)
                elif not self._news.wait(IDLE):
                    self._idle()
            except Exception:  # the database, mostly: what becomes of a job is caught nearer to it
                log.exception("the queue %s stands still; trying again", self._orders.queue)
                self._stopping.wait(RETRY)


class _Run:
    """The training in hand; other threads set what is looked at between two of its words."""

    def __init__(self, job: Job, training: Training, device: Device) -> None:
        self.job = job
        self.training = training
        self.sharing = Sharing(device, Rank.TRAINING)
        self.at: dict[str, Any] = {"stage": "waiting", "resting": False}
        self.is_cancelled = False
        self.is_paused = False
        self.kept = training.done
        """Steps that are safe."""
        self.shown = 0.0
        self.renewed = time.monotonic()

    def learn(self, said: Mapping[str, Any]) -> None:
        """How far it is, and its loss smoothed."""
        smooth = self.at.get("smoothed")
        if (loss := said.get("loss")) is not None and said["step"] != self.at.get("step"):
            smooth = loss if smooth is None else SMOOTH * smooth + (1 - SMOOTH) * loss
        self.at = {**self.at, **said, "smoothed": smooth, "resting": self.sharing.is_resting}


class _Drawing:
    """The grid in hand."""

    def __init__(self, job: Job) -> None:
        self.job = job
        self.at: Mapping[str, Any] | None = None
        """How far it is."""
        self.is_cancelled = False
        self.ended = threading.Event()
