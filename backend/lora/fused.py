"""The modules of transformers by their names in the original code, where one may be several of diffusers' in a row.

`double_blocks.0.img_attn.qkv` of Flux is to_q, to_k and to_v: a file that was made for the original has one change for
the rows of all three.
"""

import re
from collections.abc import Collection, Iterator, Mapping
from typing import NamedTuple

_QKV = ("attn.to_q", "attn.to_k", "attn.to_v")
_ADDED = ("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj")
_TIME, _TEXT = "time_text_embed.timestep_embedder", "time_text_embed.text_embedder"

FLUX_DOUBLE: Mapping[str, tuple[str, ...]] = {
    "img_attn.qkv": _QKV,
    "txt_attn.qkv": _ADDED,
    "img_attn.proj": ("attn.to_out.0",),
    "txt_attn.proj": ("attn.to_add_out",),
    "img_mlp.0": ("ff.net.0.proj",),
    "img_mlp.2": ("ff.net.2",),
    "txt_mlp.0": ("ff_context.net.0.proj",),
    "txt_mlp.2": ("ff_context.net.2",),
    "img_mod.lin": ("norm1.linear",),
    "txt_mod.lin": ("norm1_context.linear",),
}
FLUX_SINGLE: Mapping[str, tuple[str, ...]] = {
    "linear1": (*_QKV, "proj_mlp"),
    "linear2": ("proj_out",),
    "modulation.lin": ("norm.linear",),
}
FLUX_OUTSIDE = {
    "img_in": "x_embedder",
    "txt_in": "context_embedder",
    "time_in.in_layer": f"{_TIME}.linear_1",
    "time_in.out_layer": f"{_TIME}.linear_2",
    "vector_in.in_layer": f"{_TEXT}.linear_1",
    "vector_in.out_layer": f"{_TEXT}.linear_2",
    "guidance_in.in_layer": "time_text_embed.guidance_embedder.linear_1",
    "guidance_in.out_layer": "time_text_embed.guidance_embedder.linear_2",
    "final_layer.linear": "proj_out",
}
SD3: Mapping[str, tuple[str, ...]] = {
    "x_block.attn.qkv": _QKV,
    "x_block.attn2.qkv": ("attn2.to_q", "attn2.to_k", "attn2.to_v"),
    "context_block.attn.qkv": _ADDED,
    "x_block.attn.proj": ("attn.to_out.0",),
    "x_block.attn2.proj": ("attn2.to_out.0",),
    "context_block.attn.proj": ("attn.to_add_out",),
    "x_block.mlp.fc1": ("ff.net.0.proj",),
    "x_block.mlp.fc2": ("ff.net.2",),
    "context_block.mlp.fc1": ("ff_context.net.0.proj",),
    "context_block.mlp.fc2": ("ff_context.net.2",),
    "x_block.adaLN_modulation.1": ("norm1.linear",),
    "context_block.adaLN_modulation.1": ("norm1_context.linear",),
}
SD3_OUTSIDE = {
    "x_embedder.proj": "pos_embed.proj",
    "t_embedder.mlp.0": f"{_TIME}.linear_1",
    "t_embedder.mlp.2": f"{_TIME}.linear_2",
    "y_embedder.mlp.0": f"{_TEXT}.linear_1",
    "y_embedder.mlp.2": f"{_TEXT}.linear_2",
    "final_layer.linear": "proj_out",
}
_LAST = ("norm1_context.linear", "attn.to_add_out")
"""In the last block of Stable Diffusion 3 the first is there without the second, its halves in another order."""
XLABS: Mapping[str, tuple[str, ...]] = {"qkv": _QKV, "proj": ("proj_out",)}
"""What XLabs' trainer has in the single blocks of Flux; in the double ones it has the original's names."""
FLUX_2_DOUBLE: Mapping[str, tuple[str, ...]] = {
    **{name: parts for name, parts in FLUX_DOUBLE.items() if "attn" in name},
    "img_mlp.0": ("ff.linear_in",),
    "img_mlp.2": ("ff.linear_out",),
    "txt_mlp.0": ("ff_context.linear_in",),
    "txt_mlp.2": ("ff_context.linear_out",),
}
FLUX_2_SINGLE: Mapping[str, tuple[str, ...]] = {"linear1": ("attn.to_qkv_mlp_proj",), "linear2": ("attn.to_out",)}
FLUX_2_OUTSIDE = {
    "img_in": "x_embedder",
    "txt_in": "context_embedder",
    **{
        f"{theirs}_in.{end}_layer": f"time_guidance_embed.{ours}_embedder.linear_{number}"
        for theirs, ours in (("time", "timestep"), ("guidance", "guidance"))
        for end, number in (("in", 1), ("out", 2))
    },
    **{
        f"{stream}.lin": f"{stream}.linear"
        for stream in ("double_stream_modulation_img", "double_stream_modulation_txt", "single_stream_modulation")
    },
    "final_layer.linear": "proj_out",
}
Z_IMAGE: Mapping[str, tuple[str, ...]] = {
    "attention.qkv": ("attention.to_q", "attention.to_k", "attention.to_v"),
    "attention.out": ("attention.to_out.0",),
}
"""Its other modules have one name."""


class _Tables(NamedTuple):
    """What the blocks are called, and their modules."""

    double: tuple[str, Mapping[str, tuple[str, ...]]]
    single: tuple[str, Mapping[str, tuple[str, ...]]]
    outside: Mapping[str, str]


_FLUX = _Tables(("double_blocks", FLUX_DOUBLE), ("single_blocks", FLUX_SINGLE), FLUX_OUTSIDE)
_FLUX_2 = _Tables(("double_blocks", FLUX_2_DOUBLE), ("single_blocks", FLUX_2_SINGLE), FLUX_2_OUTSIDE)
_SD3 = _Tables(("joint_blocks", SD3), ("", {}), SD3_OUTSIDE)
_NONE = _Tables(("", {}), ("", {}), {})


def original_names(modules: Collection[str]) -> Mapping[str, tuple[str, ...]]:
    """The original's modules, and which of a diffusers transformer's `modules` each is; empty if it is another one."""
    there = frozenset(modules)
    whole = {name: parts for name, parts in _named(there) if there.issuperset(parts)}
    return whole if any(name.startswith(_BLOCKS) for name in whole) else {}


def swapped_names(modules: Collection[str]) -> Mapping[str, str]:
    """The original's modules that make shift and scale, and diffusers' of each, which makes scale and shift."""
    there = frozenset(modules)
    found = {"final_layer.adaLN_modulation.1": "norm_out.linear"}
    for number in {match[2] for match in map(_BLOCK.match, there) if match and not match[1]}:
        if f"transformer_blocks.{number}.{_LAST[1]}" not in there:
            found[f"joint_blocks.{number}.context_block.adaLN_modulation.1"] = (
                f"transformer_blocks.{number}.{_LAST[0]}"
            )
    return {name: part for name, part in found.items() if part in there}


def xlabs_names(modules: Collection[str]) -> Mapping[str, tuple[str, ...]]:
    """As `original_names`, what XLabs' trainer calls a Flux's modules where the original has no name for them."""
    if _tables(modules) is not _FLUX:
        return {}
    return {
        f"single_blocks.{number}.{name}": tuple(f"single_transformer_blocks.{number}.{part}" for part in parts)
        for number in {match[2] for match in map(_BLOCK.match, modules) if match and match[1]}
        for name, parts in XLABS.items()
    }


_BLOCKS = ("double_blocks.", "joint_blocks.", "layers.")


def _named(there: Collection[str]) -> Iterator[tuple[str, tuple[str, ...]]]:
    tables = _tables(there)
    for kind, number in sorted({match.groups("") for match in map(_BLOCK.match, there) if match}):
        home = f"{kind}transformer_blocks.{number}"
        block, table = tables.single if kind else tables.double
        for name, parts in table.items():
            if parts[0] != _LAST[0] or f"{home}.{_LAST[1]}" in there:
                yield f"{block}.{number}.{name}", tuple(f"{home}.{part}" for part in parts)
    for block in {match[0] for match in map(_LAYER.match, there) if match}:
        for name, parts in Z_IMAGE.items():
            yield f"{block}{name}", tuple(f"{block}{part}" for part in parts)
    for name, part in tables.outside.items():
        yield name, (part,)


def _tables(there: Collection[str]) -> _Tables:
    if any(name.endswith(".attn.to_qkv_mlp_proj") for name in there):
        return _FLUX_2
    if any(name.startswith("single_transformer_blocks.") for name in there):
        return _FLUX
    return _SD3 if any(name.endswith(".norm1_context.linear") for name in there) else _NONE


_BLOCK = re.compile(r"(single_)?transformer_blocks\.(\d+)\.")
_LAYER = re.compile(r"(?:layers|noise_refiner|context_refiner)\.\d+\.")
"""Of Z-Image."""
