"""Control models: read from what people have, with one clear sentence for what cannot be.

A file may be in diffusers' layout or in lllyasviel's (`control_model.input_blocks.0.0.weight`), of any precision, or
the difference to a checkpoint. What a file cannot tell, how many heads its attention has, is the checkpoint's: the
trunk of a control model is a copy of the checkpoint's own encoder.
"""

from __future__ import annotations

import copy
import math
import re
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from diffusers import ControlNetModel, ControlNetUnionModel, FluxControlNetModel, SD3ControlNetModel, T2IAdapter
from diffusers.loaders.single_file_utils import convert_controlnet_checkpoint
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file

from backend.errors import gist
from backend.packed import Blocks

from . import shelf

if TYPE_CHECKING:
    from backend.diffusion.run import Run

Weights = dict[str, torch.Tensor]
OF_TRANSFORMERS = (FluxControlNetModel, SD3ControlNetModel)
KINDS: Mapping[str, Any] = {
    kind.__name__: kind for kind in (ControlNetModel, ControlNetUnionModel, T2IAdapter, *OF_TRANSFORMERS)
}
"""What may be read, and nothing else: a folder never brings code of its own."""
TRUNK = ("conv_in", "time_embedding", "add_embedding", "down_blocks", "mid_block")
"""The parts of a control model that the checkpoint has too."""
_OF_TRUNK = (
    *("flip_sin_to_cos", "freq_shift", "downsample_padding", "mid_block_scale_factor", "act_fn", "norm_num_groups"),
    *("norm_eps", "attention_head_dim", "num_attention_heads", "addition_time_embed_dim", "upcast_attention"),
    "resnet_time_scale_shift",
)
"""What the shapes of the weights do not tell."""
_TRANSFORMERS = {"Flux": "Flux", "SD3": "Stable Diffusion 3"}
"""What people call them, by how the names of their classes begin."""
FLUX_SIGN, SD3_SIGN = "controlnet_x_embedder.weight", "pos_embed_input.proj.weight"
_SIGNS = {FLUX_SIGN: _TRANSFORMERS["Flux"], SD3_SIGN: _TRANSFORMERS["SD3"]}
"""Tensors that nets for transformers have and no others."""
_NO_UNET = {"cross_attention_dim": 768, "block_out_channels": ()}
"""In place of a UNet's config, for a net that will be refused."""
_WIDTHS = {768: "Stable Diffusion 1.x", 1024: "Stable Diffusion 2.x", 2048: "Stable Diffusion XL"}
_LABELS = {
    "add_embedding.linear_1.weight": "label_emb.0.0.weight",
    "add_embedding.linear_1.bias": "label_emb.0.0.bias",
    "add_embedding.linear_2.weight": "label_emb.0.2.weight",
    "add_embedding.linear_2.bias": "label_emb.0.2.bias",
}
"""Of SDXL in lllyasviel's layout; diffusers' conversion leaves them out."""


class Unfit(ValueError):
    """Why a control model cannot be used, in a sentence."""


def fetch(run: Run, net: shelf.Net) -> Any:
    """The control model, on the device, loaded once for all units and jobs. Raises Unfit."""
    theirs, ours = _of_transformer(net.path), kind_of(run.denoiser)
    if theirs not in ("", ours):  # before its gigabytes are read
        raise Unfit(f"{net.stem} is for {theirs}, the model {run.request.model} is {ours}")
    if theirs and run.variant == "edit":
        raise Unfit(
            f"{net.stem} cannot guide {run.request.model}: it edits by instruction, and sees its picture instead"
        )
    check = partial(_check, net=net, denoiser=run.denoiser, checkpoint=run.request.model)

    def fitting(path: Path) -> Any:
        module = read(path, run.denoiser.config)
        check(module)  # what the file does not tell was taken from this checkpoint: it is not kept for another one
        return module

    with torch.inference_mode(False):
        module = run.keep(net.path, fitting)
        check(module)  # it may have been kept for another one
        if net.path.is_file() and "difference" in _keys(net.path):
            return run.once(("controlnet", net.path), lambda: completed(module, run.denoiser))
    return module


def read(path: Path, base: Mapping[str, Any]) -> Any:
    """The model in a file or folder, on the CPU; `base` is the config of what it is to guide. Raises Unfit."""
    try:
        return _from_folder(path) if path.is_dir() else _from_file(path, base)
    except (SafetensorError, OSError) as error:
        raise Unfit(f"{path.name} is damaged or cut short ({gist(error)})") from error


def completed(difference: Any, unet: Any) -> Any:
    """A model of its own: the difference and the checkpoint's weights, as they are without a LoRA."""
    whole = copy.deepcopy(difference)
    theirs = {name.replace(".base_layer", ""): value for name, value in unet.named_parameters()}
    with torch.no_grad():
        for name, value in whole.named_parameters():
            if name.split(".")[0] in TRUNK:
                own = theirs[name].whole(value.dtype) if isinstance(theirs[name], Blocks) else theirs[name]
                value += own[:, : value.shape[1]] if name == "conv_in.weight" else own
    return whole


def kind_of(model: Any) -> str:
    """What people call the checkpoints that a UNet, a transformer or a control model belongs to."""
    if "cross_attention_dim" in model.config and "block_out_channels" in model.config:
        return family(model.config)
    name = type(model).__name__.removesuffix("ControlNetModel").removesuffix("Transformer2DModel")
    return _TRANSFORMERS.get(name, name)


def family(config: Mapping[str, Any]) -> str:
    """The same of a UNet, or of a control model for one, by its config."""
    width = config["cross_attention_dim"]
    if config.get("addition_embed_type") == "text_time":
        name = "Stable Diffusion XL"
    else:
        name = _WIDTHS.get(width, "Stable Diffusion")
    return name if _WIDTHS.get(width) == name else f"{name} with text of width {width}"


# --- reading


def _from_folder(folder: Path) -> Any:
    name = shelf.about(folder)
    kind = KINDS.get(name)
    if kind is None:
        raise Unfit(f"{folder.name} is {_a(name or 'model without a name')}; what can be run is {', '.join(KINDS)}")
    try:
        module, report = kind.from_pretrained(
            folder, local_files_only=True, use_safetensors=True, variant=_variant(folder), output_loading_info=True
        )
    except (MemoryError, OSError, SafetensorError):
        raise
    except Exception as error:  # whatever the libraries raise on a broken folder
        raise Unfit(f"{folder.name} cannot be read ({gist(error)})") from error
    if wrong := [*report["missing_keys"], *report["mismatched_keys"], *report["error_msgs"]]:
        raise Unfit(f"{folder.name} lacks weights or has wrong ones: {wrong[0]} and {len(wrong) - 1} more")
    return module


def _of_transformer(path: Path) -> str:
    """What people call the transformer that a net says it is for; empty: it is for none, or does not say."""
    if path.is_dir():
        return _TRANSFORMERS.get(shelf.about(path).removesuffix("ControlNetModel"), "")
    try:
        keys = _keys(path)
    except (SafetensorError, OSError):
        return ""  # reading it says what is wrong
    return next((kind for key, kind in _SIGNS.items() if key in keys), "")


def _variant(folder: Path) -> str | None:
    """`fp16` where there are only files of this kind, in one or in parts; None: there are plain ones."""
    names = [path.name for path in folder.glob("diffusion_pytorch_model*.safetensors")]
    found = {re.sub(r"(-\d+-of-\d+)?\.safetensors$", "", name).partition(".")[2] for name in names}
    return None if "" in found else next(iter(sorted(found)), None)


def _from_file(file: Path, base: Mapping[str, Any]) -> Any:
    keys = _keys(file)
    if "lora_controlnet" in keys:
        raise Unfit(f"{file.name} is a Control-LoRA, which cannot be run; there is a whole control model of each kind")
    weights = load_file(file)
    if any(re.match(r"(adapter\.)?body\.0\.", key) for key in keys):
        return _assembled(T2IAdapter, *_adapter(weights), file)
    if FLUX_SIGN in weights:
        return _assembled(FluxControlNetModel, _flux(weights, base), weights, file)
    if SD3_SIGN in weights:
        return _assembled(SD3ControlNetModel, _sd3(weights, base), weights, file)
    weights = _in_diffusers_layout(weights)
    base = base if "cross_attention_dim" in base and "block_out_channels" in base else _NO_UNET
    if "controlnet_mid_block.weight" not in weights or "controlnet_cond_embedding.conv_in.weight" not in weights:
        kinds = "of Stable Diffusion 1.x, 2.x or XL, or of Stable Diffusion 3 or Flux in diffusers' layout"
        raise Unfit(f"{file.name} is no ControlNet {kinds}, and no T2I-Adapter")
    config = _config(weights, base) | ({"global_pool_conditions": True} if "shuffle" in file.stem.lower() else {})
    kind = ControlNetUnionModel if "task_embedding" in weights else ControlNetModel
    return _assembled(kind, config, weights, file)


def _keys(file: Path) -> frozenset[str]:
    with safe_open(file, "pt") as tensors:
        return frozenset(tensors.keys())


def _assembled(kind: Any, config: Mapping[str, Any], weights: Weights, file: Path) -> Any:
    try:
        with torch.device("meta"):
            module = kind(**config)
        module.load_state_dict(weights, assign=True)
    except (ValueError, RuntimeError) as error:
        lines = str(error).splitlines()
        reason = (lines[1] if len(lines) > 1 else lines[0]).strip()
        raise Unfit(f"{file.name} is no control model that is known here ({reason[:200]})") from error
    return module


# --- lllyasviel's layout, and the shape of a model from its weights


def _in_diffusers_layout(weights: Weights) -> Weights:
    weights = {key.removeprefix("control_model."): value for key, value in weights.items() if value.dim()}
    if "time_embed.0.weight" not in weights:
        return weights
    blocks = 1 + max(int(key.split(".")[1]) for key in weights if key.startswith("input_blocks."))
    downs = [i for i in range(blocks) if f"input_blocks.{i}.0.op.weight" in weights]
    config = {"layers_per_block": (downs[0] if downs else blocks) - 1}
    converted = convert_controlnet_checkpoint(weights, config)
    converted |= {ours: weights[theirs] for ours, theirs in _LABELS.items() if theirs in weights}
    return {key: value for key, value in converted.items() if value is not None}


def _config(weights: Weights, base: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of the model's class, in diffusers' words."""
    blocks = range(_count(weights, "down_blocks"))
    has_text = [f"down_blocks.{i}.attentions.0.norm.weight" in weights for i in blocks]
    depths = [max(_count(weights, f"down_blocks.{i}.attentions.0.transformer_blocks"), 1) for i in blocks]
    in_the_middle = _count(weights, "mid_block.attentions.0.transformer_blocks")
    depths[-1] = depths[-1] if has_text[-1] else max(in_the_middle, 1)
    hint = "controlnet_cond_embedding"
    grown = [weights[f"{hint}.blocks.{i}.weight"].shape[0] for i in range(1, _count(weights, f"{hint}.blocks"), 2)]
    text = next((value for key, value in weights.items() if key.endswith("attn2.to_k.weight")), None)
    projection = next((value for key, value in weights.items() if key.endswith("proj_in.weight")), None)
    added = weights.get("add_embedding.linear_1.weight")
    config = {name: base[name] for name in _OF_TRUNK if base.get(name) is not None} | {
        "in_channels": weights["conv_in.weight"].shape[1],
        "conditioning_channels": weights[f"{hint}.conv_in.weight"].shape[1],
        "conditioning_embedding_out_channels": (weights[f"{hint}.conv_in.weight"].shape[0], *grown),
        "block_out_channels": tuple(weights[f"down_blocks.{i}.resnets.0.conv1.weight"].shape[0] for i in blocks),
        "down_block_types": tuple("CrossAttnDownBlock2D" if has else "DownBlock2D" for has in has_text),
        "layers_per_block": _count(weights, "down_blocks.0.resnets"),
        "transformer_layers_per_block": tuple(depths),
        "cross_attention_dim": base["cross_attention_dim"] if text is None else text.shape[1],
        "use_linear_projection": projection is not None and projection.dim() == 2,
    }
    if len(config["block_out_channels"]) != len(base["block_out_channels"]):  # of another family: refused later
        config |= {"attention_head_dim": 8, "num_attention_heads": None}
    if added is not None:
        config |= {"addition_embed_type": "text_time", "projection_class_embeddings_input_dim": added.shape[1]}
        config.setdefault("addition_time_embed_dim", 256)
    if "task_embedding" in weights:
        types, width = weights["task_embedding"].shape
        return config | {
            "num_control_type": types,
            "num_trans_channel": width,
            "num_trans_layer": _count(weights, "transformer_layes"),
            "num_proj_channel": weights["spatial_ch_projs.weight"].shape[0],
        }
    return config | {"mid_block_type": "UNetMidBlock2DCrossAttn" if in_the_middle else "UNetMidBlock2D"}


def _count(weights: Weights, name: str) -> int:
    """How many of a list's members have weights."""
    start = len(name) + 1
    return len({key[start:].split(".")[0] for key in weights if key.startswith(f"{name}.")})


def _adapter(weights: Weights) -> tuple[dict[str, Any], Weights]:
    """Config and weights of a T2I-Adapter, in its authors' layout or in diffusers'."""
    weights = {key.removeprefix("adapter."): value for key, value in weights.items()}
    is_light = "body.0.out_conv.weight" in weights
    if not is_light and not any(".resnets." in key for key in weights):
        weights = _blocks_grouped(weights)
    weights = {key.replace(".body.", ".resnets."): value for key, value in weights.items()}
    blocks, layers = range(_count(weights, "body")), _count(weights, "body.0.resnets")
    if is_light:
        channels = [weights[f"body.{i}.out_conv.weight"].shape[0] for i in blocks][:-1]  # the last one has no own
        shown = weights["body.0.in_conv.weight"].shape[1]
    else:
        channels = [weights[f"body.{i}.resnets.0.block1.weight"].shape[0] for i in blocks]
        shown = weights["conv_in.weight"].shape[1]
    # what is shown is unshuffled: 8 x 8 pixels become channels, 16 x 16 in SDXL's
    factor = 8 if shown in (64, 192) else 16
    config = {
        "in_channels": shown // factor**2,
        "channels": channels,
        "num_res_blocks": layers,
        "downscale_factor": factor,
        "adapter_type": "light_adapter" if is_light else "full_adapter" if factor == 8 else "full_adapter_xl",
    }
    return config, {f"adapter.{key}": value for key, value in weights.items()}


def _blocks_grouped(weights: Weights) -> Weights:
    """The authors number residual blocks through; diffusers puts the two of one width into a group."""
    grouped = {}
    for key, value in weights.items():
        body, _, rest = key.partition(".")
        if body == "body":
            number, _, inner = rest.partition(".")
            group, place = divmod(int(number), 2)
            key = f"body.{group}.{inner if inner.startswith('in_conv') else f'resnets.{place}.{inner}'}"
        grouped[key] = value
    return grouped


# --- those of transformers, in diffusers' layout


def _flux(weights: Weights, base: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of the model's class; what reads the pixels of the map is XLabs'."""
    width, channels = weights["x_embedder.weight"].shape
    head = weights["transformer_blocks.0.attn.norm_q.weight"].shape[0]
    eyes = weights.get("input_hint_block.conv_out.weight")
    modes = weights.get("controlnet_mode_embedder.weight")
    return {
        "patch_size": 1 if eyes is None else 2,
        "in_channels": channels,
        "num_layers": _count(weights, "transformer_blocks"),
        "num_single_layers": _count(weights, "single_transformer_blocks"),
        "attention_head_dim": head,
        "num_attention_heads": width // head,
        "joint_attention_dim": weights["context_embedder.weight"].shape[1],
        "pooled_projection_dim": weights["time_text_embed.text_embedder.linear_1.weight"].shape[1],
        "guidance_embeds": "time_text_embed.guidance_embedder.linear_1.weight" in weights,
        "axes_dims_rope": base.get("axes_dims_rope", (16, 56, 56)),
        "num_mode": None if modes is None else modes.shape[0],
        "conditioning_embedding_channels": None if eyes is None else eyes.shape[0],
    }


def _sd3(weights: Weights, base: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of the model's class. The nets for 3.5 large have neither text nor places of their own."""
    width = weights["time_text_embed.timestep_embedder.linear_2.weight"].shape[0]
    normed = weights.get("transformer_blocks.0.attn.norm_q.weight")
    head = base.get("attention_head_dim", 64) if normed is None else normed.shape[0]
    text, places = weights.get("context_embedder.weight"), weights.get("pos_embed.pos_embed")
    layers = _count(weights, "transformer_blocks")
    channels = base.get("in_channels", 16)
    return {
        "sample_size": base.get("sample_size", 128),
        "patch_size": weights["pos_embed_input.proj.weight"].shape[-1],
        "in_channels": channels,
        "extra_conditioning_channels": weights["pos_embed_input.proj.weight"].shape[1] - channels,
        "num_layers": layers,
        "attention_head_dim": head,
        "num_attention_heads": width // head,
        "joint_attention_dim": None if text is None else text.shape[1],
        "caption_projection_dim": width if text is None else text.shape[0],
        "pooled_projection_dim": weights["time_text_embed.text_embedder.linear_1.weight"].shape[1],
        "pos_embed_max_size": None if places is None else math.isqrt(places.shape[1]),
        "dual_attention_layers": tuple(
            n for n in range(layers) if f"transformer_blocks.{n}.attn2.to_q.weight" in weights
        ),
        "qk_norm": None if normed is None else "rms_norm",
        "use_pos_embed": places is not None,
        "force_zeros_for_pooled_projection": places is not None,
    }


# --- does it fit


def _check(module: Any, net: shelf.Net, denoiser: Any, checkpoint: str) -> None:
    """Raises Unfit if the control model is not for checkpoints of this kind."""
    base, ours_is = denoiser.config, kind_of(denoiser)
    if isinstance(module, OF_TRANSFORMERS) or "block_out_channels" not in base:
        theirs_is = _kind_of_adapter(module) if isinstance(module, T2IAdapter) else kind_of(module)
        if theirs_is != ours_is:
            raise Unfit(f"{net.stem} is for {theirs_is}, the model {checkpoint} is {ours_is}")
        if module.inner_dim != denoiser.inner_dim:
            widths = f"{module.inner_dim} channels, that of {checkpoint} has {denoiser.inner_dim}"
            raise Unfit(f"{net.stem} is for a transformer of {widths}")
        if module.config.get("extra_conditioning_channels"):
            raise Unfit(f"{net.stem} wants to be shown a mask too, which cannot be done")
        return
    ours = base["block_out_channels"]
    if isinstance(module, T2IAdapter):
        channels, is_xl = tuple(module.config.channels), module.config.adapter_type == "full_adapter_xl"
        if is_xl != (base.get("addition_embed_type") == "text_time"):
            raise Unfit(f"{net.stem} is for {_kind_of_adapter(module)}, the model {checkpoint} is {ours_is}")
        if any(a != b for a, b in zip(channels, ours, strict=False)):
            raise Unfit(_of_other_widths(net, channels, ours, checkpoint))
        return
    if kind_of(module) != ours_is:
        raise Unfit(f"{net.stem} is for {kind_of(module)}, the model {checkpoint} is {ours_is}")
    shape = tuple(module.config.block_out_channels), module.config.layers_per_block
    if shape != (tuple(ours), base["layers_per_block"]):
        raise Unfit(_of_other_widths(net, shape[0], ours, checkpoint))


def _kind_of_adapter(module: Any) -> str:
    return "Stable Diffusion XL" if module.config.adapter_type == "full_adapter_xl" else "Stable Diffusion 1.x"


def _of_other_widths(net: shelf.Net, theirs: Sequence[int], ours: Sequence[int], checkpoint: str) -> str:
    return f"{net.stem} is for a UNet of {_listed(theirs)} channels, that of {checkpoint} has {_listed(ours)}"


def _listed(numbers: Any) -> str:
    return ", ".join(map(str, numbers))


def _a(name: str) -> str:
    return f"{'an' if name[0] in 'AEIOU' else 'a'} {name}"
