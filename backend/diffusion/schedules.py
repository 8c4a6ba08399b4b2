"""How the noise falls from step to step: schedules of sigmas, in the manner of k-diffusion (Karras et al. 2022).

A picture at noise level sigma is `picture + sigma * noise`. A schedule is a list of falling sigmas that ends in 0, one
more than there are steps. Plain floats: a schedule is worked out once per picture and never touches the device.
"""

import math
from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence
from itertools import accumulate, pairwise
from operator import mul

MAX_BETA = 0.999


class SigmaTable:
    """The noise levels that a model was trained at, and the timesteps it knows them by.

    Between two levels the logarithm of sigma is linear in the timestep, and timesteps are not rounded
    (k-diffusion's `DiscreteSchedule` with quantize=False, which is A1111's default).
    """

    def __init__(self, sigmas: Sequence[float], times: Sequence[float] | None = None, rounded: bool = False) -> None:
        self.sigmas = tuple(sigmas)
        """Rising."""
        self.times = tuple(times) if times is not None else tuple(float(i) for i in range(len(sigmas)))
        self.rounded = rounded
        """The model is only asked at `times`, never between them."""
        self.span = self.sigmas[0], self.sigmas[-1]
        """What Karras's schedule goes between, from the quietest to the noisiest: see `sigma_of`."""
        self._logs = tuple(math.log(sigma) for sigma in sigmas)

    def sigma(self, time: float) -> float:
        """The noise level at a timestep, which may lie between two of the table."""
        return math.exp(_interpolate(time, self.times, self._logs))

    def called_at(self, time: float) -> float:
        """The noise level that the model is called with `time` at: the inverse of `time`."""
        return self.sigma(time)

    def time(self, sigma: float) -> float:
        """The timestep to call the model with at noise level `sigma`."""
        wanted = math.log(sigma)
        if self.rounded:
            nearest = min(range(len(self._logs)), key=lambda i: abs(self._logs[i] - wanted))
            return self.times[nearest]
        return _interpolate(wanted, self._logs, self.times)

    def sigma_of(self, point: float) -> float:
        """The noise level that a point of `span` stands for."""
        return point

    def every(self, stride: int) -> "SigmaTable":
        """The coarser table of every `stride`-th level, counted from the noisiest: what an LCM was distilled at."""
        kept = range(len(self.sigmas) - 1, -1, -stride)[::-1]
        return SigmaTable([self.sigmas[i] for i in kept], [self.times[i] for i in kept], rounded=True)


NOISIEST = 1e6
"""The sigma that stands for pure noise, which has none."""


class FlowTable(SigmaTable):
    """The noise levels of a rectified flow, which mixes (1 - s) picture + s noise: sigma is s / (1 - s).

    Such a model knows a level by the timestep s * `steps`. A schedule spreads its steps over times before the `shift`,
    which has more of them where there is more noise; a uniform one ends at the time `lowest`, 0 .. 1.
    """

    def __init__(self, steps: int, shift: Callable[[float], float], lowest: float) -> None:
        self._steps = steps
        self._shift = shift
        shares = [shift(step / steps) for step in range(1, steps + 1)]
        super().__init__([_of_share(s) for s in shares], [lowest * steps, float(steps)])
        self.span = shares[0], shares[-1]

    def sigma(self, time: float) -> float:
        """The noise level at a time of the schedule."""
        return _of_share(self._shift(time / self._steps))

    def called_at(self, time: float) -> float:
        return _of_share(time / self._steps)

    def time(self, sigma: float) -> float:
        return float(self._steps) if sigma >= NOISIEST else self._steps * sigma / (1 + sigma)

    def sigma_of(self, point: float) -> float:
        return _of_share(point)

    def every(self, stride: int) -> SigmaTable:
        return self  # those distilled from a flow know all its levels


def shifted(by: float) -> Callable[[float], float]:
    """More noise at each time: Esser et al. 2024, eq. 23."""
    return lambda s: by * s / (1 + (by - 1) * s)


def stretched(shift: Callable[[float], float], last: float, to: float) -> Callable[[float], float]:
    """The same, but at the time `last` it gives `to`, and pure noise where it did."""
    by = (1 - to) / (1 - shift(last)) if last < 1 else 1.0
    return lambda s: 1 - (1 - shift(s)) * by if s >= last else to * s / last


def trained_sigmas(
    beta_schedule: str,
    beta_start: float,
    beta_end: float,
    steps: int,
    betas: Sequence[float] | None = None,
    zero_snr: bool = False,
) -> SigmaTable:
    """The table of a DDPM model, from the words of its scheduler_config.json; raises ValueError.

    `zero_snr` rescales the betas so that the last step is pure noise (Lin et al. 2023, algorithm 1).
    """
    if betas is None:
        if beta_schedule not in BETAS:
            raise ValueError(f"beta_schedule {beta_schedule!r} is unknown; there are {', '.join(BETAS)}")
        betas = BETAS[beta_schedule](beta_start, beta_end, steps)
    alphas = list(accumulate((1 - beta for beta in betas), mul))
    if zero_snr:
        roots = [math.sqrt(alpha) for alpha in alphas]
        alphas = [((r - roots[-1]) * roots[0] / (roots[0] - roots[-1])) ** 2 for r in roots]
        alphas[-1] = 2**-24  # as diffusers has it: a sigma of 4096 in place of an infinite one
    return SigmaTable([math.sqrt((1 - alpha) / alpha) for alpha in alphas])


def _linear(start: float, end: float, steps: int) -> list[float]:
    return linspace(start, end, steps)


def _scaled_linear(start: float, end: float, steps: int) -> list[float]:
    return [root**2 for root in linspace(math.sqrt(start), math.sqrt(end), steps)]


def _cosine(start: float, end: float, steps: int) -> list[float]:
    """Nichol and Dhariwal 2021; needs no start and end."""
    alphas = [math.cos((i / steps + 0.008) / 1.008 * math.pi / 2) ** 2 for i in range(steps + 1)]
    return [min(1 - after / before, MAX_BETA) for before, after in pairwise(alphas)]


BETAS: Mapping[str, Callable[[float, float, int], list[float]]] = {
    "linear": _linear,
    "scaled_linear": _scaled_linear,
    "squaredcos_cap_v2": _cosine,
}


def uniform(steps: int, table: SigmaTable) -> list[float]:
    return [table.sigma(time) for time in linspace(table.times[-1], table.times[0], steps)] + [0.0]


def sgm_uniform(steps: int, table: SigmaTable) -> list[float]:
    return [table.sigma(time) for time in linspace(table.times[-1], table.times[0], steps + 1)[:-1]] + [0.0]


def karras(steps: int, table: SigmaTable, rho: float = 7.0) -> list[float]:
    lowest, highest = (end ** (1 / rho) for end in table.span)
    return [table.sigma_of(root**rho) for root in linspace(highest, lowest, steps)] + [0.0]


def ddim(steps: int, table: SigmaTable) -> list[float]:
    """Every (T // steps)-th level from the second: one step more than asked for where `steps` does not divide T."""
    return list(table.sigmas[1 :: max(len(table.sigmas) // steps, 1)])[::-1] + [0.0]


SCHEDULES: Mapping[str, Callable[[int, SigmaTable], list[float]]] = {
    "Uniform": uniform,
    "Karras": karras,
    "SGM Uniform": sgm_uniform,
    "DDIM": ddim,
}


def linspace(start: float, end: float, count: int) -> list[float]:
    """`count` numbers from `start` to `end`, both included; one number is `start`."""
    return [start + (end - start) * i / max(count - 1, 1) for i in range(count)]


def _of_share(s: float) -> float:
    return min(s / (1 - s), NOISIEST) if s < 1 else NOISIEST


def _interpolate(x: float, xs: Sequence[float], ys: Sequence[float]) -> float:
    """Linear between the points of a rising `xs`, constant beyond them."""
    if x <= xs[0]:
        return ys[0]
    if x >= xs[-1]:
        return ys[-1]
    above = bisect_right(xs, x)
    weight = (x - xs[above - 1]) / (xs[above] - xs[above - 1])
    return ys[above - 1] + weight * (ys[above] - ys[above - 1])
