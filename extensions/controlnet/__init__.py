"""ControlNet: guides a picture by maps of poses, edges and depth (Zhang et al. 2023).

`prepare` makes each unit's map and writes it into the unit, so that a request as used carries its maps. While a batch
is drawn, a hook on the UNet runs the control models before each of its calls and hands it what they give (guide.py).
Names, defaults and values are those of sd-webui-controlnet; whatever its versions have accepted is read.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Annotated, Any

from PIL import Image
from pydantic import Field, ValidationInfo, field_validator, model_validator

from backend.extension import (
    Choice,
    Contribution,
    Extension,
    GenerationRequest,
    ImageRef,
    ImageStore,
    Param,
    Params,
)
from backend.images import flatten

from . import older, preprocessors, shelf
from . import text as words
from .older import ControlMode, ControlType, HrOption, ResizeMode
from .preprocessors import RESOLUTION, TABLE

if TYPE_CHECKING:
    from fastapi import APIRouter

    from backend.diffusion.run import Run, Step

    from .guide import Guide

MOST = 10
"""Units of one request."""
_OF_MODULE = {
    slot: {name: facet for name, module in TABLE.items() if (facet := getattr(module, slot))}
    for slot in ("resolution", "threshold_a", "threshold_b")
}


class Unit(Params):
    image: ImageRef | None = Param(
        None, "Image", widget="image", help="What the map is made from; empty: the image that the picture starts from."
    )
    map: ImageRef | None = Param(
        None,
        "Map",
        widget="image",
        help="What the control model sees. One that is given stays as it is; without one it is made from the image.",
    )
    module: str = Param(
        "none",
        "Preprocessor",
        choices=preprocessors.choices(),
        help="How the map is made from the image; none: the image is the map.",
    )
    processor_res: int = Param(
        -1, RESOLUTION.label, widget="slider", decided_by="module", facets=_OF_MODULE["resolution"]
    )
    threshold_a: float = Param(
        -1, "Threshold A", widget="slider", decided_by="module", facets=_OF_MODULE["threshold_a"]
    )
    threshold_b: float = Param(
        -1, "Threshold B", widget="slider", decided_by="module", facets=_OF_MODULE["threshold_b"]
    )
    pixel_perfect: bool = Param(
        False, "Pixel perfect", help="Lets the preprocessor work at the resolution that suits the picture's size."
    )
    model: str = Param("None", "Control model", choices="nets", help="It must fit the checkpoint and the map.")
    weight: float = Param(1.0, "Weight", ge=0, le=2, step=0.05, help="0: as if the unit were not there.")
    guidance_start: float = Param(
        0.0, "Starts at", ge=0, le=1, step=0.01, help="Part of the steps after which it begins."
    )
    guidance_end: float = Param(1.0, "Ends at", ge=0, le=1, step=0.01, help="Part of the steps after which it ends.")
    control_mode: ControlMode = Param(
        "Balanced",
        "Control mode",
        choices=tuple((mode, mode) for mode in older.CONTROL_MODES),
        help="Which of the two wins where they disagree.",
    )
    resize_mode: ResizeMode = Param(
        "Crop and Resize",
        "Resize mode",
        choices=tuple((mode, mode) for mode in older.RESIZE_MODES),
        help="How a map of another shape comes to the picture's.",
    )
    pose: str = Param(
        "",
        "Pose",
        max_length=200_000,
        group="advanced",
        help="People as OpenPose writes them, JSON: the map is drawn from it, and no image is needed.",
    )
    mask: ImageRef | None = Param(
        None,
        "Mask",
        widget="image",
        group="advanced",
        help="White is what is drawn anew, for the inpaint preprocessors.",
    )
    effective_region_mask: ImageRef | None = Param(
        None, "Region of effect", widget="image", group="advanced", help="The unit guides where this is white."
    )
    hr_option: HrOption = Param(
        "Both",
        "With Hires",
        choices=(("Both", "Both passes"), ("Low res only", "First pass only"), ("High res only", "Second pass only")),
        group="advanced",
    )
    union_control_type: ControlType = Param(
        "Unknown",
        "Type for union models",
        choices=tuple((t, "As the preprocessor" if t == "Unknown" else t) for t in older.CONTROL_TYPES),
        group="advanced",
        help="What the map shows; asked for by models that know several.",
    )
    inpaint_crop_input_image: bool = Param(
        True,
        "Crop with the region",
        group="advanced",
        help="When only a part of the picture is worked on, only that part of the image or map guides it.",
    )
    save_detected_map: bool = Param(
        False, "Keep the map", group="advanced", help="Saves the map with the pictures, as a file of its own."
    )
    advanced_weighting: Annotated[tuple[float, ...], Field(max_length=100)] | None = None
    """A factor for each residual, from the outermost on, in place of those of the control mode."""
    made_from: str = Param(
        "",
        "Map made from",
        max_length=100,
        group="advanced",
        help="What the map was made from, filled in with it; empty: the map was given.",
    )
    """As `pictures.origin` tells it; a map is made anew when that has changed."""

    @model_validator(mode="before")
    @classmethod
    def _as_others_write_it(cls, values: Any) -> Any:
        return older.unit(values) if isinstance(values, Mapping) else values

    @field_validator(*older.PICTURES, mode="before")
    @classmethod
    def _is_named(cls, ref: Any) -> Any:
        return older.named(ref)

    @field_validator("module")
    @classmethod
    def _known(cls, name: str) -> str:
        try:
            return preprocessors.find(name).name
        except ValueError:
            names = [*TABLE, *(module.label for module in TABLE.values())]
            near = difflib.get_close_matches(name, names, 1, cutoff=0)
            raise ValueError(f"{name[:60]!r} is not a preprocessor; the nearest is {near[0]}") from None

    @field_validator("model")
    @classmethod
    def _none(cls, name: str) -> str:
        return "None" if name.lower() in ("", "none") else name

    @field_validator("guidance_end")
    @classmethod
    def _after_the_start(cls, end: float, info: ValidationInfo) -> float:
        start = info.data.get("guidance_start", 0.0)
        if end < start:
            raise ValueError(f"should not be less than where it starts, {start:g}")
        return end

    @field_validator("pose")
    @classmethod
    def _is_a_pose(cls, text: str) -> str:
        if not text:
            return text
        from .pose import people, written

        return written(people(text))  # in one spelling: a map that was drawn from it knows it again

    @property
    def is_heard(self) -> bool:
        """Whether it has any say."""
        return self.weight > 0

    @property
    def processed(self) -> preprocessors.Preprocessor:
        return TABLE[self.module]


class ControlNetParams(Params):
    units: tuple[Unit, ...] = Param((), "Units", max_length=MOST)

    @model_validator(mode="before")
    @classmethod
    def _as_others_write_it(cls, values: Any) -> Any:
        return {**values, "units": older.units(values.get("units", ()))} if isinstance(values, Mapping) else values

    def to_infotext(self) -> dict[str, str]:
        return words.written(self.units)

    @classmethod
    def from_infotext(cls, fields: Mapping[str, str]) -> dict[str, Any]:
        units = words.read(fields)
        return {"units": units} if units else {}


class ControlNet(Extension):
    Params = ControlNetParams
    order = 600  # after inpaint and outpaint: the picture is what they have made of it

    def check(self, request: GenerationRequest, params: ControlNetParams, images: ImageStore) -> None:
        from . import pictures

        pictures.check(request, params, images, self.roots)

    def prepare(self, request: GenerationRequest, params: ControlNetParams, images: ImageStore) -> GenerationRequest:
        from . import maps, pictures

        return pictures.prepared(request, params, images, self.roots, maps.Cache(self.data / "maps"), self.keep)

    def patch(self, run: Run, params: ControlNetParams) -> AbstractContextManager[None]:
        return self._guide(run, params).on(run)

    def contribute(self, run: Run, params: ControlNetParams) -> Contribution:
        # here and not in `patch`, after whose failure the checkpoint would be read anew
        guide = self._guide(run, params)
        models = guide.load(run, lambda name: shelf.find(self.roots, name, run.request.model))
        return Contribution(models=models, maps=() if run.further else tuple(self._kept(run, params)))

    def step(self, run: Run, params: ControlNetParams, step: Step) -> None:
        self._guide(run, params).index = step.index + 1

    def finish(self, run: Run, params: ControlNetParams, pictures: list[Image.Image]) -> list[Image.Image]:
        from .pictures import finished

        for unit in params.units:
            if unit.is_heard:
                pictures = finished(unit, run.request, run.images, pictures)
        return pictures

    def choices(self) -> Mapping[str, Sequence[Choice]]:
        names = (net.name for net in shelf.nets(self.roots))
        return {"nets": [("None", "None"), *((name, name) for name in names)]}

    def routes(self, router: APIRouter) -> None:
        from .routes import add

        add(router, self)

    def errand(self, name: str, values: dict[str, Any]) -> dict[str, Any]:
        """`detect`: the map of a preview whose preprocessor needs torch."""
        if name != "detect":
            return super().errand(name, values)
        from . import maps, preview

        wish, annotators = preview.wish(values), preprocessors.Annotators.of(self.roots, self.keep)
        return preview.made(wish, self.images, annotators, maps.Cache(self.data / "maps"))

    def _kept(self, run: Run, params: ControlNetParams) -> Iterator[Image.Image]:
        """The maps that people want to have beside the pictures; the second pass of Hires sees the same ones."""
        from .pictures import shown

        for unit in params.units:
            if unit.is_heard and unit.save_detected_map:
                yield flatten(shown(unit, run.request, run.images))

    def _guide(self, run: Run, params: ControlNetParams) -> Guide:
        from .guide import Guide

        guide: Guide = run.once(self.id, lambda: Guide(run, params))
        return guide
