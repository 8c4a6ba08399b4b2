"""The tag: `<lora:name:te:unet>`, and what is written behind it as `key=value`.

<lora:cat:0.8>                          text encoder and UNet
<lora:cat:0.5:0.8>                      the one, the other; a third number is the rank to use
<lora:cat:te=0:unet=0.8:dyn=4>          the same by name
<lora:cat:0.8:lbw=OUTD>                 by blocks of the UNet, see backend/lora/blocks.py
<lora:cat:0.8:start=5:stop=0.5>         from the sixth step to the middle; step=5-10 is both
"""

import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import NamedTuple

from backend.lora.blocks import Presets, by_block

NAMED = ("te", "unet", "dyn", "lbw", "start", "stop", "step", "x")
LARGEST = 100.0
_TAG = re.compile(r"<(lora|lyco):([^<>]+)>", re.IGNORECASE)


class Moment(NamedTuple):
    """A number of steps, or a share of them all."""

    value: float
    is_share: bool = False

    def calls(self, calls: int, order: int) -> float:
        """How many of the model's calls have been made then; `order` of them are a step."""
        return self.value * calls if self.is_share else self.value * order


class Use(NamedTuple):
    """A file, and how it takes part."""

    name: str
    te: float = 1.0
    unet: float = 1.0
    rank: int | None = None
    """Of it, only so much is used; None: all."""
    blocks: Mapping[str, float] = MappingProxyType({})
    """Factors by block (blocks.py); a block that is not here has the factor 1."""
    start: Moment | None = None
    stop: Moment | None = None

    def is_on(self, call: int, calls: int, order: int) -> bool:
        """Whether it acts on the UNet in a call of the model, 0 .. calls - 1."""
        since = self.start is None or call >= self.start.calls(calls, order)
        return since and (self.stop is None or call < self.stop.calls(calls, order))


def in_prompt(prompt: str) -> Iterator[tuple[str, ...]]:
    """The parts of each tag in a prompt, the name first."""
    for _, rest in _TAG.findall(prompt):
        yield tuple(rest.split(":"))


def renamed(prompt: str, name: Callable[[str], str]) -> str:
    """The prompt with `name(name)` as the name in each tag."""

    def put(match: re.Match[str]) -> str:
        kind, rest = match.groups()
        first, *others = rest.split(":")
        new = name(named(first))
        return match[0] if new == named(first) else f"<{kind}:{':'.join((new, *others))}>"

    return _TAG.sub(put, prompt)


def named(part: str) -> str:
    """A name as it stands in a tag, without quotes and without the file's ending."""
    return part.strip().strip('"').strip().removesuffix(".safetensors")


def parse(parts: Sequence[str], presets: Presets) -> Use:
    """Raises ValueError, with the tag in it."""
    try:
        return _parse(parts, presets)
    except ValueError as error:
        raise ValueError(f"<lora:{':'.join(parts)[:80]}>: {error}") from None


def _parse(parts: Sequence[str], presets: Presets) -> Use:
    first, *others = parts
    given = {key.strip(): value for key, equals, value in (part.partition("=") for part in others) if equals}
    if unknown := [key for key in given if key not in NAMED]:
        raise ValueError(f"{unknown[0]}= is not known; there are {', '.join(f'{key}=' for key in NAMED[:-1])}")
    numbers = [part.strip() for part in others if "=" not in part]
    if numbers and "lbw" not in given and _names_blocks(numbers[-1], presets):
        given["lbw"] = numbers.pop()  # as it was written before there was lbw=
    if len(numbers) > 3:
        raise ValueError(f"{numbers[3]!r} is one number too many: text encoder, UNet and rank are three")
    te = _number(given.get("te", numbers[0] if numbers else "1"), "the weight")
    unet = _number(given.get("unet", given.get("x", numbers[1] if len(numbers) > 1 else str(te))), "the weight")
    rank = given.get("dyn", numbers[2] if len(numbers) > 2 else "")
    start, stop = _span(given)
    blocks = by_block(given["lbw"], presets) if "lbw" in given else {}
    return Use(named(first), te, unet, _rank(rank) if rank else None, blocks, start, stop)


def _names_blocks(text: str, presets: Presets) -> bool:
    return text in presets or text.count(",") > 5


def _number(text: str, what: str) -> float:
    try:
        number = float(text)
    except ValueError:
        raise ValueError(f"{what} {text.strip()[:40]!r} is not a number") from None
    if not math.isfinite(number) or abs(number) > LARGEST:
        raise ValueError(f"{what} {text.strip()[:40]} is not between -{LARGEST:g} and {LARGEST:g}")
    return number


def _rank(text: str) -> int:
    if not text.strip().isdecimal() or int(text) < 1:
        raise ValueError(f"the rank {text.strip()[:40]!r} is not a whole number from 1 on")
    return int(text)


def _span(given: Mapping[str, str]) -> tuple[Moment | None, Moment | None]:
    start, stop = given.get("start"), given.get("stop")
    if "step" in given:
        start, dash, stop = given["step"].partition("-")
        if not dash:
            raise ValueError(f"step={given['step'][:40]} should be like step=5-10")
    return (_moment(start) if start else None), (_moment(stop) if stop else None)


def _moment(text: str) -> Moment:
    """ "5": after five steps; "0.5": half-way."""
    number = _number(text, "the step")
    is_share = "." in text
    if number < 0 or (is_share and number > 1):
        raise ValueError(f"the step {text.strip()[:40]} is neither a whole number from 0 on nor between 0.0 and 1.0")
    return Moment(number, is_share)
