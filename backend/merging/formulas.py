"""The arithmetic of merging, in float32. A and B are two models, C what B was trained from."""

import torch
from torch import Tensor


def weighted_sum(a: Tensor, b: Tensor, share: float) -> Tensor:
    return (1 - share) * a + share * b


def add_difference(a: Tensor, difference: Tensor, share: float) -> Tensor:
    """`difference` is B - C."""
    return a + share * difference


def low_rank(difference: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """Up and down of a LoRA, (out, r) and (r, in) with r <= rank, whose product comes closest to a matrix.

    Small matrices are taken apart exactly, large ones by random projections (Halko et al. 2011), many times faster.
    """
    rank = min(rank, *difference.shape)
    if min(difference.shape) <= 2 * rank + 32 or min(difference.shape) <= 256:
        u, s, vh = torch.linalg.svd(difference, full_matrices=False)
        v = vh.T
    else:
        u, s, v = torch.svd_lowrank(difference, q=rank + 16, niter=4)
    root = s[:rank].sqrt()
    return u[:, :rank] * root, (v[:, :rank] * root).T
