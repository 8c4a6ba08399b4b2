"""A process that loads a model once and says what it cost: `python -m benchmarks.load`, with JSON to it and back.

By our own store, or by diffusers' `from_single_file` or `from_pretrained`. The files are read before, by the parent,
so that none of them waits for the disk.
"""

import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import psutil

from benchmarks.draw import ROOT
from benchmarks.timing import Cost, cost_of

PAUSE = 0.002
"""Seconds between two looks at the memory."""


class Setup(NamedTuple):
    who: str
    models: str
    """The models folder."""
    model: str
    """Its name there."""
    path: str
    """Its file or folder."""
    folder: str
    """The same model as diffusers saves it: configs and tokenizer for `from_single_file`."""


class Loading(NamedTuple):
    cost: Cost
    peak: int
    """Bytes at most beside what the process had before."""
    own: int
    """The same without pages of files, which the system takes back when it needs them; 0: it does not tell."""
    weights: int
    """Bytes of the weights in memory."""
    switch: float
    """Seconds to be back at it after another model; 0: not measured."""


def load(setup: Setup) -> Loading:
    """The parent's side."""
    command = [sys.executable, "-m", "benchmarks.load"]
    done = subprocess.run(command, cwd=ROOT, input=json.dumps(setup._asdict()), stdout=subprocess.PIPE, text=True)
    if done.returncode:
        raise SystemExit("the loading process has ended; see above")
    given = json.loads(done.stdout)
    return Loading(Cost(*given.pop("cost")), **given)


def main() -> None:
    answers, sys.stdout = sys.stdout, sys.stderr  # what a library prints is no answer
    setup = Setup(**json.loads(sys.stdin.read()))
    act, weights, switch = {"ours": _ours, "raw": _raw, "raw folder": _raw_folder}[setup.who](setup)
    watch = _Watch()
    cost = cost_of(act)
    peak, own = watch.end()
    print(json.dumps(Loading(cost, peak, own, weights(), switch())._asdict()), file=answers)


class _Watch:
    """The most memory that this process has taken since."""

    def __init__(self) -> None:
        self._before = _memory()
        self._most = self._before
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)
        self._thread.start()

    def end(self) -> tuple[int, int]:
        self._ended.set()
        self._thread.join()
        whole, own = (most - before for most, before in zip(self._most, self._before, strict=True))
        return whole, own

    def _look(self) -> None:
        while not self._ended.wait(PAUSE):
            now = _memory()
            self._most = max(self._most[0], now[0]), max(self._most[1], now[1])


def _memory() -> tuple[int, int]:
    """Resident bytes, and those of them that are no pages of files."""
    info = psutil.Process().memory_info()
    return info.rss, info.rss - getattr(info, "shared", info.rss)


Way = tuple[Callable[[], object], Callable[[], int], Callable[[], float]]


def _ours(setup: Setup) -> Way:
    import torch

    from backend.catalog import Catalog
    from backend.diffusion.memory import GB, Budget
    from backend.diffusion.models import Loaded, ModelStore, best_device

    catalog, device = Catalog(Path(setup.models)), best_device()
    other = Catalog(ROOT / "models").find("starter")
    model = catalog.find(setup.model)
    store = ModelStore(device, Budget(64 * GB, 0 if device.type == "cpu" else 64 * GB))
    loaded: list[Loaded] = []

    def switch() -> float:
        store.load(other)
        started = time.perf_counter()
        assert store.load(model) is loaded[0]
        if device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - started

    return lambda: loaded.append(store.load(model)), lambda: loaded[0].size, switch


def _raw(setup: Setup) -> Way:
    from diffusers import StableDiffusionPipeline

    def read() -> Any:
        given: Any = StableDiffusionPipeline.from_single_file(
            setup.path, config=setup.folder, local_files_only=True, dtype=_dtype(), safety_checker=None
        )
        return given

    return _by_diffusers(read)


def _raw_folder(setup: Setup) -> Way:
    from diffusers import StableDiffusionPipeline

    def read() -> Any:
        return StableDiffusionPipeline.from_pretrained(setup.folder, dtype=_dtype(), safety_checker=None)

    return _by_diffusers(read)


def _by_diffusers(read: Callable[[], Any]) -> Way:
    import transformers
    from diffusers.utils import logging

    from backend.diffusion.models import best_device

    logging.disable_progress_bar()
    transformers.utils.logging.disable_progress_bar()
    pipelines: list[Any] = []

    def weights() -> int:
        parts = (pipelines[0].unet, pipelines[0].vae, pipelines[0].text_encoder)
        return sum(p.nbytes for part in parts for p in part.parameters())

    return lambda: pipelines.append(read().to(best_device())), weights, lambda: 0.0


def _dtype() -> Any:
    import torch

    return torch.float16 if torch.cuda.is_available() else torch.float32


if __name__ == "__main__":
    main()
