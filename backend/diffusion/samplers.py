"""A1111's samplers as one diffusers scheduler in sigma space, in the manner of k-diffusion (Karras et al. 2022).

A sampler is a generator function that reads like the published algorithm: it yields `(x, sigma)` to have the model
called at noise level `sigma`, is sent `(x, denoised)`, and returns the last x. It may call the model as often per step
as it likes and keeps what it remembers in local variables. The x that it is sent is the one it yielded, unless an
extension has changed it meanwhile. Sigmas are plain floats, so that nothing waits for the device between two steps.
"""

import inspect
import math
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.schedulers.scheduling_utils import SchedulerMixin, SchedulerOutput
from torch import Tensor

from backend.diffusion import noise
from backend.diffusion.schedules import SCHEDULES, FlowTable, SigmaTable, shifted, stretched, trained_sigmas

Noise = Callable[[float, float], Tensor]
"""Standard normal noise like x, for the way from one sigma to the next."""
Steps = Generator[tuple[Tensor, float], tuple[Tensor, Tensor], Tensor]
Revise = Callable[[Tensor, float], Tensor]
"""What the model saw at a sigma -> what the sampler goes by."""
Watch = Callable[[Tensor], Tensor]
"""The latents after a call of the model -> what is gone on with."""


class Sampler(NamedTuple):
    steps: Callable[[Tensor, Sequence[float], Noise], Steps]
    order: int = 1
    """Model calls per step, in the sense of diffusers."""
    stride: int = 0
    """Use only every so manyth trained timestep, as an LCM does; 0: all, and what lies between them."""
    starts_scaled: bool = False
    """Begin from noise * sqrt(1 + sigma^2), as A1111's samplers in timestep space do, not noise * sigma."""


def euler(x: Tensor, sigmas: Sequence[float], noise: Noise) -> Steps:
    """Karras et al. 2022, algorithm 2 without churn. As sigma falls linearly, so does x towards `denoised`."""
    for sigma, following in pairwise(sigmas):
        x, denoised = yield x, sigma
        x = torch.lerp(denoised, x, following / sigma)
    return x


def euler_ancestral(x: Tensor, sigmas: Sequence[float], noise: Noise) -> Steps:
    """An Euler step further down than asked for, then fresh noise up to there (k-diffusion, eta 1)."""
    for sigma, following in pairwise(sigmas):
        x, denoised = yield x, sigma
        down, up = ancestral(sigma, following)
        x = torch.lerp(denoised, x, down / sigma)
        if up:
            x = torch.add(x, noise(sigma, following), alpha=up)
    return x


def dpmpp_2m(x: Tensor, sigmas: Sequence[float], noise: Noise) -> Steps:
    """DPM-Solver++(2M), Lu et al. 2022, with k-diffusion's first-order last step."""
    before: tuple[Tensor, float] | None = None
    for sigma, following in pairwise(sigmas):
        x, denoised = yield x, sigma
        aim = denoised
        if before and following:
            last, last_sigma = before
            ratio = math.log(last_sigma / sigma) / math.log(sigma / following)
            aim = torch.lerp(denoised, last, -1 / (2 * ratio))
        x = torch.lerp(aim, x, following / sigma)
        before = denoised, sigma
    return x


def lcm(x: Tensor, sigmas: Sequence[float], noise: Noise) -> Steps:
    """Luo et al. 2023: the model's guess, noised anew. The boundary weights are 1 within 1e-5 from timestep 19 on."""
    for sigma, following in pairwise(sigmas):
        x, denoised = yield x, sigma
        x = torch.add(denoised, noise(sigma, following), alpha=following) if following else denoised
    return x


def ancestral(sigma: float, following: float) -> tuple[float, float]:
    """How far to step down, and how much noise leads back up to `following`."""
    up = min(following, math.sqrt(following**2 * (sigma**2 - following**2) / sigma**2))
    return math.sqrt(following**2 - up**2), up


SAMPLERS: Mapping[str, Sampler] = {
    "DPM++ 2M": Sampler(dpmpp_2m),
    "Euler a": Sampler(euler_ancestral),
    "Euler": Sampler(euler),
    "DDIM": Sampler(euler, starts_scaled=True),  # with eta 0 it is Euler in sigma space (Song et al. 2021, eq. 13)
    "LCM": Sampler(lcm, stride=20),
}


class Prediction(NamedTuple):
    """What a model's output means."""

    scale: Callable[[float], float]
    """The factor from x to what the model is shown."""
    denoised: Callable[[Tensor, Tensor, float], Tensor]
    """x, output, sigma -> the picture that the model sees in x."""


def _unit_variance(sigma: float) -> float:
    return 1 / math.sqrt(sigma**2 + 1)


def _from_noise(x: Tensor, output: Tensor, sigma: float) -> Tensor:
    return torch.sub(x, output, alpha=sigma)


def _from_velocity(x: Tensor, output: Tensor, sigma: float) -> Tensor:
    return torch.sub(x / (sigma**2 + 1), output, alpha=sigma / math.sqrt(sigma**2 + 1))


def _from_flow(x: Tensor, output: Tensor, sigma: float) -> Tensor:
    return torch.sub(x, output, alpha=sigma) / (1 + sigma)


PREDICTIONS: Mapping[str, Prediction] = {
    "epsilon": Prediction(_unit_variance, _from_noise),
    "v_prediction": Prediction(_unit_variance, _from_velocity),
    "sample": Prediction(_unit_variance, lambda x, output, sigma: output),
    # of rectified flows: they mix (1 - s) picture + s noise, which is x / (1 + sigma) with sigma = s / (1 - s)
    "flow_prediction": Prediction(lambda sigma: 1 / (1 + sigma), _from_flow),
}


class Flow(NamedTuple):
    """How the pipelines of a rectified flow deal with their scheduler.

    They hand the model their sample as it is. So that is only what the model is shown: scaled, packed, and in the
    model's precision. The latents themselves, and the generators, stay with the scheduler.
    """

    pack: Callable[[Tensor], Tensor] = lambda latents: latents
    """Latents, (B, C, H/8, W/8) -> the pipeline's sample."""
    unpack: Callable[[Tensor, Sequence[int]], Tensor] = lambda sample, shape: sample
    """The pipeline's sample and the latents' shape -> latents."""
    at_first: Callable[[Tensor], Tensor] | None = None
    """Latents -> the first sample, where it is another; the pipeline brings it to that of `pack` itself."""
    mu: Callable[[int, int], float] | None = None
    """Tokens of a picture and steps -> the logarithm of the shift, where the scheduler's config does not say it."""
    whole: bool = False
    """Whether the sample is float32 even so: the pipelines bring it to the model's precision themselves."""
    ends_with_steps: bool = False
    """Whether the last of n steps begins at 1 / n of the way, before the shift; else at the lowest level trained."""


class SigmaScheduler(SchedulerMixin, ConfigMixin):  # type: ignore[misc]
    """Any of SAMPLERS with any of SCHEDULES behind diffusers' scheduler protocol; made from the model's own config."""

    @register_to_config  # type: ignore[untyped-decorator]
    def __init__(
        self,
        num_train_timesteps: int = 1000,
        beta_start: float = 0.0001,
        beta_end: float = 0.02,
        beta_schedule: str = "linear",
        trained_betas: Sequence[float] | None = None,
        prediction_type: str = "epsilon",
        rescale_betas_zero_snr: bool = False,
        shift: float = 1.0,
        use_dynamic_shifting: bool = False,
        base_shift: float = 0.5,
        max_shift: float = 1.15,
        base_image_seq_len: int = 256,
        max_image_seq_len: int = 4096,
        shift_terminal: float | None = None,
        time_shift_type: str = "exponential",
    ) -> None:
        if prediction_type not in PREDICTIONS:
            raise ValueError(f"prediction_type {prediction_type!r} is unknown; there are {', '.join(PREDICTIONS)}")
        self.table = trained_sigmas(
            beta_schedule, beta_start, beta_end, num_train_timesteps, trained_betas, rescale_betas_zero_snr
        )
        self.flow: Flow | None = None
        """Set where the model is one."""
        self.model_dtype = torch.float32
        """What the model is shown; latents themselves stay as they come."""
        self.denoised: Tensor | None = None
        """What the model took the last x for: the picture to preview."""
        self.sigma = 0.0
        """The noise level of the latents as they stand."""
        self.sigmas: tuple[float, ...] = ()
        self.times: tuple[float, ...] = ()
        """The timestep of each model call."""
        self.timesteps = torch.empty(0)
        """The same on the device."""
        self._prediction = PREDICTIONS[prediction_type]
        self._revisions: list[Revise] = []
        self._watching: list[Watch] = []
        self._steps: Steps | None = None
        self._latents: Tensor | None = None
        self._generators: noise.Generators = None
        self._planned: object = None
        self.plan("Euler", "Uniform")

    def plan(self, sampler: str, schedule: str, last: int | None = None, tokens: int = 0) -> None:
        """Say how the next run goes: names out of SAMPLERS and SCHEDULES; of its steps only the `last` ones.

        `tokens` are those of a picture of its size, for a flow that is shifted by them.
        """
        self._plan = sampler, schedule, last, tokens

    def set_timesteps(
        self,
        num_inference_steps: int | None = None,
        device: str | torch.device | None = None,
        sigmas: Sequence[float] | None = None,
        mu: float | None = None,
    ) -> None:
        """As planned, whatever `sigmas` and `mu` a pipeline may want; only how many there are is heeded."""
        if num_inference_steps is None:
            assert sigmas is not None
            num_inference_steps = len(sigmas)
        planned = (*self._plan, num_inference_steps, str(device))
        if planned != self._planned:
            sampler, schedule, last, _ = self._plan
            table = self._table(num_inference_steps)
            sigmas = SCHEDULES[schedule](num_inference_steps, table)
            self.sigmas = tuple(sigmas if last is None else sigmas[-1 - last :])
            self._calls = _model_calls(SAMPLERS[sampler], self.sigmas)
            self.times = tuple(table.time(sigma) for sigma in self._calls)
            self.timesteps = torch.tensor(self.times, dtype=torch.float32, device=device)
            self._planned = planned
        self._steps = self.denoised = None
        self.sigma = self._calls[0]

    def begin(self, latents: Tensor, generators: Sequence[torch.Generator]) -> Tensor:
        """The first sample for the pipeline; `latents` are noise, and an image divided by `init_noise_sigma`."""
        if self.flow is None:
            return latents
        self._generators = list(generators)
        sample = self._sample_of(latents * self.init_noise_sigma)
        return self.flow.at_first(self.flow.unpack(sample, latents.shape)) if self.flow.at_first else sample

    def latents_of(self, sample: Tensor) -> Tensor:
        """The latents, (B, C, H/8, W/8), float32, that the pipeline's sample stands for."""
        if self.flow is None:
            return sample
        assert self._latents is not None
        return self._latents

    @contextmanager
    def revised(self, revise: Revise) -> Iterator[None]:
        """While it lasts, whatever the model sees goes through `revise` before the sampler or the preview uses it."""
        self._revisions.append(revise)
        try:
            yield
        finally:
            self._revisions.remove(revise)

    @contextmanager
    def watched(self, watch: Watch) -> Iterator[None]:
        """While it lasts, the latents go through `watch` after each call of the model, whatever the pipeline."""
        self._watching.append(watch)
        try:
            yield
        finally:
            self._watching.remove(watch)

    def rest(self) -> None:
        """Let go of what a run has left, finished or not."""
        self._steps = self.denoised = self._latents = self._generators = None

    @property
    def order(self) -> int:
        return SAMPLERS[self._plan[0]].order

    @property
    def init_noise_sigma(self) -> float:
        """What a pipeline multiplies its first latents by."""
        first = self.sigmas[0]
        fresh = self._plan[2] is None  # from an image x starts as image + noise * sigma, whatever the sampler
        return math.sqrt(first**2 + 1) if SAMPLERS[self._plan[0]].starts_scaled and fresh else first

    def scale_model_input(self, sample: Tensor, timestep: object = None) -> Tensor:
        if self.flow:
            return sample
        return (sample * self._prediction.scale(self.sigma)).to(self.model_dtype)

    def step(
        self,
        model_output: Tensor,
        timestep: object,
        sample: Tensor,
        generator: noise.Generators = None,
        return_dict: bool = True,
    ) -> Any:
        if self.flow:
            sample, generator = self.latents_of(sample), self._generators
            model_output = self.flow.unpack(model_output, sample.shape)
        if self._steps is None:
            self._steps = self._begin(sample, generator)
        denoised = self._prediction.denoised(sample, model_output.to(sample.dtype), self.sigma)
        for revise in self._revisions:
            denoised = revise(denoised, self.sigma)
        self.denoised = denoised
        try:
            sample, self.sigma = self._steps.send((sample, self.denoised))
        except StopIteration as end:
            sample, self.sigma = end.value, self.sigmas[-1]
        for watch in self._watching:
            sample = watch(sample)
        sample = self._sample_of(sample)
        # PixArt-Alpha's pipeline wants the picture as well if there is but one step, and that ends there
        return SchedulerOutput(prev_sample=sample) if return_dict else (sample, sample)

    def add_noise(self, original_samples: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        table = self._table(len(self.timesteps))
        sigmas = torch.tensor([table.called_at(float(t)) for t in timesteps.flatten().tolist()], dtype=noise.dtype)
        return original_samples + noise * sigmas.to(noise.device).view(-1, *[1] * (noise.dim() - 1))

    def set_begin_index(self, begin_index: int = 0) -> None:
        """Skip the first model calls; diffusers' image-to-image pipelines start in mid-schedule with it."""
        self.sigmas = self.sigmas[begin_index // self.order :]
        self.sigma = self.sigmas[0]
        self._planned = None

    def __len__(self) -> int:
        return int(self.config.num_train_timesteps)

    def _sample_of(self, latents: Tensor) -> Tensor:
        """What the pipeline goes on with, if `latents`, at the noise level of the moment, are what is drawn."""
        if self.flow is None:
            return latents
        self._latents = latents
        shown = self.flow.pack(latents * self._prediction.scale(self.sigma))
        return shown if self.flow.whole else shown.to(self.model_dtype)

    def _table(self, steps: int) -> SigmaTable:
        table = self._flowing(steps) if self.flow else self.table
        stride = SAMPLERS[self._plan[0]].stride
        return table.every(stride) if stride else table

    def _flowing(self, steps: int) -> SigmaTable:
        """The noise levels of a flow, and where between them so many steps of a picture of this size lie."""
        assert self.flow
        config, trained = self.config, self.config.num_train_timesteps
        shift = shifted(self._shift(steps))
        lowest = (
            1 / trained if config.use_dynamic_shifting else shift(1 / trained)
        )  # as diffusers has it: shifted twice
        lowest = 1 / steps if self.flow.ends_with_steps else lowest
        if config.shift_terminal:
            shift = stretched(shift, lowest, config.shift_terminal)
        return FlowTable(trained, shift, lowest)

    def _shift(self, steps: int) -> float:
        """By how much: of a dynamic one its logarithm grows with the tokens."""
        config = self.config
        if not config.use_dynamic_shifting:
            return float(config.shift)
        if self.flow and self.flow.mu:
            return math.exp(self.flow.mu(self._plan[3], steps))
        each = (config.max_shift - config.base_shift) / (config.max_image_seq_len - config.base_image_seq_len)
        mu = config.base_shift + each * (self._plan[3] - config.base_image_seq_len)
        return float(mu if config.time_shift_type == "linear" else math.exp(mu))

    def _begin(self, sample: Tensor, generator: noise.Generators) -> Steps:
        def like(sigma: float, following: float) -> Tensor:
            return noise.draw(generator, sample.shape, sample.device, sample.dtype)

        steps = SAMPLERS[self._plan[0]].steps(sample, self.sigmas, like)
        next(steps)
        return steps


def from_config(config: Mapping[str, Any]) -> SigmaScheduler:
    """Our scheduler for the model that the diffusers scheduler of this config belongs to; raises ValueError."""
    known = inspect.signature(SigmaScheduler.__init__).parameters
    if str(config.get("_class_name")).startswith("FlowMatch"):
        config = {**config, "prediction_type": "flow_prediction"}
    elif config.get("use_flow_sigmas"):
        config = {**config, "prediction_type": "flow_prediction", "shift": config.get("flow_shift", 1.0)}
    given = {name: value for name, value in config.items() if name in known and value is not None}
    scheduler: SigmaScheduler = SigmaScheduler(**given)
    return scheduler


def _model_calls(sampler: Sampler, sigmas: Sequence[float]) -> list[float]:
    """The noise level of each model call: what the sampler asks for when it walks over nothing."""
    nothing = torch.zeros(())
    steps = sampler.steps(nothing, sigmas, lambda sigma, following: nothing)
    calls = []
    try:
        _, sigma = next(steps)
        while True:
            calls.append(sigma)
            _, sigma = steps.send((nothing, nothing))
    except StopIteration:
        return calls
