"""With less memory: what a job does when there was not enough of it, one notch at a time, each said to its owner."""

import logging
from collections.abc import Iterator
from typing import Any

import torch

from backend.catalog import Model
from backend.diffusion import memory, placement
from backend.diffusion.models import Loaded, ModelStore
from backend.errors import AtelierError
from backend.request import GenerationRequest

log = logging.getLogger(__name__)

CODED = ("encoding", "decoding")
"""The stages in which a VAE works."""


class Thrift:
    """How sparing one job is; it only ever becomes more so.

    Each notch is taken once: nothing else stays in memory, then the VAE works in tiles, then the pictures of a batch
    are drawn one by one, then quantised weights stay so, then less and less of the model lies on the graphics card.
    """

    def __init__(self, store: ModelStore) -> None:
        self.notices: list[str] = []
        """Sentences for the owner of the job."""
        self.splits = False
        """Whether pictures are drawn one by one."""
        self._store = store
        self._tile: int | None = None
        self._is_alone = False

    def tile(self, vae: Any, request: GenerationRequest, device: torch.device) -> int | None:
        """The side of the tiles in which the VAE is to work; None: it takes the picture as a whole."""
        if not placement.has_tiles(vae):
            return None
        side = self._tile or placement.tile_for(vae, request.width, request.height, memory.free(device))
        return side if side is not None and side < max(request.width, request.height) else None

    def told(self, loaded: Loaded, tile: int | None, before: torch.dtype) -> dict[str, str]:
        """What the texts of a model's pictures say of it; `before` is what the VAE was in when the batch began."""
        now = loaded.pipeline.vae.dtype
        if now != before:
            self.notices.append("the VAE of this model gives no picture in half precision; it works in full precision")
        told = {"VAE tiles": str(tile) if tile else "", "VAE precision": "fp32" if now != loaded.vae_dtype else ""}
        return {key: value for key, value in told.items() if value}

    def lower(self, stage: str, request: GenerationRequest, model: Model | None = None, whole: bool = True) -> bool:
        """Take less from now on, by a notch that helps at this stage; False: there is none.

        `whole` says that the attempt is over, so that nobody holds the model any more.
        """
        notch = next(self._notches(stage, request, model, whole), None)
        if notch:
            self.notices.append(f"there was not enough memory ({stage}): {notch}")
            log.warning("out of memory at %s: %s", stage, notch)
        return notch is not None

    def _notches(self, stage: str, request: GenerationRequest, model: Model | None, whole: bool) -> Iterator[str]:
        """The next notch, taken when it is asked for, and what is done from now on."""
        if not self._is_alone:
            self._is_alone = True
            self._store.free_others(model)
            yield "other models were let go of, and it was tried again"
        side = max(request.width, request.height)
        smaller = [tile for tile in placement.TILES if tile < min(side, self._tile or side)]
        if stage in CODED and smaller:
            self._tile = smaller[0]
            yield f"the VAE works in tiles of {self._tile} pixels"
        if not self.splits and request.batch_size > 1 and stage != "decoding":
            self.splits = True
            yield "the pictures are drawn one by one"
        if whole and model and (said := self._store.lower(model)):
            yield said


def exhausted(request: GenerationRequest) -> AtelierError:
    size = f"{request.batch_size} x {request.width} x {request.height} pixels"
    return AtelierError(f"there is not enough memory for {size}; try a smaller size or batch")
