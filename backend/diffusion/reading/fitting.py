"""Whether a model's components are made for each other."""

from collections.abc import Mapping
from typing import Any

import torch

from backend.catalog import Model
from backend.diffusion import codecs, encode, masked
from backend.diffusion.families import Family
from backend.diffusion.reading.errors import broken

_TEXT_WIDTHS = ("cap_feat_dim", "caption_channels", "joint_attention_dim")
"""What the configs of transformers call the width of the text."""


def fit_together(model: Model, family: Family, parts: Mapping[str, Any]) -> None:
    """Raises ModelBroken if they are not."""
    _fit_words(model, family, parts)
    if family.denoiser == "unet":
        _fit_unet(model, family, parts)
    else:
        _fit_transformer(model, family, parts)


def _fit_words(model: Model, family: Family, parts: Mapping[str, Any]) -> None:
    readers = dict(family.reading.encoders)
    if sentence := family.reading.sentence:
        readers[sentence.encoder] = sentence.tokenizer
    for name, tokenizer in readers.items():
        if parts[name] is None or parts[tokenizer] is None:
            continue
        known = parts[name].config.get_text_config().vocab_size
        if (words := len(encode.words_of(parts[tokenizer]))) > known:
            raise broken(model, tokenizer, f"knows {words} tokens, the {name.replace('_', ' ')} {known}")


def _fit_transformer(model: Model, family: Family, parts: Mapping[str, Any]) -> None:
    transformer, shown = parts["transformer"].config, codecs.of(parts["vae"]).channels(parts["vae"])
    if family.flow and (packed := family.flow.pack(torch.zeros(1, shown, 2, 2))).dim() == 3:
        shown = packed.shape[-1]
    if family.inpaints:
        shown = masked.channels(parts["vae"])[1]
    if transformer.in_channels != shown:
        raise broken(model, "transformer", f"wants {transformer.in_channels} channels, the VAE gives {shown}")
    sentence = family.reading.sentence
    encoder = parts[sentence.encoder] if sentence else parts["text_encoder"]
    wanted = next((transformer[name] for name in _TEXT_WIDTHS if transformer.get(name)), None)
    if encoder is None or wanted is None:
        return
    given = encoder.config.get_text_config().hidden_size
    if wanted % given:  # Flux 2 is shown three layers side by side
        raise broken(model, "transformer", f"wants text of width {wanted}, the text encoder gives {given}")


def _fit_unet(model: Model, family: Family, parts: Mapping[str, Any]) -> None:
    unet, vae = parts["unet"].config, parts["vae"].config
    encoders = [parts[name].config for name in family.reading.encoders]
    width = sum(config.hidden_size for config in encoders)
    if unet.cross_attention_dim != width:
        giver = "the text encoder gives" if len(encoders) == 1 else "the text encoders give"
        raise broken(model, "unet", f"wants text of width {unet.cross_attention_dim}, {giver} {width}")
    shown = vae.latent_channels * (2 if family.shown else 1)
    if unet.in_channels != shown and (family.shown or not masked.inpaints(parts["unet"], parts["vae"])):
        wants = f"wants latents of {unet.in_channels} channels, the VAE gives {vae.latent_channels}"
        raise broken(model, "unet", wants)
    _fit_addition(model, unet, encoders[-1].projection_dim if family.reading.pooled else None, family.numbers_told)


def _fit_addition(model: Model, unet: Any, pooled: int | None, numbers: int) -> None:
    """Whether the UNet is made for what it is told beside the states: a summary of that width and so many numbers."""
    wanted = None if pooled is None else "text_time"
    if unet.addition_embed_type != wanted:
        raise broken(model, "unet", f"has addition_embed_type {unet.addition_embed_type!r}, not {wanted!r}")
    if pooled is None:
        return
    given = pooled + numbers * unet.addition_time_embed_dim
    if unet.projection_class_embeddings_input_dim != given:
        wants = f"wants {unet.projection_class_embeddings_input_dim} numbers of text and size, it is given {given}"
        raise broken(model, "unet", wants)
