"""What a LoRA costs on a model of Stable Diffusion 1.5's own size, of random weights; the figures are printed."""

import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
import transformers

from backend.jobs.host import environment
from backend.lora import network
from backend.settings import ROOT
from extensions.lora import merge
from extensions.lora.merge import Merged
from extensions.lora.tags import Use
from extensions.lora.tests import making
from extensions.lora.tests.test_formats import SD15

pytestmark = pytest.mark.slow


class Parts:
    def __init__(self) -> None:
        with torch.device("meta"):
            self.unet: Any = diffusers.UNet2DConditionModel(**SD15)
            self.text_encoder: Any = transformers.CLIPTextModel(
                transformers.CLIPTextConfig(hidden_size=768, intermediate_size=3072, num_attention_heads=12)
            )
        for part in (self.unet, self.text_encoder):
            part.to_empty(device="cpu").eval().requires_grad_(False)
            for parameter in part.parameters():
                torch.nn.init.normal_(parameter, std=0.02)


@pytest.fixture(scope="module")
def parts() -> Parts:
    return Parts()


@pytest.fixture(scope="module")
def files(parts: Parts, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Three of rank 16, as kohya's scripts write them: attention, feed-forward and text encoder, fp16."""
    folder = tmp_path_factory.mktemp("loras")
    found = []
    for seed in range(3):
        torch.manual_seed(seed)
        tensors = {}
        for component, whole in making.components(parts).items():
            for name, module in making.modules(whole, convolutions=False).items():
                out, into, *kernel = module.weight.shape
                key = making.kohya_prefix(component, parts) + making.kohya_name(component, name)
                tensors[f"{key}.lora_down.weight"] = making.noise(16, into, *kernel, by=0.01).half()
                tensors[f"{key}.lora_up.weight"] = making.noise(out, 16, *[1] * len(kernel), by=0.01).half()
        found.append(making.save(Path(folder, f"{seed}.safetensors"), tensors))
    return found


def say(words: str) -> None:
    print(words)  # noqa: T201


def test_applying_one_takes_about_a_second(files: list[Path], capsys: pytest.CaptureFixture[str]) -> None:
    """Of one core's time, since others may be using the machine, in a process as the engine's is: it keeps the memory
    that it has got, and what is new to a process costs the system as much time again.
    """
    code = "import sys; from extensions.lora.tests import test_speed; test_speed.apply(*sys.argv[1:])"
    how = {**environment("cpu"), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", code, *map(str, files)], cwd=ROOT, env=how, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    with capsys.disabled():
        say(f"\n{done.stdout}")
    assert min(float(line.split()[2]) for line in done.stdout.splitlines()) < 1.5


def apply(*files: str) -> None:
    """Each twice; the CPU seconds are printed."""
    parts, networks = Parts(), [network.read(Path(file)).float() for file in files]
    for one in networks * 2:
        merged = Merged()
        before, started = time.process_time(), time.perf_counter()
        there = merge.places(parts)
        merge.check(one, there)
        merged.put(merge.changes([(Use("a"), one)], there))
        taken, applied = time.process_time() - before, time.perf_counter() - started
        started = time.perf_counter()
        merged.undo()
        say(
            f"applied in {taken:.2f} s of CPU, {applied:.2f} s in all; undone in {time.perf_counter() - started:.3f} s"
        )


def test_a_step_with_three_costs_no_more(parts: Parts, files: list[Path], capsys: pytest.CaptureFixture[str]) -> None:
    merged = Merged()
    there = merge.places(parts)
    wanted = merge.changes([(Use("a"), network.read(file).float()) for file in files], there)
    given = torch.randn(1, 4, 16, 16), 500, torch.randn(1, 77, 768)
    times: dict[bool, list[float]] = {False: [], True: []}
    with torch.inference_mode():
        for n in range(24):
            merged.put(wanted) if n % 2 else merged.undo(keep=True)
            started = time.process_time()
            parts.unet(*given)
            times[bool(n % 2)].append(time.process_time() - started)
    merged.undo()
    without, with_three = min(times[False]), min(times[True])
    with capsys.disabled():
        say(f"\na step: {without:.3f} s, with three LoRAs {with_three:.3f} s, {with_three / without:.3f} of it")
    assert with_three <= 1.05 * without
