"""Names for processes that can be asked later whether they still live: a lease says who holds it."""

import os
import platform
import sys
from functools import cache
from pathlib import Path

import psutil


def me() -> str:
    """This process: `place/pid/start`."""
    return _name(os.getpid())


def is_alive(name: str) -> bool | None:
    """Whether the process lives that a name begins with; None if it cannot be known from here."""
    place, _, rest = name.partition("/")
    pid, _, rest = rest.partition("/")
    start = rest.partition("/")[0]
    if place != _place() or not pid.isdigit() or not start:
        return None
    return _start(int(pid)) == start


@cache
def _name(pid: int) -> str:
    return f"{_place()}/{pid}/{_start(pid)}"


@cache
def _place() -> str:
    """Where process numbers mean the same: this boot of this machine, and this container."""
    if sys.platform == "linux":
        boot = Path("/proc/sys/kernel/random/boot_id").read_text("ascii").strip()
        return f"{boot}-{os.stat('/proc/self/ns/pid').st_ino}"
    return platform.node().replace("/", "-") or "here"


def _start(pid: int) -> str | None:
    """When a living process began; None if there is none. Numbers are used again, together with this they are not."""
    if sys.platform == "linux":  # in ticks since boot: psutil's wall time moves when the clock is set
        try:
            stat = Path(f"/proc/{pid}/stat").read_bytes()
        except OSError:
            return None
        state, *fields = stat[stat.rindex(b")") + 2 :].split()
        return None if state in b"ZX" else fields[18].decode()
    try:
        process = psutil.Process(pid)
        return None if process.status() == psutil.STATUS_ZOMBIE else f"{process.create_time():.2f}"
    except psutil.Error:
        return None
