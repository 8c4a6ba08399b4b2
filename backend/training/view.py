"""A training as JSON, for the list, its own page and the WebSocket alike. Addresses are relative. No torch."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

from backend.jobs.store import JobState
from backend.training.grids import Grid
from backend.training.orders import Job
from backend.training.params import TrainParams
from backend.training.pictures import smoothed
from backend.training.records import Training

POINTS = 400
"""Of a curve, at most."""
PROGRESS = (
    *("stage", "step", "steps", "epoch", "loss", "smoothed", "rate", "validation", "seconds_left", "memory"),
    *("part", "parts", "resting"),
)
_STATES = {JobState.CANCELLED: "stopped"}


def view(
    training: Training, job: Job | None, position: int | None = None, progress: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """What a list shows; `progress` if it runs, `position` if it waits (1 = next)."""
    at = {"step": training.done, "steps": training.steps or training.params.steps, **(progress or {})}
    return {
        "name": training.name,
        "state": state_of(training, job),
        "job": job.id if job else None,
        "owner": job.owner if job else None,
        "position": position,
        "error": job.error if job else None,
        "changes": dict(training.remedy),
        "changes_resume": bool(training.remedy) and not training.fixed(_mended(training)),
        "model": training.params.model,
        "data": training.data.name,
        "started": training.started,
        "preview": _latest(training),
        **{name: at.get(name) for name in PROGRESS},
    }


def state_of(training: Training, job: Job | None) -> str:
    """queued, running, paused, done, stopped or failed."""
    if job and not (job.state.is_final and training.is_done):
        return _STATES.get(job.state, job.state.value)
    return "done" if training.is_done else "stopped"


def full(training: Training, seen: dict[str, Any]) -> dict[str, Any]:
    """All of it: `seen`, as in the list, with parameters, curves, samples and checkpoints."""
    return {
        **seen,
        "params": training.params.model_dump(mode="json"),
        "history": curves(training.history),
        "prompts": list(training.prompts),
        "samples": [
            {"step": step, "pictures": [_sample(training, path) for path in found.values()]}
            for step, found in training.samples.items()
        ],
        "checkpoints": [
            {"step": step, "url": f"{_address(training)}/export/kohya?step={step}"} for step in training.kept_weights
        ],
        "plots": {
            name: f"{_address(training)}/plots/{name}.png"
            for name in ("loss", "samples")
            if (training.folder / f"{name}.png").is_file()
        },
    }


def grid_view(training: Training, grid: Grid, job: Job | None) -> dict[str, Any]:
    """`cells` are the addresses of its pictures by row and column, None where one is still to be drawn."""
    urls = [f"{_address(training)}/grids/{grid.id}/{p.name}" if p.is_file() else None for _, _, p in grid.cells()]
    return {
        "id": grid.id,
        "state": _STATES.get(job.state, job.state.value) if job else "stopped",
        "error": job.error if job else None,
        "steps": grid.steps,
        "weights": grid.weights,
        "prompt": grid.sample.prompt,
        "seed": grid.sample.seed,
        "cells": [urls[at : at + len(grid.weights)] for at in range(0, len(urls), len(grid.weights))],
    }


def curves(history: Sequence[Mapping[str, float]]) -> dict[str, list[tuple[float, float]]]:
    """Points (step, value) of each curve, thinned out evenly."""
    losses = [(row["step"], row["loss"]) for row in history if "loss" in row]
    return {
        "loss": _thinned(losses),
        "smoothed": _thinned(smoothed(losses)),
        "rate": _thinned([(row["step"], row["rate"]) for row in history if "rate" in row]),
        "validation": _thinned([(row["step"], row["validation"]) for row in history if "validation" in row]),
    }


def _thinned(points: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """Every n-th, and the last."""
    every = -(-len(points) // POINTS) or 1
    return points[-1::-every][::-1]


def _mended(training: Training) -> TrainParams:
    return training.params.model_copy(update=dict(training.remedy))


def _latest(training: Training) -> str | None:
    samples = training.samples
    return _sample(training, samples[max(samples)][min(samples[max(samples)])]) if samples else None


def _sample(training: Training, path: Path) -> str:
    return f"{_address(training)}/samples/{path.name}"


def _address(training: Training) -> str:
    return f"api/trainings/{quote(training.name)}"
