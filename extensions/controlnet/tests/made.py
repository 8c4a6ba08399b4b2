"""Control models of random weights, in the layouts in which people have them."""

import inspect
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import ControlNetModel, ControlNetUnionModel, T2IAdapter, UNet2DConditionModel
from PIL import Image, ImageDraw
from safetensors.torch import save_file

from tests.tiny import tiny_model

HINT = (4, 4, 8, 8)
"""Widths of the part that reads the map."""
_INNER = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "time_emb_proj": "emb_layers.1",
    "conv_shortcut": "skip_connection",
}
_OUTER = {
    r"time_embedding\.linear_1": "time_embed.0",
    r"time_embedding\.linear_2": "time_embed.2",
    r"add_embedding\.linear_1": "label_emb.0.0",
    r"add_embedding\.linear_2": "label_emb.0.2",
    r"conv_in\b": "input_blocks.0.0",
    r"controlnet_cond_embedding\.conv_in": "input_hint_block.0",
    r"controlnet_cond_embedding\.conv_out": "input_hint_block.14",
    r"controlnet_mid_block": "middle_block_out.0",
    r"mid_block\.attentions\.0": "middle_block.1",
}


def sd15(folder: Path) -> Path:
    """A checkpoint of Stable Diffusion 1.5's blocks, a few channels wide: its control models give 13 residuals."""
    tiny_model(folder)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        unet = UNet2DConditionModel(
            block_out_channels=(8, 8, 16, 16),
            layers_per_block=2,
            cross_attention_dim=16,
            attention_head_dim=2,
            norm_num_groups=4,
        )
    unet.save_pretrained(folder / "unet", safe_serialization=True)
    return folder


def control(unet: Any, seed: int = 0, kind: Any = ControlNetModel) -> Any:
    """A control model that fits the UNet and does not leave it alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = kind.from_unet(unet, conditioning_embedding_out_channels=HINT)
        return _stirred(net)


def union(unet: Any, types: int = 8) -> Any:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        config = dict(unet.config)
        known = inspect.signature(ControlNetUnionModel.__init__).parameters
        taken = {name: value for name, value in config.items() if name in known}
        taken |= {"conditioning_embedding_out_channels": HINT, "num_control_type": types}
        width = config["block_out_channels"][0]
        net = ControlNetUnionModel(**taken, num_trans_channel=width, num_proj_channel=width)
        return _stirred(net)


def adapter(channels: Iterable[int], kind: str = "full_adapter", shown: int = 3) -> Any:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        factor = 16 if kind == "full_adapter_xl" else 8
        return T2IAdapter(shown, list(channels), 2, factor, kind)


def lllyasviel(net: Any) -> dict[str, torch.Tensor]:
    """Its weights as lllyasviel's files name them."""
    layers = net.config.layers_per_block
    return {f"control_model.{_named(key, layers)}": value.clone() for key, value in net.state_dict().items()}


def save(weights: dict[str, torch.Tensor], path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({key: value.contiguous() for key, value in weights.items()}, path)
    return path


def edges(width: int = 64, height: int = 64) -> Image.Image:
    """A map: white lines on black."""
    picture = Image.new("RGB", (width, height))
    ImageDraw.Draw(picture).ellipse((8, 8, width - 9, height - 9), outline="white", width=2)
    return picture


def photo(width: int = 64, height: int = 64) -> Image.Image:
    rows, columns = np.mgrid[0:height, 0:width]
    pixels = np.stack([columns * 255 / width, rows * 255 / height, (columns // 16 + rows // 16) % 2 * 255], axis=2)
    return Image.fromarray(pixels.astype(np.uint8))


def _stirred(net: Any) -> Any:
    for name, value in net.named_parameters():
        if name.startswith(("controlnet_down", "controlnet_mid", "controlnet_cond_embedding.conv_out", "spatial_ch")):
            torch.nn.init.normal_(value, std=0.3)
    return net.eval()


def _named(key: str, layers: int) -> str:
    for ours, theirs in _OUTER.items():
        if re.match(ours, key):
            return re.sub(rf"^{ours}", theirs, key)
    if found := re.match(r"controlnet_cond_embedding\.blocks\.(\d+)\.(.*)", key):
        return f"input_hint_block.{2 * int(found[1]) + 2}.{found[2]}"
    if found := re.match(r"controlnet_down_blocks\.(\d+)\.(.*)", key):
        return f"zero_convs.{found[1]}.0.{found[2]}"
    if found := re.match(r"mid_block\.resnets\.(\d)\.(\w+)\.(.*)", key):
        return f"middle_block.{2 * int(found[1])}.{_INNER[found[2]]}.{found[3]}"
    if found := re.match(r"down_blocks\.(\d)\.downsamplers\.0\.conv\.(.*)", key):
        return f"input_blocks.{(int(found[1]) + 1) * (layers + 1)}.0.op.{found[2]}"
    found = re.match(r"down_blocks\.(\d)\.(resnets|attentions)\.(\d)\.(.*)", key)
    assert found, key
    number = 1 + int(found[1]) * (layers + 1) + int(found[3])
    if found[2] == "attentions":
        return f"input_blocks.{number}.1.{found[4]}"
    inner, rest = found[4].split(".", 1)
    return f"input_blocks.{number}.0.{_INNER[inner]}.{rest}"
