"""Where to start: what is trained, on which family, with how much memory. Data, and what it costs; no torch."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from backend.catalog import Model
from backend.errors import NotFound

Family = Literal["starter", "sd1", "sdxl"]
Memory = Literal["cpu", "8 GB", "12 GB", "24 GB"]


@dataclass(frozen=True)
class Preset:
    """Values for `TrainParams`, and what they cost with thirty pictures."""

    goal: str
    title: str
    family: Family
    memory: Memory
    values: Mapping[str, Any]
    minutes: float
    """On a graphics card of that memory of about 2022 (a GPU with 24 GB: RTX 3090); on two cores for `cpu`."""
    gigabytes: float
    """Of the graphics card's memory, or of the machine's for `cpu`."""
    measured: bool = False
    """Else minutes and memory are estimates by the count of operations and of numbers held."""


@dataclass(frozen=True)
class _Goal:
    title: str
    values: Mapping[str, Any]
    pictures: int
    """That the model sees in all, at rank 16 on a model of full size."""


GOALS: Mapping[str, _Goal] = {
    "character": _Goal(
        "A character, the same from picture to picture",
        {"rank": 32, "alpha": 16, "text_encoder_lr": 5e-5, "shuffle": True, "keep_tokens": 1},
        pictures=3000,
    ),
    "style": _Goal(
        "A style: how things are drawn, whatever they are",
        {"rank": 32, "alpha": 32, "modules": "attention_convs", "caption_dropout": 0.1},
        pictures=4000,
    ),
    "object": _Goal(
        "An object or a piece of clothing", {"rank": 16, "alpha": 8, "text_encoder_lr": 5e-5}, pictures=2000
    ),
    "concept": _Goal(
        "A concept: a pose, a gesture, a kind of picture",
        {"rank": 16, "alpha": 16, "text_encoder_lr": 2e-5, "caption_dropout": 0.1},
        pictures=3000,
    ),
}

FAMILIES: Mapping[Family, Mapping[str, Any]] = {
    "starter": {
        "resolution": 128,
        "learning_rate": 2e-3,
        "min_snr_gamma": 0,
        "sample_cfg": 3,
        "rank": 16,
        "alpha": 16,
        "modules": "attention_convs",
        "text_encoder_lr": 0,
        "validate_every": 25,
    },
    "sd1": {"resolution": 512, "learning_rate": 1e-4},
    "sdxl": {"resolution": 1024, "learning_rate": 1e-4, "sample_steps": 25},
}

_TIGHT = {"gradient_checkpointing": True, "optimizer": "AdamW8bit", "batch_size": 1}
_TIERS: Mapping[tuple[Family, Memory], tuple[Mapping[str, Any], float, float]] = {
    # values, seconds for a picture, gigabytes
    ("starter", "cpu"): ({"batch_size": 8}, 0.055, 1.3),
    ("sd1", "cpu"): ({"batch_size": 1, "gradient_checkpointing": True}, 25.0, 9.0),
    ("sd1", "8 GB"): ({**_TIGHT, "accumulation": 2}, 0.45, 5.5),
    ("sd1", "12 GB"): ({"batch_size": 2, "gradient_checkpointing": True}, 0.3, 7.5),
    ("sd1", "24 GB"): ({"batch_size": 4}, 0.18, 18.0),
    ("sdxl", "8 GB"): ({**_TIGHT, "text_encoder_lr": 0, "accumulation": 2, "rank": 8, "alpha": 8}, 2.4, 7.8),
    ("sdxl", "12 GB"): ({**_TIGHT, "text_encoder_lr": 0, "accumulation": 2}, 1.7, 10.0),
    ("sdxl", "24 GB"): ({"batch_size": 2, "gradient_checkpointing": True}, 1.0, 17.0),
}
_STARTER_PICTURES = 3200
"""Which a tiny model sees in all: it learns fast, and has little to forget."""


def _preset(goal: str, family: Family, memory: Memory) -> Preset:
    tier, seconds, gigabytes = _TIERS[family, memory]
    values = {**FAMILIES["sd1"], **GOALS[goal].values, **FAMILIES[family], **tier}
    seen = _STARTER_PICTURES if family == "starter" else GOALS[goal].pictures
    steps = seen // (values["batch_size"] * values.get("accumulation", 1))
    every = max(steps // 8, 1)
    values |= {"steps": steps, "save_every": every, "sample_every": every}
    measured = (goal, family) == ("style", "starter")
    return Preset(goal, GOALS[goal].title, family, memory, values, round(seen * seconds / 60, 1), gigabytes, measured)


PRESETS: tuple[Preset, ...] = tuple(_preset(goal, *tier) for goal in GOALS for tier in _TIERS)


SMALL = 320
"""Channels of the first block of Stable Diffusion 1; a model with fewer is a toy, and learns much faster."""


def family_of(model: Model) -> Family:
    """Which presets suit it, by its config alone."""
    if model.family == "sdxl":
        return "sdxl"
    try:
        config = json.loads((model.path / "unet" / "config.json").read_text("utf-8"))
        return "starter" if config["block_out_channels"][0] < SMALL else "sd1"
    except (OSError, ValueError, KeyError, TypeError, IndexError):  # loading it says what is wrong
        return "sd1"


def find(goal: str, family: str, gigabytes: float) -> Preset:
    """The preset for this goal that fits the memory best; `gigabytes` of the graphics card, 0 without one.

    Raises NotFound.
    """
    if goal not in GOALS:
        raise NotFound(f"{goal[:40]!r} is not a preset; there are {', '.join(GOALS)}")
    found = [p for p in PRESETS if (p.goal, p.family) == (goal, family)]
    on_cpu = [p for p in found if p.memory == "cpu"]
    if not gigabytes or len(on_cpu) == len(found):
        if on_cpu:
            return on_cpu[0]
        raise NotFound(f"there is no preset for {family} without a graphics card: it would take weeks")
    fitting = [p for p in found if p.memory != "cpu" and float(p.memory.partition(" ")[0]) <= gigabytes * 1.05]
    if not fitting:
        least = min(p.gigabytes for p in found if p.memory != "cpu")
        raise NotFound(f"{family} needs {least:.0f} GB of graphics memory at least; there are {gigabytes:.0f}")
    return fitting[-1]
