"""Before a training: what it will take, what looks wrong, and what cannot work."""

import math
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from backend.errors import InvalidRequest, Problem, StorageFull
from backend.training.base import Base
from backend.training.dataset import Dataset, Plan
from backend.training.lora import Trainer
from backend.training.params import TrainParams

FEW, MANY = 20, 1000
"""How often each picture should be seen."""


@dataclass(frozen=True)
class Preflight:
    numbers: dict[str, Any]
    """As `dataset.described` has them."""
    warnings: tuple[str, ...]
    """What may be meant so."""
    seconds: float
    """For the whole training, by one step and one sample."""
    memory: int
    """Bytes, at the most."""
    loss: float
    """Of the untrained model, on the first pictures."""
    disk: int
    """Bytes that it writes."""


def refuse(plan: Plan, base: Base) -> None:
    """Raises InvalidRequest for what cannot work with this model on this device."""
    params = plan.params
    problems = []
    if params.resolution < base.bucket_step:
        problems.append(Problem("resolution", f"{base.model.name} needs {base.bucket_step} pixels at least"))
    if plan.step % base.bucket_step:
        problems.append(Problem("bucket_step", f"{base.model.name} needs a multiple of {base.bucket_step}"))
    if base.dtype is torch.bfloat16 and base.device.type == "cuda" and not torch.cuda.is_bf16_supported():
        problems.append(Problem("precision", "this graphics card has no bf16; fp16 or auto suits it"))
    if problems:
        raise InvalidRequest(*problems)


def refuse_without_room(trainer: Trainer, folder: Path) -> int:
    """Bytes that it will write. Raises StorageFull if there is no room for them."""
    needed = disk(trainer)
    free = shutil.disk_usage(next(path for path in (folder, *folder.parents) if path.exists())).free
    if needed > free:
        raise StorageFull(f"the training writes {needed >> 20} MB into {folder.name}, and {free >> 20} MB are free")
    return needed


def warnings(found: Dataset, plan: Plan) -> list[str]:
    """What may be a mistake, one sentence each."""
    params, count = plan.params, len(found.training)
    said = []
    if count == 1:
        said.append("There is one picture only: the LoRA will know it by heart and nothing else.")
    seen = plan.steps * params.batch_size * params.accumulation / max(sum(len(b) for b in plan.buckets.values()), 1)
    if seen < FEW:
        said.append(f"Each picture is seen {seen:.0f} times; with fewer than {FEW} little is learnt.")
    if seen > MANY:
        said.append(
            f"Each picture is seen {seen:.0f} times: it may be learnt by heart. Fewer steps or more pictures help."
        )
    kinds = [flag.kind for flag in found.flags]
    said += [f"{kinds.count(kind)} of the files {words}." for kind, words in _FLAGGED.items() if kind in kinds]
    said += _rates(params)
    if lonely := [bucket for bucket in plan.buckets.values() if len(bucket) < params.batch_size]:
        said.append(f"{len(lonely)} of {len(plan.buckets)} shapes have fewer pictures than a batch.")
    return said


_FLAGGED = {
    "corrupt": "cannot be read and are left out",
    "small": "are small and get enlarged",
    "blurred": "look blurred",
    "duplicate": "look like another one",
    "caption": "have no caption",
    "ignored": "are left out",
}


def _rates(params: TrainParams) -> list[str]:
    rate = params.learning_rate
    if params.optimizer == "Prodigy" and rate < 0.1:
        return [f"Prodigy finds the learning rate by itself: it should be 1, not {rate:g}."]
    if params.optimizer != "Prodigy" and rate > 0.02:
        return [f"A learning rate of {rate:g} is very high for {params.optimizer}."]
    return []


def disk(trainer: Trainer) -> int:
    """Bytes that checkpoints and weights take: the optimizer holds two numbers for each that learns."""
    params = trainer.params
    numbers = sum(weight.numel() for weight in trainer.weights)
    saves = math.ceil(trainer.steps / params.save_every) if params.save_every else 1
    return numbers * (4 * (3 + bool(params.ema)) * (params.keep + 1) + 2 * (saves + 1))
