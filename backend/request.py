"""The request: all that a picture depends on."""

import random
from collections.abc import Mapping
from enum import IntEnum
from typing import Annotated, Any, Literal

from pydantic import Field, SerializeAsAny, StringConstraints, ValidationInfo, field_validator, model_validator

from backend import sampling
from backend.errors import InvalidRequest, Problem
from backend.images import ImageRef
from backend.params import Param, Params, declared, validate

MAX_SEED = 2**53 - 1  # the largest integer that JavaScript keeps
MAX_PROMPT = 8000
MAX_PIXELS = 4096 * 4096
PromptText = Annotated[str, StringConstraints(max_length=MAX_PROMPT)]


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
    negative_prompt: str = Param("", "Negative prompt", widget="prompt", max_length=MAX_PROMPT, option="--negative")
    model: str = Param("", "Model", choices="models", infotext="Model", help="A checkpoint; empty: the default.")
    vae: str = Param(
        "",
        "VAE",
        choices="vaes",
        infotext="VAE",
        group="advanced",
        help="What makes pixels of latents. Automatic: the one that is named as the model is, else the model's own.",
    )
    width: int = Param(
        512, "Width", widget="size", ge=64, le=4096, multiple_of=8, slider=(64, 2048), help="Pixels, in steps of 8."
    )
    height: int = Param(
        512, "Height", widget="size", ge=64, le=4096, multiple_of=8, slider=(64, 2048), help="Pixels, in steps of 8."
    )
    sampler_name: str = Param(
        "DPM++ 2M", "Sampler", choices=sampling.SAMPLER_CHOICES, infotext="Sampler", option="--sampler"
    )
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
    distilled_cfg_scale: float = Param(
        3.5,
        "Distilled guidance",
        ge=0,
        le=30,
        step=0.1,
        slider=(1, 10),
        infotext="Distilled CFG Scale",
        group="advanced",
        help="The same for models that have learnt to guide themselves, such as Flux dev; others do not heed it.",
    )
    image_cfg_scale: float = Param(
        1.5,
        "Image guidance",
        ge=0,
        le=30,
        step=0.05,
        slider=(0, 3),
        infotext="Image CFG scale",
        group="advanced",
        shown_for="init_image",
        help="How closely the picture follows the image, for models that edit by instruction; others do not heed it.",
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
    decoder: Literal["full", "tiny"] = Param(
        "full",
        "Decoder",
        choices=(("full", "Full"), ("tiny", "TAESD")),
        infotext="VAE Decoder",
        group="advanced",
        help="What makes a picture of latents: the model's VAE, or a tiny one, which is faster and coarser.",
    )
    init_image: ImageRef | None = Param(
        None, "Image", widget="image", option="--init", help="The picture to start from."
    )
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
    prompts: tuple[PromptText, ...] = ()
    """One for each image, where they differ: what an extension has made of `prompt`, which is then the first's."""
    negative_prompts: tuple[PromptText, ...] = ()
    """The same of `negative_prompt`."""
    extensions: dict[str, SerializeAsAny[Params]] = Field(default_factory=dict)
    """Parameters of the extensions that take part, by id; an extension that is not here is off."""

    @property
    def task(self) -> Task:
        return Task.IMAGE_TO_IMAGE if self.init_image else Task.TEXT_TO_IMAGE

    @property
    def region(self) -> str:
        """The part of the picture that an extension works on, "512x384+64+0"; empty: all of it."""
        for params in self.extensions.values():
            for name, _, hints in declared(type(params)):
                if hints.widget == "region":
                    return str(getattr(params, name))
        return ""

    @property
    def images(self) -> int:
        return self.batch_size * self.n_iter

    @property
    def seeds(self) -> tuple[int, ...]:
        """Of its images: A1111 counts on from the first."""
        return tuple((self.seed + index) % (MAX_SEED + 1) for index in range(self.images))

    def prompts_of(self, index: int) -> tuple[str, str]:
        """Prompt and negative prompt of one image."""
        prompt = self.prompts[index] if self.prompts else self.prompt
        return prompt, self.negative_prompts[index] if self.negative_prompts else self.negative_prompt

    def alone(self, first: int, count: int = 1) -> "GenerationRequest":
        """The request for `count` of its images, from `first` on; they share the prompts of the first."""
        prompt, negative_prompt = self.prompts_of(first)
        changes = {"prompt": prompt, "negative_prompt": negative_prompt, "prompts": (), "negative_prompts": ()}
        return self.model_copy(update={**changes, "seed": self.seeds[first], "batch_size": count, "n_iter": 1})

    def calling(self, extension: str, **parameters: Any) -> "GenerationRequest":
        """The same with an extension on; the engine checks `parameters` as it checks what the page sends."""
        return self.model_copy(update={"extensions": {**self.extensions, extension: parameters}})

    def checked(self, extensions: Mapping[str, type[Params]]) -> "GenerationRequest":
        """The same with every extension's parameters in their own class; InvalidRequest names what is wrong."""
        typed, problems = _typed(self.extensions, extensions)
        if problems:
            raise InvalidRequest(*problems)
        return self.model_copy(update={"extensions": typed})

    def with_seed_drawn(self) -> "GenerationRequest":
        """The same request with a definite seed, in A1111's range when it was -1."""
        return self if self.seed >= 0 else self.model_copy(update={"seed": random.randrange(4294967294)})

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

    @field_validator("prompts", "negative_prompts")
    @classmethod
    def _one_for_each_image(cls, given: tuple[str, ...], info: ValidationInfo) -> tuple[str, ...]:
        images = info.data.get("batch_size", 0) * info.data.get("n_iter", 0)
        if given and images and len(given) != images:
            raise ValueError(f"there should be one for each of the {images} images, there are {len(given)}")
        return given

    @field_validator("vae")
    @classmethod
    def _as_a1111_says(cls, name: str) -> str:
        """In texts of pictures."""
        return {"automatic": "", "none": "none"}.get(name.lower(), name)

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
    typed, problems = _typed(values.get("extensions", {}), extensions or {})
    try:
        request = validate(GenerationRequest, {**values, "extensions": typed})
    except InvalidRequest as error:
        raise InvalidRequest(*error.problems, *problems) from None
    if problems:
        raise InvalidRequest(*problems)
    return request


def _typed(given: Any, extensions: Mapping[str, type[Params]]) -> tuple[dict[str, Params], list[Problem]]:
    """Each extension's parameters in its own class, and what is wrong with the others."""
    if not isinstance(given, Mapping):
        return {}, [Problem("extensions", "should be an object: parameters by the extension's id")]
    typed: dict[str, Params] = {}
    problems: list[Problem] = []
    for name, parameters in given.items():
        if isinstance(parameters, Params):
            typed[name] = parameters
        elif name not in extensions:
            problems.append(Problem(f"extensions.{name}", "there is no such extension here, or it is disabled"))
        else:
            try:
                typed[name] = validate(extensions[name], parameters)
            except InvalidRequest as error:
                problems += [Problem(f"extensions.{name}.{p.field}".rstrip("."), p.message) for p in error.problems]
    return typed, problems


def _known(name: str, names: list[str], what: str) -> str:
    if name not in names:
        raise ValueError(f"{name[:40]!r} is not a {what}; there are {', '.join(names)}")
    return name
