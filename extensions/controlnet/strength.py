"""What a unit's words mean to control models of every kind: factors of its residuals, the map as numbers, its type."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from .older import CONTROL_MODES, CONTROL_TYPES

if TYPE_CHECKING:
    from . import Unit

FALL = 0.825
"""From one residual to the next one further out, where the prompt or the control is more important."""
DEEPEST = 12
"""The residual that is not weakened: the last of Stable Diffusion 1.x; SDXL has fewer, so all of its are."""
OF_ADAPTERS = (0.25, 0.62, 0.825, 1.0)
"""The same for T2I-Adapters."""
FORCED_SOFT = ("canny", "mlsd")
"""Preprocessors whose thin lines are taken softly when the picture is drawn larger."""
UNION_TYPES: Mapping[str, str] = {
    "OpenPose": "OpenPose",
    "Depth": "Depth",
    "SoftEdge": "Soft Edge",
    "Scribble": "Soft Edge",
    "Canny": "Hard Edge",
    "Lineart": "Hard Edge",
    "MLSD": "Hard Edge",
    "NormalMap": "Normal Map",
    "Segmentation": "Segmentation",
    "Tile": "Tile",
    "Inpaint": "Inpaint",
}
"""What a union model takes the maps of each control type for."""


def scales(unit: Unit, count: int, is_adapter: bool, further: bool) -> tuple[float, ...]:
    """What each of a unit's `count` residuals is multiplied by, the outermost first. Raises ValueError."""
    if fixed := _fixed(unit, count, further):
        return fixed
    if is_adapter:
        return tuple(unit.weight * factor for factor in OF_ADAPTERS[:count])
    return tuple(unit.weight * FALL ** (DEEPEST - i) for i in range(count))


def spread(unit: Unit, count: int, further: bool) -> tuple[float, ...]:
    """The same for a transformer's, however many: the first is as weak as a UNet's outermost. Raises ValueError."""
    last = max(count - 1, 1)
    return _fixed(unit, count, further) or tuple(
        unit.weight * FALL ** (DEEPEST * (last - i) / last) for i in range(count)
    )


def _fixed(unit: Unit, count: int, further: bool) -> tuple[float, ...]:
    """Where the factors do not fall from layer to layer; empty: they do."""
    if unit.advanced_weighting is not None:
        if len(unit.advanced_weighting) != count:
            raise ValueError(
                f"there should be {count} factors for this model, there are {len(unit.advanced_weighting)}"
            )
        return unit.advanced_weighting
    is_even = unit.control_mode == CONTROL_MODES[0] and not (further and unit.module in FORCED_SOFT)
    return (unit.weight,) * count if is_even else ()


def conditional_only(unit: Unit) -> bool:
    """Whether it leaves the negative prompt's part of the guidance alone."""
    return bool(unit.control_mode == CONTROL_MODES[2])


def union_name(unit: Unit) -> str:
    """What the map shows, for a union model; one of CONTROL_TYPES. Raises ValueError."""
    name: str = unit.union_control_type
    if name == "Unknown":
        name = next((UNION_TYPES[t] for t in unit.processed.types if t in UNION_TYPES), name)
    if name == "Unknown":
        raise ValueError("this model takes maps of several types: say which one this map is of")
    return name


def union_type(unit: Unit, count: int) -> int:
    """The number by which a union model for SDXL, of `count` types, knows it. Raises ValueError."""
    name, (_, *known) = union_name(unit), CONTROL_TYPES[: count + 1]
    if name not in known:
        raise ValueError(f"this model knows {', '.join(known)}, not {name}")
    return known.index(name)


def hint(picture: Image.Image) -> Tensor:
    """A map as control models see it, (1, 3, H, W) in 0 .. 1; -1 where it is transparent."""
    pixels = torch.from_numpy(np.array(picture)).permute(2, 0, 1).unsqueeze(0).contiguous() / 255
    if pixels.shape[1] == 3:
        return pixels
    return torch.where(pixels[:, 3:] > 0.5, pixels[:, :3], -1.0)
