"""What a model costs: to load it, to come back to it, to draw with it; beside plain diffusers, in one run.

Each loading is a process of its own. They take turns; ratios are medians over the turns.
"""

import os
import statistics
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from benchmarks import overhead
from benchmarks.load import Loading, Setup, load
from benchmarks.timing import machine, ratio, warn_if_busy

OURS, RAW, RAW_FOLDER = "our store", "from_single_file", "from_pretrained"
WHO = {OURS: "ours", RAW: "raw", RAW_FOLDER: "raw folder"}
GB = 1e9


def main(size: str, repeat: int, pairs: int, steps: int, width: int, threads: int) -> None:
    warn_if_busy()
    os.environ["OMP_NUM_THREADS"] = str(threads)
    with overhead.weights(size) as models, _single_file(models, size) as setup:
        for name, value in machine("torch", "diffusers").items():
            print(f"  {name}: {value}")
        costs = _take_turns(setup, repeat)
        _tell(costs)
        if pairs:
            print()
            overhead.compare(models, size, pairs, steps, width)


def _take_turns(setup: Setup, repeat: int) -> dict[str, list[Loading]]:
    costs: dict[str, list[Loading]] = {name: [] for name in WHO}
    for turn in range(repeat + 1):
        for name, who in WHO.items() if turn % 2 else reversed(WHO.items()):
            loading = load(setup._replace(who=who))
            if turn:  # the first one brings the files into memory
                costs[name].append(loading)
    return costs


def _tell(costs: dict[str, list[Loading]]) -> None:
    print(f"\n{'median of a loading':30}{'CPU s':>9}{'wall s':>9}{'peak GB':>9}{'own GB':>9}{'weights GB':>12}")
    for name, each in costs.items():
        figures = [statistics.median(c.cost.cpu for c in each), statistics.median(c.cost.wall for c in each)]
        figures += [statistics.median(getattr(c, part) for c in each) / GB for part in ("peak", "own", "weights")]
        print(f"{name:30}" + "".join(f"{value:{9 if i < 4 else 12}.2f}" for i, value in enumerate(figures)))
    ours, *others = ([c.cost for c in costs[name]] for name in WHO)
    print()
    for name, theirs in zip((RAW, RAW_FOLDER), others, strict=True):
        print(f"cold load against {name}: ratio {ratio(ours, theirs).cpu:.2f}, wall {ratio(ours, theirs).wall:.2f}")
    for name in WHO:
        peak, own = (statistics.median(getattr(c, part) / c.weights for c in costs[name]) for part in ("peak", "own"))
        print(f"memory against the weights, {name}: peak {peak:.2f}, without pages of files {own:.2f}")
    switch = statistics.median(c.switch / c.cost.wall for c in costs[OURS])
    seconds = statistics.median(c.switch for c in costs[OURS])
    print(f"warm switch against cold: ratio {switch:.3f} ({seconds * 1000:.0f} ms)")


@contextmanager
def _single_file(models: Path, size: str) -> Iterator[Setup]:
    """A model as one file in its authors' layout; of the starter, which is no such model, ours reads the folder."""
    from backend.diffusion.writing import single_file

    folder = models / "starter" if size == "starter" else models / "checkpoints" / size
    with TemporaryDirectory() as made:
        file = Path(made) / "checkpoints" / "one.safetensors"
        file.parent.mkdir()
        single_file(folder, "sd1", file)
        ours = (str(models), size) if size == "starter" else (made, "one")
        yield Setup("", *ours, str(file), str(folder))
