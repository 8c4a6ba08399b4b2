"""What kinds of models can be run: their parts, their pipelines, how their prompts are read. A table and nothing else.

A folder never brings code of its own: what it asks for is in the table, or it is refused.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

from diffusers import AutoencoderKL, FluxTransformer2DModel, SD3Transformer2DModel, UNet2DConditionModel
from transformers import CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer, T5EncoderModel, T5Tokenizer

from backend.diffusion import packing
from backend.diffusion.encode import Reading, Sentence
from backend.diffusion.samplers import Flow


class Part(NamedTuple):
    """A component that is read from a folder of its own."""

    kind: Any
    weights: str = ""
    """The stem of their file; empty: it has none."""
    upcasts: bool = False
    """Whether it is read as float32 even on a graphics card, if its config says `force_upcast`."""
    optional: bool = False
    """Whether the model can be run without it."""

    def is_named(self, given: object) -> bool:
        """Whether model_index.json, which gives a library and a class, means this."""
        if self.optional and given in (None, [None, None]):
            return True
        if not isinstance(given, list) or len(given) != 2:
            return False
        library, name = given
        # transformers had two classes of a tokenizer, and has one
        return (library, str(name).removesuffix("Fast")) == (
            self.kind.__module__.partition(".")[0],
            self.kind.__name__,
        )


class Family(NamedTuple):
    parts: Mapping[str, Part]
    pipelines: Mapping[tuple[bool, bool], str]
    """The name of diffusers' class, by whether it inpaints and whether it has a ControlNet; imported when needed."""
    reading: Reading
    denoiser: str = "unet"
    """The part that is called at every step: "unet" or "transformer"."""
    flow: Flow | None = None
    """Set where it is one."""
    guidance: str = "guidance_scale"
    """The pipelines' argument for the request's guidance."""
    distilled: str = ""
    """The argument for guidance that the model has learnt to give by itself; empty: it has not."""


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
        pooled="last",
        empty_negative_is_zero=True,
    ),
)

STABLE_DIFFUSION_3 = Family(
    parts={
        "tokenizer": Part(CLIPTokenizer),
        "tokenizer_2": Part(CLIPTokenizer),
        "tokenizer_3": Part(T5Tokenizer, optional=True),
        "text_encoder": Part(CLIPTextModelWithProjection, "model"),
        "text_encoder_2": Part(CLIPTextModelWithProjection, "model"),
        "text_encoder_3": Part(T5EncoderModel, "model", optional=True),
        "vae": Part(AutoencoderKL, "diffusion_pytorch_model", upcasts=True),
        "transformer": Part(SD3Transformer2DModel, "diffusion_pytorch_model"),
    },
    pipelines={
        (False, False): "StableDiffusion3Pipeline",
        (False, True): "StableDiffusion3ControlNetPipeline",
        (True, False): "StableDiffusion3InpaintPipeline",
        (True, True): "StableDiffusion3ControlNetInpaintingPipeline",
    },
    reading=Reading(
        encoders={"text_encoder": "tokenizer", "text_encoder_2": "tokenizer_2"},
        layer=2,
        pooled="all",
        sentence=Sentence("text_encoder_3", "tokenizer_3", 256),
    ),
    denoiser="transformer",
    flow=Flow(),
)

FLUX = Family(
    parts={
        "tokenizer": Part(CLIPTokenizer),
        "tokenizer_2": Part(T5Tokenizer),
        "text_encoder": Part(CLIPTextModel, "model"),
        "text_encoder_2": Part(T5EncoderModel, "model"),
        "vae": Part(AutoencoderKL, "diffusion_pytorch_model", upcasts=True),
        "transformer": Part(FluxTransformer2DModel, "diffusion_pytorch_model"),
    },
    pipelines={
        (False, False): "FluxPipeline",
        (False, True): "FluxControlNetPipeline",
        (True, False): "FluxInpaintPipeline",
        (True, True): "FluxControlNetInpaintPipeline",
    },
    reading=Reading(
        encoders={"text_encoder": "tokenizer"},
        pooled="last",
        states=False,
        sentence=Sentence("text_encoder_2", "tokenizer_2", 512),
    ),
    denoiser="transformer",
    flow=Flow(packing.pack, packing.unpack, ends_with_steps=True),
    guidance="true_cfg_scale",
    distilled="guidance_scale",
)

FAMILIES: Mapping[str, Family] = {
    **dict.fromkeys(("StableDiffusionPipeline", "StableDiffusionInpaintPipeline"), STABLE_DIFFUSION),
    **dict.fromkeys(("StableDiffusionXLPipeline", "StableDiffusionXLInpaintPipeline"), STABLE_DIFFUSION_XL),
    "StableDiffusion3Pipeline": STABLE_DIFFUSION_3,
    "FluxPipeline": FLUX,
}
"""By the pipeline class that a folder's model_index.json names."""
