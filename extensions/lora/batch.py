"""The LoRAs of one batch: read, checked against the model, merged, switched at their steps, taken out."""

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any

from backend.catalog.detect import ALIKE
from backend.extension import InvalidRequest, Problem
from backend.lora import network
from backend.lora.network import Network
from backend.weights import BrokenFile

from . import merge
from .header import FAMILIES
from .merge import Merged
from .shelf import File
from .tags import Use


class Batch:
    """Raises InvalidRequest, before anything is changed, if a file cannot be used with this model."""

    def __init__(self, run: Any, files: Sequence[tuple[Use, File]]) -> None:
        if run.denoiser is not getattr(run.pipeline, "unet", None) and any(use.blocks for use, _ in files):
            raise InvalidRequest(Problem("prompt", f"lbw weighs the blocks of a UNet; {run.request.model} has none"))
        self._places = run.once("lora places", lambda: merge.places(run.pipeline))
        self._merged: Merged = run.once("lora merged", Merged)
        self._loaded = [(use, self._read(run, file)) for use, file in files]
        self._order = run.pipeline.scheduler.order
        self._more = run.indices[-1] + 1 < run.request.images
        self._changes_in_time = any(use.start or use.stop for use, _ in self._loaded)

    @contextmanager
    def _patched(self) -> Iterator[None]:
        try:
            self._put(0, 1)  # in the first call nothing is on but what always is
            yield
        finally:
            self._merged.undo(keep=self._more)

    def patched(self) -> AbstractContextManager[None]:
        """Inside, the model has the LoRAs in it."""
        return self._patched()

    def passed(self, call: int, calls: int) -> None:
        """Make ready for a call of the model, 0 .. calls - 1."""
        if self._changes_in_time and call < calls:
            self._put(call, calls)

    def _put(self, call: int, calls: int) -> None:
        now = [
            (use if use.is_on(call, calls, self._order) else use._replace(unet=0.0), loaded)
            for use, loaded in self._loaded
        ]
        self._merged.put(merge.changes(now, self._places))

    def _read(self, run: Any, file: File) -> Network:
        try:
            _check_family(file, run.family)
            loaded: Network = run.keep(file.path, network.read)
            merge.check(loaded, self._places)
        except BrokenFile as error:
            model = f"{run.request.model} is {FAMILIES.get(run.family, 'another model')}"
            raise InvalidRequest(Problem("prompt", f"{file.filename} {error} ({model})")) from None
        return loaded


def _check_family(file: File, family: str) -> None:
    """A file's own words may be wrong, its shapes are not; both speak before its gigabytes are read."""
    made_for = file.facts.family
    if made_for and family and family not in (made_for, *ALIKE.get(made_for, ())):
        raise BrokenFile(f"is made for {FAMILIES[made_for]}")
