"""The SDXL refiner on tiny weights: as diffusers draws it, from an image and from nothing."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import EulerDiscreteScheduler, StableDiffusionXLImg2ImgPipeline

from backend.catalog import Catalog
from backend.diffusion import latents
from backend.diffusion.engine import Engine
from backend.errors import InvalidRequest
from backend.images import ImageStore
from backend.registry import Registry
from backend.request import ResizeMode
from backend.testing import Studio
from backend.training import base
from tests.pixels import difference, left_half, photo, put
from tests.tiny import SIZE, Keeper, draw, tiny_model_xl, tiny_refiner

pytest_plugins = ["tests.tiny"]
EXTENSIONS = Path(__file__).parents[1] / "extensions"
ASKED = {"model": "refiner", "sampler_name": "Euler", "scheduler": "Uniform", "extensions": {"keeper": {}}}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("refiner")
    tiny_refiner(folder / "checkpoints" / "refiner")
    return folder


@pytest.fixture(scope="module")
def raw(models: Path) -> Any:
    pipeline = StableDiffusionXLImg2ImgPipeline.from_pretrained(models / "checkpoints" / "refiner")
    pipeline.scheduler = EulerDiscreteScheduler.from_config(pipeline.scheduler.config, timestep_spacing="linspace")
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@pytest.mark.parametrize("negative", ["", "a blue square"])
@pytest.mark.parametrize("cfg", [1.0, 5.0])
def test_from_an_image_the_latents_are_those_of_diffusers(
    engine: Engine, keeper: Keeper, images: ImageStore, raw: Any, cfg: float, negative: str
) -> None:
    asked = {**ASKED, "init_image": put(images, photo()), "denoising_strength": 0.5}
    draw(engine, images, **asked, cfg_scale=cfg, negative_prompt=negative)
    with torch.inference_mode():
        encoded = latents.encode(raw.vae, photo(), SIZE, SIZE, ResizeMode.JUST_RESIZE)
    theirs = raw(
        prompt="a red circle",
        negative_prompt=negative,
        image=encoded,
        strength=0.75,  # of 4 steps 3, as A1111 counts for a half
        num_inference_steps=4,
        guidance_scale=cfg,
        original_size=(SIZE, SIZE),
        target_size=(SIZE, SIZE),
        generator=torch.Generator().manual_seed(7),
        output_type="latent",
    ).images
    torch.testing.assert_close(keeper.kept[-1], theirs, rtol=1e-4, atol=1e-4)


def test_from_nothing_the_latents_are_those_of_diffusers(
    engine: Engine, keeper: Keeper, images: ImageStore, raw: Any
) -> None:
    drawn = draw(engine, images, **ASKED, cfg_scale=5, height=96).pictures[0]
    theirs = raw(
        prompt="a red circle",
        image=torch.zeros(1, 4, 12, 8),
        strength=1.0,
        num_inference_steps=4,
        guidance_scale=5,
        original_size=(96, SIZE),
        target_size=(96, SIZE),
        generator=torch.Generator().manual_seed(7),
        output_type="latent",
    ).images
    torch.testing.assert_close(keeper.kept[-1], theirs, rtol=1e-4, atol=1e-4)
    assert (drawn.width, drawn.height) == (SIZE, 96)


def test_it_draws_in_the_studio_what_others_draw(models: Path) -> None:
    """A larger second pass, and beside a mask every pixel is the original's."""
    with Studio(EXTENSIONS / "hires", models=models, model="refiner") as studio:
        assert studio.draw(steps=1, extensions={"hires": {"scale": 2}}).picture.size == (2 * SIZE, 2 * SIZE)
    with Studio(EXTENSIONS / "inpaint", models=models, model="refiner") as studio:
        given = {"inpaint": {"mask": studio.image(left_half()), "blur": 0}}
        drawn = studio.draw(init_image=studio.image(photo()), extensions=given).picture
    before, after = np.asarray(photo()), np.asarray(drawn)
    assert np.array_equal(before[:, SIZE // 2 :], after[:, SIZE // 2 :])
    assert (before[:, : SIZE // 2] != after[:, : SIZE // 2]).any(axis=2).mean() > 0.9


def test_a_picture_does_not_depend_on_its_batch(engine: Engine, images: ImageStore) -> None:
    together = draw(engine, images, model="refiner", batch_size=2).pictures
    alone = draw(engine, images, model="refiner", seed=8).pictures[0]
    assert difference(together[1], alone) <= 1
    assert difference(together[0], together[1]) > 20


def test_no_lora_is_trained_for_it(engine: Engine) -> None:
    with pytest.raises(InvalidRequest, match=r"LoRAs can be trained for Stable Diffusion 1\.x, 2\.x and SDXL"):
        base.load(engine.catalog.find("refiner"), torch.device("cpu"), torch.float32)


def test_a_base_model_that_was_saved_by_the_refiners_pipeline_is_a_base_model(tmp_path: Path) -> None:
    tiny_model_xl(tmp_path / "checkpoints" / "base")
    saved = tiny_model_xl(tmp_path / "checkpoints" / "saved") / "model_index.json"
    told = saved.read_text("utf-8")
    saved.write_text(told.replace("StableDiffusionXLPipeline", "StableDiffusionXLImg2ImgPipeline"), "utf-8")
    engine, images = Engine(Catalog(tmp_path), Registry(), "cpu"), ImageStore(tmp_path / "images")
    one, other = (draw(engine, images, model=name).pictures[0] for name in ("base", "saved"))
    engine.close()
    assert difference(one, other) == 0
