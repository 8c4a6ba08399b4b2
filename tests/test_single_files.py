"""Checkpoints that are one file: loaded without a network, as the same weights in a folder of diffusers' are."""

import io
import json
import shutil
import socket
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from diffusers.loaders import single_file_utils
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import Qwen3Config, Qwen3Model

from backend.catalog import Catalog, Model, detect, folders
from backend.catalog.companions import complete
from backend.diffusion import reading, writing
from backend.diffusion.engine import Engine
from backend.diffusion.reading import denoisers, layouts, tokenizers, weights
from backend.errors import ModelBroken
from backend.images import ImageStore
from backend.registry import Registry
from backend.weights import Entry, Header
from tests.pixels import photo, put
from tests.single_files import FULL, NARROW, Listed, write_both
from tests.tiny import draw

LONG = ("flux-schnell", *FULL)
WORDS = "a naïve café, (4k:1.2)"


@pytest.fixture(scope="module")
def shelf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.set_num_threads(1)
    return tmp_path_factory.mktemp("shelf")


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: socket.socket, address: Any) -> None:
        raise AssertionError(f"somebody wants to talk to {address}")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", lambda *of: refuse(None, of))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow if name in LONG else ()) for name in (*NARROW, *FULL)]
)
def test_a_file_gives_what_the_folder_gives(name: str, shelf: Path, tmp_path: Path) -> None:
    """The same parts, and the same picture."""
    folder, file = write_both(name, shelf)
    engine = Engine(Listed(folder, file), Registry(), "cpu")
    try:
        pictures = [picture(engine, model, tmp_path) for model in (folder, file)]
        there, given = (engine.store.load(model).pipeline.components for model in (folder, file))
    finally:
        engine.close()
    for component in ("unet", "transformer", "vae", "text_encoder", "text_encoder_2", "text_encoder_3"):
        if there.get(component):
            assert_same(given[component].state_dict(), there[component].state_dict())
    for component in ("tokenizer", "tokenizer_2", "tokenizer_3"):
        if there.get(component):
            assert given[component](WORDS).input_ids == there[component](WORDS).input_ids
    assert given["scheduler"].table.sigmas == there["scheduler"].table.sigmas
    assert given["scheduler"].config.prediction_type == there["scheduler"].config.prediction_type
    assert np.abs(pictures[0] - pictures[1]).max() <= 1  # where numbers lie in memory rounds the last bit
    assert pictures[0].std() > 1


@pytest.mark.parametrize("name", ["sd1", "sdxl", "sd2-v"])
def test_diffusers_own_conversion_reads_our_files_too(name: str, shelf: Path) -> None:
    folder, file = write_both(name, shelf)
    given, expected = load_file(file.path), parts(folder)
    unet, vae = expected["unet"], expected["vae"]
    converted = single_file_utils.convert_ldm_unet_checkpoint(dict(given), dict(unet.config))
    assert_same(converted, unet.state_dict())
    assert_same(single_file_utils.convert_ldm_vae_checkpoint(dict(given), dict(vae.config)), vae.state_dict())
    openly = {
        "sdxl": ("text_encoder_2", "conditioner.embedders.1.model."),
        "sd2-v": ("text_encoder", "cond_stage_model.model."),
    }
    if name in openly:
        component, prefix = openly[name]
        encoder = expected[component]
        converted = single_file_utils.convert_open_clip_checkpoint(encoder, dict(given), prefix)
        wanted = {f"text_model.{key.removeprefix('text_model.')}": t for key, t in encoder.state_dict().items()}
        assert_same(converted, {key.replace("text_model.text_", "text_"): t for key, t in wanted.items()})


CONVERSIONS = {
    "sd3.5": (denoisers.sd3, single_file_utils.convert_sd3_transformer_checkpoint_to_diffusers),
    "flux-dev": (denoisers.flux, single_file_utils.convert_flux_transformer_checkpoint_to_diffusers),
    "chroma": (denoisers.chroma, single_file_utils.convert_chroma_transformer_checkpoint_to_diffusers),
    "flux2-klein": (denoisers.flux2, single_file_utils.convert_flux2_transformer_checkpoint_to_diffusers),
    "qwen-image": (layouts.same, dict),
    "sana": (denoisers.sana, single_file_utils.convert_sana_transformer_to_diffusers),
    "z-image": (denoisers.z_image, single_file_utils.convert_z_image_transformer_checkpoint_to_diffusers),
}


@pytest.mark.parametrize("name", CONVERSIONS)
def test_a_transformer_is_divided_as_diffusers_own_conversion_does(name: str, shelf: Path) -> None:
    layout, theirs = CONVERSIONS[name]
    given = transformer_of(write_both(name, shelf)[1])
    if name in ("flux-dev", "chroma"):  # that knows one width only, so the numbers are columns of that length
        rows = {"linear1": 3 * 3072 + 4 * 3072, "qkv": 3 * 3072, "adaLN_modulation": 2 * 3072}
        lengths = {key: next((rows[part] for part in rows if part in key), 4) for key in given}
        given = {key: torch.arange(lengths[key]) + n * 100_000 for n, key in enumerate(sorted(given))}
    if name == "sana":
        given |= dict.fromkeys(("pos_embed", "y_embedder.y_embedding"), torch.zeros(1))  # of no use
    expected = theirs(dict(given))
    lengths = {key: len(tensor) for key, tensor in expected.items()}
    assert_same(dict(p for key, t in given.items() for p in layout(given).to_diffusers(key, t, lengths)), expected)


@pytest.mark.parametrize(
    ("name", "theirs"),
    [
        ("qwen-image", single_file_utils.convert_wan_vae_to_diffusers),
        ("sana", single_file_utils.convert_autoencoder_dc_checkpoint_to_diffusers),
    ],
)
def test_diffusers_own_conversion_reads_our_vaes_too(name: str, theirs: Any, shelf: Path) -> None:
    folder, file = write_both(name, shelf)
    given = {key.removeprefix("vae."): t for key, t in load_file(file.path).items() if key.startswith("vae.")}
    assert_same(theirs(dict(given)), parts(folder)["vae"].state_dict())


def test_pixart_is_divided_as_it_is_published(shelf: Path) -> None:
    """diffusers converts it in a script only."""
    folder, file = write_both("pixart-alpha", shelf)
    given, ours = transformer_of(file), parts(folder)["transformer"].state_dict()
    attention, block = "transformer_blocks.1.attn2", "blocks.1"
    for kind in ("weight", "bias"):
        three = [ours[f"transformer_blocks.1.attn1.to_{x}.{kind}"] for x in "qkv"]
        assert torch.equal(given[f"{block}.attn.qkv.{kind}"], torch.cat(three))
        both = [ours[f"{attention}.to_{x}.{kind}"] for x in "kv"]
        assert torch.equal(given[f"{block}.cross_attn.kv_linear.{kind}"], torch.cat(both))
    same = {
        "x_embedder.proj.weight": "pos_embed.proj.weight",
        "t_embedder.mlp.2.bias": "adaln_single.emb.timestep_embedder.linear_2.bias",
        "csize_embedder.mlp.0.weight": "adaln_single.emb.resolution_embedder.linear_1.weight",
        "ar_embedder.mlp.2.weight": "adaln_single.emb.aspect_ratio_embedder.linear_2.weight",
        "t_block.1.weight": "adaln_single.linear.weight",
        "y_embedder.y_proj.fc1.weight": "caption_projection.linear_1.weight",
        "final_layer.linear.bias": "proj_out.bias",
        "final_layer.scale_shift_table": "scale_shift_table",
        f"{block}.scale_shift_table": "transformer_blocks.1.scale_shift_table",
        f"{block}.attn.proj.weight": "transformer_blocks.1.attn1.to_out.0.weight",
        f"{block}.cross_attn.q_linear.bias": f"{attention}.to_q.bias",
        f"{block}.cross_attn.proj.weight": f"{attention}.to_out.0.weight",
        f"{block}.mlp.fc1.weight": "transformer_blocks.1.ff.net.0.proj.weight",
        f"{block}.mlp.fc2.bias": "transformer_blocks.1.ff.net.2.bias",
    }
    assert all(torch.equal(given[theirs], ours[name]) for theirs, name in same.items())


@pytest.mark.parametrize(("tokens", "scale"), [(300, 0.5), (120, 1)])
def test_the_size_that_pixart_was_trained_with_is_read(tokens: int, scale: float, shelf: Path, tmp_path: Path) -> None:
    """256 pixels: the file says where each patch lies, and how long a prompt may be."""
    _, file = write_both("pixart-sigma", shelf)
    prefix = "model.diffusion_model."
    told = {f"{prefix}pos_embed": torch.zeros(1, 256, 144), f"{prefix}y_embedder.y_embedding": torch.zeros(tokens, 96)}
    small = replace(file, path=tmp_path / "small.safetensors")
    save_file(load_file(file.path) | told, small.path)
    config = parts(small)["transformer"].config
    assert (config.sample_size, config.interpolation_scale) == (32, scale)


def test_another_vae_of_a_folder_is_scaled_as_its_edition_has_it(shelf: Path) -> None:
    for edition, scale in (("alpha", 0.18215), ("sigma", 0.13025)):
        folder, file = write_both(f"pixart-{edition}", shelf)
        told = folders.read(folder.path)
        assert reading.vae(replace(folder, edition=told["edition"]), file.path).config.scaling_factor == scale


PUBLISHED = {
    "sana": (
        *("vae.encoder.stages.0.op_list.0.main.conv1.conv.weight", "vae.encoder.stages.0.op_list.1.main.conv.weight"),
        *("vae.decoder.stages.0.op_list.0.main.conv.conv.bias", "vae.encoder.project_in.conv.bias"),
        *("vae.decoder.project_in.main.conv.weight", "vae.decoder.project_out.op_list.2.conv.weight"),
        "vae.encoder.stages.3.op_list.0.context_module.main.aggreg.0.1.weight",
        "text_encoders.gemma2_2b.transformer.model.layers.0.pre_feedforward_layernorm.weight",
    ),
    "qwen-image": (
        "text_encoders.qwen25_7b.transformer.model.layers.0.self_attn.q_proj.bias",
        "text_encoders.qwen25_7b.transformer.visual.blocks.0.attn.qkv.weight",
    ),
    "flux2-klein": (
        *("vae.encoder.quant_conv.weight", "vae.decoder.post_quant_conv.bias", "vae.bn.running_mean"),
        *("vae.encoder.down.0.block.1.norm1.weight", "vae.decoder.up.3.upsample.conv.weight"),
        *("vae.decoder.mid.attn_1.proj_out.weight", "vae.decoder.norm_out.weight"),
        "text_encoders.qwen3_4b.transformer.model.layers.27.mlp.down_proj.weight",
    ),
}
"""Names of tensors, of parts that diffusers does not convert."""


@pytest.mark.parametrize("name", PUBLISHED)
def test_tensors_are_called_as_they_are_published(name: str, shelf: Path) -> None:
    assert set(load_file(write_both(name, shelf)[1].path)).issuperset(PUBLISHED[name])


EDITIONS = {"pixart-sigma": "sigma", "pixart-alpha": "alpha", "flux2-klein": "klein"}
EDITIONS |= dict.fromkeys(("chroma", "qwen-image", "sana", "z-image"), "")


@pytest.mark.parametrize("name", EDITIONS)
def test_parts_in_files_of_their_own_are_found(name: str, shelf: Path, tmp_path: Path) -> None:
    """As ComfyUI's users have them."""
    _, whole = write_both(name, shelf)
    label, words = apart(whole, tmp_path)
    shutil.copy(whole.beside[f"{label} tokenizer"], tmp_path / "text_encoders" / f"{label}.tokenizer.json")
    catalog = Catalog(tmp_path)
    model = complete(catalog.find(name), catalog.files)
    assert (model.kind, model.family, model.edition) == ("diffusion_model", whole.family, EDITIONS[name])
    assert words in {file.path for file in catalog.files("text_encoder") if file.parts == (label,)}
    given, expected = parts(model), parts(whole)
    for component in ("transformer", "vae", "text_encoder"):
        assert_same(given[component].state_dict(), expected[component].state_dict())
    assert given["tokenizer"](WORDS).input_ids == expected["tokenizer"](WORDS).input_ids


@pytest.mark.parametrize("name", EDITIONS)
def test_what_is_missing_beside_a_file_is_named(name: str, shelf: Path, tmp_path: Path) -> None:
    _, whole = write_both(name, shelf)
    label, words = apart(whole, tmp_path)
    catalog = Catalog(tmp_path)
    reason = rf"put its tokenizer\.json into models/text_encoders as {label}\.tokenizer\.json$"
    with pytest.raises(ModelBroken, match=rf"needs the tokenizer of {label}: {reason}"):
        parts(complete(catalog.find(name), catalog.files))
    words.unlink()
    catalog = Catalog(tmp_path)
    with pytest.raises(ModelBroken, match=rf"a file of it \({label}.*\) belongs into models/text_encoders$"):
        parts(complete(catalog.find(name), catalog.files))


DC_AE = {
    **dict.fromkeys(("encoder_block_types", "decoder_block_types"), ["ResBlock"] * 3 + ["EfficientViTBlock"] * 3),
    "encoder_layers_per_block": [2, 2, 2, 3, 3, 3],
    "downsample_block_type": "conv",
    "upsample_block_type": "interpolate",
}
KLEIN = {"num_single_layers": 24, "num_attention_heads": 32, "joint_attention_dim": 3 * 4096, "guidance_embeds": False}
SANA_600M = {"num_attention_heads": 36, "num_layers": 28, "num_cross_attention_heads": 16}
SANA_600M |= {"cross_attention_head_dim": 72, "cross_attention_dim": 1152}


@pytest.mark.parametrize(
    ("name", "config", "family", "width"),
    [
        ("ZImageTransformer2DModel", {}, "z-image", 2560),
        ("Flux2Transformer2DModel", {}, "flux2", 5120),
        ("Flux2Transformer2DModel", KLEIN, "flux2", 4096),
        ("ChromaTransformer2DModel", {}, "chroma", 4096),
        ("QwenImageTransformer2DModel", {}, "qwen-image", 3584),
        ("SanaTransformer2DModel", {}, "sana", 2304),
        ("SanaTransformer2DModel", SANA_600M, "sana", 2304),
        ("PixArtTransformer2DModel", {"caption_channels": 4096, "use_additional_conditions": False}, "pixart", 4096),
        ("AutoencoderKLFlux2", {}, "flux2", 0),
        ("AutoencoderKLQwenImage", {}, "qwen-image", 0),
        ("AutoencoderDC", DC_AE, "sana", 0),
    ],
)
def test_the_size_of_the_real_ones_is_read_off(name: str, config: dict[str, Any], family: str, width: int) -> None:
    with torch.device("meta"):
        real = getattr(diffusers, name)(**config)
    numbers = real.state_dict()
    original = dict(writing.LAYOUTS[name](numbers).to_original(numbers, numbers.__getitem__))
    shapes = {key: tuple(tensor.shape) for key, tensor in original.items()}
    told = detect(Header({key: Entry("BF16", shape, 0, 0) for key, shape in shapes.items()}, {}, 0))
    assert (told.family, told.width) == (family, width)
    found = weights.find(SimpleNamespace(shapes=shapes, file=Path()), weights.KINDS[name], [""])
    assert found
    known = {key: listed(value) for key, value in found.config().items() if key != "out_channels"}
    assert known == {key: listed(real.config[key]) for key in known}


def listed(value: Any) -> Any:
    return [listed(each) for each in value] if isinstance(value, list | tuple) else value


def test_the_vocabulary_is_that_of_clip() -> None:
    tokenizer = tokenizers.clip()
    assert tokenizer("a photo of a cat").input_ids == [49406, 320, 1125, 539, 320, 2368, 49407]
    assert len(tokenizer) == 49408
    assert tokenizers.clip(pad_token="!").pad_token_id == 0


def test_a_vocabulary_may_be_a_folder_as_comfyui_has_it(shelf: Path, tmp_path: Path) -> None:
    """Words and merges; its chat template is another model's."""
    _, file = write_both("flux2-klein", shelf)
    expected = parts(file)["tokenizer"]
    numbered = expected.get_vocab()
    special = {str(n): {"content": word, "special": False} for word, n in numbered.items() if word.startswith("<")}
    config = {"tokenizer_class": "Qwen2Tokenizer", "added_tokens_decoder": special, "chat_template": "Describe this."}
    for name, content in (("vocab.json", numbered), ("tokenizer_config.json", config)):
        (tmp_path / name).write_text(json.dumps(content))
    (tmp_path / "merges.txt").write_text("#version: 0.2\n")
    given = parts(replace(file, beside={"qwen3 tokenizer": tmp_path}))["tokenizer"]
    chat = {"conversation": [{"role": "user", "content": WORDS}], "add_generation_prompt": True}
    for thinks in (True, False):
        text = given.apply_chat_template(**chat, tokenize=False, enable_thinking=thinks)
        assert text.endswith("assistant\n" if thinks else "<think>\n\n</think>\n\n")
        assert given(text).input_ids == expected(text).input_ids


def test_half_precision_is_made_wider(shelf: Path, tmp_path: Path) -> None:
    _, file = write_both("sd1", shelf)
    half = Model(name="half", path=tmp_path / "half.safetensors", title="half", family="sd1")
    save_file({name: t.half() for name, t in load_file(file.path).items()}, half.path)
    given = parts(half)["unet"].state_dict()
    for name, exact in parts(file)["unet"].state_dict().items():
        assert given[name].dtype == torch.float32
        assert torch.equal(given[name], exact.half().float())


def test_whole_numbers_stay_where_they_are_in_the_file(shelf: Path) -> None:
    """No second copy: what needs no change is mapped, not read."""
    file = write_both("sd1", shelf)[1]
    places = [p.data_ptr() for p in parts(file)["unet"].parameters()]
    assert max(places) - min(places) < file.path.stat().st_size


def test_scaled_eight_bit_weights_are_scaled_back(shelf: Path, tmp_path: Path) -> None:
    _, file = write_both("sd1", shelf)
    name = "model.diffusion_model.middle_block.1.transformer_blocks.0.ff.net.2.weight"
    whole = load_file(file.path)
    squeezed = Model(name="squeezed", path=tmp_path / "squeezed.safetensors", title="squeezed", family="sd1")
    scale = whole[name].abs().max() / 400
    small = {name: (whole[name] / scale).to(torch.float8_e4m3fn), name.replace(".weight", ".scale_weight"): scale}
    save_file(whole | small, squeezed.path)
    given = parts(squeezed)["unet"].state_dict()["mid_block.attentions.0.transformer_blocks.0.ff.net.2.weight"]
    assert torch.allclose(given, whole[name], atol=float(scale) * 20)
    assert not torch.equal(given, whole[name])


@pytest.mark.parametrize("name", ["flux-dev", "flux2-klein"])
def test_scaled_weights_that_are_divided_are_scaled_back(name: str, shelf: Path, tmp_path: Path) -> None:
    _, file = write_both(name, shelf)
    tensors = load_file(file.path)
    for key, tensor in list(tensors.items()):
        if key.startswith("model.diffusion_model.") and tensor.dim() == 2:
            scale = tensor.abs().max() / 400
            tensors[key] = (tensor / scale).to(torch.float8_e4m3fn)
            tensors[key.replace(".weight", ".weight_scale")] = scale
            tensors[key.replace(".weight", ".input_scale")] = torch.tensor(1.0)
    squeezed = replace(file, path=tmp_path / "squeezed.safetensors")
    save_file(tensors, squeezed.path)
    given, expected = (parts(model)["transformer"].state_dict() for model in (squeezed, file))
    for key, exact in expected.items():
        assert torch.allclose(given[key], exact, atol=float(exact.abs().max()) / 20), key


def test_a_model_that_was_trained_down_to_pure_noise_says_so(tmp_path: Path) -> None:
    marked = Model(name="marked", path=tmp_path / "marked.safetensors", title="marked", family="sdxl", zero_snr=True)
    assert reading.scheduler(marked).config.rescale_betas_zero_snr


# --- what cannot be read says so in one sentence


def broken_files(folder: Path) -> Iterator[tuple[str, bytes, str]]:
    whole = (folder / "sd1.safetensors").read_bytes()
    yield "truncated", whole[: len(whole) // 2], "is damaged or cut short"
    yield "empty", b"", "is empty"
    yield "zero-header", bytes(64), "is damaged: its header is not JSON"
    yield "huge-header", (100 << 30).to_bytes(8, "little") + bytes(64), "is damaged or cut short"
    yield "text", b"version https://git-lfs.github.com/spec/v1", "is damaged or cut short"
    yield "nothing", b"\x02\0\0\0\0\0\0\0{}", "has no tokenizer|has no text encoder"


@pytest.mark.parametrize("number", range(6))
def test_a_broken_file_says_what_is_wrong(number: int, shelf: Path, tmp_path: Path) -> None:
    write_both("sd1", shelf)
    name, content, reason = list(broken_files(shelf))[number]
    file = tmp_path / f"{name}.safetensors"
    file.write_bytes(content)
    with pytest.raises(ModelBroken, match=rf"^the model {name} cannot be loaded: {name}\.safetensors ({reason})"):
        parts(Model(name=name, path=file, title=name, family="sd1"))


def test_weights_that_are_missing_are_named(shelf: Path, tmp_path: Path) -> None:
    _, file = write_both("sd1", shelf)
    whole = load_file(file.path)
    lacking = Model(name="lacking", path=tmp_path / "lacking.safetensors", title="lacking", family="sd1")
    save_file({key: t for key, t in whole.items() if "middle_block.0.in_layers" not in key}, lacking.path)
    with pytest.raises(ModelBroken, match=r"as unet: it lacks weights: mid_block\.resnets\.0"):
        parts(lacking)


def test_a_file_of_an_unknown_family_says_what_there_is(shelf: Path) -> None:
    _, file = write_both("sd1", shelf)
    with pytest.raises(ModelBroken, match=r"is of an unknown family; what can be read is .*flux, .*sd1, sd2"):
        parts(Model(name="odd", path=file.path, title="odd"))


def test_a_file_for_a_pipeline_that_is_not_run_says_so(shelf: Path) -> None:
    _, file = write_both("qwen-image", shelf)
    with pytest.raises(ModelBroken, match=r"is a model for QwenImageEditPipeline; what can be run is .*FluxPipeline"):
        parts(replace(file, variant="edit"))
    _, file = write_both("flux2-klein", shelf)
    with pytest.raises(ModelBroken, match=r"is a Flux\.2, dev: such ones are read from folders only"):
        parts(replace(file, edition="dev"))


def test_a_text_encoder_of_another_size_is_named(shelf: Path, tmp_path: Path) -> None:
    _, whole = write_both("z-image", shelf)
    _, words = apart(whole, tmp_path)
    heads = {"num_attention_heads": 1, "num_key_value_heads": 1, "head_dim": 16}
    sizes = {"hidden_size": 48, "intermediate_size": 8, "num_hidden_layers": 1, "vocab_size": 300}
    encoder = Qwen3Model(Qwen3Config(**heads, **sizes))
    save_file({f"model.{key}": t for key, t in encoder.state_dict().items()}, words)
    small = replace(whole, path=tmp_path / "diffusion_models/z-image.safetensors")
    given = {**whole.beside, "qwen3": words, "vae": tmp_path / "vae/some.safetensors"}
    with pytest.raises(ModelBroken, match="transformer wants text of width 32, the text encoder gives 48"):
        parts(replace(small, beside=given))


def test_a_file_that_has_gone_says_so(tmp_path: Path) -> None:
    with pytest.raises(ModelBroken, match="is not there any more"):
        parts(Model(name="gone", path=tmp_path / "gone.safetensors", title="gone", family="sd1"))


def parts(model: Model) -> dict[str, Any]:
    family = reading.family_of(model)
    return reading.parts(model, family, reading.dtypes(model, family, torch.float32))


def transformer_of(model: Model) -> dict[str, torch.Tensor]:
    """By the names of its authors."""
    prefix = "model.diffusion_model."
    return {key.removeprefix(prefix): t for key, t in load_file(model.path).items() if key.startswith(prefix)}


def apart(whole: Model, models: Path) -> tuple[str, Path]:
    """The parts of a file as files of a models folder; what the text encoder is called, and its file."""
    tensors = load_file(whole.path)
    (label,) = [key.removesuffix(" tokenizer") for key in whole.beside]
    starts = {"model.diffusion_model.": "diffusion_models", "vae.": "vae", "text_encoders.": "text_encoders"}
    for start, folder in starts.items():
        own = {key.removeprefix(start): t for key, t in tensors.items() if key.startswith(start)}
        if folder == "text_encoders":
            own = {key.partition(".transformer.")[2]: t for key, t in own.items()}
        (models / folder).mkdir()
        save_file(own, models / folder / f"{whole.path.stem if folder == 'diffusion_models' else 'some'}.safetensors")
    return label, models / "text_encoders" / "some.safetensors"


def picture(engine: Engine, model: Model, tmp_path: Path) -> Any:
    images = ImageStore(tmp_path)
    given = {"init_image": put(images, photo())} if model.variant == "edit" else {}
    drawn = draw(engine, images, model=model.name, steps=3, prompt=WORDS, width=64, height=64, **given)
    return np.asarray(Image.open(io.BytesIO(drawn.pictures[0].data))).astype(int)


def assert_same(given: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert given.keys() == expected.keys()
    assert all(torch.equal(given[key], value) for key, value in expected.items())
