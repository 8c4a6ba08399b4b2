"""The engine side: before each call of the model, the control models say what is to be added inside it.

One guide serves all batches of a pass. Its hook sees what the model is called with; where guidance doubles the batch,
the unconditional half comes first. What a UNet is given is worked out here, what a transformer is in tokens.py.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache, reduce
from itertools import zip_longest
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from diffusers import ControlNetUnionModel, T2IAdapter
from torch import Tensor
from torch.nn.functional import interpolate, pad

from backend.extension import InvalidRequest, Problem

from . import nets, pictures, shelf, tokens
from .strength import conditional_only, hint, scales, union_type

if TYPE_CHECKING:
    from backend.diffusion.run import Run

    from . import ControlNetParams, Unit

Find = Callable[[str], shelf.Net]


class Call(NamedTuple):
    """What the UNet is called with."""

    sample: Tensor
    """(B, C, H/8, W/8)"""
    timestep: Any
    text: Tensor
    """(B, 77 n, width)"""
    added: Mapping[str, Tensor]
    """SDXL's sizes and pooled text; empty for others."""

    def after(self, first: int) -> Call:
        """The same without the `first` of the batch."""
        timestep = self.timestep
        if isinstance(timestep, Tensor) and timestep.dim() and len(timestep) == len(self.sample):
            timestep = timestep[first:]
        return Call(
            self.sample[first:], timestep, self.text[first:], {key: value[first:] for key, value in self.added.items()}
        )


class Guide:
    def __init__(self, run: Run, params: ControlNetParams) -> None:
        self.index = 0
        """Calls of the model that are done."""
        self._units = [(n, unit) for n, unit in enumerate(params.units) if takes_part(unit, run)]
        self._controls: list[Any] = []
        """All of them for a UNet, or all for a transformer."""

    @contextmanager
    def on(self, run: Run) -> Iterator[None]:
        """While it lasts, the model is guided through the batch of `run`; `load` comes before its first call."""
        self.index, images, calls = 0, len(run.seeds), tokens.Calls()
        if not self._units:
            yield
            return

        def complete(_: Any, arguments: Sequence[Any], keywords: Mapping[str, Any]) -> Any:
            part = self.index / len(run.pipeline.scheduler.times)
            controls = [c for c in self._controls if c.unit.guidance_start <= part <= c.unit.guidance_end]
            if not controls:
                return None
            if isinstance(controls[0], tokens.Control):
                return arguments, {**keywords, **calls.given(controls, keywords, self.index, images)}
            call = _call(*arguments, **keywords)
            guided = images if len(call.sample) > images else 0
            return arguments, {**keywords, **_given(controls, call, guided)}

        handle = run.denoiser.register_forward_pre_hook(complete, with_kwargs=True)
        try:
            yield
        finally:
            handle.remove()

    def load(self, run: Run, find: Find) -> dict[str, Path]:
        """The control models and maps of all units; the files that took part, by name. Raises InvalidRequest."""
        found = [(n, unit, find(unit.model)) for n, unit in self._units]
        if not self._controls:
            self._controls = [_loaded(n, unit, net, run) for n, unit, net in found]
        return {unit.model: net.path for _, unit, net in found}


def takes_part(unit: Unit, run: Run) -> bool:
    """Whether a unit guides in this pass: the second one of Hires, the first, or one without the other."""
    if not unit.is_heard:
        return False
    if run.further:
        return unit.hr_option != "Low res only"
    return unit.hr_option != "High res only" or "hires" not in run.request.extensions


class _Control:
    """A unit with its control model and its map."""

    is_adapter = False

    def __init__(self, unit: Unit, net: Any, run: Run, count: int) -> None:
        self.unit = unit
        # one that is told no place, as for Shuffle, is so always (its authors' and diffusers' pipelines)
        self.conditional_only = conditional_only(unit) or bool(net.config.get("global_pool_conditions"))
        self._net = net
        self._scales = scales(unit, count, self.is_adapter, run.further)
        self._hint = hint(pictures.shown(unit, run.request, run.images)).to(net.device, net.dtype)
        self._hints = cache(lambda count: self._hint.repeat(count, 1, 1, 1))
        region = pictures.region_of_effect(unit, run.request, run.images)
        self._region = None if region is None else hint(region.convert("RGB"))[:, :1].to(net.device, net.dtype)
        self._cover = cache(self._covered)

    def residuals(self, call: Call) -> list[Tensor]:
        """What is added inside the UNet, the outermost first, the middle's last."""
        even = len(set(self._scales)) == 1
        down, middle = self._net(
            call.sample[:, : self._net.config.in_channels],
            call.timestep,
            encoder_hidden_states=call.text,
            conditioning_scale=float(self._scales[0]) if even else 1.0,
            added_cond_kwargs=call.added,
            return_dict=False,
            **self._shown(len(call.sample)),
        )
        whole = [*down, middle]
        if not even:
            whole = [one * scale for one, scale in zip(whole, self._scales, strict=True)]
        return self._where_heard(whole)

    def _shown(self, count: int) -> dict[str, Any]:
        return {"controlnet_cond": self._hints(count)}

    def _where_heard(self, residuals: list[Tensor]) -> list[Tensor]:
        if self._region is None:
            return residuals
        return [one * self._cover(*one.shape[-2:]) for one in residuals]

    def _covered(self, height: int, width: int) -> Tensor:
        assert self._region is not None
        return interpolate(self._region, (height, width), mode="area")


class _Union(_Control):
    def __init__(self, unit: Unit, net: Any, run: Run, count: int) -> None:
        super().__init__(unit, net, run, count)
        self._type = union_type(unit, net.config.num_control_type)
        self._types = torch.zeros(1, net.config.num_control_type, device=net.device, dtype=net.dtype)
        self._types[0, self._type] = 1

    def _shown(self, count: int) -> dict[str, Any]:
        return {
            "controlnet_cond": [self._hints(count)],
            "control_type": self._types.expand(count, -1),
            "control_type_idx": [self._type],
        }


class _Adapter(_Control):
    """Its residuals follow from the map alone: they are worked out once."""

    is_adapter = True

    def __init__(self, unit: Unit, net: Any, run: Run, count: int) -> None:
        super().__init__(unit, net, run, count)
        channels, factor = net.config.in_channels, net.downscale_factor
        shown = self._hint if channels == 3 else self._hint.mean(dim=1, keepdim=True)
        high, wide = shown.shape[-2:]
        features = net(pad(shown, (0, -wide % factor, 0, -high % factor), mode="replicate"))
        scaled = [one * scale for one, scale in zip(features, self._scales, strict=True)]
        heard = self._where_heard(scaled)
        self._features = cache(lambda count: [one.repeat(count, 1, 1, 1) for one in heard])

    def residuals(self, call: Call) -> list[Tensor]:
        return self._features(len(call.sample))


def _loaded(number: int, unit: Unit, net: shelf.Net, run: Run) -> _Control | tokens.Control:
    path = pictures.at(number)
    try:
        module = nets.fetch(run, net)
    except nets.Unfit as error:
        raise InvalidRequest(Problem(f"{path}.model", str(error))) from error
    try:
        return _control(unit, module, run)
    except ValueError as error:
        field = "advanced_weighting" if unit.advanced_weighting is not None else "union_control_type"
        field = "module" if unit.processed.needs_mask else field
        raise InvalidRequest(Problem(f"{path}.{field}", str(error))) from error


def _control(unit: Unit, module: Any, run: Run) -> _Control | tokens.Control:
    if isinstance(module, nets.OF_TRANSFORMERS):
        return tokens.control(unit, module, run)
    if isinstance(module, T2IAdapter):
        return _Adapter(unit, module, run, len(module.adapter.body))
    kind = _Union if isinstance(module, ControlNetUnionModel) else _Control
    return kind(unit, module, run, len(module.controlnet_down_blocks) + 1)


def _call(
    sample: Tensor,
    timestep: Any,
    encoder_hidden_states: Tensor,
    added_cond_kwargs: Mapping[str, Tensor] | None = None,
    **_: Any,
) -> Call:
    """Out of the UNet's own arguments."""
    return Call(sample, timestep, encoder_hidden_states, added_cond_kwargs or {})


def _given(controls: Sequence[_Control], call: Call, unconditional: int) -> dict[str, Any]:
    """The UNet's further arguments: the sums over all units."""
    of_nets = [_whole(c, call, unconditional) for c in controls if not c.is_adapter]
    of_adapters = [_whole(c, call, unconditional) for c in controls if c.is_adapter]
    given: dict[str, Any] = {}
    if of_nets:
        *down, middle = _summed(of_nets)
        given |= {"down_block_additional_residuals": tuple(down), "mid_block_additional_residual": middle}
    if of_adapters:
        given |= {"down_intrablock_additional_residuals": _summed(of_adapters)}  # a list: the UNet empties it
    return given


def _whole(control: _Control, call: Call, unconditional: int) -> list[Tensor]:
    """A unit's residuals for all of the batch; nothing for the unconditional part where control is more important."""
    if not control.conditional_only or not unconditional:
        return control.residuals(call)
    half = control.residuals(call.after(unconditional))
    return [torch.cat([one.new_zeros(unconditional, *one.shape[1:]), one]) for one in half]


def _summed(residuals: Sequence[list[Tensor]]) -> list[Tensor]:
    """One by one; an adapter may have fewer than another."""
    layers = zip_longest(*residuals)
    return [reduce(torch.add, (each for each in layer if each is not None)) for layer in layers]
