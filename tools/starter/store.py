"""Where trainings keep what is not in git: checkpoints and caches under the work dir, written atomically."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch

WORK_DIR = Path("~/.cache/atelier-starter").expanduser()
MODEL_DIR = Path(__file__).parents[2] / "models" / "starter"

# glibc gives memory back too eagerly for training on the CPU: these save 10 to 40 % of a step
ALLOCATOR = {"MALLOC_ARENA_MAX": "1", "MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": "17179869184"}


def save(path: Path, state: Any) -> None:
    """Write `state` so that a kill at any moment leaves either the old or the new file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    new = path.with_name(path.name + ".new")
    torch.save(state, new)
    os.replace(new, path)


def load(path: Path) -> Any:
    """What `save` wrote."""
    return torch.load(path, map_location="cpu", weights_only=False)


class Average:
    """Exponential moving average of a module's parameters, with a warm-up so that early steps count."""

    def __init__(self, module: torch.nn.Module, decay: float) -> None:
        self.decay = decay
        self.values = {name: p.detach().clone() for name, p in module.named_parameters()}

    @torch.no_grad()
    def update(self, module: torch.nn.Module, step: int) -> None:
        keep = min(self.decay, (step + 1) / (step + 20))
        names, fresh = zip(*module.named_parameters(), strict=True)
        torch._foreach_lerp_([self.values[name] for name in names], [p.detach() for p in fresh], 1 - keep)

    @torch.no_grad()
    def copy_to(self, module: torch.nn.Module) -> None:
        for name, p in module.named_parameters():
            p.copy_(self.values[name])
