"""Models that write captions: folders in models/captioners, as Hugging Face has BLIP and Florence-2; no torch."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from backend.errors import NotFound

FOLDER = "captioners"
Kind = Literal["blip", "florence2"]
KINDS: dict[str, Kind] = {"blip": "blip", "florence2": "florence2"}
"""By the `model_type` of a config."""


@dataclass(frozen=True)
class Captioner:
    name: str
    """That of its folder."""
    folder: Path
    kind: Kind


def captioners(models: Path) -> list[Captioner]:
    """Those that can be used."""
    found = [(path.parent, _kind(path)) for path in sorted((models / FOLDER).glob("*/config.json"))]
    return [Captioner(folder.name, folder, kind) for folder, kind in found if kind]


def find(models: Path, name: str = "") -> Captioner:
    """The one of that name, or the first. Raises NotFound, which says what is missing where."""
    there = captioners(models)
    if not there:
        raise NotFound(
            "no captioner is here: put the folder of BLIP or Florence-2, with its config.json and safetensors, into"
            f" models/{FOLDER}"
        )
    for captioner in there:
        if captioner.name == name or not name:
            return captioner
    raise NotFound(f"{name[:40]!r} is not a captioner here; there are {', '.join(c.name for c in there)}")


def _kind(config: Path) -> Kind | None:
    try:
        return KINDS.get(json.loads(config.read_text("utf-8")).get("model_type", ""))
    except (OSError, ValueError, AttributeError):
        return None
