"""Pictures to latents and back, and how an input image comes to its size."""

import logging
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import interpolate

from backend.diffusion import codecs
from backend.diffusion.placement import device_of
from backend.errors import AtelierError
from backend.images import flatten
from backend.request import ResizeMode

log = logging.getLogger(__name__)

MAX_UPSCALED = 2048 * 2048
"""Pixels of an image that is resized as latents; a larger one is shrunk to this first."""


def encode(vae: Any, picture: Image.Image, width: int, height: int, mode: ResizeMode) -> Tensor:
    """The scaled latents of a picture brought to `width` x `height`, (1, C, H/8, W/8), float32."""
    picture = flatten(picture)
    later = mode is ResizeMode.LATENT_UPSCALE
    picture = _at_most(picture, MAX_UPSCALED) if later else resize(picture, width, height, mode)
    pixels = torch.from_numpy(np.array(picture)).permute(2, 0, 1).unsqueeze(0)
    latents = encode_pixels(vae, pixels.to(device_of(vae)) / 127.5 - 1)
    if not later:
        return latents
    return interpolate(latents, (height // factor(vae), width // factor(vae)), mode="bilinear")


def encode_pixels(vae: Any, pixels: Tensor) -> Tensor:
    """The same of pixels in -1 .. 1, (1, 3, H, W)."""
    codec = codecs.of(vae)
    return codec.scaled(vae, _precisely(vae, partial(codec.encode, vae), pixels.to(device_of(vae))))


def decode(vae: Any, latents: Tensor) -> Image.Image:
    """One picture's scaled latents, (C, H/8, W/8), as the picture. Raises AtelierError if they are no numbers."""
    check(latents)
    return _decode(vae, codecs.of(vae).raw(vae, latents.unsqueeze(0)))


def check(latents: Tensor, dtype: torch.dtype = torch.float32) -> None:
    """Raises AtelierError if what a denoiser gave, that computes in `dtype`, are no numbers."""
    if torch.isfinite(latents).all():
        return
    precision = {torch.float16: "fp16", torch.bfloat16: "bf16"}.get(dtype)
    helps = f"it computes in {precision}: --precision fp32 helps, or " if precision else ""
    helps += "another sampler, a lower guidance or another size may help"
    raise AtelierError(f"the model gave numbers that are none (NaN); {helps}")


def factor(vae: Any) -> int:
    """Pixels along the side of a latent."""
    return codecs.of(vae).factor(vae)


def resize(picture: Image.Image, width: int, height: int, mode: ResizeMode) -> Image.Image:
    """A picture of just that size, by A1111's rules."""
    if mode is ResizeMode.JUST_RESIZE:
        return _lanczos(picture, width, height)
    covers = mode is ResizeMode.CROP_AND_RESIZE
    wider = width * picture.height > height * picture.width
    if wider == covers:
        size = width, max(picture.height * width // picture.width, 1)
    else:
        size = max(picture.width * height // picture.height, 1), height
    left, top = width // 2 - size[0] // 2, height // 2 - size[1] // 2
    scaled = _lanczos(picture, *size)
    if covers:
        return scaled.crop((-left, -top, width - left, height - top))
    edges = ((top, height - top - size[1]), (left, width - left - size[0]), (0, 0))
    return Image.fromarray(np.pad(np.array(scaled), edges, mode="edge"))


def _decode(vae: Any, latents: Tensor) -> Image.Image:
    pixels = _precisely(vae, partial(codecs.of(vae).decode, vae), latents, _is_picture)
    if not torch.isfinite(pixels).all():
        raise AtelierError("the VAE gave numbers that are none (NaN); another VAE or model may help")
    pixels = (pixels[0] * 127.5 + 127.5).round_().clamp_(0, 255).to(torch.uint8)
    return Image.fromarray(pixels.permute(1, 2, 0).cpu().numpy())


def _finite(given: Tensor) -> bool:
    return bool(torch.isfinite(given).all())


def _is_picture(given: Tensor) -> bool:
    """Not all black, as what has overflowed can come out too."""
    return _finite(given) and bool((given > -1).any())


def _precisely(
    vae: Any, way: Callable[[Tensor], Tensor], x: Tensor, is_good: Callable[[Tensor], bool] = _finite
) -> Tensor:
    """`way` of x, float32; once the numbers on the way did not fit into the VAE's precision, it stays in float32."""
    given = way(x.to(vae.dtype))
    if vae.dtype != torch.float32 and not is_good(given):
        log.warning("the VAE's numbers do not fit into %s; it works in float32 from now on", vae.dtype)
        vae.to(torch.float32)
        given = way(x.float())
    return given.float()


def _lanczos(picture: Image.Image, width: int, height: int) -> Image.Image:
    return picture if picture.size == (width, height) else picture.resize((width, height), Image.Resampling.LANCZOS)


def _at_most(picture: Image.Image, pixels: int) -> Image.Image:
    shrink = (pixels / (picture.width * picture.height)) ** 0.5
    sides = [max(int(side * min(shrink, 1)) // 8 * 8, 8) for side in picture.size]
    return _lanczos(picture, *sides)
