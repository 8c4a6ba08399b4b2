"""What a LoRA's file says of itself in its header. No tensor is read."""

import hashlib
import json
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from backend.weights import BrokenFile, Header, read

MAX_TEXT = 4000
MAX_TAGS = 80
Family = Literal["", "sd1", "sd2", "sdxl", "sd3", "flux", "flux2", "chroma", "z-image", "qwen-image", "pixart", "sana"]
FAMILIES = {
    "sd1": "SD 1.x",
    "sd2": "SD 2.x",
    "sdxl": "SDXL",
    "sd3": "SD 3",
    "flux": "Flux",
    "flux2": "Flux 2",
    "chroma": "Chroma",
    "z-image": "Z-Image",
    "qwen-image": "Qwen-Image",
    "pixart": "PixArt",
    "sana": "Sana",
}
_WIDTHS = {768: "sd1", 1024: "sd2", 2048: "sdxl"}
"""How wide the text is that the UNet's cross attention reads."""
FLUX_WIDTH = 3072
"""Of its tokens; those of Stable Diffusion 3 are narrower."""
_SIGNS = (
    ("flux2", r"to_qkv_mlp_proj|stream_modulation|ff(_context)?[._]linear_(in|out)"),
    ("chroma", r"distilled_guidance_layer"),
    ("z-image", r"(layers|noise_refiner|context_refiner)[._]\d+[._](attention[._](to_|qkv|out)|feed_forward[._]w\d)"),
    ("qwen-image", r"transformer_blocks[._]\d+[._](img|txt)_(mlp|mod)[._]"),
    ("sana", r"[._]conv_(inverted|point)\b"),
)
"""Modules that one family has and no other."""
ALIKE: Mapping[str, tuple[str, ...]] = {"flux": ("flux2", "chroma", "qwen-image"), "sd3": ("qwen-image",)}
"""Families whose modules may be called as those of another: sizes tell, once the file is read."""
_NAMES = (
    ("flux2", r"flux[._ -]?2"),
    ("chroma", r"chroma"),
    ("z-image", r"z[-_ ]?image"),
    ("qwen-image", r"qwen[-_ ]?image"),
    ("pixart", r"pixart"),
    ("sana", r"\bsana"),
    ("flux", r"flux"),
    ("sd3", r"sd3|stable-diffusion-3|sd_3"),
    ("sdxl", r"sdxl|stable-diffusion-xl|sd_xl|\bxl\b|pony|illustrious"),
    ("sd2", r"sd_?v?2|stable-diffusion-v2|sd 2"),
    ("sd1", r"sd_?v?1|stable-diffusion-v1|sd 1"),
)


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
        family=family_of(header),
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


def family_of(header: Header) -> str:
    """By the shapes of its tensors, which cannot err, else by what it says; empty: unknown."""
    for family, pattern in _SIGNS:
        if any(re.search(pattern, key) for key in header.shapes):
            return family
    if any(re.search(r"(double|single)_blocks|single_transformer_blocks", key) for key in header.shapes):
        said = _said(header.metadata)
        return said if said in ALIKE["flux"] else "flux"
    for key, shape in header.shapes.items():
        if re.search(r"joint_blocks|attn_add|add_k_proj", key):
            return "flux" if _width(key, shape, header.shapes) == FLUX_WIDTH else "sd3"
        if re.search(r"attn2[._](processor[._])?to_[kv]\b|attn2[._](processor[._])?to_[kv]_lora", key):
            width = _width(key, shape, header.shapes)
            if width in _WIDTHS:
                return _WIDTHS[width]
    if any(re.match(r"lora_te2_|text_encoder_2\.", key) for key in header.shapes):
        return "sdxl"
    return _said(header.metadata)


def _said(said: Mapping[str, str]) -> str:
    """The family that its own words name."""
    words = (said.get(key, "") for key in ("modelspec.architecture", "ss_base_model_version", "sd version"))
    for word in filter(None, words):
        for family, pattern in _NAMES:
            if re.search(pattern, word.lower()):
                return family
    return ""


def family_named(text: str) -> str:
    """The family that A1111's sidecars call "SD1", "SD2", "SDXL"."""
    return next((name for name in FAMILIES if name.replace("-", "") == re.sub(r"[-_ ]", "", text.lower())), "")


def _width(key: str, shape: tuple[int, ...], shapes: Mapping[str, tuple[int, ...]]) -> int:
    """How many numbers go into the module, if the tensor `key` tells."""
    if re.search(r"down\.weight$|lora_A\.(\w+\.)?weight$|hada_w1_b$", key) and len(shape) > 1:
        return shape[1]
    if key.endswith(".diff") and len(shape) == 2:
        return shape[1]
    if match := re.fullmatch(r"(.*\.)lokr_w(1|1_b)", key):
        second = shapes.get(f"{match[1]}lokr_w2") or shapes.get(f"{match[1]}lokr_w2_b") or (0, 0)
        return shape[1] * second[1] if len(shape) == 2 and len(second) > 1 else 0
    return 0


def data_hash(path: Path, start: int) -> str:
    """SHA-256 of the tensors' bytes, hexadecimal: what A1111 and Civitai (AutoV3) know a LoRA by."""
    with open(path, "rb") as file:
        file.seek(start)
        return hashlib.file_digest(file, "sha256").hexdigest()


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
