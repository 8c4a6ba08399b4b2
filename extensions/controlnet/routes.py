"""What the page asks of ControlNet: what there is, a preview of a map, the drawing of a pose, weights from the hub."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import anyio
import anyio.to_thread
from pydantic import BaseModel, ConfigDict, Field

from backend.extension import Facet, ImageRef, InvalidRequest, Problem, Refused

from . import Unit, maps, preview, shelf
from .hub import Hub
from .maps import MapValues
from .preprocessors import FOLDER, TABLE, Annotators, Preprocessor, control_types, find, missing, say_missing, source

if TYPE_CHECKING:
    from fastapi import APIRouter

    from backend.extension import Extension

MAX_BODY = 512 * 1024
"""Bytes of a question; images travel as refs."""
AT_ONCE = 2
"""Maps made at the same time; each may take 500 MB of memory."""
MODELS = {
    "InstructP2P": ("ip2p",),
    "Segmentation": ("seg",),
    "NormalMap": ("normal",),
    "T2I-Adapter": ("t2i_adapter", "t2iadapter", "t2ia"),
    "Scribble": ("scribble", "sketch"),
    "Tile": ("tile", "blur"),
    "OpenPose": ("openpose", "densepose"),
}
"""What names of control models hold, for the types whose models have other names than theirs."""


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid")


class Wanted(_Strict):
    """A unit as the form has it, and what the request says beside it."""

    unit: Unit
    width: int = Field(512, ge=1, le=16384)
    height: int = Field(512, ge=1, le=16384)
    init_image: ImageRef | None = None


class Posed(_Strict):
    pose: str = Field(max_length=200_000)


class Named(_Strict):
    module: str = Field(max_length=100)


def add(router: APIRouter, extension: Extension) -> None:
    annotators = Annotators.of(extension.roots)
    cache = maps.Cache(extension.data / "maps")
    hub = Hub(extension.models / FOLDER)
    making = anyio.CapacityLimiter(AT_ONCE)

    @router.get("/preprocessors")
    def preprocessors() -> list[dict[str, Any]]:
        return [described(module, annotators) for module in TABLE.values()]

    @router.get("/types")
    def types() -> dict[str, dict[str, Any]]:
        return types_with(net.name for net in shelf.nets(extension.roots))

    @router.post("/preview", max_body_size=MAX_BODY)
    async def show(wanted: Wanted) -> dict[str, Any]:
        if wanted.unit.pose:
            return await anyio.to_thread.run_sync(preview.drawn, wanted.unit.pose, extension.images, limiter=making)
        wish = _wish(wanted)
        make = preview.made if wanted.unit.processed.is_weightless else preview.known
        found = await anyio.to_thread.run_sync(make, wish, extension.images, annotators, cache, limiter=making)
        return found or await extension.ask("detect", wish.written())

    @router.post("/pose/draw", max_body_size=MAX_BODY)
    async def draw(posed: Posed) -> dict[str, Any]:
        return await anyio.to_thread.run_sync(preview.drawn, posed.pose, extension.images, limiter=making)

    @router.get("/downloads")
    def downloads() -> dict[str, Any]:
        return {"allowed": extension.allow_downloads, "files": hub.state()}

    @router.post("/downloads", status_code=202, max_body_size=MAX_BODY)
    def download(named: Named) -> dict[str, Any]:
        if not extension.allow_downloads:
            raise Refused(
                "weights are not fetched here: set allow_downloads = true in settings.toml in the data folder,"
                " or put them into models/annotators yourself"
            )
        try:
            module = find(named.module)
        except ValueError as error:
            raise InvalidRequest(Problem("module", str(error))) from None
        hub.start(missing(module, annotators))
        return downloads()


def _wish(wanted: Wanted) -> preview.Wish:
    unit = wanted.unit
    image = unit.image or wanted.init_image
    if not image:
        raise InvalidRequest(Problem("image", "an image is needed: give the unit one, or start from one"))
    values = MapValues(
        unit.module,
        unit.processor_res,
        unit.threshold_a,
        unit.threshold_b,
        (wanted.width, wanted.height) if unit.pixel_perfect else None,
        unit.resize_mode,
    )
    return preview.Wish(image, unit.mask, values)


# what there is


def described(module: Preprocessor, annotators: Annotators) -> dict[str, Any]:
    lacking = missing(module, annotators)
    return {
        "name": module.name,
        "label": module.label,
        "types": list(module.types),
        "weightless": module.is_weightless,
        "pose": module.is_pose,
        "needs_mask": module.needs_mask,
        "sliders": {
            name: facet._asdict()
            for name in ("resolution", "threshold_a", "threshold_b")
            if isinstance(facet := getattr(module, name), Facet)
        },
        "missing": [{"file": file, "page": source(file).page} for file in lacking],
        "hint": say_missing(module, lacking) if lacking else "",
    }


def types_with(models: Iterable[str]) -> dict[str, dict[str, Any]]:
    """The control types with their preprocessors and control models, the ones to begin with, by name."""
    names = list(models)
    found: dict[str, dict[str, Any]] = {}
    for kind, modules in {"All": list(TABLE.values()), **control_types()}.items():
        fitting = [name for name in names if kind == "All" or fits(kind, name)]
        first = next((name for name in fitting if "11" in name.partition(" [")[0]), next(iter(fitting), "None"))
        found[kind] = {
            "modules": [module.name for module in modules],
            "models": fitting,
            "default_module": modules[0].name,
            "default_model": "None" if kind == "All" else first,
        }
    return found


def fits(kind: str, model: str) -> bool:
    """Whether a control model's name says that it is for this control type; a union model is for all."""
    name = model.partition(" [")[0].lower()
    return "union" in name or any(part in name for part in MODELS.get(kind, (kind.lower(),)))
