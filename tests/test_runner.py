"""From the queue to the gallery: whatever happens to one job, it is told, and the next one is drawn."""

import os
import re
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from backend import database
from backend.jobs import runner as runner_module
from backend.jobs.store import Job, JobState, JobStore, private_queue
from tests import workshop
from tests.waiting import wait_for
from tests.workshop import Workshop, request

posix = pytest.mark.skipif(os.name == "nt", reason="signals")


@pytest.fixture(scope="module")
def _shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Workshop]:
    with workshop.running(tmp_path_factory.mktemp("runner")) as shared:
        yield shared


@pytest.fixture
def shop(_shared: Workshop) -> Workshop:
    """One for all tests; each looks at its own jobs."""
    return _shared


def view(shop: Workshop, job: Job) -> dict[str, Any]:
    return shop.hub.get(job.id) or {}


def drawing(shop: Workshop, job: Job, step: int = 1, batch: int = 0) -> dict[str, Any]:
    """The view of the job when it has come so far."""

    def far() -> dict[str, Any] | None:
        at = view(shop, job).get("progress") or {"batch": -1, "step": 0}
        return view(shop, job) if (at["batch"], at["step"]) >= (batch, step) else None

    return wait_for(far)


def test_a_job_becomes_pictures(shop: Workshop) -> None:
    job = shop.wait(shop.submit("a circle", batch_size=2, n_iter=2))
    assert (job.state, job.error, job.attempts) == (JobState.DONE, None, 1)
    assert job.started
    assert job.finished
    assert job.created <= job.started <= job.finished
    saved = shop.gallery.of(job.id)
    assert [(picture.index, picture.seed) for picture in saved] == [(0, 1), (1, 2), (2, 3), (3, 4)]
    assert all(shop.gallery.path(picture).stat().st_size == picture.bytes for picture in saved)


def test_what_the_owner_should_know_stays_with_the_job(shop: Workshop) -> None:
    job = shop.submit("notice:less-memory")
    shop.wait(job)
    ended = wait_for(lambda: seen if (seen := view(shop, job)).get("state") == "done" else None)
    assert ended["notices"] == ["less-memory"]
    assert view(shop, shop.wait(shop.submit("a circle"))).get("notices", []) == []


def test_the_view_holds_all_that_a_page_shows(shop: Workshop) -> None:
    job = shop.submit("slow:0.05 wait:1", steps=10, n_iter=2)
    seen = drawing(shop, job, 4)
    assert seen["state"] == "running"
    assert seen["request"] == job.request.model_dump(mode="json")
    assert seen["preview"] == "data:image/webp;base64,cHJldmlldw=="
    progress = seen["progress"]
    assert (progress["stage"], progress["steps"], progress["batches"]) == ("sampling", 10, 2)
    assert progress["fraction"] == pytest.approx((10 * progress["batch"] + progress["step"]) / 20)
    assert 0 <= progress["eta"] < 200
    assert progress["elapsed"] > 0
    seen = drawing(shop, job, 1, batch=1)
    (picture,) = seen["pictures"]
    assert picture["url"] == f"img/{picture['id']}"
    assert picture["thumb"] == f"thumbs/{picture['id']}?s=256"
    shop.runner.cancel(job.id)
    shop.wait(job)
    final = view(shop, job)
    assert (final["state"], final["progress"], final["preview"]) == ("cancelled", None, None)
    assert len(final["pictures"]) == 1
    assert final["finished"].endswith("+00:00")


def test_stop_is_quick_and_keeps_finished_pictures(shop: Workshop) -> None:
    job = shop.submit("wait:1", n_iter=3)
    drawing(shop, job, 1, batch=1)
    pid = shop.worker.pid
    shop.runner.cancel(job.id)
    job = shop.wait(job)
    assert (job.state, job.error) == (JobState.CANCELLED, None)
    assert len(shop.gallery.of(job.id)) == 1
    assert shop.worker.pid == pid  # it obeyed


def test_stop_ends_an_engine_that_hangs(shop: Workshop, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shop.worker, "_patience", 0.3)
    job = shop.submit("hang:2")
    drawing(shop, job)
    shop.runner.cancel(job.id)
    assert shop.wait(job).state is JobState.CANCELLED
    assert shop.wait(shop.submit()).state is JobState.DONE


def test_skip_drops_the_batch_in_hand(shop: Workshop) -> None:
    job = shop.submit("wait:1", n_iter=3)
    drawing(shop, job, 1, batch=1)
    shop.runner.skip(job.id)
    assert shop.wait(job).state is JobState.DONE
    assert [picture.index for picture in shop.gallery.of(job.id)] == [0, 2]


def test_waiting_jobs_know_their_place(shop: Workshop) -> None:
    busy = shop.submit("wait:0")
    drawing(shop, busy)
    first, second, third = (shop.submit() for _ in range(3))
    wait_for(lambda: view(shop, third).get("position") == 3)
    assert [view(shop, job)["position"] for job in (first, second)] == [1, 2]
    shop.runner.cancel(first.id)
    assert view(shop, first)["state"] == "cancelled"
    wait_for(lambda: view(shop, third).get("position") == 2)
    shop.runner.cancel(busy.id)
    assert [shop.wait(job).state for job in (second, third)] == [JobState.DONE, JobState.DONE]
    assert shop.gallery.of(first.id) == []


def test_a_failure_is_told_in_words_and_the_queue_goes_on(shop: Workshop) -> None:
    refused, broken, fine = shop.submit("refuse"), shop.submit("raise"), shop.submit()
    assert shop.wait(fine).state is JobState.DONE
    assert (shop.jobs.get(refused.id).state, shop.jobs.get(refused.id).error) == (
        JobState.FAILED,
        "the model is cut short",
    )
    words = r"ZeroDivisionError: division by; the log says more at error [0-9a-f]{8}"
    assert re.fullmatch(words, shop.jobs.get(broken.id).error or "")
    assert view(shop, broken)["error"] == shop.jobs.get(broken.id).error


@posix
def test_a_job_whose_worker_is_killed_is_drawn_again_where_it_was(shop: Workshop) -> None:
    job = shop.submit("slow:0.05", n_iter=8)
    drawing(shop, job, 1, batch=1)
    earlier = shop.gallery.of(job.id)
    shop.worker.kill()
    job = shop.wait(job)
    assert (job.state, job.attempts, job.crashes) == (JobState.DONE, 2, 1)
    assert [picture.index for picture in shop.gallery.of(job.id)] == list(range(8))
    assert shop.gallery.of(job.id)[: len(earlier)] == earlier  # the first one was not drawn again


def test_a_folder_that_cannot_be_written_costs_one_job(shop: Workshop) -> None:
    outputs = shop.folder / "outputs"
    aside = outputs.with_name("aside")
    if outputs.exists():
        outputs.rename(aside)
    outputs.write_text("a file where the folder should be")
    try:
        job = shop.wait(shop.submit())
        assert job.state is JobState.FAILED
        assert "cannot be written to" in (job.error or "")
        assert shop.gallery.of(job.id) == []
    finally:
        outputs.unlink()
        if aside.exists():
            aside.rename(outputs)
    assert shop.wait(shop.submit()).state is JobState.DONE


def test_a_job_that_can_no_longer_be_read_is_told_as_failed(shop: Workshop) -> None:
    busy = shop.submit("wait:0")
    drawing(shop, busy)
    job = shop.submit()
    with database.writing(shop.engine) as connection:
        table = database.jobs
        connection.execute(table.update().where(table.c.id == job.id).values(request={"gone": 1}))
    shop.runner.cancel(busy.id)
    assert "can no longer be read" in (shop.wait(job).error or "")


def test_another_process_can_stop_it(shop: Workshop, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runner_module, "RENEW", 0.05)
    job = shop.submit("wait:0")
    drawing(shop, job)
    shop.runner.wake()  # the keeper looks at the new RENEW
    JobStore(shop.engine, {}).cancel(job.id)
    assert shop.wait(job).state is JobState.CANCELLED


def test_a_job_that_another_process_took_over_is_let_go(shop: Workshop) -> None:
    job = shop.submit("slow:0.05", n_iter=50)
    drawing(shop, job)
    with database.writing(shop.engine) as connection:
        table = database.jobs
        connection.execute(table.update().where(table.c.id == job.id).values(worker="other/1/1/x"))
    wait_for(lambda: shop.wait(shop.submit()).state is JobState.DONE)
    assert len(shop.gallery.of(job.id)) < 50
    assert shop.jobs.get(job.id).state is JobState.RUNNING
    assert shop.jobs.get(job.id).worker == "other/1/1/x"
    shop.jobs.finish(job.id, "other/1/1/x", JobState.CANCELLED)


# -- starting, stopping, side by side


def test_a_server_that_is_stopped_leaves_its_job_to_the_next(tmp_path: Path) -> None:
    with workshop.running(tmp_path) as shop:
        job = shop.submit("slow:0.05", n_iter=8)
        drawing(shop, job, 1, batch=1)
        pid = shop.worker.pid
        started = time.monotonic()
        shop.runner.stop()
        assert time.monotonic() - started < 15
    left = shop.jobs.get(job.id)
    assert (left.state, left.attempts) == (JobState.QUEUED, 0)
    finished = shop.gallery.of(job.id)
    assert finished
    with workshop.running(tmp_path) as again:
        assert {known["id"] for known in again.hub.snapshot()} == {job.id}
        assert again.wait(job).state is JobState.DONE
        assert again.worker.pid != pid
        assert again.gallery.of(job.id)[: len(finished)] == finished
        assert len(again.gallery.of(job.id)) == 8


def test_a_command_beside_a_server_draws_its_own(shop: Workshop) -> None:
    busy = shop.submit("wait:0")
    drawing(shop, busy)
    with workshop.running(shop.folder, private_queue()) as command:
        own = command.submit("own")
        states = [seen["state"] for seen in command.hub.follow(own.id)]
        assert states[-1] == "done"
        assert command.jobs.get(own.id).worker is None
        assert shop.jobs.get(busy.id).state is JobState.RUNNING
        assert command.hub.get(busy.id) is None
    shop.runner.cancel(busy.id)
    assert shop.wait(busy).state is JobState.CANCELLED


@posix
def test_an_idle_engine_that_dies_is_replaced(shop: Workshop) -> None:
    shop.wait(shop.submit())
    assert shop.worker.pid
    os.kill(shop.worker.pid, signal.SIGKILL)
    wait_for(lambda: shop.runner.state()["state"] == "failed")
    job = shop.wait(shop.submit())
    assert (job.state, job.crashes) == (JobState.DONE, 0)
    assert shop.runner.state()["state"] == "ready"


def test_two_runners_share_a_queue_without_doubling(shop: Workshop, monkeypatch: pytest.MonkeyPatch) -> None:
    claim, may_begin = JobStore.claim, threading.Event()
    monkeypatch.setattr(JobStore, "claim", lambda store, worker: claim(store, worker) if may_begin.is_set() else None)
    with workshop.running(shop.folder) as other:
        jobs = [shop.jobs.submit(request("slow:0.01", seed=i), "local") for i in range(12)]
        shop.runner.wake()
        wait_for(lambda: all(view(shop, job) for job in jobs))  # what was never seen to wait is not followed
        may_begin.set()
        shop.runner.wake()
        other.runner.wake()
        wait_for(lambda: all(shop.jobs.get(job.id).state.is_final for job in jobs))
        shop.runner.wake()
        wait_for(lambda: all(view(shop, job).get("state") == "done" for job in jobs))  # the other's too
    assert {shop.jobs.get(job.id).state for job in jobs} == {JobState.DONE}
    assert {shop.jobs.get(job.id).attempts for job in jobs} == {1}
    assert [len(shop.gallery.of(job.id)) for job in jobs] == [1] * 12
