"""The names of samplers and schedules, as A1111 spells them; their mathematics is in `backend.diffusion`."""

from typing import NamedTuple

from backend.errors import InvalidRequest, Problem


class Sampler(NamedTuple):
    name: str
    aliases: tuple[str, ...]
    """Names that A1111's API accepts beside `name`."""
    schedule: str
    """What the schedule "Automatic" means for it."""


class Schedule(NamedTuple):
    label: str
    name: str


AUTOMATIC = "Automatic"

SAMPLERS = (
    Sampler("DPM++ 2M", ("k_dpmpp_2m",), "Karras"),
    Sampler("Euler a", ("k_euler_a", "k_euler_ancestral"), "Uniform"),
    Sampler("Euler", ("k_euler",), "Uniform"),
    Sampler("DDIM", ("ddim",), "DDIM"),
    Sampler("LCM", ("k_lcm",), "Uniform"),
)

SCHEDULES = (
    Schedule(AUTOMATIC, "automatic"),
    Schedule("Uniform", "uniform"),
    Schedule("Karras", "karras"),
    Schedule("SGM Uniform", "sgm_uniform"),
)

SAMPLER_CHOICES = tuple((s.name, s.name) for s in SAMPLERS)
SCHEDULE_CHOICES = tuple((s.label, s.label) for s in SCHEDULES)


def resolve(sampler: str, schedule: str) -> tuple[str, str]:
    """The canonical names; takes aliases and A1111's old joint spelling "DPM++ 2M Karras"."""
    named = sampler.strip()
    for known in SCHEDULES:
        for suffix in (f" {known.label}", f" {known.name}"):
            if named.lower().endswith(suffix.lower()) and _sampler(named[: -len(suffix)]):
                named, schedule = named[: -len(suffix)], known.label
    found = _sampler(named)
    if found is None:
        raise InvalidRequest(Problem("sampler_name", f"{sampler!r} is not a sampler; there are {_names(SAMPLERS)}"))
    for known in SCHEDULES:
        if schedule.strip().lower() in (known.label.lower(), known.name, known.name.replace("_", "")):
            return found.name, known.label
    raise InvalidRequest(
        Problem("scheduler", f"{schedule!r} is not a schedule; there are {', '.join(s.label for s in SCHEDULES)}")
    )


def schedule_of(sampler: str, schedule: str, models_own: str = "") -> str:
    """The schedule that is meant, "Automatic" resolved to the model's own if it has one, else to the sampler's."""
    if schedule != AUTOMATIC or models_own:
        return models_own if schedule == AUTOMATIC else schedule
    found = _sampler(sampler)
    assert found is not None
    return found.schedule


def _sampler(name: str) -> Sampler | None:
    wanted = name.lower()
    return next((s for s in SAMPLERS if wanted == s.name.lower() or wanted in s.aliases), None)


def _names(samplers: tuple[Sampler, ...]) -> str:
    return ", ".join(s.name for s in samplers)
