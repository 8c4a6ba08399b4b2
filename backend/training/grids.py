"""Checkpoints beside each other, at several weights: what a grid is to show, and the pictures of it; no torch.

<training>/grids/<id>/grid.json     what it was told
                     /<row>-<column>.png
"""

import json
import re
import secrets
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

from pydantic import Field

from backend.errors import InvalidRequest, NotFound, Problem
from backend.files import write_atomically
from backend.params import Params
from backend.request import MAX_SEED
from backend.training.params import Sample
from backend.training.records import Training

MOST = 64
"""Pictures in one."""
FILE = "grid.json"
Weight = Annotated[float, Field(ge=-4, le=4)]


class GridParams(Params):
    """A row for each step, a column for each weight; step 0 is the untrained model."""

    steps: Annotated[tuple[Annotated[int, Field(ge=0)], ...], Field(min_length=1)]
    weights: Annotated[tuple[Weight, ...], Field(min_length=1)] = (0.6, 0.8, 1.0)
    prompt: Annotated[str, Field(max_length=2000)] = ""
    """Empty: that of the first sample."""
    negative: Annotated[str, Field(max_length=2000)] = ""
    seed: Annotated[int, Field(ge=0, le=MAX_SEED)] = 1


@dataclass(frozen=True)
class Grid:
    folder: Path
    steps: tuple[int, ...]
    weights: tuple[float, ...]
    sample: Sample

    @property
    def id(self) -> str:
        return self.folder.name

    def cells(self) -> Iterator[tuple[int, float, Path]]:
        """Step, weight and picture of each, row by row; a picture is there when it has been drawn."""
        for row, step in enumerate(self.steps):
            for column, weight in enumerate(self.weights):
                yield step, weight, self.folder / f"{row:02}-{column:02}.png"


def begin(training: Training, wanted: GridParams) -> Grid:
    """Raises InvalidRequest."""
    steps, weights = tuple(sorted(set(wanted.steps))), tuple(dict.fromkeys(wanted.weights))
    if lacking := [step for step in steps if step and step not in training.kept_weights]:
        there = ", ".join(map(str, training.kept_weights)) or "none"
        raise InvalidRequest(Problem("steps", f"no weights were kept at step {lacking[0]}; there are {there}"))
    if len(steps) * len(weights) > MOST:
        raise InvalidRequest(Problem("weights", f"that makes {len(steps) * len(weights)} pictures; {MOST} at most"))
    params = training.params
    prompt = wanted.prompt or next(iter(training.prompts), "")
    sides = {"width": params.sample_width, "height": params.sample_height}
    sample = Sample(
        prompt,
        wanted.negative,
        **{side: given or params.resolution for side, given in sides.items()},
        seed=wanted.seed,
        steps=params.sample_steps,
        cfg=params.sample_cfg,
    )
    grid = Grid(_folder(training) / secrets.token_hex(4), steps, weights, sample)
    grid.folder.mkdir(parents=True)
    told = {"steps": steps, "weights": weights, "sample": asdict(sample)}
    write_atomically(grid.folder / FILE, json.dumps(told).encode())
    return grid


def read(training: Training, id: str) -> Grid:
    """Raises NotFound."""
    folder = _folder(training) / id
    try:
        if not re.fullmatch(r"[0-9a-f]{8}", id):
            raise ValueError
        told = json.loads((folder / FILE).read_text("utf-8"))
        return Grid(folder, tuple(told["steps"]), tuple(told["weights"]), Sample(**told["sample"]))
    except (OSError, ValueError, KeyError, TypeError):
        raise NotFound(f"the training {training.name} has no grid {id[:20]!r}") from None


def grids(training: Training) -> list[Grid]:
    """All of them, the latest first."""
    found = sorted(_folder(training).glob(f"*/{FILE}"), key=lambda path: path.stat().st_mtime, reverse=True)
    return [read(training, path.parent.name) for path in found]


def _folder(training: Training) -> Path:
    return training.folder / "grids"
