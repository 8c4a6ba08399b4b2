"""Finished batches on their way out: what is told of them, and their pictures encoded beside the denoising."""

import io
from collections import deque
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from typing import NamedTuple

from PIL import Image
from PIL.PngImagePlugin import PngInfo

from backend import infotext
from backend.request import GenerationRequest
from backend.result import Picture, PictureRole, Progress, Report, Stage

PNG_LEVEL = 4
Tell = Callable[..., None]
"""A Report of stage, step, steps and preview: where in the job they belong is filled in."""


class Drawn(NamedTuple):
    """A finished batch."""

    indices: tuple[int, ...]
    pictures: list[Image.Image]
    models: Mapping[str, Future[str]]
    """Hashes of what took part, the checkpoint first; of files with its name that of the checkpoint."""
    vae: Future[str] | None
    """The hash of a VAE that is a file of its own."""
    notes: Mapping[str, str]
    maps: list[Image.Image]
    """What extensions keep with the pictures."""


def together(drawn: Sequence[Drawn]) -> Drawn:
    """The batch whose parts these are."""
    if len(drawn) == 1:
        return drawn[0]
    first = drawn[0]
    return first._replace(
        indices=tuple(index for part in drawn for index in part.indices),
        pictures=[picture for part in drawn for picture in part.pictures],
        maps=[picture for part in drawn for picture in part.maps],
    )


class Meter:
    """Tells of the steps of a batch and of its further passes as of one count."""

    def __init__(self, tell: Tell) -> None:
        self.stage = ""
        """What was told last."""
        self._tell = tell
        self._passed = 0
        self._expected = 0

    def expect(self, steps: int, further: int) -> None:
        """What lies before the pass in hand, and before those that will follow it."""
        self._expected = max(self._expected, self._passed + steps + further)

    def passed(self, steps: int) -> None:
        self.stage = "finishing"
        self._passed += steps

    def __call__(self, stage: Stage, step: int = 0, steps: int = 0, preview: bytes | None = None) -> None:
        self.stage = stage
        self._tell(stage, self._passed + step, max(self._expected, self._passed + steps), preview)


class Delivery:
    """Encodes finished pictures beside the denoising and reports them from its thread, in order."""

    def __init__(
        self, pool: ThreadPoolExecutor, report: Report, done: Collection[int], notices: Sequence[str]
    ) -> None:
        self.finished = set(done)
        self._notices = notices
        self._begun = set(done)
        self._pool = pool
        self._report = report
        self._pending: deque[tuple[int, int, Future[Picture]]] = deque()

    def tell(
        self,
        batch: int,
        batches: int,
        region: str,
        stage: Stage,
        step: int = 0,
        steps: int = 0,
        preview: bytes | None = None,
    ) -> None:
        while self._pending and self._pending[0][2].done():
            self._hand_over()
        self._report(
            Progress(stage, step, steps, batch, batches, preview, region=region, notices=tuple(self._notices))
        )

    def put(self, request: GenerationRequest, number: int, batches: int, drawn: Drawn) -> None:
        """Batch `number` of a request. Maps go first: when the last picture is there, the job is whole."""
        where = number + 1, batches
        for index, picture in enumerate(drawn.maps, request.images):
            self._encode(where, drawn, index, picture, request.alone(0), "map")
        for index, picture in zip(drawn.indices, drawn.pictures, strict=True):
            self._encode(where, drawn, index, picture, request.alone(index), "picture")

    def _encode(
        self,
        where: tuple[int, int],
        drawn: Drawn,
        index: int,
        picture: Image.Image,
        request: GenerationRequest,
        role: PictureRole,
    ) -> None:
        if index not in self._begun:
            self._begun.add(index)
            encoding = self._pool.submit(_encode, index, picture, request, drawn, role)
            self._pending.append((*where, encoding))

    def flush(self, *ignored: type[Exception]) -> None:
        """Hand over all that is finished, though the report raise one of `ignored`."""
        while self._pending:
            with suppress(*ignored):
                self._hand_over()

    def _hand_over(self) -> None:
        batch, batches, encoding = self._pending.popleft()
        picture = encoding.result()
        self.finished.add(picture.index)
        told = Progress("saving", batch=batch, batches=batches, picture=picture, notices=tuple(self._notices))
        self._report(told)


def _encode(
    index: int,
    picture: Image.Image,
    request: GenerationRequest,
    drawn: Drawn,
    role: PictureRole,
) -> Picture:
    hashes = {name: hashed.result() for name, hashed in drawn.models.items()}
    notes = {**drawn.notes, "VAE hash": drawn.vae.result()[:10]} if drawn.vae else drawn.notes
    text = infotext.write(request, hashes[request.model], notes)
    chunks = PngInfo()
    chunks.add_text("parameters", text)
    file = io.BytesIO()
    picture.save(file, "PNG", compress_level=PNG_LEVEL, pnginfo=chunks)
    return Picture(index, file.getvalue(), request, text, picture.width, picture.height, hashes, role)
