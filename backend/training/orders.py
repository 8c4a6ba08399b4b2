"""Trainings in the queue: a job says which one; what it is told lies on the disk (see `records`). No torch."""

import sqlalchemy as sa
from sqlalchemy import Engine

from backend.database import jobs
from backend.jobs.store import JobOf, StoreOf
from backend.params import Params, validate

QUEUE = "training"


class Order(Params):
    """Have this training done, from where it is to its end."""

    training: str


Job = JobOf[Order]


class Orders(StoreOf[Order]):
    kind = "train"
    doing = "training"

    def __init__(self, engine: Engine) -> None:
        super().__init__(engine, QUEUE)

    def latest(self, training: str) -> Job | None:
        """The last job for it; None if the page has never asked for one."""
        query = sa.select(jobs).where(jobs.c.kind == self.kind, jobs.c.request["training"].as_string() == training)
        found = self._jobs(query.order_by(jobs.c.id.desc()).limit(1))
        return found[0] if found else None

    def _read(self, values: object) -> tuple[Order, str | None]:
        return validate(Order, values), None
