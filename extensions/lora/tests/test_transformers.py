"""LoRAs for Stable Diffusion 3 and Flux: as their formula says, and as diffusers merges the same files."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from gguf import GGMLQuantizationType, quantize
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict
from PIL import Image
from torch import Tensor

from backend.errors import InvalidRequest
from backend.lora import network
from backend.packed import Packed, blocks
from backend.testing import Studio
from backend.weights import BrokenFile
from extensions.lora import header, merge
from extensions.lora.merge import Merged
from extensions.lora.tags import Use
from extensions.lora.tests import making
from tests.tiny_families import tiny_flux, tiny_sd3

FOLDER = Path(__file__).parents[1]
Q, K, V = (f"transformer_blocks.0.attn.to_{part}" for part in "qkv")
SINGLE = [f"single_transformer_blocks.0.{part}" for part in ("attn.to_q", "attn.to_k", "attn.to_v", "proj_mlp")]
ADDED = [f"transformer_blocks.0.attn.add_{part}_proj" for part in "qkv"]
FLUX = {
    "double_blocks_0_img_attn_qkv": [Q, K, V],
    "double_blocks_0_txt_attn_qkv": ADDED,
    "double_blocks_0_img_attn_proj": ["transformer_blocks.0.attn.to_out.0"],
    "double_blocks_0_txt_attn_proj": ["transformer_blocks.0.attn.to_add_out"],
    "double_blocks_0_img_mlp_0": ["transformer_blocks.0.ff.net.0.proj"],
    "double_blocks_0_img_mlp_2": ["transformer_blocks.0.ff.net.2"],
    "double_blocks_0_txt_mlp_0": ["transformer_blocks.0.ff_context.net.0.proj"],
    "double_blocks_0_txt_mlp_2": ["transformer_blocks.0.ff_context.net.2"],
    "double_blocks_0_img_mod_lin": ["transformer_blocks.0.norm1.linear"],
    "double_blocks_0_txt_mod_lin": ["transformer_blocks.0.norm1_context.linear"],
    "single_blocks_0_linear1": SINGLE,
    "single_blocks_0_linear2": ["single_transformer_blocks.0.proj_out"],
    "single_blocks_0_modulation_lin": ["single_transformer_blocks.0.norm.linear"],
}
SD3 = {
    "joint_blocks_0_x_block_attn_qkv": [Q, K, V],
    "joint_blocks_0_context_block_attn_qkv": ADDED,
    "joint_blocks_0_x_block_attn_proj": ["transformer_blocks.0.attn.to_out.0"],
    "joint_blocks_0_context_block_attn_proj": ["transformer_blocks.0.attn.to_add_out"],
    "joint_blocks_1_x_block_mlp_fc1": ["transformer_blocks.1.ff.net.0.proj"],
    "joint_blocks_0_context_block_mlp_fc2": ["transformer_blocks.0.ff_context.net.2"],
    "joint_blocks_0_x_block_adaLN_modulation_1": ["transformer_blocks.0.norm1.linear"],
    "joint_blocks_0_context_block_adaLN_modulation_1": ["transformer_blocks.0.norm1_context.linear"],
    "y_embedder_mlp_2": ["time_text_embed.text_embedder.linear_2"],
}
NAMES: Mapping[str, Mapping[str, Sequence[str]]] = {"flux": FLUX, "sd3": SD3}
"""The original's modules and diffusers' of which they consist."""
SWAPPED = {
    "flux": {"final_layer_adaLN_modulation_1": "norm_out.linear"},
    "sd3": {
        "final_layer_adaLN_modulation_1": "norm_out.linear",
        "joint_blocks_1_context_block_adaLN_modulation_1": "transformer_blocks.1.norm1_context.linear",
    },
}
"""Those that make shift and scale in the original, and scale and shift in diffusers."""


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("models")
    tiny_flux(folder / "checkpoints" / "flux")
    tiny_flux(folder / "checkpoints" / "fill", kind="FluxFillPipeline")
    tiny_flux(folder / "checkpoints" / "kontext", kind="FluxKontextPipeline")
    tiny_sd3(folder / "checkpoints" / "sd3", dual=True)
    return folder


@pytest.fixture(params=["flux", "sd3"])
def family(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def loaded(models: Path, family: str) -> Any:
    return diffusers.DiffusionPipeline.from_pretrained(models / "checkpoints" / family)


def whole(pipeline: Any, parts: Sequence[str]) -> Tensor:
    return torch.cat([pipeline.transformer.get_submodule(part).weight.detach().clone() for part in parts])


def applied(pipeline: Any, path: Path, by: float) -> Merged:
    there, of_file, merged = merge.places(pipeline), network.read(path), Merged()
    merge.check(of_file, there)
    merged.put(merge.changes([(Use("a", by, by), of_file)], there))
    return merged


def kohya(pipeline: Any, family: str, kind: str) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """A file in kohya's layout with the original's names, and what it adds to the original's weights."""
    tensors, added = {}, {}
    for name, parts in NAMES[family].items():
        out, into = whole(pipeline, parts).shape
        key = f"lora_unet_{name}"
        if kind == "lora":
            up, down = making.noise(out, 2), making.noise(2, into)
            tensors |= {
                f"{key}.lora_up.weight": up,
                f"{key}.lora_down.weight": down,
                f"{key}.alpha": torch.tensor(4.0),
            }
            added[name] = 2 * up @ down
        elif kind == "loha":
            halves = {n: (making.noise(out, 2), making.noise(2, into)) for n in (1, 2)}
            for n, (a, b) in halves.items():
                tensors |= {f"{key}.hada_w{n}_a": a, f"{key}.hada_w{n}_b": b}
            tensors[f"{key}.alpha"] = torch.tensor(1.0)
            added[name] = torch.stack([a @ b for a, b in halves.values()]).prod(0) / 2
        elif kind == "lokr":
            first, second = making.noise(2, 2), making.noise(out // 2, into // 2)
            tensors |= {f"{key}.lokr_w1": first, f"{key}.lokr_w2": second}
            added[name] = torch.kron(first, second)
        else:
            tensors[f"{key}.diff"] = added[name] = making.noise(out, into)
            tensors[f"{key}.diff_b"] = making.noise(out)
    return tensors, added


@pytest.mark.parametrize("kind", ["lora", "loha", "lokr", "full"])
def test_merged_weights_are_the_formulas_and_come_back(models: Path, tmp_path: Path, family: str, kind: str) -> None:
    torch.manual_seed(3)
    pipeline = loaded(models, family)
    tensors, added = kohya(pipeline, family, kind)
    before = {name: whole(pipeline, parts) for name, parts in NAMES[family].items()}
    merged = applied(pipeline, making.save(tmp_path / "a.safetensors", tensors), 0.7)
    for name, parts in NAMES[family].items():
        torch.testing.assert_close(whole(pipeline, parts), before[name] + 0.7 * added[name], atol=1e-5, rtol=0)
    merged.undo()
    assert all(torch.equal(whole(pipeline, parts), before[name]) for name, parts in NAMES[family].items())


@pytest.mark.parametrize("kind", ["lora", "loha", "full"])
def test_quantised_weights_give_what_the_same_ones_made_whole_give(
    models: Path, tmp_path: Path, family: str, kind: str
) -> None:
    torch.manual_seed(3)
    wide, small = loaded(models, family), loaded(models, family)
    in_blocks = quantised(small)
    for name, layer in in_blocks.items():
        wide.transformer.get_submodule(name).weight.data = layer.weight.whole(torch.float32)
    before = {name: layer.weight.whole(torch.float32) for name, layer in in_blocks.items()}
    file = making.save(tmp_path / "a.safetensors", kohya(wide, family, kind)[0])
    merged = [applied(pipeline, file, 0.7) for pipeline in (wide, small)]
    changed = set()
    for name, layer in in_blocks.items():
        now, inputs = wide.transformer.get_submodule(name), making.noise(3, layer.in_features)
        assert torch.equal(layer(inputs), now(inputs)), name
        changed |= {name} if not torch.equal(now.weight, before[name]) else set()
    assert changed
    for each in merged:
        each.undo()
    assert all(torch.equal(layer.weight.whole(torch.float32), before[name]) for name, layer in in_blocks.items())


def quantised(pipeline: Any) -> dict[str, Packed]:
    """The linear layers of its transformer, from now on in blocks."""
    kind, layers = GGMLQuantizationType.Q8_0, {}
    for name, module in list(pipeline.transformer.named_modules()):
        if type(module) is torch.nn.Linear and module.in_features % 32 == 0:
            weight = blocks(quantize(module.weight.detach().numpy(), kind), kind)
            layers[name] = Packed(module, weight, torch.float32)
            layers[name].bias = module.bias
            pipeline.transformer.set_submodule(name, layers[name])
    return layers


def test_dora_of_several_in_one(models: Path, tmp_path: Path) -> None:
    """The length of each row is its own, whichever module it lies in."""
    torch.manual_seed(4)
    pipeline = loaded(models, "flux")
    own, key = whole(pipeline, SINGLE), "lora_unet_single_blocks_0_linear1"
    up, down, lengths = making.noise(len(own), 2), making.noise(2, own.shape[1]), making.noise(len(own), 1).abs() + 0.1
    tensors = {f"{key}.lora_up.weight": up, f"{key}.lora_down.weight": down, f"{key}.dora_scale": lengths}
    applied(pipeline, making.save(tmp_path / "a.safetensors", tensors), 1.0)
    turned = own + up @ down
    expected = lengths * turned / turned.norm(dim=1, keepdim=True)
    torch.testing.assert_close(whole(pipeline, SINGLE), expected, atol=1e-5, rtol=1e-5)


def test_kohyas_flux_is_what_diffusers_makes_of_it(models: Path, tmp_path: Path) -> None:
    torch.manual_seed(5)
    ours, theirs = loaded(models, "flux"), loaded(models, "flux")
    tensors, _ = kohya(ours, "flux", "lora")
    tensors = {key: t for key, t in tensors.items() if "linear1" not in key}  # it knows this one at its true size only
    path = making.save(tmp_path / "a.safetensors", tensors)
    same_as_diffusers(ours, theirs, path)


@pytest.mark.parametrize("kind", ["lora", "full"])
def test_shift_and_scale_change_places(models: Path, tmp_path: Path, family: str, kind: str) -> None:
    """kohya's scripts train the modulation of every block, also of the last one."""
    torch.manual_seed(5)
    pipeline = loaded(models, family)
    tensors, expected = {}, {}
    for name, part in SWAPPED[family].items():
        module = pipeline.transformer.get_submodule(part)
        up, down = making.noise(module.out_features, 2), making.noise(2, module.in_features)
        change, of_bias = up @ down, making.noise(module.out_features)
        key = f"lora_unet_{name}"
        if kind == "lora":
            tensors |= {f"{key}.lora_up.weight": up, f"{key}.lora_down.weight": down}
        else:
            tensors |= {f"{key}.diff": change, f"{key}.diff_b": of_bias}
            expected[f"{part}.bias"] = module.bias.detach() + swapped(of_bias)
        expected[f"{part}.weight"] = module.weight.detach() + swapped(change)
    applied(pipeline, making.save(tmp_path / "a.safetensors", tensors), 1.0)
    for name, value in expected.items():
        torch.testing.assert_close(pipeline.transformer.state_dict()[name], value, atol=1e-5, rtol=0)


def same_as_diffusers(ours: Any, theirs: Any, path: Path) -> None:
    """`path` applied by us to one pipeline, and merged by diffusers into another one like it."""
    applied(ours, path, 1.0)
    theirs.load_lora_weights(path.parent, weight_name=path.name)
    theirs.fuse_lora(components=["transformer"])
    theirs.unload_lora_weights()
    for name, value in theirs.transformer.state_dict().items():
        torch.testing.assert_close(ours.transformer.state_dict()[name], value, atol=1e-5, rtol=1e-5)


def swapped(rows: Tensor) -> Tensor:
    shift, scale = rows.chunk(2)
    return torch.cat([scale, shift])


def test_xlabs_flux_is_what_diffusers_makes_of_it(models: Path, tmp_path: Path) -> None:
    torch.manual_seed(5)
    ours, theirs = loaded(models, "flux"), loaded(models, "flux")
    width, tensors = ours.transformer.inner_dim, {}
    double, single = "double_blocks.0.processor", "single_blocks.0.processor"
    parts = {f"{double}.qkv_lora1": 3, f"{double}.qkv_lora2": 3, f"{double}.proj_lora1": 1, f"{double}.proj_lora2": 1}
    for key, count in {**parts, f"{single}.qkv_lora": 3}.items():
        tensors[f"{key}.down.weight"] = making.noise(2, width)
        tensors[f"{key}.up.weight"] = making.noise(count * width, 2)
    path = making.save(tmp_path / "a.safetensors", tensors)
    same_as_diffusers(ours, theirs, path)


def test_alpha_of_diffusers_stands_in_the_metadata(models: Path, tmp_path: Path, family: str) -> None:
    ours, theirs = loaded(models, family), loaded(models, family)
    theirs.transformer.add_adapter(LoraConfig(r=2, lora_alpha=8, target_modules=["to_q"], init_lora_weights=False))
    layers, said = get_peft_model_state_dict(theirs.transformer), theirs.transformer.peft_config["default"].to_dict()
    said["target_modules"] = ["to_q"]  # a set is not JSON
    kept = {"transformer_lora_layers": layers, "transformer_lora_adapter_metadata": said}
    type(theirs).save_lora_weights(tmp_path, **kept)
    theirs.transformer.fuse_lora()
    applied(ours, tmp_path / "pytorch_lora_weights.safetensors", 1.0)
    torch.testing.assert_close(whole(ours, [Q]), theirs.transformer.get_submodule(Q).base_layer.weight)


@pytest.mark.parametrize("prefix", ["transformer.", "", "base_model.model."])
def test_diffusers_names(models: Path, tmp_path: Path, family: str, prefix: str) -> None:
    torch.manual_seed(6)
    pipeline = loaded(models, family)
    up, down = making.noise(pipeline.transformer.inner_dim, 2), making.noise(2, pipeline.transformer.inner_dim)
    tensors = {f"{prefix}{Q}.lora_A.weight": down, f"{prefix}{Q}.lora_B.weight": up}
    before = whole(pipeline, [Q])
    applied(pipeline, making.save(tmp_path / "a.safetensors", tensors), 1.0)
    torch.testing.assert_close(whole(pipeline, [Q]), before + up @ down, atol=1e-5, rtol=0)


def test_text_encoders_are_reached(models: Path, tmp_path: Path, family: str) -> None:
    torch.manual_seed(7)
    pipeline = loaded(models, family)
    t5 = pipeline.text_encoder_2 if family == "flux" else pipeline.text_encoder_3
    query = t5.encoder.block[0].layer[0].SelfAttention.q
    out, into = query.weight.shape
    up, down, before = making.noise(out, 1), making.noise(1, into), query.weight.detach().clone()
    # kohya calls the T5 of a Flux its third, OneTrainer its second
    fronts = ["lora_te3_", "text_encoders.t5xxl.transformer.", *(["lora_te2_"] if family == "flux" else [])]
    for front in fronts:
        key = f"{front}encoder.block.0.layer.0.SelfAttention.q"
        key = key.replace(".", "_") if front.startswith("lora") else key
        tensors = {f"{key}.lora_up.weight": up, f"{key}.lora_down.weight": down}
        merged = applied(pipeline, making.save(tmp_path / "a.safetensors", tensors), 1.0)
        torch.testing.assert_close(query.weight, before + up @ down, atol=1e-5, rtol=0)
        merged.undo()


def test_an_encoder_that_was_left_out_misses_nothing(models: Path, tmp_path: Path) -> None:
    """Stable Diffusion 3 can do without its T5; a LoRA that has a part for it then goes without that."""
    torch.manual_seed(7)
    pipeline = loaded(models, "sd3")
    query = pipeline.text_encoder_3.encoder.block[0].layer[0].SelfAttention.q.weight
    pipeline.text_encoder_3 = None
    tensors, added = kohya(pipeline, "sd3", "lora")
    key = "lora_te3_encoder_block_0_layer_0_SelfAttention_q"
    tensors |= {f"{key}.lora_up.weight": making.noise(len(query), 1)}
    tensors |= {f"{key}.lora_down.weight": making.noise(1, query.shape[1])}
    before = whole(pipeline, [Q, K, V])
    applied(pipeline, making.save(tmp_path / "a.safetensors", tensors), 1.0)
    expected = before + added["joint_blocks_0_x_block_attn_qkv"]
    torch.testing.assert_close(whole(pipeline, [Q, K, V]), expected, atol=1e-5, rtol=0)


def test_a_piece_of_another_size_is_named(models: Path, tmp_path: Path) -> None:
    key = "lora_unet_double_blocks_0_img_attn_qkv"
    tensors = {f"{key}.lora_up.weight": making.noise(90, 2), f"{key}.lora_down.weight": making.noise(2, 32)}
    with pytest.raises(BrokenFile, match=r"0\.attn\.to_q is of size 90 x 32 where the model has 32 x 32"):
        applied(loaded(models, "flux"), making.save(tmp_path / "a.safetensors", tensors), 1.0)


@pytest.fixture(scope="module")
def studio(models: Path) -> Iterator[Studio]:
    torch.manual_seed(8)
    for family in NAMES:
        tensors, _ = kohya(loaded(models, family), family, "lora")
        making.save(models / "loras" / f"{family}.safetensors", {k: v * 0.3 for k, v in tensors.items()})
    with Studio(FOLDER, models=models, model="flux") as studio:
        yield studio


def test_a_picture_changes_and_nothing_stays(studio: Studio, family: str) -> None:
    def drawn(tag: str) -> bytes:
        return studio.draw(f"a red circle {tag}", model=family).picture.tobytes()

    without = drawn("")
    assert drawn(f"<lora:{family}:1>") not in (without, drawn(f"<lora:{family}:0.5>"))
    assert drawn(f"<lora:{family}:0>") == without == drawn("")


@pytest.mark.parametrize("model", ["fill", "kontext"])
def test_those_of_flux_are_for_fill_and_kontext_too(studio: Studio, model: str) -> None:
    given = {"model": model, "init_image": studio.image(Image.new("RGB", (64, 64), "red"))}
    plain, changed = (studio.draw(f"a red circle {tag}", **given).picture for tag in ("", "<lora:flux:1>"))
    assert plain.tobytes() != changed.tobytes()


def test_what_does_not_fit_is_refused(studio: Studio, models: Path) -> None:
    assert header.facts(models / "loras" / "flux.safetensors").family == "flux"
    assert header.facts(models / "loras" / "sd3.safetensors").family == "sd3"
    with pytest.raises(InvalidRequest, match=r"flux\.safetensors is made for Flux\.1 .*sd3 is SD 3"):
        studio.draw("a <lora:flux:1>", model="sd3")
    with pytest.raises(InvalidRequest, match="lbw weighs the blocks of a UNet; flux has none"):
        studio.draw("a <lora:flux:1:lbw=OUTD>", model="flux")
