"""How the authors of VAEs that are not Stable Diffusion's name their weights, and how diffusers does (`layouts`)."""

from collections.abc import Collection

from backend.diffusion.reading.layouts import Layout, count, inside, renamed


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


_RESNET = {
    "residual.0": "norm1",
    "residual.2": "conv1",
    "residual.3": "norm2",
    "residual.6": "conv2",
    "shortcut": "conv_shortcut",
}


def _resnet(theirs: str, ours: str) -> dict[str, str]:
    return inside(theirs, ours, _RESNET)
