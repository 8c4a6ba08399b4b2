"""Denoisers that inpaint: beside the latents they are shown a mask, and what it leaves of a picture.

UNets have both as further channels, Flux Fill in its packed tokens, with the mask as fine as the picture.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import max_pool2d, pixel_unshuffle

from backend.diffusion import codecs, latents, packing

Call = tuple[tuple[Any, ...], dict[str, Any]]


def channels(vae: Any) -> tuple[int, int]:
    """How many a UNet that inpaints has, and a transformer."""
    own, factor = codecs.of(vae).channels(vae), codecs.of(vae).factor(vae)
    return 2 * own + 1, 4 * (2 * own + factor**2)


def inpaints(denoiser: Any, vae: Any) -> bool:
    return denoiser.config.in_channels in channels(vae)


def beside(denoiser: Any, vae: Any, picture: Image.Image, mask: Image.Image) -> Tensor:
    """What such a denoiser is shown beside the latents; `mask` is L, and white over what is drawn anew."""
    covered = torch.from_numpy(np.array(mask) > 127).float()[None, None]
    pixels = torch.from_numpy(np.array(picture)).permute(2, 0, 1)[None] / 127.5 - 1
    return _beside(denoiser, vae, pixels * (1 - covered), covered)


@contextmanager
def showing(denoiser: Any, beside: Tensor) -> Iterator[None]:
    """While it lasts, the denoiser is shown `beside`."""
    complete = _completing(denoiser, lambda sample, named: beside)
    handle = denoiser.register_forward_pre_hook(complete, with_kwargs=True, prepend=True)  # before blanks
    try:
        yield
    finally:
        handle.remove()


def show_blanks(denoiser: Any, vae: Any) -> None:
    """Show it a mask over everything wherever nobody gives it one, as A1111 does: it draws from nothing then."""

    @lru_cache(maxsize=4)
    def blank(high: int, wide: int) -> Tensor:
        factor = latents.factor(vae)
        covered = torch.ones(1, 1, high * factor, wide * factor)
        with torch.inference_mode():
            return _beside(denoiser, vae, torch.zeros_like(covered).expand(-1, 3, -1, -1), covered)

    def of_size(sample: Tensor, named: dict[str, Any]) -> Tensor:
        if sample.dim() == 4:
            return blank(*sample.shape[-2:])
        _, row, column = named["img_ids"][-1].tolist()  # of the last token
        return blank(2 * int(row + 1), 2 * int(column + 1))

    denoiser.register_forward_pre_hook(_completing(denoiser, of_size), with_kwargs=True)


def _completing(
    denoiser: Any, beside: Callable[[Tensor, dict[str, Any]], Tensor]
) -> Callable[[Any, tuple[Any, ...], dict[str, Any]], Call | None]:
    """A hook that adds to the sample what it lacks."""

    def complete(_: Any, arguments: tuple[Any, ...], named: dict[str, Any]) -> Call | None:
        sample = arguments[0] if arguments else named["hidden_states"]
        side = 1 if sample.dim() == 4 else 2
        if sample.shape[side] == denoiser.config.in_channels:
            return None
        shown = beside(sample, named).to(sample)
        whole = torch.cat([sample, shown.expand(len(sample), *shown.shape[1:])], dim=side)
        return ((whole, *arguments[1:]), named) if arguments else (arguments, {**named, "hidden_states": whole})

    return complete


def _beside(denoiser: Any, vae: Any, left: Tensor, covered: Tensor) -> Tensor:
    """Of pixels in -1 .. 1 without those under the mask, and of the mask, 0 or 1 for each pixel."""
    factor, encoded = latents.factor(vae), latents.encode_pixels(vae, left)
    if denoiser.config.in_channels == channels(vae)[0]:
        return torch.cat([max_pool2d(covered, factor).to(encoded), encoded], dim=1)
    return packing.pack(torch.cat([encoded, pixel_unshuffle(covered, factor).to(encoded)], dim=1))
