"""How the authors of a model name its weights, and how diffusers does: tables that are read in both directions.

A rule is about a module or a single tensor. Where diffusers has several for one of theirs, the original is what they
give row upon row: queries, keys and values for instance.
"""

import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import NamedTuple

import torch
from torch import Tensor

Change = Callable[[Tensor], Tensor]


class Rule(NamedTuple):
    original: str
    diffusers: tuple[str, ...]
    change: Change | None = None
    """What happens to the numbers on the way; its own inverse."""


class Layout:
    """Rules by what they are about."""

    def __init__(self, rules: Iterable[Rule]) -> None:
        self._rules = tuple(rules)
        self._by_original = {rule.original: rule for rule in self._rules}
        self._by_diffusers = {name: rule for rule in self._rules for name in rule.diffusers}

    def names(self, original: str) -> tuple[str, ...]:
        """What diffusers calls a tensor of the authors; nothing if it has no use for it."""
        rule, rest = _longest(self._by_original, original)
        return tuple(name + rest for name in rule.diffusers) if rule else ()

    def shape(self, original: str, shape: tuple[int, ...]) -> tuple[int, ...]:
        """The shape of what diffusers makes of a tensor."""
        rule, _ = _longest(self._by_original, original)
        if rule is None or rule.change is None:
            return shape
        return tuple(rule.change(torch.empty(shape, device="meta")).shape)

    def keeps_numbers(self, original: str) -> bool:
        """Whether what diffusers makes of a tensor are rows of it as they are."""
        rule, _ = _longest(self._by_original, original)
        return rule is not None and rule.change is None

    def change(self, original: str) -> Change | None:
        """What happens to a tensor's numbers on the way to diffusers, and back."""
        rule, _ = _longest(self._by_original, original)
        return rule.change if rule else None

    def to_diffusers(self, original: str, tensor: Tensor, rows: Mapping[str, int]) -> Iterator[tuple[str, Tensor]]:
        """Name and numbers of what diffusers makes of a tensor; views, as far as they go. `rows`: of each of them."""
        rule, rest = _longest(self._by_original, original)
        if rule is None:
            return
        names = [name + rest for name in rule.diffusers]
        tensor = rule.change(tensor) if rule.change else tensor
        if len(names) == 1:
            yield names[0], tensor
        elif tensor.dim() and sum(rows.get(name, 0) for name in names) == len(tensor):
            yield from zip(names, torch.split(tensor, [rows[name] for name in names]), strict=True)

    def to_original(self, names: Collection[str], tensor: Callable[[str], Tensor]) -> Iterator[tuple[str, Tensor]]:
        """Name and numbers of each tensor as the authors have it, from diffusers' `names` and the way to read one."""
        for name in names:
            rule, rest = _longest(self._by_diffusers, name)
            if rule and name == rule.diffusers[0] + rest:
                parts = [tensor(part + rest) for part in rule.diffusers]
                whole = torch.cat(parts) if len(parts) > 1 else parts[0]
                yield rule.original + rest, rule.change(whole) if rule.change else whole


def same(names: Iterable[str]) -> Layout:
    """Of a file that has diffusers' own names."""
    return Layout(Rule(name, (name,)) for name in names)


def swapped(tensor: Tensor) -> Tensor:
    """Shift before scale, or scale before shift."""
    return torch.cat(tensor.chunk(2)[::-1])


def transposed(tensor: Tensor) -> Tensor:
    return tensor.T.contiguous()


def pointwise(tensor: Tensor) -> Tensor:
    """A linear layer as a convolution of a single pixel, or the other way round; biases stay."""
    if tensor.dim() == 4:
        return tensor[:, :, 0, 0]
    return tensor[:, :, None, None] if tensor.dim() == 2 else tensor


def count(names: Iterable[str], pattern: str) -> int:
    """How many modules `names` have where `pattern` says (\\d+)."""
    found = [int(match[1]) for name in names if (match := re.match(pattern, name))]
    return max(found, default=-1) + 1


# --- Stable Diffusion 1, 2 and XL


_RESNET = {
    "in_layers.0": "norm1",
    "in_layers.2": "conv1",
    "emb_layers.1": "time_emb_proj",
    "out_layers.0": "norm2",
    "out_layers.3": "conv2",
    "skip_connection": "conv_shortcut",
}


def unet(levels: int, layers: int, attentive: Collection[int]) -> Layout:
    """A UNet of so many levels with so many blocks each; `attentive` are the levels with attention."""
    deep = layers + 1
    rules = {
        "time_embed.0": "time_embedding.linear_1",
        "time_embed.2": "time_embedding.linear_2",
        "label_emb.0.0": "add_embedding.linear_1",
        "label_emb.0.2": "add_embedding.linear_2",
        "input_blocks.0.0": "conv_in",
        "out.0": "conv_norm_out",
        "out.2": "conv_out",
        "middle_block.1": "mid_block.attentions.0",
        **inside("middle_block.0", "mid_block.resnets.0", _RESNET),
        **inside("middle_block.2", "mid_block.resnets.1", _RESNET),
    }
    for level in range(levels):
        up = levels - 1 - level  # the way up goes through the levels the other way round
        for layer in range(layers):
            theirs, ours = f"input_blocks.{level * deep + layer + 1}", f"down_blocks.{level}"
            rules |= inside(f"{theirs}.0", f"{ours}.resnets.{layer}", _RESNET)
            rules[f"{theirs}.1"] = f"{ours}.attentions.{layer}"
        rules[f"input_blocks.{(level + 1) * deep}.0.op"] = f"down_blocks.{level}.downsamplers.0.conv"
        for layer in range(deep):
            theirs, ours = f"output_blocks.{up * deep + layer}", f"up_blocks.{up}"
            rules |= inside(f"{theirs}.0", f"{ours}.resnets.{layer}", _RESNET)
            if level in attentive:
                rules[f"{theirs}.1"] = f"{ours}.attentions.{layer}"
        last = f"output_blocks.{up * deep + layers}.{2 if level in attentive else 1}.conv"
        rules[last] = f"up_blocks.{up}.upsamplers.0.conv"
    return renamed(rules)


def unet_of_original(names: Collection[str]) -> Layout:
    ends = [int(match[1]) for name in names if (match := re.match(r"input_blocks\.(\d+)\.0\.op\.weight", name))]
    blocks = count(names, r"input_blocks\.(\d+)\.")
    deep = min(ends, default=blocks)
    attentive = {(int(m[1]) - 1) // deep for name in names if (m := re.match(r"input_blocks\.(\d+)\.1\.", name))}
    return unet(len(ends) + 1, deep - 1, attentive)


def unet_of_diffusers(names: Collection[str]) -> Layout:
    levels = count(names, r"down_blocks\.(\d+)\.")
    attentive = {int(match[1]) for name in names if (match := re.match(r"down_blocks\.(\d+)\.attentions\.", name))}
    return unet(levels, count(names, r"down_blocks\.0\.resnets\.(\d+)\."), attentive)


def vae(levels: int, further: Mapping[str, str] = MappingProxyType({})) -> Layout:
    rules = {"quant_conv": "quant_conv", "post_quant_conv": "post_quant_conv", **further}
    linear: dict[str, str] = {}
    for side in ("encoder", "decoder"):
        rules |= {f"{side}.conv_in": f"{side}.conv_in", f"{side}.conv_out": f"{side}.conv_out"}
        rules |= {f"{side}.norm_out": f"{side}.conv_norm_out"}
        theirs, ours = f"{side}.mid.attn_1", f"{side}.mid_block.attentions.0"
        rules[f"{theirs}.norm"] = f"{ours}.group_norm"
        linear |= {f"{theirs}.{x}": f"{ours}.to_{x}" for x in "qkv"} | {f"{theirs}.proj_out": f"{ours}.to_out.0"}
        for number in range(2):
            rules |= _vae_resnet(f"{side}.mid.block_{number + 1}", f"{side}.mid_block.resnets.{number}")
    for level in range(levels):
        for block in range(4):  # one more than any has
            theirs, ours = f"encoder.down.{level}.block.{block}", f"encoder.down_blocks.{level}.resnets.{block}"
            rules |= _vae_resnet(theirs, ours)
            theirs = f"decoder.up.{level}.block.{block}"
            rules |= _vae_resnet(theirs, f"decoder.up_blocks.{levels - 1 - level}.resnets.{block}")
        rules[f"encoder.down.{level}.downsample"] = f"encoder.down_blocks.{level}.downsamplers.0"
        rules[f"decoder.up.{level}.upsample"] = f"decoder.up_blocks.{levels - 1 - level}.upsamplers.0"
    return renamed(rules, [Rule(theirs, (ours,), pointwise) for theirs, ours in linear.items()])


def vae_of_original(names: Collection[str]) -> Layout:
    return vae(count(names, r"decoder\.up\.(\d+)\."))


def vae_of_diffusers(names: Collection[str]) -> Layout:
    return vae(count(names, r"decoder\.up_blocks\.(\d+)\."))


_FLUX2_VAE = {"encoder.quant_conv": "quant_conv", "decoder.post_quant_conv": "post_quant_conv", "bn": "bn"}


def flux2_vae(names: Collection[str]) -> Layout:
    """By either one's names: that of others, with statistics of the latents."""
    levels = max(count(names, r"decoder\.up\.(\d+)\."), count(names, r"decoder\.up_blocks\.(\d+)\."))
    return vae(levels, _FLUX2_VAE)


def vae_of_early_diffusers(names: Iterable[str]) -> Layout:
    """Of a file that has diffusers' names, but maybe those that attention had at first."""
    now = {".query.": ".to_q.", ".key.": ".to_k.", ".value.": ".to_v.", ".proj_attn.": ".to_out.0."}
    rules = []
    for name in names:
        ours = name
        for old, new in now.items():
            ours = ours.replace(old, new)
        rules.append(Rule(name, (ours,)))
    return Layout(rules)


def t5(names: Iterable[str]) -> Layout:
    """As transformers has it; the words may lie under either of two names."""
    either = {"encoder.embed_tokens.weight": "shared.weight"}
    return Layout(Rule(name, (either.get(name, name),)) for name in names)


_T5_OF_LLAMA_CPP = {
    **{f"attn_{x}": f"0.SelfAttention.{x}" for x in "qkvo"},
    "attn_rel_b": "0.SelfAttention.relative_attention_bias",
    "attn_norm": "0.layer_norm",
    "ffn_gate": "1.DenseReluDense.wi_0",
    "ffn_up": "1.DenseReluDense.wi_1",
    "ffn_down": "1.DenseReluDense.wo",
    "ffn_norm": "1.layer_norm",
}
_QWEN_OF_LLAMA_CPP = {
    **{f"attn_{x}": f"self_attn.{x}_proj" for x in "qkv"},
    **{f"attn_{x}_norm": f"self_attn.{x}_norm" for x in "qk"},
    "attn_output": "self_attn.o_proj",
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
    **{f"ffn_{x}": f"mlp.{x}_proj" for x in ("gate", "up", "down")},
}


def t5_of_llama_cpp(names: Collection[str]) -> Layout:
    rules = {"token_embd": "shared", "enc.output_norm": "encoder.final_layer_norm"}
    for block in range(count(names, r"enc\.blk\.(\d+)\.")):
        rules |= inside(f"enc.blk.{block}", f"encoder.block.{block}.layer", _T5_OF_LLAMA_CPP)
    return renamed(rules)


def qwen3_of_llama_cpp(names: Collection[str]) -> Layout:
    """Its heads lie as transformers has them: it is Llama's that llama.cpp turns for its way of rotating them."""
    rules = {"token_embd": "embed_tokens", "output_norm": "norm"}
    for block in range(count(names, r"blk\.(\d+)\.")):
        rules |= inside(f"blk.{block}", f"layers.{block}", _QWEN_OF_LLAMA_CPP)
    return renamed(rules)


def qwen25_vl_of_llama_cpp(names: Collection[str]) -> Layout:
    """Without its eyes, which llama.cpp has in another file."""
    inner = "model.language_model"
    rules = {"token_embd": f"{inner}.embed_tokens", "output_norm": f"{inner}.norm", "output": "lm_head"}
    for block in range(count(names, r"blk\.(\d+)\.")):
        rules |= inside(f"blk.{block}", f"{inner}.layers.{block}", _QWEN_OF_LLAMA_CPP)
    return renamed(rules)


def language_model(names: Iterable[str]) -> Layout:
    """As transformers has it, without the head that writes words."""
    inner = (name for name in names if not name.startswith("lm_head."))
    return Layout(Rule(name.removeprefix("model."), (name,)) for name in inner)


_QWEN25_VL = {
    "model.language_model": "model.language_model",
    "model.visual": "model.visual",
    "model.layers": "model.language_model.layers",
    "model.embed_tokens": "model.language_model.embed_tokens",
    "model.norm": "model.language_model.norm",
    "visual": "model.visual",
    "lm_head": "lm_head",
}


def qwen25_vl(_: Collection[str]) -> Layout:
    """Qwen2.5-VL, by the names that transformers has, or had when it was published."""
    return renamed(_QWEN25_VL)


def clip(names: Collection[str]) -> Layout:
    """As transformers has it, with or without the `text_model.` that came and went."""
    return Layout(Rule(name, (name.removeprefix("text_model."),)) for name in names)


def open_clip(names: Collection[str]) -> Layout:
    """By either one's names."""
    rules = {
        "positional_embedding": "embeddings.position_embedding.weight",
        "token_embedding": "embeddings.token_embedding",
        "ln_final": "final_layer_norm",
    }
    stacked = []
    layers = max(count(names, r"transformer\.resblocks\.(\d+)\."), count(names, r"encoder\.layers\.(\d+)\."))
    for layer in range(layers):
        theirs, ours = f"transformer.resblocks.{layer}", f"encoder.layers.{layer}"
        rules |= {f"{theirs}.ln_1": f"{ours}.layer_norm1", f"{theirs}.ln_2": f"{ours}.layer_norm2"}
        rules |= {f"{theirs}.mlp.c_fc": f"{ours}.mlp.fc1", f"{theirs}.mlp.c_proj": f"{ours}.mlp.fc2"}
        rules |= {f"{theirs}.attn.out_proj": f"{ours}.self_attn.out_proj"}
        for kind in ("weight", "bias"):
            three = tuple(f"{ours}.self_attn.{x}_proj.{kind}" for x in "qkv")
            stacked.append(Rule(f"{theirs}.attn.in_proj_{kind}", three))
    return renamed(rules, [*stacked, Rule("text_projection", ("text_projection.weight",), transposed)])


def renamed(rules: Mapping[str, str], more: Sequence[Rule] = ()) -> Layout:
    return Layout([*(Rule(theirs, (ours,)) for theirs, ours in rules.items()), *more])


def inside(theirs: str, ours: str, names: Mapping[str, str]) -> dict[str, str]:
    return {f"{theirs}.{old}": f"{ours}.{new}" for old, new in names.items()}


def _vae_resnet(theirs: str, ours: str) -> dict[str, str]:
    same_names = {name: name for name in ("norm1", "conv1", "norm2", "conv2")}
    return inside(theirs, ours, {**same_names, "nin_shortcut": "conv_shortcut"})


def _longest(rules: Mapping[str, Rule], name: str) -> tuple[Rule | None, str]:
    """The rule about a tensor or the innermost module around it, and what of the name it leaves."""
    end = len(name)
    while end > 0:
        if name[:end] in rules:
            return rules[name[:end]], name[end:]
        end = name.rfind(".", 0, end)
    return None, ""
