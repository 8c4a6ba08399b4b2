"""What kinds of models can be run: their parts, their pipelines, how their prompts are read. A table and nothing else.

A folder never brings code of its own: what it asks for is in the table, or it is refused.
"""

from collections.abc import Callable, Mapping
from inspect import signature
from types import MappingProxyType
from typing import Any, Literal, NamedTuple

from diffusers import (
    AutoencoderDC,
    AutoencoderKL,
    AutoencoderKLFlux2,
    AutoencoderKLQwenImage,
    ChromaTransformer2DModel,
    Flux2Transformer2DModel,
    FluxTransformer2DModel,
    PixArtTransformer2DModel,
    QwenImageTransformer2DModel,
    SanaPipeline,
    SanaTransformer2DModel,
    SD3Transformer2DModel,
    UNet2DConditionModel,
    ZImageTransformer2DModel,
)
from diffusers.pipelines.flux2.pipeline_flux2 import compute_empirical_mu
from transformers import (
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    Gemma2Model,
    GemmaTokenizer,
    Mistral3ForConditionalGeneration,
    PixtralProcessor,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2Tokenizer,
    Qwen3Model,
    T5EncoderModel,
    T5Tokenizer,
)

from backend.diffusion import packing
from backend.diffusion.encode import Embedded, Reading, Sentence
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
    also: tuple[str, ...] = ()
    """Other classes that its weights may have been saved by."""

    def is_named(self, given: object) -> bool:
        """Whether model_index.json, which gives a library and a class, means this."""
        if self.optional and given in (None, [None, None]):
            return True
        if not isinstance(given, list) or len(given) != 2:
            return False
        library, name = given
        name = str(name).removesuffix("Fast")  # transformers had two classes of a tokenizer, and has one
        return library == self.kind.__module__.partition(".")[0] and name in (self.kind.__name__, *self.also)


def _sides(width: int, height: int) -> dict[str, Any]:
    return {"width": width, "height": height}


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
    """The pipelines' argument for the request's guidance; empty: they take none but what the model has learnt."""
    unguided: float = 1.0
    """The value of that argument which leaves out guidance."""
    distilled: str = ""
    """The argument for guidance that the model has learnt to give by itself; empty: it has not."""
    constants: Mapping[str, Any] = MappingProxyType({})
    """Further arguments of every call."""
    of_size: Callable[[int, int], Mapping[str, Any]] = _sides
    """The arguments that tell width and height."""
    shown: Literal["", "raw", "scaled"] = ""
    """As which latents the pipelines take the image that the model is shown beside its own; empty: it has none."""
    image_guidance: str = ""
    """The argument for guidance by that image; empty: there is none."""
    inpaints: bool = False
    """Whether the transformer is shown a mask and what it leaves of a picture beside the latents; UNets tell."""
    numbers_told: int = 6
    """Of a UNet that is told sizes: how many numbers they are."""
    before: Callable[[Any, tuple[Any, ...], dict[str, Any]], tuple[Any, dict[str, Any]]] | None = None
    """What the denoiser's arguments go through: of it, its arguments and those that have names."""


_UNBINNED = MappingProxyType({"use_resolution_binning": False, "clean_caption": False, "negative_prompt": None})
"""Pictures at the size asked for, of the prompt as it is."""

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

INSTRUCT_PIX2PIX = STABLE_DIFFUSION._replace(
    pipelines={(False, False): "StableDiffusionInstructPix2PixPipeline"},
    of_size=lambda width, height: {},  # that of the image
    shown="raw",
    image_guidance="image_guidance_scale",
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


def _with_scores(width: int, height: int) -> dict[str, Any]:
    """A refiner is told how good the picture is, and how bad the other one, in place of how large they are meant."""
    scores = {"target_size": (6.0,), "negative_target_size": (2.5,), "negative_original_size": (height, width)}
    return _sides(width, height) | scores


def _scores_in_order(_: Any, arguments: tuple[Any, ...], named: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """The negative prompts come first; diffusers' text-to-image mixes up whose scores are whose in a batch."""
    told = named["added_cond_kwargs"]
    numbers = told["time_ids"]
    in_order = numbers[numbers[:, -1].argsort(stable=True)]
    return arguments, {**named, "added_cond_kwargs": {**told, "time_ids": in_order}}


STABLE_DIFFUSION_XL_REFINER = Family(
    parts={name: STABLE_DIFFUSION_XL.parts[name] for name in ("tokenizer_2", "text_encoder_2", "vae", "unet")},
    pipelines={(False, False): "StableDiffusionXLPipeline", (True, False): "StableDiffusionXLInpaintPipeline"},
    reading=Reading(encoders={"text_encoder_2": "tokenizer_2"}, layer=2, pooled="last"),
    of_size=_with_scores,
    numbers_told=5,
    before=_scores_in_order,
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


FLUX_FILL = FLUX._replace(
    pipelines={(False, False): "FluxPipeline"},  # that of Fill takes no negative prompt
    inpaints=True,
)

FLUX_KONTEXT = FLUX._replace(
    pipelines={(False, False): "FluxKontextPipeline"},
    of_size=lambda width, height: {**_sides(width, height), "max_area": width * height},
    shown="scaled",
)


def _pads(pipeline: Any, text: str, tokens: int, negative: bool) -> Embedded:
    given = pipeline.encode_prompt(text, do_classifier_free_guidance=False, max_sequence_length=tokens)
    return Embedded(given[0], prompt_attention_mask=given[1])


def _pads_as_chroma(pipeline: Any, text: str, tokens: int, negative: bool) -> Embedded:
    given = pipeline.encode_prompt(text, do_classifier_free_guidance=False, max_sequence_length=tokens)
    return Embedded(given[0], prompt_attention_mask=given[2])


def _instructs(pipeline: Any, text: str, tokens: int, negative: bool) -> Embedded:
    """Sana has the prompt, but not the negative one, behind an instruction to make more of it."""
    usual = signature(SanaPipeline.__call__).parameters["complex_human_instruction"].default
    told = {"complex_human_instruction": None if negative else usual, "max_sequence_length": tokens}
    given = pipeline.encode_prompt(text, do_classifier_free_guidance=False, **told)
    return Embedded(given[0], prompt_attention_mask=given[1])


def _chats(pipeline: Any, text: str, tokens: int, negative: bool) -> Embedded:
    """The words around a prompt need room too; what is left over is cut off."""
    (states,), _ = pipeline.encode_prompt(text, do_classifier_free_guidance=False, max_sequence_length=tokens + 64)
    return Embedded(states[None], listed=True)


def _describes(pipeline: Any, text: str, tokens: int, negative: bool) -> Embedded:
    states, mask = pipeline.encode_prompt(text)
    return Embedded(states, prompt_embeds_mask=mask)


def _stacks_layers(pipeline: Any, text: str, tokens: int, negative: bool) -> Embedded:
    return Embedded(pipeline.encode_prompt(text, max_sequence_length=tokens)[0])


FLUX_2_KLEIN = Family(
    parts={
        "tokenizer": Part(Qwen2Tokenizer),
        "text_encoder": Part(Qwen3Model, "model", also=("Qwen3ForCausalLM",)),
        "vae": Part(AutoencoderKLFlux2, "diffusion_pytorch_model", upcasts=True),
        "transformer": Part(Flux2Transformer2DModel, "diffusion_pytorch_model"),
    },
    pipelines={(False, False): "Flux2KleinPipeline"},
    reading=Reading(own=_stacks_layers, sentence=Sentence("text_encoder", "tokenizer", 512)),
    denoiser="transformer",
    flow=Flow(packing.pack, packing.unpack, packing.patchify, compute_empirical_mu, ends_with_steps=True),
)

FLUX_2 = FLUX_2_KLEIN._replace(
    parts={
        **FLUX_2_KLEIN.parts,
        "tokenizer": Part(PixtralProcessor),
        "text_encoder": Part(Mistral3ForConditionalGeneration, "model"),
    },
    pipelines={(False, False): "Flux2Pipeline"},
    guidance="",
    distilled="guidance_scale",
)

CHROMA = Family(
    parts={
        "tokenizer": Part(T5Tokenizer),
        "text_encoder": Part(T5EncoderModel, "model"),
        "vae": Part(AutoencoderKL, "diffusion_pytorch_model", upcasts=True),
        "transformer": Part(ChromaTransformer2DModel, "diffusion_pytorch_model"),
    },
    pipelines={(False, False): "ChromaPipeline"},
    reading=Reading(own=_pads_as_chroma, sentence=Sentence("text_encoder", "tokenizer", 512)),
    denoiser="transformer",
    flow=Flow(packing.pack, packing.unpack, ends_with_steps=True),
)

Z_IMAGE = Family(
    parts={
        "tokenizer": Part(Qwen2Tokenizer),
        "text_encoder": Part(Qwen3Model, "model", also=("Qwen3ForCausalLM",)),
        "vae": Part(AutoencoderKL, "diffusion_pytorch_model", upcasts=True),
        "transformer": Part(ZImageTransformer2DModel, "diffusion_pytorch_model"),
    },
    pipelines={(False, False): "ZImagePipeline"},
    reading=Reading(own=_chats, sentence=Sentence("text_encoder", "tokenizer", 512)),
    denoiser="transformer",
    flow=Flow(whole=True, ends_with_steps=True),
    unguided=0.0,
)

QWEN_IMAGE = Family(
    parts={
        "tokenizer": Part(Qwen2Tokenizer),
        "text_encoder": Part(Qwen2_5_VLForConditionalGeneration, "model"),
        "vae": Part(AutoencoderKLQwenImage, "diffusion_pytorch_model"),
        "transformer": Part(QwenImageTransformer2DModel, "diffusion_pytorch_model"),
    },
    pipelines={(False, False): "QwenImagePipeline"},
    reading=Reading(own=_describes),
    denoiser="transformer",
    flow=Flow(packing.pack, packing.unpack, ends_with_steps=True),
    guidance="true_cfg_scale",
    constants={"max_sequence_length": 1024},
)

PIXART_SIGMA = Family(
    parts={
        "tokenizer": Part(T5Tokenizer),
        "text_encoder": Part(T5EncoderModel, "model"),
        "vae": Part(AutoencoderKL, "diffusion_pytorch_model", upcasts=True),
        "transformer": Part(PixArtTransformer2DModel, "diffusion_pytorch_model", also=("Transformer2DModel",)),
    },
    pipelines={(False, False): "PixArtSigmaPipeline"},
    reading=Reading(own=_pads, sentence=Sentence("text_encoder", "tokenizer", 300)),
    denoiser="transformer",
    constants=_UNBINNED,
)

PIXART_ALPHA = PIXART_SIGMA._replace(
    pipelines={(False, False): "PixArtAlphaPipeline"},
    reading=Reading(own=_pads, sentence=Sentence("text_encoder", "tokenizer", 120)),
)

SANA = Family(
    parts={
        "tokenizer": Part(GemmaTokenizer),
        "text_encoder": Part(Gemma2Model, "model"),
        "vae": Part(AutoencoderDC, "diffusion_pytorch_model"),
        "transformer": Part(SanaTransformer2DModel, "diffusion_pytorch_model"),
    },
    pipelines={(False, False): "SanaPipeline"},
    reading=Reading(own=_instructs, sentence=Sentence("text_encoder", "tokenizer", 300)),
    denoiser="transformer",
    flow=Flow(whole=True),
    constants=_UNBINNED,
)

_OF_IMAGES = ("", "Img2Img", "Inpaint")
"""How diffusers calls the pipelines of one family that differ in what they start from."""


def _pipelines(name: str, family: Family, kinds: tuple[str, ...] = _OF_IMAGES) -> dict[str, Family]:
    return {f"{name}{kind}Pipeline": family for kind in kinds}


FAMILIES: Mapping[str, Family] = {
    **_pipelines("StableDiffusion", STABLE_DIFFUSION),
    "StableDiffusionInstructPix2PixPipeline": INSTRUCT_PIX2PIX,
    **_pipelines("StableDiffusionXL", STABLE_DIFFUSION_XL, ("", "Inpaint")),
    "StableDiffusionXLImg2ImgPipeline": STABLE_DIFFUSION_XL_REFINER,
    **_pipelines("StableDiffusion3", STABLE_DIFFUSION_3),
    **_pipelines("Flux", FLUX),
    "FluxFillPipeline": FLUX_FILL,
    **_pipelines("FluxKontext", FLUX_KONTEXT, ("", "Inpaint")),
    "Flux2Pipeline": FLUX_2,
    **_pipelines("Flux2Klein", FLUX_2_KLEIN, ("", "Inpaint")),
    **_pipelines("Chroma", CHROMA),
    **_pipelines("ZImage", Z_IMAGE),
    **_pipelines("QwenImage", QWEN_IMAGE),
    "PixArtAlphaPipeline": PIXART_ALPHA,
    "PixArtSigmaPipeline": PIXART_SIGMA,
    "SanaPipeline": SANA,
}
"""By the pipeline class that a folder's model_index.json names."""
WITH: Mapping[tuple[str, str], Family] = {
    ("StableDiffusionXLImg2ImgPipeline", "text_encoder"): STABLE_DIFFUSION_XL,
}
"""What a folder is if that pipeline of it has that part."""
