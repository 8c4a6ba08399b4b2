"""What a LoRA's file says of itself in its header. No tensor is read."""

import json
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

from backend.catalog.detect import FAMILIES as LABELS
from backend.catalog.detect import detect
from backend.weights import BrokenFile, read

MAX_TEXT = 4000
MAX_TAGS = 80
Family = Literal["", "sd1", "sd2", "sdxl", "sd3", "flux", "flux2", "chroma", "z-image", "qwen-image", "pixart", "sana"]
FAMILIES = {name: LABELS[name] for name in get_args(Family) if name}


@dataclass(frozen=True)
class Facts:
    """What a card shows of a file, in as few bytes as will do for thousands of them."""

    alias: str = ""
    """`ss_output_name`: what it was called when it was made."""
    title: str = ""
    family: str = ""
    """A key of FAMILIES; empty: unknown."""
    base: str = ""
    """What it was made for, in the file's own words."""
    trigger: str = ""
    description: str = ""
    author: str = ""
    licence: str = ""
    tags: Mapping[str, int] = field(default_factory=dict)
    """What its pictures' captions say, and how often."""
    hash: str = ""
    """`sshs_model_hash`, if the file brings it."""
    made: Mapping[str, str] = field(default_factory=dict)
    """How it was trained."""
    problem: str = ""
    """Why it cannot be used."""


def facts(path: Path) -> Facts:
    try:
        header = read(path)
    except BrokenFile as error:
        return Facts(problem=str(error))
    said = {key: text for key, text in header.metadata.items() if text != "None"}  # kohya's word for nothing
    base = said.get("modelspec.architecture") or said.get("ss_base_model_version") or said.get("ss_sd_model_name", "")
    return Facts(
        alias=_short(said.get("ss_output_name", ""), 200),
        title=_short(said.get("modelspec.title", ""), 200),
        family=family if (family := detect(header, path.name).family) in FAMILIES else "",
        base=_short(base, 100),
        trigger=_short(said.get("modelspec.trigger_phrase", ""), 500),
        description=_short(said.get("modelspec.description", "") or said.get("ss_training_comment", "")),
        author=_short(said.get("modelspec.author", ""), 200),
        licence=_short(said.get("modelspec.license", ""), 200),
        tags=_frequent(said.get("ss_tag_frequency", "")),
        hash=said.get("sshs_model_hash", "") if re.fullmatch("[0-9a-f]{64}", said.get("sshs_model_hash", "")) else "",
        made={label: _short(said[key], 100) for key, label in MADE.items() if said.get(key)},
        problem="" if header.shapes else "is empty",
    )


MADE = {
    "ss_network_module": "network",
    "ss_network_dim": "rank",
    "ss_network_alpha": "alpha",
    "ss_num_train_images": "images",
    "ss_steps": "steps",
    "ss_epoch": "epoch",
    "ss_learning_rate": "learning rate",
    "ss_optimizer": "optimizer",
    "ss_resolution": "resolution",
    "ss_sd_model_name": "base model",
    "modelspec.date": "date",
}
"""Metadata that people like to see, and what a card calls it."""


def family_named(text: str) -> str:
    """The family that A1111's sidecars call "SD1", "SD2", "SDXL"."""
    return next((name for name in FAMILIES if name.replace("-", "") == re.sub(r"[-_ ]", "", text.lower())), "")


def _frequent(text: str) -> dict[str, int]:
    """`ss_tag_frequency`: {"folder": {"tag": 3}}, summed up, the most frequent first."""
    counts: Counter[str] = Counter()
    try:
        for folder in json.loads(text or "{}").values():
            for tag, count in folder.items():
                counts[_short(str(tag).strip(), 100)] += int(count)
    except (ValueError, AttributeError, TypeError, RecursionError):
        return {}
    return {tag: count for tag, count in counts.most_common(MAX_TAGS) if tag}


def _short(text: Any, length: int = MAX_TEXT) -> str:
    return str(text)[:length].strip()
