"""Flux models that are shown a picture, on tiny weights: as diffusers' own pipelines draw them."""

import io
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline, FluxControlNetModel
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution
from PIL import Image

from backend import services
from backend.catalog import Catalog
from backend.diffusion import latents, packing, reading, writing
from backend.diffusion.engine import Engine
from backend.diffusion.families import FLUX_KONTEXT
from backend.errors import InvalidRequest
from backend.extension import Extension
from backend.images import ImageStore
from backend.jobs.device import Device
from backend.jobs.runner import Runner
from backend.library import Edit, Library, id_of
from backend.registry import Registry
from backend.request import ResizeMode
from backend.settings import Settings
from backend.testing import Studio
from tests.pixels import difference, left_half, photo, put
from tests.tiny import SIZE, Keeper, draw
from tests.tiny_families import tiny_flux
from tests.waiting import wait_for
from tests.web import Painter, visit

pytest_plugins = ["tests.tiny"]
EXTENSIONS = Path(__file__).parents[1] / "extensions"
PIPELINES = {"fill": "FluxFillPipeline", "kontext": "FluxKontextPipeline"}
ASKED: dict[str, Any] = {"sampler_name": "Euler", "cfg_scale": 1, "denoising_strength": 1.0}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("shown")
    for name, kind in PIPELINES.items():
        tiny_flux(folder / "checkpoints" / name, kind=kind)
    return folder


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


# --- Kontext


@pytest.mark.parametrize("cfg", [1.0, 4.0])
def test_the_latents_of_kontext_are_those_of_diffusers(
    models: Path, engine: Engine, keeper: Keeper, images: ImageStore, cfg: float
) -> None:
    asked = {**ASKED, "cfg_scale": cfg, "negative_prompt": "blue", "init_image": put(images, photo(96, 64))}
    draw(engine, images, model="kontext", **asked, width=96, extensions={"keeper": {}})
    theirs = raw(models, "kontext")
    expected = theirs(
        image=photo(96, 64),
        prompt="a red circle",
        negative_prompt="blue",
        true_cfg_scale=cfg,
        num_inference_steps=4,
        guidance_scale=3.5,
        width=96,
        height=SIZE,
        max_area=96 * SIZE,
        _auto_resize=False,
        latents=theirs._pack_latents(noise(8, 12), 1, 16, 8, 12),
        output_type="latent",
    ).images
    expected = theirs._unpack_latents(expected, SIZE, 96, 8)
    torch.testing.assert_close(keeper.kept[-1], expected, rtol=1e-4, atol=1e-4)


def test_kontext_needs_a_picture(engine: Engine, images: ImageStore, built: services.Services) -> None:
    with pytest.raises(InvalidRequest, match="changes a picture as the prompt says: give it one"):
        draw(engine, images, model="kontext")
    with pytest.raises(InvalidRequest, match="init_image: this model changes a picture as the prompt says"):
        built.complete({"model": "kontext"})


def test_a_picture_does_not_depend_on_its_batch(engine: Engine, images: ImageStore) -> None:
    asked: dict[str, Any] = {"model": "kontext", "init_image": put(images, photo())}
    together = draw(engine, images, **asked, batch_size=2).pictures
    assert difference(together[1], draw(engine, images, **asked, seed=8).pictures[0]) <= 1
    assert difference(together[0], together[1]) > 5


def test_an_editing_model_is_shown_the_part_that_is_worked_on(models: Path) -> None:
    with Studio(EXTENSIONS / "inpaint", models=models, model="kontext") as studio:
        seen: list[torch.Tensor] = []
        pipeline = studio.engine.store.load(studio.catalog.find("kontext")).pipeline
        handle = pipeline.transformer.x_embedder.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
        picture, mask = photo(128, 128), Image.new("L", (128, 128))
        mask.paste(255, (16, 16, 48, 48))
        given = {"mask": studio.image(mask), "blur": 0, "area": "only_masked", "padding": 16}
        drawn = studio.draw(init_image=studio.image(picture), extensions={"inpaint": given})
        handle.remove()
        with torch.inference_mode():
            part = latents.encode(pipeline.vae, picture.crop((0, 0, 64, 64)), 64, 64, ResizeMode.JUST_RESIZE)
    torch.testing.assert_close(seen[0][:, 16:], packing.pack(part), rtol=1e-4, atol=1e-4)
    before, after = np.asarray(picture), np.asarray(drawn.picture)
    assert np.array_equal(before[48:], after[48:])
    assert (before[16:48, 16:48] != after[16:48, 16:48]).any(axis=2).mean() > 0.9


def test_a_controlnet_cannot_guide_it(models: Path, tmp_path: Path) -> None:
    net = FluxControlNetModel(
        num_layers=1,
        num_single_layers=0,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=48,
        pooled_projection_dim=16,
        axes_dims_rope=(4, 6, 6),
    )
    net.save_pretrained(tmp_path / "controlnet" / "net")
    (tmp_path / "checkpoints").symlink_to(models / "checkpoints")
    with Studio(EXTENSIONS / "controlnet", models=tmp_path, model="kontext") as studio:
        unit = {"image": studio.image(photo()), "module": "none", "model": "net"}
        with pytest.raises(InvalidRequest, match=r"units\.0\.model: net cannot guide kontext: it edits by"):
            studio.draw(init_image=studio.image(photo()), extensions={"controlnet": {"units": [unit]}})


def test_who_has_the_file_says_that_it_is_kontext(models: Path, tmp_path: Path) -> None:
    """No header tells it from dev; a name does, or what people say of it on the Models tab."""
    folder = tmp_path / "models" / "checkpoints"
    folder.mkdir(parents=True)
    for name in ("flux-kontext", "other"):
        writing.single_file(models / "checkpoints" / "kontext", "flux", folder / f"{name}.safetensors")
    catalog = Catalog(tmp_path / "models")
    library = Library(catalog, tmp_path)

    def told(name: str, **said: Any) -> tuple[str, str, bool, bool]:
        model = catalog.find(name)
        if said:
            model = library.edit(id_of(model), Edit.model_validate(said))
        family = reading.family_of(model)
        return model.variant, model.edition, model.may_edit, family is FLUX_KONTEXT

    assert told("flux-kontext") == ("edit", "kontext", True, True)
    assert told("other") == ("", "dev", True, False)
    assert told("other", variant="edit", notes="mine") == ("edit", "kontext", True, True)
    assert catalog.find("other").usual["distilled_cfg_scale"] == 2.5
    assert told("other", variant="") == ("", "dev", True, False)
    assert told("flux-kontext", variant="plain") == ("", "dev", True, False)
    assert catalog.find("other").notes == "mine"


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


def test_jobs_run_from_upload_to_picture(built: services.Services) -> None:
    """Without a page: the API takes them, the engine draws them, the file is there."""
    with visit(built) as browser:
        picture, mask = (
            browser.post("/api/images", content=png(image), headers={"Content-Type": "image/png"}).json()["id"]
            for image in (photo(), left_half())
        )
        extensions = {"fill": {"inpaint": {"mask": mask, "blur": 0}}, "kontext": {}}
        for name, called in extensions.items():
            asked = {"prompt": "a cat", "model": name, "init_image": picture, "steps": 2, "extensions": called}
            answer = browser.post("/api/jobs", json=asked)
            assert answer.status_code < 300, answer.text
            done = finished(browser, f"/api/jobs/{answer.json()['id']}")
            assert done["state"] == "done", done
            file = browser.get(f"/img/{done['pictures'][0]['id']}")
            drawn = np.asarray(Image.open(io.BytesIO(file.content)))
            assert drawn.shape == (SIZE, SIZE, 3)
            kept = (drawn == np.asarray(photo()))[:, SIZE // 2 :].all()
            assert kept == (name == "fill")
        refused = browser.post("/api/jobs", json={"model": "kontext"})
        assert refused.status_code == 422
        assert "give it one" in refused.text


def finished(browser: Any, where: str) -> dict[str, Any]:
    job: dict[str, Any] = wait_for(
        lambda: (job := browser.get(where).json())["state"] in ("done", "failed") and job, 60
    )
    return job


def png(picture: Image.Image) -> bytes:
    file = io.BytesIO()
    picture.save(file, "PNG")
    return file.getvalue()
