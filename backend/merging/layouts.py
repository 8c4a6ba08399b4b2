"""From a folder as diffusers saves it to one file, and back; a component at a time."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch import Tensor

from backend import catalog
from backend.diffusion import writing
from backend.diffusion.reading.single_file import SingleFile
from backend.errors import ModelBroken, gist
from backend.files import write_atomically
from backend.merging.recipe import Model
from backend.merging.tensors import Spec, write

Report = Callable[[str, float], None]


def to_file(model: Model, file: Path, dtype: torch.dtype | None, report: Report) -> None:
    """Raises ModelBroken."""
    try:
        specs = [Spec(name, _as(tensor, dtype), tuple(tensor.shape)) for name, tensor in _tensors(model)]
        sizes = sorted({spec.dtype.itemsize for spec in specs}, reverse=True)
        ordered = [spec for size in sizes for spec in specs if spec.dtype.itemsize == size]

        def made() -> Iterator[Tensor]:
            done = 0
            for size in sizes:  # each begins where its type can be mapped
                for _, tensor in _tensors(model):
                    if _as(tensor, dtype).itemsize == size:
                        report("writing", done / len(specs))
                        yield tensor
                        done += 1

        write(file, ordered, {"modelspec.title": model.name}, made())
    except (ValueError, OSError, KeyError) as error:
        raise ModelBroken(f"{model.name} cannot become one file: {gist(error)}") from None


def to_folder(model: Model, folder: Path, dtype: torch.dtype | None, report: Report) -> None:
    """Raises ModelBroken."""
    source = SingleFile(catalog.Model(name=model.name, path=model.path, title=model.name, family=model.family))
    family = source.family()
    index: dict[str, object] = {"_class_name": family.pipelines[False, False], "_diffusers_version": "0.42.1"}
    for number, (name, part) in enumerate(family.parts.items()):
        report("writing", number / len(family.parts))
        made = source.part(name, part, (dtype or torch.float16) if part.weights else None)
        if made is None and not part.optional:
            raise ModelBroken(f"{model.name} has no {name.replace('_', ' ')}")
        if made is not None:
            made.save_pretrained(folder / name)
        library = part.kind.__module__.partition(".")[0]
        index[name] = [None, None] if made is None else [library, part.kind.__name__]
    config = {"_class_name": "EulerDiscreteScheduler", **source.scheduler()}
    (folder / "scheduler").mkdir()
    write_atomically(folder / "scheduler" / "scheduler_config.json", json.dumps(config, indent=2).encode())
    index["scheduler"] = ["diffusers", config["_class_name"]]
    write_atomically(folder / "model_index.json", json.dumps(index, indent=2).encode())


def _tensors(model: Model) -> Iterator[tuple[str, Tensor]]:
    return writing.tensors(model.path, model.family)


def _as(tensor: Tensor, dtype: torch.dtype | None) -> torch.dtype:
    return dtype if dtype and tensor.is_floating_point() else tensor.dtype
