"""What suits a model better than what suits all: request fields that people give it defaults for, on its card."""

from collections.abc import Mapping
from typing import Any

from backend import families
from backend.errors import InvalidRequest, Problem
from backend.request import parse_request

FIELDS = (
    *("sampler_name", "scheduler", "steps", "cfg_scale", "distilled_cfg_scale", "image_cfg_scale"),
    *("denoising_strength", "width", "height", "clip_skip", "vae"),
)


def checked(given: Mapping[str, Any], family: str) -> dict[str, Any]:
    """Defaults for a model of the family, as a request has them. Raises InvalidRequest with all that is wrong."""
    strange = [Problem(name[:40], "no model has a default for it") for name in given if name not in FIELDS]
    known = {name: value for name, value in given.items() if name in FIELDS}
    try:
        request = parse_request(known)
    except InvalidRequest as error:
        raise InvalidRequest(*strange, *error.problems) from None
    sides = {name: getattr(request, name) for name in ("width", "height") if name in known}
    if problems := [*strange, *families.misfits(family, **sides)]:
        raise InvalidRequest(*problems)
    changed = request.model_dump(exclude_defaults=True)  # the sampler "DPM++ 2M Karras" brings a schedule
    return {name: getattr(request, name) for name in FIELDS if name in known or name in changed}


def heeded(given: Mapping[str, Any], family: str) -> tuple[dict[str, Any], str]:
    """Those of the defaults that are right, and what is wrong with the others."""
    right: dict[str, Any] = {}
    wrong = []
    for name, value in given.items():
        try:
            right |= checked({name: value}, family)
        except InvalidRequest as error:
            wrong.append(str(error))
    return right, "; ".join(wrong)
