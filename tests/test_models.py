"""Loading models: what is kept, what is refused, and in which words."""

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKL, StableDiffusionInpaintPipeline, UNet2DConditionModel
from safetensors.torch import load_file, save_file

from backend import catalog
from backend.catalog import Catalog
from backend.diffusion import memory
from backend.diffusion.memory import Budget
from backend.diffusion.models import Loaded, ModelStore
from backend.diffusion.samplers import SigmaScheduler
from backend.errors import ModelBroken
from backend.request import Task
from tests.tiny import tiny_model

pytest_plugins = ["tests.tiny"]
CPU = torch.device("cpu")
UNET = "unet/diffusion_pytorch_model.safetensors"


@pytest.fixture
def copied(tiny_models: Path, tmp_path: Path) -> Catalog:
    """A catalogue of one model that a test may break."""
    shutil.copytree(tiny_models / "checkpoints" / "tiny", tmp_path / "checkpoints" / "mine")
    return Catalog(tmp_path)


def load(models: Catalog, name: str = "", store: ModelStore | None = None) -> Loaded:
    return (store or ModelStore(CPU)).load(models.find(name))


def folder(models: Catalog) -> Path:
    return models.folder / "checkpoints" / "mine"


def test_a_model_is_read_once(tiny_catalog: Catalog) -> None:
    store = ModelStore(CPU)
    assert load(tiny_catalog, "tiny", store) is load(tiny_catalog, "tiny", store)


def test_the_scheduler_is_ours_with_the_models_own_config(tiny_catalog: Catalog) -> None:
    scheduler = load(tiny_catalog, "tiny-v").pipeline.scheduler
    assert isinstance(scheduler, SigmaScheduler)
    assert scheduler.config.prediction_type == "v_prediction"
    assert scheduler.config.beta_schedule == "scaled_linear"


def test_weights_are_float32_on_the_processor_whatever_the_file_holds(copied: Catalog) -> None:
    file = folder(copied) / UNET
    save_file({name: t.half() for name, t in load_file(file).items()}, file, {"format": "pt"})
    assert {p.dtype for p in load(copied).pipeline.unet.parameters()} == {torch.float32}


def test_text_encoders_of_before_and_after_transformers_5_load(copied: Catalog) -> None:
    file = folder(copied) / "text_encoder" / "model.safetensors"
    bare = {name.removeprefix("text_model."): t for name, t in load_file(file).items()}
    before = load(copied).pipeline.text_encoder.state_dict()
    for prefix in ("", "text_model."):
        save_file({prefix + name: t for name, t in bare.items()}, file, {"format": "pt"})
        after = load(copied).pipeline.text_encoder.state_dict()
        assert all(torch.equal(after[name], t) for name, t in before.items())


def test_the_layouts_of_older_files_load(copied: Catalog) -> None:
    """Stable Diffusion 1.5's own: attention of the VAE under its old names, a buffer of old text encoders."""
    names = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    before = load(copied).pipeline.vae.state_dict()
    file = folder(copied) / "vae" / "diffusion_pytorch_model.safetensors"
    renamed = {}
    for name, weights in load_file(file).items():
        for new, old in names.items():
            name = name.replace(f".{new}.", f".{old}.")
        renamed[name] = weights
    assert any("proj_attn" in name for name in renamed)
    save_file(renamed, file, {"format": "pt"})
    file = folder(copied) / "text_encoder" / "model.safetensors"
    save_file(load_file(file) | {"embeddings.position_ids": torch.arange(77)[None]}, file, {"format": "pt"})
    after = load(copied).pipeline.vae.state_dict()
    assert all(torch.equal(after[name], weights) for name, weights in before.items())


def test_a_folder_that_holds_half_precision_alone_loads(copied: Catalog) -> None:
    """As diffusers names its files then; the UNet's are several."""
    before = load(copied).pipeline.unet.state_dict()
    for file in folder(copied).glob("*/*.safetensors"):
        file.rename(file.with_suffix(".fp16.safetensors"))
    (folder(copied) / UNET.replace(".safe", ".fp16.safe")).unlink()
    unet = UNet2DConditionModel.from_config(UNet2DConditionModel.load_config(folder(copied) / "unet"))
    unet.load_state_dict(before)
    unet.half().save_pretrained(folder(copied) / "unet", variant="fp16", max_shard_size="20KB")
    loaded = load(copied)
    assert len([*(folder(copied) / "unet").glob("*.fp16-*-of-*.safetensors")]) > 1
    assert all(torch.equal(t, before[name].half().float()) for name, t in loaded.pipeline.unet.state_dict().items())
    assert loaded.size == sum(p.nbytes for part in loaded.sizes for p in getattr(loaded.pipeline, part).parameters())


def test_several_models_are_kept_within_the_budget(tiny_catalog: Catalog) -> None:
    roomy, narrow = ModelStore(CPU, Budget(1 << 30)), ModelStore(CPU, Budget(1))
    for store in (roomy, narrow):
        load(tiny_catalog, "tiny", store)
        load(tiny_catalog, "tiny-v", store)
    assert roomy.is_loaded(tiny_catalog.find("tiny"))
    assert not narrow.is_loaded(tiny_catalog.find("tiny"))
    assert narrow.is_loaded(tiny_catalog.find("tiny-v"))


def test_the_model_used_longest_ago_makes_room(tiny_catalog: Catalog, copied: Catalog) -> None:
    size = load(tiny_catalog, "tiny").size
    store = ModelStore(CPU, Budget(size * 5 // 2))
    for name in ("tiny", "tiny-v", "tiny"):
        load(tiny_catalog, name, store)
    load(copied, "mine", store)
    assert store.is_loaded(tiny_catalog.find("tiny"))
    assert not store.is_loaded(tiny_catalog.find("tiny-v"))


def test_a_model_whose_files_changed_is_read_again(copied: Catalog) -> None:
    store = ModelStore(CPU)
    before = load(copied, "", store)
    weights = load_file(folder(copied) / UNET)
    save_file({name: t + 1 for name, t in weights.items()}, folder(copied) / UNET, {"format": "pt"})
    after = load(copied, "", store)
    assert after is not before
    assert after.fingerprint.result() != before.fingerprint.result()


def test_the_fingerprint_is_worked_out_once(copied: Catalog, monkeypatch: pytest.MonkeyPatch) -> None:
    store, calls = ModelStore(CPU), list[Path]()

    def counted(path: Path) -> str:
        calls.append(path)
        return "abc"

    monkeypatch.setattr("backend.diffusion.models.fingerprint", counted)
    load(copied, "", store).fingerprint.result()
    store.free()
    assert load(copied, "", store).fingerprint.result() == "abc"
    assert len(calls) == 1


def test_a_file_that_could_not_be_hashed_is_hashed_again(copied: Catalog) -> None:
    """It has gone while it was read, or its disk hiccuped."""
    failing = [FileNotFoundError(2, "No such file or directory", "/home/jane/mine")]

    def digest(path: Path) -> str:
        if failing:
            raise failing.pop()
        return "abc"

    store = ModelStore(CPU, digest=digest)
    with pytest.raises(ModelBroken, match=r"^the model in mine cannot be read any more \(No such file or dire"):
        load(copied, "", store).fingerprint.result()
    assert load(copied, "", store).fingerprint.result() == "abc"


def test_the_fingerprint_is_that_of_the_catalogue(copied: Catalog) -> None:
    assert load(copied).fingerprint.result() == catalog.fingerprint(folder(copied))


def test_another_pipeline_shares_the_weights(tiny_catalog: Catalog) -> None:
    loaded = load(tiny_catalog, "tiny")
    inpainting = loaded.pipeline_for(Task.INPAINT, {})
    assert isinstance(inpainting, StableDiffusionInpaintPipeline)
    assert inpainting.unet is loaded.pipeline.unet
    assert loaded.pipeline_for(Task.IMAGE_TO_IMAGE, {}) is loaded.pipeline


def test_the_map_of_the_preview_follows_the_vae(tiny_catalog: Catalog) -> None:
    assert load(tiny_catalog, "tiny").colours.shape == (5, 3)


# --- broken folders: one sentence, with the model and the file


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def edit(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text("utf-8")) | changes), "utf-8")


def without_a_layer(path: Path) -> None:
    save_file({n: t for n, t in load_file(path).items() if n != "conv_in.weight"}, path, {"format": "pt"})


def with_a_wrong_shape(path: Path) -> None:
    changed = {n: t[:1].contiguous() if n == "conv_in.weight" else t for n, t in load_file(path).items()}
    save_file(changed, path, {"format": "pt"})


BREAKAGES: dict[str, tuple[Callable[[Path], Any], str]] = {
    "weights cut short": (lambda f: cut(f / UNET), f"{UNET} is damaged or cut short"),
    "empty weights": (lambda f: (f / UNET).write_bytes(b""), f"{UNET} is damaged or cut short"),
    "no weights": (lambda f: (f / UNET).unlink(), f"{UNET} is missing"),
    "a layer too few": (lambda f: without_a_layer(f / UNET), "unet lacks weights or has wrong ones: conv_in.weight"),
    "a layer of a wrong shape": (lambda f: with_a_wrong_shape(f / UNET), "unet .*conv_in"),
    "a config that is no JSON": (lambda f: cut(f / "vae/config.json"), "vae/config.json cannot be read"),
    "a config that is a list": (
        lambda f: (f / "vae/config.json").write_text("[]"),
        "vae/config.json is no JSON object",
    ),
    "a config of nonsense": (lambda f: edit(f / "unet/config.json", block_out_channels=[0]), "unet cannot be read"),
    "no config": (lambda f: (f / "text_encoder/config.json").unlink(), "text_encoder/config.json is missing"),
    "no text encoder": (lambda f: shutil.rmtree(f / "text_encoder"), "text_encoder/model.safetensors is missing"),
    "no tokenizer": (lambda f: shutil.rmtree(f / "tokenizer"), "tokenizer is missing"),
    "a tokenizer cut short": (lambda f: cut(f / "tokenizer/tokenizer.json"), "tokenizer cannot be read"),
    "no scheduler": (lambda f: shutil.rmtree(f / "scheduler"), "scheduler/scheduler_config.json is missing"),
    "an unknown prediction": (
        lambda f: edit(f / "scheduler/scheduler_config.json", prediction_type="tea leaves"),
        "scheduler/scheduler_config.json prediction_type 'tea leaves' is unknown",
    ),
    "an index cut short": (lambda f: cut(f / "model_index.json"), "cannot be read"),
    "another pipeline": (
        lambda f: edit(f / "model_index.json", _class_name="CosmosPipeline"),
        "model_index.json asks for 'CosmosPipeline', which is recognised, but not run: it makes films",
    ),
    "a pipeline of its own": (
        lambda f: edit(f / "model_index.json", _class_name=["pipeline", "Mine"]),
        "model_index.json asks for .*Mine.*, which is not known here",
    ),
    "a component of its own": (
        lambda f: edit(f / "model_index.json", unet=["my_unet", "Mine"]),
        r"model_index.json asks for \['my_unet', 'Mine'\] as unet",
    ),
    "an adapter of its own": (
        lambda f: (f / "text_encoder/adapter_config.json").write_text("{}"),
        "text_encoder/adapter_config.json does not belong there",
    ),
    "only a pickle": (
        lambda f: (f / UNET).rename(f / "unet/diffusion_pytorch_model.bin"),
        f"{UNET} is missing",
    ),
}


@pytest.mark.parametrize("breakage", BREAKAGES)
def test_a_broken_model_says_what_is_wrong_with_it(copied: Catalog, breakage: str) -> None:
    break_it, words = BREAKAGES[breakage]
    break_it(folder(copied))
    with pytest.raises(ModelBroken, match=words) as raised:
        ModelStore(CPU).load(copied.find("mine"))
    message = str(raised.value)
    assert "the model mine" in message
    assert "\n" not in message
    assert str(copied.folder) not in message


def swap(part: str, module: Any, models: Path) -> None:
    shutil.rmtree(models / part)
    module.save_pretrained(models / part, safe_serialization=True)


def test_parts_that_do_not_fit_together_are_refused(copied: Catalog) -> None:
    small = {"block_out_channels": (4,), "norm_num_groups": 1}
    swap("vae", AutoencoderKL(**small, latent_channels=8), folder(copied))
    with pytest.raises(ModelBroken, match="unet wants latents of 4 channels, the VAE gives 8"):
        load(copied)
    blocks = {"down_block_types": ("CrossAttnDownBlock2D",), "up_block_types": ("CrossAttnUpBlock2D",)}
    swap("unet", UNet2DConditionModel(**small, **blocks, cross_attention_dim=8, attention_head_dim=2), folder(copied))
    with pytest.raises(ModelBroken, match="unet wants text of width 8, the text encoder gives 16"):
        load(copied)


def test_an_inpainting_checkpoint_sees_a_mask_over_everything_if_nobody_gives_it_one(tmp_path: Path) -> None:
    tiny_model(tmp_path / "checkpoints" / "nine", in_channels=9)
    pipeline = load(Catalog(tmp_path)).pipeline
    seen: list[torch.Tensor] = []
    pipeline.unet.conv_in.register_forward_pre_hook(lambda _, arguments: seen.append(arguments[0]))
    hidden = torch.zeros(2, 1, 16)
    with torch.inference_mode():
        pipeline.unet(torch.zeros(2, 4, 8, 6), 1, hidden)
        pipeline.unet(torch.full((2, 9, 8, 6), 0.5), 1, hidden)
    assert seen[0].shape == (2, 9, 8, 6)
    assert torch.equal(seen[0][:, 4], torch.ones(2, 8, 6))
    assert torch.equal(seen[1], torch.full((2, 9, 8, 6), 0.5))


def test_a_model_that_failed_to_load_can_be_mended(copied: Catalog, tiny_models: Path) -> None:
    store = ModelStore(CPU)
    cut(folder(copied) / UNET)
    with pytest.raises(ModelBroken):
        load(copied, "", store)
    shutil.copy(tiny_models / "checkpoints" / "tiny" / UNET, folder(copied) / UNET)
    assert load(copied, "", store)


def test_what_lies_beside_the_checkpoints_is_read_once_and_makes_room_first(
    tiny_catalog: Catalog, tmp_path: Path
) -> None:
    path, read = tmp_path / "control.safetensors", []

    def net(of: Path) -> torch.nn.Module:
        read.append(of)
        return torch.nn.Linear(64, 64)

    path.write_bytes(b"x" * 16_000)
    store = ModelStore(CPU, Budget(1))
    store.load(tiny_catalog.find("tiny"))
    first = store.keep(path, net)
    assert store.keep(path, net) is first
    assert read == [path]
    assert store.is_loaded(tiny_catalog.find("tiny"))  # the one in use stays

    path.write_bytes(b"y" * 16_001)
    assert store.keep(path, net) is not first
    assert len(read) == 2

    store.load(tiny_catalog.find("tiny-v"))
    assert not store.is_loaded(tiny_catalog.find("tiny"))
    store.keep(path, net)
    assert len(read) == 3
    assert store.fingerprint(path).result() == hashlib.sha256(path.read_bytes()).hexdigest()


def test_what_a_picture_is_drawn_with_is_not_taken_off_the_card(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lies_on: dict[torch.nn.Module, str] = {}
    monkeypatch.setattr(torch.nn.Module, "to", lambda module, device, *_: lies_on.update({module: str(device)}))
    monkeypatch.setattr(memory, "free_vram", lambda device: 1 << 40)
    monkeypatch.setattr(memory, "release", lambda device: None)
    store = ModelStore(torch.device("cuda"), Budget(1 << 40, 150))
    nets = []
    for name in ("one", "two"):
        (tmp_path / name).write_bytes(b"x" * 100)
        nets.append(store.keep(tmp_path / name, lambda path: torch.nn.Linear(5, 5)))
    assert [lies_on[net] for net in nets] == ["cuda", "cuda"]  # though both are more than there is for them
