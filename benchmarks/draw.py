"""A process that draws pictures on command: through our engine, or by the plain diffusers call on the same weights.

It reads lines of JSON: first a `Setup`, then for each picture {"who": "ours" or "raw", "prompt", "seed"}, and answers
with what it cost. So several such processes, differently started, can take turns in one run.
"""

import io
import json
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.timing import Cost, cost_of

ROOT = Path(__file__).parent.parent
NEGATIVE = "blurry"
GUIDANCE = 7.0
Draw = Callable[[str, int], None]


class Setup(NamedTuple):
    models: str
    """The models folder."""
    model: str
    """Its name there."""
    steps: int
    size: int
    who: tuple[str, ...] = ("ours", "raw")


class Drawer:
    """The parent's side."""

    def __init__(self, setup: Setup, environment: Mapping[str, str]) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.draw"],
            cwd=ROOT,
            env=dict(environment),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.device = self._ask(setup._asdict())["device"]

    def draw(self, who: str, prompt: str, seed: int) -> Cost:
        answer = self._ask({"who": who, "prompt": prompt, "seed": seed})
        self.total = Cost(answer["total_cpu"], answer["total_wall"])
        return Cost(answer["cpu"], answer["wall"])

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()

    def _ask(self, question: Mapping[str, Any]) -> Any:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        print(json.dumps(question), file=self._process.stdin, flush=True)
        answer = self._process.stdout.readline()
        if not answer:
            raise SystemExit("the drawing process has ended; see above")
        return json.loads(answer)


def main() -> None:
    started = time.perf_counter()
    answers, sys.stdout = sys.stdout, sys.stderr  # what a library prints is no answer
    setup = Setup(**json.loads(sys.stdin.readline()))
    draw = {who: {"ours": _ours, "raw": _raw}[who](setup) for who in setup.who}
    print(json.dumps({"device": _device()}), file=answers, flush=True)
    for line in sys.stdin:
        asked = json.loads(line)
        cost = cost_of(lambda: draw[asked["who"]](asked["prompt"], asked["seed"]))  # noqa: B023 (called at once)
        totals = {"total_cpu": time.process_time(), "total_wall": time.perf_counter() - started}
        print(json.dumps(cost._asdict() | totals), file=answers, flush=True)


def _ours(setup: Setup) -> Draw:
    from backend import registry
    from backend.catalog import Catalog
    from backend.diffusion.engine import Engine
    from backend.images import ImageStore
    from backend.request import parse_request
    from backend.result import Progress

    engine = Engine(Catalog(Path(setup.models)), registry.Registry(), None)
    values = {
        "negative_prompt": NEGATIVE,
        "model": setup.model,
        "width": setup.size,
        "height": setup.size,
        "steps": setup.steps,
        "cfg_scale": GUIDANCE,
        "sampler_name": "Euler",
    }

    def draw(prompt: str, seed: int) -> None:
        pictures = []

        def report(progress: Progress) -> None:
            if progress.picture:
                pictures.append(progress.picture)

        request = parse_request({**values, "prompt": prompt, "seed": seed})
        engine.generate(request, ImageStore(Path("unused")), report)
        assert len(pictures) == 1

    return draw


def _raw(setup: Setup) -> Draw:
    import torch
    import transformers
    from diffusers import EulerDiscreteScheduler, StableDiffusionPipeline
    from diffusers.utils import logging

    logging.disable_progress_bar()
    transformers.utils.logging.disable_progress_bar()
    folder = next(path for path in Path(setup.models).rglob(setup.model) if path.is_dir())
    dtype = torch.float32 if _device() == "cpu" else torch.float16
    pipeline = StableDiffusionPipeline.from_pretrained(folder, dtype=dtype, safety_checker=None).to(_device())
    pipeline.scheduler = EulerDiscreteScheduler.from_config(pipeline.scheduler.config)
    pipeline.set_progress_bar_config(disable=True)

    def draw(prompt: str, seed: int) -> None:
        picture = pipeline(
            prompt,
            negative_prompt=NEGATIVE,
            width=setup.size,
            height=setup.size,
            num_inference_steps=setup.steps,
            guidance_scale=GUIDANCE,
            generator=torch.Generator("cpu").manual_seed(seed),
        ).images[0]
        picture.save(io.BytesIO(), "PNG")  # a picture is a file, for both

    return draw


def _device() -> str:
    import torch

    return "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"


if __name__ == "__main__":
    main()
