"""A request as the text that A1111 keeps in its pictures, and back.

    a red circle
    Negative prompt: blurry
    Steps: 20, Sampler: DPM++ 2M, Schedule type: Automatic, CFG scale: 7, Seed: 1, Size: 512x512, Model: starter

The last line is a list of `key: value`; a value that holds a comma, a colon or a line break, or begins with a quote
or a blank, is written as a JSON string. The reader takes any order of keys, keeps what it does not know, and treats a
last line with fewer than three pairs as prompt (A1111 `infotext_utils.parse_generation_parameters`).
"""

import json
import re
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

from PIL import Image

from backend import __version__
from backend.params import Params
from backend.request import GenerationRequest

# a key is looked for only where one can begin, and never shorter: a text without one would take for ever
_PAIR = re.compile(r'(?<![\w \-/])[ \-/]*+(\w[\w \-/]++):\s*("(?:\\.|[^\\"])+"|[^,]*)(?:,|$)')
_ORDER = (
    "Steps",
    "Sampler",
    "Schedule type",
    "CFG scale",
    "Distilled CFG Scale",
    "Image CFG scale",
    "Seed",
    "Size",
    "Model hash",
    "Model",
    "VAE hash",
    "VAE",
    "Denoising strength",
    "Clip skip",
    "VAE Decoder",
    "Init image hash",
)
_UNSAID = {"Clip skip": "1", "Distilled CFG Scale": "3.5", "Image CFG scale": "1.5", "VAE Decoder": "Full"}
MAX_TEXT = 1_000_000


class Recall(NamedTuple):
    """What a picture's text says."""

    values: dict[str, Any]
    """Fields of GenerationRequest, not yet validated."""
    fields: dict[str, str]
    """Every key of the text, as it stands."""


def write(
    request: GenerationRequest, model_hash: str | None = None, notes: Mapping[str, str] = MappingProxyType({})
) -> str:
    """The text for one picture of `request`; `model_hash` is the SHA-256 of the model, `notes` are further keys."""
    fields = request.to_infotext() | {"Size": f"{request.width}x{request.height}"}
    if model_hash:
        fields["Model hash"] = model_hash[:10]
    if request.init_image:
        fields["Init image hash"] = request.init_image
    for params in request.extensions.values():
        fields |= params.to_infotext()
    fields |= notes
    fields = {key: fields[key] for key in sorted(fields, key=_rank) if _UNSAID.get(key) != fields[key] != ""}
    fields["Version"] = f"Atelier {__version__}"
    lines = [request.prompt]
    if request.negative_prompt:
        lines.append(f"Negative prompt: {request.negative_prompt}")
    lines.append(", ".join(f"{key}: {_quoted(value)}" for key, value in fields.items()))
    return "\n".join(lines).strip()


def read(text: str, extensions: Mapping[str, type[Params]] | None = None) -> Recall:
    """The values in a picture's text; what is missing is left out, so that defaults stay defaults."""
    *lines, last = text[:MAX_TEXT].strip().split("\n")
    pairs = _PAIR.findall(last)
    if len(pairs) < 3:
        lines, pairs = [*lines, last], []
    fields = {key: _unquoted(value) for key, value in pairs if value.strip()}
    prompt, negative = _split_prompts(lines)
    values: dict[str, Any] = {"prompt": prompt, "negative_prompt": negative}
    values |= GenerationRequest.from_infotext(fields)
    if size := re.fullmatch(r"(\d+)x(\d+)", fields.get("Size", "")):
        values |= {"width": size[1], "height": size[2]}
    if re.fullmatch(r"[0-9a-f]{64}", fields.get("Init image hash", "")):
        values["init_image"] = fields["Init image hash"]
    else:  # only an image to start from gives these a meaning
        values.pop("denoising_strength", None)
        values.pop("resize_mode", None)
    found = {name: params.from_infotext(fields) for name, params in (extensions or {}).items()}
    if found := {name: given for name, given in found.items() if given}:
        values["extensions"] = found
    return Recall(values, fields)


def of_picture(picture: Image.Image) -> str | None:
    """The text in a PNG's `parameters` chunk, or in the EXIF comment of a JPEG or WebP; None if there is none."""
    comment = picture.getexif().get_ifd(0x8769).get(0x9286)
    if isinstance(comment, bytes) and comment.startswith(b"UNICODE\0"):
        return comment[8:].decode("utf-16-be", "replace")
    text = picture.info.get("parameters")
    return text if isinstance(text, str) else None


def _rank(key: str) -> int:
    return _ORDER.index(key) if key in _ORDER else len(_ORDER)


def _quoted(value: str) -> str:
    return json.dumps(value, ensure_ascii=False) if re.search(r"[,:\n]|^[\"\s]|\s$", value) else value


def _unquoted(value: str) -> str:
    value = value.strip()
    if len(value) > 1 and value[0] == value[-1] == '"':
        try:
            return str(json.loads(value))
        except ValueError:
            return value
    return value


def _split_prompts(lines: list[str]) -> tuple[str, str]:
    for i, line in enumerate(lines):
        if line.strip().startswith("Negative prompt:"):
            negative = [line.strip().removeprefix("Negative prompt:"), *lines[i + 1 :]]
            return "\n".join(lines[:i]).strip(), "\n".join(negative).strip()
    return "\n".join(lines).strip(), ""
