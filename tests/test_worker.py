"""The engine's process: what it is given, what it says, how it stops and how it dies."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from hypothesis import given
from hypothesis import strategies as st

from backend.errors import EngineFailed, ModelBroken, WorkerDied
from backend.hardware import Hardware
from backend.images import ImageStore
from backend.jobs import wire
from backend.jobs.host import environment
from backend.jobs.wire import Mailbox, Message
from backend.jobs.worker import ProcessWorker
from backend.result import BatchSkipped, JobCancelled, Progress, Result
from tests import fake_engine
from tests.waiting import wait_for
from tests.workshop import FAKE, ROOT, request

posix = pytest.mark.skipif(os.name == "nt", reason="signals")


class Studio:
    """A worker, what it reported, and when."""

    def __init__(self, folder: Path, **how: Any) -> None:
        self.images = ImageStore(folder)
        self.states: list[dict[str, Any]] = []
        self.heard: list[Progress] = []
        self.worker = ProcessWorker(folder, folder, folder, **{"engine": FAKE, **how})
        self.worker.watch(self.states.append)

    def draw(
        self,
        prompt: str = "",
        react: Callable[[Progress], None] = lambda progress: None,
        done: frozenset[int] = frozenset(),
        **fields: Any,
    ) -> Result:
        def report(progress: Progress) -> None:
            self.heard.append(progress)
            react(progress)

        return self.worker.generate(request(prompt, **fields), self.images, report, done)

    @property
    def pictures(self) -> list[int]:
        return [progress.picture.index for progress in self.heard if progress.picture]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("worker")


@pytest.fixture(scope="module")
def _shared(folder: Path) -> Iterator[Studio]:
    studio = Studio(folder)
    yield studio
    studio.worker.close()


@pytest.fixture
def studio(_shared: Studio) -> Studio:
    """One process for all tests: another is started whenever a test has ended it."""
    _shared.heard.clear()
    _shared.states.clear()
    return _shared


def at(stage: str, step: int, error: BaseException) -> Callable[[Progress], None]:
    def react(progress: Progress) -> None:
        if progress.stage == stage and progress.step >= step:
            raise error

    return react


# -- drawing


def test_pictures_and_steps_arrive(studio: Studio) -> None:
    result = studio.draw("slow:0.01", batch_size=2, n_iter=2)
    assert result == Result(request("slow:0.01", batch_size=2, n_iter=2), (0, 1, 2, 3))
    found = [progress.picture for progress in studio.heard if progress.picture]
    assert found == [fake_engine.picture(result.request, index) for index in range(4)]
    steps = [(p.batch, p.step) for p in studio.heard if p.stage == "sampling"]
    assert steps == sorted(steps)
    assert {b"preview"} == {p.preview for p in studio.heard if p.stage == "sampling" and p.preview}


def test_what_is_done_is_not_drawn_again(studio: Studio) -> None:
    assert studio.draw(n_iter=3, done=frozenset({0, 2})).pictures == (1,)
    assert studio.pictures == [1]


def test_a_slow_parent_misses_steps_but_no_picture(studio: Studio) -> None:
    studio.draw(react=lambda progress: time.sleep(0.05), steps=40, n_iter=5)
    assert studio.pictures == [0, 1, 2, 3, 4]
    assert sum(progress.stage == "sampling" for progress in studio.heard) < 30


def test_what_libraries_print_does_not_disturb(studio: Studio) -> None:
    assert studio.draw("print").pictures == (0,)


# -- stopping


def test_cancel_stops_within_a_step(studio: Studio) -> None:
    studio.draw()
    pid = studio.worker.pid
    with pytest.raises(JobCancelled):
        studio.draw("slow:0.1", at("sampling", 3, JobCancelled()), steps=150)
    assert studio.heard[-1].step < 100
    assert studio.worker.pid == pid  # it obeyed
    assert studio.draw().pictures == (0,)


def test_cancel_is_heard_while_a_step_takes_long(studio: Studio) -> None:
    studio.draw()
    stop = threading.Event()
    threading.Timer(0.2, stop.set).start()

    def react(progress: Progress) -> None:
        if stop.is_set():
            raise JobCancelled

    started = time.monotonic()
    with pytest.raises(JobCancelled):
        studio.draw("slow:0.6", react, steps=50)
    assert time.monotonic() - started < 15  # a step or two, not fifty


def test_pictures_that_were_finished_before_a_cancel_are_kept(studio: Studio) -> None:
    with pytest.raises(JobCancelled):
        studio.draw("slow:0.02", at("saving", 0, JobCancelled()), batch_size=4, n_iter=9)
    assert studio.pictures[0] == 0
    assert set(studio.pictures) <= {0, 1, 2, 3}


def test_an_engine_that_hangs_is_ended(studio: Studio, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(studio.worker, "_patience", 0.3)
    with pytest.raises(JobCancelled):
        studio.draw("hang:2", at("sampling", 1, JobCancelled()))  # for 1000 s
    assert studio.draw().pictures == (0,)


def test_skip_goes_on_with_the_next_batch(studio: Studio) -> None:
    skips = [0]

    def react(progress: Progress) -> None:
        if skips and progress.batch == skips[0] and progress.step >= 1:
            skips.pop()
            raise BatchSkipped

    assert studio.draw("wait:0", react, n_iter=3).pictures == (1, 2)


def test_whatever_report_raises_stops_the_engine_and_comes_out(studio: Studio) -> None:
    with pytest.raises(OSError, match="disk"):
        studio.draw("slow:0.02", at("saving", 0, OSError("disk")), n_iter=50)
    assert max(progress.batch for progress in studio.heard) == 0
    assert studio.draw().pictures == (0,)


# -- failing


def test_an_error_for_people_keeps_its_class_and_words(studio: Studio) -> None:
    with pytest.raises(ModelBroken, match=r"^the model is cut short$"):
        studio.draw("refuse")


def test_an_error_that_nobody_foresaw_is_named(studio: Studio) -> None:
    with pytest.raises(EngineFailed, match=r"^ZeroDivisionError: division by; the log says more at error \w{8}$"):
        studio.draw("raise")
    with pytest.raises(EngineFailed, match=r"^SystemExit: an extension said so; the log"):
        studio.draw("exit")
    assert studio.draw().pictures == (0,)


def test_a_ruined_device_gets_a_new_process(studio: Studio) -> None:
    studio.draw()
    pid = studio.worker.pid
    with pytest.raises(EngineFailed, match="illegal memory access"):
        studio.draw("ruin")
    assert studio.draw().pictures == (0,)
    assert studio.worker.pid != pid


@posix
def test_a_death_is_told_at_once_with_its_reason(studio: Studio) -> None:
    with pytest.raises(WorkerDied, match=r"signal 9; out of memory\?"):
        studio.draw("die:2")
    assert studio.draw().pictures == (0,)
    told = [state["state"] for state in studio.states]
    assert told[told.index("failed") :] == ["failed", "starting", "ready"]


@posix
def test_a_job_is_not_blamed_for_an_earlier_death(studio: Studio) -> None:
    studio.draw()
    pid = studio.worker.pid
    assert pid
    os.kill(pid, signal.SIGSTOP)  # so that it dies only when the job has been sent
    threading.Timer(0.1, os.kill, (pid, signal.SIGKILL)).start()
    assert studio.draw().pictures == (0,)


def test_an_engine_that_cannot_start_says_why(folder: Path) -> None:
    studio = Studio(folder, device="broken")
    with pytest.raises(EngineFailed, match=r"^the engine cannot start: RuntimeError: no torch here; the log"):
        studio.draw()
    wait_for(lambda: studio.worker.state()["state"] == "failed")
    assert studio.worker.state()["detail"].startswith("the engine cannot start: RuntimeError: no torch here; the log")
    studio.worker.close()


def test_an_engine_that_dies_at_its_start_says_so(folder: Path) -> None:
    studio = Studio(folder, device="fatal")
    with pytest.raises(WorkerDied, match="exit code 7"):
        studio.draw()
    studio.worker.close()


# -- what it is given


def test_the_child_imports_no_server_and_no_page(studio: Studio) -> None:
    with pytest.raises(ModelBroken) as caught:
        studio.draw("modules")
    names = str(caught.value).split()
    assert "backend.jobs.child" in names
    assert not [n for n in names if n.startswith(("backend.api", "backend.services", "backend.database", "ui"))]


def test_the_child_is_told_no_secret_and_no_hub_and_keeps_what_it_compiles(
    monkeypatch: pytest.MonkeyPatch, folder: Path
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    monkeypatch.setenv("ATELIER_AUTH", "ada:secret")
    studio = Studio(folder)
    monkeypatch.setenv("PYTHONDONTWRITEBYTECODE", "1")
    asked = "HF_TOKEN,ATELIER_AUTH,HF_HUB_OFFLINE,DIFFUSERS_DISABLE_REMOTE_CODE,PYTHONDONTWRITEBYTECODE"
    with pytest.raises(ModelBroken) as caught:
        studio.draw(f"environment:{asked}")
    told = "HF_TOKEN=None ATELIER_AUTH=None HF_HUB_OFFLINE=1 DIFFUSERS_DISABLE_REMOTE_CODE=1 PYTHONDONTWRITEBYTECODE="
    assert str(caught.value) == told
    studio.worker.close()


@pytest.mark.skipif(sys.platform != "linux", reason="glibc")
def test_the_engine_is_told_how_to_use_the_machine(folder: Path) -> None:
    studio = Studio(folder, hardware=Hardware(attention="sdpa", ram_budget=2.5))
    try:
        with pytest.raises(ModelBroken, match=r"attention='sdpa' .* ram_budget=2.5 vram_budget=None"):
            studio.draw("hardware")
    finally:
        studio.worker.close()


def test_the_allocator_is_set_for_the_cpu_only() -> None:
    assert environment("cpu")["MALLOC_ARENA_MAX"] == "1"
    assert environment("cpu")["MALLOC_MMAP_MAX_"] == "0"
    assert environment("cpu")["MALLOC_TRIM_THRESHOLD_"] == "17179869184"
    assert "MALLOC_MMAP_MAX_" not in environment("cuda")
    assert 1 <= int(environment("cpu")["OMP_NUM_THREADS"]) <= len(os.sched_getaffinity(0))


# -- living and dying with the parent


@posix
def test_ctrl_c_does_not_reach_it(studio: Studio) -> None:
    studio.draw()
    pid = studio.worker.pid
    assert pid
    assert os.getpgid(pid) != os.getpgid(0)
    os.kill(pid, signal.SIGINT)
    assert studio.draw().pictures == (0,)
    assert studio.worker.pid == pid


@posix
def test_it_dies_with_a_parent_that_is_killed(tmp_path: Path) -> None:
    code = f"""
from tests.workshop import Path, build, request
workshop = build(Path({str(tmp_path)!r}))
def report(progress):
    if progress.stage == "encoding":
        print(workshop.worker.pid, flush=True)
workshop.worker.generate(request("hang:1"), None, report)
"""
    parent = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert parent.stdout
    pid = int(parent.stdout.readline())
    parent.kill()
    parent.wait()
    wait_for(lambda: not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE)


def test_close_ends_it(folder: Path) -> None:
    studio = Studio(folder)
    studio.draw()
    pid = studio.worker.pid
    studio.worker.close()
    wait_for(lambda: studio.worker.state()["state"] == "stopped")
    assert not psutil.pid_exists(pid or 0)


# -- the wire

messages = st.builds(
    Message,
    st.text(),
    st.dictionaries(st.text(), st.none() | st.integers() | st.text() | st.lists(st.booleans())),
    st.binary(max_size=200),
)


@given(st.lists(messages, max_size=5), st.integers(0, 40))
def test_messages_arrive_whole_or_not_at_all(sent: list[Message], cut: int) -> None:
    reading, writing = os.pipe()
    with os.fdopen(reading, "rb") as out, os.fdopen(writing, "wb") as into:
        for message in sent:
            wire.write(into, message)
        into.write(b"\0" * min(cut, 15))  # the writer dies in the middle of the next one
        into.close()
        assert [wire.read(out) for _ in sent] == sent
        assert wire.read(out) is None


@given(st.lists(st.sampled_from([wire.PROGRESS, "picture"])))
def test_only_progress_gives_way_and_only_to_newer_progress(kinds: list[str]) -> None:
    box = Mailbox()
    for number, kind in enumerate(kinds):
        box.put(Message(kind, {"number": number}))
    taken = list(iter(lambda: box.take(0), None))
    kept = [i for i, kind in enumerate(kinds) if kind == "picture" or kinds[i + 1 : i + 2] != [wire.PROGRESS]]
    assert [message.values["number"] for message in taken] == kept


def test_a_preview_waits_for_who_comes_late() -> None:
    box = Mailbox()
    box.put(Message(wire.PROGRESS, {"batch": 0, "step": 1}, b"preview"))
    box.put(Message(wire.PROGRESS, {"batch": 0, "step": 2}))
    assert box.take() == Message(wire.PROGRESS, {"batch": 0, "step": 2}, b"preview")
