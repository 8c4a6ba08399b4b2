"""The tensors of a LoRA by the names of kohya's trainer, so that every program shows and loads it.

Keys are `lora_unet_down_blocks_0_..._to_q.lora_down.weight`, `.lora_up.weight`, `.alpha`; for SDXL the UNet's blocks
have the names of the original code, `input_blocks_4_1_...`.
"""

import re
from collections.abc import Mapping

import torch
from torch import Tensor

PREFIXES = {"unet": "lora_unet", "text_encoder": "lora_te"}
PREFIXES_XL = {"unet": "lora_unet", "text_encoder": "lora_te1", "text_encoder_2": "lora_te2"}

Learnt = Mapping[str, Mapping[str, Tensor]]
"""By part of the model: peft's keys, `mid_block.attentions.0.proj_in.lora_A.weight`."""


def kohya(learnt: Learnt, alpha: float, is_xl: bool, layers_per_block: int = 2) -> dict[str, Tensor]:
    """The tensors by kohya's names."""
    found: dict[str, Tensor] = {}
    for part, tensors in learnt.items():
        for key, tensor in tensors.items():
            name, side = named(part, key, is_xl, layers_per_block)
            found[f"{name}.{side}.weight"] = tensor.contiguous()
            found[f"{name}.alpha"] = torch.tensor(float(alpha))
    return dict(sorted(found.items()))


def named(part: str, key: str, is_xl: bool, layers_per_block: int = 2) -> tuple[str, str]:
    """What kohya calls the layer of one of peft's keys, and its `lora_down` or `lora_up`."""
    layer, _, rest = key.rpartition(".lora_")
    return _named(part, layer, is_xl, layers_per_block), "lora_down" if rest.startswith("A") else "lora_up"


def _named(part: str, layer: str, is_xl: bool, layers_per_block: int) -> str:
    if part == "unet":
        layer = _original(layer, layers_per_block) if is_xl else layer
    elif not layer.startswith(("text_model.", "text_projection")):  # transformers 5 has no such level any more
        layer = f"text_model.{layer}"
    return f"{(PREFIXES_XL if is_xl else PREFIXES)[part]}_{layer.replace('.', '_')}"


_RESNET = {
    "conv1": "in_layers.2",
    "conv2": "out_layers.3",
    "time_emb_proj": "emb_layers.1",
    "conv_shortcut": "skip_connection",
}


def _original(layer: str, layers_per_block: int) -> str:
    """diffusers' name of a layer of the UNet -> that of the original code (Stability's `generative-models`)."""
    if match := re.fullmatch(r"(down|up)_blocks\.(\d+)\.(resnets|attentions)\.(\d+)\.(.*)", layer):
        way, block, kind, index, rest = match[1], int(match[2]), match[3], int(match[4]), match[5]
        place = block * (layers_per_block + 1) + index + (way == "down")
        return f"{_WAYS[way]}.{place}.{int(kind == 'attentions')}.{_inner(kind, rest)}"
    if match := re.fullmatch(r"down_blocks\.(\d+)\.downsamplers\.0\.conv", layer):
        return f"input_blocks.{(int(match[1]) + 1) * (layers_per_block + 1)}.0.op"
    if match := re.fullmatch(r"up_blocks\.(\d+)\.upsamplers\.0\.conv", layer):
        block = int(match[1])
        return f"output_blocks.{block * (layers_per_block + 1) + layers_per_block}.2.conv"
    if match := re.fullmatch(r"mid_block\.(resnets|attentions)\.(\d+)\.(.*)", layer):
        place = 1 if match[1] == "attentions" else 2 * int(match[2])
        return f"middle_block.{place}.{_inner(match[1], match[3])}"
    raise ValueError(f"{layer} is no layer of SDXL's UNet")


_WAYS = {"down": "input_blocks", "up": "output_blocks"}


def _inner(kind: str, rest: str) -> str:
    return _RESNET[rest] if kind == "resnets" else rest
