"""Waiting for what another thread or process does."""

import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


def wait_for(what: Callable[[], T | None], seconds: float = 240.0, every: float = 0.01) -> T:
    """The first true value of `what()`. The limit is for what never comes: no machine is too slow for a test."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if found := what():
            return found
        time.sleep(every)
    raise AssertionError("waited in vain")
