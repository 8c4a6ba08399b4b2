"""What memory there is, what may be taken of it, and who has to go when room is needed.

On a graphics card a model lies in its memory or, when others need that, in RAM, whence it is back within a moment;
without one there is RAM alone. `room` decides, and knows nothing of torch.
"""

import gc
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import psutil
import torch

from backend.hardware import Hardware

GB = 10**9
SPARE = GB
"""Bytes of RAM that are left to the rest of the machine, whatever the budget says."""


class Budget(NamedTuple):
    """Bytes that models may take, with what a picture needs while it is drawn."""

    ram: int
    vram: int = 0
    """Of the graphics card; 0: there is none."""


class Held(NamedTuple):
    """A model in memory."""

    name: str
    size: int
    """Bytes of its weights."""
    vram: int
    """Bytes that it takes of the card now."""
    ram: int
    stays: bool = False
    """Whether it is in use."""


class Move(NamedTuple):
    name: str
    to_ram: bool
    """Else it is let go."""


def room(held: Sequence[Held], needed: Budget, budget: Budget) -> list[Move]:
    """What has to leave so that `needed` fits; `held` is in the order in which they may go."""
    vram, leaving = sum(h.vram for h in held), []
    for h in held:
        if vram + needed.vram <= budget.vram:
            break
        if h.vram and not h.stays:
            leaving.append(h)
            vram -= h.vram
    in_ram = {h.name: h.size if h in leaving else h.ram for h in held if h.ram or h in leaving}
    taken, gone = sum(in_ram.values()), set()
    for h in held:
        if taken + needed.ram <= budget.ram:
            break
        if h.name in in_ram and not h.stays:
            gone.add(h.name)
            taken -= in_ram[h.name]
    moves = [Move(h.name, False) for h in held if h.name in gone]
    return moves + [Move(h.name, True) for h in leaving if h.name not in gone]


def budget(device: torch.device, hardware: Hardware) -> Budget:
    """As `hardware` says, else half of the RAM and all of the card."""
    ram = total_ram() // 2 if hardware.ram_budget is None else int(hardware.ram_budget * GB)
    if device.type != "cuda":
        return Budget(ram)
    vram = int(torch.cuda.get_device_properties(device).total_memory)
    return Budget(ram, vram if hardware.vram_budget is None else min(vram, int(hardware.vram_budget * GB)))


def within(budget: Budget, held: Sequence[Held], device: torch.device) -> Budget:
    """What of the budget is there, now that others use this machine too."""
    ram = min(budget.ram, sum(h.ram for h in held) + max(free_ram() - SPARE, 0))
    return Budget(ram, min(budget.vram, sum(h.vram for h in held) + free_vram(device)))


def free(device: torch.device) -> int:
    """Bytes that the next picture can take."""
    return free_vram(device) if device.type == "cuda" else free_ram()


def free_vram(device: torch.device) -> int:
    """0 without a card."""
    if device.type != "cuda":
        return 0
    idle = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return int(torch.cuda.mem_get_info(device)[0]) + idle


def total_ram() -> int:
    return min(int(psutil.virtual_memory().total), _limit() or 1 << 62)


def free_ram() -> int:
    available = int(psutil.virtual_memory().available)
    limit = _limit()
    return min(available, max(limit - psutil.Process().memory_info().rss, 0)) if limit else available


def release(device: torch.device) -> None:
    """Give back what nobody refers to any more."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


def is_exhausted(error: BaseException) -> bool:
    """Whether it says that there is no memory left."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in _EXHAUSTED)


_EXHAUSTED = (
    "DefaultCPUAllocator",
    "CUDA out of memory",
    "MPS backend out of memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_ALLOC_FAILED",
)
"""What torch says in a plain RuntimeError."""


def _limit() -> int | None:
    """What a container leaves us; None: all there is."""
    try:
        return int(Path("/sys/fs/cgroup/memory.max").read_text("ascii"))
    except (OSError, ValueError):  # "max"
        return None
