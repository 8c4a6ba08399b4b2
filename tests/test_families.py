"""Families that read prompts in their own way, on tiny weights: as diffusers' own pipelines draw them."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline, EulerDiscreteScheduler, FlowMatchEulerDiscreteScheduler
from PIL import Image
from torch import Tensor

from backend.diffusion import codecs, packing
from backend.diffusion.engine import Engine
from backend.errors import InvalidRequest
from backend.images import ImageStore
from backend.testing import Studio
from tests.pixels import difference, left_half, photo, pixels
from tests.tiny import SIZE, Keeper, draw
from tests.tiny_families import TINY, written

pytest_plugins = ["tests.tiny"]
NAMES = tuple(name for name in TINY if name not in ("sd3", "flux"))
EXTENSIONS = Path(__file__).parents[1] / "extensions"
UNBINNED = {"use_resolution_binning": False, "clean_caption": False}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.set_num_threads(1)
    return written(tmp_path_factory.mktemp("models"), NAMES)


def theirs(models: Path, name: str, noise: Tensor, cfg: float, steps: int) -> Image.Image:
    """What the pipeline itself makes of the same noise."""
    pipeline = DiffusionPipeline.from_pretrained(models / "checkpoints" / name)
    pipeline.set_progress_bar_config(disable=True)
    told: dict[str, Any] = {"guidance_scale": cfg, "negative_prompt": "blue"}
    if name in ("chroma", "qwen-image"):
        noise = packing.pack(noise)
    if name == "qwen-image":
        told = {"true_cfg_scale": cfg, "negative_prompt": "blue"}
    if name == "z-image":
        told["guidance_scale"] = cfg - 1
    if name == "flux2":
        noise = packing.patchify(noise)
        negative = pipeline.encode_prompt("blue")[0]
        told = {"guidance_scale": cfg, "negative_prompt_embeds": negative}
    if name == "flux2-dev":
        noise = packing.patchify(noise)
        told = {"guidance_scale": 3.5}
    if name in ("pixart", "pixart-alpha", "sana"):
        told |= UNBINNED
    if name.startswith("pixart"):
        config = pipeline.scheduler.config
        spacing = "linspace" if steps > 1 else "trailing"  # one step of theirs begins at the other end
        pipeline.scheduler = EulerDiscreteScheduler.from_config(config, timestep_spacing=spacing)
    if name == "sana":
        pipeline.scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0)
    picture: Image.Image = pipeline(
        prompt="a red circle", num_inference_steps=steps, width=96, height=64, latents=noise, **told
    ).images[0]
    return picture


@pytest.mark.parametrize(
    ("name", "cfg", "steps"),
    [
        *((name, cfg, 4) for name in NAMES for cfg in (1.0, 3.0) if (name, cfg) != ("flux2-dev", 3.0)),
        ("pixart-alpha", 3.0, 1),  # its pipeline has a way of its own to end then
    ],
)
def test_the_picture_is_that_of_diffusers(
    models: Path, engine: Engine, keeper: Keeper, images: ImageStore, name: str, cfg: float, steps: int
) -> None:
    asked = {"prompt": "a red circle", "negative_prompt": "blue", "sampler_name": "Euler", "scheduler": "Uniform"}
    asked |= {"width": 96, "cfg_scale": cfg, "steps": steps}
    drawn = draw(engine, images, model=name, **asked, extensions={"keeper": {}})
    noise = torch.randn(keeper.kept[-1].shape, generator=torch.Generator().manual_seed(7))
    ours = pixels(drawn.pictures[0])
    expected = np.asarray(theirs(models, name, noise, cfg, steps), np.int16)
    assert ours.std() > 1
    assert np.abs(ours - expected).max() <= 1


@pytest.mark.parametrize("name", NAMES)
def test_raw_latents_come_back_from_how_the_denoiser_has_them(engine: Engine, name: str) -> None:
    vae = engine.store.load(engine.catalog.find(name)).pipeline.vae
    raw = torch.randn(2, codecs.of(vae).channels(vae), 4, 6, generator=torch.Generator().manual_seed(1))
    scaled = codecs.of(vae).scaled(vae, raw)
    assert not torch.allclose(scaled, raw)
    torch.testing.assert_close(codecs.of(vae).raw(vae, scaled), raw, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", NAMES)
def test_beside_the_mask_every_pixel_is_the_originals(models: Path, name: str) -> None:
    with Studio(EXTENSIONS / "inpaint", models=models, model=name) as studio:
        given = {"inpaint": {"mask": studio.image(left_half()), "blur": 0}}
        drawn = studio.draw(init_image=studio.image(photo()), extensions=given, cfg_scale=1, steps=2).picture
    before, after = np.asarray(photo()), np.asarray(drawn)
    assert np.array_equal(before[:, SIZE // 2 :], after[:, SIZE // 2 :])
    assert (before[:, : SIZE // 2] != after[:, : SIZE // 2]).any(axis=2).mean() > 0.9


@pytest.mark.parametrize("name", NAMES)
def test_a_picture_does_not_depend_on_its_batch(engine: Engine, images: ImageStore, name: str) -> None:
    cfg = 1 if name == "flux2-dev" else 2
    asked: dict[str, Any] = {"model": name, "sampler_name": "Euler a", "steps": 2, "cfg_scale": cfg}
    together = draw(engine, images, **asked, batch_size=2).pictures
    alone = draw(engine, images, **asked, seed=8).pictures[0]
    assert difference(together[1], alone) <= 1
    assert difference(together[0], together[1]) > 2


def test_a_model_that_guides_itself_takes_no_other_guidance(engine: Engine, images: ImageStore) -> None:
    model = engine.catalog.find("flux2-dev")
    assert (model.family, model.edition, model.usual["distilled_cfg_scale"]) == ("flux2", "dev", 4)
    with pytest.raises(InvalidRequest, match="cfg_scale: this model guides itself, as distilled_cfg_scale says"):
        draw(engine, images, model="flux2-dev", cfg_scale=3)
    a, b = (draw(engine, images, model="flux2-dev", cfg_scale=1, distilled_cfg_scale=s).pictures[0] for s in (1, 30))
    assert difference(a, b) > 1
