"""A worker that draws what a prompt says with a brush, not a network: exact, and as slow as a test asks."""

import io
import re
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from PIL import Image, ImageChops, ImageDraw, ImageFilter
from PIL.PngImagePlugin import PngInfo

from backend import infotext
from backend.errors import AtelierError
from backend.images import ImageStore
from backend.request import GenerationRequest
from backend.result import BatchSkipped, Picture, Progress, Report, Result

COLOURS = "red|orange|yellow|green|cyan|blue|purple|pink|white|black"


class Painter:
    """Takes `pace` seconds a step; a prompt with "explode" fails; `hold` stops it between two steps.

    With "with a map" in the prompt it keeps one beside the pictures, with "large" it has something to say.
    """

    def __init__(self) -> None:
        self.pace = 0.02
        self.region = ""
        """What its previews are said to show."""
        self.going = threading.Event()
        self.going.set()
        self._state: dict[str, Any] = {"state": "ready", "device": "cpu", "detail": None}
        self._listener: Callable[[dict[str, Any]], None] = lambda state: None

    def generate(
        self, request: GenerationRequest, images: ImageStore, report: Report, done: frozenset[int] = frozenset()
    ) -> Result:
        finished = []
        for batch in range(request.n_iter):
            at = Progress("sampling", 0, request.steps, batch, request.n_iter, region=self.region)
            indices = [i for i in range(batch * request.batch_size, (batch + 1) * request.batch_size) if i not in done]
            try:
                for step in range(request.steps):
                    self._wait(report, at)
                    if "explode" in request.prompt and step == 3:
                        raise AtelierError(
                            "out of memory: 512 MB were asked for, 12 MB are free; choose a smaller size"
                        )
                    at = replace(at, step=step + 1)
                    if "large" in request.prompt and step == 2:
                        at = replace(at, notices=("there was not enough memory: the VAE works in tiles",))
                    report(replace(at, preview=preview(request, (step + 1) / request.steps)))
                if "with a map" in request.prompt and batch == 0:
                    kept = picture(request, 0, images)
                    report(replace(at, stage="saving", picture=replace(kept, index=request.images, role="map")))
                for index in indices:
                    report(replace(at, stage="saving", picture=picture(request, index, images)))
                    finished.append(index)
            except BatchSkipped:
                continue
        return Result(request, tuple(finished))

    def _wait(self, report: Report, at: Progress) -> None:
        until = time.monotonic() + self.pace
        while not self.going.is_set() or time.monotonic() < until:
            report(at)
            time.sleep(min(0.02, self.pace))

    def become(self, state: str, detail: str | None = None) -> None:
        self._state = {"state": state, "device": "cpu", "detail": detail}
        self._listener(self._state)

    def errand(
        self, extension: str, name: str, values: Mapping[str, Any], go_on: Callable[[], None]
    ) -> dict[str, Any]:
        raise AtelierError(f"a painter runs no errands, and so not {name} of {extension}")

    def start(self) -> None: ...

    def close(self) -> None:
        self.going.set()

    def state(self) -> dict[str, Any]:
        return dict(self._state)

    def watch(self, listener: Callable[[dict[str, Any]], None]) -> None:
        self._listener = listener


def picture(request: GenerationRequest, index: int, images: ImageStore) -> Picture:
    one = request.model_copy(update={"seed": request.seed + index, "batch_size": 1, "n_iter": 1})
    text = infotext.write(one)
    drawn = draw(one)
    if one.init_image and one.extensions:
        drawn = painted_into(images.get(one.init_image).convert("RGB"), drawn, one.model_dump()["extensions"], images)
    elif one.init_image:
        start = images.get(one.init_image).convert("RGB").resize(drawn.size)
        drawn = Image.blend(start, drawn, one.denoising_strength)
    file = io.BytesIO()
    info = PngInfo()
    info.add_itxt("parameters", text)
    drawn.save(file, "PNG", pnginfo=info)
    return Picture(index, file.getvalue(), one, text, *drawn.size)


def painted_into(
    start: Image.Image, drawn: Image.Image, extensions: dict[str, dict[str, Any]], images: ImageStore
) -> Image.Image:
    """What inpaint and outpaint do, in short: the drawing where the mask is white, or around the picture."""
    if "outpaint" in extensions:
        sides = extensions["outpaint"]
        left, top = sides["left"], sides["top"]
        size = left + start.width + sides["right"], top + start.height + sides["bottom"]
        grown = drawn.resize(size, Image.Resampling.NEAREST)
        grown.paste(start, (left, top))
        return grown
    if "inpaint" in extensions:
        mask = images.get(extensions["inpaint"]["mask"]).convert("L")
        return Image.composite(drawn.resize(start.size, Image.Resampling.NEAREST), start, mask)
    return start


def preview(request: GenerationRequest, share: float) -> bytes:
    """The picture coming out of noise, at an eighth of its size."""
    small = (max(8, request.width // 4), max(8, request.height // 4))
    noise = Image.effect_noise(small, 180)
    blurred = draw(request).resize(small).filter(ImageFilter.GaussianBlur((1 - share) * 5))
    coloured = ImageChops.overlay(blurred, Image.merge("RGB", [noise] * 3)) if share < 0.98 else blurred
    file = io.BytesIO()
    Image.blend(Image.merge("RGB", [noise] * 3), Image.blend(coloured, blurred, share), share).save(
        file, "WEBP", quality=60, method=0
    )
    return file.getvalue()


def draw(request: GenerationRequest) -> Image.Image:
    """Background and one shape, larger or smaller by the seed."""
    found = re.findall(COLOURS, request.prompt.lower())
    shape, ground = (found + ["grey", "lightgrey"])[:2] if len(found) > 1 else ([*found, "grey"][0], "lightgrey")
    picture = Image.new("RGB", (request.width * 2, request.height * 2), ground)
    brush = ImageDraw.Draw(picture)
    x, y = request.width, request.height
    r = min(x, y) * (0.45 + request.seed % 5 * 0.06)
    if "star" in request.prompt:
        brush.regular_polygon((x, y, r), 3, fill=shape)
        brush.regular_polygon((x, y, r), 3, rotation=180, fill=shape)
    elif "square" in request.prompt:
        brush.rectangle((x - r, y - r, x + r, y + r), fill=shape)
    elif "house" in request.prompt:
        brush.rectangle((x - r, y - r * 0.2, x + r, y + r), fill=shape)
        brush.polygon([(x - r * 1.2, y - r * 0.2), (x, y - r), (x + r * 1.2, y - r * 0.2)], fill="brown")
    else:
        brush.ellipse((x - r, y - r, x + r, y + r), fill=shape)
    return picture.resize((request.width, request.height), Image.Resampling.LANCZOS)
