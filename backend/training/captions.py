"""Editing many captions at once: pure text."""

import math
import re
import time
from typing import Annotated, Literal

import regex
from pydantic import BaseModel, ConfigDict, StringConstraints, model_validator

from backend.errors import InvalidRequest, Problem

MAX_CAPTION = 4000
TIME = 2.0
"""Seconds that a pattern may take over all captions: a bad one would otherwise take for ever."""
REPEATS = 100_000
"""Times that a pattern may say that something comes: each is written down when it is read, and takes memory."""
Text = Annotated[str, StringConstraints(max_length=500)]


class Edit(BaseModel):
    """`prefix` and `suffix` put `text` at an end, `set` in place of all; `remove` and `rename` are about the tag
    `find`, what stands between two commas; `replace` is about `find` wherever it is."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: Literal["prefix", "suffix", "set", "replace", "remove", "rename"]
    text: Text = ""
    find: Text = ""
    regex: bool = False
    """`find` is a regular expression, and `text` may hold \\1."""
    case: bool = False
    """Capital and small letters differ."""

    @model_validator(mode="after")
    def _says_what(self) -> "Edit":
        if self.kind in ("replace", "remove", "rename") and not self.find.strip():
            raise ValueError("say what to look for (find)")
        if self.kind in ("prefix", "suffix") and not self.text.strip():
            raise ValueError("say what to add (text)")
        return self


def edited(captions: dict[str, str], edit: Edit) -> dict[str, str]:
    """Those that change, by the same keys. Raises InvalidRequest for a pattern that is none or takes too long."""
    found = {key: tidy(text) for key, text in _applied(captions, edit).items()}
    return {key: text for key, text in found.items() if text != captions[key]}


def tidy(caption: str) -> str:
    """On one line, no spaces around. Raises InvalidRequest if it is too long, or can be written nowhere."""
    caption = " ".join(caption.split())
    try:
        caption.encode()
    except UnicodeEncodeError as error:
        raise InvalidRequest(Problem("caption", f"holds half a character at {error.start}")) from None
    if len(caption) > MAX_CAPTION:
        raise InvalidRequest(Problem("caption", f"has {len(caption)} characters; at most {MAX_CAPTION} are kept"))
    return caption


def tags(caption: str) -> list[str]:
    """What stands between its commas."""
    return [tag.strip() for tag in caption.split(",") if tag.strip()]


def _applied(captions: dict[str, str], edit: Edit) -> dict[str, str]:
    match edit.kind:
        case "replace":
            return _replaced(captions, edit)
        case "set":
            return dict.fromkeys(captions, edit.text)
        case "prefix":
            return {key: _joined(edit.text, text) for key, text in captions.items()}
        case "suffix":
            return {key: _joined(text, edit.text) for key, text in captions.items()}
        case _:
            return {key: _retagged(text, edit) for key, text in captions.items()}


def _joined(first: str, second: str) -> str:
    """With a comma between them, unless one brings its own or a space."""
    if not first.strip() or not second.strip():
        return f"{first}{second}"
    between = "" if re.search(r"[\s,]$", first) or re.match(r"[\s,]", second) else ", "
    return f"{first}{between}{second}"


def _retagged(caption: str, edit: Edit) -> str:
    """The tag `find` by the name `text`, or gone; a caption without it stays as it is."""
    known = tags(caption)
    is_it = [_folded(tag, edit) == _folded(edit.find.strip(), edit) for tag in known]
    if not any(is_it):
        return caption
    new = edit.text.strip() if edit.kind == "rename" else ""
    renamed = [new if same else tag for tag, same in zip(known, is_it, strict=True)]
    return ", ".join(dict.fromkeys(filter(None, renamed)))


def _folded(text: str, edit: Edit) -> str:
    return text if edit.case else text.casefold()


def _replaced(captions: dict[str, str], edit: Edit) -> dict[str, str]:
    source = edit.find if edit.regex else regex.escape(edit.find)
    if edit.regex and (times := _repeats(source)) > REPEATS:
        raise InvalidRequest(Problem("find", f"repeats something {times} times; at most {REPEATS} can be"))
    by = edit.text if edit.regex else edit.text.replace("\\", r"\\")
    left = TIME
    found: dict[str, str] = {}
    try:
        pattern = regex.compile(source, 0 if edit.case else regex.IGNORECASE)
        for key, text in captions.items():
            began = time.monotonic()
            found[key] = pattern.sub(by, text, timeout=left, concurrent=True)
            left = max(left - (time.monotonic() - began), 0.001)
    except TimeoutError:
        message = f"takes longer than {TIME:g} seconds; a simpler pattern, without + or * inside one another, does not"
        raise InvalidRequest(Problem("find", message)) from None
    except (regex.error, IndexError, RecursionError, MemoryError, OverflowError) as error:
        raise InvalidRequest(Problem("find", f"is no regular expression that can be used: {error}")) from None
    return found


def _repeats(pattern: str) -> int:
    """At most so many times, by its numbers in braces, as if all were inside one another."""
    counts = (re.findall(r"\d+", braces) for braces in re.findall(r"\{[\d,\s]+\}", pattern))
    return math.prod(max([1, *map(int, numbers)]) for numbers in counts)
