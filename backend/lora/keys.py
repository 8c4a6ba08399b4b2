"""Names of tensors in LoRA files, in every spelling that is about, and the modules of a model that they mean.

A module is known here by its part of the pipeline and its name with `_` for `.`: ("unet", "mid_block_attentions_0").
"""

import re
from collections.abc import Iterable, Mapping
from typing import NamedTuple

Module = tuple[str, str]
"""Part of the pipeline, and the name there with `_` for `.`."""

PARTS = (
    (r"\.lora_(up|down|mid)\.weight", None),
    (r"(?:\.lora|_lora|\.lora_linear_layer)\.(up|down)\.weight", None),
    (r"\.lora_A(?:\.\w+)?\.weight", "down"),
    (r"\.lora_B(?:\.\w+)?\.weight", "up"),
    (r"\.lora_magnitude_vector(?:\.\w+)?(?:\.weight)?", "magnitude"),
    (r"\.dora_scale", "dora"),
    (r"\.(alpha|scale)", None),
    (r"\.(hada_(?:w[12]_[ab]|t[12]))", None),
    (r"\.(lokr_(?:w[12](?:_[ab])?|t2))", None),
    (r"\.(diff|diff_b|w_norm|b_norm)", None),
    (r"\.(weight|on_input)", None),
)
"""How names end, and what the tensor is; None: what the group says."""
_PATTERNS = tuple((re.compile(f"(.+?){pattern}$"), part) for pattern, part in PARTS)

PREFIXES = (
    ("lora_te3_", "text_encoder_3"),
    ("lora_te2_", "text_encoder_2"),
    ("lora_te1_", "text_encoder"),
    ("lora_te_", "text_encoder"),
    ("lora_unet_", "unet"),
    ("lora_transformer_", "unet"),
    ("text_encoders_clip_l_transformer_", "text_encoder"),
    ("text_encoders_clip_h_transformer_", "text_encoder"),
    ("text_encoders_clip_g_transformer_", "text_encoder_2"),
    ("text_encoders_t5xxl_transformer_", "text_encoder_3"),
    ("text_encoder_3_", "text_encoder_3"),
    ("text_encoder_2_", "text_encoder_2"),
    ("text_encoder_", "text_encoder"),
    ("unet_", "unet"),
    ("base_model_model_", "unet"),
    ("model_diffusion_model_", "unet"),
    ("diffusion_model_", "unet"),
    ("lycoris_", "unet"),
    ("transformer_", "unet"),
)
"""A transformer is called as a UNet is: it stands in its place. The longest of text encoders are ComfyUI's."""
_XLABS = re.compile(r"\.processor\.(qkv|proj)_lora([12])\.")
_STREAMS = {"1": "img", "2": "txt"}
"""XLabs' numbers for what Flux calls its streams."""


class Key(NamedTuple):
    module: Module
    part: str
    """What of it: up, down, mid, alpha, dora, hada_w1_a ... as the kinds in network.py call it."""


def parse(key: str) -> Key | None:
    """What a tensor is and where it belongs; None: nothing that is known here."""
    key = _XLABS.sub(lambda match: f".{_STREAMS[match[2]]}_attn.{match[1]}.lora.", key)
    for pattern, part in _PATTERNS:
        if match := pattern.fullmatch(key):
            return Key(_module(match[1]), part or match[2])
    return None


def _module(name: str) -> Module:
    flat = name.replace(".processor", "").replace(".", "_")
    for prefix, component in PREFIXES:
        if flat.startswith(prefix) and not flat.startswith("transformer_blocks_"):
            return component, flat.removeprefix(prefix)
    return "unet", flat


def spellings(component: str, name: str, ldm_name: str = "") -> Iterable[Module]:
    """The names that a module of the model goes by in files."""
    yield component, name.replace(".", "_")
    if name.endswith("to_out.0"):  # diffusers before 0.20
        yield component, name.removesuffix(".0").replace(".", "_")
    if ldm_name:
        yield component, ldm_name.replace(".", "_")
    if component != "unet":  # transformers 5 has one object where there were two
        short = name.removeprefix("text_model.")
        yield component, short.replace(".", "_")
        yield component, f"text_model_{short.replace('.', '_')}"
    if name.startswith("encoder.block."):  # a T5: kohya's and ComfyUI's third, though Flux has no second CLIP
        for numbered in ("text_encoder_2", "text_encoder_3"):
            yield numbered, name.replace(".", "_")


RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
OUTSIDE = {
    "conv_in": "input_blocks.0.0",
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
}


def ldm_names(names: Iterable[str]) -> Mapping[str, str]:
    """The names that the modules of a diffusers UNet have in the original code (`input_blocks.1.1.proj_in`).

    They follow from what is there: a down block's resnets and its downsampler are numbered on through all blocks.
    """
    known = list(names)
    places = dict(_places(known))
    found = {}
    for name in known:
        if name in OUTSIDE:
            found[name] = OUTSIDE[name]
        elif match := re.match(r"(?:mid_block|(?:down|up)_blocks\.\d+)\.\w+\.\d+", name):
            rest = name[match.end() + 1 :]
            if ".resnets." in match[0]:
                rest = RESNET.get(rest, rest)
            if ".downsamplers." in match[0]:
                rest = "op"
            if match[0] in places:
                found[name] = f"{places[match[0]]}.{rest}"
    return found


def _places(names: list[str]) -> Iterable[tuple[str, str]]:
    """Resnets, attentions and samplers, and their places in the original code."""
    there = {match[0] for name in names if (match := re.match(r"(?:mid_block|\w+_blocks\.\d+)\.\w+\.\d+", name))}
    yield "mid_block.resnets.0", "middle_block.0"
    yield "mid_block.attentions.0", "middle_block.1"
    yield "mid_block.resnets.1", "middle_block.2"
    number = 0
    for block in range(_count(there, "down_blocks")):
        for layer in range(_count(there, f"down_blocks.{block}.resnets")):
            number += 1
            yield f"down_blocks.{block}.resnets.{layer}", f"input_blocks.{number}.0"
            yield f"down_blocks.{block}.attentions.{layer}", f"input_blocks.{number}.1"
        if f"down_blocks.{block}.downsamplers.0" in there:
            number += 1
            yield f"down_blocks.{block}.downsamplers.0", f"input_blocks.{number}.0"
    number = 0
    for block in range(_count(there, "up_blocks")):
        last = _count(there, f"up_blocks.{block}.resnets") - 1
        attends = f"up_blocks.{block}.attentions.0" in there
        for layer in range(last + 1):
            yield f"up_blocks.{block}.resnets.{layer}", f"output_blocks.{number}.0"
            yield f"up_blocks.{block}.attentions.{layer}", f"output_blocks.{number}.1"
            if layer == last:
                yield f"up_blocks.{block}.upsamplers.0", f"output_blocks.{number}.{2 if attends else 1}"
            number += 1


def _count(there: set[str], within: str) -> int:
    """How many numbered things there are in `within`."""
    numbers = {re.match(rf"{re.escape(within)}\.(\d+)", place) for place in there}
    return 1 + max((int(match[1]) for match in numbers if match), default=-1)
