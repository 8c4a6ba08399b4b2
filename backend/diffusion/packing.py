"""Latents as some transformers want them: a row of tokens, each two by two latents of all channels."""

from collections.abc import Sequence

from torch import Tensor


def pack(latents: Tensor) -> Tensor:
    """(B, C, H/8, W/8) -> (B, H/16 * W/16, 4 C)"""
    batch, channels, high, wide = latents.shape
    patches = latents.view(batch, channels, high // 2, 2, wide // 2, 2)
    return patches.permute(0, 2, 4, 1, 3, 5).reshape(batch, high // 2 * (wide // 2), 4 * channels)


def unpack(tokens: Tensor, shape: Sequence[int]) -> Tensor:
    """The inverse of `pack`; `shape` is that of the latents."""
    batch, channels, high, wide = shape
    patches = tokens.view(batch, high // 2, wide // 2, channels, 2, 2)
    return patches.permute(0, 3, 1, 4, 2, 5).reshape(batch, channels, high, wide)
