"""Tiny decoders: latents to pictures in a fraction of the time and memory, nearly as the VAE would."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers.models.autoencoders.vae import DecoderTiny
from PIL import Image
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from backend.errors import ModelBroken, gist

BLOCKS = 3, 3, 3, 1
"""What all of them have between the upsamplings."""


def read(path: Path) -> Any:
    """The decoder in a file of its authors' or of diffusers', or in a folder. Raises ModelBroken."""
    file = path / "diffusion_pytorch_model.safetensors" if path.is_dir() else path
    try:
        weights = _named(load_file(file))
        width, channels = weights["layers.0.weight"].shape[:2]
        with torch.device("meta"):
            decoder = DecoderTiny(channels, 3, BLOCKS, (width,) * len(BLOCKS), 2, "relu", "nearest")
        decoder.load_state_dict(weights, assign=True)
    except (SafetensorError, OSError, KeyError, RuntimeError) as error:
        raise ModelBroken(f"the tiny decoder {path.name} cannot be read: {gist(error)}") from error
    return decoder.requires_grad_(False)


def decode(decoder: Any, latents: Tensor) -> Image.Image:
    """One picture's latents, (C, H/8, W/8), as the sampler has them, as the picture."""
    with torch.inference_mode():
        first = next(decoder.parameters())
        pixels = decoder(latents.unsqueeze(0).to(first))[0].float()
    pixels = (pixels.nan_to_num() * 127.5 + 127.5).round_().clamp_(0, 255).to(torch.uint8)
    return Image.fromarray(np.ascontiguousarray(pixels.permute(1, 2, 0).cpu().numpy()))


def _named(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """By diffusers' names of layers; its authors count the clamp before the first one as one too."""
    found = {}
    for key, tensor in weights.items():
        theirs = re.fullmatch(r"(?:taesd_decoder\.|decoder\.)?(\d+)\.(.+)", key)
        ours = re.fullmatch(r"decoder\.(layers\..+)", key)
        if theirs:
            found[f"layers.{int(theirs[1]) - 1}.{theirs[2]}"] = tensor
        elif ours:
            found[ours[1]] = tensor
    return found
