"""Latents -> small WebP, by a linear map from latents to colours that is fitted to each VAE once."""

import io
import time
from collections.abc import Callable
from concurrent.futures import Executor, Future
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from backend.diffusion import latents as vae_latents
from backend.request import ResizeMode

LONGEST = 256
"""Pixels; the page scales it to the size of the picture."""
PAUSE = 1 / 6
"""Seconds from one preview to the next, at least."""
_CHART = 16
"""Latents along a side of the chart that the map is fitted to."""

Colours = NDArray[np.float32]
"""(C + 1, 3): a latent with a 1 behind it, times this, is RGB in 0..255."""


def fit(vae: Any) -> Colours:
    """Least squares over a chart that the VAE encodes, so that the latents are such as pictures have."""
    factor = vae_latents.factor(vae)
    chart = _chart(_CHART * factor)
    with torch.inference_mode():
        seen = vae_latents.encode(vae, chart, *chart.size, ResizeMode.JUST_RESIZE)[0]
    known = seen.flatten(1).T.cpu().numpy()
    wanted = np.asarray(chart.reduce(factor), dtype=np.float32).reshape(-1, 3)
    solution: Colours = np.linalg.lstsq(np.column_stack([known, np.ones(len(known))]), wanted)[0].astype(np.float32)
    return solution


def linear(colours: Colours, latents: Tensor) -> Image.Image:
    """One picture's latents, (C, H/8, W/8), a pixel each."""
    known = latents.float().cpu().numpy()
    flat = np.tensordot(known, colours[:-1], axes=(0, 0)) + colours[-1]
    return Image.fromarray(np.nan_to_num(flat).clip(0, 255).astype(np.uint8))


def render(show: Callable[[Tensor], Image.Image], latents: Tensor) -> bytes:
    """What is shown of one picture's latents as a WebP of LONGEST pixels along its longer side."""
    small = show(latents)
    scale = LONGEST / max(small.size)
    size = round(small.width * scale), round(small.height * scale)
    file = io.BytesIO()
    small.resize(size, Image.Resampling.BILINEAR).save(file, "WEBP", quality=60, method=0)
    return file.getvalue()


class Previews:
    """The previews of one batch, made beside the denoising: what is offered at one step is ready at a later one."""

    def __init__(self, show: Callable[[Tensor], Image.Image], pool: Executor) -> None:
        self._show = show
        self._pool = pool
        self._due = 0.0
        self._pending: Future[bytes] | None = None

    def offer(self, latents: Tensor, last: bool = False) -> bytes | None:
        """Begin a preview of latents, (B, C, H/8, W/8), if one is due or they are the `last`; gives a finished one."""
        ready = self.take() if self._pending and self._pending.done() else None
        if last or (self._pending is None and time.monotonic() >= self._due):
            self._due = time.monotonic() + PAUSE
            self._pending = self._pool.submit(render, self._show, latents[0])
        return ready

    def take(self) -> bytes | None:
        """The preview that was begun last, waited for."""
        pending, self._pending = self._pending, None
        return pending.result() if pending else None


def _chart(side: int) -> Image.Image:
    """Patches of many colours, `side` pixels square in all, with hard borders at one end, soft at the other."""
    cells = np.random.default_rng(0).integers(0, 256, (_CHART // 2, _CHART // 2, 3), dtype=np.uint8)
    patches = Image.fromarray(cells)
    size = side, side
    hard, soft = (patches.resize(size, how) for how in (Image.Resampling.NEAREST, Image.Resampling.BICUBIC))
    mask = Image.linear_gradient("L").resize(size)
    return Image.composite(hard, soft, mask)
