"""What comes out of a file: the formulas of LoRA and its relatives, and what diffusers makes of the same file."""

from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from diffusers.loaders.single_file_utils import convert_ldm_unet_checkpoint
from peft import LoHaConfig, LoKrConfig, LoraConfig, PeftConfig, get_peft_model
from peft.utils import get_peft_model_state_dict, set_peft_model_state_dict
from torch import Tensor

from backend.lora import keys, network
from backend.weights import BrokenFile
from extensions.lora import merge
from extensions.lora.merge import Merged
from extensions.lora.tags import Use
from extensions.lora.tests import making
from tests.tiny import tiny_model, tiny_model_xl

SD15 = {"cross_attention_dim": 768, "attention_head_dim": 8}
SDXL = {
    "block_out_channels": (320, 640, 1280),
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "transformer_layers_per_block": (1, 2, 10),
    "attention_head_dim": (5, 10, 20),
    "cross_attention_dim": 2048,
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 2816,
}


@pytest.fixture(scope="module", params=["tiny", "tiny-xl"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.set_num_threads(1)
    return {"tiny": tiny_model, "tiny-xl": tiny_model_xl}[request.param](
        tmp_path_factory.mktemp("models") / request.param
    )


@pytest.fixture
def pipeline(folder: Path) -> Any:
    loaded: Any = diffusers.DiffusionPipeline.from_pretrained(folder)
    return loaded


def applied(pipeline: Any, path: Path, use: Use) -> Merged:
    there = merge.places(pipeline)
    of_file = network.read(path)
    merge.check(of_file, there)
    merged = Merged()
    merged.put(merge.changes([(use, of_file)], there))
    return merged


def weights(pipeline: Any) -> dict[tuple[str, str], Tensor]:
    return {
        (component, name): parameter.detach().clone()
        for component, whole in making.components(pipeline).items()
        for name, parameter in whole.named_parameters()
    }


@pytest.mark.parametrize("kind", making.FORMATS)
def test_merged_weights_are_those_of_the_formula(pipeline: Any, tmp_path: Path, kind: str) -> None:
    tensors, wanted = making.make(pipeline, kind)
    path = making.save(tmp_path / "a.safetensors", tensors)
    before = weights(pipeline)
    merged = applied(pipeline, path, Use("a", te=0.5, unet=-0.7))
    after = weights(pipeline)
    changed = {key for key in before if not torch.equal(before[key], after[key])}
    assert changed == {(component, f"{name}.weight") for component, name in wanted}
    for (component, name), at_one in wanted.items():
        own = before[component, f"{name}.weight"]
        by = -0.7 if component == "unet" else 0.5
        expected = own + by * (at_one - own)
        assert torch.allclose(after[component, f"{name}.weight"], expected, atol=1e-5, rtol=1e-5), name
    merged.undo()
    assert all(torch.equal(tensor, before[key]) for key, tensor in weights(pipeline).items())


@pytest.mark.parametrize("kind", ["lora", "locon"])
def test_diffusers_makes_the_same_of_the_same_file(pipeline: Any, folder: Path, tmp_path: Path, kind: str) -> None:
    tensors, _ = making.make(pipeline, kind)
    path = making.save(tmp_path / "a.safetensors", tensors)
    applied(pipeline, path, Use("a", te=0.8, unet=0.8))
    ours = weights(pipeline)
    theirs: Any = diffusers.DiffusionPipeline.from_pretrained(folder)
    theirs.load_lora_weights(tmp_path, weight_name=path.name)
    theirs.fuse_lora(lora_scale=0.8)
    theirs.unload_lora_weights()
    for key, tensor in weights(theirs).items():
        assert torch.allclose(tensor, ours[key], atol=1e-5, rtol=1e-5), key


def test_dora_is_what_peft_makes_of_it(pipeline: Any, folder: Path, tmp_path: Path) -> None:
    theirs: Any = diffusers.DiffusionPipeline.from_pretrained(folder)
    names = ["to_q", "to_out.0", "conv1"]
    theirs.unet.add_adapter(
        LoraConfig(r=2, lora_alpha=2, target_modules=names, use_dora=True, init_lora_weights=False)
    )
    state = get_peft_model_state_dict(theirs.unet)
    scale = {key: tensor * 1.3 if "magnitude" in key else tensor for key, tensor in state.items()}
    set_peft_model_state_dict(theirs.unet, scale)
    path = making.save(tmp_path / "a.safetensors", {f"unet.{key}": tensor for key, tensor in scale.items()})
    theirs.unet.fuse_lora()
    theirs.unet.unload_lora()
    applied(pipeline, path, Use("a"))
    ours = dict(pipeline.unet.named_parameters())
    fused = dict(theirs.unet.named_parameters())
    assert fused.keys() == ours.keys()
    assert all(torch.allclose(fused[key], p, atol=1e-5, rtol=1e-5) for key, p in ours.items())


def test_a_row_of_zeros_has_no_direction_for_dora_to_lengthen(pipeline: Any, tmp_path: Path) -> None:
    """As convolutions that begin as zeros have them: it stays, and is not divided by."""
    conv = pipeline.unet.conv_in
    conv.weight.data[0] = 0
    down, up = torch.ones(2, *conv.weight.shape[1:]), torch.zeros(len(conv.weight), 2, 1, 1)
    parts = {"lora_down.weight": down, "lora_up.weight": up, "dora_scale": torch.ones(len(conv.weight), 1, 1, 1)}
    tensors = {f"lora_unet_conv_in.{part}": tensor for part, tensor in parts.items()}
    applied(pipeline, making.save(tmp_path / "a.safetensors", tensors), Use("a"))
    lengths = conv.weight.detach().flatten(1).norm(dim=1)
    assert torch.allclose(lengths, torch.tensor([0.0, *[1.0] * (len(lengths) - 1)]))


@pytest.mark.parametrize("spelling", ["peft", "mixed", "old", "plain peft"])
def test_the_spellings_of_diffusers_and_peft_mean_the_same(
    pipeline: Any, folder: Path, tmp_path: Path, spelling: str
) -> None:
    """`mixed` is what diffusers 0.42 writes: attention as `.lora.down`, convolutions as `.lora_A`, side by side."""
    tensors, wanted = making.make(pipeline, "locon")
    respelled: dict[str, Tensor] = {}
    for component, name in wanted:
        key = making.kohya_prefix(component, pipeline) + making.kohya_name(component, name)
        scale = making.ALPHA / making.RANK
        down, up = tensors[f"{key}.lora_down.weight"], tensors[f"{key}.lora_up.weight"] * scale
        if spelling == "plain peft" and component != "unet":
            continue
        a, b = {
            "peft": (".lora_A.weight", ".lora_B.weight"),
            "plain peft": (".lora_A.default.weight", ".lora_B.default.weight"),
            "mixed": (".lora.down.weight", ".lora.up.weight")
            if "attn" in name
            else (".lora_A.weight", ".lora_B.weight"),
            "old": (".lora_linear_layer.down.weight", ".lora_linear_layer.up.weight"),
        }[spelling]
        stem = f"{component}.{name}"
        if spelling == "plain peft":
            stem = f"base_model.model.{name}"
        if spelling == "old" and "attn" in name and component == "unet":
            before, _, last = name.replace("to_out.0", "to_out").rpartition(".")
            stem, a, b = f"unet.{before}.processor.{last}_lora", ".down.weight", ".up.weight"
        respelled |= {f"{stem}{a}": down, f"{stem}{b}": up}
    making.save(tmp_path / "k.safetensors", tensors)
    making.save(tmp_path / "a.safetensors", respelled)
    merged = applied(pipeline, tmp_path / "a.safetensors", Use("a"))
    ours = weights(pipeline)
    merged.undo()
    applied(pipeline, tmp_path / "k.safetensors", Use("k"))
    for where, tensor in weights(pipeline).items():
        if spelling != "plain peft" or where[0] == "unet":
            assert torch.allclose(ours[where], tensor, atol=1e-5, rtol=1e-5), where


def test_alpha_of_peft_stands_in_the_metadata(pipeline: Any, tmp_path: Path) -> None:
    name, module = next(iter(making.modules(pipeline.unet, False).items()))
    given = making.lora(module.weight)
    stem = f"unet.{name}"
    tensors = {f"{stem}.lora_A.weight": given["lora_down.weight"], f"{stem}.lora_B.weight": given["lora_up.weight"]}
    said = '{"unet.r": 8, "unet.lora_alpha": 4, "unet.rank_pattern": {"%s": 3}, "unet.alpha_pattern": {"%s": 1.5}}'
    path = making.save(tmp_path / "a.safetensors", tensors, lora_adapter_metadata=said % (name, name))
    own = module.weight.detach().clone()
    applied(pipeline, path, Use("a"))
    assert torch.allclose(module.weight, own + making.of_lora(own, given), atol=1e-6)


@pytest.mark.parametrize(
    "config",
    [
        LoraConfig(r=2, lora_alpha=8, target_modules=["to_q", "conv1"], init_lora_weights=False),
        LoraConfig(r=2, lora_alpha=8, target_modules=["to_q"], init_lora_weights=False, use_rslora=True),
        LoHaConfig(r=2, alpha=8, target_modules=["to_q"], init_weights=False),
        LoKrConfig(r=2, alpha=8, target_modules=["to_q"], init_weights=False),
    ],
    ids=["LoRA", "rsLoRA", "LoHa", "LoKr"],
)
def test_what_peft_saves_is_merged_as_peft_merges_it(
    pipeline: Any, folder: Path, tmp_path: Path, config: PeftConfig
) -> None:
    """Its alpha stands in `adapter_config.json`, beside the file."""
    theirs: Any = diffusers.DiffusionPipeline.from_pretrained(folder)
    adapted: Any = get_peft_model(theirs.unet, config)
    adapted.save_pretrained(tmp_path)
    applied(pipeline, tmp_path / "adapter_model.safetensors", Use("a"))
    ours = dict(pipeline.unet.named_parameters())
    for name, weight in adapted.merge_and_unload().named_parameters():
        assert torch.allclose(ours[name], weight, atol=1e-5, rtol=1e-5), name


def test_comfys_names_of_text_encoders(pipeline: Any, tmp_path: Path) -> None:
    tensors, wanted = making.make(pipeline, "lora")
    fronts = {"lora_te_": "clip_l", "lora_te1_": "clip_l", "lora_te2_": "clip_g"}
    renamed: dict[str, Tensor] = {}
    for component, name in wanted:
        front = making.kohya_prefix(component, pipeline)
        for part in ("lora_down.weight", "lora_up.weight", "alpha"):
            dotted = name if name.startswith("text_model.") else f"text_model.{name}"
            key = (
                f"text_encoders.{fronts[front]}.transformer.{dotted}" if front in fronts else f"diffusion_model.{name}"
            )
            renamed[f"{key}.{part}"] = tensors[f"{front}{making.kohya_name(component, name)}.{part}"]
    applied(pipeline, making.save(tmp_path / "a.safetensors", renamed), Use("a"))
    for (component, name), at_one in wanted.items():
        weight = getattr(pipeline, component).get_submodule(name).weight
        assert torch.allclose(weight, at_one, atol=1e-5, rtol=1e-5), name


def test_a_smaller_rank_uses_the_first_so_many_directions(pipeline: Any, tmp_path: Path) -> None:
    tensors, wanted = making.make(pipeline, "lora")
    path = making.save(tmp_path / "a.safetensors", tensors)
    own = weights(pipeline)
    applied(pipeline, path, Use("a", rank=1))
    for component, name in wanted:
        key = making.kohya_prefix(component, pipeline) + making.kohya_name(component, name)
        down, up = tensors[f"{key}.lora_down.weight"][:1], tensors[f"{key}.lora_up.weight"][:, :1]
        before = own[component, f"{name}.weight"]
        change = (up.flatten(1) @ down.flatten(1)).view(before.shape) * making.ALPHA / making.RANK
        assert torch.allclose(weights(pipeline)[component, f"{name}.weight"], before + change, atol=1e-5)


def test_blocks_have_factors_of_their_own(pipeline: Any, tmp_path: Path) -> None:
    tensors, _ = making.make(pipeline, "locon")
    path = making.save(tmp_path / "a.safetensors", tensors)
    before = weights(pipeline)
    applied(pipeline, path, Use("a", blocks={"BASE": 0, "M00": 0, "IN00": 0}))
    still = {key for key, tensor in weights(pipeline).items() if torch.equal(tensor, before[key])}
    assert {key for key in before if key[0] != "unet" or "mid_block" in key[1]} <= still
    assert ("unet", "conv_in.weight") in still
    assert ("unet", "conv_out.weight") not in still


def test_stacked_ones_add_up(pipeline: Any, tmp_path: Path) -> None:
    there = merge.places(pipeline)
    own = weights(pipeline)
    made = {kind: making.make(pipeline, kind, seed) for seed, kind in enumerate(("locon", "loha", "dora"))}
    loaded = [
        (Use(kind, 0.5, 0.5), network.read(making.save(tmp_path / f"{kind}.safetensors", tensors)))
        for kind, (tensors, _) in made.items()
    ]
    merged = Merged()
    merged.put(merge.changes(loaded, there))
    now = weights(pipeline)
    for component, name in made["locon"][1]:
        before = own[component, f"{name}.weight"]
        wanted = before + sum(0.5 * (at_one[component, name] - before) for _, at_one in made.values())
        assert torch.allclose(now[component, f"{name}.weight"], wanted, atol=1e-5, rtol=1e-5)
    merged.put(merge.changes(loaded[:1], there))  # the others out, the first stays
    for (component, name), at_one in made["locon"][1].items():
        before = own[component, f"{name}.weight"]
        assert torch.allclose(
            weights(pipeline)[component, f"{name}.weight"], before + 0.5 * (at_one - before), atol=1e-5
        )
    merged.undo()
    assert all(torch.equal(tensor, own[key]) for key, tensor in weights(pipeline).items())


@pytest.mark.parametrize(("config", "count"), [(SD15, 26), (SDXL, 20)], ids=["SD 1.5", "SDXL"])
def test_names_of_the_original_code_are_those_that_diffusers_converts(config: dict[str, Any], count: int) -> None:
    """Of a whole UNet, there and back."""
    with torch.device("meta"):
        unet = diffusers.UNet2DConditionModel(**config)
    names = [name for name, module in unet.named_modules() if getattr(module, "weight", None) is not None]
    ldm = keys.ldm_names([name for name, _ in unet.named_modules()])
    tensors = {
        f"model.diffusion_model.{ldm[name]}.{kind}": parameter
        for name in names
        for kind, parameter in unet.get_submodule(name).named_parameters()
    }
    back = convert_ldm_unet_checkpoint(dict(tensors), dict(unet.config))
    own = dict(unet.named_parameters())
    assert back.keys() == own.keys()
    assert all(back[name] is own[name] for name in own)
    from backend.lora.blocks import LISTS, block_of

    blocks = {block_of(ldm[name]) for name in names} - {""}
    assert blocks == set(LISTS[count]) - {"BASE"}


def test_sdxl_in_the_spelling_of_the_original_code(tmp_path: Path) -> None:
    """kohya's SDXL files have `input_blocks_4_1_...`; both spellings are the same to us."""
    pipeline: Any = diffusers.DiffusionPipeline.from_pretrained(tiny_model_xl(tmp_path / "xl"))
    tensors, wanted = making.make(pipeline, "locon")
    ldm = keys.ldm_names([name for name, _ in pipeline.unet.named_modules()])
    renamed = dict(tensors)
    for component, name in wanted:
        if component == "unet":
            old, new = f"lora_unet_{name.replace('.', '_')}.", f"lora_unet_{ldm[name].replace('.', '_')}."
            renamed = {new + k.removeprefix(old) if k.startswith(old) else k: t for k, t in renamed.items()}
    assert any("input_blocks_" in key for key in renamed)
    applied(pipeline, making.save(tmp_path / "a.safetensors", renamed), Use("a"))
    for (component, name), at_one in wanted.items():
        weight = getattr(pipeline, component).get_submodule(name).weight
        assert torch.allclose(weight, at_one, atol=1e-5, rtol=1e-5)


def test_a_small_change_is_not_lost_in_eight_bits(pipeline: Any, tmp_path: Path) -> None:
    """With three bits of mantissa all numbers would be rounded back to what they were."""
    pipeline.unet.enable_layerwise_casting(storage_dtype=torch.float8_e4m3fn, compute_dtype=torch.float32)
    own = weights(pipeline)
    tensors, wanted, asked = {}, {}, {}
    for name, module in making.modules(pipeline.unet, False).items():
        before = module.weight.detach().float()
        asked[name] = making.noise(*before.shape, by=0.01) * before.std()
        tensors[f"unet.{name}.diff"], wanted[name] = asked[name], before
    path = making.save(tmp_path / "a.safetensors", tensors)
    merged = applied(pipeline, path, Use("a"))
    first = weights(pipeline)
    given = {name: pipeline.unet.get_submodule(name).weight.float() - before for name, before in wanted.items()}
    kept = sum((given[name] * change).sum() for name, change in asked.items())
    assert 0.7 < kept / sum(change.square().sum() for change in asked.values()) < 1.3
    merged.undo()
    assert all(torch.equal(tensor.float(), own[key].float()) for key, tensor in weights(pipeline).items())
    applied(pipeline, path, Use("a"))
    assert all(torch.equal(tensor.float(), first[key].float()) for key, tensor in weights(pipeline).items())


def test_norms_and_biases_change_too(pipeline: Any, tmp_path: Path) -> None:
    norm, conv = pipeline.unet.conv_norm_out, pipeline.unet.conv_out
    before = [p.detach().clone() for p in (norm.weight, norm.bias, conv.weight, conv.bias)]
    tensors = {
        "lora_unet_conv_norm_out.w_norm": torch.ones_like(norm.weight),
        "lora_unet_conv_norm_out.b_norm": torch.ones_like(norm.bias) * 2,
        "lora_unet_conv_out.diff_b": torch.ones_like(conv.bias) * 3,
    }
    merged = applied(pipeline, making.save(tmp_path / "a.safetensors", tensors), Use("a", unet=0.5))
    now = (norm.weight, norm.bias, conv.weight, conv.bias)
    for added, own, changed in zip((0.5, 1, 0, 1.5), before, now, strict=True):
        assert torch.allclose(own + added, changed)
    merged.undo()
    assert all(torch.equal(own, p) for own, p in zip(before, now, strict=True))


def test_an_inpainting_model_takes_what_its_base_takes(tmp_path: Path) -> None:
    plain: Any = diffusers.DiffusionPipeline.from_pretrained(tiny_model(tmp_path / "tiny"))
    nine: Any = diffusers.DiffusionPipeline.from_pretrained(tiny_model(tmp_path / "nine", in_channels=9))
    tensors, _ = making.make(plain, "locon")
    own = nine.unet.conv_in.weight.detach().clone()
    plain_own = plain.unet.conv_in.weight.detach().clone()
    path = making.save(tmp_path / "a.safetensors", tensors)
    applied(plain, path, Use("a"))
    applied(nine, path, Use("a"))
    change = nine.unet.conv_in.weight - own
    assert torch.allclose(change[:, :4], plain.unet.conv_in.weight - plain_own, atol=1e-5)
    assert not change[:, 4:].any()


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        ({"lora_unet_conv_in.oft_diag": torch.ones(2)}, "not known here: lora_unet_conv_in.oft_diag"),
        ({"emb_params": torch.ones(2, 2)}, "not known here: emb_params"),
        ({"lora_unet_conv_in.lora_up.weight": torch.ones(8, 2, 1, 1)}, "not known here: lora_unet_conv_in.lora_up"),
        (
            {"lora_unet_nowhere.diff": torch.ones(2)},
            "has parts that this model has no place for: unet_nowhere",
        ),
        ({"lora_unet_conv_in.diff": torch.ones(8, 4, 1, 1)}, "part for unet.conv_in is of size 8 x 4 x 1 x 1 where"),
        ({"lora_unet_conv_in.diff": torch.full((8, 4, 3, 3), float("nan"))}, "not finite"),
        (
            {
                "lora_unet_conv_in.lora_up.weight": torch.ones(8, 2),
                "lora_unet_conv_in.lora_down.weight": torch.ones(3, 4),
            },
            "cannot be multiplied",
        ),
    ],
)
def test_what_cannot_be_used_is_named(tmp_path: Path, spoil: dict[str, Tensor], words: str) -> None:
    pipeline: Any = diffusers.DiffusionPipeline.from_pretrained(tiny_model(tmp_path / "tiny"))
    path = making.save(tmp_path / "a.safetensors", spoil)
    before = weights(pipeline)
    with pytest.raises(BrokenFile) as error:
        applied(pipeline, path, Use("a"))
    assert words in str(error.value)
    assert all(torch.equal(tensor, before[key]) for key, tensor in weights(pipeline).items())
