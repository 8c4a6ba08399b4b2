"""Is a model's file whole, and is it the one that it is said to be?"""

from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path

import numpy as np

from backend import gguf, weights
from backend.catalog.model import Model
from backend.consents import is_pickle
from backend.weights import BrokenFile, Header

_EXPONENTS = {
    "F64": ("<u8", 0x7FF0_0000_0000_0000),
    "F32": ("<u4", 0x7F80_0000),
    "F16": ("<u2", 0x7C00),
    "BF16": ("<u2", 0x7F80),
}
"""How a number is read, and the bits that are all set where it is none, or infinite."""
_BLOCK = 1 << 22
"""Numbers that are looked at together."""


def verify(model: Model, fingerprint: Callable[[Path], str], *, numbers: bool = False) -> Iterator[str]:
    """What is wrong, each in a sentence that follows the name; `numbers` looks at every weight too."""
    if model.problem:
        yield model.problem
        return
    if model.kind == "annotator" or is_pickle(model.path):
        files = []
    else:
        files = sorted(model.path.rglob("*.safetensors")) if model.path.is_dir() else [model.path]
    for file in files:
        where = "" if file == model.path else f"{file.relative_to(model.path).as_posix()}: "
        try:
            for problem in _wrong(file, numbers):
                yield where + problem
        except BrokenFile as error:
            yield f"{where}{error}"
    if model.claimed and not model.path.is_dir() and (found := fingerprint(model.path)) != model.claimed:
        yield f"is another file than the one beside it says: its SHA-256 is {found}, not {model.claimed}"


def _wrong(file: Path, numbers: bool) -> Iterator[str]:
    if file.suffix.lower() == ".gguf":
        gguf.read(file)
        return
    header = weights.read(file)
    placed = sorted((entry.begin, entry.end, key) for key, entry in header.entries.items())
    yield from (f"{b[2]} overlaps {a[2]}" for a, b in pairwise(placed) if b[0] < a[1])
    behind = file.stat().st_size - header.size
    if behind:
        yield f"has {behind} bytes that belong to nothing"
    for key in ("modelspec.hash_sha256", "sshs_model_hash"):
        claimed = header.metadata.get(key, "").lower().removeprefix("0x")
        if len(claimed) == 64 and (found := weights.data_hash(file, header.start)) != claimed:
            yield f"is not what it was when it was made: the SHA-256 of its tensors is {found}, not {claimed} ({key})"
    if numbers:
        yield from _no_numbers(file, header)


def _no_numbers(file: Path, header: Header) -> Iterator[str]:
    for key, entry in header.entries.items():
        if entry.dtype not in _EXPONENTS or entry.end == entry.begin:
            continue
        dtype, mask = _EXPONENTS[entry.dtype]
        count = (entry.end - entry.begin) // np.dtype(dtype).itemsize
        with open(file, "rb") as stream:
            stream.seek(header.start + entry.begin)
            bad = 0
            for begin in range(0, count, _BLOCK):
                block = np.fromfile(stream, dtype, min(_BLOCK, count - begin))
                bad += int(np.count_nonzero((block & np.array(mask, dtype)) == mask))
        if bad:
            yield f"{key} has {bad} weights that are no numbers, or infinite"
