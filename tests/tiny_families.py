"""Tiny models of the families that are transformers: the real classes with random weights, made in under a second.

Use it as `tests.tiny`: `tiny_sd3(folder)` writes a folder as diffusers saves it.
PYTEST_DONT_REWRITE: test modules import it before pytest could.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from tests.tiny import SIZE, WORDS, text_config, tokenizer, vae, with_card

T5_WIDTH = 48
"""Of the states of the tiny T5: as wide as both tiny CLIPs together, and a little more, as in Stable Diffusion 3."""
SHIFTED = {"use_dynamic_shifting": True, "base_shift": 0.5, "max_shift": 1.15, "shift": 3.0}


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


def tiny_flux(folder: Path, *, guided: bool = True) -> Path:
    """Write a Flux 1 dev; one that is not told how strongly to heed the prompt (`guided`) is a schnell."""
    from diffusers import FlowMatchEulerDiscreteScheduler, FluxPipeline, FluxTransformer2DModel
    from transformers import CLIPTextModel

    with _seeded(4):
        words = tokenizer()
        pipeline = FluxPipeline(
            transformer=FluxTransformer2DModel(
                patch_size=1,
                in_channels=64,
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


TINY: Mapping[str, Callable[[Path], Path]] = {
    "sd3": tiny_sd3,
    "flux": tiny_flux,
}
"""By the family's name."""


def t5_tokenizer() -> Any:
    """T5's own class, with a vocabulary of single letters and a few whole words."""
    from transformers import T5Tokenizer

    special = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -2.0)]
    words = [(f"▁{word}", -3.0) for word in WORDS if len(word) > 1]
    letters = [(chr(c), -9.0) for c in range(33, 127)]
    return T5Tokenizer(vocab=[*special, *words, *letters], extra_ids=0, model_max_length=512)


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
