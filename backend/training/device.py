"""What a training runs on, and how much of it is taken."""

import gc

import psutil
import torch


def best() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def memory(device: torch.device) -> int:
    """Bytes that this process takes: of the graphics card at the most, of the machine now."""
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    return int(psutil.Process().memory_info().rss)


def free() -> None:
    """What nobody names any more."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def is_short(device: torch.device) -> bool:
    """Whether less than half of the graphics card's memory is free for others."""
    free, total = torch.cuda.mem_get_info(device)
    return free < total / 2


def graphics_memory() -> float:
    """GB of the first graphics card; 0: there is none that torch can use."""
    return torch.cuda.get_device_properties(0).total_memory / 2**30 if torch.cuda.is_available() else 0.0
