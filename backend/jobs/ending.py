"""How a job ends: whatever happens to its work becomes a state in the database and a sentence for its owner."""

import logging
import threading
from collections.abc import Callable
from typing import TypeVar

from sqlalchemy.exc import SQLAlchemyError

from backend.errors import AtelierError, WorkerDied, unforeseen
from backend.jobs.store import JobOf, JobState, LeaseLost, StoreOf
from backend.params import Params
from backend.result import JobCancelled

log = logging.getLogger(__name__)
R = TypeVar("R", bound=Params)

RETRY = 1.0
"""Seconds between two tries to write what became of a job while the database cannot be written."""
LATE = "its lease ran out while this computer slept or was too busy"


class Stopping(Exception):
    """The server is shutting down."""


class JobPaused(JobCancelled):
    """Stop at once and put the job aside, to go on later."""


def ending(
    jobs: StoreOf[R], job: JobOf[R], worker: str, work: Callable[[], object], stopping: threading.Event
) -> JobOf[R]:
    """Do the work of a job that `worker` holds; the job as it is then."""
    return _written(jobs, job, _outcome(jobs, job, worker, work, stopping), stopping)


def _outcome(
    jobs: StoreOf[R], job: JobOf[R], worker: str, work: Callable[[], object], stopping: threading.Event
) -> Callable[[], JobOf[R]]:
    """What is to be written about the job when its work has ended."""
    try:
        work()
        return lambda: jobs.finish(job.id, worker)
    except JobPaused:
        return lambda: jobs.pause(job.id, worker)
    except JobCancelled:
        return lambda: jobs.finish(job.id, worker, JobState.CANCELLED)
    except Stopping:
        return lambda: jobs.release(job.id, worker)
    except LeaseLost as error:
        log.warning("job %d is left to another: %s", job.id, error)
        return lambda: jobs.get(job.id)
    except WorkerDied as error:
        if stopping.is_set():
            return lambda: jobs.release(job.id, worker)
        log.warning("job %d: %s", job.id, error)
        reason = error.reason
        return lambda: jobs.crashed(job.id, worker, reason)
    except AtelierError as error:
        log.warning("job %d failed: %s", job.id, error)
        message = str(error)
    except Exception as error:
        message = unforeseen(error)
        log.exception("job %d failed: %s", job.id, message)
    return lambda: jobs.fail(job.id, worker, message)


def _written(jobs: StoreOf[R], job: JobOf[R], outcome: Callable[[], JobOf[R]], stopping: threading.Event) -> JobOf[R]:
    """Tell the database, however long it takes: on a full disk it cannot be told."""
    said = False
    while True:
        try:
            return outcome()
        except LeaseLost:
            return jobs.get(job.id)
        except (SQLAlchemyError, AtelierError) as error:
            if not said:
                log.error("what became of the job cannot be written yet: %s", error)
            said = True
            if stopping.wait(RETRY):
                raise
