"""The dimensions of a model, read off the shapes of its weights; names are diffusers'.

What shapes cannot tell stands in the configs beside the engine: there a model of the usual size is no special case.
"""

from collections.abc import Mapping
from math import isqrt
from typing import Any, NamedTuple

from backend.diffusion.reading.layouts import count

Shapes = Mapping[str, tuple[int, ...]]

HEAD = 64
"""The width of an attention head, unless something tells it: so in CLIP, Stable Diffusion 2, XL and 3."""
GEMMA_HEAD = 256
"""The same in Gemma 2."""


def unet(shapes: Shapes) -> dict[str, Any]:
    levels = range(count(shapes, r"down_blocks\.(\d+)\."))
    channels = [shapes[f"down_blocks.{level}.resnets.0.conv1.weight"][0] for level in levels]
    depths = [_depth(shapes, f"down_blocks.{level}.attentions.0") for level in levels]
    middle = _depth(shapes, "mid_block.attentions.0")
    attention = "mid_block.attentions.0"
    linear = len(shapes[f"{attention}.proj_in.weight"]) == 2
    told: dict[str, Any] = {}
    if "add_embedding.linear_1.weight" in shapes:
        told["projection_class_embeddings_input_dim"] = shapes["add_embedding.linear_1.weight"][1]
    return {
        "in_channels": shapes["conv_in.weight"][1],
        "out_channels": shapes["conv_out.weight"][0],
        "block_out_channels": channels,
        "layers_per_block": count(shapes, r"down_blocks\.0\.resnets\.(\d+)\."),
        "down_block_types": ["CrossAttnDownBlock2D" if depth else "DownBlock2D" for depth in depths],
        "up_block_types": ["CrossAttnUpBlock2D" if depth else "UpBlock2D" for depth in reversed(depths)],
        "transformer_layers_per_block": [*(depth or 1 for depth in depths[:-1]), depths[-1] or middle],
        "cross_attention_dim": shapes[f"{attention}.transformer_blocks.0.attn2.to_k.weight"][1],
        "use_linear_projection": linear,
        # Stable Diffusion 1 has eight heads whatever their width
        "attention_head_dim": [max(width // HEAD, 1) for width in channels] if linear else 8,
        **told,
    }


def vae(shapes: Shapes) -> dict[str, Any]:
    levels = range(count(shapes, r"decoder\.up_blocks\.(\d+)\."))
    channels = [shapes[f"decoder.up_blocks.{level}.resnets.0.conv2.weight"][0] for level in reversed(levels)]
    return {
        "in_channels": shapes["encoder.conv_in.weight"][1],
        "out_channels": shapes["decoder.conv_out.weight"][0],
        "latent_channels": shapes["decoder.conv_in.weight"][1],
        "block_out_channels": channels,
        "down_block_types": ["DownEncoderBlock2D"] * len(levels),
        "up_block_types": ["UpDecoderBlock2D"] * len(levels),
        "layers_per_block": count(shapes, r"encoder\.down_blocks\.0\.resnets\.(\d+)\."),
        "use_quant_conv": "quant_conv.weight" in shapes,
        "use_post_quant_conv": "post_quant_conv.weight" in shapes,
    }


def clip(shapes: Shapes) -> dict[str, Any]:
    words, width = shapes["embeddings.token_embedding.weight"]
    projection = shapes.get("text_projection.weight", (width,))
    return {
        "vocab_size": words,
        "hidden_size": width,
        "intermediate_size": shapes["encoder.layers.0.mlp.fc1.weight"][0],
        "num_hidden_layers": count(shapes, r"encoder\.layers\.(\d+)\."),
        "num_attention_heads": max(width // HEAD, 1),
        "max_position_embeddings": shapes["embeddings.position_embedding.weight"][0],
        "projection_dim": projection[0],
    }


def t5(shapes: Shapes) -> dict[str, Any]:
    first = "encoder.block.0.layer"
    words, width = shapes["shared.weight"]
    buckets, heads = shapes[f"{first}.0.SelfAttention.relative_attention_bias.weight"]
    return {
        "vocab_size": words,
        "d_model": width,
        "d_kv": shapes[f"{first}.0.SelfAttention.q.weight"][0] // heads,
        "d_ff": shapes[f"{first}.1.DenseReluDense.wo.weight"][1],
        "num_layers": count(shapes, r"encoder\.block\.(\d+)\."),
        "num_heads": heads,
        "relative_attention_num_buckets": buckets,
    }


def wan_vae(shapes: Shapes) -> dict[str, Any]:
    base, colours, *_ = shapes["encoder.conv_in.weight"]
    levels = range(count(shapes, r"decoder\.up_blocks\.(\d+)\."))
    blocks = count(shapes, r"decoder\.up_blocks\.0\.resnets\.(\d+)\.")
    starts = [f"encoder.down_blocks.{level * blocks}" for level in levels]
    ends = [f"encoder.down_blocks.{(level + 1) * blocks - 1}" for level in levels[:-1]]
    return {
        "base_dim": base,
        "z_dim": shapes["post_quant_conv.weight"][0],
        "dim_mult": [shapes[f"{start}.conv1.weight"][0] // base for start in starts],
        "num_res_blocks": blocks - 1,
        "temperal_downsample": [f"{end}.time_conv.weight" in shapes for end in ends],
        "input_channels": colours,
    }


def dc_vae(shapes: Shapes) -> dict[str, Any]:
    sides = {side: _stages(shapes, side) for side in ("encoder.down_blocks", "decoder.up_blocks")}
    told: dict[str, Any] = {}
    for name, stages in sides.items():
        side = name.partition(".")[0]
        told[f"{side}_block_types"] = ["EfficientViTBlock" if stage.kernel else "ResBlock" for stage in stages]
        told[f"{side}_block_out_channels"] = [stage.channels for stage in stages]
        told[f"{side}_layers_per_block"] = [stage.blocks for stage in stages]
        told[f"{side}_qkv_multiscales"] = [[stage.kernel] if stage.kernel else [] for stage in stages]
    heads = [shape[1] for name, shape in shapes.items() if name.endswith(".to_qkv_multiscale.0.proj_out.weight")]
    return {"latent_channels": shapes["encoder.conv_out.weight"][0], "attention_head_dim": heads[0], **told}


class _Stage(NamedTuple):
    channels: int
    blocks: int
    kernel: int
    """Of its attention; 0: it has none."""


def _stages(shapes: Shapes, stack: str) -> list[_Stage]:
    """Of one side of Sana's autoencoder. Between two of them one block more makes the picture smaller or larger."""
    inner = stack.replace(".", r"\.")
    stages = []
    for stage in range(count(shapes, rf"{inner}\.(\d+)\.")):
        blocks = range(count(shapes, rf"{inner}\.{stage}\.(\d+)\."))
        plain = [b for b in blocks if f"{stack}.{stage}.{b}.conv.weight" not in shapes]
        block = f"{stack}.{stage}.{plain[0]}"
        scale = shapes.get(f"{block}.attn.to_qkv_multiscale.0.proj_in.weight")
        width = shapes[f"{block}.attn.norm_out.weight" if scale else f"{block}.conv1.weight"][0]
        stages.append(_Stage(width, len(plain), scale[-1] if scale else 0))
    return stages


def gemma2(shapes: Shapes) -> dict[str, Any]:
    return _language_model(shapes, GEMMA_HEAD)


def qwen25_vl(shapes: Shapes) -> dict[str, Any]:
    words, width = shapes["model.language_model.embed_tokens.weight"]
    first, eye = "model.language_model.layers.0", "model.visual.blocks.0"
    head = min(width, 128)
    sixteenth = head // 16  # 16, 24 and 24 of 128
    vision = {"depth": 0}
    if f"{eye}.norm1.weight" in shapes:
        vision = {
            "depth": count(shapes, r"model\.visual\.blocks\.(\d+)\."),
            "hidden_size": shapes[f"{eye}.norm1.weight"][0],
            "intermediate_size": shapes[f"{eye}.mlp.up_proj.weight"][0],
            "out_hidden_size": shapes["model.visual.merger.mlp.2.weight"][0],
        }
    return {
        "text_config": {
            "vocab_size": words,
            "hidden_size": width,
            "intermediate_size": shapes[f"{first}.mlp.up_proj.weight"][0],
            "num_hidden_layers": count(shapes, r"model\.language_model\.layers\.(\d+)\."),
            "num_attention_heads": width // head,
            "num_key_value_heads": shapes[f"{first}.self_attn.k_proj.weight"][0] // head,
            "rope_parameters": {"mrope_section": [2 * sixteenth, 3 * sixteenth, 3 * sixteenth]},
        },
        "vision_config": vision,
    }


def qwen3(shapes: Shapes) -> dict[str, Any]:
    (head,) = shapes["layers.0.self_attn.q_norm.weight"]
    return _language_model(shapes, head)


def _language_model(shapes: Shapes, head: int) -> dict[str, Any]:
    words, width = shapes["embed_tokens.weight"]
    return {
        "vocab_size": words,
        "hidden_size": width,
        "intermediate_size": shapes["layers.0.mlp.up_proj.weight"][0],
        "num_hidden_layers": count(shapes, r"layers\.(\d+)\."),
        "num_attention_heads": shapes["layers.0.self_attn.q_proj.weight"][0] // head,
        "num_key_value_heads": shapes["layers.0.self_attn.k_proj.weight"][0] // head,
        "head_dim": head,
    }


def sd3(shapes: Shapes) -> dict[str, Any]:
    blocks = range(count(shapes, r"transformer_blocks\.(\d+)\."))
    width, channels, patch, _ = shapes["pos_embed.proj.weight"]
    normed = shapes.get("transformer_blocks.0.attn.norm_q.weight")
    head = normed[0] if normed else HEAD
    return {
        "patch_size": patch,
        "in_channels": channels,
        "out_channels": shapes["proj_out.weight"][0] // patch**2,
        "num_layers": len(blocks),
        "attention_head_dim": head,
        "num_attention_heads": max(width // head, 1),
        "joint_attention_dim": shapes["context_embedder.weight"][1],
        "caption_projection_dim": shapes["context_embedder.weight"][0],
        "pooled_projection_dim": shapes["time_text_embed.text_embedder.linear_1.weight"][1],
        "pos_embed_max_size": isqrt(shapes["pos_embed.pos_embed"][1]),
        "dual_attention_layers": [b for b in blocks if f"transformer_blocks.{b}.attn2.to_out.0.weight" in shapes],
        "qk_norm": "rms_norm" if normed else None,
    }


def flux(shapes: Shapes) -> dict[str, Any]:
    (head,) = shapes["transformer_blocks.0.attn.norm_q.weight"]
    return {
        **_blocks(shapes),
        "axes_dims_rope": _axes(head),
        "pooled_projection_dim": shapes["time_text_embed.text_embedder.linear_1.weight"][1],
        "guidance_embeds": "time_text_embed.guidance_embedder.linear_1.weight" in shapes,
    }


def chroma(shapes: Shapes) -> dict[str, Any]:
    (head,) = shapes["transformer_blocks.0.attn.norm_q.weight"]
    hidden, channels = shapes["distilled_guidance_layer.in_proj.weight"]
    return {
        **_blocks(shapes),
        "axes_dims_rope": _axes(head),
        "approximator_num_channels": channels,
        "approximator_hidden_dim": hidden,
        "approximator_layers": count(shapes, r"distilled_guidance_layer\.layers\.(\d+)\."),
    }


def flux2(shapes: Shapes) -> dict[str, Any]:
    (head,) = shapes["transformer_blocks.0.attn.norm_q.weight"]
    timestep = "time_guidance_embed.timestep_embedder.linear_1.weight"
    width, inner = shapes["transformer_blocks.0.ff.linear_out.weight"]
    return {
        **_blocks(shapes),
        "timestep_guidance_channels": shapes[timestep][1],
        "mlp_ratio": inner / width,
        "guidance_embeds": "time_guidance_embed.guidance_embedder.linear_1.weight" in shapes,
        "axes_dims_rope": [head // 4] * 4,
    }


def qwen_image(shapes: Shapes) -> dict[str, Any]:
    width, channels = shapes["img_in.weight"]
    (head,) = shapes["transformer_blocks.0.attn.norm_q.weight"]
    return {
        "in_channels": channels,
        "out_channels": shapes["proj_out.weight"][0] // 4,
        "num_layers": count(shapes, r"transformer_blocks\.(\d+)\."),
        "attention_head_dim": head,
        "num_attention_heads": width // head,
        "joint_attention_dim": shapes["txt_in.weight"][1],
        "axes_dims_rope": _axes(head),
    }


def pixart(shapes: Shapes) -> dict[str, Any]:
    width, channels, patch, _ = shapes["pos_embed.proj.weight"]
    told: dict[str, Any] = {}
    if places := shapes.get("pos_embed.pos_embed"):  # of the patches of a picture of the size it was trained with
        side = isqrt(places[-2]) * patch
        is_alpha = shapes.get("caption_projection.y_embedding", (0,))[0] == 120
        told = {"sample_size": side, "interpolation_scale": max(side // 64, 1) if is_alpha else side / 64}
    return {
        "in_channels": channels,
        "out_channels": shapes["proj_out.weight"][0] // patch**2,
        "num_layers": count(shapes, r"transformer_blocks\.(\d+)\."),
        "num_attention_heads": width // 72,
        "attention_head_dim": 72,
        "cross_attention_dim": width,
        "caption_channels": shapes["caption_projection.linear_1.weight"][1],
        "patch_size": patch,
        "use_additional_conditions": "adaln_single.emb.resolution_embedder.linear_1.weight" in shapes,
        **told,
    }


def sana(shapes: Shapes) -> dict[str, Any]:
    width, channels, patch, _ = shapes["patch_embed.proj.weight"]
    head = 112 if width % 112 == 0 else 72  # those of 2240 and of 1152 numbers
    first = "transformer_blocks.0"
    return {
        "in_channels": channels,
        "out_channels": shapes["proj_out.weight"][0] // patch**2,
        "num_layers": count(shapes, r"transformer_blocks\.(\d+)\."),
        "num_attention_heads": width // 32,
        "attention_head_dim": 32,
        "num_cross_attention_heads": width // head,
        "cross_attention_head_dim": head,
        "cross_attention_dim": width,
        "caption_channels": shapes["caption_projection.linear_1.weight"][1],
        "mlp_ratio": shapes[f"{first}.ff.conv_inverted.weight"][0] / 2 / width,
        "patch_size": patch,
        "qk_norm": "rms_norm_across_heads" if f"{first}.attn1.norm_q.weight" in shapes else None,
    }


def z_image(shapes: Shapes) -> dict[str, Any]:
    width, numbers = shapes["all_x_embedder.2-1.weight"]
    (head,) = shapes["layers.0.attention.norm_q.weight"]
    eighth = head // 8  # 32, 48 and 48 of 128
    return {
        "in_channels": numbers // 4,
        "dim": width,
        "n_layers": count(shapes, r"layers\.(\d+)\."),
        "n_refiner_layers": count(shapes, r"noise_refiner\.(\d+)\."),
        "n_heads": width // head,
        "n_kv_heads": shapes.get("layers.0.attention.to_k.weight", (width,))[0] // head,
        "cap_feat_dim": shapes["cap_embedder.1.weight"][1],
        "axes_dims": [2 * eighth, 3 * eighth, 3 * eighth],
    }


def _blocks(shapes: Shapes) -> dict[str, Any]:
    """What Flux and its heirs have in common."""
    width, channels = shapes["x_embedder.weight"]
    (head,) = shapes["transformer_blocks.0.attn.norm_q.weight"]
    return {
        "in_channels": channels,
        "out_channels": shapes["proj_out.weight"][0],
        "num_layers": count(shapes, r"transformer_blocks\.(\d+)\."),
        "num_single_layers": count(shapes, r"single_transformer_blocks\.(\d+)\."),
        "attention_head_dim": head,
        "num_attention_heads": width // head,
        "joint_attention_dim": shapes["context_embedder.weight"][1],
    }


def _axes(head: int) -> list[int]:
    """16, 56 and 56 of 128."""
    wide = head // 16 * 7
    return [head - 2 * wide, wide, wide]


def _depth(shapes: Shapes, attention: str) -> int:
    return count(shapes, attention.replace(".", r"\.") + r"\.transformer_blocks\.(\d+)\.")
