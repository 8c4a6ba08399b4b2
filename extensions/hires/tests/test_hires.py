"""Hires on the embedded model: `python app.py test extensions/hires`."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from backend import infotext
from backend.errors import InvalidRequest
from backend.result import JobCancelled, Progress
from backend.testing import Drawn, Studio

FOLDER = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def studio() -> Iterator[Studio]:
    torch.set_num_threads(1)  # the same bits whoever else uses the processor
    with Studio(FOLDER) as studio:
        yield studio


@pytest.fixture
def hires(studio: Studio) -> Callable[..., Drawn]:
    def draw(values: dict[str, Any] | None = None, report: Any = None, **params: Any) -> Drawn:
        return studio.draw(report=report, extensions={"hires": params}, **{"steps": 2, **(values or {})})

    return draw


@pytest.fixture
def size(studio: Studio) -> Callable[..., tuple[int, int]]:
    def of(across: int, down: int, /, **params: Any) -> tuple[int, int]:
        found: tuple[int, int] = studio.registry.params["hires"](**params).size(across, down)  # type: ignore[attr-defined]
        return found

    return of


def difference(a: Image.Image, b: Image.Image) -> Any:
    return np.abs(np.asarray(a, float) - np.asarray(b.resize(a.size), float))


def test_it_enlarges_the_picture_and_leaves_no_trace(studio: Studio) -> None:
    before, during, after = studio.around({}, steps=2)
    assert before == after
    assert len(during) == 4 * len(before)


@pytest.mark.parametrize("steps", [0, 5])
def test_the_second_pass_runs_exactly_its_steps(hires: Any, steps: int) -> None:
    told: list[Progress] = []
    hires(report=told.append, steps=steps, denoising_strength=0.5, scale=1)
    in_all = 2 + (steps or 2)
    counted = dict.fromkeys((p.step, p.steps) for p in told if p.stage == "sampling" and p.step)
    assert list(counted) == [(step, in_all) for step in range(1, in_all + 1)]


def test_the_denoising_strength_says_how_much_is_kept(studio: Studio, hires: Any) -> None:
    first = studio.draw(steps=2).picture
    kept, near, new = (
        difference(hires(denoising_strength=strength, upscaler="Lanczos").picture, first).mean()
        for strength in (0, 0.01, 1)
    )
    assert kept <= near + 1 < new


def test_every_upscaler_is_another(studio: Studio, hires: Any) -> None:
    schema = studio.registry.params["hires"].model_json_schema()["properties"]["upscaler"]
    names = [
        name for name in schema["enum"] if name != "Latent (antialiased)"
    ]  # which only shrinking could tell apart
    drawn = [hires(upscaler=name, scale=1.5, steps=1).picture.tobytes() for name in names]
    assert len(drawn) == len(set(drawn)) == 7


def test_a_picture_does_not_depend_on_its_batch(hires: Any) -> None:
    """The noise of each is that of its own seed."""
    together = hires({"batch_size": 2, "n_iter": 2}, scale=1.5).pictures
    alone = [hires({"seed": seed}, scale=1.5).picture for seed in (2, 4)]
    assert [picture.size for picture in together] == [(96, 96)] * 4
    assert difference(together[1], alone[0]).max() <= 1
    assert difference(together[3], alone[1]).max() <= 1


def test_the_second_pass_may_have_words_and_a_sampler_of_its_own(studio: Studio, hires: Any) -> None:
    plain = hires(scale=1, steps=3)
    for params in (
        {"prompt": "a green square on a white background"},
        {"negative_prompt": "red"},
        {"sampler_name": "Euler"},
        {"scheduler": "Uniform"},
    ):
        drawn = hires(scale=1, steps=3, **params)
        assert drawn.picture.tobytes() != plain.picture.tobytes(), params
        assert studio.read(drawn.text) == drawn.request


def test_the_picture_remembers_how_it_was_made(studio: Studio, hires: Any) -> None:
    drawn = hires(upscaler="Lanczos", steps=3, denoising_strength=0.4)
    line = drawn.text.splitlines()[-1]
    assert "Size: 64x64," in line
    assert "Denoising strength: 0.4, Hires upscaler: Lanczos, Hires upscale: 2, Hires steps: 3, Version:" in line
    assert studio.read(drawn.text) == drawn.request
    assert studio.read(drawn.text).task == 0

    sized = hires(width=96, scale=3)
    assert "Hires resize: 96x0" in sized.text
    assert "Hires upscale:" not in sized.text
    assert "Hires steps" not in sized.text
    assert sized.picture.size == (96, 96)
    assert studio.read(sized.text) == sized.request


def test_a_text_of_a1111_is_understood(studio: Studio) -> None:
    text = (
        "a cat\nSteps: 20, Sampler: Euler a, CFG scale: 7, Seed: 1, Size: 512x512, Denoising strength: 0.35, "
        "Hires upscale: 1.5, Hires steps: 10, Hires upscaler: Latent (nearest-exact), Version: v1.10.1"
    )
    read = studio.read(text)
    given = {"denoising_strength": 0.35, "scale": 1.5, "steps": 10, "upscaler": "Latent (nearest-exact)"}
    assert json.loads(read.extensions["hires"].model_dump_json(exclude_defaults=True)) == given
    assert read.denoising_strength == 0.75


def test_a_denoising_strength_alone_does_not_call_it(studio: Studio) -> None:
    drawn = studio.draw(init_image=studio.image(Image.new("RGB", (64, 64))), denoising_strength=0.7)
    assert "Denoising strength: 0.7" in drawn.text
    assert "extensions" not in infotext.read(drawn.text, studio.registry.params).values
    assert "Hires" not in studio.draw().text


def test_sizes(size: Any) -> None:
    assert size(512, 512) == (1024, 1024)
    assert size(512, 768, scale=1.1) == (560, 840)
    assert size(512, 768, width=1024) == (1024, 1536)
    assert size(512, 768, height=960) == (640, 960)
    assert size(512, 768, width=640, height=640) == (640, 640)
    for width, height, params in ((2048, 1024, {"scale": 4}), (64, 512, {"width": 4096}), (512, 64, {"width": 128})):
        with pytest.raises(ValueError, match="pixels cannot be drawn: 64 to 4096 a side can"):
            size(width, height, **params)


def test_another_shape_is_cut_evenly(studio: Studio) -> None:
    from extensions.hires.enlarge import enlarged

    ramp = torch.arange(8.0).expand(1, 1, 4, 8)  # 8 wide, 4 high
    assert enlarged(ramp, 4, 4, "nearest", False)[0, 0].tolist() == [[2, 3, 4, 5]] * 4
    assert enlarged(ramp.mT, 8, 8, "nearest", False)[0, 0, :, 0].tolist() == [2, 2, 3, 3, 4, 4, 5, 5]
    assert enlarged(ramp, 16, 8, "bilinear", True).shape == (1, 1, 8, 16)


@pytest.mark.parametrize(
    ("params", "field"),
    [
        ({"scale": 0.5}, "scale"),
        ({"scale": 5}, "scale"),
        ({"width": 4104}, "width"),
        ({"height": 100}, "height"),
        ({"steps": 151}, "steps"),
        ({"denoising_strength": -0.1}, "denoising_strength"),
        ({"upscaler": "ESRGAN"}, "upscaler"),
        ({"sampler_name": "Magic"}, "sampler_name"),
        ({"scheduler": "Magic"}, "scheduler"),
        ({"prompt": "x" * 8001}, "prompt"),
        ({"factor": 2}, "factor"),
    ],
)
def test_a_wrong_value_is_named(studio: Studio, params: dict[str, Any], field: str) -> None:
    with pytest.raises(InvalidRequest, match=rf"^extensions\.hires\.{field}: "):
        studio.request(extensions={"hires": params})


def test_what_cannot_be_enlarged_is_refused_before_anything_is_drawn(studio: Studio, hires: Any) -> None:
    told: list[Progress] = []
    with pytest.raises(InvalidRequest, match=r"^init_image: Hires begins with a picture of its own"):
        hires({"init_image": studio.image(Image.new("RGB", (64, 64)))}, told.append)
    with pytest.raises(InvalidRequest, match=r"^extensions\.hires\.scale: 8192 x 256 pixels cannot be drawn"):
        hires({"width": 2048, "height": 64}, told.append, scale=4)
    assert not told


def test_it_can_be_cancelled_in_the_second_pass(studio: Studio, hires: Any) -> None:
    encodings = 0

    def report(progress: Progress) -> None:
        nonlocal encodings
        encodings += progress.stage == "encoding"
        if encodings == 2 and progress.step == 3:
            raise JobCancelled

    before = studio.draw(steps=2).picture.tobytes()
    with pytest.raises(JobCancelled):
        hires(report=report)
    assert studio.draw(steps=2).picture.tobytes() == before
