"""A process that draws pictures on command: through our engine, or by the plain diffusers call on the same weights.

It reads lines of JSON: first a `Setup`, then for each picture {"who": "ours" or "raw", "prompt", "seed"}, and answers
with what it cost, the whole of it and a step. So several such processes, differently started, can take turns in one
run.
"""

import io
import json
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.timing import Cost, cost_of

ROOT = Path(__file__).parent.parent
NEGATIVE = "blurry"
GUIDANCE = 7.0
Draw = Callable[[str, int, Callable[[], None]], None]
"""A prompt, a seed, and what is called after each step."""


class Setup(NamedTuple):
    models: str
    """The models folder."""
    model: str
    """Its name there."""
    steps: int
    size: int
    who: tuple[str, ...] = ("ours", "raw")
    control: str = ""
    """A ControlNet in the models folder, as diffusers saves one: both are guided by it."""


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
        self.step = Cost(answer["step_cpu"], answer["step_wall"])
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
        marks: list[Cost] = []
        tick = partial(_tick, marks)
        cost = cost_of(lambda: draw[asked["who"]](asked["prompt"], asked["seed"], tick))  # noqa: B023 (called at once)
        steps = max(len(marks) - 1, 1)  # what comes before the first is no step
        whole = {"total_cpu": time.process_time(), "total_wall": time.perf_counter() - started}
        each = {f"step_{name}": (marks[-1][i] - marks[0][i]) / steps for i, name in enumerate(Cost._fields)}
        print(json.dumps(cost._asdict() | whole | each), file=answers, flush=True)


def _tick(marks: list[Cost]) -> None:
    marks.append(Cost(time.process_time(), time.perf_counter()))


def _ours(setup: Setup) -> Draw:
    from backend import registry
    from backend.catalog import Catalog
    from backend.diffusion.engine import Engine
    from backend.images import ImageStore
    from backend.request import parse_request
    from backend.result import Progress

    models = Path(setup.models)
    extensions = registry.Registry()
    if setup.control:
        extensions = registry.load(ROOT / "extensions", only={"controlnet"}, models=models, kept=models / "kept")
    engine = Engine(Catalog(models), extensions, None)
    images = ImageStore(models / "images")
    values: dict[str, Any] = {
        "negative_prompt": NEGATIVE,
        "model": setup.model,
        "width": setup.size,
        "height": setup.size,
        "steps": setup.steps,
        "cfg_scale": GUIDANCE,
        "sampler_name": "Euler",
    }
    if setup.control:
        unit = {"model": setup.control, "map": images.put(_png(_map(setup.size)))}
        values["extensions"] = {"controlnet": {"units": [unit]}}

    def draw(prompt: str, seed: int, tick: Callable[[], None]) -> None:
        pictures = []

        def report(progress: Progress) -> None:
            if progress.step and progress.stage == "sampling":
                tick()
            if progress.picture:
                pictures.append(progress.picture)

        request = parse_request({**values, "prompt": prompt, "seed": seed}, extensions.params)
        engine.generate(request, images, report)
        assert len(pictures) == 1

    return draw


def _raw(setup: Setup) -> Draw:
    import torch
    import transformers
    from diffusers import ControlNetModel, EulerDiscreteScheduler
    from diffusers import StableDiffusionControlNetPipeline as Controlled
    from diffusers import StableDiffusionPipeline as Plain
    from diffusers.utils import logging

    logging.disable_progress_bar()
    transformers.utils.logging.disable_progress_bar()
    folder = next(path for path in Path(setup.models).rglob(setup.model) if path.is_dir())
    dtype = torch.float32 if _device() == "cpu" else torch.float16
    kind, parts, told = Plain, {}, {}
    if setup.control:
        net = Path(setup.models) / "controlnet" / setup.control
        kind, told = Controlled, {"image": _map(setup.size)}
        parts = {"controlnet": ControlNetModel.from_pretrained(net, torch_dtype=dtype)}
    pipeline = kind.from_pretrained(folder, dtype=dtype, safety_checker=None, **parts).to(_device())
    pipeline.scheduler = EulerDiscreteScheduler.from_config(pipeline.scheduler.config)
    pipeline.set_progress_bar_config(disable=True)

    def draw(prompt: str, seed: int, tick: Callable[[], None]) -> None:
        def after(_: Any, index: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
            tick()
            return tensors

        picture = pipeline(
            prompt,
            negative_prompt=NEGATIVE,
            width=setup.size,
            height=setup.size,
            num_inference_steps=setup.steps,
            guidance_scale=GUIDANCE,
            generator=torch.Generator("cpu").manual_seed(seed),
            callback_on_step_end=after,
            **told,
        ).images[0]
        _png(picture)  # a picture is a file, for both

    return draw


def _map(size: int) -> Any:
    """Some lines to guide by, RGB."""
    from PIL import Image, ImageDraw

    picture = Image.new("RGB", (size, size))
    ImageDraw.Draw(picture).ellipse((size // 4, size // 4, size * 3 // 4, size * 3 // 4), outline="white", width=2)
    return picture


def _png(picture: Any) -> bytes:
    file = io.BytesIO()
    picture.save(file, "PNG")
    return file.getvalue()


def _device() -> str:
    import torch

    return "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"


if __name__ == "__main__":
    main()
