"""How the authors of VAEs that are not Stable Diffusion's name their weights, and how diffusers does (`layouts`)."""

import re
from collections.abc import Collection

from backend.diffusion.reading.layouts import Layout, Rule, count, inside, pointwise, renamed


def wan(names: Collection[str]) -> Layout:
    """That of Wan and Qwen-Image, by either one's names; the authors count blocks through the decoder's levels."""
    ups, downs = (count(names, rf"{stack}\.(\d+)\.") for stack in (r"decoder\.upsamples", r"encoder\.downsamples"))
    levels = ups - downs or count(names, r"decoder\.up_blocks\.(\d+)\.")
    resnets = (ups + 1) // levels - 1 if ups else count(names, r"decoder\.up_blocks\.0\.resnets\.(\d+)\.")
    rules = {"conv1": "quant_conv", "conv2": "post_quant_conv"}
    for side in ("encoder", "decoder"):
        middle = f"{side}.mid_block"
        rules |= {f"{side}.conv1": f"{side}.conv_in", f"{side}.head.0": f"{side}.norm_out"}
        rules |= {f"{side}.head.2": f"{side}.conv_out", f"{side}.middle.1": f"{middle}.attentions.0"}
        for number in range(2):
            rules |= _resnet(f"{side}.middle.{2 * number}", f"{middle}.resnets.{number}")
    for block in range(levels * resnets - 1):  # one resnet less than on the way up, and all but the last level shrink
        theirs, ours = f"encoder.downsamples.{block}", f"encoder.down_blocks.{block}"
        rules |= {theirs: ours, **_resnet(theirs, ours)}
    for level in range(levels):
        first, ours = level * (resnets + 1), f"decoder.up_blocks.{level}"
        rules[f"decoder.upsamples.{first + resnets}"] = f"{ours}.upsamplers.0"
        for resnet in range(resnets):
            rules |= _resnet(f"decoder.upsamples.{first + resnet}", f"{ours}.resnets.{resnet}")
    return renamed(rules)


def dc(names: Collection[str]) -> Layout:
    """Sana's deep compression autoencoder, by either one's names."""
    rules = {
        "encoder.project_in.conv": "encoder.conv_in",
        "encoder.project_out.main.op_list.0.conv": "encoder.conv_out",
        "decoder.project_in.main.conv": "decoder.conv_in",
        "decoder.project_out.op_list.0": "decoder.norm_out",
        "decoder.project_out.op_list.2.conv": "decoder.conv_out",
    }
    linear = []
    ways = (("encoder", "down_blocks", "main.conv"), ("decoder", "up_blocks", "main.conv.conv"))
    for side, stack, resampler in ways:
        for stage in range(max(count(names, rf"{side}\.{x}\.(\d+)\.") for x in ("stages", stack))):
            them, us = f"{side}.stages.{stage}.op_list", f"{side}.{stack}.{stage}"
            for block in range(max(count(names, rf"{re.escape(x)}\.(\d+)\.") for x in (them, us))):
                theirs, ours = f"{them}.{block}", f"{us}.{block}"
                rules |= {f"{theirs}.{resampler}": f"{ours}.conv", **inside(theirs, ours, _DC_BLOCK)}
                attention = f"{theirs}.context_module.main"
                three = tuple(f"{ours}.attn.to_{x}" for x in "qkv")
                linear.append(Rule(f"{attention}.qkv.conv", three, pointwise))
                linear.append(Rule(f"{attention}.proj.conv", (f"{ours}.attn.to_out",), pointwise))
    return renamed(rules, linear)


_DC_BLOCK = {
    "main.conv1.conv": "conv1",
    "main.conv2.conv": "conv2",
    "main.conv2.norm": "norm",
    "context_module.main.aggreg.0.0": "attn.to_qkv_multiscale.0.proj_in",
    "context_module.main.aggreg.0.1": "attn.to_qkv_multiscale.0.proj_out",
    "context_module.main.proj.norm": "attn.norm_out",
    "local_module.main.inverted_conv.conv": "conv_out.conv_inverted",
    "local_module.main.depth_conv.conv": "conv_out.conv_depth",
    "local_module.main.point_conv.conv": "conv_out.conv_point",
    "local_module.main.point_conv.norm": "conv_out.norm",
}
_RESNET = {
    "residual.0": "norm1",
    "residual.2": "conv1",
    "residual.3": "norm2",
    "residual.6": "conv2",
    "shortcut": "conv_shortcut",
}


def _resnet(theirs: str, ours: str) -> dict[str, str]:
    return inside(theirs, ours, _RESNET)
