"""Checkpoints that edit a picture by instruction (instruct-pix2pix), on tiny weights: as diffusers draws them."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import (
    ControlNetModel,
    EulerDiscreteScheduler,
    StableDiffusionInstructPix2PixPipeline,
    UNet2DConditionModel,
)

from backend import infotext
from backend.diffusion import latents
from backend.diffusion.engine import Engine
from backend.errors import InvalidRequest
from backend.images import ImageStore
from backend.request import ResizeMode
from backend.testing import Studio
from backend.training import base
from tests.pixels import difference, left_half, photo, put
from tests.tiny import SIZE, Keeper, draw, tiny_model

pytest_plugins = ["tests.tiny"]
EXTENSIONS = Path(__file__).parents[1] / "extensions"


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("edit")
    tiny_model(folder / "checkpoints" / "edit", in_channels=8)
    return folder


@pytest.fixture(scope="module")
def raw(models: Path) -> Any:
    folder = models / "checkpoints" / "edit"
    pipeline = StableDiffusionInstructPix2PixPipeline.from_pretrained(folder, safety_checker=None)
    pipeline.scheduler = EulerDiscreteScheduler.from_config(pipeline.scheduler.config, timestep_spacing="linspace")
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@pytest.mark.parametrize("strength", [1.0, 0.5])
@pytest.mark.parametrize(("cfg", "by_image"), [(5.0, 1.5), (5.0, 2.5), (1.0, 1.0)])
def test_the_latents_are_those_of_diffusers(
    engine: Engine, keeper: Keeper, images: ImageStore, raw: Any, cfg: float, by_image: float, strength: float
) -> None:
    asked: dict[str, Any] = {"init_image": put(images, photo()), "negative_prompt": "a blue square"}
    asked |= {"sampler_name": "Euler", "scheduler": "Uniform", "extensions": {"keeper": {}}}
    asked |= {"denoising_strength": strength, "cfg_scale": cfg, "image_cfg_scale": by_image}
    draw(engine, images, model="edit", **asked)
    with torch.inference_mode():
        encoded = latents.encode(raw.vae, photo(), SIZE, SIZE, ResizeMode.JUST_RESIZE)
    noise = torch.randn(encoded.shape, generator=torch.Generator().manual_seed(7))
    theirs = raw(
        prompt="a red circle",
        negative_prompt="a blue square",
        image=photo(),
        latents=noise + encoded / begun(raw, strength),
        num_inference_steps=4,
        guidance_scale=cfg,
        image_guidance_scale=by_image,
        output_type="latent",
    ).images
    torch.testing.assert_close(keeper.kept[-1], theirs, rtol=1e-4, atol=1e-4)


def begun(raw: Any, strength: float) -> float:
    """Have their scheduler begin where ours does; the noise level of that."""
    raw.scheduler = EulerDiscreteScheduler.from_config(raw.scheduler.config)
    whole = raw.scheduler.set_timesteps

    def set_timesteps(steps: int, device: Any = None) -> None:
        whole(steps, device=device)
        last = int(min(strength, 0.999) * steps) + 1
        raw.scheduler.timesteps = raw.scheduler.timesteps[-last:]
        raw.scheduler.sigmas = raw.scheduler.sigmas[-1 - last :]

    raw.scheduler.set_timesteps = set_timesteps
    set_timesteps(4)
    return float(raw.scheduler.init_noise_sigma)


@pytest.mark.parametrize("cfg", [1.0, 5.0])
def test_guidance_by_the_image_changes_the_picture_and_is_in_its_text(
    engine: Engine, images: ImageStore, cfg: float
) -> None:
    asked: dict[str, Any] = {"model": "edit", "init_image": put(images, photo()), "cfg_scale": cfg}
    usual, more, none = (draw(engine, images, **asked, image_cfg_scale=by).pictures[0] for by in (1.5, 3, 1))
    assert difference(usual, more) > 5
    assert difference(usual, none) > 5
    assert infotext.read(more.infotext).values["image_cfg_scale"] in (3, "3")
    assert "Image CFG scale" not in usual.infotext


def test_a_picture_does_not_depend_on_its_batch(engine: Engine, images: ImageStore) -> None:
    asked: dict[str, Any] = {"model": "edit", "init_image": put(images, photo())}
    together = draw(engine, images, **asked, batch_size=2).pictures
    alone = draw(engine, images, **asked, seed=8).pictures[0]
    assert difference(together[1], alone) <= 1
    assert difference(together[0], together[1]) > 5


def test_without_a_picture_it_says_so(engine: Engine, images: ImageStore) -> None:
    with pytest.raises(InvalidRequest, match="changes a picture as the prompt says: give it one"):
        draw(engine, images, model="edit")


def test_beside_the_mask_every_pixel_is_the_originals(models: Path) -> None:
    with Studio(EXTENSIONS / "inpaint", models=models, model="edit") as studio:
        given = {"inpaint": {"mask": studio.image(left_half()), "blur": 0}}
        drawn = studio.draw(init_image=studio.image(photo()), extensions=given).picture
    before, after = np.asarray(photo()), np.asarray(drawn)
    assert np.array_equal(before[:, SIZE // 2 :], after[:, SIZE // 2 :])
    assert (before[:, : SIZE // 2] != after[:, : SIZE // 2]).any(axis=2).mean() > 0.9


def test_a_controlnet_guides_it(models: Path, tmp_path: Path) -> None:
    plain = tiny_model(tmp_path / "plain")
    unet = UNet2DConditionModel.from_pretrained(plain, subfolder="unet")
    net = ControlNetModel.from_unet(unet, conditioning_embedding_out_channels=(8, 8, 8, 8))
    torch.nn.init.ones_(net.controlnet_mid_block.weight)
    net.save_pretrained(tmp_path / "controlnet" / "net")
    (tmp_path / "checkpoints").symlink_to(models / "checkpoints")
    with Studio(EXTENSIONS / "controlnet", models=tmp_path, model="edit") as studio:
        unit = {"image": studio.image(photo()), "module": "none", "model": "net"}
        free, guided = (
            studio.draw(
                init_image=studio.image(photo()), extensions={"controlnet": {"units": [{**unit, "weight": by}]}}
            )
            for by in (0, 2)
        )
    assert free.picture.tobytes() != guided.picture.tobytes()


def test_no_lora_is_trained_for_it(engine: Engine) -> None:
    with pytest.raises(InvalidRequest, match="edit model; LoRAs can be trained for"):
        base.load(engine.catalog.find("edit"), torch.device("cpu"), torch.float32)
