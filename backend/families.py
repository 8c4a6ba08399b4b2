"""What is known of each family of models without loading one; no torch. What can be run, `backend.diffusion` says."""

from collections.abc import Collection, Iterator, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

from backend.errors import Problem


class Traits(NamedTuple):
    step: int = 8
    """Width and height are multiples of it."""
    defaults: Mapping[str, Any] = MappingProxyType({})
    """Request fields that suit it better than A1111's defaults."""
    editions: Mapping[str, Mapping[str, Any]] = MappingProxyType({})
    """What else suits some of its models, by the `edition` that the catalogue tells."""
    from_images: Collection[str] = ()
    """Variants that draw nothing without an image."""
    self_guided: Collection[str] = ()
    """Editions that take no other guidance than what they have learnt."""


_LARGE = {"width": 1024, "height": 1024}
_FLOWING = {**_LARGE, "sampler_name": "Euler"}

FAMILIES: Mapping[str, Traits] = {
    "sd1": Traits(from_images=("edit",)),
    **dict.fromkeys(("sdxl", "sdxl-refiner"), Traits(defaults=_LARGE)),
    "sd3": Traits(16, {**_FLOWING, "steps": 28, "cfg_scale": 4.5}),
    "flux": Traits(
        16,
        {**_FLOWING, "steps": 28, "cfg_scale": 1.0},
        {
            "schnell": {"steps": 4},
            "kontext": {"distilled_cfg_scale": 2.5, "denoising_strength": 1.0},
            "fill": {"steps": 50, "distilled_cfg_scale": 30.0, "denoising_strength": 1.0},
        },
        from_images=("edit",),
    ),
    "flux2": Traits(
        16,
        {**_FLOWING, "steps": 4, "cfg_scale": 1.0},
        {"base": {"steps": 50, "cfg_scale": 4.0}, "dev": {"steps": 50, "distilled_cfg_scale": 4.0}},
        self_guided=("dev",),
    ),
    "chroma": Traits(16, {**_FLOWING, "steps": 35, "cfg_scale": 5.0}),
    "z-image": Traits(16, {**_FLOWING, "steps": 9, "cfg_scale": 1.0}),
    "qwen-image": Traits(16, {**_FLOWING, "width": 1328, "height": 1328, "steps": 50, "cfg_scale": 4.0}),
    "pixart": Traits(16, {**_LARGE, "steps": 20, "cfg_scale": 4.5}),
    "sana": Traits(32, {**_FLOWING, "steps": 20, "cfg_scale": 4.5}),
}

NO_IMAGE = Problem("init_image", "this model changes a picture as the prompt says: give it one")

NO_GUIDANCE = Problem("cfg_scale", "this model guides itself, as distilled_cfg_scale says: leave it at 1")


def traits(family: str) -> Traits:
    return FAMILIES.get(family, Traits())


def defaults(family: str, edition: str = "") -> dict[str, Any]:
    """Request fields that suit a model."""
    found = traits(family)
    return {**found.defaults, **found.editions.get(edition, {})}


def misfits(family: str, **sides: int) -> Iterator[Problem]:
    """What is wrong with a size for a model of the family."""
    step = traits(family).step
    for name, side in sides.items():
        if side % step:
            below = side // step * step
            yield Problem(name, f"this model draws in steps of {step} pixels: {below} or {below + step}, not {side}")


def nearest(family: str, side: int) -> int:
    """The side that a model of the family can draw."""
    step = traits(family).step
    return max(round(side / step), 1) * step
