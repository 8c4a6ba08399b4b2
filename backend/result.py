"""What a worker says while it works and when it is done."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

from backend.request import GenerationRequest

Stage = Literal["waiting", "loading", "encoding", "sampling", "decoding", "saving"]
PictureRole = Literal["picture", "map"]
"""What was asked for, or a control map that an extension keeps with it."""


class JobCancelled(Exception):
    """Raised by a Report: stop at once, keep what is finished."""


class BatchSkipped(Exception):
    """Raised by a Report: drop the batch in hand and go on with the next."""


@dataclass(frozen=True)
class Picture:
    """A finished picture, encoded."""

    index: int
    """0 .. request.images - 1; maps come behind."""
    data: bytes
    """A PNG file whose text chunk `parameters` recreates it."""
    request: GenerationRequest
    """For this one picture alone: its own seed, batch_size = n_iter = 1, prompts as used."""
    infotext: str
    width: int
    height: int
    models: dict[str, str] = field(default_factory=dict)
    """SHA-256 of each model that took part, by its name."""
    role: PictureRole = "picture"


@dataclass(frozen=True)
class Progress:
    stage: Stage
    step: int = 0
    """Model steps done in the batch in hand."""
    steps: int = 0
    batch: int = 0
    """Batches done."""
    batches: int = 1
    preview: bytes | None = None
    """A small WebP of the batch's first picture as it stands."""
    picture: Picture | None = None
    """A picture that has just been finished."""
    region: str = ""
    """What part of the whole the preview shows, "512x384+64+0"; empty: all of it."""
    notices: tuple[str, ...] = ()
    """What its owner should know of how the job goes, all that there was so far."""


Report = Callable[[Progress], None]
"""Called at every step; raises JobCancelled or BatchSkipped to stop."""


@dataclass(frozen=True)
class Result:
    request: GenerationRequest
    """As used: seed drawn, prompts resolved, model named."""
    pictures: tuple[int, ...]
    """Indices of the pictures that were finished, without maps; each went out in a Progress."""
