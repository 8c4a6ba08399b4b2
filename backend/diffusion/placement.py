"""Where a model's parts lie while it draws, and in what precision: decided from sizes, then done by diffusers' hooks.

    none        everything is on the device
    model       one part at a time is, the others in RAM
    group       of the denoiser one block at a time, of text encoders one layer
    sequential  one layer at a time of whatever there is: slow, for the smallest cards

The VAE is small, and may have to change its precision: `group` and `sequential` leave it on the device.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Literal

import torch
from diffusers.hooks import apply_group_offloading

from backend.hardware import Offload, Precision

Placed = Literal["none", "model", "group", "sequential"]
LOWER: Mapping[Placed, Placed] = {"none": "model", "model": "group", "group": "sequential"}
"""What takes less memory."""
BLOCKS = 6
"""A denoiser's blocks, about: what `group` holds at a time is a part of so many, and the next."""
DENOISERS = ("unet", "transformer")
TILES = (512, 256)
"""Sides of the tiles in which a VAE may work, in pixels."""
_PER_PIXEL = 6 * 2
"""Numbers for each channel of the VAE's first block and each pixel while it decodes: six are tensors (measured), as
many again are left to what convolutions take beside them."""
_WORKING = 10**9, 2000
"""Bytes while a denoiser works: some for libraries, and some a pixel (SD 1.5, guided, in fp16: 524 measured)."""


def place(sizes: Mapping[str, int], working: int, budget: int, wanted: Offload = "auto") -> Placed:
    """The fastest that fits into `budget` bytes of a card; `sizes` are those of the parts' weights."""
    if wanted != "auto":
        return wanted
    ways: tuple[Placed, ...] = ("none", "model", "group")
    return next((way for way in ways if resident(sizes, way) + working <= budget), "sequential")


def resident(sizes: Mapping[str, int], placed: Placed) -> int:
    """Bytes of weights that lie on the card at most, at a time."""
    if placed == "none":
        return sum(sizes.values())
    if placed == "model":
        return max(sizes.values())
    vae = sizes.get("vae", 0)
    return vae if placed == "sequential" else vae + 2 * max(sizes.values()) // BLOCKS


def working(width: int, height: int) -> int:
    """Bytes that drawing a picture takes beside the weights, about; a VAE that would take more works in tiles."""
    return _WORKING[0] + _WORKING[1] * width * height


def compute_dtype(device: torch.device, wanted: Precision, flow: bool) -> torch.dtype:
    """What is computed in: models that follow a flow are trained in bfloat16, and overflow float16."""
    named = {"fp16": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32}
    if wanted in named:
        return named[wanted]
    if device.type != "cuda":
        return torch.float32
    return torch.bfloat16 if flow and torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16


def put(pipeline: Any, placed: Placed, device: torch.device) -> None:
    """Place a pipeline that is in RAM."""
    if placed == "none":
        pipeline.to(device)
    elif placed == "model":
        pipeline.enable_model_cpu_offload(device=device)
    else:
        for name, part in pipeline.components.items():
            if name == "vae":
                part.to(device)
            elif isinstance(part, torch.nn.Module):
                by_block = placed == "group" and name in DENOISERS
                # no stream: it would copy the weights once and never see what a LoRA makes of them
                apply_group_offloading(
                    part,
                    onload_device=device,
                    offload_device=torch.device("cpu"),
                    offload_type="block_level" if by_block else "leaf_level",
                    num_blocks_per_group=1 if by_block else None,
                )


def rest(pipeline: Any, placed: Placed) -> None:
    """Back to where its parts wait while they are not used."""
    if placed == "model":
        pipeline.maybe_free_model_hooks()


def leave(pipeline: Any, placed: Placed) -> None:
    """Off the device, for another model."""
    if placed == "none":
        pipeline.to("cpu", silence_dtype_warnings=True)
    elif placed == "model":
        rest(pipeline, placed)
    else:
        pipeline.vae.to("cpu")


def come_back(pipeline: Any, placed: Placed, device: torch.device) -> None:
    """What `leave` has undone."""
    if placed == "none":
        pipeline.to(device)
    elif placed != "model":
        pipeline.vae.to(device)


def in_eight_bits(pipeline: Any, dtype: torch.dtype) -> None:
    """Keep the denoiser's weights in eight bits; each layer is brought to `dtype` while it works."""
    for name in DENOISERS:
        if (part := getattr(pipeline, name, None)) is not None:
            part.enable_layerwise_casting(storage_dtype=torch.float8_e4m3fn, compute_dtype=dtype)


def tile_for(vae: Any, width: int, height: int, free: int) -> int | None:
    """The side of the tiles in which a picture is decoded; None: it fits as a whole, or this VAE has no tiles."""
    if decoding(vae, width, height) <= free or not has_tiles(vae):
        return None
    return next((side for side in TILES if decoding(vae, side, side) <= free), TILES[-1])


def has_tiles(vae: Any) -> bool:
    return hasattr(vae, "use_tiling")


def decoding(vae: Any, width: int, height: int) -> int:
    """Bytes that a VAE takes to decode a picture, about."""
    channels = vae.config.get("block_out_channels", [128])[0]
    return int(_PER_PIXEL * channels * width * height * vae.dtype.itemsize)


@contextmanager
def tiled(vae: Any, side: int | None) -> Iterator[None]:
    """While it lasts the VAE works in tiles of `side` pixels, or of its own size if it has but one; None: in none."""
    if side is None:
        yield
        return
    factor = 2 ** (len(vae.config.get("block_out_channels", (0,) * 4)) - 1)
    sizes = {"tile_sample_min_size": side, "tile_latent_min_size": side // factor}
    before = {name: getattr(vae, name) for name in sizes if hasattr(vae, name)}
    vae.enable_tiling()
    for name in before:
        setattr(vae, name, sizes[name])
    try:
        yield
    finally:
        vae.disable_tiling()
        for name, value in before.items():
            setattr(vae, name, value)


def device_of(module: Any) -> torch.device:
    """Where it computes, though its weights may lie in RAM just now."""
    hook = getattr(module, "_hf_hook", None)
    device = getattr(hook, "execution_device", None)
    return torch.device(device) if device is not None else torch.device(module.device)
