"""Waiting for what another thread or process does."""

import time
from collections.abc import Callable
from typing import TypeVar

from benchmarks import timing

T = TypeVar("T")


def wait_for(what: Callable[[], T | None], seconds: float = 240.0, every: float = 0.01) -> T:
    """The first true value of `what()`. The limit is for what never comes: no machine is too slow for a test."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if found := what():
            return found
        time.sleep(every)
    raise AssertionError("waited in vain")


def least_cpu(what: Callable[[], object], times: int = 5) -> float:
    """Processor seconds of the quickest of some runs: in the others, other threads may have had something to do."""
    return min(timing.cost_of(what).cpu for _ in range(times))
