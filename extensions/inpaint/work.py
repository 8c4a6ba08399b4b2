"""The engine side of inpainting: what a batch starts from, what is kept at every step, and the way back."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import avg_pool2d, interpolate, max_pool2d

from backend.images import flatten

from . import region, soft

if TYPE_CHECKING:
    from backend.diffusion.run import Run

    from . import InpaintParams


class Work:
    """What the batches of one request share."""

    def __init__(self, run: Run, params: InpaintParams) -> None:
        assert run.request.init_image
        self._params = params
        picture = run.images.get(run.request.init_image)
        mask = region.read_mask(params, run.images, picture.size)
        self._size = run.request.width, run.request.height
        if params.region:
            self._picture, self._mask = flatten(picture), mask
            self._box = region.Box.read(params.region)
        else:
            self._picture, self._mask = run.resized(picture), run.resized(mask).convert("L")
            self._box = region.Box(0, 0, *self._size)
        view, covered = self._scaled(self._picture), self._scaled(self._mask)
        if params.content != "original":
            view = fill(view, covered)
        self.kept = run.encode(view)
        """Latents of what is worked on."""
        factor = view.width // self.kept.shape[-1]
        self._covered = cells(covered, factor, soft=params.soft is not None).to(self.kept.device)
        self.shown = run.beside(view, covered)
        """The mask and what it leaves of the picture, as an inpainting checkpoint has them."""

    def start(self, seeds: Sequence[int]) -> Tensor:
        """The latents to start from, (1 or B, C, H/8, W/8)."""
        if self._params.content == "latent_nothing":
            return self.kept * (1 - self._covered)
        if self._params.content == "latent_noise":
            shape = self.kept.shape[1:]
            noise = torch.stack([torch.randn(shape, generator=torch.Generator().manual_seed(seed)) for seed in seeds])
            return torch.lerp(self.kept, noise.to(self.kept.device), self._covered)
        return self.kept

    def revise(self, denoised: Tensor, sigma: float) -> Tensor:
        """What the model saw under the mask, and the picture beside it."""
        if not self._params.soft:
            return torch.lerp(self.kept, denoised, self._covered)
        return soft.mixed(self._params.soft, self.kept, denoised, self._covered, sigma)

    def pasted(self, pictures: Sequence[Image.Image], latents: Tensor | None) -> list[Image.Image]:
        """The finished regions back in their picture, through the mask."""
        box, mask = self._box, self._mask.crop(self._box)
        masks = [mask] * len(pictures)
        if self._params.soft and latents is not None and latents.shape[1:] == self.kept.shape[1:]:
            away = (latents - self.kept).norm(dim=1).cpu().numpy()
            covered = self._covered[0, 0].cpu().numpy()
            masks = [soft.taken(self._params.soft, one, covered, self._size).resize(mask.size) for one in away]
            masks = [Image.composite(one, Image.new("L", mask.size), mask.point(_any)) for one in masks]
        done = []
        for picture, through in zip(pictures, masks, strict=True):
            whole = self._picture.copy()
            whole.paste(picture.resize(mask.size, Image.Resampling.LANCZOS), box, through)
            done.append(whole)
        return done

    def _scaled(self, picture: Image.Image) -> Image.Image:
        part = picture.crop(self._box)
        return part if part.size == self._size else part.resize(self._size, Image.Resampling.LANCZOS)


def cells(mask: Image.Image, factor: int, *, soft: bool) -> Tensor:
    """How far each latent is drawn anew, (1, 1, H/8, W/8), 0 .. 1.

    Unless `soft`, either not or wholly: wherever a pixel of it will be seen by half or more.
    """
    pixels = _tensor(mask) / 255
    return avg_pool2d(pixels, factor) if soft else (max_pool2d(pixels, factor) >= 0.5).float()


def fill(picture: Image.Image, mask: Image.Image) -> Image.Image:
    """The picture with the colours around the mask under it, smoother the further away (Gortler et al. 1996)."""
    filled = _pulled_and_pushed(_tensor(picture), 1 - _tensor(mask) / 255)
    return Image.fromarray(filled[0].permute(1, 2, 0).round().clamp(0, 255).to(torch.uint8).numpy())


def _pulled_and_pushed(colours: Tensor, known: Tensor) -> Tensor:
    if colours.shape[-1] == colours.shape[-2] == 1:
        return torch.where(known > 0, colours, 128.0)
    weight = avg_pool2d(known, 2, ceil_mode=True)
    coarse = avg_pool2d(colours * known, 2, ceil_mode=True) / weight.clamp_min(1e-6)
    behind = _pulled_and_pushed(coarse, (4 * weight).clamp_max(1))
    return torch.lerp(interpolate(behind, colours.shape[-2:], mode="bilinear"), colours, known)


def _tensor(picture: Image.Image) -> Tensor:
    """(1, C, H, W), 0 .. 255"""
    pixels = torch.from_numpy(np.array(picture)).float()
    return (pixels.unsqueeze(0) if pixels.dim() == 2 else pixels.permute(2, 0, 1)).unsqueeze(0)


def _any(value: int) -> int:
    return 255 if value else 0
