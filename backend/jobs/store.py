"""Jobs in the database: a request that waits, runs or has run, whose it is, and who is drawing it.

A running job is held by a lease. Whoever holds it renews it; a job whose holder has died, or whose lease has run
out, goes back to the queue, and what a former holder still says about it is refused (`LeaseLost`). Pictures that
were delivered stay delivered, so that a job is never lost and nothing of it is done twice.
"""

import logging
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from typing import Any, Generic, TypeVar

import sqlalchemy as sa
from sqlalchemy import Connection, Engine, Row

from backend import lineage
from backend.database import job_inputs, jobs, picture_sources, writing
from backend.errors import AtelierError, InvalidRequest, NotFound
from backend.images import ImageStore
from backend.jobs import process
from backend.params import Params
from backend.request import GenerationRequest, parse_request

log = logging.getLogger(__name__)
R = TypeVar("R", bound=Params)

LEASE = timedelta(seconds=30)
RENEW = LEASE.total_seconds() / 6
MAX_CRASHES = 2
"""How often a job may end its worker before it is given up."""
MAX_FRUITLESS = 5
"""How often a job's server may end, without one more picture of it, before it is given up."""
QUEUE = "main"
_PRIVATE = "process:"

NEXT = (jobs.c.priority.desc(), jobs.c.id)
"""The order in which waiting jobs are drawn."""


class JobState(StrEnum):
    QUEUED = "queued"
    RUNNING = "running"
    PAUSED = "paused"
    """Put aside by its owner; nobody takes it up until it is resumed."""
    DONE = "done"
    FAILED = "failed"
    CANCELLED = "cancelled"

    @property
    def is_final(self) -> bool:
        return self in (JobState.DONE, JobState.FAILED, JobState.CANCELLED)


class LeaseLost(AtelierError):
    """The job is not, or no longer, this worker's."""

    status = 409


@dataclass(frozen=True)
class JobOf(Generic[R]):
    """A job whose request is of the class that its kind has."""

    id: int
    kind: str
    queue: str
    state: JobState
    owner: str
    priority: int
    request: R
    problem: str | None
    """Why the row's request cannot be read any more; `request` is then what can."""
    parent: int | None
    worker: str | None
    stop: bool
    """Asked to stop while it runs."""
    attempts: int
    crashes: int
    error: str | None
    created: datetime
    started: datetime | None
    """The latest time."""
    finished: datetime | None


Job = JobOf[GenerationRequest]


def private_queue() -> str:
    """A queue that only this process draws from; its jobs end when the process does."""
    return _PRIVATE + process.me()


class StoreOf(ABC, Generic[R]):
    """The jobs of one kind; `queue` is the one that `submit`, `claim` and `waiting` speak of."""

    kind: str
    doing: str
    """What its worker is at, in the words of an error."""

    def __init__(self, engine: Engine, queue: str) -> None:
        self.queue = queue
        self._engine = engine

    def submit(self, request: R, owner: str, *, parent: int | None = None, priority: int = 0) -> JobOf[R]:
        """Queue a request; a higher priority is taken up sooner."""
        new = sa.insert(jobs).values(
            kind=self.kind,
            queue=self.queue,
            state=JobState.QUEUED,
            owner=owner,
            priority=priority,
            request=request.model_dump(mode="json"),  # in full: a default may be another one in a later version
            parent=parent,
            stop=False,
            attempts=0,
            fruitless=0,
            crashes=0,
            created=_now(),
        )
        with writing(self._engine) as connection:
            job = self._job(connection.execute(new.returning(jobs)).one())
            if images := lineage.inputs(request):
                rows = [{"job": job.id, "name": image.name, "sha256": image.sha256} for image in images]
                connection.execute(sa.insert(job_inputs), rows)
        return job

    def claim(self, worker: str) -> JobOf[R] | None:
        """The next waiting job, now running and leased to `worker`; None if there is none."""
        now = _now()
        following = (
            sa.select(jobs.c.id)
            .where(jobs.c.state == JobState.QUEUED, jobs.c.queue == self.queue)
            .order_by(*NEXT)
            .limit(1)
            .with_for_update(skip_locked=True)  # PostgreSQL; SQLite has one writer at a time
        )
        claim = (
            sa.update(jobs)
            .where(jobs.c.id == following.scalar_subquery(), jobs.c.state == JobState.QUEUED)
            .values(
                state=JobState.RUNNING,
                worker=worker,
                lease=now + LEASE,
                attempts=jobs.c.attempts + 1,
                fruitless=jobs.c.fruitless + 1,
                started=now,
            )
            .returning(jobs)
        )
        while True:
            with writing(self._engine) as connection:
                row = connection.execute(claim).one_or_none()
            if row is None:
                return None
            job = self._job(row)
            if job.problem is None:
                return job
            self.fail(job.id, worker, f"this job can no longer be read: {job.problem}")

    def renew(self, job_id: int, worker: str, delivers: bool = False) -> bool:
        """Hold the job for another while; whether it was asked to stop. Raises LeaseLost.

        A job that `delivers` a picture is no job that only ever brings its server down.
        """
        values: dict[str, Any] = {"lease": _now() + LEASE}
        return self._change_held(job_id, worker, {**values, "fruitless": 0} if delivers else values).stop

    def finish(self, job_id: int, worker: str, state: JobState = JobState.DONE, error: str | None = None) -> JobOf[R]:
        """The job has come to its end. Raises LeaseLost, and changes nothing, if it is not this worker's any more."""
        assert state.is_final
        return self._change_held(job_id, worker, _ended(state, error and error[:4000]))

    def fail(self, job_id: int, worker: str, error: str) -> JobOf[R]:
        return self.finish(job_id, worker, JobState.FAILED, error)

    def release(self, job_id: int, worker: str) -> JobOf[R]:
        """Back to the queue, as if it had not been started: the worker is being shut down."""
        with writing(self._engine) as connection:
            row = self._held(connection, job_id, worker)
            counts = {"attempts": row.attempts - 1, "fruitless": max(0, row.fruitless - 1)}
            return self._change(connection, job_id, {**_QUEUED_AGAIN, **counts})

    def crashed(self, job_id: int, worker: str, reason: str) -> JobOf[R]:
        """The job's worker has died while drawing it: back to the queue, or failed if it is not the first time."""
        with writing(self._engine) as connection:
            job = self._job(self._held(connection, job_id, worker))
            crashes = job.crashes + 1
            change: Mapping[str, Any]
            if job.stop:
                change = _ended(JobState.CANCELLED, None)
            elif crashes >= MAX_CRASHES:
                times = {1: "once", 2: "twice"}.get(crashes, f"{crashes} times")
                change = _ended(
                    JobState.FAILED, f"the engine process ended {times} while {self.doing} this ({reason})"
                )
            else:
                change = _QUEUED_AGAIN
            return self._change(connection, job_id, {**change, "crashes": crashes})

    def cancel(self, job_id: int) -> JobOf[R]:
        """A waiting or paused job is cancelled, a running one asked to stop; one that has ended stays as it is."""
        with writing(self._engine) as connection:
            job = self._job(self._row(connection, job_id))
            if job.state in (JobState.QUEUED, JobState.PAUSED):
                return self._change(connection, job_id, _ended(JobState.CANCELLED, None))
            if job.state is JobState.RUNNING:
                return self._change(connection, job_id, {"stop": True})
            return job

    def pause(self, job_id: int, worker: str | None = None) -> JobOf[R]:
        """Put aside one that waits, or the one that `worker` runs; any other stays as it is. Raises LeaseLost."""
        if worker is not None:
            return self._change_held(job_id, worker, {**_QUEUED_AGAIN, "state": JobState.PAUSED})
        return self._change_if(job_id, JobState.QUEUED, {"state": JobState.PAUSED})

    def resume(self, job_id: int) -> JobOf[R]:
        """Back into the queue, at its place."""
        return self._change_if(job_id, JobState.PAUSED, {"state": JobState.QUEUED})

    def recover(self) -> list[JobOf[R]]:
        """Take back running jobs whose holder has died or gone silent, and end those of commands that have ended."""
        unfinished = sa.select(jobs).where(
            jobs.c.kind == self.kind,
            sa.or_(
                jobs.c.state == JobState.RUNNING,
                sa.and_(jobs.c.state == JobState.QUEUED, jobs.c.queue.startswith(_PRIVATE, autoescape=True)),
            ),
        )
        with self._engine.connect() as connection:  # mostly there is nothing to do, and nothing to lock for it
            if not any(_left_over(row) for row in connection.execute(unfinished)):
                return []
        with writing(self._engine) as connection:
            rows = [row for row in connection.execute(unfinished).all() if _left_over(row)]
            found = [self._change(connection, row.id, _what_becomes_of(row)) for row in rows]
        for job in found:
            log.info("job %d was left unfinished (attempt %d); it is now %s", job.id, job.attempts, job.state.value)
        return found

    def get(self, job_id: int) -> JobOf[R]:
        with self._engine.connect() as connection:
            return self._job(self._row(connection, job_id))

    def recent(
        self,
        owner: str | None = None,
        states: Iterable[JobState] | None = None,
        before: int | None = None,
        limit: int = 50,
    ) -> list[JobOf[R]]:
        """Newest first, of every queue."""
        query = sa.select(jobs).where(jobs.c.kind == self.kind).order_by(jobs.c.id.desc()).limit(limit)
        if owner is not None:
            query = query.where(jobs.c.owner == owner)
        if states is not None:
            query = query.where(jobs.c.state.in_(list(states)))
        if before is not None:
            query = query.where(jobs.c.id < before)
        return self._jobs(query)

    def waiting(self) -> list[JobOf[R]]:
        """The queue, the next one first."""
        query = sa.select(jobs).where(jobs.c.state == JobState.QUEUED, jobs.c.queue == self.queue)
        return self._jobs(query.order_by(*NEXT))

    def position(self, job_id: int) -> int | None:
        """1 if it is the next one of its queue; None if it does not wait."""
        with self._engine.connect() as connection:
            row = self._row(connection, job_id)
            if row.state != JobState.QUEUED:
                return None
            queue = sa.select(jobs.c.id).where(jobs.c.state == JobState.QUEUED, jobs.c.queue == row.queue)
            return list(connection.scalars(queue.order_by(*NEXT))).index(job_id) + 1

    def _jobs(self, query: sa.Select[Any]) -> list[JobOf[R]]:
        with self._engine.connect() as connection:
            return [self._job(row) for row in connection.execute(query)]

    def _row(self, connection: Connection, job_id: int) -> Row[Any]:
        row = connection.execute(sa.select(jobs).where(jobs.c.id == job_id, jobs.c.kind == self.kind)).one_or_none()
        if row is None:
            raise NotFound(f"there is no job {job_id}")
        return row

    def _held(self, connection: Connection, job_id: int, worker: str) -> Row[Any]:
        row = self._row(connection, job_id)
        if row.state != JobState.RUNNING or row.worker != worker:
            raise LeaseLost(f"job {job_id} is not this worker's any more")
        return row

    def _change_held(self, job_id: int, worker: str, values: Mapping[str, Any]) -> JobOf[R]:
        with writing(self._engine) as connection:
            self._held(connection, job_id, worker)
            return self._change(connection, job_id, values)

    def _change_if(self, job_id: int, state: JobState, values: Mapping[str, Any]) -> JobOf[R]:
        with writing(self._engine) as connection:
            row = self._row(connection, job_id)
            return self._change(connection, job_id, values) if row.state == state else self._job(row)

    def _change(self, connection: Connection, job_id: int, values: Mapping[str, Any]) -> JobOf[R]:
        change = sa.update(jobs).where(jobs.c.id == job_id).values(**values).returning(jobs)
        return self._job(connection.execute(change).one())

    def _job(self, row: Row[Any]) -> JobOf[R]:
        request, problem = self._read(row.request)
        return JobOf(
            id=row.id,
            kind=row.kind,
            queue=row.queue,
            state=JobState(row.state),
            owner=row.owner,
            priority=row.priority,
            request=request,
            problem=problem,
            parent=row.parent,
            worker=row.worker,
            stop=row.stop,
            attempts=row.attempts,
            crashes=row.crashes,
            error=row.error,
            created=row.created,
            started=row.started,
            finished=row.finished,
        )

    @abstractmethod
    def _read(self, values: Any) -> tuple[R, str | None]:
        """The request of a row, and what is wrong with it."""


class JobStore(StoreOf[GenerationRequest]):
    """Those of pictures."""

    kind = "generate"
    doing = "drawing"

    def __init__(self, engine: Engine, extensions: Mapping[str, type[Params]], queue: str = QUEUE) -> None:
        super().__init__(engine, queue)
        self._extensions = extensions

    def forget_inputs(self, images: ImageStore, since: float) -> int:
        """Delete the input images that no job and no picture names and nobody has used since then: previews, drafts.

        How many. While it looks no job can come to name one.
        """
        gone, refs = 0, list(images.unused_since(since))
        for first in range(0, len(refs), 500):
            some = refs[first : first + 500]
            with writing(self._engine) as connection:
                named = {
                    ref
                    for table in (job_inputs, picture_sources)
                    for ref in connection.scalars(sa.select(table.c.sha256).where(table.c.sha256.in_(some)))
                }
                gone += sum(images.forget(ref, since) for ref in some if ref not in named)
        return gone

    def _read(self, values: Any) -> tuple[GenerationRequest, str | None]:
        """The request of a row, and what is wrong with it: an extension has gone, a limit is another one now."""
        if not isinstance(values, dict):
            return GenerationRequest(), "it is no request"
        try:
            return parse_request(values, self._extensions), None
        except InvalidRequest as error:
            problem, wrong = str(error), {p.field.split(".")[0] for p in error.problems}
        try:
            return parse_request({k: v for k, v in values.items() if k not in wrong}, self._extensions), problem
        except InvalidRequest:
            return GenerationRequest(), problem


_QUEUED_AGAIN: Mapping[str, Any] = {"state": JobState.QUEUED, "worker": None, "lease": None}


def _ended(state: JobState, error: str | None) -> dict[str, Any]:
    return {"state": state, "error": error, "finished": _now(), "worker": None, "lease": None}


def _left_over(row: Row[Any]) -> bool:
    if row.state == JobState.QUEUED:
        return process.is_alive(row.queue.removeprefix(_PRIVATE)) is False
    return row.lease is None or row.lease < _now() or process.is_alive(row.worker or "") is False


def _what_becomes_of(row: Row[Any]) -> Mapping[str, Any]:
    if row.queue.startswith(_PRIVATE) and process.is_alive(row.queue.removeprefix(_PRIVATE)) is not True:
        return _ended(JobState.CANCELLED, "the command that asked for this ended before it was done")
    if row.stop:
        return _ended(JobState.CANCELLED, None)
    if row.fruitless >= MAX_FRUITLESS:
        return _ended(JobState.FAILED, f"it was started {row.fruitless} times, and the server ended each time")
    return _QUEUED_AGAIN


def _now() -> datetime:
    return datetime.now(UTC)
