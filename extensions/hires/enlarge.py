"""What the second pass starts from: the first one's latents, or its pictures, at another size."""

from collections.abc import Sequence
from typing import Any

import torch
from PIL import Image, ImageOps
from torch import Tensor
from torch.nn.functional import interpolate

OF_LATENTS = {
    "Latent": ("bilinear", False),
    "Latent (antialiased)": ("bilinear", True),
    "Latent (bicubic)": ("bicubic", False),
    "Latent (bicubic antialiased)": ("bicubic", True),
    "Latent (nearest)": ("nearest", False),
    "Latent (nearest-exact)": ("nearest-exact", False),
}
OF_PICTURES = {"Lanczos": Image.Resampling.LANCZOS, "Nearest": Image.Resampling.NEAREST}


def start(run: Any, pictures: Sequence[Image.Image], size: tuple[int, int], upscaler: str) -> Tensor:
    """Latents for pictures of `size`, (B, C, H/8, W/8)."""
    if upscaler in OF_PICTURES:
        return torch.cat([run.encode(ImageOps.fit(picture, size, OF_PICTURES[upscaler])) for picture in pictures])
    factor = run.request.width // run.latents.shape[-1]
    return enlarged(run.latents, size[0] // factor, size[1] // factor, *OF_LATENTS[upscaler])


def enlarged(latents: Tensor, across: int, down: int, mode: str, antialias: bool) -> Tensor:
    """Made large enough to cover `across` x `down`; what juts out is cut off on both sides."""
    high, wide = latents.shape[-2:]
    covering = (across * high // wide, across) if wide * down < across * high else (down, down * wide // high)
    larger = interpolate(latents, covering, mode=mode, antialias=antialias)
    top, left = (covering[0] - down) // 2, (covering[1] - across) // 2
    return larger[..., top : top + down, left : left + across]
