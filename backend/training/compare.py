"""Draws a grid: the same prompt and seed with each checkpoint of a training, at several weights."""

from collections.abc import Callable
from pathlib import Path

import torch
from peft import get_peft_model_state_dict
from peft.tuners.lora import LoraLayer
from safetensors.torch import load_file

from backend.files import write_atomically
from backend.training import kohya
from backend.training.base import Base
from backend.training.grids import Grid
from backend.training.lora import ADAPTER, add_adapters
from backend.training.pictures import png_into
from backend.training.records import Training


def draw(base: Base, training: Training, grid: Grid, each: Callable[[], object]) -> None:
    """What has been drawn already stays; `each` is called after every step of a picture."""
    params = training.params
    parts = add_adapters(base, params)
    for module in parts.values():
        module.eval()
    shown = 0
    untrained: Path | None = None  # the same at each weight
    for step, weight, path in grid.cells():
        is_untrained = not (step and weight)
        if path.is_file():
            pass
        elif is_untrained and untrained:
            write_atomically(path, untrained.read_bytes())
        else:
            if step and step != shown:
                tensors = load_file(training.weights(step))
                for part, module in parts.items():
                    _put(tensors, part, module, base)
                shown = step
            for module in parts.values():
                for layer in module.modules():
                    if isinstance(layer, LoraLayer):
                        layer.set_scale(ADAPTER, weight if step else 0.0)
            with torch.inference_mode():
                png_into(path, base.draw(grid.sample, each))
        if is_untrained:
            untrained = path


def _put(tensors: dict[str, torch.Tensor], part: str, module: torch.nn.Module, base: Base) -> None:
    """The weights of a file into the adapter of that part."""
    for key, weight in get_peft_model_state_dict(module, adapter_name=ADAPTER).items():
        layer, side = kohya.named(part, key, base.is_xl, base.layers_per_block)
        weight.data.copy_(tensors[f"{layer}.{side}.weight"])
