"""Reading a model's files, with one clear sentence (ModelBroken) for whatever is wrong with them."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from backend.catalog import Model
from backend.diffusion import samplers
from backend.diffusion.families import Family
from backend.diffusion.reading import single_file
from backend.diffusion.reading.errors import broken
from backend.diffusion.reading.fitting import fit_together
from backend.diffusion.reading.folder import Folder
from backend.diffusion.reading.single_file import SingleFile

__all__ = ["broken", "dtypes", "family_of", "parts", "schedule", "scheduler", "sizes", "told", "vae"]


def told(model: Model) -> Model:
    """The same; what the catalogue does not say of a pickle, its tensors do. Raises ModelBroken."""
    return SingleFile(model).told


def family_of(model: Model) -> Family:
    return _source(model).family()


def dtypes(model: Model, family: Family, dtype: torch.dtype) -> dict[str, torch.dtype]:
    """What each part that has weights is read as."""
    source = _source(model)
    return {
        name: torch.float32 if part.upcasts and source.upcasts(name) else dtype
        for name, part in family.parts.items()
        if part.weights
    }


def sizes(model: Model, family: Family, dtypes: Mapping[str, torch.dtype], packed: bool = False) -> dict[str, int]:
    """How many bytes the weights of each part will take, by the headers of their files."""
    source = _source(model)
    parts = {name: part for name, part in family.parts.items() if part.weights}
    return {name: source.size(name, part, dtypes[name], packed) for name, part in parts.items()}


def parts(model: Model, family: Family, dtypes: Mapping[str, torch.dtype], packed: bool = False) -> dict[str, Any]:
    """The family's components, on the CPU, in which everything is there and goes together.

    `packed`: what is quantised stays so, and is made whole layer by layer whenever it is used.
    """
    source = _source(model)
    weights_first = sorted(family.parts.items(), key=lambda item: not item[1].weights)  # they are what is broken
    read = {name: source.part(name, part, dtypes.get(name), packed) for name, part in weights_first}
    fit_together(model, family, read)
    return read


def vae(model: Model, path: Path, dtype: torch.dtype = torch.float32) -> Any:
    """The VAE in a file or folder, for a model: its family says how latents are scaled. Raises ModelBroken."""
    return single_file.vae(model, path, family_of(model).parts["vae"], dtype)


def scheduler(model: Model) -> samplers.SigmaScheduler:
    file = "scheduler/scheduler_config.json"
    config = _source(model).scheduler()
    if str(config.get("_class_name")).startswith("EDM"):
        raise broken(model, file, f"asks for {config['_class_name']}: models trained with it cannot be run")
    try:
        return samplers.from_config(config)
    except ValueError as error:
        raise broken(model, file, str(error)) from error


def schedule(model: Model) -> dict[str, Any]:
    """The noise levels that it was trained with, as diffusers' schedulers are told of them."""
    return _source(model).scheduler()


def _source(model: Model) -> Folder | SingleFile:
    return Folder(model) if model.path.is_dir() else SingleFile(model)
