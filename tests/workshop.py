"""What the tests of jobs share: a store, a gallery and a runner in a folder, the fake engine in a real process."""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sqlalchemy import Engine

from backend import database
from backend.gallery.index import Gallery
from backend.images import ImageStore
from backend.jobs.events import Hub
from backend.jobs.runner import Runner
from backend.jobs.store import QUEUE, Job, JobStore
from backend.jobs.worker import ProcessWorker
from backend.request import GenerationRequest
from tests.waiting import wait_for

ROOT = Path(__file__).parent.parent
FAKE = "tests.fake_engine:FakeEngine"


@dataclass(frozen=True)
class Workshop:
    folder: Path
    engine: Engine
    jobs: JobStore
    gallery: Gallery
    hub: Hub
    worker: ProcessWorker
    runner: Runner

    def submit(self, prompt: str = "", **fields: Any) -> Job:
        job = self.jobs.submit(request(prompt, **fields), "local")
        self.runner.wake()
        return job

    def wait(self, job: Job) -> Job:
        """The job when it has come to an end, and the hub knows."""
        wait_for(lambda: (self.hub.get(job.id) or {}).get("state") in ("done", "failed", "cancelled"))
        return self.jobs.get(job.id)

    def files(self) -> list[Path]:
        return sorted(p for p in (self.folder / "outputs").rglob("*") if p.is_file())


def request(prompt: str = "", **fields: Any) -> GenerationRequest:
    return GenerationRequest(**{"prompt": prompt, "seed": 1, "steps": 4, "width": 64, "height": 64, **fields})


def open_database(folder: Path) -> Engine:
    engine = database.connect(f"sqlite:///{folder / 'atelier.db'}")
    database.migrate(engine)
    return engine


def build(folder: Path, queue: str = QUEUE, **how: Any) -> Workshop:
    engine = open_database(folder)
    jobs = JobStore(engine, {}, queue)
    gallery = Gallery(engine, folder / "outputs", folder / "thumbs")
    hub = Hub()
    worker = ProcessWorker(folder / "models", folder / "extensions", folder / "inputs", engine=FAKE, **how)
    runner = Runner(worker, jobs, gallery, ImageStore(folder / "inputs"), hub)
    return Workshop(folder, engine, jobs, gallery, hub, worker, runner)


@contextlib.contextmanager
def running(folder: Path, queue: str = QUEUE, **how: Any) -> Iterator[Workshop]:
    workshop = build(folder, queue, **how)
    workshop.runner.start()
    try:
        yield workshop
    finally:
        workshop.runner.stop()
        workshop.engine.dispose()
