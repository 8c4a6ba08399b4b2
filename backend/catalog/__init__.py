"""The models in the models folder, by name; no torch."""

import hashlib
import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from backend.catalog.detect import Detected, Kind, detect
from backend.catalog.model import Model
from backend.catalog.roots import Roots, roots_of
from backend.errors import NotFound

log = logging.getLogger(__name__)

__all__ = ["Catalog", "Detected", "Kind", "Model", "detect", "fingerprint"]

CHECKPOINT_FOLDERS = ("checkpoints", "diffusers")
PIPELINES = {
    "StableDiffusionPipeline": "sd1",
    "StableDiffusionInpaintPipeline": "sd1",
    "StableDiffusionXLPipeline": "sdxl",
    "StableDiffusionXLInpaintPipeline": "sdxl",
}
"""By the pipeline class that model_index.json names; Stable Diffusion 2 has the classes of 1 and wider text."""
SD2_TEXT_WIDTH = 1024


class Catalog:
    def __init__(self, models: Path | Roots, default: str = "") -> None:
        self.roots = roots_of(models)
        self.folder = self.roots.models
        self._default = default

    def models(self) -> list[Model]:
        """Every checkpoint, the broken ones too; the embedded starter model comes last."""
        return sorted(self._scan(), key=lambda m: (m.name == "starter", m.name.lower()))

    def find(self, name: str = "") -> Model:
        """The model of that name, the default one if it is empty. Raises NotFound."""
        models = self.models()
        wanted = name or self._default
        for model in models:
            if wanted in (model.name, model.title) or (not wanted and not model.problem):
                return model
        if not models:
            raise NotFound(f"there is no model in {self.folder}; the embedded one belongs into its folder starter")
        names = ", ".join(m.name for m in models[:10])
        raise NotFound(f"{wanted[:80]!r} is not a model here; there are {names}" if wanted else "no model is usable")

    def _scan(self) -> Iterator[Model]:
        roots = [self.folder / "starter"]
        for kind in CHECKPOINT_FOLDERS:
            if (self.folder / kind).is_dir():
                roots += [p for p in (self.folder / kind).iterdir() if p.is_dir()]
        for path in roots:
            if path.is_dir() and any(path.iterdir()):
                yield _read(path)


def fingerprint(path: Path) -> str:
    """SHA-256 of a file, or over the names and contents of the weights in a folder, in hexadecimal."""
    if path.is_file():
        with open(path, "rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()
    digest = hashlib.sha256()
    for file in sorted([*path.glob("*.safetensors"), *path.glob("*/*.safetensors")]):
        digest.update(str(file.relative_to(path).as_posix()).encode())
        with open(file, "rb") as stream:
            while block := stream.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()


def _read(path: Path) -> Model:
    problem, family = None, ""
    card: dict[str, Any] = {}
    try:
        index = json.loads((path / "model_index.json").read_text("utf-8"))
        if not isinstance(index, dict) or "_class_name" not in index:
            problem = "model_index.json does not name a pipeline"
        else:
            family = _family(path, str(index["_class_name"]))
        if (path / "atelier.json").exists():
            card = json.loads((path / "atelier.json").read_text("utf-8"))
    except FileNotFoundError:
        problem = "model_index.json is missing"
    except (OSError, ValueError) as error:
        problem = f"cannot be read: {error}"
    examples = tuple(card.get("examples", ()))
    return Model(path.name, path, card.get("title", path.name), card.get("defaults", {}), problem, examples, family)


def _family(path: Path, pipeline: str) -> str:
    family = PIPELINES.get(pipeline, "")
    if family != "sd1":
        return family
    try:
        unet = json.loads((path / "unet" / "config.json").read_text("utf-8"))
        return "sd2" if unet["cross_attention_dim"] == SD2_TEXT_WIDTH else family
    except (OSError, ValueError, KeyError, TypeError):  # loading it says what is wrong
        return ""
