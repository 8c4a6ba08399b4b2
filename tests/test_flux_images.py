"""Flux models that are shown a picture, on tiny weights: as diffusers' own pipelines draw them."""

from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution
from PIL import Image

from backend import services
from backend.catalog import Catalog
from backend.diffusion.engine import Engine
from backend.extension import Extension
from backend.images import ImageStore
from backend.jobs.device import Device
from backend.jobs.runner import Runner
from backend.registry import Registry
from backend.settings import Settings
from backend.testing import Studio
from tests.pixels import difference, left_half, photo, put
from tests.tiny import SIZE, Keeper, draw
from tests.tiny_families import tiny_flux
from tests.web import Painter, visit, wait_for

pytest_plugins = ["tests.tiny"]
EXTENSIONS = Path(__file__).parents[1] / "extensions"
PIPELINES = {"fill": "FluxFillPipeline"}
ASKED: dict[str, Any] = {"sampler_name": "Euler", "cfg_scale": 1, "denoising_strength": 1.0}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("shown")
    for name, kind in PIPELINES.items():
        tiny_flux(folder / "checkpoints" / name, kind=kind)
    return folder


@pytest.fixture(scope="module")
def keeper() -> Keeper:
    return Keeper()


class Masking(Extension):
    """Shows a model that inpaints a picture and a mask, and does nothing else."""

    id, title = "masking", "Masking"

    def patch(self, run: Any, params: Any) -> AbstractContextManager[object]:
        beside = run.beside(photo(96, 96), left_half(96))
        assert beside is not None
        showing: AbstractContextManager[object] = run.showing(beside)
        return showing


@pytest.fixture(scope="module")
def engine(models: Path, keeper: Keeper) -> Iterator[Engine]:
    engine = Engine(Catalog(models), Registry((keeper, Masking())), "cpu")
    yield engine
    engine.close()


@pytest.fixture
def images(tmp_path: Path) -> ImageStore:
    return ImageStore(tmp_path)


def raw(models: Path, name: str) -> Any:
    pipeline = DiffusionPipeline.from_pretrained(models / "checkpoints" / name)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def noise(high: int, wide: int, images: int = 1) -> torch.Tensor:
    return torch.randn(images, 16, high, wide, generator=torch.Generator().manual_seed(7))


# --- Fill


@pytest.fixture
def certain(monkeypatch: pytest.MonkeyPatch) -> None:
    """Their pipelines draw a picture's latents at random; ours takes the likeliest."""
    monkeypatch.setattr(DiagonalGaussianDistribution, "sample", lambda self, generator=None: self.mode())


@pytest.mark.usefixtures("certain")
@pytest.mark.parametrize("mask", ["half", "all"])
def test_the_latents_of_fill_are_those_of_diffusers(
    models: Path, engine: Engine, keeper: Keeper, images: ImageStore, mask: str
) -> None:
    """Half of it is masked, or nobody says what is: all of it."""
    called = {"masking": {}} if mask == "half" else {}
    draw(engine, images, model="fill", **ASKED, width=96, height=96, extensions={"keeper": {}, **called})
    theirs = raw(models, "fill")
    expected = theirs(
        prompt="a red circle",
        image=photo(96, 96),
        mask_image=left_half(96) if mask == "half" else Image.new("L", (96, 96), 255),
        num_inference_steps=4,
        guidance_scale=3.5,
        width=96,
        height=96,
        latents=theirs._pack_latents(noise(12, 12), 1, 16, 12, 12),
        output_type="latent",
    ).images
    expected = theirs._unpack_latents(expected, 96, 96, 8)
    torch.testing.assert_close(keeper.kept[-1], expected, rtol=1e-4, atol=1e-4)


def test_fill_heeds_a_negative_prompt_and_its_guidance(engine: Engine, images: ImageStore) -> None:
    asked: dict[str, Any] = {"model": "fill", "cfg_scale": 4}
    plain, other = (draw(engine, images, **asked, negative_prompt=text).pictures[0] for text in ("", "blue"))
    assert difference(plain, other) > 1
    more = draw(engine, images, **asked, distilled_cfg_scale=30).pictures[0]
    assert difference(plain, more) > 1


def test_fill_starts_from_what_suits_it(models: Path) -> None:
    model = Catalog(models).find("fill")
    assert (model.family, model.variant, model.edition) == ("flux", "inpaint", "fill")
    assert model.usual["distilled_cfg_scale"] == 30
    assert model.usual["denoising_strength"] == 1


@pytest.mark.parametrize("values", [{}, {"soft": {}}], ids=str)
def test_beside_the_mask_every_pixel_is_the_originals(models: Path, values: dict[str, Any]) -> None:
    with Studio(EXTENSIONS / "inpaint", models=models, model="fill") as studio:
        given = {"inpaint": {"mask": studio.image(left_half()), "blur": 0, **values}}
        drawn = studio.draw(init_image=studio.image(photo()), extensions=given, batch_size=2).pictures
    before = np.asarray(photo())
    for after in map(np.asarray, drawn):
        assert np.array_equal(before[:, SIZE // 2 :], after[:, SIZE // 2 :])
        assert values.get("soft") or (before[:, : SIZE // 4] != after[:, : SIZE // 4]).any(axis=2).mean() > 0.9


def test_fill_grows_a_picture(models: Path) -> None:
    with Studio(EXTENSIONS / "outpaint", also=("inpaint",), models=models, model="fill") as studio:
        given = {"outpaint": {"right": 32, "seam": 0}}
        drawn = studio.draw(init_image=studio.image(photo()), extensions=given).picture
    assert drawn.size == (SIZE + 32, SIZE)
    assert np.array_equal(np.asarray(photo()), np.asarray(drawn)[:, :SIZE])


# --- through the API


class Here(Painter):
    """The engine, in this very process."""

    def __init__(self, engine: Engine) -> None:
        super().__init__()
        self.generate = engine.generate  # type: ignore[method-assign]


@pytest.fixture(scope="module")
def built(models: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[services.Services]:
    data = tmp_path_factory.mktemp("built")
    where = {"data_dir": data / "data", "outputs_dir": data / "outputs", "models_dir": models}
    made = services.build(Settings(**where, extensions_dir=EXTENSIONS))
    engine = Engine(made.catalog, made.registry, "cpu")
    runner = Runner(Here(engine), made.jobs, made.gallery, made.images, made.hub, Device())
    yield replace(made, runner=runner)
    engine.close()


@pytest.mark.parametrize("name", PIPELINES)
def test_a_job_runs_from_upload_to_picture(built: services.Services, name: str) -> None:
    with visit(built) as browser:
        picture, mask = (put(built.images, image) for image in (photo(), left_half()))
        asked: dict[str, Any] = {"prompt": "a cat", "model": name, "init_image": picture, "steps": 2}
        if name == "fill":
            asked["extensions"] = {"inpaint": {"mask": mask, "blur": 0}}
        answer = browser.post("/api/jobs", json=asked)
        assert answer.status_code < 300, answer.text
        where = f"/api/jobs/{answer.json()['id']}"
        done = wait_for(lambda: (job := browser.get(where).json())["state"] in ("done", "failed") and job, 60)
        assert done["state"] == "done", done
        file = browser.get(f"/img/{done['pictures'][0]['id']}")
    assert file.headers["content-type"] == "image/png"
