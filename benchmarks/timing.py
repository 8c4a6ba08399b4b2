"""CPU and wall seconds, and what to know about the machine that took them."""

import os
import platform
import statistics
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import psutil


class Cost(NamedTuple):
    cpu: float
    """Seconds of user and system time."""
    wall: float


def cost_of(action: Callable[[], object]) -> Cost:
    """What `action` costs this process, all its threads together."""
    cpu, wall = time.process_time(), time.perf_counter()
    action()
    return Cost(time.process_time() - cpu, time.perf_counter() - wall)


def tree_cpu(process: psutil.Process) -> float:
    """CPU seconds of a process and of all its living children so far."""
    total = 0.0
    for member in (process, *process.children(recursive=True)):
        try:
            times = member.cpu_times()
        except psutil.NoSuchProcess:
            continue
        total += times.user + times.system
    return total


def median(costs: list[Cost]) -> Cost:
    return Cost(statistics.median(c.cpu for c in costs), statistics.median(c.wall for c in costs))


def ratio(these: list[Cost], those: list[Cost]) -> Cost:
    """Median over the turns: what was measured one after the other had the same company."""
    turns = list(zip(these, those, strict=True))
    return Cost(
        statistics.median(a.cpu / b.cpu for a, b in turns), statistics.median(a.wall / b.wall for a, b in turns)
    )


def machine(*packages: str) -> dict[str, Any]:
    from importlib.metadata import version

    return {
        "python": platform.python_version(),
        "system": platform.platform(),
        "cores": os.cpu_count(),
        "load": round(psutil.getloadavg()[0], 1),
        **{package: version(package) for package in packages},
    }


def warn_if_busy() -> None:
    load, cores = psutil.getloadavg()[0], os.cpu_count() or 1
    if load > cores:
        print(f"Note: other work keeps this machine busy (load {load:.1f} on {cores} cores). Read the ratios only.")
