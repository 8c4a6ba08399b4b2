"""What people say of a model in files beside it: ours, A1111's, Civitai's.

`cat.safetensors` may have `cat.atelier.json` (title, trigger, notes, description, defaults, examples), `cat.json` as
A1111 writes it, `cat.civitai.info` as its helpers fetch it, `cat.yaml` (the configuration of its authors),
`cat.sha256`, and a picture.
"""

import json
import logging
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

log = logging.getLogger(__name__)

MAX_BYTES = 2**20
MAX_TEXT = 4000


def read(beside: Mapping[str, Path]) -> dict[str, Any]:
    """Fields of `Model`; where two files say something, the one that comes first in `_LOOKS` is believed."""
    said: dict[str, Any] = {}
    for ending, look in _LOOKS.items():
        if ending in beside:
            said = {**{name: value for name, value in look(_text(beside[ending])).items() if value}, **said}
    return said


def card(path: Path) -> dict[str, Any]:
    """Of a folder: its `atelier.json`. Raises OSError, ValueError."""
    return _ours(path.read_text("utf-8-sig"))


def parse(text: str) -> Any:
    """JSON with whole characters alone (half of one is left where a text was cut), and numbers. Raises ValueError."""
    whole = json.dumps(json.loads(text), ensure_ascii=False, allow_nan=False).encode("utf-8", "replace")
    return json.loads(whole)


def _text(path: Path) -> str:
    try:
        with open(path, encoding="utf-8-sig", errors="replace") as file:
            return file.read(MAX_BYTES)
    except OSError as error:
        log.warning("%s cannot be read: %s", path.name, error.strerror)
        return ""


def _ours(text: str) -> dict[str, Any]:
    content = parse(text)
    if not isinstance(content, dict):
        raise ValueError("atelier.json is no table")
    examples = content.get("examples")
    return {
        **{name: _short(content.get(name)) for name in ("title", "trigger", "notes", "description")},
        "variant": content["variant"] if content.get("variant") in ("plain", "edit") else "",
        "defaults": content["defaults"] if isinstance(content.get("defaults"), dict) else {},
        "examples": [each for each in examples if isinstance(each, str)] if isinstance(examples, list) else [],
    }


def _table(text: str) -> dict[str, Any]:
    try:
        content = parse(text)
    except (ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}


def _ours_or_nothing(text: str) -> dict[str, Any]:
    try:
        return _ours(text)
    except (ValueError, RecursionError):
        log.warning("an .atelier.json is no JSON table: %s", text[:40])
        return {}


def _a1111(text: str) -> dict[str, Any]:
    content = _table(text)
    return {
        "trigger": _short(content.get("activation text")),
        "notes": _short(content.get("notes")),
        "description": _short(content.get("description")),
        "vae": _short(content.get("vae")),
    }


def _civitai(text: str) -> dict[str, Any]:
    content = _table(text)
    words = content.get("trainedWords")
    files = content.get("files")
    hashes = [file.get("hashes") for file in files if isinstance(file, dict)] if isinstance(files, list) else []
    claimed = [str(h.get("SHA256", "")).lower() for h in hashes if isinstance(h, dict)]
    return {
        "trigger": ", ".join(map(_short, words)) if isinstance(words, list) else "",
        "description": _short(re.sub(r"<[^>]*>", " ", str(content.get("description") or ""))),
        "claimed": claimed[0] if len(claimed) == 1 else "",  # of several files, which one this is it does not say
    }


def _configuration(text: str) -> dict[str, Any]:
    """Only whether it predicts velocity: for Stable Diffusion 2 nothing else tells."""
    return {
        "prediction": "v_prediction" if re.search(r"^\s*parameterization:\s*[\"']?v\b", text, re.MULTILINE) else ""
    }


def _checksum(text: str) -> dict[str, Any]:
    found = re.match(r"\s*([0-9a-fA-F]{64})\b", text)
    return {"claimed": found[1].lower() if found else ""}


def _short(value: Any) -> str:
    return value[:MAX_TEXT].strip() if isinstance(value, str) else ""


_LOOKS: Mapping[str, Callable[[str], dict[str, Any]]] = {
    ".atelier.json": _ours_or_nothing,
    ".json": _a1111,
    ".civitai.info": _civitai,
    ".yaml": _configuration,
    ".sha256": _checksum,
}
