"""Hires: draws the picture once more at a larger size, starting from the first one (A1111's Hires. fix)."""

import re
from collections.abc import Mapping
from typing import Any, Literal, get_args

from PIL import Image
from pydantic import field_validator

from backend.extension import (
    MAX_PROMPT,
    Choice,
    Contribution,
    Extension,
    GenerationRequest,
    ImageStore,
    InvalidRequest,
    Param,
    Params,
    Problem,
    declared,
)

Upscaler = Literal[
    "Latent",
    "Latent (antialiased)",
    "Latent (bicubic)",
    "Latent (bicubic antialiased)",
    "Latent (nearest)",
    "Latent (nearest-exact)",
    "Lanczos",
    "Nearest",
]
SMALLEST, LARGEST = 64, 4096
KEYS = ("Hires upscale", "Hires resize", "Hires upscaler")
_CORE = {name: hints for name, _, hints in declared(GenerationRequest)}


def _choices(name: str) -> tuple[Choice, ...]:
    """Those of one of the request's own parameters, or the same as it has."""
    own = _CORE[name].choices or ()
    return ("", "The same"), *(() if isinstance(own, str) else own)


class HiresParams(Params):
    upscaler: Upscaler = Param(
        "Latent",
        "Upscaler",
        choices=tuple((name, name) for name in get_args(Upscaler)),
        infotext="Hires upscaler",
        help="Latents need a denoising strength of 0.5 or more, or they stay blurred.",
    )
    scale: float = Param(2.0, "Upscale by", ge=1, le=4, step=0.05, infotext="Hires upscale")
    width: int = Param(
        0,
        "Width",
        ge=0,
        le=LARGEST,
        multiple_of=8,
        slider=(0, 2048),
        infotext="Hires resize",
        help="In place of a factor; 0: as the height has it.",
    )
    height: int = Param(
        0,
        "Height",
        ge=0,
        le=LARGEST,
        multiple_of=8,
        slider=(0, 2048),
        infotext="Hires resize",
        help="In place of a factor; 0: as the width has it.",
    )
    denoising_strength: float = Param(
        0.7,
        "Denoising strength",
        ge=0,
        le=1,
        step=0.01,
        infotext="Denoising strength",
        help="0 keeps the first picture, 1 ignores it.",
    )
    steps: int = Param(
        0, "Steps", ge=0, le=150, step=1, infotext="Hires steps", help="All of them are run; 0: as many as before."
    )
    sampler_name: str = Param(
        "", "Sampler", choices=_choices("sampler_name"), infotext="Hires sampler", group="advanced"
    )
    scheduler: str = Param(
        "", "Schedule", choices=_choices("scheduler"), infotext="Hires schedule type", group="advanced"
    )
    prompt: str = Param(
        "",
        "Prompt",
        widget="prompt",
        max_length=MAX_PROMPT,
        infotext="Hires prompt",
        group="advanced",
        help="Empty: the same.",
    )
    negative_prompt: str = Param(
        "",
        "Negative prompt",
        widget="prompt",
        max_length=MAX_PROMPT,
        infotext="Hires negative prompt",
        group="advanced",
        help="Empty: the same.",
    )

    @field_validator("sampler_name", "scheduler")
    @classmethod
    def _known(cls, name: str, info: Any) -> str:
        names = [known for known, _ in _choices(info.field_name)]
        if name not in names:
            raise ValueError(f"{name[:40]!r} is not known; there are {', '.join(names[1:])}")
        return name

    def size(self, width: int, height: int, step: int = 8) -> tuple[int, int]:
        """Of the larger picture, in multiples of `step`. Raises ValueError if it is too small or too large."""
        if self.width or self.height:
            wanted = self.width or self.height * width // height, self.height or self.width * height // width
        else:
            wanted = int(width * self.scale), int(height * self.scale)
        across, down = (side // step * step for side in wanted)
        if not (SMALLEST <= across <= LARGEST and SMALLEST <= down <= LARGEST):
            raise ValueError(f"{across} x {down} pixels cannot be drawn: {SMALLEST} to {LARGEST} a side can")
        return across, down

    def to_infotext(self) -> dict[str, str]:
        fields = super().to_infotext()
        said = {key: fields[key] for name, key in _KEYS.items() if getattr(self, name) or name not in _LIKE_THE_FIRST}
        if self.width or self.height:
            del said["Hires upscale"]
            said["Hires resize"] = f"{self.width}x{self.height}"
        return said

    @classmethod
    def from_infotext(cls, fields: Mapping[str, str]) -> dict[str, Any]:
        if not any(key in fields for key in KEYS):
            return {}  # a denoising strength alone is image-to-image's
        size = re.fullmatch(r"(\d{1,5})x(\d{1,5})", fields.get("Hires resize", ""))
        width, height = size.groups() if size else (0, 0)
        return super().from_infotext(fields) | {"width": width, "height": height}


_KEYS = {name: hints.infotext for name, _, hints in declared(HiresParams) if hints.infotext}
_LIKE_THE_FIRST = ("width", "height", "steps", "sampler_name", "scheduler", "prompt", "negative_prompt")
"""What is left unsaid where it is 0 or empty."""


class Hires(Extension):
    Params = HiresParams
    order = 10  # before what others do to the finished picture

    def check(self, request: GenerationRequest, params: HiresParams, images: ImageStore) -> None:
        if request.init_image:
            reason = "Hires begins with a picture of its own; to enlarge an image, ask for a larger size"
            raise InvalidRequest(Problem("init_image", reason))
        try:
            params.size(request.width, request.height)
        except ValueError as error:
            field = "width" if params.width else "height" if params.height else "scale"
            raise InvalidRequest(Problem(f"extensions.{self.id}.{field}", str(error))) from None

    def prepare(self, request: GenerationRequest, params: HiresParams, images: ImageStore) -> GenerationRequest:
        if params.width or params.height:  # then the factor means nothing, and the picture's text leaves it out
            params = params.model_copy(update={"scale": HiresParams().scale})
        return request.model_copy(update={"extensions": {**request.extensions, self.id: params}})

    def contribute(self, run: Any, params: HiresParams) -> Contribution:
        return Contribution(further_steps=params.steps or run.request.steps)

    def finish(self, run: Any, params: HiresParams, pictures: list[Image.Image]) -> list[Image.Image]:
        from .enlarge import start

        first = run.batch
        size = params.size(first.width, first.height, run.step_of_size)
        second = {
            "width": size[0],
            "height": size[1],
            "steps": params.steps or first.steps,
            "denoising_strength": params.denoising_strength,
            "sampler_name": params.sampler_name or first.sampler_name,
            "scheduler": params.scheduler or first.scheduler,
            "prompt": params.prompt or first.prompt,
            "negative_prompt": params.negative_prompt or first.negative_prompt,
            "extensions": {id: others for id, others in first.extensions.items() if id != self.id},
        }
        latents = start(run, pictures, size, params.upscaler)
        drawn: list[Image.Image] = run.generate(first.model_copy(update=second), start=latents, finish=False)
        return drawn
