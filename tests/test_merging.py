"""Merging, converting and extracting: what comes out is what the formulas say, tensor by tensor."""

import json
import os
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from backend.catalog import fingerprint
from backend.errors import AtelierError, Conflict, InvalidRequest, ModelBroken
from backend.lora import network
from backend.merging import chores, modules, work
from backend.merging.recipe import (
    AddDifference,
    AddLora,
    BakeVae,
    Convert,
    ExtractLora,
    Model,
    Recipe,
    WeightedSum,
)
from backend.merging.tensors import Weights
from tests.single_files import write_both
from tests.waiting import wait_for

Tensors = dict[str, Tensor]


def quiet(doing: str, at: float) -> None: ...


def read(path: Path) -> Tensors:
    """All tensors of a file or folder, by the names that merging has for them."""
    with Weights(Model(name=path.name, path=path)) as weights:
        return {name: weights.read(name).clone() for name in weights.places}


def made(recipe: Recipe, out: Path) -> Tensors:
    work.run(recipe, out, quiet)
    return read(out)


def varied(source: Path, target: Path, seed: int, only: Callable[[str], bool] = lambda name: True) -> Model:
    """The same model with other numbers where `only` says so."""
    import shutil

    noise = torch.Generator().manual_seed(seed)

    def vary(path: Path, to: Path, front: str = "") -> None:
        tensors = load_file(path)
        for name, tensor in tensors.items():
            if tensor.is_floating_point() and only(front + name):
                tensors[name] = tensor + 0.05 * torch.randn(tensor.shape, generator=noise).to(tensor.dtype)
        save_file(tensors, to)

    if source.is_dir():
        shutil.copytree(source, target)
        for path in source.glob("*/*.safetensors"):
            vary(path, target / path.relative_to(source), f"{path.parent.name}/")
    else:
        vary(source, target)
    return Model(name=target.stem, path=target)


class Family:
    """A model and two variations of it, in one layout."""

    def __init__(self, folder: Path, name: str, layout: str) -> None:
        as_folder, as_file = write_both(name, folder)
        source = as_folder if layout == "folder" else as_file
        suffix = "" if layout == "folder" else ".safetensors"
        self.a = Model(name="first", path=source.path, family=source.family)
        self.b = varied(source.path, folder / f"{name}-{layout}-b{suffix}", 1)
        self.c = varied(source.path, folder / f"{name}-{layout}-c{suffix}", 2)
        self.suffix = suffix


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.set_num_threads(1)
    return tmp_path_factory.mktemp("merging")


@pytest.fixture(scope="module", params=["sd1 file", "sd1 folder", pytest.param("sdxl file", marks=pytest.mark.slow)])
def family(folder: Path, request: pytest.FixtureRequest) -> Family:
    return Family(folder, *request.param.split())


@pytest.fixture(scope="module")
def sd1(folder: Path) -> Family:
    return Family(folder, "sd1", "file") if not (folder / "sd1-file-b.safetensors").exists() else _again(folder, "sd1")


def _again(folder: Path, name: str) -> Family:
    family = Family.__new__(Family)
    family.a = Model(name="first", path=folder / f"{name}.safetensors", family=name)
    family.b, family.c = (Model(name=f"{name}-{x}", path=folder / f"{name}-file-{x}.safetensors") for x in "bc")
    family.suffix = ".safetensors"
    return family


def off(found: Tensors, wanted: Tensors) -> float:
    """The largest difference; the names must be the same."""
    assert found.keys() == wanted.keys()
    return max(float((found[name].double() - wanted[name].double()).abs().max()) for name in wanted)


# --- formulas


def test_a_weighted_sum_is_its_formula(family: Family, tmp_path: Path) -> None:
    found = made(WeightedSum(a=family.a, b=family.b, share=0.3), tmp_path / f"sum{family.suffix}")
    a, b = read(family.a.path), read(family.b.path)
    wanted = {k: 0.7 * a[k].double() + 0.3 * b[k].double() if a[k].is_floating_point() else a[k] for k in a}
    assert off(found, wanted) < 1e-6


def test_an_added_difference_is_its_formula(family: Family, tmp_path: Path) -> None:
    recipe = AddDifference(a=family.a, b=family.b, c=family.c, share=0.8)
    found = made(recipe, tmp_path / f"difference{family.suffix}")
    a, b, c = (read(model.path) for model in (family.a, family.b, family.c))
    wanted = {
        k: a[k].double() + 0.8 * (b[k].double() - c[k].double()) if a[k].is_floating_point() else a[k] for k in a
    }
    assert off(found, wanted) < 1e-6


@pytest.mark.parametrize(("share", "which"), [(0.0, "a"), (1.0, "b")])
def test_at_its_ends_a_sum_is_one_of_the_two(sd1: Family, tmp_path: Path, share: float, which: str) -> None:
    found = made(WeightedSum(a=sd1.a, b=sd1.b, share=share), tmp_path / "sum.safetensors")
    assert off(found, read(getattr(sd1, which).path)) == 0


def test_shares_by_block(family: Family, tmp_path: Path) -> None:
    """26 numbers: all of the text encoder, half of IN01, no other block; what is in none gets the share."""
    numbers = ["0"] * 26
    numbers[0], numbers[2] = "1", "0.5"
    recipe = WeightedSum(a=family.a, b=family.b, share=0.25, blocks=",".join(numbers))
    found = made(recipe, tmp_path / f"blocks{family.suffix}")
    a, b = read(family.a.path), read(family.b.path)
    with Weights(family.a) as weights:
        in_block = modules.blocks(weights)
    assert {"BASE", "IN01", "M00", "OUT03"} <= set(in_block.values())
    shares = {"BASE": 1.0, "IN01": 0.5, "": 0.25}
    wanted = {
        k: a[k] + shares.get(in_block.get(k, ""), 0.0) * (b[k] - a[k]) if a[k].is_floating_point() else a[k] for k in a
    }
    assert off(found, wanted) < 1e-6


def test_an_inpainting_model_keeps_its_further_channels(folder: Path, sd1: Family, tmp_path: Path) -> None:
    _, as_file = write_both("sd1-inpaint", folder)
    inpaint = Model(name="inpainting", path=as_file.path)
    found = made(AddDifference(a=inpaint, b=sd1.b, c=sd1.c), tmp_path / "custom.safetensors")
    a, b, c = read(inpaint.path), read(sd1.b.path), read(sd1.c.path)
    key = "model.diffusion_model.input_blocks.0.0.weight"
    assert torch.equal(found[key][:, 4:], a[key][:, 4:])
    assert torch.allclose(found[key][:, :4], a[key][:, :4] + b[key] - c[key], atol=1e-6)
    with pytest.raises(InvalidRequest, match="do not go together"):  # the other way round there is no meaning in it
        work.run(WeightedSum(a=sd1.a, b=inpaint), tmp_path / "no.safetensors", quiet)


def test_a_difference_of_unequal_models_is_refused(folder: Path, sd1: Family, tmp_path: Path) -> None:
    inpaint = Model(name="inpainting", path=write_both("sd1-inpaint", folder)[1].path)
    with pytest.raises(InvalidRequest, match="-c and inpainting do not go together"):
        work.run(AddDifference(a=inpaint, b=inpaint, c=sd1.c), tmp_path / "no.safetensors", quiet)


@pytest.mark.parametrize("precision", ["", "fp32"])
def test_weights_that_were_squeezed_are_merged_as_what_they_stand_for(
    sd1: Family, tmp_path: Path, precision: Any
) -> None:
    """ComfyUI keeps a factor beside each weight of eight bits."""
    tensors = load_file(sd1.b.path)
    key = "model.diffusion_model.middle_block.1.transformer_blocks.0.attn1.to_q"
    factor = tensors[f"{key}.weight"].abs().max() / 400
    squeezed = (tensors[f"{key}.weight"] / factor).to(torch.float8_e4m3fn)
    beside = {f"{key}.weight": squeezed, f"{key}.scale_weight": factor, f"{key}.scale_input": factor.clone()}
    marked = {**tensors, **beside, "model.diffusion_model.scaled_fp8": torch.empty(2).to(torch.float8_e4m3fn)}
    save_file(marked, tmp_path / "b.safetensors")
    scaled = Model(name="scaled", path=tmp_path / "b.safetensors")
    stands_for = squeezed.float() * factor
    whole = converted(scaled, tmp_path / "whole.safetensors", precision=precision)
    assert whole.keys() == tensors.keys()
    assert off({"w": whole[f"{key}.weight"].float()}, {"w": stands_for}) < 1e-4
    merged = made(WeightedSum(a=sd1.a, b=scaled, share=0.5), tmp_path / "c.safetensors")
    own = load_file(sd1.a.path)[f"{key}.weight"]
    assert off({"w": merged[f"{key}.weight"]}, {"w": (own + stands_for) / 2}) < 1e-4


@pytest.mark.parametrize(
    ("into", "of"), [("file", "folder"), ("folder", "file"), ("file", "alone"), ("folder", "alone")]
)
def test_a_baked_vae_is_the_other_ones(folder: Path, tmp_path: Path, into: str, of: str) -> None:
    ours, theirs = Family(tmp_path, "sd1", into), write_both("sd1", folder)
    source = {"file": theirs[1].path, "folder": theirs[0].path, "alone": theirs[0].path / "vae"}[of]
    plain = made(BakeVae(a=ours.b, vae=Model(name="vae", path=source)), tmp_path / f"baked{ours.suffix}")
    wanted, rest = read(ours.a.path), read(ours.b.path)  # the first has the weights of `theirs`
    with Weights(ours.a) as weights:
        vae = {name for name in weights.places if modules.home(weights, name).component == "vae"}
    assert len(vae) > 50
    assert off(plain, {name: wanted[name] if name in vae else rest[name] for name in rest}) == 0


# --- LoRAs


LONG = [pytest.param(name, marks=pytest.mark.slow) for name in ("sd1 folder", "sdxl folder")]


@pytest.fixture(scope="module", params=["sd1 file", "sdxl file", *LONG])
def tuned(folder: Path, request: pytest.FixtureRequest) -> tuple[Model, Model]:
    """A model, and the same after a training of rank 2 of everything that a LoRA can reach."""
    name, layout = request.param.split()
    as_folder, as_file = write_both(name, folder)
    source = as_folder if layout == "folder" else as_file
    base = Model(name="base", path=source.path, family=source.family)
    target = folder / f"{name}-{layout}-tuned{'' if layout == 'folder' else '.safetensors'}"
    noise = torch.Generator().manual_seed(4)
    with Weights(base) as weights:
        reached = {part.tensor for part in modules.kohya(weights).values() if "embedding" not in part.tensor}

    def tune(name: str, tensor: Tensor) -> Tensor:
        if name not in reached:
            return tensor
        rows = 3 if "in_proj" in name else 1  # queries, keys and values have a rank of their own each
        flat = tensor.flatten(1)
        parts = [
            torch.randn(len(part), 2, generator=noise) @ torch.randn(2, part.shape[1], generator=noise)
            for part in flat.chunk(rows)
        ]
        return tensor + 0.05 * torch.cat(parts).view(tensor.shape)

    with Weights(base) as weights:
        work._save(weights, target, Convert(a=base), tune, quiet)
    return base, Model(name="tuned", path=target, family=source.family)


def test_what_was_extracted_makes_the_one_of_the_other(tuned: tuple[Model, Model], tmp_path: Path) -> None:
    base, target = tuned
    lora = tmp_path / "difference.safetensors"
    work.run(ExtractLora(a=base, b=target, rank=2, precision="fp32"), lora, quiet)
    again = AddLora(a=base, lora=Model(name="difference", path=lora))
    found = made(again, tmp_path / f"again{target.path.suffix}")
    wanted, before = read(target.path), read(base.path)
    changed = {name for name in wanted if not torch.equal(wanted[name], before[name])}
    assert len(changed) > 100
    assert off(found, wanted) < 1e-5
    names = set(load_file(lora))
    assert {name.split(".")[0] for name in names if "lora_te" in name}
    assert any(name.startswith("lora_unet_") for name in names)


def test_a_lora_of_half_weight_changes_half_as_much(tuned: tuple[Model, Model], tmp_path: Path) -> None:
    base, target = tuned
    lora = tmp_path / "l.safetensors"
    work.run(ExtractLora(a=base, b=target, rank=2, precision="fp32"), lora, quiet)
    half = AddLora(a=base, lora=Model(name="l", path=lora), share=0.5)
    found, a, b = made(half, tmp_path / f"half{target.path.suffix}"), read(base.path), read(target.path)
    assert off(found, {k: (a[k] + b[k]) / 2 if a[k].is_floating_point() else a[k] for k in a}) < 1e-5


def test_an_extracted_file_is_one_that_the_extension_reads(tuned: tuple[Model, Model], tmp_path: Path) -> None:
    base, target = tuned
    lora = tmp_path / "l.safetensors"
    work.run(ExtractLora(a=base, b=target, rank=4), lora, quiet)
    assert {piece.kind for piece in network.read(lora).pieces.values()} == {"lora"}
    with safe_open(lora, "pt") as file:
        assert file.metadata()["ss_network_dim"] == "4"


def test_no_lora_is_extracted_into_eight_bits(sd1: Family) -> None:
    with pytest.raises(ValueError, match="precision"):
        ExtractLora(a=sd1.a, b=sd1.b, precision="fp8")


def test_equal_models_have_nothing_to_extract(sd1: Family, tmp_path: Path) -> None:
    with pytest.raises(InvalidRequest, match="first and first have the same weights"):
        work.run(ExtractLora(a=sd1.a, b=sd1.a), tmp_path / "l.safetensors", quiet)


def test_a_lora_of_another_family_is_refused_with_both_names(
    folder: Path, tuned: tuple[Model, Model], sd1: Family, tmp_path: Path
) -> None:
    base, target = tuned
    if target.family != "sdxl":
        pytest.skip("it is of this family")
    lora = tmp_path / "l.safetensors"
    work.run(ExtractLora(a=base, b=target, rank=2), lora, quiet)
    with pytest.raises(InvalidRequest, match="wide lora has parts that first has no place for"):
        work.run(AddLora(a=sd1.a, lora=Model(name="wide lora", path=lora)), tmp_path / "no.safetensors", quiet)
    assert not (tmp_path / "no.safetensors").exists()


# --- converting


def converted(model: Model, out: Path, **how: Any) -> Tensors:
    return made(Convert(a=model, **how), out)


def test_half_precision_is_half_the_size(sd1: Family, tmp_path: Path) -> None:
    found = converted(sd1.a, tmp_path / "half.safetensors", precision="bf16")
    assert {t.dtype for t in found.values() if t.is_floating_point()} == {torch.bfloat16}
    assert (tmp_path / "half.safetensors").stat().st_size < 0.52 * sd1.a.path.stat().st_size
    wanted = {k: t.to(torch.bfloat16) if t.is_floating_point() else t for k, t in read(sd1.a.path).items()}
    assert off(found, wanted) == 0


def test_eight_bits_are_for_matrices_alone(sd1: Family, tmp_path: Path) -> None:
    found = converted(sd1.a, tmp_path / "small.safetensors", precision="fp8")
    kinds = {name: tensor.dtype for name, tensor in found.items()}
    assert kinds["model.diffusion_model.input_blocks.1.1.proj_in.weight"] == torch.float8_e4m3fn
    assert kinds["model.diffusion_model.input_blocks.1.1.proj_in.bias"] == torch.float16
    assert {dtype for name, dtype in kinds.items() if name.startswith("first_stage_model")} == {torch.float16}


def test_what_only_training_needs_is_left_out(sd1: Family, tmp_path: Path) -> None:
    tensors = load_file(sd1.a.path)
    save_file({**tensors, "model_ema.diffusion_modelinput": torch.zeros(9)}, tmp_path / "a.safetensors")
    model = Model(name="a", path=tmp_path / "a.safetensors")
    assert converted(model, tmp_path / "pruned.safetensors").keys() == tensors.keys()
    assert len(converted(model, tmp_path / "kept.safetensors", prune=False)) == len(tensors) + 1


def test_a_lora_without_weights_is_none(tmp_path: Path) -> None:
    for name, tensors in (("a", {"input_blocks.0.0.weight": torch.ones(1)}), ("empty", {})):
        save_file(tensors, tmp_path / f"{name}.safetensors")
    a, empty = (Model(name=name, path=tmp_path / f"{name}.safetensors") for name in ("a", "empty"))
    with pytest.raises(InvalidRequest, match="empty holds no LoRA"):
        made(AddLora(a=a, lora=empty), tmp_path / "both.safetensors")


def test_a_number_that_is_none_is_not_said_to_be_the_first_model_s(tmp_path: Path) -> None:
    numbers = {"a": torch.ones(1), "b": torch.tensor([torch.nan])}
    models = {name: Model(name=name, path=tmp_path / f"{name}.safetensors") for name in numbers}
    for name, model in models.items():
        save_file({"input_blocks.0.0.weight": numbers[name].half()}, model.path)
    with pytest.raises(ModelBroken, match=r"^both's input_blocks.* has a number that is not finite"):
        made(WeightedSum(**models), tmp_path / "both.safetensors")


def test_numbers_that_half_precision_cannot_hold_are_said(tmp_path: Path) -> None:
    save_file({"w": torch.tensor([1e6])}, tmp_path / "a.safetensors")
    with pytest.raises(ModelBroken, match=r"large's w has a number that is too large .* take bf16"):
        converted(Model(name="large", path=tmp_path / "a.safetensors"), tmp_path / "b.safetensors", precision="fp16")
    assert [path.name for path in tmp_path.iterdir()] == ["a.safetensors"]


@pytest.mark.parametrize("name", ["sd1", pytest.param("sdxl", marks=pytest.mark.slow)])
def test_a_folder_becomes_a_file_and_a_folder_again(folder: Path, tmp_path: Path, name: str) -> None:
    as_folder, as_file = write_both(name, folder)
    source = Model(name=name, path=as_folder.path, family=as_folder.family)
    found = converted(source, tmp_path / "one.safetensors", layout="file")
    assert off(found, read(as_file.path)) == 0
    one = Model(name="one", path=tmp_path / "one.safetensors", family=as_folder.family)
    again = converted(one, tmp_path / "again", layout="folder", precision="fp32")
    wanted = read(as_folder.path)
    assert max(float((again[k] - wanted[k]).abs().max()) for k in again) == 0
    assert {k for k in wanted if k not in again} <= {k for k in wanted if "position_ids" in k}
    assert json.loads((tmp_path / "again/model_index.json").read_text())["unet"][1] == "UNet2DConditionModel"


def test_a_pickle_becomes_safetensors(sd1: Family, tmp_path: Path) -> None:
    tensors = load_file(sd1.a.path)
    torch.save({"state_dict": tensors, "global_step": 7}, tmp_path / "old.ckpt")
    model = Model(name="old", path=tmp_path / "old.ckpt")
    with pytest.raises(ModelBroken, match="old can carry a program"):  # nobody has consented
        converted(model, tmp_path / "new.safetensors")
    consented = model.model_copy(update={"sha256": fingerprint(model.path)})
    assert off(converted(consented, tmp_path / "new.safetensors"), tensors) == 0
    with pytest.raises(ModelBroken, match="old is a pickle: make a safetensors file of it first"):
        made(WeightedSum(a=sd1.a, b=consented), tmp_path / "both.safetensors")


def test_a_pickle_that_would_run_something_runs_nothing(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> Any:
            return os.mkdir, (str(tmp_path / "was here"),)

    torch.save({"state_dict": {"w": torch.zeros(3), "evil": Evil()}}, tmp_path / "evil.ckpt")
    path = tmp_path / "evil.ckpt"
    with pytest.raises(ModelBroken, match="evil holds more than weights"):
        converted(Model(name="evil", path=path, sha256=fingerprint(path)), tmp_path / "new.safetensors")
    assert [path.name for path in tmp_path.iterdir()] == ["evil.ckpt"]


# --- what does not go together


def test_other_families_and_layouts_are_refused_with_both_names(folder: Path, sd1: Family, tmp_path: Path) -> None:
    as_folder, _ = write_both("sd1", folder)
    _, xl = write_both("sdxl", folder)
    for other, reason in (
        (Model(name="wide", path=xl.path), "first and wide are not of one family|do not go together"),
        (Model(name="wide", path=xl.path, family="sdxl"), "different families: sd1 and sdxl"),
        (Model(name="split", path=as_folder.path), "split is a folder and first a file"),
    ):
        with pytest.raises(InvalidRequest, match=reason):
            work.run(WeightedSum(a=sd1.a, b=other), tmp_path / "no.safetensors", quiet)
    assert list(tmp_path.iterdir()) == []


def test_a_shape_that_differs_is_named(sd1: Family, tmp_path: Path) -> None:
    tensors = load_file(sd1.a.path)
    tensors["model.diffusion_model.out.0.weight"] = torch.zeros(7)
    save_file(tensors, tmp_path / "b.safetensors")
    with pytest.raises(InvalidRequest, match=r"first and odd .*out\.0\.weight has the shape \[32\] .* \[7\]"):
        work.run(
            WeightedSum(a=sd1.a, b=Model(name="odd", path=tmp_path / "b.safetensors")),
            tmp_path / "c.safetensors",
            quiet,
        )


def test_nothing_is_overwritten(sd1: Family, tmp_path: Path) -> None:
    (tmp_path / "there.safetensors").write_bytes(b"mine")
    with pytest.raises(Conflict, match="is there already"):
        work.run(WeightedSum(a=sd1.a, b=sd1.b), tmp_path / "there.safetensors", quiet)
    assert (tmp_path / "there.safetensors").read_bytes() == b"mine"


# --- what it says of itself


def test_the_recipe_is_written_down_as_a1111_does(sd1: Family, tmp_path: Path) -> None:
    first, second = tmp_path / "first.safetensors", tmp_path / "second.safetensors"
    work.run(WeightedSum(a=sd1.a, b=sd1.b, share=0.3, precision="fp16"), first, quiet)
    recipe = AddDifference(a=Model(name="first", path=first), b=sd1.b, c=sd1.c)
    work.run(recipe, second, quiet)
    with safe_open(first, "pt") as file:
        said = json.loads(file.metadata()["sd_merge_recipe"])
    wanted = {"type": "webui", "interp_method": "Weighted sum", "multiplier": 0.3, "save_as_half": True}
    assert wanted.items() <= said.items()
    assert said["primary_model_hash"] == fingerprint(sd1.a.path)
    with safe_open(second, "pt") as file:
        metadata = file.metadata()
    models = json.loads(metadata["sd_merge_models"])
    assert models[fingerprint(first)]["sd_merge_recipe"] == said
    assert fingerprint(sd1.a.path) in models  # what went into what went in
    assert metadata["modelspec.title"] == "second"


# --- in a process of its own


def large(path: Path, tensors: int, side: int = 1 << 20) -> Model:
    """A checkpoint of so many tensors of 4 MB, of zeros that take no room on the disk."""
    table = {
        f"model.diffusion_model.input_blocks.{n}.weight": {
            "dtype": "F32",
            "shape": [side],
            "data_offsets": [n * side * 4, (n + 1) * side * 4],
        }
        for n in range(tensors)
    }
    header = json.dumps(table).encode()
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", len(header)) + header)
        file.truncate(8 + len(header) + tensors * side * 4)
    return Model(name=path.stem, path=path, sha256="0" * 64)


PEAK = """
import resource, sys
from pathlib import Path
from backend.merging import work
from backend.merging.recipe import RECIPES
work.run(RECIPES.validate_json(sys.argv[1]), Path(sys.argv[2]), lambda doing, at: None)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


@pytest.mark.slow
def test_memory_does_not_grow_with_the_model(tmp_path: Path) -> None:
    peaks = []
    for count in (2, 26):
        a, b = large(tmp_path / f"a{count}.safetensors", count), large(tmp_path / f"b{count}.safetensors", count)
        recipe = WeightedSum(a=a, b=b).model_dump_json()
        command = [sys.executable, "-c", PEAK, recipe, str(tmp_path / f"m{count}.safetensors")]
        peaks.append(int(subprocess.run(command, capture_output=True, text=True, check=True).stdout) / 1024)
    assert peaks[1] - peaks[0] < 24, peaks  # MB: a few tensors; the larger models have 100 MB each


@pytest.mark.slow
def test_a_chore_runs_and_says_how_far_it_is(sd1: Family, tmp_path: Path) -> None:
    told: list[Path] = []
    queue = chores.Chores(told.append)
    bad = queue.add(WeightedSum(a=sd1.a, b=Model(name="gone", path=tmp_path / "gone")), tmp_path / "x.safetensors")
    good = queue.add(WeightedSum(a=sd1.a, b=sd1.b), tmp_path / "merged.safetensors")
    (tmp_path / "file").write_bytes(b"")
    odd = queue.add(Convert(a=sd1.a), tmp_path / "file" / "x.safetensors")  # nobody expects such a place
    with pytest.raises(Conflict):
        queue.add(WeightedSum(a=sd1.a, b=sd1.b), tmp_path / "merged.safetensors")
    views = wait_for(lambda: (v := {v["id"]: v for v in queue.view()}) and v[good]["state"] == "done" and v)
    assert views[bad]["state"] == "failed"
    assert "gone is not there" in views[bad]["error"]  # and the next one went on
    error = wait_for(lambda: next(view["error"] for view in queue.view() if view["id"] == odd))
    assert error == "it could not be done (FileExistsError); the server's log says more"
    assert views[good]["at"] == 1
    wait_for(lambda: told == [tmp_path / "merged.safetensors"])  # once its process has gone
    assert read(tmp_path / "merged.safetensors").keys() == read(sd1.a.path).keys()


def test_a_process_that_is_killed_leaves_nothing(sd1: Family, tmp_path: Path) -> None:
    def killed(process: "subprocess.Popen[str]") -> None:
        (tmp_path / ".x.safetensors.0123abcd.tmp").write_bytes(b"half of it")
        (tmp_path / ".x.safetensors.4567cdef.tmp" / "unet").mkdir(parents=True)
        process.kill()

    chores.run(Convert(a=sd1.a), tmp_path / "x.safetensors", lambda line: None, killed)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_a_stopped_chore_leaves_nothing(tmp_path: Path) -> None:
    a, b = large(tmp_path / "a.safetensors", 200), large(tmp_path / "b.safetensors", 200)
    queue = chores.Chores()
    id = queue.add(WeightedSum(a=a, b=b), tmp_path / "out.safetensors")
    wait_for(lambda: queue.view()[0]["at"] > 0)
    queue.stop(id)
    wait_for(lambda: not list(tmp_path.glob(".*")))
    assert queue.view()[0]["state"] == "stopped"
    assert {path.name for path in tmp_path.iterdir()} == {"a.safetensors", "b.safetensors"}
    queue.stop(id)
    assert queue.view() == []


@pytest.mark.parametrize("text", ["1,2,3", "NOPE", "1," * 25 + "x"])
def test_wrong_blocks_are_said(sd1: Family, tmp_path: Path, text: str) -> None:
    with pytest.raises(AtelierError, match=r"^blocks: "):
        work.run(WeightedSum(a=sd1.a, b=sd1.b, blocks=text), tmp_path / "no.safetensors", quiet)
