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
_ALIASES = {"lyco": "lora"}
"""Kinds that mean another (A1111: LyCORIS files were an extension's once)."""


def parse(prompt: str) -> Prompt:
    """Cut the tags out of a prompt (A1111 `extra_networks.parse_prompts`: of whatever kind, known or not)."""
    tags = tuple(Tag(_kind(name), tuple(rest.split(":"))) for name, rest in _TAG.findall(prompt))
    return Prompt(_TAG.sub("", prompt), tags)


def _kind(name: str) -> str:
    return _ALIASES.get(name.lower(), name.lower())
