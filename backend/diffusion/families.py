"""What kinds of models can be run: their parts, their pipelines, how their prompts are read. A table and nothing else.

A folder never brings code of its own: what it asks for is in the table, or it is refused.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

from diffusers import AutoencoderKL, UNet2DConditionModel
from transformers import CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from backend.diffusion.encode import Reading


class Part(NamedTuple):
    """A component that is read from a folder of its own."""

    kind: Any
    weights: str = ""
    """The stem of their file; empty: it has none."""
    upcasts: bool = False
    """Whether it is read as float32 even on a graphics card, if its config says `force_upcast`."""

    @property
    def name(self) -> list[str]:
        """How model_index.json calls it."""
        return [self.kind.__module__.partition(".")[0], self.kind.__name__]


class Family(NamedTuple):
    parts: Mapping[str, Part]
    pipelines: Mapping[tuple[bool, bool], str]
    """The name of diffusers' class, by whether it inpaints and whether it has a ControlNet; imported when needed."""
    reading: Reading


STABLE_DIFFUSION = Family(
    parts={
        "tokenizer": Part(CLIPTokenizer),
        "text_encoder": Part(CLIPTextModel, "model"),
        "vae": Part(AutoencoderKL, "diffusion_pytorch_model"),
        "unet": Part(UNet2DConditionModel, "diffusion_pytorch_model"),
    },
    pipelines={
        (False, False): "StableDiffusionPipeline",
        (False, True): "StableDiffusionControlNetPipeline",
        (True, False): "StableDiffusionInpaintPipeline",
        (True, True): "StableDiffusionControlNetInpaintPipeline",
    },
    reading=Reading(encoders={"text_encoder": "tokenizer"}),
)

STABLE_DIFFUSION_XL = Family(
    parts={
        "tokenizer": Part(CLIPTokenizer),
        "tokenizer_2": Part(CLIPTokenizer),
        "text_encoder": Part(CLIPTextModel, "model"),
        "text_encoder_2": Part(CLIPTextModelWithProjection, "model"),
        "vae": Part(AutoencoderKL, "diffusion_pytorch_model", upcasts=True),
        "unet": Part(UNet2DConditionModel, "diffusion_pytorch_model"),
    },
    pipelines={
        (False, False): "StableDiffusionXLPipeline",
        (False, True): "StableDiffusionXLControlNetPipeline",
        (True, False): "StableDiffusionXLInpaintPipeline",
        (True, True): "StableDiffusionXLControlNetInpaintPipeline",
    },
    reading=Reading(
        encoders={"text_encoder": "tokenizer", "text_encoder_2": "tokenizer_2"},
        layer=2,
        pooled=True,
        empty_negative_is_zero=True,
    ),
)

FAMILIES: Mapping[str, Family] = {
    family.pipelines[inpaints, False]: family
    for family in (STABLE_DIFFUSION, STABLE_DIFFUSION_XL)
    for inpaints in (False, True)
}
"""By the pipeline class that a folder's model_index.json names."""
