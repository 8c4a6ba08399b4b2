"""Tiny decoders (TAESD and its kin): which file belongs to a family of models. No torch."""

import re
from collections.abc import Mapping
from pathlib import Path

from backend.catalog.roots import Roots

STEMS: Mapping[str, str] = {
    "sd1": "taesd",
    "sd2": "taesd",
    "sdxl": "taesdxl",
    "sdxl-refiner": "taesdxl",
    "sd3": "taesd3",
    "flux": "taef1",
    "chroma": "taef1",
    "z-image": "taef1",
}
"""What they are called, by the family whose latents they decode."""
FOLDERS = ("vae_approx", "tiny_vae")


def find(roots: Roots, family: str) -> Path | None:
    """A safetensors file, or a folder as diffusers saves one; None: there is none for this family."""
    stem = STEMS.get(family)
    if stem is None:
        return None
    places = [*(place.folder for place in roots.places("tiny_vae")), *(roots.models / name for name in FOLDERS)]
    for place in places:
        for path in sorted(place.glob("*")):
            whole = path.is_dir() and (path / "config.json").is_file()
            if re.fullmatch(f"{stem}([_-]decoder)?", path.stem.lower()) and (whole or path.suffix == ".safetensors"):
                return path
    return None


def missing(family: str) -> str:
    """Why there is none, and what helps."""
    if family not in STEMS:
        return "there is no tiny decoder for this family of models"
    return f"there is no tiny decoder for this model; put {STEMS[family]}_decoder.safetensors into models/{FOLDERS[0]}"
