"""The prompt language: pure text, no torch. One entrance: `parse`."""

import re
from typing import NamedTuple


class Tag(NamedTuple):
    """`<kind:name:more>`; read by the extension that declares `prompt_tag = kind`."""

    kind: str
    arguments: tuple[str, ...]


class Prompt(NamedTuple):
    text: str
    """What the text encoder is given."""
    tags: tuple[Tag, ...]


_TAG = re.compile(r"<(\w+):([^<>]+)>")


def parse(prompt: str) -> Prompt:
    """Cut the tags out of a prompt (A1111 `extra_networks.parse_prompts`: of whatever kind, known or not)."""
    tags = tuple(Tag(kind.lower(), tuple(rest.split(":"))) for kind, rest in _TAG.findall(prompt))
    return Prompt(_TAG.sub("", prompt), tags)
