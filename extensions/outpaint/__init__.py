"""Outpaint: grows a picture beyond its edges; beyond a narrow seam its old pixels stay what they are.

All of it is `prepare`: a larger canvas, a mask over what is new, and a call to the extension inpaint. What a picture's
text records is that canvas and that mask, so that drawing it again does not grow it again.
"""

from __future__ import annotations

import re
from typing import Literal

from pydantic import field_validator

from backend.extension import Extension, GenerationRequest, ImageStore, InvalidRequest, Param, Params, Problem, Task

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

    def prepare(self, request: GenerationRequest, params: OutpaintParams, images: ImageStore) -> GenerationRequest:
        from . import canvas

        if not request.init_image:
            raise InvalidRequest(Problem("init_image", "outpainting needs a picture to grow"))
        if "inpaint" in request.extensions:
            raise _wrong("do one after the other: a picture is either grown or painted over with a mask of your own")
        picture = images.get(request.init_image)
        margins = canvas.margins(params, picture.size)
        if not any(margins):
            raise _wrong("say how far the picture is to grow: left, right, top, bottom or ratio")
        width, height = margins.around(picture.size)
        if max(width, height) > MAX_SIDE:
            raise _wrong(f"the picture would have {width} x {height} pixels; a side may have {MAX_SIDE}")
        grown = canvas.grown(picture, margins, params.fill, request.seed)
        mask = canvas.mask(picture.size, margins, params.seam)
        others = {id: given for id, given in request.extensions.items() if id != self.id}
        changes = {"init_image": images.put(canvas.png(grown)), "extensions": others}
        return request.model_copy(update=changes).calling(
            "inpaint",
            mask=images.put(canvas.png(mask)),
            blur=0,  # the seam is in the mask
            content="fill" if params.fill == "fill" else "original",
            area="whole" if width * height <= ROOM * request.width * request.height else "only_masked",
            padding=min(max(max(margins) // 2, 32), 256),  # half as much of the old picture as there is to add
        )


def _wrong(message: str) -> InvalidRequest:
    return InvalidRequest(Problem("extensions.outpaint", message))
