"""LoRAs for the families of today: what diffusers makes of the same files, and what is refused."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from torch import Tensor, nn

from backend.errors import InvalidRequest
from backend.lora import fused, network
from backend.testing import Studio
from extensions.lora import header, merge
from extensions.lora.merge import Merged
from extensions.lora.tags import Use
from extensions.lora.tests import making
from tests.tiny_families import written

FOLDER = Path(__file__).parents[1]
NAMES = ("flux2", "chroma", "z-image", "qwen-image", "pixart", "sana")
LOADED = tuple(name for name in NAMES if name != "pixart")
"""Families that diffusers itself loads LoRAs for."""
BLOCKS = ("transformer_blocks.", "single_transformer_blocks.", "layers.", "noise_refiner.", "context_refiner.")


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.set_num_threads(1)
    return written(tmp_path_factory.mktemp("models"), NAMES)


@pytest.fixture(params=NAMES)
def family(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def loaded(models: Path, family: str) -> Any:
    return diffusers.DiffusionPipeline.from_pretrained(models / "checkpoints" / family)


def linears(transformer: Any) -> Mapping[str, nn.Linear]:
    """Of its blocks."""
    modules = transformer.named_modules()
    return {name: m for name, m in modules if isinstance(m, nn.Linear) and name.startswith(BLOCKS)}


def of_peft(transformer: Any, prefix: str) -> dict[str, Tensor]:
    tensors = {}
    for name, module in linears(transformer).items():
        tensors[f"{prefix}{name}.lora_A.weight"] = making.noise(2, module.in_features)
        tensors[f"{prefix}{name}.lora_B.weight"] = making.noise(module.out_features, 2)
    return tensors


def of_original(transformer: Any, front: str) -> dict[str, Tensor]:
    """With the names of the original code, for the whole of what is several modules in diffusers.

    As kohya's scripts have it if `front` ends with _, else as ComfyUI's users do.
    """
    modules, tensors = linears(transformer), {}
    whole = fused.original_names(modules)
    within = {part for parts in whole.values() for part in parts}
    names: Mapping[str, Sequence[str]] = {**whole, **{name: (name,) for name in modules if name not in within}}
    is_flat = front.endswith("_")
    down, up = ("lora_down", "lora_up") if is_flat else ("lora_A", "lora_B")
    for name, parts in names.items():
        key = front + (name.replace(".", "_") if is_flat else name)
        tensors[f"{key}.{down}.weight"] = making.noise(2, modules[parts[0]].in_features)
        tensors[f"{key}.{up}.weight"] = making.noise(sum(modules[part].out_features for part in parts), 2)
        if is_flat:
            tensors[f"{key}.alpha"] = torch.tensor(1.0)
    return tensors


def applied(pipeline: Any, path: Path) -> Merged:
    there, of_file, merged = merge.places(pipeline), network.read(path), Merged()
    merge.check(of_file, there)
    merged.put(merge.changes([(Use("a", 1, 1), of_file)], there))
    return merged


def theirs(models: Path, family: str, path: Path) -> Mapping[str, Tensor]:
    """What diffusers merges."""
    pipeline = loaded(models, family)
    pipeline.load_lora_weights(path.parent, weight_name=path.name)
    pipeline.fuse_lora(components=["transformer"])
    pipeline.unload_lora_weights()
    weights: Mapping[str, Tensor] = pipeline.transformer.state_dict()
    return weights


def assert_merged(models: Path, family: str, path: Path) -> None:
    """All blocks are changed, as diffusers changes them, and come back."""
    pipeline = loaded(models, family)
    before = {name: value.clone() for name, value in pipeline.transformer.state_dict().items()}
    merged = applied(pipeline, path)
    expected = theirs(models, family, path)
    for name, value in pipeline.transformer.state_dict().items():
        torch.testing.assert_close(value, expected[name], atol=1e-5, rtol=1e-5)
    assert all(
        not torch.equal(module.weight, before[f"{n}.weight"]) for n, module in linears(pipeline.transformer).items()
    )
    merged.undo()
    assert all(torch.equal(value, before[name]) for name, value in pipeline.transformer.state_dict().items())


@pytest.mark.parametrize("name", LOADED)
def test_diffusers_own_layout(models: Path, tmp_path: Path, name: str) -> None:
    torch.manual_seed(1)
    tensors = of_peft(loaded(models, name).transformer, "transformer.")
    assert_merged(models, name, making.save(tmp_path / "a.safetensors", tensors))


@pytest.mark.parametrize("name", ["flux2", "z-image", "qwen-image"])
def test_kohyas_layout(models: Path, tmp_path: Path, name: str) -> None:
    torch.manual_seed(2)
    tensors = of_original(loaded(models, name).transformer, "lora_unet_")
    assert_merged(models, name, making.save(tmp_path / "a.safetensors", tensors))


@pytest.mark.parametrize("name", ["flux2", "z-image", "qwen-image"])
def test_comfys_layout(models: Path, tmp_path: Path, name: str) -> None:
    torch.manual_seed(2)
    write = of_original if name == "flux2" else of_peft  # that of diffusers, under another prefix
    tensors = write(loaded(models, name).transformer, "diffusion_model.")
    assert_merged(models, name, making.save(tmp_path / "a.safetensors", tensors))


def test_chromas_original_names_are_those_of_flux(models: Path, tmp_path: Path) -> None:
    """diffusers' conversion knows them at their true size only."""
    torch.manual_seed(5)
    pipeline = loaded(models, "chroma")
    modules, tensors = linears(pipeline.transformer), of_original(pipeline.transformer, "lora_unet_")
    before = {name: module.weight.detach().clone() for name, module in modules.items()}
    applied(pipeline, making.save(tmp_path / "a.safetensors", tensors))
    for name, parts in fused.original_names(modules).items():
        key = f"lora_unet_{name.replace('.', '_')}"
        added = tensors[f"{key}.lora_up.weight"] @ tensors[f"{key}.lora_down.weight"] / 2
        expected = torch.cat([before[part] for part in parts]) + added
        torch.testing.assert_close(torch.cat([modules[part].weight for part in parts]), expected, atol=1e-5, rtol=0)


def test_of_pixart_as_peft_saves_it(models: Path, tmp_path: Path) -> None:
    torch.manual_seed(3)
    pipeline = loaded(models, "pixart")
    tensors = of_peft(pipeline.transformer, "base_model.model.")
    before = {name: module.weight.detach().clone() for name, module in linears(pipeline.transformer).items()}
    applied(pipeline, making.save(tmp_path / "a.safetensors", tensors))
    for name, module in linears(pipeline.transformer).items():
        down, up = (tensors[f"base_model.model.{name}.lora_{side}.weight"] for side in "AB")
        torch.testing.assert_close(module.weight, before[name] + up @ down, atol=1e-5, rtol=1e-5)


@pytest.fixture(scope="module")
def studio(models: Path) -> Iterator[Studio]:
    torch.manual_seed(4)
    for name in NAMES:
        tensors = of_peft(loaded(models, name).transformer, "transformer.")
        making.save(models / "loras" / f"{name}.safetensors", tensors)
    with Studio(FOLDER, models=models, model="flux2") as studio:
        yield studio


def test_a_picture_changes_and_nothing_stays(studio: Studio, family: str) -> None:
    def drawn(tag: str) -> bytes:
        return studio.draw(f"a red circle {tag}", model=family, cfg_scale=1, steps=1).picture.tobytes()

    without = drawn("")
    assert drawn(f"<lora:{family}:1>") != without
    assert drawn("") == without


@pytest.mark.parametrize(
    ("file", "model", "words"),
    [
        ("flux2", "chroma", r"flux2\.safetensors is made for Flux\.2 \(chroma is Chroma\)"),
        ("z-image", "flux2", r"z-image\.safetensors is made for Z-Image \(flux2 is Flux\.2\)"),
        ("qwen-image", "z-image", r"is made for Qwen-Image \(z-image is Z-Image\)"),
        (
            "chroma",
            "flux2",
            r"chroma\.safetensors (does not fit: its part for|has parts that this model has no place)",
        ),
        ("sana", "pixart", r"sana\.safetensors (does not fit|has parts that this model has no place)"),
    ],
)
def test_what_is_for_another_family_is_refused(studio: Studio, file: str, model: str, words: str) -> None:
    with pytest.raises(InvalidRequest, match=words):
        studio.draw(f"a <lora:{file}:1>", model=model, cfg_scale=1)


def test_files_say_which_family_they_are_for(models: Path, studio: Studio) -> None:
    found = {name: header.facts(models / "loras" / f"{name}.safetensors").family for name in NAMES}
    assert {name: found[name] for name in ("flux2", "z-image", "qwen-image")} == {
        name: name for name in ("flux2", "z-image", "qwen-image")
    }
    assert header.family_named("QwenImage") == "qwen-image"
