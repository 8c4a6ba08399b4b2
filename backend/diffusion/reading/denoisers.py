"""How the authors of transformers name their weights, and how diffusers does (`layouts`)."""

from collections.abc import Collection, Mapping

from backend.diffusion.reading.layouts import Layout, Rule, count, renamed, swapped


def sd3(names: Collection[str]) -> Layout:
    """Stable Diffusion 3 and 3.5, by either one's names."""
    rules = {
        "pos_embed": "pos_embed.pos_embed",
        "x_embedder.proj": "pos_embed.proj",
        "t_embedder.mlp.0": "time_text_embed.timestep_embedder.linear_1",
        "t_embedder.mlp.2": "time_text_embed.timestep_embedder.linear_2",
        "y_embedder.mlp.0": "time_text_embed.text_embedder.linear_1",
        "y_embedder.mlp.2": "time_text_embed.text_embedder.linear_2",
        "context_embedder": "context_embedder",
        "final_layer.linear": "proj_out",
    }
    more = [Rule("final_layer.adaLN_modulation.1", ("norm_out.linear",), swapped)]
    blocks = max(count(names, r"joint_blocks\.(\d+)\."), count(names, r"transformer_blocks\.(\d+)\."))
    for block in range(blocks):
        theirs, ours = f"joint_blocks.{block}", f"transformer_blocks.{block}"
        sides = {"x_block": ("ff", "norm1", "to_{}", "to_out.0", "norm_{}")}
        sides |= {"context_block": ("ff_context", "norm1_context", "add_{}_proj", "to_add_out", "norm_added_{}")}
        for side, (ff, norm, projection, out, qk_norm) in sides.items():
            rules[f"{theirs}.{side}.mlp.fc1"] = f"{ours}.{ff}.net.0.proj"
            rules[f"{theirs}.{side}.mlp.fc2"] = f"{ours}.{ff}.net.2"
            last = side == "context_block" and block == blocks - 1
            modulation = Rule(
                f"{theirs}.{side}.adaLN_modulation.1", (f"{ours}.{norm}.linear",), swapped if last else None
            )
            more.append(modulation)
            for attention in ("attn", "attn2") if side == "x_block" else ("attn",):
                rules[f"{theirs}.{side}.{attention}.proj"] = f"{ours}.{attention}.{out}"
                for x in "qk":
                    rules[f"{theirs}.{side}.{attention}.ln_{x}"] = f"{ours}.{attention}.{qk_norm.format(x)}"
                three = tuple(f"{ours}.{attention}.{projection.format(x)}" for x in "qkv")
                more.append(Rule(f"{theirs}.{side}.{attention}.qkv", three))
    return renamed(rules, more)


def flux(names: Collection[str]) -> Layout:
    """Flux.1, by either one's names."""
    rules, more = _flux(names, ("net.0.proj", "net.2"))
    rules["txt_in"], rules["img_in"] = "context_embedder", "x_embedder"
    embedders = {"time_in": "timestep_embedder", "vector_in": "text_embedder", "guidance_in": "guidance_embedder"}
    for theirs, ours in embedders.items():
        rules |= _embedder(theirs, f"time_text_embed.{ours}")
    for block in range(_double(names)):
        for side, norm in (("img", "norm1"), ("txt", "norm1_context")):
            rules[f"double_blocks.{block}.{side}_mod.lin"] = f"transformer_blocks.{block}.{norm}.linear"
    for block in range(_single(names)):
        rules[f"single_blocks.{block}.modulation.lin"] = f"single_transformer_blocks.{block}.norm.linear"
    singles = [_linear1(block) for block in range(_single(names))]
    return renamed(rules, [*more, *singles, Rule("final_layer.adaLN_modulation.1", ("norm_out.linear",), swapped)])


def chroma(names: Collection[str]) -> Layout:
    """Chroma, by either one's names: a Flux.1 whose modulation a small network of its own works out."""
    rules, more = _flux(names, ("net.0.proj", "net.2"))
    rules["txt_in"], rules["img_in"] = "context_embedder", "x_embedder"
    guide = "distilled_guidance_layer"
    rules |= {f"{guide}.{end}": f"{guide}.{end}" for end in ("in_proj", "out_proj")}
    for layer in range(count(names, rf"{guide}\.layers\.(\d+)\.")):
        rules |= _embedder(f"{guide}.layers.{layer}", f"{guide}.layers.{layer}")
        rules[f"{guide}.norms.{layer}.scale"] = f"{guide}.norms.{layer}.weight"
    return renamed(rules, [*more, *(_linear1(block) for block in range(_single(names)))])


def flux2(names: Collection[str]) -> Layout:
    """Flux.2, by either one's names; its blocks share their modulation."""
    rules, more = _flux(names, ("linear_in", "linear_out"))
    rules["txt_in"], rules["img_in"] = "context_embedder", "x_embedder"
    for theirs, ours in {"time_in": "timestep_embedder", "guidance_in": "guidance_embedder"}.items():
        rules |= _embedder(theirs, f"time_guidance_embed.{ours}")
    for stream in ("double_stream_modulation_img", "double_stream_modulation_txt", "single_stream_modulation"):
        rules[f"{stream}.lin"] = f"{stream}.linear"
    for block in range(_single(names)):
        theirs, ours = f"single_blocks.{block}", f"single_transformer_blocks.{block}"
        rules |= {f"{theirs}.linear1": f"{ours}.attn.to_qkv_mlp_proj", f"{theirs}.linear2": f"{ours}.attn.to_out"}
    return renamed(rules, [*more, Rule("final_layer.adaLN_modulation.1", ("norm_out.linear",), swapped)])


def z_image(names: Collection[str]) -> Layout:
    """By either one's names, most of which are the same."""
    same = ("t_embedder", "cap_embedder", "x_pad_token", "cap_pad_token")
    rules = {name: name for name in same} | {"x_embedder": "all_x_embedder.2-1", "final_layer": "all_final_layer.2-1"}
    stacked = []
    for stack in ("layers", "noise_refiner", "context_refiner"):
        for layer in range(count(names, rf"{stack}\.(\d+)\.")):
            block, attention = f"{stack}.{layer}", f"{stack}.{layer}.attention"
            rules |= {block: block, f"{attention}.out": f"{attention}.to_out.0"}
            rules |= {f"{attention}.{x}_norm": f"{attention}.norm_{x}" for x in "qk"}
            stacked.append(Rule(f"{attention}.qkv", tuple(f"{attention}.to_{x}" for x in "qkv")))
    return renamed(rules, stacked)


def pixart(names: Collection[str]) -> Layout:
    """Alpha and Sigma, by either one's names."""
    rules, stacked = _cross_attentive(names, "adaln_single")
    rules |= {"x_embedder.proj": "pos_embed.proj", "pos_embed": "pos_embed.pos_embed"}
    rules["y_embedder.y_embedding"] = "caption_projection.y_embedding"  # diffusers has none, but it tells the kind
    for theirs, ours in {"csize_embedder": "resolution_embedder", "ar_embedder": "aspect_ratio_embedder"}.items():
        rules |= {f"{theirs}.mlp.{n}": f"adaln_single.emb.{ours}.linear_{n // 2 + 1}" for n in (0, 2)}
    for block in range(_blocks(names)):
        theirs, ours = f"blocks.{block}.mlp", f"transformer_blocks.{block}.ff.net"
        rules |= {f"{theirs}.fc1": f"{ours}.0.proj", f"{theirs}.fc2": f"{ours}.2"}
    return renamed(rules, stacked)


def sana(names: Collection[str]) -> Layout:
    """By either one's names."""
    rules, stacked = _cross_attentive(names, "time_embed")
    rules |= {"x_embedder.proj": "patch_embed.proj", "attention_y_norm": "caption_norm"}
    for block in range(_blocks(names)):
        theirs, ours = f"blocks.{block}", f"transformer_blocks.{block}"
        rules |= {f"{theirs}.mlp.{x}_conv.conv": f"{ours}.ff.conv_{x}" for x in ("inverted", "depth", "point")}
        rules |= {f"{theirs}.attn.{x}_norm": f"{ours}.attn1.norm_{x}" for x in "qk"}
        rules |= {f"{theirs}.cross_attn.{x}_norm": f"{ours}.attn2.norm_{x}" for x in "qk"}
    return renamed(rules, stacked)


# --- what PixArt and Sana have in common


def _cross_attentive(names: Collection[str], time: str) -> tuple[dict[str, str], list[Rule]]:
    """`time` is what diffusers calls what knows of it."""
    rules = {
        "t_embedder.mlp.0": f"{time}.emb.timestep_embedder.linear_1",
        "t_embedder.mlp.2": f"{time}.emb.timestep_embedder.linear_2",
        "t_block.1": f"{time}.linear",
        "y_embedder.y_proj.fc1": "caption_projection.linear_1",
        "y_embedder.y_proj.fc2": "caption_projection.linear_2",
        "final_layer.linear": "proj_out",
        "final_layer.scale_shift_table": "scale_shift_table",
    }
    stacked = []
    for block in range(_blocks(names)):
        theirs, ours = f"blocks.{block}", f"transformer_blocks.{block}"
        rules[f"{theirs}.scale_shift_table"] = f"{ours}.scale_shift_table"
        rules[f"{theirs}.attn.proj"] = f"{ours}.attn1.to_out.0"
        rules[f"{theirs}.cross_attn.proj"] = f"{ours}.attn2.to_out.0"
        rules[f"{theirs}.cross_attn.q_linear"] = f"{ours}.attn2.to_q"
        stacked.append(Rule(f"{theirs}.attn.qkv", tuple(f"{ours}.attn1.to_{x}" for x in "qkv")))
        stacked.append(Rule(f"{theirs}.cross_attn.kv_linear", tuple(f"{ours}.attn2.to_{x}" for x in "kv")))
    return rules, stacked


def _blocks(names: Collection[str]) -> int:
    return max(count(names, r"blocks\.(\d+)\."), count(names, r"transformer_blocks\.(\d+)\."))


# --- what Flux and its heirs have in common


def _flux(names: Collection[str], feed_forward: tuple[str, str]) -> tuple[dict[str, str], list[Rule]]:
    """Blocks with and without a stream of their own for text; `feed_forward` is what diffusers calls its layers."""
    rules = {"final_layer.linear": "proj_out"}
    stacked = []
    for block in range(_double(names)):
        theirs, ours = f"double_blocks.{block}", f"transformer_blocks.{block}"
        sides = {"img": ("ff", "to_{}", "to_out.0", "norm_{}")}
        sides |= {"txt": ("ff_context", "add_{}_proj", "to_add_out", "norm_added_{}")}
        for side, (ff, projection, out, qk_norm) in sides.items():
            rules[f"{theirs}.{side}_mlp.0"] = f"{ours}.{ff}.{feed_forward[0]}"
            rules[f"{theirs}.{side}_mlp.2"] = f"{ours}.{ff}.{feed_forward[1]}"
            rules[f"{theirs}.{side}_attn.proj"] = f"{ours}.attn.{out}"
            rules |= _norms(f"{theirs}.{side}_attn", f"{ours}.attn", qk_norm)
            three = tuple(f"{ours}.attn.{projection.format(x)}" for x in "qkv")
            stacked.append(Rule(f"{theirs}.{side}_attn.qkv", three))
    for block in range(_single(names)):
        theirs, ours = f"single_blocks.{block}", f"single_transformer_blocks.{block}"
        rules[f"{theirs}.linear2"] = f"{ours}.proj_out"
        rules |= _norms(theirs, f"{ours}.attn", "norm_{}")
    return rules, stacked


def _linear1(block: int) -> Rule:
    """What goes into the attention of a block with one stream, and into its other half."""
    ours = f"single_transformer_blocks.{block}"
    return Rule(f"single_blocks.{block}.linear1", (*(f"{ours}.attn.to_{x}" for x in "qkv"), f"{ours}.proj_mlp"))


def _norms(theirs: str, ours: str, norm: str) -> dict[str, str]:
    words = {"q": "query", "k": "key"}
    return {f"{theirs}.norm.{w}_norm.scale": f"{ours}.{norm.format(x)}.weight" for x, w in words.items()}


def _embedder(theirs: str, ours: str) -> Mapping[str, str]:
    return {f"{theirs}.in_layer": f"{ours}.linear_1", f"{theirs}.out_layer": f"{ours}.linear_2"}


def _double(names: Collection[str]) -> int:
    return max(count(names, r"double_blocks\.(\d+)\."), count(names, r"transformer_blocks\.(\d+)\."))


def _single(names: Collection[str]) -> int:
    return max(count(names, r"single_blocks\.(\d+)\."), count(names, r"single_transformer_blocks\.(\d+)\."))
