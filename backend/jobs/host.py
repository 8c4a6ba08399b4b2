"""Our side of a process of its own that owns torch: started, spoken to, ended and started again (see `wire`)."""

import logging
import math
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import psutil

from backend import errors
from backend.errors import AtelierError, EngineFailed, InvalidRequest, Problem, TrainingFailed, WorkerDied
from backend.jobs import wire
from backend.jobs.wire import Mailbox, Message
from backend.result import JobCancelled

log = logging.getLogger(__name__)

ROOT = Path(__file__).resolve().parent.parent.parent
POLL = 0.1
"""Seconds between two looks at whether a job is to stop while its process says nothing."""
PATIENCE = 5.0
"""Seconds that a process has to obey; then it is ended."""

State = dict[str, Any]
"""{"state": "stopped" | "starting" | "ready" | "failed", "device": ..., "detail": ...}"""

Hear = Callable[[Message | None], Message | None]
"""Told what the process says of the work in hand, and None now and then while it says nothing; may answer with a
message for it. What it raises stops the work."""


class Host:
    """A spawned process that does one thing at a time: it may run out of memory or crash, and the next is started.

    `module` is the one whose `main` it runs, `setup` what that is told; `setup["device"]` is known here too.
    """

    def __init__(self, module: str, setup: Mapping[str, Any], patience: float = PATIENCE) -> None:
        self._module = module
        self._setup = setup
        self._patience = patience
        self._turn = threading.Lock()
        """One device, one job at a time."""
        self._lock = threading.Lock()
        self._child: _Child | None = None
        self._closed = False
        self._runs = 0
        self._last = 0.0
        """When the process was started, or its work ended."""
        self._state: State = {"state": "stopped", "device": setup["device"], "detail": None}
        self._listener: Callable[[State], None] = lambda state: None

    @property
    def pid(self) -> int | None:
        child = self._child
        return child.process.pid if child else None

    def run(self, kind: str, values: Mapping[str, Any], hear: Hear, kept: str = "") -> dict[str, Any]:
        """Have the process do it; what it says when it is done.

        Messages of the kind `kept` are told even when the work has been cancelled: they are what it has finished.
        Raises WorkerDied, what `hear` raises, what the work does.
        """
        while not self._turn.acquire(timeout=POLL):
            hear(None)
        try:
            return self._ran(kind, values, hear, kept)
        except _NotBegun:  # it had died before, unnoticed: not this job's fault
            return self._ran(kind, values, hear, kept)
        finally:
            self._turn.release()

    def start(self) -> None:
        """Begin to get ready; returns at once."""
        self._living()

    def rest(self, idle: float) -> None:
        """End the process if it has had no work for so many seconds; the next work starts another."""
        if self._turn.acquire(blocking=False):
            try:
                if self._child and self._child.is_usable and time.monotonic() - self._last > idle:
                    self._child.close()
            finally:
                self._turn.release()

    def close(self) -> None:
        self._closed = True
        if child := self._child:
            child.close()

    def kill(self) -> None:
        """End the process as it stands; for tests."""
        if child := self._child:
            child.kill()

    def state(self) -> State:
        return dict(self._state)

    def watch(self, listener: Callable[[State], None]) -> None:
        """`listener` is told, from any thread, whenever the state changes."""
        self._listener = listener

    def _ran(self, kind: str, values: Mapping[str, Any], hear: Hear, kept: str) -> dict[str, Any]:
        child = self._living()
        self._runs += 1
        child.send(Message(kind, {"run": self._runs, **values}))
        child.is_busy = True
        try:
            return self._follow(child, self._runs, hear, kept)
        finally:
            self._last = time.monotonic()
            if child.is_busy:  # it does not obey, or nobody listens to it any more
                child.kill()
                if not self._closed:
                    self.start()

    def _follow(self, child: "_Child", run: int, hear: Hear, kept: str) -> dict[str, Any]:
        """Hand on what the child says until it has come to an end with this run."""
        begun = False
        stop: BaseException | None = None
        deadline = math.inf
        while True:
            message = child.inbox.take(POLL)
            if time.monotonic() > deadline:
                log.warning("a worker did not stop within %.0f s; its process is ended", self._patience)
                assert stop is not None
                raise stop
            if message is None:
                pass
            elif message.kind == _Child.ENDED:
                child.is_busy = False
                if stop is not None:
                    raise stop
                raise WorkerDied(child.epitaph) if begun else _NotBegun(child.epitaph)
            elif message.kind == "unusable":
                child.is_busy = False
                raise EngineFailed(f"the engine cannot start: {message.values['reason']}") from stop
            elif message.values["run"] != run:
                continue
            elif message.kind == "begun":
                begun = True
                continue
            elif message.kind in ("done", "cancelled", "error"):
                child.is_busy = False
                if stop is not None and not (message.kind == "done" and isinstance(stop, JobCancelled)):
                    raise stop
                return _ended(message)
            if stop is not None and not (message and message.kind == kept and isinstance(stop, JobCancelled)):
                continue  # what is finished is kept also after Stop, the rest is for nobody
            try:
                if answer := hear(message):
                    child.send(answer._replace(values={**answer.values, "run": run}))
            except BaseException as error:  # noqa: BLE001 (raised again when the child has stopped)
                if stop is None or not isinstance(error, JobCancelled):
                    stop = error
                    deadline = time.monotonic() + self._patience
                    child.send(Message("cancel", {"run": run}))

    def _living(self) -> "_Child":
        with self._lock:
            if self._closed:
                raise WorkerDied("it has been closed")
            if self._child is None or not self._child.is_usable:
                self._child = _Child(self._module, self._setup, self._heard)
                self._last = time.monotonic()
                self._set("starting")
            return self._child

    def _heard(self, child: "_Child", state: str, device: str | None, detail: str | None) -> None:
        with self._lock:
            if child is not self._child:
                return
            if self._closed:
                state, detail = "stopped", None
            self._set(state, device, detail)

    def _set(self, state: str, device: str | None = None, detail: str | None = None) -> None:
        self._state = {"state": state, "device": device or self._state["device"], "detail": detail}
        self._listener(dict(self._state))


class _NotBegun(WorkerDied):
    """The process died before it took up the job."""


_Heard = Callable[["_Child", str, str | None, str | None], None]
"""Child, state, device, detail."""


class _Child:
    """One life of the process."""

    ENDED = "ended"

    def __init__(self, module: str, setup: Mapping[str, Any], heard: "_Heard") -> None:
        self.inbox = Mailbox()
        self.is_busy = False
        self.is_usable = True
        self.epitaph = ""
        self._heard = heard
        self._sending = threading.Lock()
        self.process = _spawn(module, setup["device"])
        level = logging.getLogger("backend").getEffectiveLevel()
        self.send(Message("setup", {**setup, "log_level": level}))
        threading.Thread(target=self._listen, name="worker", daemon=True).start()

    def send(self, message: Message) -> None:
        assert self.process.stdin is not None
        try:
            with self._sending:
                wire.write(_binary(self.process.stdin), message)
        except (OSError, ValueError):
            log.debug("the engine process has gone")  # the listener says so

    def close(self) -> None:
        """It goes when its commands end; it is made to if it does not."""
        assert self.process.stdin is not None
        self.is_usable = False
        try:
            self.process.stdin.close()
        except OSError:
            log.debug("the engine process had gone already")
        try:
            self.process.wait(1.0)
        except subprocess.TimeoutExpired:
            self.process.kill()

    def kill(self) -> None:
        self.is_usable = False
        self.process.kill()

    def _listen(self) -> None:
        assert self.process.stdout is not None
        detail = None
        while message := wire.read(_binary(self.process.stdout)):
            if message.kind == "ready":
                self._heard(self, "ready", message.values["device"], None)
                continue
            if message.kind == "unusable":
                detail = f"the engine cannot start: {message.values['reason']}"
            if detail or message.values.get("ruined"):
                self.is_usable = False
            self.inbox.put(message)
        self.is_usable = False
        self.epitaph = _epitaph(self.process)
        self._heard(self, "failed", None, detail or f"the engine process ended ({self.epitaph})")
        self.inbox.put(Message(self.ENDED))


def environment(device: str | None) -> dict[str, str]:
    """What the child is started with: no way to a model hub, no secret, one thread a core, a patient allocator."""
    kept = {name: value for name, value in os.environ.items() if not _is_secret(name)}
    own = {
        "PYTHONPATH": os.pathsep.join([str(ROOT), *(path for path in sys.path if path)]),
        "PYTHONSAFEPATH": "1",
        "PYTHONDONTWRITEBYTECODE": "",  # set as in many images, it has torch and diffusers compiled anew each time
        "HF_HUB_OFFLINE": "1",
        "HF_HUB_DISABLE_IMPLICIT_TOKEN": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "DIFFUSERS_DISABLE_REMOTE_CODE": "1",
    }
    usual = {"OMP_NUM_THREADS": str(cores())}
    if device == "cpu" or (device is None and not has_accelerator()):
        usual |= _ALLOCATOR if _is_glibc() else {}
    return usual | kept | own


_ALLOCATOR = {
    # else glibc gives the scratch memory of every convolution back to the system: up to 2.3 times the CPU time
    "MALLOC_ARENA_MAX": "1",
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_TRIM_THRESHOLD_": "17179869184",
}


def cores() -> int:
    """Physical cores that this process may use."""
    if sys.platform == "linux":
        found = set()
        for cpu in os.sched_getaffinity(0):
            try:
                siblings = Path(f"/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list").read_text("ascii")
            except OSError:
                siblings = str(cpu)
            found.add(siblings)
        return max(1, min(len(found), _quota()))
    return psutil.cpu_count(logical=False) or os.cpu_count() or 1


def _quota() -> int:
    """How many cores a container leaves us."""
    try:
        limit, period = Path("/sys/fs/cgroup/cpu.max").read_text("ascii").split()
        return math.ceil(int(limit) / int(period))
    except (OSError, ValueError):  # "max": no limit
        return 1 << 16


def has_accelerator() -> bool:
    """A guess without torch: whether there is a device that torch might take."""
    if os.environ.get("CUDA_VISIBLE_DEVICES") in ("", "-1"):
        return False
    return sys.platform != "linux" or any(
        next(Path("/dev").glob(pattern), None) for pattern in ("nvidia[0-9]*", "kfd", "dxg")
    )


def _is_glibc() -> bool:
    try:
        return sys.platform == "linux" and (os.confstr("CS_GNU_LIBC_VERSION") or "").startswith("glibc")
    except (ValueError, OSError):
        return False


def _is_secret(name: str) -> bool:
    return name.startswith("ATELIER_") or (name.startswith(("HF_", "HUGGING")) and "TOKEN" in name)


def _spawn(module: str, device: str | None) -> "subprocess.Popen[bytes]":
    """A bare interpreter, not multiprocessing's: that would run app.py in it once more, and set no environment."""
    apart: dict[str, Any] = {"start_new_session": True}  # Ctrl+C is for us alone
    if sys.platform == "win32":
        apart = {"creationflags": subprocess.CREATE_NEW_PROCESS_GROUP}
    return subprocess.Popen(
        [sys.executable, "-c", f"from {module} import main; main()"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        cwd=ROOT,
        env=environment(device),
        **apart,
    )


def _binary(pipe: Any) -> BinaryIO:
    stream: BinaryIO = pipe
    return stream


def _epitaph(process: "subprocess.Popen[bytes]") -> str:
    """Why it ended, for a person."""
    try:
        code = process.wait(5.0)
    except subprocess.TimeoutExpired:  # it has closed its pipe but lingers
        process.kill()
        code = process.wait()
    if code >= 0:
        return f"exit code {code}"
    if code == -signal.SIGKILL:
        return "signal 9; out of memory?"
    return f"signal {-code}; {signal.strsignal(-code)}"


def _ended(message: Message) -> dict[str, Any]:
    if message.kind == "cancelled":
        raise JobCancelled
    if message.kind == "error":
        raise _error(message.values)
    return message.values


def _error(said: Mapping[str, Any]) -> AtelierError:
    if problems := said.get("problems"):
        return InvalidRequest(*(Problem(*p) for p in problems))
    if changes := said.get("changes"):
        return TrainingFailed(said["message"], changes)
    kind: type[AtelierError] = getattr(errors, said["type"])
    return kind(said["message"])
