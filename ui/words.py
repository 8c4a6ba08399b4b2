"""The page's words in one language: our own, and those that extensions bring in `languages/<code>.json`."""

import json
import logging
from collections.abc import Iterable
from pathlib import Path

from ui.parts import STATIC

log = logging.getLogger(__name__)


def table(code: str, extensions: Iterable[Path]) -> dict[str, str] | None:
    """Every word by its key; None if there is no such language. `extensions` are their folders, named by their ids."""
    ours = STATIC / "languages" / f"{code}.json"
    if not code.isalpha() or not ours.is_file():
        return None
    words: dict[str, str] = {}
    for folder in extensions:
        words |= {_key(folder.name, key): word for key, word in _brought(folder / "languages" / ours.name).items()}
    words |= json.loads(ours.read_text("utf-8"))
    return words


def _brought(path: Path) -> dict[str, str]:
    """What an extension brings; nothing, and a line in the log, if that is no table of words."""
    if not path.is_file():
        return {}
    try:
        found = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        log.warning("the words in %s cannot be read: %s", path, error)
        return {}
    return {key: word for key, word in found.items() if isinstance(word, str)} if isinstance(found, dict) else {}


def _key(id: str, key: str) -> str:
    """`param.units.weight` of the extension controlnet is `param.controlnet.units.weight` among all words."""
    if key == "title":
        return f"extension.{id}"
    kind, _, rest = key.partition(".")
    return f"{kind}.{id}.{rest}" if rest and kind in ("param", "button") else f"{id}.{key}"
