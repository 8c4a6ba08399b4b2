"""Weights by block of the UNet, as sd-webui-lora-block-weight's users write them: `lbw=1,0,0,0,1,1,...` or `lbw=OUTD`.

A list has 17 numbers (Stable Diffusion 1.x and 2.x, the blocks that have attention), 26 (all of its blocks), 12 (SDXL,
attention) or 20 (SDXL, all). The first is the text encoder's. Blocks that a list does not name get nothing; what lies
in no block, such as the time embedding, keeps its weight. Further presets stand in `models/loras/lbwpresets.txt`, one
a line: `NAME:1,0,0,...`.
"""

import math
from collections.abc import Mapping
from pathlib import Path

from backend.errors import gist

Presets = Mapping[str, str]
BASE, MIDDLE = "BASE", "M00"
FILE = "lbwpresets.txt"


def _ids(ins: range, outs: range, but: tuple[int, ...] = ()) -> tuple[str, ...]:
    return BASE, *(f"IN{n:02}" for n in ins if n not in but), MIDDLE, *(f"OUT{n:02}" for n in outs)


LISTS = {
    len(ids): ids
    for ids in (
        _ids(range(4, 9), range(6), but=(6,)),
        _ids(range(1, 9), range(3, 12), but=(3, 6)),
        _ids(range(9), range(9)),
        _ids(range(12), range(12)),
    )
}
"""The blocks that a list of so many numbers names."""


def _ones(*at: int) -> str:
    return ",".join("1" if n in at else "0" for n in range(17))


USUAL: Presets = {
    "NONE": _ones(),
    "ALL": _ones(*range(17)),
    "INS": _ones(*range(4)),
    "IND": _ones(0, *range(4, 7)),
    "INALL": _ones(*range(7)),
    "MIDD": _ones(0, *range(4, 12)),
    "OUTD": _ones(0, *range(8, 12)),
    "OUTS": _ones(0, *range(12, 17)),
    "OUTALL": _ones(0, *range(8, 17)),
    "ALL0.5": ",".join(["0.5"] * 17),
}


def presets(folder: Path) -> Presets:
    """The usual ones and those in the file of this folder."""
    try:
        lines = (folder / FILE).read_text("utf-8-sig").splitlines()[:1000]
    except FileNotFoundError:
        return USUAL
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{FILE} cannot be read: {gist(error)}") from None
    own = dict(line.split(":", 1) for line in lines if ":" in line and not line.startswith("#"))
    return {**USUAL, **{name.strip(): numbers.strip() for name, numbers in own.items()}}


def by_block(text: str, presets: Presets) -> Mapping[str, float]:
    """The factor of every block; raises ValueError."""
    numbers = presets.get(text.strip(), text).split(",")
    if len(numbers) == 1:
        raise ValueError(f"there is no preset {text.strip()[:40]!r} for lbw; there are {', '.join(presets)}")
    if len(numbers) not in LISTS:
        lengths = ", ".join(map(str, sorted(LISTS)))
        raise ValueError(f"lbw has {len(numbers)} numbers; there are lists of {lengths}")
    named = dict(zip(LISTS[len(numbers)], map(_factor, numbers), strict=True))
    return {block: named.get(block, 0.0) for block in LISTS[26]}


def block_of(ldm_name: str) -> str:
    """The block that a module of the UNet lies in, by its name in the original code; empty: in none."""
    kind, number, *_ = [*ldm_name.split("."), ""]
    if kind == "middle_block":
        return MIDDLE
    return {"input_blocks": f"IN{number:0>2}", "output_blocks": f"OUT{number:0>2}"}.get(kind, "")


def _factor(text: str) -> float:
    try:
        factor = float(text)
    except ValueError:
        hint = "; random ones are not taken" if text.strip() in ("R", "U", "X") else ""
        raise ValueError(f"lbw has {text.strip()[:40]!r}, which is not a number{hint}") from None
    if not math.isfinite(factor):
        raise ValueError(f"lbw has {text.strip()[:40]}, which is not a number")
    return factor
