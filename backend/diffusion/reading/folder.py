"""Reading a folder as diffusers saves it: a folder for each component, model_index.json on top."""

import json
import re
from collections.abc import Mapping
from math import prod
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from backend.catalog import Model
from backend.diffusion.families import FAMILIES, WITH, Family, Part
from backend.diffusion.memory import is_exhausted
from backend.diffusion.reading.errors import Unreadable, broken
from backend.errors import ModelBroken, gist


def from_folder(folder: Path, part: Part, dtype: torch.dtype) -> Any:
    """A component from a folder of its own. Raises Unreadable, and whatever the libraries do."""
    how: dict[str, Any] = {"variant": variant} if (variant := weights_in(folder, part)[0]) else {}
    loaded, report = part.kind.from_pretrained(
        folder, local_files_only=True, use_safetensors=True, torch_dtype=dtype, output_loading_info=True, **how
    )
    if wrong := [*report["missing_keys"], *report["mismatched_keys"], *report["error_msgs"]]:
        raise Unreadable(f"lacks weights or has wrong ones: {wrong[0]} and {len(wrong) - 1} more")
    return loaded.eval()


def weights_in(folder: Path, part: Part) -> tuple[str, list[Path]]:
    """The files that from_pretrained would read, and their variant: "fp16" where there are none of full precision."""
    variants: dict[str, list[Path]] = {}
    name = re.compile(rf"{part.weights}(?:\.(\w+))?(?:-\d+-of-\d+)?(?:\.(\w+))?\.safetensors")
    for file in sorted(folder.glob("*.safetensors")):
        if match := name.fullmatch(file.name):
            variants.setdefault(match[1] or match[2] or "", []).append(file)
    variant = next((known for known in ("", "fp16", *variants) if known in variants), "")
    files = variants.get(variant, [])
    whole = [file for file in files if "-of-" not in file.name]
    return variant, whole or files


def _has(index: Mapping[str, Any], part: str) -> bool:
    return index.get(part) not in (None, [None, None])


class Folder:
    def __init__(self, model: Model) -> None:
        self._model = model

    def family(self) -> Family:
        index = self._json("model_index.json")
        name = index.get("_class_name")
        if not isinstance(name, str) or name not in FAMILIES:
            raise self._broken("model_index.json", f"asks for {name!r}; what can be run is {', '.join(FAMILIES)}")
        family = next((WITH[of, part] for of, part in WITH if of == name and _has(index, part)), FAMILIES[name])
        for component, part in family.parts.items():
            given = index.get(component)
            if not part.is_named(given):
                raise self._broken("model_index.json", f"asks for {given!r} as {component}, not {part.kind.__name__}")
        return family

    def upcasts(self, component: str) -> bool:
        """Whether its config wants it in float32 where the others are not."""
        return bool(self._json(f"{component}/config.json").get("force_upcast", True))  # as diffusers has it

    def size(self, component: str, part: Part, dtype: torch.dtype, packed: bool) -> int:
        """Bytes of its weights, by the headers of their files."""
        if self._is_left_out(component, part):
            return 0
        return sum(self._numbers(file) for file in self._weights(component, part)) * dtype.itemsize

    def scheduler(self) -> dict[str, Any]:
        return self._json("scheduler/scheduler_config.json")

    def part(self, name: str, part: Part, dtype: torch.dtype | None, packed: bool = False) -> Any:
        """A component; None if it is not there and may be missing."""
        if self._is_left_out(name, part):
            return None
        folder = self._model.path / name
        if not folder.is_dir():
            raise self._broken(name, "is missing")
        if (folder / "adapter_config.json").exists():  # transformers would fetch the base model that it names
            raise self._broken(f"{name}/adapter_config.json", "does not belong there")
        try:
            if not part.weights:
                return part.kind.from_pretrained(folder, local_files_only=True)
            self._json(f"{name}/config.json")
            assert dtype
            return from_folder(folder, part, dtype)
        except Unreadable as error:
            raise self._broken(name, str(error)) from error
        except Exception as error:  # whatever the libraries raise on a broken folder
            if isinstance(error, ModelBroken) or is_exhausted(error):
                raise
            raise self._broken(name, f"cannot be read ({gist(error)})") from error

    def _is_left_out(self, name: str, part: Part) -> bool:
        return part.optional and not _has(self._json("model_index.json"), name)

    def _broken(self, file: str, reason: str) -> ModelBroken:
        return broken(self._model, file, reason)

    def _json(self, name: str) -> dict[str, Any]:
        try:
            content = json.loads((self._model.path / name).read_text("utf-8"))
        except FileNotFoundError:
            raise self._broken(name, "is missing") from None
        except (OSError, ValueError) as error:
            raise self._broken(name, f"cannot be read ({gist(error)})") from error
        if not isinstance(content, dict):
            raise self._broken(name, "is no JSON object")
        return content

    def _weights(self, component: str, part: Part) -> list[Path]:
        _, files = weights_in(self._model.path / component, part)
        if not files:
            raise self._broken(f"{component}/{part.weights}.safetensors", "is missing")
        return files

    def _numbers(self, file: Path) -> int:
        try:
            with safe_open(file, "pt") as tensors:
                return sum(prod(tensors.get_slice(key).get_shape()) for key in tensors.keys())  # noqa: SIM118
        except (SafetensorError, OSError) as error:
            name = file.relative_to(self._model.path).as_posix()
            raise self._broken(name, f"is damaged or cut short ({gist(error)})") from error
