"""What a step costs with one ControlNet unit, against diffusers' own ControlNet pipeline on the same weights.

Both draw in one process that has the worker's allocator settings, and take turns at every picture. The ControlNet has
random weights in the shape of the checkpoint. A step without a unit, measured in the same turns, says what part of it
is the ControlNet's.
"""

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from backend.jobs.host import environment
from benchmarks.draw import ROOT, Drawer, Setup
from benchmarks.overhead import PROMPTS, weights
from benchmarks.timing import Cost, machine, median, ratio, warn_if_busy

NET = "bench"
OURS = "our engine, one unit"
RAW = "diffusers' ControlNet pipeline"
ALONE = "our engine, no unit"


def main(size: str, pairs: int, steps: int, width: int, threads: int) -> None:
    if size not in ("starter", "full"):
        raise SystemExit(f"--size {size}: there are starter and full")
    warn_if_busy()
    if threads:
        os.environ["OMP_NUM_THREADS"] = str(threads)
    with weights(size) as checkpoints, _with_a_net(checkpoints, size) as models:
        setup = Setup(str(models), size, steps, width or (128 if size == "starter" else 256), control=NET)
        print(f"{pairs} pictures each, {setup.size} x {setup.size}, {steps} steps, Euler")
        for name, value in machine("torch", "diffusers").items():
            print(f"  {name}: {value}")
        costs = _take_turns(setup, pairs)
    print(f"\n{'median per step':40}{'CPU ms':>9}{'wall ms':>9}")
    for who, each in costs.items():
        print(f"{who:40}{median(each).cpu * 1000:9.1f}{median(each).wall * 1000:9.1f}")
    same = ratio(costs[OURS], costs[RAW])
    print(f"\na unit adds {ratio(costs[OURS], costs[ALONE]).cpu - 1:.0%} to a step")
    print(f"wall ratio {same.wall:.2f}")
    print(f"ratio {same.cpu:.2f}")


def _take_turns(setup: Setup, pairs: int) -> dict[str, list[Cost]]:
    both = Drawer(setup, environment(None))
    alone = Drawer(setup._replace(who=("ours",), control=""), environment(None))
    turns = [(OURS, both, "ours"), (RAW, both, "raw"), (ALONE, alone, "ours")]
    costs: dict[str, list[Cost]] = {name: [] for name, _, _ in turns}
    try:
        for number in range(pairs + 1):
            prompt = PROMPTS[number % len(PROMPTS)]
            for name, drawer, who in turns if number % 2 else reversed(turns):
                drawer.draw(who, prompt, number)
                if number:  # the first one warms up
                    costs[name].append(drawer.step)
    finally:
        both.close()
        alone.close()
    return costs


@contextmanager
def _with_a_net(checkpoints: Path, size: str) -> Iterator[Path]:
    """A models folder with the checkpoint, by a link, and a ControlNet for it."""
    checkpoint = next(path for path in (checkpoints / size, checkpoints / "checkpoints" / size) if path.is_dir())
    with tempfile.TemporaryDirectory() as folder:
        models = Path(folder)
        there = models / checkpoint.relative_to(checkpoints)
        there.parent.mkdir(exist_ok=True)
        there.symlink_to(checkpoint, target_is_directory=True)
        net = models / "controlnet" / NET
        if subprocess.call([sys.executable, "-m", "benchmarks.controlnet", str(checkpoint), str(net)], cwd=ROOT):
            raise SystemExit("the ControlNet could not be written; see above")
        yield models


def write(checkpoint: Path, net: Path) -> None:
    import torch
    from diffusers import ControlNetModel, UNet2DConditionModel

    torch.manual_seed(0)
    unet = UNet2DConditionModel.from_pretrained(checkpoint / "unet", torch_dtype=torch.float32)
    control = ControlNetModel.from_unet(unet)
    for name, value in control.named_parameters():
        if name.startswith(("controlnet_down", "controlnet_mid", "controlnet_cond_embedding.conv_out")):
            torch.nn.init.normal_(value, std=0.01)
    control.half().save_pretrained(net)


if __name__ == "__main__":
    write(Path(sys.argv[1]), Path(sys.argv[2]))
