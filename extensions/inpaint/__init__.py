"""Inpaint: draws what a mask covers anew; every pixel beside it stays what it is.

`prepare` finds the region that is worked on and the size that it is worked on at, and writes both into the request.
While a batch is drawn, what the model sees beside the mask is replaced by the picture, after each of its calls; the
finished region goes back into the picture through the mask.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Literal

from PIL import Image
from pydantic import field_validator

from backend.extension import Contribution, Extension, GenerationRequest, ImageRef, ImageStore, Param, Params, Task

from . import region

if TYPE_CHECKING:
    from backend.diffusion.run import Run

    from .work import Work


SOFT = "Soft inpainting enabled"


class SoftInpainting(Params):
    """Of the extension of that name in A1111."""

    schedule_bias: float = Param(
        1.0,
        "Schedule bias",
        ge=0,
        le=8,
        step=0.1,
        infotext="Soft inpainting schedule bias",
        help="Higher keeps the original in the early steps, lower in all of them.",
    )
    preservation: float = Param(
        0.5,
        "Preservation strength",
        ge=0,
        le=8,
        step=0.05,
        infotext="Soft inpainting preservation strength",
        help="How much of the original stays where the mask is grey.",
    )
    transition_contrast: float = Param(
        4.0,
        "Transition contrast boost",
        ge=1,
        le=32,
        step=0.5,
        infotext="Soft inpainting transition contrast boost",
        help="Keeps the contrast where old and new mix.",
    )
    mask_influence: float = Param(
        0.0,
        "Mask influence",
        ge=0,
        le=1,
        step=0.05,
        infotext="Soft inpainting mask influence",
        help="How far the mask too decides what of the new picture is taken.",
    )
    difference_threshold: float = Param(
        0.5,
        "Difference threshold",
        ge=0,
        le=8,
        step=0.25,
        infotext="Soft inpainting difference threshold",
        help="How different a place must be to be half taken.",
    )
    difference_contrast: float = Param(
        2.0,
        "Difference contrast",
        ge=0,
        le=8,
        step=0.25,
        infotext="Soft inpainting difference contrast",
        help="How sharply taken and kept divide there.",
    )


class InpaintParams(Params):
    mask: ImageRef = Param(
        ...,
        "Mask",
        widget="mask",
        infotext="Mask hash",
        option="--mask",
        help="White is drawn anew, or what is opaque if the image has an alpha channel.",
    )
    mode: Literal["masked", "not_masked"] = Param(
        "masked",
        "Mask mode",
        choices=(("masked", "Inpaint masked"), ("not_masked", "Inpaint not masked")),
        infotext="Mask mode",
    )
    blur: int = Param(
        4, "Mask blur", ge=0, le=64, step=1, infotext="Mask blur", help="Pixels over which old and new blend."
    )
    content: Literal["fill", "original", "latent_noise", "latent_nothing"] = Param(
        "original",
        "Masked content",
        choices=(
            ("fill", "fill"),
            ("original", "original"),
            ("latent_noise", "latent noise"),
            ("latent_nothing", "latent nothing"),
        ),
        infotext="Masked content",
        help="What the drawing starts from under the mask; fill: the colours around it.",
    )
    area: Literal["whole", "only_masked"] = Param(
        "whole",
        "Inpaint area",
        choices=(("whole", "Whole picture"), ("only_masked", "Only masked")),
        infotext="Inpaint area",
        help="Only masked: all the detail goes to the masked part and its surroundings.",
    )
    padding: int = Param(
        32,
        "Only masked padding",
        ge=0,
        le=256,
        step=4,
        infotext="Masked area padding",
        help="Pixels of surroundings that are looked at, if only the masked part is worked on.",
    )
    resolution: Literal["auto", "exact"] = Param(
        "auto",
        "Resolution",
        choices=(("auto", "Automatic"), ("exact", "Just width x height")),
        infotext="Inpaint resolution",
        group="advanced",
        help="Automatic works on about as many pixels as width x height and gives the picture back at its own size.",
    )
    region: str = Param(
        "",
        "Region",
        widget="region",
        max_length=40,
        infotext="Inpaint region",
        group="advanced",
        help="The part that is worked on, as 512x512+64+0; empty, or not around all of the mask: it is found.",
    )
    soft: SoftInpainting | None = Param(
        None,
        "Soft inpainting",
        help="Blends by how much has changed instead of by the mask's edge; wants a large blur.",
    )

    @field_validator("region")
    @classmethod
    def _is_region(cls, text: str) -> str:
        if text:
            region.Box.read(text)
        return text

    def to_infotext(self) -> dict[str, str]:
        return super().to_infotext() | ({SOFT: "True"} | self.soft.to_infotext() if self.soft else {})

    @classmethod
    def from_infotext(cls, fields: Mapping[str, str]) -> dict[str, Any]:
        found = super().from_infotext(fields)
        return (
            found | {"soft": SoftInpainting.from_infotext(fields)} if found and fields.get(SOFT) == "True" else found
        )


class Inpaint(Extension):
    Params = InpaintParams
    task = Task.IMAGE_TO_IMAGE
    order = 500  # what others do to the pictures is done to the region alone

    def check(self, request: GenerationRequest, params: InpaintParams, images: ImageStore) -> None:
        super().check(request, params, images)
        region.find(request, params, images)

    def prepare(self, request: GenerationRequest, params: InpaintParams, images: ImageStore) -> GenerationRequest:
        """The request with the region written into it, and width and height what that is worked on at."""
        found = region.find(request, params, images)
        if found is None:
            return request
        box, (width, height) = found
        extensions = {**request.extensions, self.id: params.model_copy(update={"region": str(box)})}
        return request.model_copy(update={"width": width, "height": height, "extensions": extensions})

    @contextmanager
    def patch(self, run: Run, params: InpaintParams) -> Iterator[None]:
        work = self._work(run, params)
        with run.pipeline.scheduler.revised(work.revise), run.showing(work.shown):
            yield

    def contribute(self, run: Run, params: InpaintParams) -> Contribution:
        work = self._work(run, params)
        return Contribution(start=work.start(run.seeds), shown=work.kept)

    def finish(self, run: Run, params: InpaintParams, pictures: list[Image.Image]) -> list[Image.Image]:
        return self._work(run, params).pasted(pictures, run.latents)

    def _work(self, run: Run, params: InpaintParams) -> Work:
        from .work import Work

        work: Work = run.once(self.id, lambda: Work(run, params))
        return work
