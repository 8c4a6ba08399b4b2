"""The engine side for transformers: ControlNets of Stable Diffusion 3 and Flux.

They are shown the map as latents, and what they give is added behind the transformer's blocks, one by one: to rows of
tokens, each two by two latents. A net has fewer blocks than the transformer and its own way to spread what it gives
over those: so each unit's residuals are spread before they are summed, and units of different nets go together.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from diffusers import FluxControlNetModel
from torch import Tensor
from torch.nn.functional import interpolate, pixel_unshuffle

from backend.images import flatten

from . import pictures
from .strength import conditional_only, hint, spread, union_name

if TYPE_CHECKING:
    from backend.diffusion.run import Run

    from . import Unit

FLUX_TYPES: Mapping[str, int] = {"Hard Edge": 0, "Soft Edge": 0, "Tile": 1, "Depth": 2, "OpenPose": 4}
"""The number by which a union model for Flux (InstantX, Shakker) knows what the map shows."""
Keywords = Mapping[str, Any]
SHARED = ("hidden_states", "timestep", "encoder_hidden_states", "pooled_projections")
"""What the transformer is called with for each picture of the batch, and so is a net."""


class Residuals(NamedTuple):
    """What is added behind each block of the transformer: (B, tokens, width) each."""

    double: list[Tensor]
    single: list[Tensor]
    """Of Flux; empty for others."""

    def plus(self, other: Residuals) -> Residuals:
        both = (
            [a + b for a, b in zip(*pair, strict=True)] if all(pair) else pair[0] or pair[1]
            for pair in zip(self, other, strict=True)
        )
        return Residuals(*both)


class Control:
    """A unit with its control model and its map."""

    def __init__(self, unit: Unit, net: Any, run: Run) -> None:
        self.unit = unit
        self.conditional_only = conditional_only(unit)
        self._net = net
        self._denoiser = run.denoiser
        self._region = _region(unit, run, net)
        counts = [len(net.controlnet_blocks), len(getattr(net, "controlnet_single_blocks", ()))]
        self._scales = spread(unit, sum(counts), run.further)
        self._shown = self._map(unit, run)

    def residuals(self, keywords: Keywords) -> Residuals:
        raise NotImplementedError

    def _map(self, unit: Unit, run: Run) -> Tensor:
        raise NotImplementedError

    def _scaled(self, residuals: Sequence[Tensor]) -> list[Tensor]:
        scaled = [one * scale for one, scale in zip(residuals, self._scales, strict=True)]
        return scaled if self._region is None else [one * self._region for one in scaled]


class OfFlux(Control):
    """A net whose map is latents in tokens, as the transformer's are; or pixels that it reads itself (XLabs)."""

    def __init__(self, unit: Unit, net: Any, run: Run) -> None:
        super().__init__(unit, net, run)
        self._type = _flux_type(unit, net) if net.union else None
        self._guidance = run.request.distilled_cfg_scale

    def residuals(self, keywords: Keywords) -> Residuals:
        count = len(keywords["hidden_states"])
        given = {name: keywords[name] for name in (*SHARED, "img_ids", "txt_ids")}
        given["hidden_states"] = given["hidden_states"][..., : self._net.config.in_channels]  # Fill has a mask behind
        double, single = self._net(
            **given,
            controlnet_cond=self._shown.expand(count, *self._shown.shape[1:]),
            controlnet_mode=None if self._type is None else self._type.expand(count, 1),
            guidance=self._told(keywords, count) if self._net.config.guidance_embeds else None,
            return_dict=False,
        )
        scaled, first = self._scaled([*(double or ()), *(single or ())]), len(double or ())
        repeats = self._net.input_hint_block is not None
        return Residuals(
            _over(scaled[:first], len(self._denoiser.transformer_blocks), repeats),
            _over(scaled[first:], len(self._denoiser.single_transformer_blocks)),
        )

    def _map(self, unit: Unit, run: Run) -> Tensor:
        picture = flatten(pictures.shown(unit, run.request, run.images))
        if self._net.input_hint_block is not None:
            return (hint(picture) * 2 - 1).to(self._net.device, self._net.dtype)
        return _tokens(run.encode(picture)).to(self._net.device, self._net.dtype)

    def _told(self, keywords: Keywords, count: int) -> Tensor:
        """How strongly the prompt is heeded; a schnell is not told, its net may have to be."""
        told = keywords.get("guidance")
        return self._shown.new_full((count,), self._guidance) if told is None else told


class OfSD3(Control):
    def residuals(self, keywords: Keywords) -> Residuals:
        given = {name: keywords[name] for name in SHARED}
        config = self._net.config
        if self._net.pos_embed is None:  # of 3.5 large: it has no eyes of its own
            given["hidden_states"] = self._denoiser.pos_embed(given["hidden_states"])
        if self._net.context_embedder is None:
            given["encoder_hidden_states"] = None
        if config.force_zeros_for_pooled_projection:
            given["pooled_projections"] = torch.zeros_like(given["pooled_projections"])
        count = len(given["hidden_states"])
        (found,) = self._net(**given, controlnet_cond=self._shown.expand(count, -1, -1, -1), return_dict=False)
        return Residuals(_evenly(self._scaled(found), len(self._denoiser.transformer_blocks)), [])

    def _map(self, unit: Unit, run: Run) -> Tensor:
        latents = run.encode(flatten(pictures.shown(unit, run.request, run.images)))
        vae = run.pipeline.vae.config
        if self._net.config.force_zeros_for_pooled_projection and vae.shift_factor:
            latents = latents + vae.shift_factor * vae.scaling_factor  # InstantX's are shown them unshifted
        return latents.to(self._net.device, self._net.dtype)


def control(unit: Unit, net: Any, run: Run) -> Control:
    """Raises ValueError for what this kind of net cannot be asked."""
    if unit.processed.needs_mask:
        raise ValueError(f"{unit.processed.label} is for Stable Diffusion 1.x, 2.x and XL")
    return (OfFlux if isinstance(net, FluxControlNetModel) else OfSD3)(unit, net, run)


class Calls:
    """The transformer's further arguments, call by call.

    Flux is called for the negative prompt after it was for the prompt: there the units say what they have said, or
    nothing.
    """

    def __init__(self) -> None:
        self._step = -1
        self._said: dict[Control, Residuals] = {}

    def given(self, controls: Sequence[Control], keywords: Keywords, step: int, pictures: int) -> dict[str, Any]:
        """`pictures`: how many are drawn at once; a call for more has the negative prompts first."""
        is_negative = step == self._step and bool(self._said)
        if step != self._step:
            self._step, self._said = step, {}
        unconditional = pictures if len(keywords["hidden_states"]) > pictures else 0
        heard = [c for c in controls if not (is_negative and c.conditional_only)]
        for one in heard:
            if one not in self._said:
                self._said[one] = _whole(one, keywords, unconditional)
        if not heard:
            return {}
        first, *others = (self._said[one] for one in heard)
        for other in others:
            first = first.plus(other)
        if "img_ids" not in keywords:
            return {"block_controlnet_hidden_states": first.double}
        return {
            "controlnet_block_samples": first.double or None,
            "controlnet_single_block_samples": first.single or None,
        }


def _whole(one: Control, keywords: Keywords, unconditional: int) -> Residuals:
    """For all of the batch; nothing for the unconditional part where control is more important."""
    if not one.conditional_only or not unconditional:
        return one.residuals(keywords)
    half = one.residuals({**keywords, **{name: keywords[name][unconditional:] for name in SHARED}})
    return Residuals(*([torch.cat([torch.zeros_like(r), r]) for r in part] for part in half))


def _over(residuals: Sequence[Tensor], blocks: int, repeats: bool = False) -> list[Tensor]:
    """One for each block, as diffusers' Flux spreads them."""
    if not residuals:
        return []
    each = math.ceil(blocks / len(residuals))
    return [residuals[n % len(residuals) if repeats else n // each] for n in range(blocks)]


def _evenly(residuals: Sequence[Tensor], blocks: int) -> list[Tensor]:
    """One for each block, as diffusers' Stable Diffusion 3 spreads them."""
    each = blocks / len(residuals)
    return [residuals[int(n / each)] for n in range(blocks)]


def _tokens(latents: Tensor) -> Tensor:
    """(1, C, H/8, W/8) -> (1, tokens, 4 C)"""
    return pixel_unshuffle(latents, 2).flatten(2).transpose(1, 2)


def _region(unit: Unit, run: Run, net: Any) -> Tensor | None:
    """Where the unit guides, (1, tokens, 1)."""
    mask = pictures.region_of_effect(unit, run.request, run.images)
    if mask is None:
        return None
    size = run.request.height // 16, run.request.width // 16
    cover = interpolate(hint(mask.convert("RGB"))[:, :1], size, mode="area")
    return cover.flatten(2).transpose(1, 2).to(net.device, net.dtype)


def _flux_type(unit: Unit, net: Any) -> Tensor:
    name = union_name(unit)
    if name not in FLUX_TYPES or FLUX_TYPES[name] >= net.config.num_mode:
        raise ValueError(f"union models for Flux know {', '.join(FLUX_TYPES)}, not {name}")
    return torch.full((1, 1), FLUX_TYPES[name], device=net.device)
