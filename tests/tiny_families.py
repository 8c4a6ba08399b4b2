"""Tiny models of the families that are transformers: the real classes with random weights, made in under a second.

Use it as `tests.tiny`: `tiny_sd3(folder)` writes a folder as diffusers saves it.
PYTEST_DONT_REWRITE: test modules import it before pytest could.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from tests.tiny import SIZE, WORDS, text_config, tokenizer, vae, with_card

T5_WIDTH = 48
"""Of the states of the tiny T5: as wide as both tiny CLIPs together, and a little more, as in Stable Diffusion 3."""
SHIFTED = {"use_dynamic_shifting": True, "base_shift": 0.5, "max_shift": 1.15, "shift": 3.0}


def written(folder: Path, names: Iterable[str]) -> Path:
    """The same folder, with checkpoints of these families, each under the name that it has in TINY."""
    for name in names:
        TINY[name](folder / "checkpoints" / name)
    return folder


def tiny_sd3(folder: Path, *, t5: bool = True, dual: bool = False) -> Path:
    """Write a Stable Diffusion 3; with `dual` attention in its first layer it is a 3.5 medium."""
    from diffusers import FlowMatchEulerDiscreteScheduler, SD3Transformer2DModel, StableDiffusion3Pipeline
    from transformers import CLIPTextModelWithProjection

    with _seeded(3):
        words, second = tokenizer(), tokenizer(pad_token="!")
        pipeline = StableDiffusion3Pipeline(
            transformer=SD3Transformer2DModel(
                sample_size=SIZE // 8,
                patch_size=2,
                in_channels=16,
                out_channels=16,
                num_layers=2,
                attention_head_dim=8,
                num_attention_heads=2,
                joint_attention_dim=T5_WIDTH,
                caption_projection_dim=16,
                pooled_projection_dim=16 + 12,
                pos_embed_max_size=24,
                **({"dual_attention_layers": (0,), "qk_norm": "rms_norm"} if dual else {}),
            ),
            vae=_vae(scaling_factor=1.5305, shift_factor=0.0609),
            text_encoder=CLIPTextModelWithProjection(text_config(len(words), projection_dim=16)),
            text_encoder_2=CLIPTextModelWithProjection(
                text_config(len(second), hidden_size=24, projection_dim=12, hidden_act="gelu", pad_token_id=0)
            ),
            text_encoder_3=_t5() if t5 else None,
            tokenizer=words,
            tokenizer_2=second,
            tokenizer_3=t5_tokenizer() if t5 else None,
            scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
        )
        return _saved(pipeline, folder, "Tiny SD 3")


def tiny_flux(folder: Path, *, guided: bool = True, kind: str = "FluxPipeline") -> Path:
    """Write a Flux 1 dev; one that is not told how strongly to heed the prompt (`guided`) is a schnell.

    `kind` is diffusers' class: "FluxFillPipeline", "FluxKontextPipeline".
    """
    import diffusers
    from diffusers import FlowMatchEulerDiscreteScheduler, FluxTransformer2DModel
    from transformers import CLIPTextModel

    with _seeded(4):
        words = tokenizer()
        pipeline = getattr(diffusers, kind)(
            transformer=FluxTransformer2DModel(
                patch_size=1,
                in_channels=384 if kind == "FluxFillPipeline" else 64,
                out_channels=64,
                num_layers=1,
                num_single_layers=1,
                attention_head_dim=16,
                num_attention_heads=2,
                joint_attention_dim=T5_WIDTH,
                pooled_projection_dim=16,
                guidance_embeds=guided,
                axes_dims_rope=(4, 6, 6),
            ),
            vae=_vae(scaling_factor=0.3611, shift_factor=0.1159),
            text_encoder=CLIPTextModel(text_config(len(words))),
            text_encoder_2=_t5(),
            tokenizer=words,
            tokenizer_2=t5_tokenizer(),
            scheduler=FlowMatchEulerDiscreteScheduler(**(SHIFTED if guided else {"shift": 1.0})),
        )
        pipeline.transformer.time_text_embed.text_embedder.linear_2.weight.data *= 40  # so that prompts show
        return _saved(pipeline, folder, "Tiny Flux" if guided else "Tiny Flux schnell")


def tiny_chroma(folder: Path) -> Path:
    from diffusers import ChromaPipeline, ChromaTransformer2DModel, FlowMatchEulerDiscreteScheduler

    with _seeded(5):
        pipeline = ChromaPipeline(
            transformer=ChromaTransformer2DModel(
                in_channels=64,
                num_layers=1,
                num_single_layers=1,
                attention_head_dim=16,
                num_attention_heads=2,
                joint_attention_dim=T5_WIDTH,
                axes_dims_rope=(4, 6, 6),
                approximator_num_channels=8,
                approximator_hidden_dim=16,
                approximator_layers=1,
            ),
            vae=_vae(scaling_factor=0.3611, shift_factor=0.1159),
            text_encoder=_t5(),
            tokenizer=t5_tokenizer(),
            scheduler=FlowMatchEulerDiscreteScheduler(),
        )
        return _saved(pipeline, folder, "Tiny Chroma")


def tiny_z_image(folder: Path) -> Path:
    from diffusers import FlowMatchEulerDiscreteScheduler, ZImagePipeline, ZImageTransformer2DModel

    with _seeded(6):
        pipeline = ZImagePipeline(
            transformer=ZImageTransformer2DModel(
                in_channels=16,
                dim=32,
                n_layers=1,
                n_refiner_layers=1,
                n_heads=2,
                n_kv_heads=2,
                cap_feat_dim=16,
                axes_dims=[4, 6, 6],
                axes_lens=[1024, 64, 64],
            ),
            vae=_vae(scaling_factor=0.3611, shift_factor=0.1159),
            text_encoder=_qwen3(layers=3),
            tokenizer=qwen_tokenizer(),
            scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
        )
        return _saved(pipeline, folder, "Tiny Z-Image")


def tiny_qwen_image(folder: Path) -> Path:
    from diffusers import (
        AutoencoderKLQwenImage,
        FlowMatchEulerDiscreteScheduler,
        QwenImagePipeline,
        QwenImageTransformer2DModel,
    )
    from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

    with _seeded(7):
        words = qwen_tokenizer()
        text = {**_qwen_config(len(words), 2), "rope_scaling": {"type": "mrope", "mrope_section": [1, 1, 2]}}
        vision = {"depth": 1, "hidden_size": 8, "intermediate_size": 8, "num_heads": 1, "out_hidden_size": 16}
        config = Qwen2_5_VLConfig(text_config=text, vision_config=vision)
        pipeline = QwenImagePipeline(
            transformer=QwenImageTransformer2DModel(
                in_channels=64,
                out_channels=16,
                num_layers=1,
                attention_head_dim=16,
                num_attention_heads=2,
                joint_attention_dim=16,
                axes_dims_rope=(4, 6, 6),
            ),
            vae=AutoencoderKLQwenImage(base_dim=8, z_dim=16, dim_mult=[1, 1, 1, 1], num_res_blocks=1),
            text_encoder=Qwen2_5_VLForConditionalGeneration(config),
            tokenizer=words,
            scheduler=FlowMatchEulerDiscreteScheduler(
                use_dynamic_shifting=True, base_shift=0.5, max_shift=0.9, max_image_seq_len=8192, shift_terminal=0.02
            ),
        )
        return _saved(pipeline, folder, "Tiny Qwen-Image")


def tiny_flux2(folder: Path, *, dev: bool = False) -> Path:
    """Write a Flux 2 Klein, or a Flux 2 dev: it has learnt its guidance, and Mistral reads for it."""
    from diffusers import (
        AutoencoderKLFlux2,
        FlowMatchEulerDiscreteScheduler,
        Flux2KleinPipeline,
        Flux2Pipeline,
        Flux2Transformer2DModel,
    )

    with _seeded(8):
        decoder: Any = AutoencoderKLFlux2(
            block_out_channels=(4, 4, 4, 8), layers_per_block=1, latent_channels=16, norm_num_groups=1
        )
        decoder.bn.running_mean += torch.linspace(-1, 1, 64)
        decoder.bn.running_var += torch.linspace(0, 3, 64)
        words: Any = pixtral_processor() if dev else qwen_tokenizer()
        pipeline = (Flux2Pipeline if dev else Flux2KleinPipeline)(
            transformer=Flux2Transformer2DModel(
                in_channels=64,
                num_layers=1,
                num_single_layers=1,
                attention_head_dim=16,
                num_attention_heads=2,
                joint_attention_dim=3 * 16,
                timestep_guidance_channels=16,
                axes_dims_rope=(4, 4, 4, 4),
                guidance_embeds=dev,
            ),
            vae=decoder,
            text_encoder=_mistral3(len(words.tokenizer)) if dev else _qwen3(layers=28),
            tokenizer=words,
            scheduler=FlowMatchEulerDiscreteScheduler(**SHIFTED),
        )
        return _saved(pipeline, folder, "Tiny Flux 2 dev" if dev else "Tiny Flux 2 Klein")


def tiny_pixart(folder: Path, *, alpha: bool = False) -> Path:
    """Write a PixArt-Sigma, or an Alpha of 1024 pixels: it is told the size of its pictures."""
    from diffusers import (
        DPMSolverMultistepScheduler,
        PixArtAlphaPipeline,
        PixArtSigmaPipeline,
        PixArtTransformer2DModel,
    )

    with _seeded(9):
        pipeline = (PixArtAlphaPipeline if alpha else PixArtSigmaPipeline)(
            transformer=PixArtTransformer2DModel(
                sample_size=128 if alpha else SIZE // 8,
                num_layers=1,
                patch_size=2,
                attention_head_dim=12 if alpha else 8,  # of which a third tells the ratio of the sides
                num_attention_heads=2,
                caption_channels=T5_WIDTH,
                cross_attention_dim=24 if alpha else 16,
                in_channels=4,
                out_channels=8,
                use_additional_conditions=alpha,
            ),
            vae=vae(scaling_factor=0.13025),
            text_encoder=_t5(),
            tokenizer=t5_tokenizer(),
            scheduler=DPMSolverMultistepScheduler(beta_start=0.0001, beta_end=0.02, beta_schedule="linear"),
        )
        return _saved(pipeline, folder, "Tiny PixArt-Alpha" if alpha else "Tiny PixArt-Sigma")


def tiny_sana(folder: Path) -> Path:
    from diffusers import AutoencoderDC, DPMSolverMultistepScheduler, SanaPipeline, SanaTransformer2DModel
    from transformers import Gemma2Config, Gemma2Model

    with _seeded(10):
        words = gemma_tokenizer()
        config = Gemma2Config(**_qwen_config(len(words), 2), head_dim=8, sliding_window=64)
        pipeline = SanaPipeline(
            transformer=SanaTransformer2DModel(
                in_channels=4,
                out_channels=4,
                num_layers=1,
                num_attention_heads=2,
                attention_head_dim=4,
                num_cross_attention_heads=2,
                cross_attention_head_dim=4,
                cross_attention_dim=8,
                caption_channels=16,
                sample_size=32,
            ),
            vae=AutoencoderDC(
                latent_channels=4,
                attention_head_dim=2,
                encoder_block_types=("ResBlock", "EfficientViTBlock"),
                decoder_block_types=("ResBlock", "EfficientViTBlock"),
                encoder_block_out_channels=(8, 8),
                decoder_block_out_channels=(8, 8),
                encoder_qkv_multiscales=((), (5,)),
                decoder_qkv_multiscales=((), (5,)),
                encoder_layers_per_block=(1, 1),
                decoder_layers_per_block=(1, 1),
                downsample_block_type="conv",
                upsample_block_type="interpolate",
                decoder_norm_types="rms_norm",
                decoder_act_fns="silu",
                scaling_factor=0.41407,
            ),
            text_encoder=Gemma2Model(config),
            tokenizer=words,
            scheduler=DPMSolverMultistepScheduler(
                prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0
            ),
        )
        return _saved(pipeline, folder, "Tiny Sana")


TINY: Mapping[str, Callable[[Path], Path]] = {
    "sd3": tiny_sd3,
    "flux": tiny_flux,
    "flux2": tiny_flux2,
    "flux2-dev": lambda folder: tiny_flux2(folder, dev=True),
    "chroma": tiny_chroma,
    "z-image": tiny_z_image,
    "qwen-image": tiny_qwen_image,
    "pixart": tiny_pixart,
    "pixart-alpha": lambda folder: tiny_pixart(folder, alpha=True),
    "sana": tiny_sana,
}
"""By the family's name."""


def t5_tokenizer() -> Any:
    """T5's own class, with a vocabulary of single letters and a few whole words."""
    from transformers import T5Tokenizer

    special = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -2.0)]
    words = [(f"▁{word}", -3.0) for word in WORDS if len(word) > 1]
    letters = [(chr(c), -9.0) for c in range(33, 127)]
    return T5Tokenizer(vocab=[*special, *words, *letters], extra_ids=0, model_max_length=512)


def qwen_tokenizer() -> Any:
    """Qwen's own class, with a vocabulary of single bytes."""
    from tokenizers.pre_tokenizers import ByteLevel
    from transformers import Qwen2Tokenizer

    special = ["<|im_start|>", "<|im_end|>", "<think>", "</think>"]
    vocabulary = ["<|endoftext|>", *special, *sorted(ByteLevel.alphabet())]
    return Qwen2Tokenizer(
        vocab={token: i for i, token in enumerate(vocabulary)},
        merges=[],
        extra_special_tokens=special,
        model_max_length=512,
        chat_template="<|im_start|>user\n{{ messages[0].content }}<|im_end|>\n<|im_start|>assistant\n"
        "{{ '' if enable_thinking else '<think>\n\n</think>\n\n' }}",
    )


def pixtral_processor() -> Any:
    """Pixtral's own class, with a vocabulary of single bytes and a template that reads text alone."""
    from transformers import PixtralImageProcessor, PixtralProcessor

    words = qwen_tokenizer()
    words.add_special_tokens({"additional_special_tokens": ["[IMG]", "[IMG_BREAK]", "[IMG_END]"]})
    words.chat_template = None
    template = "{% for m in messages %}{% for part in m.content %}{{ part.text }}\n{% endfor %}{% endfor %}"
    return PixtralProcessor(PixtralImageProcessor(), words, patch_size=8, chat_template=template)


def gemma_tokenizer() -> Any:
    """Gemma's own class, with a vocabulary of single letters."""
    from transformers import GemmaTokenizer

    special = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>"]
    letters = ["▁", "\n", *(chr(c) for c in range(33, 127))]
    return GemmaTokenizer(vocab={token: i for i, token in enumerate([*special, *letters])}, merges=[])


def _qwen_config(vocabulary: int, layers: int) -> dict[str, Any]:
    heads = {"num_attention_heads": 2, "num_key_value_heads": 2}
    size = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": layers, "max_position_embeddings": 2048}
    return {"vocab_size": vocabulary, **heads, **size}


def _qwen3(layers: int) -> Any:
    from transformers import Qwen3Config, Qwen3ForCausalLM

    return Qwen3ForCausalLM(Qwen3Config(**_qwen_config(len(qwen_tokenizer()), layers), head_dim=8))


def _mistral3(vocabulary: int) -> Any:
    from transformers import Mistral3Config, Mistral3ForConditionalGeneration

    vision = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
    text = {"model_type": "mistral", **_qwen_config(vocabulary, 30), "head_dim": 8}
    return Mistral3ForConditionalGeneration(
        Mistral3Config(vision_config={"model_type": "pixtral", **vision}, text_config=text, image_token_index=3)
    )


def _t5() -> Any:
    from transformers import T5Config, T5EncoderModel

    return T5EncoderModel(
        T5Config(
            vocab_size=len(t5_tokenizer()),
            d_model=T5_WIDTH,
            d_kv=8,
            d_ff=32,
            num_layers=2,
            num_heads=2,
            feed_forward_proj="gated-gelu",
            tie_word_embeddings=False,
        )
    )


def _vae(**config: Any) -> Any:
    """Of sixteen channels, as that of Stable Diffusion 3 and of Flux."""
    return vae(latent_channels=16, use_quant_conv=False, use_post_quant_conv=False, **config)


def _saved(pipeline: Any, folder: Path, title: str) -> Path:
    pipeline.save_pretrained(folder, safe_serialization=True)
    return with_card(folder, title)


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Inside, the same weights each time; what is drawn outside does not notice."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield
