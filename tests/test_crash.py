"""Kill -9 of the engine and of the whole server in mid-job, full disks: nothing lost, nothing twice, no half files."""

import io
import os
import random
import re
import signal
import sqlite3
import subprocess
import sys
import time
from hashlib import sha256
from pathlib import Path

import pytest
from PIL import Image

from backend.jobs.store import JobState, JobStore
from tests import workshop
from tests.waiting import wait_for
from tests.workshop import ROOT, open_database, request

pytestmark = pytest.mark.skipif(os.name == "nt", reason="signals and limits of POSIX")

KILLS = int(os.environ.get("ATELIER_TEST_KILLS", "10"))
"""Of the server; a nightly run may ask for more."""

SERVER = """
import os, sys, time
from pathlib import Path
from tests import workshop

def serve(moment):
    shop = workshop.build(Path(sys.argv[1]))
    before = shop.gallery.recent(limit=1)
    shop.runner.start()
    if moment == "step":
        while not any(view["progress"] and view["progress"]["step"] for view in shop.hub.snapshot()):
            time.sleep(0.002)
    if moment == "picture":
        while shop.gallery.recent(limit=1) == before:
            time.sleep(0.002)
    print("now", flush=True)
    time.sleep(60)

for line in sys.stdin:
    pid = os.fork()  # each line is one life of a server, without the time that its imports take
    if not pid:
        serve(line.strip())
    print(pid, flush=True)
    os.waitpid(pid, 0)
    print("ended", flush=True)
"""


class Ledger:
    """What was accepted, and at the end: whether it is all there, once, whole."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.engine = open_database(folder)
        self.jobs = JobStore(self.engine, {})
        self.accepted: dict[int, int] = {}
        """Pictures of each job."""

    def submit(self, prompt: str, n_iter: int) -> None:
        job = self.jobs.submit(request(prompt, seed=len(self.accepted) * 100, n_iter=n_iter), "local")
        self.accepted[job.id] = n_iter

    def left(self) -> int:
        return sum(not self.jobs.get(job).state.is_final for job in self.accepted)

    def check(self) -> None:
        self.engine.dispose()
        with sqlite3.connect(self.folder / "atelier.db") as connection:
            assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
            states = dict(connection.execute("SELECT id, state FROM jobs"))
            pictures = connection.execute('SELECT job, "index", path, sha256 FROM pictures ORDER BY 1, 2').fetchall()
        assert states == dict.fromkeys(self.accepted, "done")
        expected = [(job, index) for job, count in self.accepted.items() for index in range(count)]
        assert [(job, index) for job, index, _, _ in pictures] == expected
        files = {p.relative_to(self.folder / "outputs").as_posix(): p for p in outputs(self.folder)}
        assert set(files) == {path for _, _, path, _ in pictures}
        for _, _, path, digest in pictures:
            data = files[path].read_bytes()
            assert sha256(data).hexdigest() == digest
            Image.open(io.BytesIO(data)).load()


def outputs(folder: Path) -> list[Path]:
    return [p for p in (folder / "outputs").rglob("*") if p.is_file()]


def test_killing_the_server_loses_nothing_and_doubles_nothing(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path)
    chance = random.Random()
    for _ in range(12):
        ledger.submit("slow:0.02", n_iter=3)
    command, pipe = [sys.executable, "-c", SERVER, str(tmp_path)], subprocess.PIPE
    servers = subprocess.Popen(command, cwd=ROOT, stdin=pipe, stdout=pipe, text=True)
    assert servers.stdin
    assert servers.stdout
    moments = ["start", "step", "step", "picture", "picture"]
    for kill in range(KILLS):
        moment = moments[kill % len(moments)]
        servers.stdin.write(f"{moment}\n")
        servers.stdin.flush()
        told = {servers.stdout.readline().strip() for _ in range(2)}  # its number, and that the moment has come
        time.sleep(chance.uniform(0, 0.15))
        os.kill(int((told - {"now"}).pop()), signal.SIGKILL)
        assert servers.stdout.readline() == "ended\n"
        ledger.submit("slow:0.02", n_iter=2)
    servers.stdin.close()
    servers.wait()
    servers.stdout.close()
    with workshop.running(tmp_path):
        wait_for(lambda: ledger.left() == 0)
    assert sum(ledger.jobs.get(job).attempts - 1 for job in ledger.accepted) >= 0.5 * KILLS  # that hit a job
    ledger.check()


def test_killing_the_engine_loses_nothing_and_doubles_nothing(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path)
    chance = random.Random()
    for _ in range(12):
        ledger.submit("slow:0.02", n_iter=3)
    hit: set[int] = set()
    with workshop.running(tmp_path) as shop:
        while len(hit) < 6 and ledger.left():
            running = [view for view in shop.hub.snapshot() if view["progress"] and view["progress"]["step"]]
            if running and running[0]["id"] not in hit:  # twice would be the job's fault
                hit.add(running[0]["id"])
                time.sleep(chance.uniform(0, 0.1))
                shop.worker.kill()
            time.sleep(0.01)
        wait_for(lambda: ledger.left() == 0)
        assert sum(shop.jobs.get(job).crashes for job in ledger.accepted) >= 3
    ledger.check()


FULL_DISK = """
import logging, resource, sys
from pathlib import Path
from backend.errors import StorageFull
from tests import workshop
from tests.waiting import wait_for

folder = Path(sys.argv[1])

def limit(size):
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))

def room():
    limit(resource.RLIM_INFINITY)

class Room(logging.Handler):
    def emit(self, record):
        if "cannot be written yet" in record.getMessage():  # what it came to, by then
            room()

logging.getLogger("backend.jobs").addHandler(Room())

with workshop.running(folder) as shop:
    assert shop.wait(shop.submit()).state == "done"
    database = max(p.stat().st_size for p in folder.glob("atelier.db*"))

    limit(2 * database)  # the picture is larger, what is written about it is not
    job = shop.wait(shop.submit(width=1024, height=1024))
    room()
    print(job.state.value, job.error)

    for size in (database - 4096, 0):
        job = shop.submit("slow:0.2")
        wait_for(lambda: (shop.hub.get(job.id) or {}).get("progress"))
        limit(size)
        job = shop.wait(job)
        room()
        print(job.state.value, job.error)

    limit(0)
    try:
        shop.submit()
    except StorageFull as error:
        print(error)
    room()
    print(shop.wait(shop.submit()).state.value)
"""


def test_a_full_disk_costs_the_running_job_only(tmp_path: Path) -> None:
    """Files may not grow past a limit: the picture, what is written about it, anything."""
    open_database(tmp_path).dispose()
    done = subprocess.run(
        [sys.executable, "-c", FULL_DISK, str(tmp_path)], cwd=ROOT, capture_output=True, text=True, timeout=240
    )
    expected = [
        "failed the disk is full: .*png was not saved",
        "failed the database could not be written",
        "failed the database could not be written",
        "the database could not be written",
        "done",
    ]
    said = done.stdout.splitlines()
    assert len(said) == len(expected), done.stdout + done.stderr
    assert all(re.match(pattern, line) for pattern, line in zip(expected, said, strict=True)), said
    with sqlite3.connect(tmp_path / "atelier.db") as connection:
        assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        rows = {path for (path,) in connection.execute("SELECT path FROM pictures")}
    assert len(rows) == 2
    assert {p.relative_to(tmp_path / "outputs").as_posix() for p in outputs(tmp_path)} == rows
    for path in outputs(tmp_path):
        Image.open(path).load()


def test_bad_jobs_do_not_stop_the_others(tmp_path: Path) -> None:
    with workshop.running(tmp_path) as shop:
        bad = [shop.submit(prompt) for prompt in ("die:1", "raise", "refuse", "exit")]
        good = [shop.submit() for _ in range(8)]
        assert {shop.wait(job).state for job in good} == {JobState.DONE}
        assert {shop.wait(job).state for job in bad} == {JobState.FAILED}
        poison = shop.jobs.get(bad[0].id)
        assert poison.crashes == 2
        assert poison.error == "the engine process ended twice while drawing this (signal 9; out of memory?)"
