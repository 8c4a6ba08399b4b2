"""How long a job still takes, from its own steps."""

from dataclasses import dataclass

from backend.result import Progress

SMOOTHING = 0.3
"""Weight of the newest step; the first ones of a batch are often slower."""


@dataclass(frozen=True)
class Moment:
    """A running job as it stands."""

    progress: Progress
    elapsed: float
    """Seconds since it was started."""
    eta: float | None = None
    """Seconds left; None before a step has been measured."""
    preview: bytes | None = None
    """The latest one, though this progress brought none; until its own first one a batch shows the one before."""

    @property
    def fraction(self) -> float:
        """Of all steps of all batches, 0..1."""
        at = self.progress
        return min(1.0, (at.batch + (at.step / at.steps if at.steps else 0.0)) / max(1, at.batches))


class Pace:
    """Measures one run of a job; every time is in seconds of one clock that only goes forward."""

    def __init__(self, started: float) -> None:
        self._started = started
        self._step_time: float | None = None
        self._between: float = 0.0
        """What a batch costs beside its steps: encoding, decoding."""
        self._steps = 0
        """Of a batch, as far as it is known: only the stages from sampling on say it."""
        self._last = Progress("waiting")
        self._last_step_at = started
        self._preview: bytes | None = None

    def at(self, progress: Progress, now: float) -> Moment:
        """Where the job stands with this progress."""
        self._measure(progress, now)
        self._preview = progress.preview or self._preview
        self._last = progress
        self._steps = progress.steps or self._steps
        return Moment(progress, now - self._started, self._eta(progress, now), self._preview)

    def _measure(self, at: Progress, now: float) -> None:
        last = self._last
        if at.batch == last.batch and at.step > last.step:
            if last.step:  # the time before the first step is not a step's
                taken = (now - self._last_step_at) / (at.step - last.step)
                known = self._step_time
                self._step_time = taken if known is None else known + SMOOTHING * (taken - known)
        elif at.batch == last.batch + 1 and last.step and last.step == last.steps:  # not a skipped one
            self._between = now - self._last_step_at
        elif (at.batch, at.step) == (last.batch, last.step):
            return
        self._last_step_at = now

    def _eta(self, at: Progress, now: float) -> float | None:
        if self._step_time is None:
            return None
        if at.batch >= at.batches:
            return 0.0
        batches = at.batches - at.batch - 1
        steps = max(0, self._steps - at.step) + batches * self._steps
        left = steps * self._step_time + batches * self._between
        return max(0.0, left - (now - self._last_step_at))
