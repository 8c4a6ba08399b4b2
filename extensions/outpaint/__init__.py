"""Outpaint: grows a picture beyond its edges; beyond a narrow seam its old pixels stay what they are.

All of it is `prepare`: a larger canvas, a mask over what is new, and a call to the extension inpaint. What a picture's
text records is that canvas and that mask, so that drawing it again does not grow it again.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

from pydantic import field_validator

from backend.extension import Extension, GenerationRequest, ImageStore, InvalidRequest, Param, Params, Problem, Task

if TYPE_CHECKING:
    from .canvas import Margins

SIDES = ("left", "right", "top", "bottom")
MAX_SIDE = 4096
ROOM = 1.5
"""A canvas of up to so many times the pixels asked for is worked on as a whole; of a larger one, what is near."""


class OutpaintParams(Params):
    left: int = Param(
        0, "Left", widget="frame", ge=0, le=2048, step=8, slider=(0, 512), help="Pixels to add on the left."
    )
    right: int = Param(
        0, "Right", widget="frame", ge=0, le=2048, step=8, slider=(0, 512), help="Pixels to add on the right."
    )
    top: int = Param(0, "Top", widget="frame", ge=0, le=2048, step=8, slider=(0, 512), help="Pixels to add above.")
    bottom: int = Param(
        0, "Bottom", widget="frame", ge=0, le=2048, step=8, slider=(0, 512), help="Pixels to add below."
    )
    ratio: str = Param(
        "", "Ratio", max_length=11, help="Width to height that the picture grows to, as 16:9; evenly on both sides."
    )
    shows: Literal["surroundings", "prompt"] = Param(
        "surroundings",
        "New area",
        choices=(("surroundings", "goes on with the picture"), ("prompt", "shows what the prompt says")),
        help="Going on with the picture leaves the prompt out: what it names is there already and would come twice.",
    )
    fill: Literal["edge", "reflect", "fill", "noise"] = Param(
        "edge",
        "Start from",
        choices=(
            ("edge", "the edge, drawn out"),
            ("reflect", "the picture, mirrored"),
            ("fill", "its colours, blurred"),
            ("noise", "its colours, strewn"),
        ),
        help="What the drawing of the new area starts from; less denoising keeps more of it.",
    )
    seam: int = Param(
        16,
        "Seam",
        ge=0,
        le=256,
        step=1,
        help="Pixels of the old picture over which old and new blend into each other.",
    )

    @field_validator("ratio")
    @classmethod
    def _is_ratio(cls, text: str) -> str:
        if text and not re.fullmatch(r"[1-9]\d{0,4}:[1-9]\d{0,4}", text):
            raise ValueError("should be written as 16:9")
        return text


class Outpaint(Extension):
    Params = OutpaintParams
    task = Task.IMAGE_TO_IMAGE

    def check(self, request: GenerationRequest, params: OutpaintParams, images: ImageStore) -> None:
        from . import canvas

        super().check(request, params, images)
        assert request.init_image
        if "inpaint" in request.extensions:
            raise _wrong("", "do one after the other: a picture is either grown or painted over with a mask")
        size = images.get(request.init_image).size
        margins = canvas.margins(params, size)
        if not any(margins):
            if params.ratio:
                raise _wrong(".ratio", f"the picture has this ratio already, with {size[0]} x {size[1]} pixels")
            raise _wrong(".left", "say how far the picture is to grow: left, right, top, bottom or ratio")
        width, height = margins.around(size)
        if max(width, height) > MAX_SIDE:
            side = _widest(params, margins, SIDES[:2] if width > MAX_SIDE else SIDES[2:])
            raise _wrong(f".{side}", f"the picture would have {width} x {height} pixels; a side may have {MAX_SIDE}")

    def prepare(self, request: GenerationRequest, params: OutpaintParams, images: ImageStore) -> GenerationRequest:
        from . import canvas

        assert request.init_image
        picture = images.get(request.init_image)
        margins = canvas.margins(params, picture.size)
        width, height = margins.around(picture.size)
        grown = canvas.grown(picture, margins, params.fill, request.seed)
        mask = canvas.mask(picture.size, margins, params.seam)
        others = {id: given for id, given in request.extensions.items() if id != self.id}
        changes: dict[str, Any] = {"init_image": images.put(canvas.png(grown)), "extensions": others}
        if params.shows == "surroundings":
            changes |= {"prompt": _tags_of(request.prompt), "prompts": tuple(map(_tags_of, request.prompts))}
        return request.model_copy(update=changes).calling(
            "inpaint",
            mask=images.put(canvas.png(mask)),
            blur=0,  # the seam is in the mask
            content="fill" if params.fill == "fill" else "original",
            area="whole" if width * height <= ROOM * request.width * request.height else "only_masked",
            padding=min(max(max(margins) // 2, 32), 256),  # half as much of the old picture as there is to add
        )


def _widest(params: OutpaintParams, margins: Margins, sides: Sequence[str]) -> str:
    """The parameter that asks for the most on these sides."""
    side = max(sides, key=lambda side: getattr(margins, side))
    return side if getattr(margins, side) == getattr(params, side) else "ratio"


def _tags_of(prompt: str) -> str:
    """A prompt without its words: its tags name adapters, which make the picture's manner."""
    return "".join(re.findall(r"<\w+:[^<>]+>", prompt))


def _wrong(where: str, message: str) -> InvalidRequest:
    return InvalidRequest(Problem(f"extensions.outpaint{where}", message))
