"""The file of a LoRA as kohya's trainer writes it, so that every program shows and loads it; and as diffusers does.

Keys are `lora_unet_down_blocks_0_..._to_q.lora_down.weight`, `.lora_up.weight`, `.alpha`; for SDXL the UNet's blocks
have the names of the original code, `input_blocks_4_1_...`. The metadata are all texts.
"""

import hashlib
import json
import re
from collections.abc import Mapping
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor

PREFIXES = {"unet": "lora_unet", "text_encoder": "lora_te"}
PREFIXES_XL = {"unet": "lora_unet", "text_encoder": "lora_te1", "text_encoder_2": "lora_te2"}
_LEGACY_AT, _LEGACY_SIZE = 0x100000, 0x10000

Learnt = Mapping[str, Mapping[str, Tensor]]
"""By part of the model: peft's keys, `mid_block.attentions.0.proj_in.lora_A.weight`."""


def kohya(learnt: Learnt, alpha: float, is_xl: bool, layers_per_block: int = 2) -> dict[str, Tensor]:
    """The tensors by kohya's names."""
    found: dict[str, Tensor] = {}
    for part, tensors in learnt.items():
        for key, tensor in tensors.items():
            layer, _, rest = key.rpartition(".lora_")
            name = _named(part, layer, is_xl, layers_per_block)
            found[f"{name}.lora_{'down' if rest.startswith('A') else 'up'}.weight"] = tensor.contiguous()
            found[f"{name}.alpha"] = torch.tensor(float(alpha))
    return dict(sorted(found.items()))


def peft(learnt: Learnt) -> dict[str, Tensor]:
    """The tensors as diffusers saves them: peft's own keys behind the part's name.

    Not through `convert_state_dict_to_diffusers`: of attention and convolutions together it spells the one in an old
    and the other in the new way, and the old ones are lost when the file is read (diffusers 0.42).
    """
    return {
        f"{part}.{key}": tensor.contiguous() for part, tensors in learnt.items() for key, tensor in tensors.items()
    }


def file_of(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> bytes:
    """A safetensors file, with A1111's two hashes of it in the metadata."""
    kept = {key: value for key, value in metadata.items() if key.startswith("ss_")}
    plain = save(dict(tensors), kept)
    hashes = {"sshs_model_hash": model_hash(plain), "sshs_legacy_hash": legacy_hash(plain)}
    spec = {"modelspec.hash_sha256": f"0x{model_hash(plain)}"} if "modelspec.sai_model_spec" in metadata else {}
    file: bytes = save(dict(tensors), {**metadata, **hashes, **spec})
    return file


def model_hash(file: bytes) -> str:
    """SHA-256 of what stands behind the header: it stays the same when the metadata are edited."""
    return hashlib.sha256(file[8 + int.from_bytes(file[:8], "little") :]).hexdigest()


def legacy_hash(file: bytes) -> str:
    """A1111's old hash of a file: eight digits, of a piece in its middle."""
    return hashlib.sha256(file[_LEGACY_AT : _LEGACY_AT + _LEGACY_SIZE]).hexdigest()[:8]


def texts(values: Mapping[str, Any]) -> dict[str, str]:
    """Metadata as safetensors wants them; None is left out as kohya writes "None"."""
    return {
        key: value if isinstance(value, str) else json.dumps(value) if isinstance(value, dict | list) else str(value)
        for key, value in values.items()
    }


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
