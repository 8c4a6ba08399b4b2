r"""Prompts with choices in them: a linear scanner, and the choosing (the syntax is that of sd-dynamic-prompts).

    {a|b|c}     one of them         {2::a|b}    a twice as often as b        {a|{b|c}}   one inside another
    {2$$a|b|c}  two of them: a, c   {1-2$$a|b}  one or two; {-2$$ at most two, {2-$$ at least two
    {2$$ and $$a|b|c}  a and c      __name__    a line of a file, which may hold choices    {2$$__name__}  two lines

A backslash before `{`, `|`, `}` or `_` makes it an ordinary character; it stays in the prompt.
"""

import heapq
import random
import re
from bisect import bisect_right
from collections.abc import Iterable
from itertools import accumulate
from typing import NamedTuple

from backend.extension import MAX_PROMPT

from .files import Files

MAX_DEPTH = 30
"""Braces and files inside one another."""
MAX_CHOICES = 2000
"""Made for one prompt."""
_MARK = re.compile(r"\\.|[{|}]|__(?P<file>[\w./*-]{1,100}?)__", re.DOTALL)
_COUNT = re.compile(r"\s*(?=-?\d)(\d{0,2})(-?)(\d{0,2})\$\$")
_WEIGHT = re.compile(r"\s*(\d{1,6}(?:\.\d{1,6})?)::")


class Pick(NamedTuple):
    """So many of the options, put together; the name of a file stands for its lines."""

    options: "Options | str"
    low: int = 1
    high: int = 1
    separator: str = ", "


Parts = list[str | Pick]


class Options:
    """What is chosen from, each with its weight: pieces of a template, or lines that are not taken apart yet."""

    def __init__(self, weighted: Iterable[tuple[float, Parts | str]]) -> None:
        given = [(weight, value) for weight, value in weighted if weight]
        if not given:
            raise ValueError("there is nothing to choose from where every weight is 0")
        self.values = [value for _, value in given]
        self._weights = [weight for weight, _ in given]
        self._sums = list(accumulate(self._weights))

    def draw(self, count: int, chance: random.Random) -> list[Parts | str]:
        """`count` different ones, in any order. Of `random` only what stays the same in all versions of Python."""
        if count == 1:
            place = bisect_right(self._sums, chance.random() * self._sums[-1])
            return [self.values[min(place, len(self.values) - 1)]]
        keys = ((chance.random() ** (1 / weight), i) for i, weight in enumerate(self._weights))
        return [self.values[i] for _, i in heapq.nlargest(count, keys)]  # Efraimidis and Spirakis 2006


def parse(template: str) -> Parts:
    """Raises ValueError if a brace has no partner."""
    levels: list[list[Parts]] = [[[]]]  # the options of each brace that is open; at the bottom the whole text
    at = 0
    for mark in _MARK.finditer(template):
        levels[-1][-1].append(template[at : mark.start()])
        at = mark.end()
        inside = len(levels) > 1
        if mark["file"]:
            levels[-1][-1].append(Pick(mark["file"]))
        elif mark[0] == "{":
            if template[max(mark.start() - 1, 0)] == "$":
                raise ValueError("variables, ${...}, are not known here")
            if len(levels) > MAX_DEPTH:
                raise ValueError(f"there are more than {MAX_DEPTH} braces inside one another")
            levels.append([[]])
        elif mark[0] == "|" and inside:
            levels[-1].append([])
        elif mark[0] == "}" and inside:
            options = levels.pop()
            levels[-1][-1].append(_pick(options))
        elif mark[0] == "}":
            raise ValueError(f"a brace is closed that was never opened: {_near(template, mark.start())}")
        else:
            levels[-1][-1].append(mark[0])
    if len(levels) > 1:
        raise ValueError(f"a brace is never closed: {_near(template, len(template))}")
    levels[0][0].append(template[at:])
    return [part for part in levels[0][0] if part]


def _pick(options: list[Parts]) -> Pick:
    """The options between two braces; the first text of the first one may begin with their number."""
    low = high = 1
    separator = ", "
    first = str(options[0][0]) if options[0] and isinstance(options[0][0], str) else ""
    if count := _COUNT.match(first):
        first = first[count.end() :]
        low = int(count[1] or 1)
        high = int(count[3] or 99) if count[2] else low
        if "$$" in first:
            separator, _, first = first.partition("$$")
        options = [[first, *options[0][1:]], *options[1:]]
    said = [part for part in options[0] if not isinstance(part, str) or part.strip()]
    if len(options) == len(said) == 1 and isinstance(said[0], Pick) and isinstance(said[0].options, str):
        return Pick(said[0].options, low, high, separator)
    return Pick(Options(_weighted_parts(option) for option in options), low, max(low, high), separator)


def _weighted_parts(option: Parts) -> tuple[float, Parts]:
    if not option or not isinstance(option[0], str):
        return 1.0, option
    weight, text = weighted(option[0])
    return weight, [text, *option[1:]]


def weighted(text: str) -> tuple[float, str]:
    """`2::red` as 2 and `red`."""
    weight = _WEIGHT.match(text)
    return (float(weight[1]), text[weight.end() :]) if weight else (1.0, text)


def _near(template: str, at: int) -> str:
    return repr(template[max(at - 20, 0) : at + 20])


class Choices:
    """Makes the choices in templates; raises ValueError where it cannot."""

    def __init__(self, files: Files) -> None:
        self._files = files
        self._parsed: dict[str, Parts] = {}
        self._lines: dict[str, Options] = {}

    def made(self, template: str, seed: str) -> str:
        """The prompt that comes of a template: for the same seed and files always the same, and free of choices."""
        if not self._has_choices(template):
            return template
        prompt = _Making(self, random.Random(seed)).words(self.parts(template), ()).strip()
        if self._has_choices(prompt):
            raise ValueError(f"there are still choices in what was chosen: {prompt[:200]!r}")
        return prompt

    def parts(self, text: str) -> Parts:
        if text not in self._parsed:
            self._parsed[text] = parse(text)
        return self._parsed[text]

    def lines(self, name: str) -> Options:
        if name not in self._lines:
            self._lines[name] = Options(weighted(line) for line in self._files.lines(name))
        return self._lines[name]

    def _has_choices(self, text: str) -> bool:
        return any(isinstance(part, Pick) for part in self.parts(text))


class _Making:
    """One prompt in the making."""

    def __init__(self, choices: Choices, chance: random.Random) -> None:
        self._choices = choices
        self._chance = chance
        self._left = MAX_CHOICES

    def words(self, parts: Parts, trail: tuple[str, ...]) -> str:
        """`trail`: the files and braces that lead here."""
        if len(trail) > MAX_DEPTH:
            names = " -> ".join([name for name in trail if name][-4:])
            raise ValueError(f"there are more than {MAX_DEPTH} choices inside one another, as in {names}")
        text = "".join(part if isinstance(part, str) else self._picked(part, trail) for part in parts)
        if len(text) > MAX_PROMPT:
            raise ValueError(f"what comes of it has more than {MAX_PROMPT} characters")
        return text

    def _picked(self, pick: Pick, trail: tuple[str, ...]) -> str:
        name = pick.options if isinstance(pick.options, str) else ""
        options = self._choices.lines(name) if isinstance(pick.options, str) else pick.options
        high = min(pick.high, len(options.values))
        low = min(pick.low, high)
        count = low + int(self._chance.random() * (high - low + 1)) if low < high else low
        self._left -= 1 if count == 1 else count + len(options.values) // 1000
        if self._left < 0:
            raise ValueError(f"there are more than {MAX_CHOICES} choices to make")
        chosen = options.draw(count, self._chance)
        further = (*trail, f"__{name}__" if name else "")
        texts = (self._choices.parts(one) if isinstance(one, str) else one for one in chosen)
        return pick.separator.join(self.words(one, further) for one in texts)
