"""Training a LoRA: what it learns, what it leaves on the disk, how it stops, goes on and fails."""

import errno
import hashlib
import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import torch
from peft import get_peft_model_state_dict
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file

from backend import cli_options, registry
from backend.catalog import Catalog
from backend.diffusion.engine import Engine
from backend.errors import Conflict, InvalidRequest, NotFound, StorageFull, TrainingFailed
from backend.images import ImageStore
from backend.manifest import HOME
from backend.params import validate
from backend.result import JobCancelled
from backend.training import base as bases
from backend.training import dataset, kohya, records
from backend.training.latents import Latents
from backend.training.lora import ADAPTER, Trainer, targets
from backend.training.params import Schedule, TrainParams, relief
from backend.training.session import Progress, Report, Session
from tests import single_files
from tests.tiny import draw

pytest_plugins = ["tests.tiny"]

QUICK: dict[str, Any] = {
    "resolution": 64,
    "steps": 6,
    "batch_size": 2,
    "rank": 2,
    "alpha": 1,
    "learning_rate": 1e-2,
    "sample_every": 0,
    "save_every": 2,
    "warmup": 0,
}
ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="session")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five of them, of two shapes."""
    folder = tmp_path_factory.mktemp("pictures")
    for number in range(5):
        colours = np.random.default_rng(number).integers(0, 255, (4, 4, 3), np.uint8)
        size = (64, 64) if number % 2 else (128, 64)
        Image.fromarray(colours).resize(size, Image.Resampling.NEAREST).save(folder / f"{number}.png")
        (folder / f"{number}.txt").write_text(f"a red circle, picture {number}")
    return folder


class Place:
    """Where trainings of a test are kept."""

    def __init__(self, folder: Path, models: Path, pictures: Path) -> None:
        self.root, self.pictures, self.models = folder / "training", pictures, models
        self.catalog = Catalog(models, "tiny")
        self.loras = folder / "loras"

    def begin(self, name: str = "demo", data: Path | None = None, **values: Any) -> Session:
        given = validate(TrainParams, {"model": "tiny", **QUICK, **values})
        return self.session(records.begin(self.root, name, data or self.pictures, given))

    def resume(self, name: str = "demo", **changes: Any) -> Session:
        return self.session(records.resume(self.root, name, changes))

    def session(self, training: records.Training) -> Session:
        return Session(training, self.catalog, self.loras, self.root / ".latents", "cpu")

    def trainer(self, **values: Any) -> Trainer:
        given = validate(TrainParams, {"model": "tiny", **QUICK, **values})
        model = bases.load(self.catalog.find(given.model), torch.device("cpu"), torch.float32)
        plan = dataset.plan(dataset.scan(self.pictures, given), given, model.bucket_step)
        return Trainer(model, plan, Latents(model, self.root / ".latents"))


@pytest.fixture
def place(tmp_path: Path, tiny_models: Path, pictures: Path) -> Place:
    return Place(tmp_path, tiny_models, pictures)


@pytest.fixture
def place_xl(tmp_path: Path, tiny_xl_models: Path, pictures: Path) -> Place:
    return Place(tmp_path, tiny_xl_models, pictures)


def quiet(progress: Progress) -> None:
    """A report that lets it go on."""


def stop_at(step: int) -> Report:
    def report(progress: Progress) -> None:
        if progress.stage == "training" and progress.step == step:
            raise JobCancelled

    return report


def same(one: Path, other: Path) -> bool:
    """Whether two files hold the same tensors, to the bit."""
    a, b = load_file(one), load_file(other)
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


def state_of(path: Path) -> Any:
    return torch.load(path, weights_only=True)


def equal(one: Any, other: Any) -> bool:
    """To the bit, tensors anywhere within."""
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(equal(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(equal, one, other))
    return bool(one == other)


# --- learning


@pytest.mark.parametrize("model", ["tiny", "tiny-v"])
def test_it_learns_the_pictures(place: Place, model: str) -> None:
    trainer = place.trainer(model=model, steps=60, validation=0.4, schedule="constant", rank=8, alpha=8)
    before = trainer.validate()
    for _ in range(60):
        trainer.step()
    assert trainer.validate() < before * 0.97
    assert trainer.validate() == trainer.validate()


@pytest.mark.parametrize("model", ["tiny", "tiny-v"])
def test_the_loss_is_that_of_diffusers_own_script(place: Place, model: str) -> None:
    """`examples/text_to_image/train_text_to_image_lora.py` with noise offset and min-SNR, written out."""
    trainer = place.trainer(model=model, noise_offset=0.1, min_snr_gamma=5)
    trainer.step()
    base, batch = trainer.base, next(b for n in range(9) if len(b := trainer.plan.batch(n)) == 2)
    found = trainer._loss(batch, torch.Generator().manual_seed(3))
    generator = torch.Generator().manual_seed(3)
    clean = torch.stack([trainer.latents.of(example) for example in batch])
    noise = torch.randn(clean.shape, generator=generator) + 0.1 * torch.randn(2, 4, 1, 1, generator=generator)
    levels = ((torch.arange(2) + torch.rand(2, generator=generator)) / 2 * 1000).long()
    kept = base.noise.alphas_cumprod[levels][:, None, None, None]
    told = base.parts["tokenizer"]([e.caption for e in batch], padding="max_length", return_tensors="pt")
    noisy = kept.sqrt() * clean + (1 - kept).sqrt() * noise
    read = base.unet(noisy, levels, base.parts["text_encoder"](told.input_ids)[0]).sample
    velocity = kept.sqrt() * noise - (1 - kept).sqrt() * clean
    ratio = (kept / (1 - kept)).flatten()
    weights = ratio.clamp(max=5) / (ratio + 1 if model == "tiny-v" else ratio)
    expected = (read - (velocity if model == "tiny-v" else noise)).square().mean(dim=(1, 2, 3)) * weights
    assert torch.allclose(found, expected, rtol=1e-5)


def test_nothing_but_the_adapters_changes(place: Place) -> None:
    trainer = place.trainer(text_encoder_lr=1e-2)
    kept = {
        f"{part}.{key}": tensor.clone()
        for part, module in trainer.base.parts.items()
        if isinstance(module, torch.nn.Module)
        for key, tensor in module.state_dict().items()
        if "lora" not in key
    }
    trainer.step()
    for part, module in trainer.base.parts.items():
        if isinstance(module, torch.nn.Module):
            for key, tensor in module.state_dict().items():
                if "lora" not in key:
                    assert torch.equal(tensor, kept[f"{part}.{key}"]), key


def test_a_checkpoint_that_is_one_file_learns_the_same(tmp_path: Path, pictures: Path) -> None:
    losses = []
    for model in single_files.write_both("sd1", tmp_path):
        given = validate(TrainParams, {"model": model.name, **QUICK})
        base = bases.load(model, torch.device("cpu"), torch.float32)
        plan = dataset.plan(dataset.scan(pictures, given), given, base.bucket_step)
        trainer = Trainer(base, plan, Latents(base, tmp_path / "latents"))
        losses.append([trainer.step().loss for _ in range(2)])
        assert len(base.fingerprint) == 64
    assert losses[0] == losses[1]


@pytest.mark.parametrize("optimizer", ["AdamW", "Adafactor", "Prodigy"])
def test_every_optimizer_follows_every_schedule(place: Place, optimizer: str) -> None:
    for schedule in get_args(Schedule):
        trainer = place.trainer(optimizer=optimizer, schedule=schedule, steps=4)
        seen = []
        for _ in range(4):
            seen.append(trainer.rates.get_last_lr()[0])
            trainer.optimizer.step()
            trainer.rates.step()
        assert seen[0] == QUICK["learning_rate"]
        assert (seen[-1] < 0.6 * seen[0]) == (schedule != "constant")


@pytest.mark.parametrize("optimizer", ["AdamW", "Adafactor", "Prodigy"])
def test_a_checkpoint_goes_on_to_the_same_weights(place: Place, optimizer: str) -> None:
    values = {"optimizer": optimizer, "ema": 0.9, "dropout": 0.2, "accumulation": 2, "flip": True, "shuffle": True}
    values |= {"text_encoder_lr": 1e-2, "noise_offset": 0.1, "caption_dropout": 0.3}
    values |= {"schedule": "cosine_with_restarts", "restarts": 2, "warmup": 0.2}
    one = place.trainer(**values)
    for _ in range(2):
        one.step()
    torch.save(one.state(), place.root / "state.pt")
    losses = [one.step().loss for _ in range(3)]
    other = place.trainer(**values)
    torch.rand(7)  # whatever else is drawn meanwhile
    other.load(state_of(place.root / "state.pt"))
    assert [other.step().loss for _ in range(3)] == losses
    assert equal(other.state(), one.state())
    assert equal(other.learnt(), one.learnt())


def test_pictures_drawn_meanwhile_change_nothing(place: Place) -> None:
    one, other = place.trainer(validation=0.2), place.trainer(validation=0.2)
    sample = validate(TrainParams, {"sample_prompts": "a red circle --w 64 --h 64 --s 2"}).samples()[0]
    drawn = one.base.draw(sample)
    for _ in range(3):
        one.step()
        other.step()
        one.base.draw(sample)
        one.validate()
    assert equal(one.learnt(), other.learnt())
    assert one.base.draw(sample).tobytes() != drawn.tobytes()


def test_the_average_is_what_is_kept(place: Place) -> None:
    trainer = place.trainer(ema=0.5)
    for _ in range(4):
        trainer.step()
    averaged, raw = trainer.learnt()["unet"], dict(get_peft_model_state_dict(trainer.base.unet, adapter_name=ADAPTER))
    assert any(not torch.equal(averaged[key], raw[key]) for key in raw)


def test_convolutions_learn_only_if_asked(place: Place) -> None:
    unet = place.trainer().base.unet
    assert not any("resnets" in name for name in targets(unet, "attention"))
    assert any(name.endswith("resnets.0.conv1") for name in targets(unet, "attention_convs"))
    assert any(name.endswith("downsamplers.0.conv") for name in targets(unet, "attention_convs"))


def test_regularisation_images_weigh_as_asked(place: Place, tmp_path: Path, pictures: Path) -> None:
    for kind in ("img/1_a", "reg/1_b"):
        (tmp_path / "set" / kind).mkdir(parents=True)
    (tmp_path / "set/img/1_a/0.png").write_bytes((pictures / "1.png").read_bytes())
    (tmp_path / "set/reg/1_b/0.png").write_bytes((pictures / "3.png").read_bytes())
    place.pictures = tmp_path / "set"
    trainer = place.trainer(prior_weight=0.5)
    full, half = place.trainer(prior_weight=1.0), trainer
    batch = trainer.plan.batch(0)
    assert {example.item.regular for example in batch} == {True, False}
    losses = [t._loss(batch, torch.Generator().manual_seed(1)).detach() for t in (full, half)]
    ratio = (losses[1] / losses[0]).tolist()
    assert ratio == pytest.approx([0.5 if e.item.regular else 1.0 for e in batch])


def test_half_precision_trains_float32_adapters(place: Place) -> None:
    given = validate(TrainParams, {"model": "tiny", **QUICK})
    model = bases.load(place.catalog.find("tiny"), torch.device("cpu"), torch.bfloat16)
    plan = dataset.plan(dataset.scan(place.pictures, given), given, model.bucket_step)
    trainer = Trainer(model, plan, Latents(model, place.root / ".half"))
    assert trainer.step().loss > 0
    assert {weight.dtype for weight in trainer.weights} == {torch.float32}
    assert model.unet.conv_in.weight.dtype is torch.bfloat16


@pytest.mark.parametrize("model", ["tiny", "tiny-xl"])
def test_half_precision_draws_samples(place_xl: Place, model: str) -> None:
    base = bases.load(place_xl.catalog.find(model), torch.device("cpu"), torch.bfloat16)
    sample = validate(TrainParams, {"sample_prompts": "a red circle --w 64 --h 64 --s 2 --n blue"}).samples()[0]
    assert base.draw(sample).size == (64, 64)


def test_gradient_checkpointing_computes_the_same(place: Place) -> None:
    plain, thrifty = (
        place.trainer(text_encoder_lr=1e-3),
        place.trainer(text_encoder_lr=1e-3, gradient_checkpointing=True),
    )
    assert [plain.step().loss for _ in range(3)] == pytest.approx([thrifty.step().loss for _ in range(3)], rel=1e-4)


# --- the file


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, tiny_models: Path, pictures: Path) -> tuple[Session, Any]:
    """A whole training, with all that can be had on the way."""
    place = Place(tmp_path_factory.mktemp("whole"), tiny_models, pictures)
    session = place.begin(
        text_encoder_lr=1e-3,
        modules="attention_convs",
        sample_every=3,
        sample_steps=2,
        sample_prompts="a red circle\na blue square --d 5",
        validation=0.2,
        validate_every=3,
        trigger="zwx",
        licence="CC0",
        author="Ann",
        notes="What it is for.",
    )
    return session, session.run(quiet)


def test_every_tensor_of_the_file_is_loaded_by_diffusers(finished: tuple[Session, Any], tiny_models: Path) -> None:
    from diffusers import StableDiffusionPipeline

    _, result = finished
    trained = load_file(result.files["diffusers"])
    for file in ("weights", "diffusers"):
        pipeline = StableDiffusionPipeline.from_pretrained(tiny_models / "checkpoints" / "tiny", safety_checker=None)
        pipeline.load_lora_weights(result.files[file])
        loaded = {
            f"{name}.{key}": tensor
            for name, part in (("unet", pipeline.unet), ("text_encoder", pipeline.text_encoder))
            for key, tensor in get_peft_model_state_dict(part, adapter_name="default_0").items()
        }
        assert loaded.keys() == trained.keys()
        assert any("text_encoder" in key for key in loaded)
        assert any("conv1" in key for key in loaded)
        assert all(torch.allclose(loaded[key].float(), trained[key], atol=1e-3) for key in loaded)
        scaling = {m.scaling["default_0"] for m in pipeline.unet.modules() if hasattr(m, "scaling")}
        assert scaling == {0.5}


def test_sdxl_is_trained_and_every_tensor_loaded(place_xl: Place) -> None:
    from diffusers import StableDiffusionXLPipeline

    session = place_xl.begin(model="tiny-xl", text_encoder_lr=1e-3, modules="attention_convs", steps=2)
    result = session.run(quiet)
    names = list(load_file(result.files["weights"]))
    assert any(name.startswith("lora_te1_text_model_encoder_layers_0_self_attn_q_proj.") for name in names)
    assert any(name.startswith("lora_te2_text_model_") for name in names)
    trained = load_file(result.files["diffusers"])
    pipeline = StableDiffusionXLPipeline.from_pretrained(place_xl.models / "checkpoints" / "tiny-xl")
    pipeline.load_lora_weights(result.files["diffusers"])
    loaded = get_peft_model_state_dict(pipeline.unet, adapter_name="default_0")
    assert {f"unet.{key}" for key in loaded} == {key for key in trained if key.startswith("unet.")}
    assert len(pipeline.text_encoder_2.peft_config) == 1
    with safe_open(result.files["weights"], "pt") as file:
        assert file.metadata()["ss_base_model_version"] == "sdxl_base_v1-0"
        assert file.metadata()["modelspec.architecture"] == "stable-diffusion-xl-v1-base/lora"


@pytest.mark.parametrize("model", ["tiny", "tiny-xl"])
def test_the_engine_draws_with_it(place_xl: Place, tmp_path: Path, model: str) -> None:
    models = tmp_path / "models"
    models.mkdir()
    (models / "checkpoints").symlink_to(place_xl.models / "checkpoints")
    place_xl.loras = models / "loras"
    place_xl.begin(model=model, text_encoder_lr=1e-2, modules="attention_convs").run(quiet)
    extensions = registry.load(HOME, only={"lora"}, models=models)
    engine = Engine(Catalog(models, model), extensions, "cpu")
    images = ImageStore(tmp_path / "inputs")
    plain, zero, full = (
        draw(engine, images, model=model, prompt=f"a red circle{tag}").pictures[0]
        for tag in ("", " <lora:demo:0>", " <lora:demo:1>")
    )
    pixels = [Image.open(io.BytesIO(picture.data)).tobytes() for picture in (plain, zero, full)]
    assert pixels[0] == pixels[1] != pixels[2]
    engine.close()


def test_sdxl_layers_have_the_names_of_the_original_code() -> None:
    """By diffusers' own map from them, on the shape of SDXL's UNet."""
    from diffusers.loaders.lora_conversion_utils import (
        _convert_non_diffusers_lora_to_diffusers,
        _maybe_map_sgm_blocks_to_diffusers,
    )
    from diffusers.utils.state_dict_utils import convert_unet_state_dict_to_peft

    layers = [
        *("down_blocks.1.attentions.0.transformer_blocks.1.attn1.to_q", "down_blocks.2.attentions.1.proj_in"),
        *("mid_block.attentions.0.transformer_blocks.9.ff.net.0.proj", "mid_block.resnets.1.conv2"),
        *("up_blocks.0.attentions.2.transformer_blocks.0.attn2.to_out.0", "up_blocks.1.resnets.2.conv_shortcut"),
        *("down_blocks.0.resnets.1.conv1", "up_blocks.2.resnets.0.time_emb_proj", "down_blocks.1.downsamplers.0.conv"),
    ]
    learnt = {"unet": {f"{layer}.lora_{ab}.weight": torch.ones(1, 1) for layer in layers for ab in "AB"}}
    names = kohya.kohya(learnt, 1, is_xl=True)
    assert "lora_unet_input_blocks_4_1_transformer_blocks_1_attn1_to_q.lora_down.weight" in names
    assert "lora_unet_middle_block_2_out_layers_3.alpha" in names

    class Config:
        layers_per_block = 2

    mapped = _maybe_map_sgm_blocks_to_diffusers(dict(names), Config())
    read, _ = _convert_non_diffusers_lora_to_diffusers(mapped)
    plain = {key.removeprefix("unet."): tensor for key, tensor in read.items()}
    assert set(convert_unet_state_dict_to_peft(plain)) == set(learnt["unet"])


def test_the_file_says_all_of_itself(finished: tuple[Session, Any]) -> None:
    _, result = finished
    with safe_open(result.files["weights"], "pt") as file:
        said = file.metadata()
        names = list(file.keys())
        assert file.get_tensor(next(n for n in names if n.endswith(".alpha"))).item() == 1
    assert {name.partition("_")[0] for name in names} == {"lora"}
    expected = {
        "ss_output_name": "demo",
        "ss_network_module": "networks.lora",
        "ss_network_dim": "2",
        "ss_network_alpha": "1.0",
        "ss_base_model_version": "sd_v1",
        "ss_sd_model_name": "tiny",
        "ss_steps": "6",
        "ss_resolution": "(64, 64)",
        "ss_num_train_images": "4",
        "modelspec.title": "demo",
        "modelspec.architecture": "stable-diffusion-v1/lora",
        "modelspec.author": "Ann",
        "modelspec.license": "CC0",
        "modelspec.trigger_phrase": "zwx",
        "modelspec.prediction_type": "epsilon",
    }
    assert {key: said[key] for key in expected} == expected
    assert sum(sum(tags.values()) for tags in json.loads(said["ss_tag_frequency"]).values()) == 10
    assert json.loads(said["ss_bucket_info"])["buckets"]
    assert said["modelspec.thumbnail"].startswith("data:image/jpeg;base64,")
    data = result.files["weights"].read_bytes()
    behind = data[8 + int.from_bytes(data[:8], "little") :]
    assert said["sshs_model_hash"] == hashlib.sha256(behind).hexdigest()
    assert len(said["sshs_legacy_hash"]) == 8


def test_card_and_preview_lie_beside_it(finished: tuple[Session, Any]) -> None:
    session, result = finished
    files = sorted(path.name for path in session.loras.iterdir())
    assert files == ["demo.json", "demo.preview.png", "demo.safetensors"]
    card = json.loads(result.files["card"].read_text())
    assert card["activation text"] == "zwx"
    assert card["sd version"] == "SD1"
    assert card["description"] == "What it is for."


def test_samples_losses_and_weights_are_kept(finished: tuple[Session, Any]) -> None:
    session, _ = finished
    training = session.training
    assert sorted(training.samples) == [0, 3, 6]
    assert [row["step"] for row in training.history if "loss" in row] == [1, 2, 3, 4, 5, 6]
    assert [row["step"] for row in training.history if "validation" in row] == [0, 3, 6]
    assert [path.stem for path in training.checkpoints] == ["000004", "000006"]  # the last two
    assert [training.weights(step).exists() for step in (2, 4, 6)] == [True] * 3
    assert Image.open(training.folder / "loss.png").size == (720, 320)
    assert Image.open(training.folder / "samples.png").width > 128


def test_the_first_row_of_samples_is_the_untrained_model(finished: tuple[Session, Any], place: Place) -> None:
    session, _ = finished
    model = bases.load(place.catalog.find("tiny"), torch.device("cpu"), torch.float32)
    for number, sample in enumerate(session.training.params.samples()):
        drawn = Image.open(session.training.samples[0][number])
        assert model.draw(sample).tobytes() == drawn.convert("RGB").tobytes()
        assert drawn.tobytes() != Image.open(session.training.samples[6][number]).tobytes()


# --- stopping and going on


def test_a_stopped_training_is_saved_and_goes_on(place: Place) -> None:
    whole = place.begin("whole", save_every=0).run(quiet)
    with pytest.raises(JobCancelled):
        place.begin(save_every=0).run(stop_at(3))
    assert records.read(place.root, "demo").done == 3
    result = place.resume().run(quiet)
    assert same(result.files["weights"], whole.files["weights"])
    steps = [row["step"] for row in records.read(place.root, "demo").history]
    assert steps == [1, 2, 3, 4, 5, 6]


KILLED = """
import os, signal, sys
from pathlib import Path
import torch
torch.set_num_threads(1)
from backend.catalog import Catalog
from backend.training import records
from backend.training.session import Session

root, models = Path(sys.argv[1]), Path(sys.argv[2])
session = Session(records.read(root, "demo"), Catalog(models, "tiny"), root / "loras", root / ".latents", "cpu")

def report(progress):
    if (progress.stage, progress.step) == ("training", 9):
        os.kill(os.getpid(), signal.SIGKILL)

session.run(report)
"""


def test_killed_and_resumed_gives_the_same_weights(place: Place) -> None:
    values: dict[str, Any] = {
        "steps": 16,
        "save_every": 4,
        "ema": 0.9,
        "dropout": 0.1,
        "text_encoder_lr": 1e-3,
        "validation": 0.2,
    }
    whole = place.begin("whole", **values).run(quiet)
    place.begin(**values)
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", KILLED, str(place.root), str(place.models)]
    assert subprocess.run(command, env=environment).returncode == -signal.SIGKILL
    kept = records.read(place.root, "demo")
    assert kept.done == 8
    (kept.checkpoint(8).parent / ".000009.pt.0a1b2c3d.tmp").touch()  # it might have been at that
    result = place.resume().run(quiet)
    assert not list(kept.folder.rglob("*.tmp"))
    assert same(result.files["weights"], whole.files["weights"])
    states = [state_of(records.read(place.root, name).checkpoint(16)) for name in ("demo", "whole")]
    assert equal(*states)


def test_a_save_and_a_sample_can_be_asked_for(place: Place) -> None:
    def report(progress: Progress) -> set[Any]:
        return {"save", "sample"} if progress.stage == "training" and progress.step == 3 else set()

    session = place.begin(save_every=0, sample_every=100, sample_steps=1)
    session.run(report)
    assert [path.stem for path in session.training.checkpoints] == ["000003", "000006"]
    assert sorted(session.training.samples) == [0, 3, 6]


def test_more_steps_and_another_rate_can_be_had_later(place: Place) -> None:
    place.begin().run(quiet)
    heard: list[Progress] = []
    place.resume(steps=8, learning_rate=1e-3).run(heard.append)
    assert [p.step for p in heard if p.stage == "training"] == [7, 8]
    assert max(p.rate or 0 for p in heard) <= 1e-3


def test_what_has_shaped_the_weights_cannot_change(place: Place) -> None:
    place.begin().run(quiet)
    for name, value in {"rank": 4, "text_encoder_lr": 1e-4, "learning_rate": 0}.items():
        with pytest.raises(InvalidRequest, match=f"{name}: cannot change so when a training goes on"):
            place.resume(**{"text_encoder_lr": 1e-4, name: value})
    place.resume(rank=2)  # as it is


def test_a_set_that_changes_meanwhile_changes_nothing(place: Place, tmp_path: Path, pictures: Path) -> None:
    whole = place.begin("whole").run(quiet)
    folder = shutil.copytree(pictures, tmp_path / "set")
    with pytest.raises(JobCancelled):
        place.begin(data=folder).run(stop_at(2))
    (folder / "0.txt").write_text("something else")
    (folder / "1.png").unlink()
    result = place.resume().run(quiet)
    assert same(result.files["weights"], whole.files["weights"])
    shutil.rmtree(place.root / ".latents")
    with pytest.raises(NotFound, match=r"1\.png is not the picture any more that it was"):
        place.resume(steps=8).run(quiet)


def test_a_millionth_step_comes_after_the_others(place: Place) -> None:
    training = place.begin().training
    for folder in ("checkpoints", "samples"):
        (training.folder / folder).mkdir()
    for step in (999_999, 1_000_000):
        training.checkpoint(step).touch()
        training.sample(step, 0).touch()
    assert (training.done, list(training.samples)) == (1_000_000, [999_999, 1_000_000])


def test_there_is_one_training_of_a_name(place: Place) -> None:
    with pytest.raises(JobCancelled):
        place.begin().run(stop_at(3))
    with pytest.raises(Conflict, match="there is a training demo already, at step 3"):
        place.begin()
    session = place.session(records.begin(place.root, "demo", place.pictures, validate(TrainParams, QUICK), True))
    assert session.training.done == 0


def test_two_cannot_run_the_same_training(place: Place) -> None:
    session = place.begin()

    def report(progress: Progress) -> None:
        if progress.stage == "training":
            with pytest.raises(Conflict, match="is running already"):
                place.resume().run(quiet)
            with pytest.raises(Conflict, match="is running; stop it first"):
                records.begin(place.root, "demo", place.pictures, TrainParams(), overwrite=True)
            raise JobCancelled

    with pytest.raises(JobCancelled):
        session.run(report)


def test_pictures_are_encoded_once(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    place.begin(steps=1).run(quiet)
    monkeypatch.setattr(bases.Base, "latents_of", lambda *_: pytest.fail("encoded again"))
    place.begin("second", steps=1).run(quiet)


# --- before it begins


def test_a_rehearsal_says_what_it_takes_and_leaves_nothing(place: Place) -> None:
    given = validate(TrainParams, {**QUICK, "model": "tiny", "validation": 0.2, "sample_every": 3, "sample_steps": 1})
    session = place.session(records.draft(place.root, "demo", place.pictures, given))
    found = session.rehearse(quiet)
    assert found.numbers["images"] == 5
    assert found.numbers["held_out"] == 1
    assert found.numbers["steps"] == 6
    assert found.seconds > 0
    assert found.memory > 0
    assert not (place.root / "demo").exists()
    assert not place.loras.exists()
    assert "Each picture is seen 3 times" in found.warnings[0]


def test_one_picture_is_warned_of(place: Place, tmp_path: Path, pictures: Path) -> None:
    (tmp_path / "one").mkdir()
    (tmp_path / "one" / "a.png").write_bytes((pictures / "1.png").read_bytes())
    given = validate(TrainParams, {**QUICK, "model": "tiny"})
    found = place.session(records.draft(place.root, "demo", tmp_path / "one", given)).rehearse(quiet)
    assert found.warnings[0].startswith("There is one picture only")
    assert "1 of the files have no caption." in found.warnings


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"bucket_step": 8}, "bucket_step: tiny needs a multiple of 16"),
        ({"precision": "fp16"}, "precision: fp16 cannot be trained on the processor"),
        ({"clip_skip": 9}, "clip_skip: the text encoder of tiny has 3 layers"),
        ({"optimizer": "AdamW8bit"}, "optimizer: the 8-bit AdamW needs the package bitsandbytes"),
    ],
)
def test_what_cannot_work_is_refused(place: Place, values: dict[str, Any], said: str) -> None:
    with pytest.raises(InvalidRequest, match=said):
        place.begin(**values).run(quiet)


def test_latents_that_nobody_asks_for_any_more_are_deleted(place: Place) -> None:
    place.begin(steps=1).run(quiet)
    used = set((place.root / ".latents").glob("*/*"))
    (place.root / ".latents" / "00").mkdir(exist_ok=True)
    (place.root / ".latents" / "00" / "unused.safetensors").touch()
    for path in (place.root / ".latents").glob("*/*"):
        os.utime(path, (0, 0))
    place.begin("again", steps=1).run(quiet)
    assert set((place.root / ".latents").glob("*/*")) == used


def test_a_full_disk_is_foreseen(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda path: type("Usage", (), {"free": 1000})())
    with pytest.raises(StorageFull, match="are free"):
        place.begin().run(quiet)


# --- failing


def fail_at(step: int, how: Callable[[torch.Tensor], torch.Tensor], monkeypatch: pytest.MonkeyPatch) -> None:
    loss = Trainer._loss

    def failing(self: Trainer, *arguments: Any) -> torch.Tensor:
        found = loss(self, *arguments)
        return how(found) if self.done + 1 == step else found

    monkeypatch.setattr(Trainer, "_loss", failing)


def test_nan_stops_and_says_where(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    fail_at(5, lambda loss: loss * torch.nan, monkeypatch)
    with pytest.raises(TrainingFailed, match=r"\(NaN\) at step 5; the last good checkpoint is of step 4"):
        place.begin().run(quiet)
    monkeypatch.undo()
    kept = records.read(place.root, "demo")
    assert kept.done == 4
    assert all(torch.isfinite(t).all() for t in load_file(kept.weights(4)).values())
    place.resume(learning_rate=1e-3).run(quiet)


def test_stopped_while_its_last_sample_is_drawn_it_has_a_preview_all_the_same(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    schedule = bases.reading.schedule
    monkeypatch.setattr(bases.reading, "schedule", lambda model: {**schedule(model), "rescale_betas_zero_snr": True})

    def stop(progress: Progress) -> None:
        if (progress.stage, progress.step) == ("sampling", 1):
            raise JobCancelled

    with pytest.raises(JobCancelled):
        place.begin(model="tiny-v", steps=1, sample_every=1, sample_steps=1).run(stop)
    found = place.resume().run(quiet)
    assert found.files["preview"].is_file()
    with safe_open(found.files["weights"], "pt") as file:
        said = file.metadata()
    assert (said["ss_base_model_version"], said["modelspec.prediction_type"]) == ("sd_v1_v", "v")
    assert (said["ss_zero_terminal_snr"], said["ss_sd_model_hash"]) == ("True", "None")


def test_a_validation_of_no_number_stops_before_it_is_saved(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    loss = Trainer._loss

    def failing(self: Trainer, *arguments: Any) -> torch.Tensor:
        is_validation = len(arguments) == 3
        return loss(self, *arguments) * (torch.nan if is_validation and self.done == 4 else 1)

    monkeypatch.setattr(Trainer, "_loss", failing)
    with pytest.raises(TrainingFailed, match=r"held out .* \(NaN\) at step 4; the last good checkpoint is of step 2"):
        place.begin(validation=0.2, validate_every=2).run(quiet)
    kept = records.read(place.root, "demo")
    assert kept.done == 2
    json.dumps(kept.history, allow_nan=False)


def test_lack_of_memory_says_which_setting_helps(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    def exhaust(loss: torch.Tensor) -> torch.Tensor:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")

    fail_at(3, exhaust, monkeypatch)
    with pytest.raises(TrainingFailed, match="out of memory on cpu: set gradient_checkpointing=true; it can go on"):
        place.begin().run(quiet)
    values = {"gradient_checkpointing": True, "batch_size": 1, "text_encoder_lr": 1e-3}
    for name, save_every, said in (("learnt", 2, "begin anew"), ("fresh", 0, "it can go on")):
        with pytest.raises(TrainingFailed, match=f"set text_encoder_lr=0.0; {said} with that"):
            place.begin(name, save_every=save_every, **values).run(quiet)


def test_memory_is_saved_by_what_costs_least_first() -> None:
    values = {"batch_size": 4, "text_encoder_lr": 1e-5, "rank": 32, "alpha": 32, "resolution": 512}
    given = validate(TrainParams, values)
    tried = []
    while changes := relief(given):
        tried.append(next(iter(changes)))
        given = validate(TrainParams, {**given.model_dump(), **changes})
    assert list(dict.fromkeys(tried)) == [
        *("gradient_checkpointing", "batch_size", "text_encoder_lr", "optimizer", "rank", "resolution")
    ]
    assert given.batch_size * given.accumulation == 4


def test_a_slower_training_is_one_that_can_be(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    fail_at(2, lambda loss: loss * torch.nan, monkeypatch)
    with pytest.raises(TrainingFailed) as failed:
        place.begin(optimizer="Prodigy", learning_rate=1, text_encoder_lr=1).run(quiet)
    assert failed.value.changes == {"learning_rate": 0.5, "text_encoder_lr": 0.5}
    monkeypatch.undo()
    place.resume(**failed.value.changes).run(quiet)
    thrifty = validate(TrainParams, {"optimizer": "Prodigy", "learning_rate": 1, "gradient_checkpointing": True})
    assert relief(thrifty) == {"optimizer": "Adafactor", "learning_rate": 1e-4}


def test_a_full_disk_keeps_the_last_checkpoint(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    session = place.begin()
    sync = os.fsync

    def full(handle: int) -> None:
        if records.read(place.root, "demo").done:
            raise OSError(errno.ENOSPC, "No space left on device")
        sync(handle)

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StorageFull, match="the disk is full"):
        session.run(quiet)
    monkeypatch.undo()
    kept = records.read(place.root, "demo")
    assert kept.done == 2
    assert not list(kept.folder.rglob("*.tmp"))
    place.resume().run(quiet)


@pytest.mark.skipif(os.name == "nt", reason="limits of POSIX")
@pytest.mark.parametrize(
    ("stage", "said"), [("training", "the disk does not take it"), ("saving", "for diffusers was not saved")]
)
def test_where_the_disk_is_full_is_said(place: Place, stage: str, said: str) -> None:
    import resource

    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    session = place.begin(save_every=0, steps=3, rank=32)

    def fill(progress: Progress) -> None:
        training = session.training
        growing = training.folder / "history.jsonl" if stage == "training" else training.weights(3)
        if progress.stage == stage and growing.is_file():
            resource.setrlimit(resource.RLIMIT_FSIZE, (growing.stat().st_size * 5 // 4, before[1]))

    try:
        with pytest.raises(StorageFull, match=said):
            session.run(fill)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert not records.read(place.root, "demo").is_done
    place.resume().run(quiet)
    kept = records.read(place.root, "demo")
    assert kept.is_done
    assert [row["step"] for row in kept.history] == [1, 2, 3]


# --- the command line


@pytest.fixture
def command(tmp_path: Path, tiny_models: Path, pictures: Path) -> Callable[..., int]:
    from backend import cli

    def run(*arguments: str) -> int:
        places = [f"--data-dir={tmp_path / 'data'}", f"--models-dir={tmp_path / 'models'}"]
        with pytest.raises(SystemExit) as ended:
            cli.main(["train", *arguments, *places])
        assert isinstance(ended.value.code, int)
        return ended.value.code

    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "checkpoints").symlink_to(tiny_models / "checkpoints")
    return run


SET = [f"--set={name}={value}" for name, value in QUICK.items()]


def test_the_command_trains(command: Callable[..., int], pictures: Path, tmp_path: Path, capsys: Any) -> None:
    assert command("--model=tiny", f"--data={pictures}", "--out=demo", *SET) == 0
    assert str(tmp_path / "models" / "loras" / "demo.safetensors") in capsys.readouterr().out
    assert command("--model=tiny", f"--data={pictures}", "--out=demo", *SET) == cli_options.FAILED
    assert "there is a training demo already, at step 6" in capsys.readouterr().err
    assert command("--resume", "--out=demo", "--set=steps=7") == 0
    assert records.read(tmp_path / "data" / "training", "demo").done == 7


def test_the_command_rehearses(command: Callable[..., int], pictures: Path, capsys: Any) -> None:
    assert command("--preset=style", "--model=tiny", f"--data={pictures}", "--out=demo", *SET, "--dry-run") == 0
    said = capsys.readouterr().out
    assert re.match(r"5 pictures, 0 of them held out; \d of \d+x\d+", said)
    assert "note: Each picture is seen 2 times" in said


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--out=demo"], "--data is missing"),
        (["--out=demo", "--data=nowhere"], "--data nowhere: there is no such folder"),
        (["--out=../demo", "--data={set}"], "--out: '../demo' cannot be the name of a LoRA"),
        (["--out=demo", "--data={set}", "--preset=stile"], "'stile' is not a preset; there are character"),
        (["--out=demo", "--data={set}", "--model=none"], "'none' is not a model here"),
        (["--out=demo", "--data={set}", "--set=rnak=3"], "--set rnak: is not a parameter"),
        (["--out=demo", "--data={set}", "--set=rank"], "--set rank: write it as name=value"),
        (["--out=demo", "--resume"], "there is no training demo; there are none"),
        (["--out=demo", "--resume", "--preset=style"], "leave them out"),
    ],
)
def test_the_command_says_what_is_wrong(
    command: Callable[..., int], pictures: Path, arguments: list[str], said: str, capsys: Any
) -> None:
    assert command(*(a.format(set=pictures) for a in arguments)) in (cli_options.BAD_INPUT, cli_options.FAILED)
    error = capsys.readouterr().err
    assert said in error
    assert "Traceback" not in error


def test_a_command_that_was_refused_can_be_put_right(
    command: Callable[..., int], pictures: Path, tmp_path: Path, capsys: Any
) -> None:
    (tmp_path / "empty").mkdir()
    assert command("--model=tiny", f"--data={tmp_path / 'empty'}", "--out=demo", *SET) == cli_options.BAD_INPUT
    assert "there is no picture to learn from in empty" in capsys.readouterr().err
    assert command("--model=tiny", f"--data={pictures}", "--out=demo", *SET, "--set=steps=1") == 0


def test_a_lora_of_somebody_else_is_not_replaced(
    command: Callable[..., int], pictures: Path, tmp_path: Path, capsys: Any
) -> None:
    (tmp_path / "models" / "loras").mkdir()
    (tmp_path / "models" / "loras" / "demo.safetensors").write_bytes(b"theirs")
    assert command("--model=tiny", f"--data={pictures}", "--out=demo", *SET) == cli_options.BAD_INPUT
    assert "there is a LoRA of that name already" in capsys.readouterr().err
    assert (tmp_path / "models" / "loras" / "demo.safetensors").read_bytes() == b"theirs"


@pytest.mark.slow
def test_ctrl_c_saves_and_the_rest_can_be_had_later(place: Place, tmp_path: Path) -> None:
    command = [sys.executable, "app.py", "train", "--model=tiny", f"--data={place.pictures}", "--out=demo", *SET]
    command += [f"--data-dir={tmp_path / 'data'}", f"--models-dir={place.models}", "--set=steps=100000"]
    command += ["--set=save_every=0"]
    process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True)
    history = tmp_path / "data" / "training" / "demo" / "history.jsonl"
    while process.poll() is None and not (history.exists() and history.stat().st_size):
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=120)
    assert process.returncode == cli_options.INTERRUPTED, said
    assert "stopped; --resume goes on" in said
    assert records.read(tmp_path / "data" / "training", "demo").done > 0
