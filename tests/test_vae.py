"""Models put together from several files: another VAE, a denoiser alone, a pickle that somebody has consented to."""

import io
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import UNet2DConditionModel
from PIL import Image
from safetensors.torch import load_file, save_file

from backend.catalog import Catalog, Model, Roots
from backend.catalog.companions import vae_of
from backend.consents import Consents
from backend.diffusion import latents, writing
from backend.diffusion.engine import Engine
from backend.diffusion.run import Run
from backend.errors import InvalidRequest
from backend.extension import Contribution, Extension, Params
from backend.images import ImageStore
from backend.registry import Registry
from tests.single_files import DEEP, vae, write_both
from tests.tiny import draw

UNET, TEXT, VAE = "model.diffusion_model.", "cond_stage_model.transformer.", "first_stage_model."


@pytest.fixture(scope="module")
def shelf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A models folder as people have them, and beside it data of a server."""
    torch.set_num_threads(1)
    made = tmp_path_factory.mktemp("made")
    models = tmp_path_factory.mktemp("models")
    weights = load_file(write_both("sd1", made)[1].path)
    for folder in ("checkpoints", "vae", "text_encoders", "diffusion_models"):
        (models / folder).mkdir()
    for name in ("cat", "dog"):
        save_file(weights, models / "checkpoints" / f"{name}.safetensors")
    torch.save({"state_dict": weights}, models / "checkpoints" / "old.ckpt")
    save_file(_only(weights, UNET), models / "diffusion_models" / "alone.safetensors")
    save_file(_only(weights, TEXT), models / "text_encoders" / "clip_l.safetensors")
    save_file(_only(weights, VAE), models / "vae" / "vae-ft-mse-840000.safetensors")
    torch.manual_seed(8)
    other: Any = vae(0.18215)
    other.save_pretrained(models / "vae" / "folder")
    bare = writing.LAYOUTS["AutoencoderKL"](other.state_dict()).to_original(other.state_dict(), other.state_dict().get)
    save_file({name: t.contiguous() for name, t in bare}, models / "vae" / "other.safetensors")
    (models / "checkpoints" / "dog.vae.safetensors").write_bytes((models / "vae" / "other.safetensors").read_bytes())
    deep: Any = vae(0.3611, **DEEP)
    save_file(deep.state_dict(), models / "vae" / "ae.safetensors")
    return models


class Knowing(Catalog):
    """Of a UNet alone the width of text tells the family, and here that is a narrow one."""

    def find(self, name: str = "") -> Model:
        return replace(super().find(name), family="sd1")


@pytest.fixture(scope="module")
def engine(shelf: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    engine = Engine(Knowing(Roots(shelf, index=tmp_path_factory.mktemp("data") / "models.db")), Registry(), "cpu")
    yield engine
    engine.close()


class Drawn:
    def __init__(self, engine: Engine, tmp_path: Path, **values: Any) -> None:
        picture = draw(engine, ImageStore(tmp_path), steps=2, width=64, height=64, **values).pictures[0]
        self.pixels = np.asarray(Image.open(io.BytesIO(picture.data))).astype(int)
        self.text = picture.infotext
        self.models = picture.models

    def equals(self, other: "Drawn") -> bool:
        return bool(np.abs(self.pixels - other.pixels).max() <= 1)


def test_the_vae_is_the_one_that_is_asked_for(engine: Engine, tmp_path: Path) -> None:
    own, other = (Drawn(engine, tmp_path, model="cat", vae=name) for name in ("", "other"))
    assert not own.equals(other)
    assert "VAE" not in own.text
    assert f", VAE hash: {other.models['other'][:10]}, VAE: other, " in other.text
    assert list(other.models) == ["cat", "other"]
    assert other.equals(Drawn(engine, tmp_path, model="cat", vae="folder"))
    assert own.equals(Drawn(engine, tmp_path, model="cat"))


def test_with_another_vae_the_denoiser_leaves_the_card_too(
    engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a card all of it stays where it is; it is told to move all the same."""
    hooked = Engine(engine.catalog, Registry(), "cpu")
    monkeypatch.setattr(hooked.store, "_placed", lambda model, sizes: "model")
    placed, seen, to, decode = list[str](), list[str](), UNet2DConditionModel.to, latents.decode

    def moved(unet: Any, device: Any, *rest: Any, **named: Any) -> Any:
        placed.append(str(device))
        return to(unet, device, *rest, **named)

    def decoded(vae: Any, given: torch.Tensor) -> Image.Image:
        seen.append(placed[-1])
        return decode(vae, given)

    monkeypatch.setattr(UNet2DConditionModel, "to", moved)
    monkeypatch.setattr(latents, "decode", decoded)
    for name in ("", "other"):
        Drawn(hooked, tmp_path, model="cat", vae=name)
        assert "cpu:0" in placed  # the card
        assert (seen[-1], placed[-1]) == ("cpu", "cpu")
        placed.clear()
    hooked.close()


def test_a_vae_named_as_the_model_is_taken_by_itself(engine: Engine, tmp_path: Path) -> None:
    by_itself = Drawn(engine, tmp_path, model="dog")
    assert "VAE: dog.vae" in by_itself.text
    assert by_itself.equals(Drawn(engine, tmp_path, model="cat", vae="other"))
    own = Drawn(engine, tmp_path, model="dog", vae="none")
    assert "VAE: none" in own.text
    assert own.equals(Drawn(engine, tmp_path, model="cat"))


def test_a_vae_with_the_name_of_its_model_takes_nothing_of_it(engine: Engine, shelf: Path, tmp_path: Path) -> None:
    (shelf / "vae" / "cat.safetensors").write_bytes((shelf / "vae" / "other.safetensors").read_bytes())
    engine.catalog.refresh()
    cat, other = (Drawn(engine, tmp_path, model="cat", vae=name) for name in ("cat", "other"))
    assert cat.models == {"cat": other.models["cat"]}
    assert f", VAE hash: {other.models['other'][:10]}, VAE: cat, " in cat.text


def test_a_denoiser_alone_is_completed_from_other_folders(engine: Engine, tmp_path: Path) -> None:
    assert Drawn(engine, tmp_path, model="alone").equals(Drawn(engine, tmp_path, model="cat"))


@pytest.mark.parametrize(
    ("name", "reason"),
    [("ae", "ae gives latents of 16 channels, cat works on 4"), ("nowhere", "there is no vae 'nowhere'")],
)
def test_a_vae_that_does_not_fit_is_refused_at_its_field(name: str, reason: str, engine: Engine) -> None:
    with pytest.raises(InvalidRequest, match=reason) as refused:
        vae_of(engine.catalog.find("cat"), name, engine.catalog)
    assert refused.value.problems[0].field == "vae"


def test_a_pickle_draws_once_somebody_has_consented(engine: Engine, shelf: Path, tmp_path: Path) -> None:
    assert "is a pickle" in (engine.catalog.find("old").problem or "")
    index = engine.catalog.roots.index
    assert index
    Consents(index.with_name("consents.json")).give(shelf / "checkpoints" / "old.ckpt")
    assert engine.catalog.find("old").problem is None
    assert Drawn(engine, tmp_path, model="old").equals(Drawn(engine, tmp_path, model="cat"))


class Curious(Extension):
    id = title = "curious"
    Params = Params

    def __init__(self) -> None:
        self.seen: list[str] = []

    def contribute(self, run: Run, params: Params) -> Contribution:
        self.seen.append(run.family)
        return Contribution()


def test_extensions_are_told_the_family_of_a_pickle(engine: Engine, shelf: Path, tmp_path: Path) -> None:
    index = engine.catalog.roots.index
    assert index
    Consents(index.with_name("consents.json")).give(shelf / "checkpoints" / "old.ckpt")
    curious = Curious()
    asking = Engine(Catalog(engine.catalog.roots), Registry((curious,)), "cpu")
    request = {"steps": 1, "width": 64, "height": 64, "model": "old", "extensions": {"curious": Params()}}
    draw(asking, ImageStore(tmp_path), **request)
    assert curious.seen == ["sd1"]


def _only(weights: dict[str, torch.Tensor], prefix: str) -> dict[str, torch.Tensor]:
    """Without the prefix, as such files have it."""
    return {name.removeprefix(prefix): t for name, t in weights.items() if name.startswith(prefix)}
