"""What VAEs have in common, by their class: a latent's side, its channels, and how raw latents are scaled."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from backend.diffusion import packing

Way = Callable[[Any, Tensor], Tensor]
"""Of a VAE and a tensor."""


class Codec(NamedTuple):
    factor: Callable[[Any], int]
    """Pixels along the side of a latent."""
    channels: Callable[[Any], int]
    encode: Way
    """Pixels in -1 .. 1, (B, 3, H, W) -> raw latents, (B, C, H/8, W/8)."""
    decode: Way
    """The way back."""
    scaled: Way
    """Raw latents as the denoiser has them."""
    raw: Way
    """The way back."""


def of(vae: Any) -> Codec:
    return CODECS.get(type(vae).__name__, KL)


def _halvings(name: str) -> Callable[[Any], int]:
    return lambda vae: int(2 ** (len(vae.config[name]) - 1))


def _decoded(vae: Any, raw: Tensor) -> Tensor:
    pixels: Tensor = vae.decode(raw, return_dict=False)[0]
    return pixels


def _latent_channels(vae: Any) -> int:
    return int(vae.config.latent_channels)


def _shift(vae: Any) -> float:
    return vae.config.get("shift_factor") or 0.0


KL = Codec(
    _halvings("block_out_channels"),
    _latent_channels,
    # the mode of the distribution: A1111 samples it from a global generator, which no seed pins down
    lambda vae, pixels: vae.encode(pixels).latent_dist.mode(),
    _decoded,
    lambda vae, raw: (raw - _shift(vae)) * float(vae.config.scaling_factor),
    lambda vae, latents: latents / vae.config.scaling_factor + _shift(vae),
)


def _of_each(vae: Any, name: str, like: Tensor) -> Tensor:
    """A number for each channel."""
    return torch.tensor(vae.config[name]).view(1, -1, 1, 1).to(like)


def _normal(vae: Any, like: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and spread of each channel of a patch of two by two latents."""
    mean = vae.bn.running_mean.view(1, -1, 1, 1).to(like)
    return mean, (vae.bn.running_var.view(1, -1, 1, 1) + vae.config.batch_norm_eps).sqrt().to(like)


def _flux2_scaled(vae: Any, raw: Tensor) -> Tensor:
    patches = packing.patchify(raw)
    mean, spread = _normal(vae, patches)
    return packing.unpatchify((patches - mean) / spread)


def _flux2_raw(vae: Any, latents: Tensor) -> Tensor:
    patches = packing.patchify(latents)
    mean, spread = _normal(vae, patches)
    return packing.unpatchify(patches * spread + mean)


CODECS: Mapping[str, Codec] = {
    "AutoencoderKLFlux2": KL._replace(scaled=_flux2_scaled, raw=_flux2_raw),
    "AutoencoderKLQwenImage": Codec(  # of a film of one picture
        lambda vae: int(2 ** len(vae.config.temperal_downsample)),
        lambda vae: int(vae.config.z_dim),
        lambda vae, pixels: vae.encode(pixels.unsqueeze(2)).latent_dist.mode()[:, :, 0],
        lambda vae, raw: _decoded(vae, raw.unsqueeze(2))[:, :, 0],
        lambda vae, raw: (raw - _of_each(vae, "latents_mean", raw)) / _of_each(vae, "latents_std", raw),
        lambda vae, latents: latents * _of_each(vae, "latents_std", latents) + _of_each(vae, "latents_mean", latents),
    ),
    "AutoencoderDC": Codec(
        _halvings("encoder_block_out_channels"),
        _latent_channels,
        lambda vae, pixels: vae.encode(pixels).latent,
        _decoded,
        KL.scaled,
        KL.raw,
    ),
}
"""By the name of diffusers' class; whatever is not here is a KL."""
