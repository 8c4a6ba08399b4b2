"""How attention is worked out: what is installed, works on this device, and is fastest by a fixed order.

Transformers take diffusers' attention backends; UNets have processors of their own: torch's, or those of xformers.
"""

import logging
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from typing import Any, NamedTuple

import torch
from diffusers.models.attention_dispatch import AttentionBackendName, dispatch_attention_fn
from torch.nn.functional import scaled_dot_product_attention

from backend.errors import EngineFailed, gist
from backend.hardware import Attention

log = logging.getLogger(__name__)

TOLERANCE = 0.05
"""Sage attention rounds to eight bits."""


class _Way(NamedTuple):
    backend: str
    """What diffusers calls it."""
    module: str = ""
    """The package that it needs."""
    in_unets: bool = False


WAYS: Mapping[str, _Way] = {
    "sdpa": _Way("native", in_unets=True),
    "xformers": _Way("xformers", "xformers", in_unets=True),
    "flash": _Way("flash", "flash_attn"),
    "sage": _Way("sage", "sageattention"),
}
DEFAULT = "sdpa"
"""Torch's own, which takes FlashAttention's kernels where they fit; what a picture's text does not mention."""
AUTOMATIC = ("xformers", DEFAULT)
"""For UNets, the fastest first. Transformers keep the default: the others refuse masks, which some of them pass."""


def ways(wanted: Attention, device: torch.device, dtype: torch.dtype) -> tuple[str, ...]:
    """What may be taken, best first. Raises EngineFailed if what is `wanted` cannot be used on this device."""
    if wanted == "auto":
        return tuple(
            way for way in AUTOMATIC if way == DEFAULT or (device.type == "cuda" and _works(way, device, dtype))
        )
    if reason := fault(wanted, device, dtype):
        raise EngineFailed(f"attention by {wanted} cannot be used on this machine ({reason}); choose another or auto")
    return (wanted,) if wanted == DEFAULT else (wanted, DEFAULT)


def fault(way: str, device: torch.device, dtype: torch.dtype) -> str:
    """Why it cannot be used, found out by one small call; empty if it can."""
    module = WAYS[way].module
    if module and find_spec(module) is None:
        return f"the package {module} is not installed"
    query, key, value = torch.randn(3, 1, 64, 2, 64, generator=torch.Generator().manual_seed(0)).to(device, dtype)
    try:
        with torch.inference_mode():
            given = dispatch_attention_fn(query, key, value, backend=AttentionBackendName(WAYS[way].backend))
    except Exception as error:  # noqa: BLE001 (whatever a package raises that was built for another machine)
        return f"{module}: {gist(error)}"
    usual = scaled_dot_product_attention(*(t.transpose(1, 2) for t in (query, key, value))).transpose(1, 2)
    return "" if torch.allclose(given.float(), usual.float(), atol=TOLERANCE) else f"{module} gives wrong numbers"


def apply(pipeline: Any, ways: Sequence[str], chosen: bool) -> str:
    """Have the pipeline's denoiser take the first of `ways` that it can, if they were `chosen`; says which it is."""
    if getattr(pipeline, "transformer", None) is not None:
        way = ways[0] if chosen else DEFAULT
        if way != DEFAULT:
            pipeline.transformer.set_attention_backend(WAYS[way].backend)
        return way
    way = next(way for way in ways if WAYS[way].in_unets)
    if way == "xformers":
        pipeline.unet.enable_xformers_memory_efficient_attention()
    return way


def _works(way: str, device: torch.device, dtype: torch.dtype) -> bool:
    reason = fault(way, device, dtype)
    if reason:
        log.info("attention by %s is not used: %s", way, reason)
    return not reason
