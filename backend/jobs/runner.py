"""The thread that draws: claims a job, has its worker draw it, saves the pictures, tells how it goes.

A second thread renews the lease and tells the others in the queue how far they have come.
"""

import logging
import secrets
import threading
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from sqlalchemy.exc import SQLAlchemyError

from backend.errors import AtelierError, Busy, EngineFailed, unforeseen
from backend.gallery.index import Gallery, Saved
from backend.images import ImageStore
from backend.jobs import errands, process
from backend.jobs.device import Device
from backend.jobs.ending import LATE, RETRY, Stopping, ending
from backend.jobs.errands import Errand, Errands
from backend.jobs.events import Hub
from backend.jobs.pace import Pace
from backend.jobs.store import RENEW, Job, JobState, JobStore, LeaseLost
from backend.jobs.view import view
from backend.jobs.worker import Worker
from backend.result import BatchSkipped, JobCancelled, Progress

log = logging.getLogger(__name__)

IDLE = 5.0
"""Seconds between two looks for jobs that another process has queued or left behind."""
REFRESH = 0.04
"""Seconds between two views of a job that differ by steps only."""
STOP = 2.0
"""Seconds for the engine to stop when the server does."""


FINISHED = 5
"""How many finished jobs a page that is opened after the start is told of."""


class Runner:
    def __init__(
        self,
        worker: Worker,
        jobs: JobStore,
        gallery: Gallery,
        images: ImageStore,
        hub: Hub,
        device: Device | None = None,
    ) -> None:
        self.name = f"{process.me()}/{secrets.token_hex(4)}"
        """Who holds the leases."""
        self._worker = worker
        self._jobs = jobs
        self._gallery = gallery
        self._images = images
        self._hub = hub
        self._turn = (device or Device()).turn()
        """Kept from one picture to the next while there are any."""
        self._run: _Run | None = None
        self._stopping = threading.Event()
        self._work = threading.Event()
        self.errands = Errands(self._work.set)
        """What extensions ask of the engine; run before the next job is claimed."""
        self._news = threading.Event()
        self._telling = threading.Lock()
        """Held while a state is read and published, so that views come out in the order of the states."""
        self._threads = [
            threading.Thread(target=self._draw_all, name="runner", daemon=True),
            threading.Thread(target=self._keep, name="keeper", daemon=True),
        ]

    def start(self) -> None:
        """Take up what an earlier server left, and begin."""
        self._jobs.recover()
        for job in reversed(self._jobs.recent(states=[s for s in JobState if s.is_final], limit=FINISHED)):
            self._tell(job)
        self._tell_queue()
        self._worker.watch(self._hub.publish_engine)
        self._worker.start()
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """End the worker; the job in hand goes back to the queue, its finished pictures are kept."""
        self._stopping.set()
        self._work.set()
        self._news.set()
        drawing, keeping = self._threads
        if drawing.is_alive():
            drawing.join(STOP)
        self._worker.close()
        for thread in (drawing, keeping):
            if thread.is_alive():
                thread.join(STOP)
        self.errands.close()

    def wake(self) -> None:
        """The queue has changed."""
        self._work.set()
        self._news.set()

    def cancel(self, job_id: int) -> Job:
        """At once if it waits, within a step if it runs; its finished pictures stay."""
        job = self._jobs.cancel(job_id)
        run = self._run
        if run and run.job.id == job_id:
            run.is_cancelled = True
        if job.state.is_final:
            with self._telling:
                self._tell(job)
        self._news.set()
        return job

    def skip(self, job_id: int) -> None:
        """Go on with the next batch, if the job runs."""
        run = self._run
        if run and run.job.id == job_id:
            run.skipped = run.at.batch

    def state(self) -> dict[str, Any]:
        """Of the worker: state, device, detail."""
        return self._worker.state()

    # -- the drawing thread

    def _draw_all(self) -> None:
        while not self._stopping.is_set():
            self._work.clear()
            try:
                while not self._stopping.is_set() and (errand := self.errands.take()):
                    self._run_errand(errand)
                job = self._jobs.claim(self.name)
                if job is not None:
                    self._draw(job)
                    continue
                self._turn.give_back()
                self._news.set()  # the claim may have found jobs that cannot be read
                if not self._work.wait(IDLE):
                    self._recover()
            except Exception:  # the database, mostly: what becomes of a job is caught nearer to it
                log.exception("the queue stands still; trying again")
                self._stopping.wait(RETRY)

    def _run_errand(self, errand: Errand) -> None:
        started = time.monotonic()

        def go_on() -> None:
            if self._stopping.is_set():
                raise Busy("the server is shutting down")
            if time.monotonic() - started > errands.LIMIT:
                raise EngineFailed(f"{errand.name} took longer than {errands.LIMIT:.0f} s and was stopped")

        try:
            self._turn.take(go_on)
            answer = self._worker.errand(errand.extension, errand.name, errand.values, go_on)
        except AtelierError as error:
            errand.answer.set_exception(error)
        except Exception as error:
            said = unforeseen(error)
            log.exception("the errand %s of %s failed: %s", errand.name, errand.extension, said)
            errand.answer.set_exception(EngineFailed(said))
        else:
            errand.answer.set_result(answer)
        log.info("errand %s of %s ended after %.1f s", errand.name, errand.extension, time.monotonic() - started)

    def _draw(self, job: Job) -> None:
        started = time.monotonic()
        run = _Run(job, self._gallery.of(job.id), Pace(started))
        self._run = run
        try:
            run.is_cancelled = self._jobs.get(job.id).stop  # asked for between the claim and the line above
            self._show(run, run.at)
            self._news.set()
            ended = ending(self._jobs, job, self.name, lambda: self._draw_rest(run), self._stopping)
        finally:
            with self._telling:
                self._run = None
        seconds = time.monotonic() - started
        log.info("job %d is %s after %.1f s, %d pictures", job.id, ended.state.value, seconds, len(run.saved))
        with self._telling:
            self._tell(ended, run.notices)
        self._news.set()

    def _draw_rest(self, run: "_Run") -> None:
        job = run.job
        if job.attempts > 1:
            self._gallery.tidy(job)
        done = frozenset(run.saved)
        if not done.issuperset(range(job.request.images)):
            self._turn.take(lambda: self._go_on(run))
            self._worker.generate(job.request, self._images, lambda progress: self._report(run, progress), done)

    def _report(self, run: "_Run", progress: Progress) -> None:
        run.notices = progress.notices
        if run.is_lost:
            raise LeaseLost(LATE)
        if progress.picture:
            # first, so that no file is written for a job that is another's by now
            run.is_cancelled |= self._jobs.renew(run.job.id, self.name, delivers=True)
            run.saved[progress.picture.index] = self._gallery.add(run.job, progress.picture)
            # it was encoded beside the next batch, which may have come further
            self._show(run, run.at if progress.batch <= run.at.batch else replace(progress, picture=None))
        elif run.is_news(progress, time.monotonic()):
            self._show(run, progress)
        self._go_on(run)
        if run.skipped is not None:
            skip, run.skipped = run.skipped == progress.batch, None
            if skip:
                raise BatchSkipped

    def _go_on(self, run: "_Run") -> None:
        if self._stopping.is_set():
            raise Stopping
        if run.is_cancelled:
            raise JobCancelled

    # -- the keeping thread

    def _keep(self) -> None:
        renewed = time.monotonic()
        while not self._stopping.is_set():
            try:
                self._news.wait(RENEW)
                self._news.clear()
                self._tell_queue()
                if time.monotonic() - renewed >= RENEW:
                    renewed = time.monotonic()
                    self._renew()
            except (SQLAlchemyError, AtelierError) as error:
                log.debug("the lease and the queue: %s", error)  # the drawing thread meets it too, and says so
                self._stopping.wait(RETRY)
            except Exception:
                log.exception("the lease and the queue")
                self._stopping.wait(RETRY)

    def _renew(self) -> None:
        run = self._run
        if run is None:
            return
        try:
            if self._jobs.renew(run.job.id, self.name):  # another process has asked it to stop
                run.is_cancelled = True
        except LeaseLost:
            if self._run is run:  # not just finished
                run.is_lost = True

    # -- telling

    def _recover(self) -> None:
        for job in self._jobs.recover():
            with self._telling:
                self._tell(job)
            self._news.set()

    def _tell_queue(self) -> None:
        """The waiting jobs whose place has changed, and those that another process draws or has drawn."""
        with self._telling:
            waiting = self._jobs.waiting()
            pictures = self._gallery.of_all(job.id for job in waiting)
            for position, job in enumerate(waiting, 1):
                known = self._hub.get(job.id)
                if known is None or known["state"] != "queued" or known["position"] != position:
                    self._hub.publish(view(job, None, pictures.pop(job.id), position))
            ids = {job.id for job in waiting}
            for known in self._hub.snapshot():
                if known["state"] in ("queued", "running") and known["id"] not in ids:
                    job = self._jobs.get(known["id"])
                    if job.state.value != known["state"]:
                        self._tell(job)

    def _tell(self, job: Job, notices: Sequence[str] = ()) -> None:
        """Publish a job that does not run here."""
        run = self._run
        if run is None or run.job.id != job.id:
            self._hub.publish(view(job, None, self._gallery.of(job.id), notices=notices))

    def _show(self, run: "_Run", progress: Progress) -> None:
        with self._telling:
            now = time.monotonic()
            run.at, run.shown = progress, now
            moment, pictures = run.pace.at(progress, now), [run.saved[i] for i in sorted(run.saved)]
            self._hub.publish(view(run.job, moment, pictures, notices=run.notices))


class _Run:
    """The job in hand; other threads set what it reads at its next report."""

    def __init__(self, job: Job, saved: list[Saved], pace: Pace) -> None:
        self.job = job
        self.saved = {picture.index: picture for picture in saved}
        self.pace = pace
        self.at = Progress("waiting")
        self.notices: tuple[str, ...] = ()
        self.shown = 0.0
        self.skipped: int | None = None
        """The batch to drop."""
        self.is_cancelled = False
        self.is_lost = False

    def is_news(self, progress: Progress, now: float) -> bool:
        """Whether it is worth a view: not the same again, and not too soon for a mere step."""
        if progress.preview or progress.stage != self.at.stage:
            return True
        return progress != replace(self.at, preview=None, picture=None) and now - self.shown >= REFRESH
