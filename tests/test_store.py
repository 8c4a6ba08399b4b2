"""Jobs in the database: claims, leases, crashes, and the tables themselves."""

import io
import os
import secrets
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest
import sqlalchemy as sa
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from sqlalchemy import Engine

from backend import database
from backend.errors import Conflict, NotFound, StorageFull
from backend.gallery.index import Gallery
from backend.images import ImageStore
from backend.jobs import process, store
from backend.jobs.store import JobState, JobStore, LeaseLost, private_queue
from backend.params import Param, Params
from tests import fake_engine
from tests.workshop import ROOT, open_database, request

ELSEWHERE = "another-machine/1/1/x"


class Unit(Params):
    image: str | None = Param(None, "Image", widget="image")


class Knobs(Params):
    weight: float = Param(1.0, "Weight", ge=0, le=2)
    units: list[Unit] = Param([], "Units")


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[Engine]:
    engine = open_database(tmp_path)
    yield engine
    engine.dispose()


@pytest.fixture
def jobs(engine: Engine) -> JobStore:
    return JobStore(engine, {"knobs": Knobs})


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    """One database for all examples; each takes a queue of its own."""
    engine = open_database(tmp_path_factory.mktemp("shared"))
    yield engine
    engine.dispose()


def dead() -> str:
    """A worker's name, of a process that has ended."""
    code = "from backend.jobs import process; print(process.me())"
    return subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True).stdout.strip() + "/x"


# -- tables


def test_migrations_make_the_tables_of_the_code(tmp_path: Path, engine: Engine) -> None:
    fresh = sa.create_engine("sqlite://")
    database.metadata.create_all(fresh)

    def tables(of: Engine) -> set[str]:
        with of.connect() as connection:
            found = connection.exec_driver_sql("SELECT sql FROM sqlite_master WHERE sql IS NOT NULL").scalars()
            return {_normal(sql) for sql in found if "alembic_version" not in sql}

    assert tables(engine) == tables(fresh)


def _normal(sql: str) -> str:
    """Constraints stand in another order where a column carries them, and a later column on a line with another."""
    lines = sql.replace("(", "(\n").replace(", ", ",\n").splitlines()
    return " ".join(sorted(filter(None, (part.strip(" \n\t,") for part in lines))))


def test_head_is_the_newest_migration() -> None:
    from alembic.script import ScriptDirectory

    assert ScriptDirectory(str(database.MIGRATIONS)).get_current_head() == database.HEAD


@pytest.mark.skipif(os.name == "nt", reason="fork")
def test_several_processes_may_migrate_at_once(tmp_path: Path) -> None:
    code = f"""
import os, alembic.command
from backend import database
children = []
for _ in range(6):
    children.append(os.fork())
    if not children[-1]:
        database.migrate(database.connect("sqlite:///{(tmp_path / "a.db").as_posix()}"))
        os._exit(0)
print([os.waitpid(child, 0)[1] for child in children])
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.strip() == "[0, 0, 0, 0, 0, 0]", done.stderr
    with sqlite3.connect(tmp_path / "a.db") as connection:
        assert connection.execute("SELECT version_num FROM alembic_version").fetchall() == [(database.HEAD,)]


def test_sqlite_is_set_to_lose_nothing(engine: Engine) -> None:
    with engine.connect() as connection:
        assert connection.exec_driver_sql("PRAGMA journal_mode").scalar() == "wal"
        assert connection.exec_driver_sql("PRAGMA synchronous").scalar() == 2
        assert connection.exec_driver_sql("PRAGMA foreign_keys").scalar() == 1


def test_a_newer_database_is_left_alone(engine: Engine) -> None:
    with database.writing(engine) as connection:
        connection.execute(sa.text("UPDATE alembic_version SET version_num = '9999'"))
    with pytest.raises(Conflict, match="newer Atelier"):
        database.migrate(engine)


def test_a_damaged_database_is_said_plainly(tmp_path: Path) -> None:
    (tmp_path / "a.db").write_bytes(b"no database at all" * 100)
    with pytest.raises(Conflict, match="damaged"):
        database.migrate(database.connect(f"sqlite:///{tmp_path / 'a.db'}"))


def test_a_database_that_cannot_be_made_is_said_plainly(tmp_path: Path) -> None:
    with pytest.raises(StorageFull, match="could not be written"):
        database.migrate(database.connect(f"sqlite:///{tmp_path / 'missing' / 'a.db'}"))


# -- the queue


def test_a_job_comes_back_as_it_was_submitted(jobs: JobStore, engine: Engine) -> None:
    extension = Knobs(weight=1.5, units=[Unit(), Unit(image="a" * 64)])
    asked = request("a red circle", init_image="b" * 64, extensions={"knobs": extension})
    job = jobs.submit(asked, "ada", priority=3)
    assert jobs.get(job.id) == job
    assert (job.request, job.owner, job.priority, job.state) == (asked, "ada", 3, JobState.QUEUED)
    assert job.created.utcoffset() == timedelta(0)
    with engine.connect() as connection:
        inputs = connection.execute(sa.select(database.job_inputs.c.name, database.job_inputs.c.sha256)).all()
    assert sorted(map(tuple, inputs)) == [("extensions.knobs.units.1.image", "a" * 64), ("init_image", "b" * 64)]


@given(st.lists(st.integers(-2, 2), min_size=1, max_size=8))
@settings(max_examples=15, deadline=None)
def test_jobs_are_claimed_by_priority_then_age(shared: Engine, priorities: list[int]) -> None:
    jobs = JobStore(shared, {}, secrets.token_hex())
    submitted = [jobs.submit(request(), "local", priority=p) for p in priorities]
    expected = [job.id for job in sorted(submitted, key=lambda job: (-job.priority, job.id))]
    assert [job.id for job in jobs.waiting()] == expected
    assert [jobs.position(i) for i in expected] == list(range(1, len(expected) + 1))
    claimed = [job.id for job in iter(lambda: jobs.claim("w"), None)]
    assert claimed == expected


def test_a_claimed_job_is_running(jobs: JobStore) -> None:
    waiting = jobs.submit(request(), "local")
    job = jobs.claim("w")
    assert job is not None
    assert (job.id, job.state, job.worker, job.attempts) == (waiting.id, JobState.RUNNING, "w", 1)
    assert job.started is not None
    assert jobs.position(job.id) is None
    assert jobs.claim("w") is None


def test_no_two_workers_get_the_same_job(jobs: JobStore) -> None:
    submitted = {jobs.submit(request(), "local").id for _ in range(24)}
    claimed: list[int] = []

    def claim_all(name: str) -> None:
        while job := jobs.claim(name):
            claimed.append(job.id)

    threads = [threading.Thread(target=claim_all, args=(f"w{i}",)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(claimed) == len(submitted)
    assert set(claimed) == submitted


def test_an_unknown_job_is_not_found(jobs: JobStore) -> None:
    for call in (jobs.get, jobs.cancel, jobs.position):
        with pytest.raises(NotFound, match="no job 7"):
            call(7)


def test_recent_jobs_come_newest_first_in_pages(jobs: JobStore) -> None:
    ids = [jobs.submit(request(), owner).id for owner in ("ada", "bob", "ada", "ada")]
    assert [job.id for job in jobs.recent(limit=2)] == [ids[3], ids[2]]
    assert [job.id for job in jobs.recent(before=ids[2])] == [ids[1], ids[0]]
    assert [job.id for job in jobs.recent(owner="bob")] == [ids[1]]
    assert jobs.recent(states=[JobState.DONE]) == []


# -- leases


def test_what_a_former_holder_says_is_refused(jobs: JobStore, monkeypatch: pytest.MonkeyPatch) -> None:
    job = jobs.submit(request(), "local")
    assert jobs.claim(ELSEWHERE)
    now = store._now
    monkeypatch.setattr(store, "_now", lambda: now() + 2 * store.LEASE)
    assert [found.state for found in jobs.recover()] == [JobState.QUEUED]
    assert jobs.claim("second")
    for say in (jobs.renew, jobs.finish, jobs.release):
        with pytest.raises(LeaseLost):
            say(job.id, ELSEWHERE)
    for tell in (jobs.fail, jobs.crashed):
        with pytest.raises(LeaseLost):
            tell(job.id, ELSEWHERE, "why")
    assert jobs.finish(job.id, "second").state is JobState.DONE
    with pytest.raises(LeaseLost):
        jobs.finish(job.id, "second")


def test_a_lease_that_is_renewed_holds(jobs: JobStore, monkeypatch: pytest.MonkeyPatch) -> None:
    job = jobs.submit(request(), "local")
    jobs.claim(ELSEWHERE)
    now = store._now
    monkeypatch.setattr(store, "_now", lambda: now() + 0.9 * store.LEASE)
    assert jobs.renew(job.id, ELSEWHERE) is False
    monkeypatch.setattr(store, "_now", lambda: now() + 1.8 * store.LEASE)
    assert jobs.recover() == []
    monkeypatch.setattr(store, "_now", lambda: now() + 2 * store.LEASE)
    assert [found.id for found in jobs.recover()] == [job.id]


def test_the_job_of_a_dead_process_is_taken_back_at_once(jobs: JobStore) -> None:
    job = jobs.submit(request(), "local")
    jobs.claim(dead())
    assert [(found.id, found.state, found.worker) for found in jobs.recover()] == [(job.id, JobState.QUEUED, None)]


def test_the_job_of_a_living_process_is_not_taken(jobs: JobStore) -> None:
    jobs.submit(request(), "local")
    jobs.claim(f"{process.me()}/one")
    assert jobs.recover() == []


def test_a_process_number_that_is_used_again_is_another_process() -> None:
    place, pid, _ = process.me().split("/")
    assert process.is_alive(f"{process.me()}/one") is True
    assert process.is_alive(f"{place}/{pid}/0/one") is False
    assert process.is_alive(ELSEWHERE) is None
    assert process.is_alive("nonsense") is None


# -- crashes


def test_a_job_that_ends_its_worker_twice_is_given_up(jobs: JobStore) -> None:
    job = jobs.submit(request(), "local")
    jobs.claim("w")
    assert jobs.crashed(job.id, "w", "signal 9; out of memory?").state is JobState.QUEUED
    jobs.claim("w")
    failed = jobs.crashed(job.id, "w", "signal 9; out of memory?")
    assert failed.state is JobState.FAILED
    assert failed.error == "the engine process ended twice while drawing this (signal 9; out of memory?)"


def test_a_job_whose_servers_end_again_and_again_is_given_up(jobs: JobStore) -> None:
    job, name = jobs.submit(request(), "local"), dead()
    for _ in range(store.MAX_FRUITLESS - 1):
        jobs.claim(name)
        assert [found.state for found in jobs.recover()] == [JobState.QUEUED]
    jobs.claim(name)
    assert [found.state for found in jobs.recover()] == [JobState.FAILED]
    assert "the server ended each time" in (jobs.get(job.id).error or "")


def test_a_job_that_goes_on_is_not_given_up(jobs: JobStore) -> None:
    job, name = jobs.submit(request(), "local"), dead()
    for _ in range(2 * store.MAX_FRUITLESS):
        jobs.claim(name)
        jobs.renew(job.id, name, delivers=True)
        assert [found.state for found in jobs.recover()] == [JobState.QUEUED]


def test_a_job_that_is_released_was_not_tried(jobs: JobStore) -> None:
    job = jobs.submit(request(), "local")
    for _ in range(2 * store.MAX_FRUITLESS):
        jobs.claim("w")
        released = jobs.release(job.id, "w")
    assert (released.state, released.attempts) == (JobState.QUEUED, 0)


# -- cancelling


def test_a_waiting_job_is_cancelled_at_once(jobs: JobStore) -> None:
    job = jobs.cancel(jobs.submit(request(), "local").id)
    assert job.state is JobState.CANCELLED
    assert job.finished is not None
    assert jobs.claim("w") is None


def test_a_running_job_is_asked_to_stop(jobs: JobStore) -> None:
    job = jobs.submit(request(), "local")
    jobs.claim("w")
    assert (jobs.cancel(job.id).state, jobs.get(job.id).stop) == (JobState.RUNNING, True)
    assert jobs.renew(job.id, "w") is True
    assert jobs.finish(job.id, "w", JobState.CANCELLED).state is JobState.CANCELLED
    assert jobs.cancel(job.id).state is JobState.CANCELLED


def test_a_job_that_was_asked_to_stop_is_not_started_again(jobs: JobStore) -> None:
    name = dead()
    for _ in range(2):
        job = jobs.submit(request(), "local")
        jobs.claim(name)
        jobs.cancel(job.id)
        ended = jobs.crashed(job.id, name, "signal 9") if job.id == 1 else jobs.recover()[0]
        assert (ended.id, ended.state) == (job.id, JobState.CANCELLED)


# -- rows of another time


def test_a_job_that_can_no_longer_be_read_fails_and_the_next_one_runs(engine: Engine, jobs: JobStore) -> None:
    lost = jobs.submit(request("with knobs", steps=7, extensions={"knobs": Knobs()}), "local")
    fine = jobs.submit(request(), "local")
    without = JobStore(engine, {})
    claimed = without.claim("w")
    assert claimed is not None
    assert claimed.id == fine.id
    failed = without.get(lost.id)
    assert failed.state is JobState.FAILED
    assert "extensions.knobs: there is no such extension here" in (failed.error or "")
    assert (failed.request.prompt, failed.request.steps, failed.request.extensions) == ("with knobs", 7, {})
    assert {job.id for job in without.recent()} == {lost.id, fine.id}


@given(st.recursive(st.none() | st.booleans() | st.floats(allow_nan=False) | st.text(), st.lists))
@settings(max_examples=10, deadline=None)
def test_whatever_stands_in_a_row_is_no_crash(shared: Engine, value: object) -> None:
    jobs = JobStore(shared, {}, secrets.token_hex())
    for content in (value, {"steps": value}, {"no such field": value}, {"extensions": {"x": value}}):
        job = jobs.submit(request(), "local")
        with database.writing(shared) as connection:
            connection.execute(sa.update(database.jobs).where(database.jobs.c.id == job.id).values(request=content))
        jobs.get(job.id)
        assert jobs.claim("w") is None or content == {"steps": value}
        assert jobs.get(job.id).state in (JobState.FAILED, JobState.RUNNING)


# -- commands beside a server


def test_a_private_queue_is_drawn_from_by_its_process_only(engine: Engine, jobs: JobStore) -> None:
    mine = JobStore(engine, {}, private_queue())
    own, other = mine.submit(request(), "local"), jobs.submit(request(), "local")
    assert (mine.position(own.id), jobs.position(other.id)) == (1, 1)
    claimed = jobs.claim("server")
    assert claimed is not None
    assert claimed.id == other.id
    assert jobs.claim("server") is None
    assert jobs.recover() == []
    taken = mine.claim("command")
    assert taken is not None
    assert taken.id == own.id


def test_jobs_of_a_command_that_has_ended_end_too(engine: Engine, jobs: JobStore) -> None:
    ended = JobStore(engine, {}, "process:" + dead().removesuffix("/x"))
    running, waiting = ended.submit(request(), "local"), ended.submit(request(), "local")
    ended.claim(dead())
    assert {job.id for job in jobs.recover()} == {running.id, waiting.id}
    for job in (running, waiting):
        assert jobs.get(job.id).state is JobState.CANCELLED
        assert "command" in (jobs.get(job.id).error or "")


# -- input images that led to nothing


def test_only_old_images_that_nothing_names_are_forgotten(tmp_path: Path, engine: Engine, jobs: JobStore) -> None:
    images, gallery = ImageStore(tmp_path / "inputs"), Gallery(engine, tmp_path / "outputs", tmp_path / "thumbs")
    refs = [images.put(png(n)) for n in range(5)]
    started, drawn, looked_at, preview, _ = refs
    job = jobs.submit(request(init_image=started), "ada")
    gallery.add(job, fake_engine.picture(request(init_image=drawn), 0))
    for ref in refs[:4]:
        os.utime(images.path(ref), (0, 0))
    assert images.read(looked_at)
    month_ago = time.time() - 30 * 24 * 3600
    assert sorted(images.unused_since(month_ago)) == sorted([started, drawn, preview])
    assert jobs.forget_inputs(images, month_ago) == 1
    assert [ref in images for ref in refs] == [True, True, True, False, True]
    assert not images.forget(looked_at, month_ago)


def png(shade: int) -> bytes:
    file = io.BytesIO()
    Image.new("L", (8, 8), shade).save(file, "PNG")
    return file.getvalue()
