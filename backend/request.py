"""The request: all that a picture depends on."""

import random
from collections.abc import Mapping
from enum import IntEnum
from typing import Any

from pydantic import Field, SerializeAsAny, field_validator, model_validator

from backend import sampling
from backend.errors import InvalidRequest, Problem
from backend.images import ImageRef
from backend.params import Param, Params, validate

MAX_SEED = 2**53 - 1  # the largest integer that JavaScript keeps
MAX_PROMPT = 8000
MAX_PIXELS = 4096 * 4096


class Task(IntEnum):
    """What the pipeline is asked for; the highest that anybody asks for wins."""

    TEXT_TO_IMAGE = 0
    IMAGE_TO_IMAGE = 1
    INPAINT = 2


class ResizeMode(IntEnum):
    """How an input image comes to the size asked for (A1111's `resize_mode`)."""

    JUST_RESIZE = 0
    CROP_AND_RESIZE = 1
    RESIZE_AND_FILL = 2
    LATENT_UPSCALE = 3


class GenerationRequest(Params):
    """Frozen; the field names are those of A1111's API. Defaults are A1111's, a model may bring better ones."""

    prompt: str = Param("", "Prompt", widget="prompt", max_length=MAX_PROMPT)
    negative_prompt: str = Param("", "Negative prompt", widget="prompt", max_length=MAX_PROMPT)
    model: str = Param("", "Model", choices="models", infotext="Model", help="A checkpoint; empty: the default.")
    width: int = Param(
        512, "Width", widget="size", ge=64, le=4096, multiple_of=8, slider=(64, 2048), help="Pixels, in steps of 8."
    )
    height: int = Param(
        512, "Height", widget="size", ge=64, le=4096, multiple_of=8, slider=(64, 2048), help="Pixels, in steps of 8."
    )
    sampler_name: str = Param("DPM++ 2M", "Sampler", choices=sampling.SAMPLER_CHOICES, infotext="Sampler")
    scheduler: str = Param(
        sampling.AUTOMATIC,
        "Schedule",
        choices=sampling.SCHEDULE_CHOICES,
        infotext="Schedule type",
        help="How the noise falls from step to step; Automatic is the sampler's own.",
    )
    steps: int = Param(20, "Steps", ge=1, le=150, step=1, infotext="Steps", help="More steps: finer, slower.")
    cfg_scale: float = Param(
        7.0,
        "Guidance",
        ge=0,
        le=100,
        step=0.1,
        slider=(1, 20),
        infotext="CFG scale",
        help="How closely the picture follows the prompt.",
    )
    seed: int = Param(-1, "Seed", widget="seed", ge=-1, le=MAX_SEED, infotext="Seed", help="-1: a new one each time.")
    batch_size: int = Param(1, "Batch size", ge=1, le=8, step=1, help="Pictures drawn at once.")
    n_iter: int = Param(1, "Batches", ge=1, le=100, step=1, help="How often a batch is drawn.")
    clip_skip: int = Param(
        1,
        "Clip skip",
        ge=1,
        le=12,
        step=1,
        infotext="Clip skip",
        group="advanced",
        help="Which layer of the text encoder is read, from the end.",
    )
    init_image: ImageRef | None = Param(None, "Image", widget="image", help="The picture to start from.")
    denoising_strength: float = Param(
        0.75,
        "Denoising strength",
        ge=0,
        le=1,
        step=0.01,
        infotext="Denoising strength",
        shown_for="init_image",
        help="0 keeps the image, 1 ignores it.",
    )
    resize_mode: ResizeMode = Param(
        ResizeMode.JUST_RESIZE,
        "Resize mode",
        choices=(
            (0, "Just resize"),
            (1, "Crop and resize"),
            (2, "Resize and fill"),
            (3, "Just resize (latent upscale)"),
        ),
        shown_for="init_image",
        infotext="Resize mode",
    )
    extensions: dict[str, SerializeAsAny[Params]] = Field(default_factory=dict)
    """Parameters of the extensions that take part, by id; an extension that is not here is off."""

    @property
    def task(self) -> Task:
        return Task.IMAGE_TO_IMAGE if self.init_image else Task.TEXT_TO_IMAGE

    @property
    def images(self) -> int:
        return self.batch_size * self.n_iter

    def with_seed_drawn(self) -> "GenerationRequest":
        """The same request with a definite seed, in A1111's range when it was -1."""
        return self if self.seed >= 0 else self.model_copy(update={"seed": random.randrange(4294967294)})

    def dump(self) -> dict[str, Any]:
        """As JSON keeps it; what has its default value is left out."""
        return self.model_dump(mode="json", exclude_defaults=True)

    @model_validator(mode="before")
    @classmethod
    def _canonical_names(cls, values: Any) -> Any:
        """ "DPM++ 2M Karras" and A1111's aliases become the two names that are kept."""
        if not isinstance(values, dict) or not isinstance(values.get("sampler_name", ""), str):
            return values
        schedule = values.get("scheduler", sampling.AUTOMATIC)
        if not isinstance(schedule, str):
            return values
        try:
            sampler, schedule = sampling.resolve(values.get("sampler_name", "DPM++ 2M"), schedule)
        except InvalidRequest:
            return values  # said at the field, below
        return {**values, "sampler_name": sampler, "scheduler": schedule}

    @field_validator("sampler_name")
    @classmethod
    def _known_sampler(cls, name: str) -> str:
        return _known(name, [s.name for s in sampling.SAMPLERS], "sampler")

    @field_validator("scheduler")
    @classmethod
    def _known_schedule(cls, name: str) -> str:
        return _known(name, [s.label for s in sampling.SCHEDULES], "schedule")


def parse_request(
    values: Mapping[str, Any], extensions: Mapping[str, type[Params]] | None = None
) -> GenerationRequest:
    """A request from untrusted values; `InvalidRequest` names every field that is wrong."""
    problems: list[Problem] = []
    typed: dict[str, Params] = {}
    given = values.get("extensions", {})
    if not isinstance(given, Mapping):
        given, problems = {}, [Problem("extensions", "should be an object: parameters by the extension's id")]
    for name, parameters in given.items():
        try:
            typed[name] = _typed(name, parameters, extensions or {})
        except InvalidRequest as error:
            problems += [Problem(f"extensions.{name}.{p.field}".rstrip("."), p.message) for p in error.problems]
    try:
        request = validate(GenerationRequest, {**values, "extensions": typed})
    except InvalidRequest as error:
        raise InvalidRequest(*error.problems, *problems) from None
    if problems:
        raise InvalidRequest(*problems)
    return request


def _typed(name: str, given: Any, extensions: Mapping[str, type[Params]]) -> Params:
    if isinstance(given, Params):
        return given
    if name not in extensions:
        raise InvalidRequest(Problem("", "there is no such extension here, or it is disabled"))
    return validate(extensions[name], given)


def _known(name: str, names: list[str], what: str) -> str:
    if name not in names:
        raise ValueError(f"{name[:40]!r} is not a {what}; there are {', '.join(names)}")
    return name
