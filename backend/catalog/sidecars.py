"""What people say of a model in files beside it: ours, A1111's, Civitai's.

`cat.safetensors` may have `cat.atelier.json` (title, trigger, notes, description, defaults, examples), `cat.json` as
A1111 writes it, `cat.civitai.info` as its helpers fetch it, `cat.yaml` (the configuration of its authors),
`cat.sha256`, and a picture.
"""

import json
import logging
import re
import stat
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

log = logging.getLogger(__name__)

CARD = ".atelier.json"
MAX_BYTES = 2**20
MAX_TEXT = 4000


def read(beside: Mapping[str, Path]) -> dict[str, Any]:
    """Fields of `Model`; our card is believed first, then the one that comes first in `_LOOKS`."""
    said = told(beside[CARD]) if CARD in beside else {}
    for ending, look in _LOOKS.items():
        if ending in beside:
            said = {**{name: value for name, value in look(_text(beside[ending])).items() if value}, **said}
    return said


def card_of(model: Path) -> Path:
    """Where the card of a file or folder lies, or would."""
    return model / "atelier.json" if model.is_dir() else model.with_suffix(CARD)


def told(path: Path) -> dict[str, Any]:
    """Fields of `Model`, by a card."""
    try:
        content = card(path)
    except ValueError as error:
        return {"card_problem": f"its card, {path.name}, {error}"}
    examples = content.get("examples")
    said = {
        **{name: _short(content.get(name)) for name in ("title", "trigger", "notes", "description")},
        "variant": content["variant"] if content.get("variant") in ("plain", "edit") else "",
        "defaults": content["defaults"] if isinstance(content.get("defaults"), dict) else {},
        "examples": [each for each in examples if isinstance(each, str)] if isinstance(examples, list) else [],
    }
    return {name: value for name, value in said.items() if value}


def card(path: Path) -> dict[str, Any]:
    """The table that a card holds; empty: there is none. Raises ValueError, with a sentence that follows its name."""
    try:
        about = path.stat()
        if not stat.S_ISREG(about.st_mode) or about.st_size > MAX_BYTES:
            raise ValueError("is no file, or too large a one")
        data = path.read_bytes()
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise ValueError(f"cannot be read: {error.strerror}") from None
    try:
        content = parse(data.decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"is no JSON: {error}") from None
    if not isinstance(content, dict):
        raise ValueError("is no JSON table")
    return content


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


def _table(text: str) -> dict[str, Any]:
    try:
        content = parse(text)
    except (ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}


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
    ".json": _a1111,
    ".civitai.info": _civitai,
    ".yaml": _configuration,
    ".sha256": _checksum,
}
