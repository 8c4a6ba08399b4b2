"""Narrow models of the real architectures, as folders that diffusers saves and as files in their authors' layout.

Only widths are reduced: blocks, vocabulary and what shapes cannot tell are those of the real ones.
PYTEST_DONT_REWRITE: test modules import it before pytest could.
"""

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch

from backend.catalog import Catalog, Model
from tests.tiny_families import SHIFTED, gemma_tokenizer, qwen_tokenizer, t5_tokenizer

WIDTH = 32
"""Of text and of latents, where the real ones have hundreds: what 32 norm groups allow."""
T5_WIDTH = 96
"""As wide as both of Stable Diffusion 3's CLIPs together."""
VOCABULARIES = {
    "flux": ("t5", "tokenizer_2"),
    "sd3": ("t5", "tokenizer_3"),
    **dict.fromkeys(("chroma", "pixart"), ("t5", "tokenizer")),
    "qwen-image": ("qwen2.5-vl", "tokenizer"),
    "sana": ("gemma2", "tokenizer"),
    **dict.fromkeys(("flux2", "z-image"), ("qwen3", "tokenizer")),
}
"""Of which text encoder a file lacks it, and where a folder has it."""
DEEP = {"latent_channels": 16, "use_quant_conv": False, "use_post_quant_conv": False}


class Narrow(NamedTuple):
    write: Callable[[Path], None]
    """As a folder of diffusers'."""
    family: str
    prediction: str = ""
    variant: str = ""
    edition: str = ""


class Listed(Catalog):
    """A catalogue of just these models."""

    def __init__(self, *models: Model) -> None:
        super().__init__(Path())
        self._models = models

    def all(self) -> list[Model]:
        return list(self._models)


def write_both(name: str, folder: Path) -> tuple[Model, Model]:
    """A narrow model as a folder, and the same weights as a file."""
    from backend.diffusion import writing

    narrow = {**NARROW, **FULL}[name]
    as_folder, as_file = folder / name, folder / f"{name}.safetensors"
    if not as_file.exists():
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(5)
            narrow.write(as_folder)
        writing.single_file(as_folder, narrow.family, as_file)
    told: Any = {key: getattr(narrow, key) for key in ("family", "prediction", "variant", "edition")}
    words = VOCABULARIES.get(narrow.family)
    beside = {f"{words[0]} tokenizer": as_folder / words[1] / "tokenizer.json"} if words else {}
    return (
        Model(kind="checkpoint", name="folder", title=name, path=as_folder, **told),
        Model(kind="checkpoint", name="file", title=name, path=as_file, beside=beside, **told),
    )


def quantised(model: Model, kind: str, file: Path) -> Model:
    """The transformer of a model's file in GGUF, as people have it; the other parts lie beside it."""
    from gguf import GGMLQuantizationType, GGUFWriter, quantize
    from safetensors.torch import load_file

    writer, prefix = GGUFWriter(file, model.family), "model.diffusion_model."
    for name, tensor in load_file(model.path).items():
        if name.startswith(prefix):
            fits = tensor.dim() == 2 and tensor.shape[1] % 32 == 0
            its = GGMLQuantizationType[kind if fits else "F32"]
            writer.add_tensor(name.removeprefix(prefix), quantize(tensor.numpy(), its), raw_dtype=its)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    folder = model.path.parent / model.title
    beside = {"clip_l": folder / "text_encoder", "clip_g": folder / "text_encoder_2", "t5": model.path}
    beside["vae"] = model.path
    return replace(model, name=file.stem, path=file, beside={**beside, **model.beside})


def sd1(folder: Path, in_channels: int = 4, kind: str = "StableDiffusionPipeline") -> None:
    from transformers import CLIPTextModel

    _sd(folder, "epsilon", unet(in_channels), CLIPTextModel(text()), vae(0.18215), kind=kind)


def sd1_full(folder: Path) -> None:
    """Stable Diffusion 1.5 as it is: 860 million weights in the UNet alone."""
    from transformers import CLIPTextModel

    encoder = CLIPTextModel(text(768, intermediate_size=3072, num_hidden_layers=12, num_attention_heads=12))
    wide = unet(block_out_channels=(320, 640, 1280, 1280), cross_attention_dim=768)
    _sd(folder, "epsilon", wide, encoder, vae(0.18215, block_out_channels=(128, 256, 512, 512)))


def sd2(folder: Path) -> None:
    """Its text encoder has lost its last layer, as in diffusers' folders."""
    from transformers import CLIPTextModel

    encoder = CLIPTextModel(text(num_hidden_layers=23, hidden_act="gelu", pad_token_id=0))
    _sd(folder, "v_prediction", unet(attention_head_dim=1, use_linear_projection=True), encoder, vae(0.18215), "!")


def sdxl(folder: Path, in_channels: int = 4) -> None:
    from diffusers import StableDiffusionXLInpaintPipeline, StableDiffusionXLPipeline
    from transformers import CLIPTextModel, CLIPTextModelWithProjection

    from backend.diffusion.reading import tokenizers

    kind = StableDiffusionXLPipeline if in_channels == 4 else StableDiffusionXLInpaintPipeline
    kind(
        unet=unet(
            in_channels,
            block_out_channels=(32, 32, 64),
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
            transformer_layers_per_block=[1, 2, 3],
            attention_head_dim=1,
            use_linear_projection=True,
            cross_attention_dim=WIDTH + 64,
            addition_embed_type="text_time",
            addition_time_embed_dim=8,
            projection_class_embeddings_input_dim=64 + 6 * 8,
        ),
        vae=vae(0.13025, force_upcast=True),
        text_encoder=CLIPTextModel(text()),
        text_encoder_2=CLIPTextModelWithProjection(text(64, hidden_act="gelu", pad_token_id=0)),
        tokenizer=tokenizers.clip(),
        tokenizer_2=tokenizers.clip(pad_token="!"),
        scheduler=scheduler("epsilon"),
        add_watermarker=False,
    ).save_pretrained(folder)


def refiner(folder: Path) -> None:
    """One text encoder, and an aesthetic score in place of the size aimed at."""
    from diffusers import StableDiffusionXLImg2ImgPipeline
    from transformers import CLIPTextModelWithProjection

    from backend.diffusion.reading import tokenizers

    StableDiffusionXLImg2ImgPipeline(
        unet=unet(
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
            transformer_layers_per_block=4,
            attention_head_dim=1,
            use_linear_projection=True,
            cross_attention_dim=64,
            addition_embed_type="text_time",
            addition_time_embed_dim=8,
            projection_class_embeddings_input_dim=64 + 5 * 8,
        ),
        vae=vae(0.13025, force_upcast=True),
        text_encoder=None,
        text_encoder_2=CLIPTextModelWithProjection(text(64, hidden_act="gelu", pad_token_id=0)),
        tokenizer=None,
        tokenizer_2=tokenizers.clip(pad_token="!"),
        scheduler=scheduler("epsilon"),
        requires_aesthetics_score=True,
        force_zeros_for_empty_prompt=False,
        add_watermarker=False,
    ).save_pretrained(folder)


def _sd(
    folder: Path,
    prediction: str,
    unet: Any,
    encoder: Any,
    vae: Any,
    padding: str = "<|endoftext|>",
    kind: str = "StableDiffusionPipeline",
) -> None:
    import diffusers

    from backend.diffusion.reading import tokenizers

    getattr(diffusers, kind)(
        unet=unet,
        vae=vae,
        text_encoder=encoder,
        tokenizer=tokenizers.clip(pad_token=padding),
        scheduler=scheduler(prediction),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    ).save_pretrained(folder)


def unet(in_channels: int = 4, **config: Any) -> Any:
    from diffusers import UNet2DConditionModel

    narrow = {"block_out_channels": (32, 32, 64, 64), "cross_attention_dim": WIDTH}
    return UNet2DConditionModel(in_channels=in_channels, sample_size=8, **(narrow | config))


def vae(scale: float, **config: Any) -> Any:
    """Random decoders paint everything grey; a stronger last layer makes differences show."""
    from diffusers import AutoencoderKL

    vae: Any = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        layers_per_block=2,
        scaling_factor=scale,
        **({"block_out_channels": (32, 32, 32, 32)} | config),
    )
    vae.decoder.conv_out.weight.data *= 3
    return vae


def text(width: int = WIDTH, **config: Any) -> Any:
    from transformers import CLIPTextConfig

    sizes = {"hidden_size": width, "intermediate_size": 2 * width, "projection_dim": width}
    usual = {"num_hidden_layers": 3, "num_attention_heads": 1, "vocab_size": 49408}
    special = {"bos_token_id": 49406, "eos_token_id": 49407, "pad_token_id": 1}
    return CLIPTextConfig(**(sizes | usual | special | config))


def scheduler(prediction: str) -> Any:
    from diffusers import DDIMScheduler

    betas = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
    return DDIMScheduler(
        **betas, clip_sample=False, steps_offset=1, set_alpha_to_one=False, prediction_type=prediction
    )


def sd3(folder: Path) -> None:
    """A 3.5 medium: attention twice in the first blocks, and T5."""
    from diffusers import FlowMatchEulerDiscreteScheduler, SD3Transformer2DModel, StableDiffusion3Pipeline
    from transformers import CLIPTextModelWithProjection

    from backend.diffusion.reading import tokenizers

    first = CLIPTextModelWithProjection(text())
    first.text_projection.weight.data = torch.eye(WIDTH)  # Stable Diffusion 3 has none
    StableDiffusion3Pipeline(
        transformer=SD3Transformer2DModel(
            sample_size=128,
            num_layers=3,
            attention_head_dim=16,
            num_attention_heads=3,
            joint_attention_dim=T5_WIDTH,
            caption_projection_dim=48,
            pooled_projection_dim=WIDTH + 64,
            pos_embed_max_size=24,
            dual_attention_layers=(0, 1),
            qk_norm="rms_norm",
        ),
        vae=vae(1.5305, shift_factor=0.0609, **DEEP),
        text_encoder=first,
        text_encoder_2=CLIPTextModelWithProjection(text(64, hidden_act="gelu", pad_token_id=0)),
        text_encoder_3=t5(),
        tokenizer=tokenizers.clip(),
        tokenizer_2=tokenizers.clip(pad_token="!"),
        tokenizer_3=t5_tokenizer(),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
    ).save_pretrained(folder)


def flux(folder: Path, guided: bool = True, kind: str = "FluxPipeline") -> None:
    import diffusers
    from diffusers import FlowMatchEulerDiscreteScheduler, FluxTransformer2DModel
    from transformers import CLIPTextModel

    from backend.diffusion.reading import tokenizers

    getattr(diffusers, kind)(
        transformer=FluxTransformer2DModel(
            in_channels=384 if kind == "FluxFillPipeline" else 64,
            out_channels=64,
            num_layers=2,
            num_single_layers=2,
            attention_head_dim=32,
            num_attention_heads=2,
            joint_attention_dim=T5_WIDTH,
            pooled_projection_dim=WIDTH,
            guidance_embeds=guided,
            axes_dims_rope=(4, 14, 14),
        ),
        vae=vae(0.3611, shift_factor=0.1159, **DEEP),
        text_encoder=CLIPTextModel(text()),
        text_encoder_2=t5(),
        tokenizer=tokenizers.clip(),
        tokenizer_2=t5_tokenizer(),
        scheduler=FlowMatchEulerDiscreteScheduler(**(SHIFTED if guided else {"shift": 1.0})),
    ).save_pretrained(folder)


def chroma(folder: Path) -> None:
    from diffusers import ChromaPipeline, ChromaTransformer2DModel, FlowMatchEulerDiscreteScheduler

    ChromaPipeline(
        transformer=ChromaTransformer2DModel(
            num_layers=2,
            num_single_layers=2,
            attention_head_dim=32,
            num_attention_heads=2,
            joint_attention_dim=T5_WIDTH,
            axes_dims_rope=(4, 14, 14),
            approximator_num_channels=16,
            approximator_hidden_dim=32,
            approximator_layers=2,
        ),
        vae=vae(0.3611, shift_factor=0.1159, **DEEP),
        text_encoder=t5(),
        tokenizer=t5_tokenizer(),
        scheduler=FlowMatchEulerDiscreteScheduler(**SHIFTED),
    ).save_pretrained(folder)


def z_image(folder: Path) -> None:
    from diffusers import FlowMatchEulerDiscreteScheduler, ZImagePipeline, ZImageTransformer2DModel

    ZImagePipeline(
        transformer=ZImageTransformer2DModel(
            dim=64,
            n_layers=2,
            n_refiner_layers=1,
            n_heads=2,
            n_kv_heads=2,
            cap_feat_dim=WIDTH,
            axes_dims=[8, 12, 12],
            axes_lens=[1536, 512, 512],
        ),
        vae=vae(0.3611, shift_factor=0.1159, **DEEP),
        text_encoder=qwen3(2),
        tokenizer=qwen_tokenizer(),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
    ).save_pretrained(folder)


def flux2(folder: Path) -> None:
    """A Klein."""
    from diffusers import (
        AutoencoderKLFlux2,
        FlowMatchEulerDiscreteScheduler,
        Flux2KleinPipeline,
        Flux2Transformer2DModel,
    )

    decoder: Any = AutoencoderKLFlux2(block_out_channels=(32, 32, 32, 32))
    decoder.decoder.conv_out.weight.data *= 3
    decoder.bn.running_mean += torch.linspace(-1, 1, 128)
    decoder.bn.running_var += torch.linspace(0, 3, 128)
    Flux2KleinPipeline(
        transformer=Flux2Transformer2DModel(
            num_layers=2,
            num_single_layers=2,
            attention_head_dim=32,
            num_attention_heads=2,
            joint_attention_dim=3 * WIDTH,
            timestep_guidance_channels=32,
            axes_dims_rope=(8, 8, 8, 8),
            guidance_embeds=False,
        ),
        vae=decoder,
        text_encoder=qwen3(28),
        tokenizer=qwen_tokenizer(),
        scheduler=FlowMatchEulerDiscreteScheduler(**SHIFTED),
    ).save_pretrained(folder)


def qwen_image(folder: Path) -> None:
    from diffusers import (
        AutoencoderKLQwenImage,
        FlowMatchEulerDiscreteScheduler,
        QwenImagePipeline,
        QwenImageTransformer2DModel,
    )
    from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

    words = qwen_tokenizer()
    sizes = {"hidden_size": WIDTH, "intermediate_size": 64, "num_hidden_layers": 2, "rms_norm_eps": 1e-6}
    heads = {"num_attention_heads": 1, "num_key_value_heads": 1}
    text = {**sizes, **heads, "vocab_size": len(words), "rope_scaling": {"type": "mrope", "mrope_section": [4, 6, 6]}}
    vision = {"depth": 1, "hidden_size": WIDTH, "intermediate_size": 32, "num_heads": 16, "out_hidden_size": WIDTH}
    decoder: Any = AutoencoderKLQwenImage(base_dim=8)
    decoder.decoder.conv_out.weight.data *= 3
    QwenImagePipeline(
        transformer=QwenImageTransformer2DModel(
            num_layers=2,
            attention_head_dim=32,
            num_attention_heads=2,
            joint_attention_dim=WIDTH,
            axes_dims_rope=(4, 14, 14),
        ),
        vae=decoder,
        text_encoder=Qwen2_5_VLForConditionalGeneration(Qwen2_5_VLConfig(text_config=text, vision_config=vision)),
        tokenizer=words,
        scheduler=FlowMatchEulerDiscreteScheduler(
            use_dynamic_shifting=True, base_shift=0.5, max_shift=0.9, max_image_seq_len=8192, shift_terminal=0.02
        ),
    ).save_pretrained(folder)


def pixart(folder: Path, alpha: bool = False) -> None:
    """A Sigma, or an Alpha of 1024 pixels."""
    from diffusers import (
        DPMSolverMultistepScheduler,
        PixArtAlphaPipeline,
        PixArtSigmaPipeline,
        PixArtTransformer2DModel,
    )

    (PixArtAlphaPipeline if alpha else PixArtSigmaPipeline)(
        transformer=PixArtTransformer2DModel(
            num_layers=2,
            num_attention_heads=2,
            cross_attention_dim=144,
            caption_channels=T5_WIDTH,
            use_additional_conditions=alpha,
        ),
        vae=vae(0.18215 if alpha else 0.13025),
        text_encoder=t5(),
        tokenizer=t5_tokenizer(),
        scheduler=DPMSolverMultistepScheduler(beta_start=0.0001, beta_end=0.02, beta_schedule="linear"),
    ).save_pretrained(folder)


def sana(folder: Path) -> None:
    from diffusers import AutoencoderDC, DPMSolverMultistepScheduler, SanaPipeline, SanaTransformer2DModel
    from transformers import Gemma2Config, Gemma2Model

    words = gemma_tokenizer()
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1}
    sizes = {"hidden_size": WIDTH, "intermediate_size": 64, "num_hidden_layers": 2, "vocab_size": len(words)}
    blocks = ("ResBlock", "ResBlock", "ResBlock", "EfficientViTBlock", "EfficientViTBlock", "EfficientViTBlock")
    scales = ((), (), (), (5,), (5,), (5,))
    SanaPipeline(
        transformer=SanaTransformer2DModel(
            num_layers=2,
            num_attention_heads=7,
            num_cross_attention_heads=2,
            cross_attention_dim=224,
            caption_channels=WIDTH,
        ),
        vae=AutoencoderDC(
            encoder_block_types=blocks,
            decoder_block_types=blocks,
            encoder_block_out_channels=(8, 8, 16, 32, 32, 32),
            decoder_block_out_channels=(8, 8, 16, 32, 32, 32),
            encoder_layers_per_block=(1, 1, 1, 2, 1, 1),
            decoder_layers_per_block=(1, 1, 1, 1, 1, 2),
            encoder_qkv_multiscales=scales,
            decoder_qkv_multiscales=scales,
            downsample_block_type="conv",
            upsample_block_type="interpolate",
            scaling_factor=0.41407,
        ),
        text_encoder=Gemma2Model(Gemma2Config(**heads, **sizes)),
        tokenizer=words,
        scheduler=DPMSolverMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0),
    ).save_pretrained(folder)


def qwen3(layers: int) -> Any:
    from transformers import Qwen3Config, Qwen3ForCausalLM

    heads = {"num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 16}
    sizes = {"hidden_size": WIDTH, "intermediate_size": 64, "num_hidden_layers": layers}
    words = {"vocab_size": len(qwen_tokenizer()), "max_position_embeddings": 40960, "rope_theta": 1000000.0}
    return Qwen3ForCausalLM(Qwen3Config(**heads, **sizes, **words))


def t5() -> Any:
    from transformers import T5Config, T5EncoderModel

    sizes = {"d_model": T5_WIDTH, "d_kv": 8, "d_ff": 64, "num_layers": 2, "num_heads": 2}
    return T5EncoderModel(T5Config(vocab_size=len(t5_tokenizer()), feed_forward_proj="gated-gelu", **sizes))


NARROW: Mapping[str, Narrow] = {
    "sd1": Narrow(sd1, "sd1"),
    "sd1-inpaint": Narrow(lambda folder: sd1(folder, 9), "sd1"),
    "sd1-edit": Narrow(lambda folder: sd1(folder, 8, "StableDiffusionInstructPix2PixPipeline"), "sd1", variant="edit"),
    "sd2-v": Narrow(sd2, "sd2", "v_prediction"),
    "sdxl": Narrow(sdxl, "sdxl"),
    "sdxl-inpaint": Narrow(lambda folder: sdxl(folder, 9), "sdxl"),
    "sdxl-refiner": Narrow(refiner, "sdxl-refiner"),
    "sd3.5": Narrow(sd3, "sd3", "flow_prediction"),
    "flux-dev": Narrow(flux, "flux", "flow_prediction"),
    "flux-fill": Narrow(
        lambda folder: flux(folder, kind="FluxFillPipeline"), "flux", "flow_prediction", variant="inpaint"
    ),
    "flux-schnell": Narrow(lambda folder: flux(folder, guided=False), "flux", "flow_prediction"),
    "qwen-image": Narrow(qwen_image, "qwen-image", "flow_prediction"),
    "pixart-sigma": Narrow(pixart, "pixart", edition="sigma"),
    "pixart-alpha": Narrow(lambda folder: pixart(folder, alpha=True), "pixart", edition="alpha"),
    "sana": Narrow(sana, "sana", "flow_prediction"),
    "z-image": Narrow(z_image, "z-image", "flow_prediction"),
    "chroma": Narrow(chroma, "chroma", "flow_prediction"),
    "flux2-klein": Narrow(flux2, "flux2", "flow_prediction"),
}
FULL: Mapping[str, Narrow] = {"sd1-full": Narrow(sd1_full, "sd1")}
