"""Tiny decoders: found by family, in each layout that people have; the request chooses, the picture says it."""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import AutoencoderTiny
from PIL import Image
from safetensors.torch import save_file

from backend import infotext, tiny_decoders
from backend.catalog import Catalog
from backend.catalog.roots import Roots
from backend.diffusion import tiny
from backend.diffusion.engine import Engine
from backend.errors import InvalidRequest, ModelBroken
from backend.hardware import Hardware
from backend.images import ImageStore
from backend.registry import Registry
from backend.request import parse_request
from tests.pixels import difference
from tests.tiny import draw

pytest_plugins = ["tests.tiny"]


@pytest.fixture(scope="module")
def whole() -> AutoencoderTiny:
    """TAESD with eight channels where it has 64."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(2)
        width = (8, 8, 8, 8)
        return AutoencoderTiny(encoder_block_out_channels=width, decoder_block_out_channels=width).eval()


def original(whole: AutoencoderTiny) -> dict[str, torch.Tensor]:
    """The decoder as its authors save it: they count the clamp before the first layer."""
    layers = whole.decoder.layers.state_dict()
    shifted = {}
    for name, tensor in layers.items():
        number, rest = name.split(".", 1)
        shifted[f"{int(number) + 1}.{rest}"] = tensor
    return shifted


@pytest.fixture(scope="module")
def models(tiny_models: Path, whole: AutoencoderTiny, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tiny")
    shutil.copytree(tiny_models / "checkpoints", folder / "checkpoints")
    (folder / "vae_approx").mkdir()
    save_file(original(whole), folder / "vae_approx" / "taesd_decoder.safetensors")
    return folder


@pytest.fixture(scope="module")
def engine(models: Path) -> Iterator[Engine]:
    engine = Engine(Catalog(models, "tiny"), Registry(), "cpu", Hardware(previews="tiny"))
    yield engine
    engine.close()


def test_each_layout_gives_what_diffusers_does(whole: AutoencoderTiny, tmp_path: Path) -> None:
    whole.save_pretrained(tmp_path / "taesd", safe_serialization=True)
    save_file(original(whole), tmp_path / "taesd_decoder.safetensors")
    save_file({f"taesd_decoder.{k}": t for k, t in original(whole).items()}, tmp_path / "both.safetensors")
    save_file({k: t for k, t in whole.state_dict().items() if "decoder" in k}, tmp_path / "ours.safetensors")
    latents = torch.randn(1, 4, 8, 6, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        wanted = whole.decode(latents).sample
        for path in sorted(tmp_path.iterdir()):
            assert torch.equal(tiny.read(path)(latents), wanted), path.name


def test_what_is_none_is_said(tmp_path: Path) -> None:
    (tmp_path / "taesd_decoder.safetensors").write_bytes(b"no weights")
    with pytest.raises(ModelBroken, match=r"the tiny decoder taesd_decoder.safetensors cannot be read"):
        tiny.read(tmp_path / "taesd_decoder.safetensors")
    save_file({"1.weight": torch.zeros(8, 4, 3, 3)}, tmp_path / "half.safetensors")
    with pytest.raises(ModelBroken, match=r"the tiny decoder half.safetensors cannot be read: Error\(s\)"):
        tiny.read(tmp_path / "half.safetensors")


@pytest.mark.parametrize(
    ("name", "family", "is_found"),
    [
        ("vae_approx/taesd_decoder.safetensors", "sd1", True),
        ("VAE-approx/taesd_decoder.safetensors", "sd2", True),
        ("tiny_vae/taesdxl/config.json", "sdxl", True),
        ("vae_approx/taef1_decoder.safetensors", "flux", True),
        ("vae_approx/taesd_decoder.safetensors", "sdxl", False),
        ("vae_approx/taesd_encoder.safetensors", "sd1", False),
        ("vae_approx/taesd_decoder.pth", "sd1", False),
        ("vae_approx/taesd_decoder.safetensors", "kandinsky", False),
    ],
)
def test_a_family_finds_its_own(tmp_path: Path, name: str, family: str, is_found: bool) -> None:
    (tmp_path / name).parent.mkdir(parents=True)
    (tmp_path / name).touch()
    assert (tiny_decoders.find(Roots(tmp_path), family) is not None) is is_found


def test_a_picture_by_the_tiny_decoder_says_so_and_is_drawn_again_from_its_text(
    engine: Engine, images: ImageStore, models: Path
) -> None:
    plain = draw(engine, images).pictures[0]
    picture = draw(engine, images, decoder="tiny").pictures[0]
    assert difference(picture, plain) > 0
    assert "VAE Decoder: TAESD" in picture.infotext
    assert "VAE Decoder" not in plain.infotext
    assert set(picture.models) == {"tiny", "taesd_decoder"}
    again = parse_request(infotext.read(picture.infotext).values)
    assert draw(engine, images, **again.model_dump()).pictures[0].data == picture.data


def test_previews_by_the_tiny_decoder_change_no_pixel(engine: Engine, images: ImageStore, models: Path) -> None:
    linear = Engine(Catalog(models, "tiny"), Registry(), "cpu")  # which is the default on the processor
    finer, coarser = (draw(e, images) for e in (engine, linear))
    assert finer.pictures[0].data == coarser.pictures[0].data
    shown, plainly = ([p.preview for p in d.told if p.preview] for d in (finer, coarser))
    assert shown
    assert shown[-1] != plainly[-1]


def test_without_its_file_it_is_refused(tiny_catalog: Catalog, images: ImageStore) -> None:
    engine = Engine(tiny_catalog, Registry(), "cpu", Hardware(previews="tiny"))
    with pytest.raises(InvalidRequest, match=r"decoder: .*put taesd_decoder.safetensors into models/vae_approx"):
        draw(engine, images, decoder="tiny")
    assert [p.preview for p in draw(engine, images).told if p.preview]  # the plain way


def test_latents_that_are_none_give_a_picture_in_a_preview(whole: AutoencoderTiny, tmp_path: Path) -> None:
    save_file(original(whole), tmp_path / "taesd_decoder.safetensors")
    decoder: Any = tiny.read(tmp_path / "taesd_decoder.safetensors")
    assert isinstance(tiny.decode(decoder, torch.full((4, 8, 8), torch.nan)), Image.Image)
