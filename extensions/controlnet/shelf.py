"""The control models in the models folder, by name; no torch.

A file's name is its stem and eight digits of its hash, `control_v11p_sd15_canny [d14c016b]`: those that A1111 shows.
"""

from __future__ import annotations

import difflib
import json
import os
import re
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

from backend.catalog.hashes import old_hash
from backend.catalog.roots import STARTER, Roots

FOLDER = "controlnet"
UNSAFE = (".pt", ".pth", ".ckpt", ".bin")
"""Endings of pickles: reading one can run code."""
WEIGHTS = ("diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.fp16.safetensors")


class Net(NamedTuple):
    stem: str
    path: Path
    """A .safetensors file, or a folder as diffusers saves it."""
    weights: Path
    """The file that is hashed."""

    @property
    def name(self) -> str:
        stat = self.weights.stat()
        return f"{self.stem} [{_hash(self.weights, stat.st_mtime_ns, stat.st_size)}]"

    @property
    def is_starter(self) -> bool:
        return self.stem.startswith(f"{STARTER}_")


def nets(roots: Roots) -> list[Net]:
    """Those in models/controlnet and in the folders for them elsewhere, then the starter model's."""
    found: list[Net] = []
    for place in roots.places("controlnet"):
        front = f"{STARTER}_" if place.root == STARTER else ""
        here = (net._replace(stem=front + net.stem) for net in _within(place.folder))
        found += sorted(here, key=lambda net: (net.stem.lower(), net.path))
    return found


def find(roots: Roots, name: str, checkpoint: str = "") -> Net:
    """The control model that `name` means, as sd-webui-controlnet finds it: by its whole name, its stem, or the
    shortest stem that holds `name`. Parts of a name mean the starter model's own only with that checkpoint, or if
    nothing else has them. Raises ValueError, which names the nearest.
    """
    known = nets(roots)
    wanted = re.sub(r" \[[0-9a-f]{8,}\]$", "", name).lower()
    for net in known:
        if net.name == name:
            return net
    for net in known:
        if net.stem.lower() == wanted:
            return net
    with_starter = checkpoint == STARTER
    holding = [net for net in known if wanted in net.stem.lower()]
    if holding:
        return min(holding, key=lambda net: (net.is_starter != with_starter, len(net.stem)))
    raise ValueError(_missing(roots, name, wanted, known))


def _within(folder: Path) -> Iterator[Net]:
    seen: set[str] = set()
    for home, folders, files in os.walk(folder, followlinks=True):
        real = os.path.realpath(home)
        if real in seen:
            folders.clear()
            continue
        seen.add(real)
        here = Path(home)
        if "config.json" in files and (weights := _weights(here, files)):
            folders.clear()
            yield Net(here.name, here, weights)
            continue
        yield from (Net(file[:-12], here / file, here / file) for file in files if file.endswith(".safetensors"))


def _weights(folder: Path, files: list[str]) -> Path | None:
    shards = sorted(f for f in files if re.fullmatch(r"diffusion_pytorch_model.*\.safetensors", f))
    found = next((name for name in WEIGHTS if name in files), shards[0] if shards else None)
    return folder / found if found else None


def _missing(roots: Roots, name: str, wanted: str, known: list[Net]) -> str:
    for path in (path for place in roots.places("controlnet") for path in place.folder.rglob("*")):
        if path.suffix in UNSAFE and (wanted in path.stem.lower() or path.stem.lower() in wanted):
            return f"{path.name} is a pickle, which can run code when it is read: convert it to .safetensors"
    if not known:
        return f"there is no control model here: put .safetensors files into {FOLDER} in the models folder"
    stems = {net.stem.lower(): net for net in known}
    near = [stems[stem] for stem in difflib.get_close_matches(wanted, stems, 3, cutoff=0.3)] or known[:3]
    return f"{name[:80]!r} is not a control model here; near are {', '.join(net.name for net in near)}"


@lru_cache(maxsize=1024)
def _hash(path: Path, modified: int, size: int) -> str:
    """Read once while the file stays what it is."""
    return old_hash(path)


def about(folder: Path) -> str:
    """The class that a folder's config.json names; empty if it does not say."""
    try:
        config = json.loads((folder / "config.json").read_text("utf-8"))
    except (OSError, ValueError):
        return ""
    return str(config.get("_class_name", "")) if isinstance(config, dict) else ""
