"""Seeds and noise: one generator per image, so that a picture does not depend on the batch that it was drawn in."""

from collections.abc import Sequence

import torch
from diffusers.utils.torch_utils import randn_tensor
from torch import Generator, Tensor

Generators = Sequence[Generator] | Generator | None


def generators(seeds: Sequence[int]) -> list[Generator]:
    """One for each image, on the CPU: the same numbers on every device (A1111's `randn_source` CPU)."""
    return [Generator("cpu").manual_seed(seed) for seed in seeds]


def draw(
    generators: Generators, shape: Sequence[int], device: torch.device, dtype: torch.dtype = torch.float32
) -> Tensor:
    """Standard normal noise, (B, C, H/8, W/8); each image's from its own generator, which moves on."""
    noise: Tensor = randn_tensor(tuple(shape), generators, device, dtype)
    return noise
