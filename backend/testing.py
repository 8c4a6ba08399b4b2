"""The test kit of extensions: an engine on the embedded model, with one extension and nothing else.

with Studio(Path("extensions/film-grain")) as studio:
    before, during, after = studio.around({"amount": 0.5})
    assert before == after != during
"""

import io
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from backend import infotext, registry
from backend.catalog import Catalog
from backend.diffusion.engine import Engine
from backend.extension import Extension
from backend.images import ImageStore
from backend.request import GenerationRequest, parse_request
from backend.result import Picture, Progress, Report

ROOT = Path(__file__).resolve().parent.parent
PROMPT = "a red circle on a blue background"
HASTY = {"width": 64, "height": 64, "steps": 3, "seed": 1}


@dataclass(frozen=True)
class Drawn:
    """What came of a request."""

    request: GenerationRequest
    """Of the first picture alone, as used."""
    pictures: tuple[Image.Image, ...]
    texts: tuple[str, ...]
    """What stands in each picture's file."""
    maps: tuple[Image.Image, ...] = ()
    """What extensions keep with the pictures."""

    @property
    def picture(self) -> Image.Image:
        return self.pictures[0]

    @property
    def text(self) -> str:
        return self.texts[0]


class Studio:
    """An engine on the processor, the extension in `folder` and those in `also` beside it.

    Use it as a context manager. Raises AssertionError, with the reason, if an extension cannot be loaded.
    """

    def __init__(
        self, folder: Path, *, also: Sequence[str] = (), models: Path = ROOT / "models", model: str = "starter"
    ) -> None:
        self.id = folder.resolve().name
        self._inputs = tempfile.TemporaryDirectory()
        kept = Path(self._inputs.name, "extensions")
        self.registry = registry.load(folder.resolve().parent, only={self.id, *also}, models=models, kept=kept)
        assert not self.registry.broken, "; ".join(f"{b.id}: {b.reason}" for b in self.registry.broken)
        assert self.id in self.registry.ids, f"there is no extension in {folder}"
        self.catalog = Catalog(models, model)
        self.images = ImageStore(Path(self._inputs.name))
        self.engine = Engine(self.catalog, self.registry, "cpu")

    @property
    def extension(self) -> Extension:
        return next(e for e in self.registry.extensions if e.id == self.id)

    def draw(self, prompt: str = PROMPT, *, report: Report | None = None, **values: Any) -> Drawn:
        """Draw a request; unless `values` say otherwise a small and hasty one: 64 x 64, 3 steps, seed 1.

        `report` is called at every step and may raise JobCancelled.
        """
        finished: list[Picture] = []

        def listen(progress: Progress) -> None:
            if progress.picture:
                finished.append(progress.picture)
            if report:
                report(progress)

        self.engine.generate(self.request(prompt=prompt, **values), self.images, listen)
        finished.sort(key=lambda p: p.index)
        opened = [(p.role, Image.open(io.BytesIO(p.data)).copy()) for p in finished]
        pictures, maps = (tuple(one for role, one in opened if role == wanted) for wanted in ("picture", "map"))
        return Drawn(finished[0].request, pictures, tuple(p.infotext for p in finished[: len(pictures)]), maps)

    def around(self, params: Mapping[str, Any], prompt: str = PROMPT, **values: Any) -> tuple[bytes, bytes, bytes]:
        """The pixels of one request without the extension, with it, and without it once more."""
        others = values.pop("extensions", {})
        with_it = {**others, self.id: dict(params)}
        first, second, third = (
            self.draw(prompt, extensions=extensions, **values) for extensions in (others, with_it, others)
        )
        return first.picture.tobytes(), second.picture.tobytes(), third.picture.tobytes()

    def request(self, **values: Any) -> GenerationRequest:
        """A checked request; raises InvalidRequest."""
        model = self.catalog.find(values.pop("model", ""))
        given = {**model.usual, **HASTY, "model": model.name, **values}
        return parse_request(given, self.registry.params)

    def read(self, text: str) -> GenerationRequest:
        """The request that a picture's text recreates."""
        return parse_request(infotext.read(text, self.registry.params).values, self.registry.params)

    def image(self, picture: Image.Image) -> str:
        """Keep an input image; what a request calls it."""
        file = io.BytesIO()
        picture.save(file, "PNG")
        return self.images.put(file.getvalue())

    def close(self) -> None:
        self.engine.close()
        self._inputs.cleanup()

    def __enter__(self) -> "Studio":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
