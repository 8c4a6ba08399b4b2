"""Trainings and grids in their queues: a job says which one; what it is told lies on the disk (see `records`)."""

import sqlalchemy as sa
from sqlalchemy import Engine

from backend.database import jobs
from backend.jobs.store import JobOf, StoreOf
from backend.params import Params, validate


class Order(Params):
    """Have this training done, from where it is to its end; or that grid of it."""

    training: str
    grid: str = ""


Job = JobOf[Order]


class Orders(StoreOf[Order]):
    """Jobs of a kind, in the queue of that name; `doing` as an error has it."""

    def __init__(self, engine: Engine, kind: str, doing: str) -> None:
        super().__init__(engine, kind)
        self.kind, self.doing = kind, doing

    def latest(self, training: str, grid: str = "") -> Job | None:
        """The last job for it; None if the page has never asked for one."""
        wanted = {"training": training, "grid": grid}
        query = sa.select(jobs).where(jobs.c.kind == self.kind)
        query = query.where(*(jobs.c.request[key].as_string() == value for key, value in wanted.items()))
        found = self._jobs(query.order_by(jobs.c.id.desc()).limit(1))
        return found[0] if found else None

    def unfinished(self, training: str) -> list[Job]:
        """Jobs for it that wait or run."""
        query = sa.select(jobs).where(jobs.c.kind == self.kind, jobs.c.request["training"].as_string() == training)
        return [job for job in self._jobs(query) if not job.state.is_final]

    def _read(self, values: object) -> tuple[Order, str | None]:
        return validate(Order, values), None
