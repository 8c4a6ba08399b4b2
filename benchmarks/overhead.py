"""Seconds per picture through our engine against the plain diffusers call, same weights, same process.

Two processes take turns at every picture: one with the worker's allocator settings, which draws by our engine and by
plain diffusers, and one started as Python usually is, which draws by plain diffusers only. Prompt and seed change from
turn to turn, so that nothing is drawn from a cache. On a busy machine, threads that wait for one another burn CPU
time: so it is one thread unless more are asked for.
"""

import itertools
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from backend.jobs.host import environment
from benchmarks.draw import ROOT, Drawer, Setup
from benchmarks.timing import Cost, machine, median, ratio, warn_if_busy

PROMPTS = [f"a {one} circle on a {two} background" for one, two in itertools.permutations(("red", "blue", "green"), 2)]
OURS = "our engine"
RAW = "plain diffusers, same process"
USUAL_RAW = "plain diffusers, allocator as it is"


def main(size: str, pairs: int, steps: int, width: int, threads: int) -> None:
    warn_if_busy()
    if threads:
        os.environ["OMP_NUM_THREADS"] = str(threads)
    with weights(size) as models:
        compare(models, size, pairs, steps, width)


def compare(models: Path, model: str, pairs: int, steps: int, width: int) -> None:
    """Draw by turns with a model of this folder, and tell."""
    setup = Setup(str(models), model, steps, width or (128 if model == "starter" else 256))
    print(f"{pairs} pictures each, {setup.size} x {setup.size}, {steps} steps, Euler")
    for name, value in machine("torch", "diffusers").items():
        print(f"  {name}: {value}")
    costs = _take_turns(setup, pairs)
    print(f"\n{'median per picture':40}{'CPU s':>9}{'wall s':>9}")
    for who, each in costs.items():
        print(f"{who:40}{median(each).cpu:9.3f}{median(each).wall:9.3f}")
    same, usual = (ratio(costs[OURS], costs[raw]) for raw in (RAW, USUAL_RAW))
    print(f"\nagainst plain diffusers with the allocator as it is: ratio {usual.cpu:.2f}, wall {usual.wall:.2f}")
    print(f"wall ratio {same.wall:.2f}")
    print(f"ratio {same.cpu:.2f}")


def _take_turns(setup: Setup, pairs: int) -> dict[str, list[Cost]]:
    tuned = environment(None)
    usual = {name: value for name, value in tuned.items() if not name.startswith("MALLOC_")}
    ours = Drawer(setup, tuned)
    raw = Drawer(setup._replace(who=("raw",)), usual)
    turns = [(OURS, ours, "ours"), (RAW, ours, "raw"), (USUAL_RAW, raw, "raw")]
    costs: dict[str, list[Cost]] = {name: [] for name, _, _ in turns}
    try:
        for number in range(pairs + 1):
            prompt = PROMPTS[number % len(PROMPTS)]
            for name, drawer, who in turns if number % 2 else reversed(turns):
                cost = drawer.draw(who, prompt, number)
                if number:  # the first one warms up
                    costs[name].append(cost)
    finally:
        ours.close()
        raw.close()
    return costs


@contextmanager
def weights(size: str) -> Iterator[Path]:
    """A models folder that holds a model of that name."""
    if size not in ("starter", "full"):
        raise SystemExit(f"--size {size}: there are starter and full")
    if size == "starter":
        yield ROOT / "models"
        return
    with tempfile.TemporaryDirectory() as folder:
        print("writing random weights of Stable Diffusion 1.5 ...", flush=True)
        target = Path(folder) / "checkpoints" / size
        if subprocess.call([sys.executable, "-m", "benchmarks.weights", str(target)], cwd=ROOT):
            raise SystemExit("the weights could not be written; see above")
        yield Path(folder)
