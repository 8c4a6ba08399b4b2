"""What `prepare` does: each unit's map is made once and written into the unit; no torch but in an annotator.

A map stays valid while what it was made from does, which `Unit.made_from` tells. A map that was given tells nothing
there and stays.
"""

from __future__ import annotations

import hashlib
import io
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image, ImageFilter, ImageOps

from backend.catalog.roots import Roots
from backend.errors import AtelierError, gist
from backend.extension import GenerationRequest, ImageStore, InvalidRequest, NotFound, Problem
from backend.images import flatten

from . import fit, maps, pose, shelf, weightless
from .preprocessors import Annotators, missing, say_missing

if TYPE_CHECKING:
    from backend.diffusion.run import Keep

    from . import ControlNetParams, Unit

ID = "controlnet"
MASKED = {"inpaint", "outpaint"}
"""Extensions that have a mask, or will have one."""
POSED = "pose-"
"""Begins `Unit.made_from` of a map that was drawn from a pose."""
OF_REQUEST = ("Just Resize", "Crop and Resize", "Resize and Fill", "Just Resize")
"""The request's resize modes, by number, as a unit calls them."""


def prepared(
    request: GenerationRequest,
    params: ControlNetParams,
    images: ImageStore,
    roots: Roots,
    kept: maps.Cache | None,
    keep: Keep | None = None,
) -> GenerationRequest:
    """The request with every unit's control model by its whole name, its sliders as they apply, and its map.

    `kept` are the maps that have been made, `keep` has annotators in memory. Raises InvalidRequest, which names the
    unit and the field.
    """
    annotators = Annotators.of(roots, keep)
    units = tuple(
        _prepared(unit, at(number), request, images, roots, annotators, kept)
        for number, unit in enumerate(params.units)
    )
    extensions = {**request.extensions, ID: params.model_copy(update={"units": units})}
    return request.model_copy(update={"extensions": extensions})


def check(request: GenerationRequest, params: ControlNetParams, images: ImageStore, roots: Roots) -> None:
    """Raises InvalidRequest for what a look at the request and at the folders shows to be impossible."""
    for number, unit in enumerate(params.units):
        path = at(number)
        if not unit.is_heard:
            continue
        _model(unit, path, request, roots)
        if unit.map and unit.map in images:
            continue
        if unit.map and not unit.made_from:
            _get(path, "map", unit.map, images)
        if not unit.pose:
            _get(path, "image", _needed(unit, path, request), images)
            module = unit.processed
            if lacking := missing(module, Annotators.of(roots)):
                raise _wrong(path, "module", say_missing(module, lacking))
            if module.needs_mask and not unit.mask and (unit.image or not MASKED & request.extensions.keys()):
                raise _wrong(path, "mask", f"{module.label} needs a mask: white is what is drawn anew")


def at(number: int) -> str:
    """The path of a unit, for what is said of it."""
    return f"extensions.{ID}.units.{number}"


def shown(unit: Unit, request: GenerationRequest, images: ImageStore) -> Image.Image:
    """A unit's map at the size that is drawn; RGB, of the inpaint preprocessors RGBA."""
    assert unit.map
    picture = images.get(unit.map)
    if not unit.processed.needs_mask:
        picture = flatten(picture)
    if not unit.made_from and (box := _region(unit, request)):
        picture = _cropped(picture, box, unit, request, images)
    return fit.fitted(picture, (request.width, request.height), _resize_mode(unit, request))


def region_of_effect(unit: Unit, request: GenerationRequest, images: ImageStore) -> Image.Image | None:
    """Where the unit guides, L, at the size that is drawn; None: everywhere."""
    if not unit.effective_region_mask:
        return None
    mask = Image.fromarray(maps.as_mask(images.get(unit.effective_region_mask))).convert("RGB")
    if box := _region(unit, request):
        mask = _cropped(mask, box, unit, request, images)
    return fit.fitted(mask, (request.width, request.height), _resize_mode(unit, request)).convert("L")


def finished(
    unit: Unit, request: GenerationRequest, images: ImageStore, pictures: list[Image.Image]
) -> list[Image.Image]:
    """The drawn pictures, with what the unit's preprocessor brings back from its image."""
    source = _source(unit, request)
    if not unit.processed.is_finishing or not source or "inpaint" in request.extensions:
        return pictures  # beside a mask the picture is the original's already
    picture, mode = flatten(images.get(source)), _resize_mode(unit, request)
    mask = maps.as_mask(images.get(unit.mask)) if unit.mask else None
    sliders = weightless.Sliders(unit.threshold_a, unit.threshold_b)

    def brought_to(size: tuple[int, int]) -> tuple[weightless.Pixels, weightless.Mask | None]:
        if mask is None:
            return np.asarray(fit.fitted(picture, size, mode)), None
        holed = Image.fromarray(np.dstack([np.asarray(picture), 255 - _of_size(mask, picture.size)]))
        pixels = np.asarray(fit.fitted(holed, size, mode))
        return pixels[:, :, :3], 255 - pixels[:, :, 3]

    done = []
    for drawn in pictures:
        original, covered = brought_to(drawn.size)
        done.append(Image.fromarray(weightless.finished(unit.module, np.asarray(drawn), original, covered, sliders)))
    return done


def _prepared(
    unit: Unit,
    path: str,
    request: GenerationRequest,
    images: ImageStore,
    roots: Roots,
    annotators: Annotators,
    kept: maps.Cache | None,
) -> Unit:
    unit = unit.model_copy(update=_sliders(unit))
    if not unit.is_heard:
        return unit
    unit = unit.model_copy(update={"model": _model(unit, path, request, roots)})
    if unit.map and not unit.made_from:
        _get(path, "map", unit.map, images)
        return unit
    made_from = origin(unit, request)
    if unit.map and _is_from(unit, made_from) and unit.map in images:
        return unit
    return unit.model_copy(
        update={"map": _made(unit, path, request, images, annotators, kept), "made_from": made_from}
    )


def origin(unit: Unit, request: GenerationRequest) -> str:
    """What a unit's map is made from: a digest, and the size that is drawn where the map depends on it."""
    region = request.region if unit.inpaint_crop_input_image else ""
    given: list[Any] = [unit.pose, region] if unit.pose else [_source(unit, request), region]
    if region:
        given += [request.init_image, unit.resize_mode]
    if not unit.pose:
        given += [unit.module, unit.threshold_a, unit.threshold_b]
        given += [_resize_mode(unit, request) if unit.pixel_perfect else unit.processor_res]
    if unit.processed.needs_mask and not unit.pose:
        given += [unit.mask, _inpainted(request)]
    digest = (POSED if unit.pose else "") + hashlib.sha256(json.dumps(given, default=str).encode()).hexdigest()[:16]
    if not (region if unit.pose else unit.pixel_perfect and unit.processed.resolution):
        return digest
    return f"{digest} {request.width}x{request.height}{' hires' if 'hires' in request.extensions else ''}"


def _is_from(unit: Unit, now: str) -> bool:
    """Whether a map is still what it would be now; the second pass of Hires takes the map of the first."""
    made_from = unit.made_from
    if made_from.startswith(POSED) and not unit.pose:
        return True  # a picture's text names the map, and leaves out the pose
    second = "hires" not in now and made_from.endswith(" hires")
    return made_from == now or (second and made_from.split()[0] == now.split()[0])


def _sliders(unit: Unit) -> dict[str, float]:
    """Numbers in place of -1 and of what is out of range; -1 where the preprocessor has no such slider."""
    module = unit.processed
    resolution, a, b = module.resolved(unit.processor_res, unit.threshold_a, unit.threshold_b)
    return {
        "processor_res": resolution if module.resolution else -1,
        "threshold_a": float(a if module.threshold_a else -1),
        "threshold_b": float(b if module.threshold_b else -1),
    }


def _model(unit: Unit, path: str, request: GenerationRequest, roots: Roots) -> str:
    """The whole name of its control model."""
    if unit.model == "None":
        raise _wrong(path, "model", "choose a control model")
    with _named(path, "model"):
        return shelf.find(roots, unit.model, request.model).name


# --- making


def _made(
    unit: Unit,
    path: str,
    request: GenerationRequest,
    images: ImageStore,
    annotators: Annotators,
    kept: maps.Cache | None,
) -> str:
    """The name of the map."""
    box = _region(unit, request)
    if unit.pose:
        with _named(path, "pose"):
            return images.put(_png(_posed(unit, box, request, images)))
    source = _needed(unit, path, request)
    picture = _get(path, "image", source, images)
    mask = _mask(unit, path, request, images, picture.size) if unit.processed.needs_mask else None
    if unit.module == "none" and not box and picture.mode == "RGB":
        return source
    if box:
        picture = _cropped(picture, box, unit, request, images)
        mask = mask and _cropped(mask.convert("RGB"), box, unit, request, images).convert("L")
    values = maps.MapValues(
        module=unit.module,
        processor_res=unit.processor_res,
        threshold_a=unit.threshold_a,
        threshold_b=unit.threshold_b,
        pixel_perfect=(request.width, request.height) if unit.pixel_perfect else None,
        resize_mode=_resize_mode(unit, request),
    )
    try:
        made = maps.make_map(picture, mask, values, annotators, kept)
    except (AtelierError, MemoryError):
        raise
    except ValueError as error:
        raise _wrong(path, "module", str(error)) from error
    except Exception as error:  # whatever an annotator raises
        raise _wrong(path, "module", f"{unit.processed.label} failed on this image: {gist(error)}") from error
    return images.put(_png(made))


def _posed(unit: Unit, box: fit.Box | None, request: GenerationRequest, images: ImageStore) -> Image.Image:
    found = pose.people(unit.pose)
    if not box or not request.init_image:
        return pose.draw(found)
    whole = images.get(request.init_image).size
    larger = max(request.width / (box[2] - box[0]), request.height / (box[3] - box[1]), 1)
    larger = min(larger, pose.LARGEST / max(whole))
    size = round(whole[0] * larger), round(whole[1] * larger)
    left, top, right, bottom = (round(side * larger) for side in box)
    return pose.draw(found, *size).crop((left, top, right, bottom))


def _mask(
    unit: Unit, path: str, request: GenerationRequest, images: ImageStore, size: tuple[int, int]
) -> Image.Image | None:
    """White where it is drawn anew, L; that of the inpainting if the unit has none. None if there is none at all."""
    if unit.mask:
        mask = Image.fromarray(maps.as_mask(_get(path, "mask", unit.mask, images)))
        if abs(mask.width * size[1] - mask.height * size[0]) > max(*mask.size, *size):  # by more than a row of pixels
            sizes = f"{mask.width} x {mask.height} pixels, the image {size[0]} x {size[1]}"
            raise _wrong(path, "mask", f"the mask has {sizes}: they must be of one shape")
        return mask if mask.size == size else mask.resize(size, Image.Resampling.BILINEAR)
    given = _inpainted(request)
    if not given or unit.image:
        return None
    mask = Image.fromarray(maps.as_mask(images.get(str(given["mask"]))))
    if given["mode"] == "not_masked":
        mask = ImageOps.invert(mask)
    mask = mask if mask.size == size else mask.resize(size, Image.Resampling.BILINEAR)
    return mask.filter(ImageFilter.GaussianBlur(given["blur"])) if given["blur"] else mask


def _inpainted(request: GenerationRequest) -> dict[str, Any] | None:
    """What the request says to inpainting, of its mask."""
    given = request.extensions.get("inpaint")
    return {name: getattr(given, name, None) for name in ("mask", "mode", "blur")} if given else None


# --- shapes


def _source(unit: Unit, request: GenerationRequest) -> str | None:
    return unit.image or request.init_image


def _needed(unit: Unit, path: str, request: GenerationRequest) -> str:
    source = _source(unit, request)
    if not source:
        raise _wrong(path, "image", "an image is needed: give the unit one, or start from one")
    return source


def _resize_mode(unit: Unit, request: GenerationRequest) -> str:
    """That of the request where the map shows the picture that it starts from; of a region just all of it."""
    if _region(unit, request):
        return "Just Resize"
    is_given = unit.image or unit.pose or (unit.map and not unit.made_from)
    return unit.resize_mode if is_given or not request.init_image else OF_REQUEST[request.resize_mode]


def _region(unit: Unit, request: GenerationRequest) -> fit.Box | None:
    """The part of the picture that is worked on, in its own pixels: left, top, right, bottom; None: all of it."""
    found = re.fullmatch(r"(\d+)x(\d+)\+(\d+)\+(\d+)", request.region)
    if not found or not unit.inpaint_crop_input_image or not request.init_image:
        return None
    width, height, left, top = map(int, found.groups())
    return left, top, left + width, top + height


def _cropped(
    picture: Image.Image, box: fit.Box, unit: Unit, request: GenerationRequest, images: ImageStore
) -> Image.Image:
    """The region's part of a picture that lies over the request's, whatever its size."""
    assert request.init_image
    whole = images.get(request.init_image).size
    return fit.fitted(picture, whole, unit.resize_mode).crop(box)


def _of_size(mask: weightless.Mask, size: tuple[int, int]) -> weightless.Mask:
    return np.asarray(Image.fromarray(mask).resize(size, Image.Resampling.BILINEAR))


def _png(picture: Image.Image) -> bytes:
    file = io.BytesIO()
    picture.save(file, "PNG", compress_level=1)
    return file.getvalue()


# --- words


def _get(path: str, field: str, ref: str, images: ImageStore) -> Image.Image:
    try:
        return images.get(ref)
    except NotFound as error:
        raise _wrong(path, field, str(error)) from None


@contextmanager
def _named(path: str, field: str) -> Iterator[None]:
    """A ValueError inside is said of this field."""
    try:
        yield
    except ValueError as error:
        raise _wrong(path, field, str(error)) from error


def _wrong(path: str, field: str, message: str) -> InvalidRequest:
    return InvalidRequest(Problem(f"{path}.{field}", message))
