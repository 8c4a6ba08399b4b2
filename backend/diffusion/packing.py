"""Latents as some transformers want them: patches of two by two latents of all channels, in a row or not."""

from collections.abc import Sequence

from torch import Tensor


def pack(latents: Tensor) -> Tensor:
    """(B, C, H/8, W/8) -> (B, H/16 * W/16, 4 C)"""
    return patchify(latents).flatten(2).transpose(1, 2)


def unpack(tokens: Tensor, shape: Sequence[int]) -> Tensor:
    """The inverse of `pack`; `shape` is that of the latents."""
    batch, channels, high, wide = shape
    return unpatchify(tokens.transpose(1, 2).reshape(batch, 4 * channels, high // 2, wide // 2))


def patchify(latents: Tensor) -> Tensor:
    """(B, C, H/8, W/8) -> (B, 4 C, H/16, W/16)"""
    batch, channels, high, wide = latents.shape
    patches = latents.reshape(batch, channels, high // 2, 2, wide // 2, 2)
    return patches.permute(0, 1, 3, 5, 2, 4).reshape(batch, 4 * channels, high // 2, wide // 2)


def unpatchify(patches: Tensor) -> Tensor:
    """The inverse of `patchify`."""
    batch, channels, high, wide = patches.shape
    latents = patches.reshape(batch, channels // 4, 2, 2, high, wide)
    return latents.permute(0, 1, 4, 2, 5, 3).reshape(batch, channels // 4, 2 * high, 2 * wide)
