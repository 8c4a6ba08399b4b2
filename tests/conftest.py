"""What holds for the whole suite."""

import os
import sys

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")
"""Two processes of tests and their engines share the cores: threads would wait for each other."""

# Where this is set, as in many images of Docker, each process compiles torch and diffusers anew: 8 seconds of CPU.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    # Playwright keeps an event loop running in this thread until the session ends: `asyncio.run` is refused after it.
    # xdist hands files out in this order (--no-loadscope-reorder)
    items.sort(key=lambda item: item.get_closest_marker("browser") is not None)
