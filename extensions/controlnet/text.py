"""Units as sd-webui-controlnet writes them into a picture's text, one key each, and back.

    ControlNet 0: "Module: canny, Model: control_v11p_sd15_canny [d14c016b], Weight: 1.0, ..., Control Mode: Balanced"

Behind its keys come ours, for what else is needed to draw the picture again; its readers pass over them.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from . import pose
from .preprocessors import RESOLUTION, TABLE, find

if TYPE_CHECKING:
    from . import Unit

KEY = "ControlNet"
MOST = 10
UPSTREAMS = (
    *("module", "model", "weight", "resize_mode", "processor_res", "threshold_a", "threshold_b"),
    *("guidance_start", "guidance_end", "pixel_perfect", "control_mode"),
)
"""Written always, in this order."""
OURS = (
    *("hr_option", "union_control_type", "inpaint_crop_input_image", "advanced_weighting"),
    *("image", "mask", "effective_region_mask", "map", "made_from"),
)
"""Written where they are not what they are by default."""
LONGEST_POSE = 6000
"""Letters; a pose that needs more is left out, its map is not."""
SLIDERS = {"processor_res": "resolution", "threshold_a": "threshold_a", "threshold_b": "threshold_b"}
_UNUSED = {"processor_res": int(RESOLUTION.default), "threshold_a": 0.5, "threshold_b": 0.5}
"""What stands for a slider that the preprocessor does not have."""
_PAIR = re.compile(r"(?<![\w /])([\w /]++): (\([^()]*\)|[^,]*)(?:,|$)")
_NAMES = {name.replace("_", " "): name for name in (*UPSTREAMS, *OURS, "pose")}
_NAMES |= {"preprocessor": "module", "guidance strength": "guidance_end"}


def written(units: Sequence[Unit]) -> dict[str, str]:
    return {f"{KEY} {number}": _line(unit) for number, unit in enumerate(units)}


def read(fields: Mapping[str, str]) -> list[dict[str, Any]]:
    """The units' values, not yet validated; what makes no sense is left out."""
    lines = (
        _PAIR.findall(fields[key]) for key in (KEY, *(f"{KEY} {number}" for number in range(MOST))) if key in fields
    )
    singly = (_of_first_versions(fields, key) for key in (KEY, *(f"{KEY}-{number}" for number in range(MOST))))
    return [unit for unit in map(_unit, (*lines, *singly)) if unit]


def _line(unit: Unit) -> str:
    pairs = [(name, getattr(unit, name)) for name in UPSTREAMS]
    for name in OURS:
        value = getattr(unit, name)
        if value != type(unit).model_fields[name].default:
            pairs.append((name, value))
    if unit.pose and len(short := pose.brief(pose.people(unit.pose))) <= LONGEST_POSE:
        pairs.append(("pose", short))
    module = TABLE[unit.module]
    shown = [(name, _UNUSED[name] if _is_unused(name, module) else value) for name, value in pairs]
    return ", ".join(f"{name.replace('_', ' ').title()}: {_quoted(value)}" for name, value in shown)


def _of_first_versions(fields: Mapping[str, str], unit: str) -> list[tuple[str, str]]:
    """Until the spring of 2023 each value had a key of its own: `ControlNet-0 Module: canny`."""
    return [(key.removeprefix(f"{unit} "), value) for key, value in fields.items() if key.startswith(f"{unit} ")]


def _unit(given: Sequence[tuple[str, str]]) -> dict[str, Any]:
    pairs = {key.strip().lower(): value for key, value in given}
    values: dict[str, Any] = {_NAMES[key]: _unquoted(value) for key, value in pairs.items() if key in _NAMES}
    values |= _of_2023(pairs)
    values = {name: value for name, value in values.items() if value not in ("", "None")}
    if "module" not in values and "model" not in values:
        return {}
    try:
        module = find(values.get("module", "none"))
    except ValueError:
        module = TABLE["none"]  # the declaration names it as wrong
    for name in SLIDERS:
        if name in values and (_is_unused(name, module) or not _is_number(values[name])):
            del values[name]
    if "advanced_weighting" in values:
        values["advanced_weighting"] = values["advanced_weighting"].split(";")
    if "pose" in values:
        values["pose"] = _pose(values["pose"])
    return values


def _pose(short: str) -> str:
    """As OpenPose writes it; empty if it makes no sense."""
    try:
        text = pose.written(pose.from_brief(short))
        pose.people(text)
    except (ValueError, ZeroDivisionError):
        return ""
    return text


def _of_2023(pairs: Mapping[str, str]) -> dict[str, str]:
    """Versions before 1.1.200 put several numbers into brackets."""
    several = (
        ("starting/ending", ("guidance_start", "guidance_end")),
        ("preprocessor params", tuple(SLIDERS)),
    )
    return {
        name: number.strip()
        for key, names in several
        if key in pairs
        for name, number in zip(names, pairs[key].strip("()").split(","), strict=False)
    }


def _is_unused(name: str, module: Any) -> bool:
    return name in SLIDERS and getattr(module, SLIDERS[name]) is None


def _is_number(text: str) -> bool:
    return bool(re.fullmatch(r"-?\d+(\.\d+)?", text))


def _quoted(value: Any) -> str:
    """A comma or a colon would end the pair for other readers."""
    if isinstance(value, tuple):
        return ";".join(map(str, value))
    return str(value).replace(",", "%2C").replace(":", "%3A")


def _unquoted(text: str) -> str:
    return text.strip().replace("%2C", ",").replace("%3A", ":")
