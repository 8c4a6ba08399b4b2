"""A LoRA worked into one file of a transformer: as into the folder that the file was made from."""

from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from backend.diffusion import writing
from backend.lora import fused
from backend.merging import work
from backend.merging.recipe import AddLora, Model
from tests.tiny_families import tiny_flux, tiny_sd3

SHARE = 0.7
SWAPPED = ("norm_out.linear", "transformer_blocks.1.norm1_context.linear")
"""Modules whose halves the authors have in another order: of both, and of Stable Diffusion 3 in its last block."""
WEIGHTS = "transformer/diffusion_pytorch_model.safetensors"


@pytest.fixture(scope="module", params=["flux", "sd3"])
def base(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Model:
    """One file, beside the folder that it was made from."""
    family = str(request.param)
    place = tmp_path_factory.mktemp(family)
    folder = tiny_flux(place / family) if family == "flux" else tiny_sd3(place / family, dual=True)
    file = place / f"{family}.safetensors"
    writing.single_file(folder, family, file)
    return Model(name=family, path=file, family=family)


def folder_of(base: Model) -> Path:
    return base.path.with_suffix("")


def lora(folder: Path) -> dict[str, Tensor]:
    """Of rank 2, for every matrix of every block and of the last norm, by the names of diffusers' modules."""
    noise = torch.Generator().manual_seed(1)
    found = {}
    for name, weight in load_file(folder / WEIGHTS).items():
        module = name.removesuffix(".weight")
        if weight.dim() == 2 and ("transformer_blocks." in name or module in SWAPPED):
            found[f"{module}.lora_A.weight"] = torch.randn(2, weight.shape[1], generator=noise)
            found[f"{module}.lora_B.weight"] = torch.randn(len(weight), 2, generator=noise)
    return found


def originally(pieces: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The same by kohya's names for the original's modules; what is several in diffusers has one `down`."""
    modules = {key.removesuffix(".lora_A.weight") for key in pieces if key.endswith("A.weight")}
    found = {}
    for name, parts in fused.original_names(modules).items():
        key = f"lora_unet_{name.replace('.', '_')}"
        downs = [pieces[f"{part}.lora_A.weight"] for part in parts]
        found[f"{key}.lora_down.weight"] = torch.cat(downs)
        found[f"{key}.lora_up.weight"] = torch.block_diag(*(pieces[f"{part}.lora_B.weight"] for part in parts))
    for name, part in fused.swapped_names(modules).items():
        key, (scale, shift) = f"lora_unet_{name.replace('.', '_')}", pieces[f"{part}.lora_B.weight"].chunk(2)
        found[f"{key}.lora_down.weight"] = pieces[f"{part}.lora_A.weight"]
        found[f"{key}.lora_up.weight"] = torch.cat([shift, scale])
    return found


def expected(base: Model, pieces: Mapping[str, Tensor], place: Path) -> dict[str, Tensor]:
    """The folder's weights and what the pieces add to them, as one file."""
    import shutil

    shutil.copytree(folder_of(base), place / "changed")
    weights = load_file(place / "changed" / WEIGHTS)
    for key, down in pieces.items():
        if key.endswith(".lora_A.weight"):
            module = key.removesuffix(".lora_A.weight")
            weights[f"{module}.weight"] += SHARE * pieces[f"{module}.lora_B.weight"] @ down
    save_file(weights, place / "changed" / WEIGHTS, {"format": "pt"})
    writing.single_file(place / "changed", base.family, place / "expected.safetensors")
    return load_file(place / "expected.safetensors")


@pytest.mark.parametrize("layout", ["diffusers", "original"])
def test_it_is_as_merged_into_the_folder(base: Model, tmp_path: Path, layout: str) -> None:
    pieces = lora(folder_of(base))
    tensors = originally(pieces) if layout == "original" else {f"transformer.{key}": t for key, t in pieces.items()}
    save_file(tensors, tmp_path / "lora.safetensors")
    recipe = AddLora(a=base, lora=Model(name="lora", path=tmp_path / "lora.safetensors"), share=SHARE)
    work.run(recipe, tmp_path / "merged.safetensors", lambda doing, at: None)
    found, wanted = load_file(tmp_path / "merged.safetensors"), expected(base, pieces, tmp_path)
    assert found.keys() == wanted.keys()
    for name, tensor in wanted.items():
        torch.testing.assert_close(found[name], tensor, atol=1e-5, rtol=1e-5)
    before = load_file(base.path)
    assert sum(not torch.equal(tensor, before[name]) for name, tensor in found.items()) >= len(pieces) // 8
