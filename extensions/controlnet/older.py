"""What the versions of sd-webui-controlnet have called things, put into the words of today."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, Literal, get_args

ControlMode = Literal["Balanced", "My prompt is more important", "ControlNet is more important"]
ResizeMode = Literal["Just Resize", "Crop and Resize", "Resize and Fill"]
ControlType = Literal[
    "Unknown",
    "OpenPose",
    "Depth",
    "Soft Edge",
    "Hard Edge",
    "Normal Map",
    "Segmentation",
    "Tile",
    "Inpaint",
]
HrOption = Literal["Both", "Low res only", "High res only"]
CONTROL_MODES, RESIZE_MODES, CONTROL_TYPES = get_args(ControlMode), get_args(ResizeMode), get_args(ControlType)
HR_OPTIONS = get_args(HrOption)
NAMES = {
    "guidance": "guidance_end",
    "guessmode": "control_mode",
    "guess_mode": "control_mode",
    "input_image": "image",
    "mask_image": "mask",
}
"""The name of today wins where both are there."""
PICTURES = ("image", "mask", "effective_region_mask", "map")
_UNHEARD = frozenset(
    {
        *("enabled", "low_vram", "lowvram", "is_ui", "input_mode", "batch_images", "output_dir", "loopback"),
        *("batch_mask_dir", "animatediff_batch", "batch_modifiers", "batch_image_files", "batch_keyframe_idx"),
        *("use_preview_as_input", "batch_image_dir", "batch_input_gallery", "batch_mask_gallery", "generated_image"),
        *("mask_image_fg", "image_fg", "pulid_mode", "ipadapter_input"),
    }
)
"""Keys that change no picture here."""


def _numbered(names: Sequence[str]) -> dict[Any, str]:
    return {key: name for n, name in enumerate(names) for key in (n, str(n))}


_SPELLINGS: Mapping[str, Mapping[Any, str]] = {
    "resize_mode": {
        **_numbered((*RESIZE_MODES, "Just Resize")),  # the last one is img2img's, of latents
        "Inner Fit (Scale to Fit)": "Crop and Resize",
        "Scale to Fit (Inner Fit)": "Crop and Resize",
        "Outer Fit (Shrink to Fit)": "Resize and Fill",
        "Envelope (Outer Fit)": "Resize and Fill",
        "ResizeMode.RESIZE": "Just Resize",
        "ResizeMode.INNER_FIT": "Crop and Resize",
        "ResizeMode.OUTER_FIT": "Resize and Fill",
    },
    "control_mode": {
        **_numbered(CONTROL_MODES),
        "ControlMode.BALANCED": CONTROL_MODES[0],
        "ControlMode.PROMPT": CONTROL_MODES[1],
        "ControlMode.CONTROL": CONTROL_MODES[2],
    },
    "hr_option": {
        **_numbered(HR_OPTIONS),
        "HiResFixOption.BOTH": HR_OPTIONS[0],
        "HiResFixOption.LOW_RES_ONLY": HR_OPTIONS[1],
        "HiResFixOption.HIGH_RES_ONLY": HR_OPTIONS[2],
    },
}
"""How the values of today's names were written: as numbers, by the names of enums."""


def units(given: Any) -> Any:
    """Those that are not switched off."""
    if not isinstance(given, Sequence) or isinstance(given, str):
        return given
    return [unit for unit in given if not (isinstance(unit, Mapping) and unit.get("enabled") is False)]


def unit(given: Mapping[str, Any]) -> dict[str, Any]:
    """Today's names and values; what is empty is left out, so that it gets its default. Raises ValueError."""
    if given.get("ipadapter_input"):
        raise ValueError("ipadapter_input is a pickle, which can run code: it is not taken")
    values = {NAMES[name]: value for name, value in given.items() if name in NAMES}
    values |= {name: value for name, value in given.items() if name not in NAMES and name not in _UNHEARD}
    values = {name: value for name, value in values.items() if value is not None}
    if "image" in values:
        image, mask = pictures(values["image"])
        values = {"mask": mask, **values, "image": image} if mask else {**values, "image": image}
    values = {name: value for name, value in values.items() if name not in PICTURES or value not in ("", None)}
    for name, known in _SPELLINGS.items():
        if name in values:
            values[name] = _today(values[name], known)
    if not values.get("advanced_weighting", True):
        del values["advanced_weighting"]
    return values


def pictures(given: Any) -> tuple[Any, Any]:
    """Image and mask out of any of the shapes in which they were sent: a name, a pair, a table, a list of one."""
    if isinstance(given, Mapping):
        return given.get("image"), given.get("mask")
    if isinstance(given, Sequence) and not isinstance(given, str):
        if len(given) == 1:
            return pictures(given[0]) if isinstance(given[0], Mapping) else (given[0], None)
        if len(given) == 2 and all(each is None or isinstance(each, str) for each in given):
            return given[0], given[1]
    return given, None


def named(ref: Any) -> Any:
    """A picture's name; ValueError for what people of other programs send in its place."""
    if isinstance(ref, str) and not re.fullmatch(r"[0-9a-f]{64}", ref):
        raise ValueError("should name an uploaded image; neither paths nor files are taken here")
    return ref


def _today(value: Any, known: Mapping[Any, str]) -> Any:
    if isinstance(value, bool):  # guessmode
        return CONTROL_MODES[2] if value else CONTROL_MODES[0]
    try:
        return known.get(value, value)
    except TypeError:  # a list or table: validation names it
        return value
