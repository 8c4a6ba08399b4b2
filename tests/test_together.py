"""Extensions side by side in one request, on a model of random weights."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from diffusers import UNet2DConditionModel

from backend.testing import Studio
from extensions.controlnet.tests import made
from extensions.lora.tests import making

EXTENSIONS = Path(__file__).parents[1] / "extensions"
LORA = "a red circle <lora:style:1>"


@pytest.fixture(scope="module")
def studio(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Studio]:
    torch.set_num_threads(1)
    models = tmp_path_factory.mktemp("models")
    base = made.sd15(models / "checkpoints" / "sd15")
    net = made.control(UNet2DConditionModel.from_pretrained(base / "unet"), 1)
    made.save(made.lllyasviel(net), models / "controlnet" / "one.safetensors")
    with Studio(EXTENSIONS / "controlnet", models=models, model="sd15", also=["hires", "inpaint", "lora"]) as studio:
        pipeline = studio.engine.store.load(studio.catalog.find("sd15")).pipeline
        making.save(models / "loras" / "style.safetensors", making.make(pipeline, "lora")[0])
        yield studio


def test_a_lora_beside_a_control_model_changes_the_picture_and_both_are_undone(studio: Studio) -> None:
    unit = {"controlnet": {"units": [{"model": "one", "image": studio.image(made.edges())}]}}
    plain = studio.draw("a red circle")
    guided, both = studio.draw("a red circle", extensions=unit), studio.draw(LORA, extensions=unit)
    pixels = {drawn.picture.tobytes() for drawn in (plain, guided, studio.draw(LORA), both)}
    assert len(pixels) == 4
    assert studio.draw("a red circle").picture.tobytes() == plain.picture.tobytes()
    assert studio.draw("a red circle", extensions=unit).picture.tobytes() == guided.picture.tobytes()


def test_with_hires_and_inpaint_too(studio: Studio) -> None:
    unit = {"controlnet": {"units": [{"model": "one", "image": studio.image(made.edges())}]}}
    assert studio.draw(LORA, extensions={**unit, "hires": {"scale": 1.5}}).picture.size == (96, 96)
    before = made.edges().resize((64, 64))
    mask = before.point(lambda _: 0)
    mask.paste("white", (0, 0, 32, 64))
    painted = {**unit, "inpaint": {"mask": studio.image(mask), "blur": 0}}
    after = studio.draw(LORA, extensions=painted, init_image=studio.image(before)).picture
    beside = (40, 0, 64, 64)
    assert after.crop(beside).tobytes() == before.crop(beside).tobytes()
    assert after.tobytes() != before.tobytes()
