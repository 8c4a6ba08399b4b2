"""Soft inpainting: old and new mix by degrees, and what has hardly changed is taken from the old picture.

The parameters and their meaning are those of A1111's extension of this name.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray
from PIL import Image, ImageFilter
from torch import Tensor

if TYPE_CHECKING:
    from . import SoftInpainting

Map = NDArray[np.float32]
_SMALL = 1e-6
_REACH = 2
_SPREAD = 1.5
_EDGE = 4
"""Pixels by which the mask that comes of a few latents is smoothed."""


def mixed(params: SoftInpainting, kept: Tensor, denoised: Tensor, covered: Tensor, sigma: float) -> Tensor:
    """Old and new latents mixed by the mask, (B, C, H/8, W/8): the more noise there still is, the more of the old.

    What is between them in direction is between them in length too, as a power mean; a plain mix would be shorter.
    """
    new = covered ** (sigma**params.schedule_bias * params.preservation)
    plain = torch.lerp(kept, denoised, new)
    lengths = [x.norm(dim=1, keepdim=True) for x in (kept.expand_as(denoised), denoised)]
    longest = torch.maximum(*lengths).clamp_min(_SMALL)  # keeps the powers within what a float holds
    old_part, new_part = ((length / longest) ** params.transition_contrast for length in lengths)
    wanted = longest * torch.lerp(old_part, new_part, new) ** (1 / params.transition_contrast)
    together: Tensor = plain * (wanted / plain.norm(dim=1, keepdim=True).clamp_min(_SMALL))
    return together


def taken(params: SoftInpainting, away: Map, covered: Map, size: tuple[int, int]) -> Image.Image:
    """How far each pixel comes from the new picture, an L picture; `away`: how far its latents are from the old."""
    influence = params.mask_influence
    share = 0.5 * (1 - influence) + influence * (1 - covered ** (influence / 2))
    half = params.difference_threshold * share / (1 + _SMALL - share)
    spread = _mean_between(_mean_between(away, 0.9, 1.0), 0.25, 0.75)
    old = 1 / (1 + (spread / np.maximum(half, _SMALL)) ** params.difference_contrast)
    new = 1 - old * old * old * (old * (old * 6 - 15) + 10)
    picture = Image.fromarray((255 * new).astype(np.uint8)).resize(size, Image.Resampling.BICUBIC)
    return picture.filter(ImageFilter.GaussianBlur(_EDGE))


def _mean_between(values: Map, low: float, high: float) -> Map:
    """For each place the mean of what lies between two quantiles of its neighbourhood, the nearer the weightier."""
    steps = np.arange(-_REACH, _REACH + 1)
    bell = np.exp(-(steps**2) / (2 * _SPREAD**2))
    weights = np.outer(bell, bell).ravel()
    weights /= weights.sum()
    around = sliding_window_view(np.pad(values, _REACH, mode="edge"), (steps.size, steps.size))
    around = around.reshape(*values.shape, -1)
    order = around.argsort(axis=-1)
    sorted_values = np.take_along_axis(around, order, axis=-1)
    until = weights[order].cumsum(axis=-1)
    since = until - weights[order]
    part = np.clip(np.minimum(until, high) - np.maximum(since, low), 0, None)
    mean: Map = (sorted_values * part).sum(axis=-1) / np.maximum(part.sum(axis=-1), _SMALL)
    return mean
