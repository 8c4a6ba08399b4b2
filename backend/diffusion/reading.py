"""Reading a model's folder, with one clear sentence (ModelBroken) for whatever is wrong with it."""

import json
from collections.abc import Mapping
from math import prod
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from backend.catalog import Model
from backend.diffusion import samplers
from backend.diffusion.families import FAMILIES, Family, Part
from backend.errors import ModelBroken


def broken(model: Model, file: str, reason: str) -> ModelBroken:
    return ModelBroken(f"the model {model.name} cannot be loaded: {file} {reason}")


def family_of(model: Model) -> Family:
    index = _json(model, model.path / "model_index.json")
    name = index.get("_class_name")
    if not isinstance(name, str) or name not in FAMILIES:
        raise broken(model, "model_index.json", f"asks for {name!r}; what can be run is {', '.join(FAMILIES)}")
    for component, part in FAMILIES[name].parts.items():
        given = index.get(component)
        if given != part.name:
            raise broken(model, "model_index.json", f"asks for {given!r} as {component}, not {part.kind.__name__}")
    return FAMILIES[name]


def dtypes(model: Model, family: Family, dtype: torch.dtype) -> dict[str, torch.dtype]:
    """What each part that has weights is read as."""
    return {
        name: torch.float32 if part.upcasts and _upcasts(model, name) else dtype
        for name, part in family.parts.items()
        if part.weights
    }


def size(model: Model, family: Family, dtypes: Mapping[str, torch.dtype]) -> int:
    """How many bytes the weights will take, by the headers of their files."""
    files = {name: _weights(model, name, part) for name, part in family.parts.items() if part.weights}
    return sum(_numbers(model, file) * dtypes[name].itemsize for name, group in files.items() for file in group)


def parts(model: Model, family: Family, dtypes: Mapping[str, torch.dtype]) -> dict[str, Any]:
    """The family's components, on the CPU, in which everything is there and goes together."""
    read = {name: _part(model, name, part, dtypes.get(name)) for name, part in family.parts.items()}
    _fit_together(model, family, read)
    return read


def scheduler(model: Model) -> samplers.SigmaScheduler:
    file = "scheduler/scheduler_config.json"
    config = _json(model, model.path / file)
    if str(config.get("_class_name")).startswith("EDM"):
        raise broken(model, file, f"asks for {config['_class_name']}: models trained with it cannot be run")
    try:
        return samplers.from_config(config)
    except ValueError as error:
        raise broken(model, file, str(error)) from error


def inpaints(unet: Any, vae: Any) -> bool:
    """Whether the UNet is shown a mask and what it leaves of a picture beside the latents: 4 + 1 + 4 channels."""
    return bool(unet.in_channels == 2 * vae.latent_channels + 1)


def first_line(error: Exception) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)[:200]


def _json(model: Model, file: Path) -> dict[str, Any]:
    name = file.relative_to(model.path).as_posix()
    try:
        content = json.loads(file.read_text("utf-8"))
    except FileNotFoundError:
        raise broken(model, name, "is missing") from None
    except (OSError, ValueError) as error:
        raise broken(model, name, f"cannot be read ({error})") from error
    if not isinstance(content, dict):
        raise broken(model, name, "is no JSON object")
    return content


def _upcasts(model: Model, component: str) -> bool:
    return bool(_json(model, model.path / component / "config.json").get("force_upcast", True))  # as diffusers has it


def _weights(model: Model, component: str, part: Part) -> list[Path]:
    """The files that from_pretrained would read."""
    whole = model.path / component / f"{part.weights}.safetensors"
    shards = sorted(whole.parent.glob(f"{part.weights}-*.safetensors"))
    if whole.is_file():
        return [whole]
    if not shards:
        raise broken(model, f"{component}/{whole.name}", "is missing")
    return shards


def _numbers(model: Model, file: Path) -> int:
    """How many numbers a safetensors file holds, by its header."""
    try:
        with safe_open(file, "pt") as tensors:
            return sum(prod(tensors.get_slice(key).get_shape()) for key in tensors.keys())  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        name = file.relative_to(model.path).as_posix()
        raise broken(model, name, f"is damaged or cut short ({error})") from error


def _part(model: Model, name: str, part: Part, dtype: torch.dtype | None) -> Any:
    folder = model.path / name
    if not folder.is_dir():
        raise broken(model, name, "is missing")
    if (folder / "adapter_config.json").exists():  # transformers would fetch the base model that it names
        raise broken(model, f"{name}/adapter_config.json", "does not belong there")
    try:
        if not part.weights:
            return part.kind.from_pretrained(folder, local_files_only=True)
        _json(model, folder / "config.json")
        loaded, report = part.kind.from_pretrained(
            folder, local_files_only=True, use_safetensors=True, torch_dtype=dtype, output_loading_info=True
        )
    except (MemoryError, torch.OutOfMemoryError, ModelBroken):
        raise
    except Exception as error:  # whatever the libraries raise on a broken folder
        raise broken(model, name, f"cannot be read ({first_line(error)})") from error
    if wrong := [*report["missing_keys"], *report["mismatched_keys"], *report["error_msgs"]]:
        raise broken(model, name, f"lacks weights or has wrong ones: {wrong[0]} and {len(wrong) - 1} more")
    return loaded.eval()


def _fit_together(model: Model, family: Family, parts: Mapping[str, Any]) -> None:
    unet, vae = parts["unet"].config, parts["vae"].config
    encoders = [parts[name].config for name in family.reading.encoders]
    width = sum(config.hidden_size for config in encoders)
    if unet.cross_attention_dim != width:
        giver = "the text encoder gives" if len(encoders) == 1 else "the text encoders give"
        raise broken(model, "unet", f"wants text of width {unet.cross_attention_dim}, {giver} {width}")
    if unet.in_channels != vae.latent_channels and not inpaints(unet, vae):
        wants = f"wants latents of {unet.in_channels} channels, the VAE gives {vae.latent_channels}"
        raise broken(model, "unet", wants)
    for (name, tokenizer), config in zip(family.reading.encoders.items(), encoders, strict=True):
        if len(parts[tokenizer]) > config.vocab_size:
            called = name.replace("_", " ")
            raise broken(model, tokenizer, f"knows {len(parts[tokenizer])} tokens, the {called} {config.vocab_size}")
    _fit_addition(model, unet, encoders[-1].projection_dim if family.reading.pooled else None)


def _fit_addition(model: Model, unet: Any, pooled: int | None) -> None:
    """Whether the UNet is made for what it is told beside the states: a summary of that width and six numbers."""
    wanted = None if pooled is None else "text_time"
    if unet.addition_embed_type != wanted:
        raise broken(model, "unet", f"has addition_embed_type {unet.addition_embed_type!r}, not {wanted!r}")
    if pooled is None:
        return
    given = pooled + 6 * unet.addition_time_embed_dim
    if unet.projection_class_embeddings_input_dim != given:
        wants = f"wants {unet.projection_class_embeddings_input_dim} numbers of text and size, it is given {given}"
        raise broken(model, "unet", wants)
