"""The starter's ControlNets: what they are trained on, how they are scored, and the shipped ones."""

from __future__ import annotations

import math
import random
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import ControlNetModel, UNet2DConditionModel
from PIL import Image

from backend.testing import ROOT, Studio
from tools.starter import adopt, control, control_scores, export, store, unet, world

SHIPPED = store.MODEL_DIR / "controlnet"
SLOW_SEEDS = 20


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """Two threads on a busy machine wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def base() -> UNet2DConditionModel:
    return unet.new_unet()


def test_near_covers_far() -> None:
    def disc(colour: str, dx: float, depth: int) -> world.Item:
        return world.Item("circle", colour, dx=dx, scale=0.5, depth=depth)

    for near, far in (("red", "blue"), ("blue", "red")):
        items = [disc(colour, dx, 235 if colour == near else 150) for colour, dx in (("red", -8), ("blue", 8))]
        drawing = world.render(world.Scene("white", tuple(items)))
        assert np.abs(drawing.picture[64, 64].astype(int) - world.COLOURS[near]).max() < 6, far
        assert drawing.depth[64, 64] == 235


def test_limbs_replace_those_of_the_pose() -> None:
    arms, legs = ((-0.6, -0.3), (-0.9, -0.6), (0.5, 0.0), (0.8, 0.3)), world._LEGS["standing"]
    limbs = (*arms, *legs)
    drawing = world.render(world.Scene("white", (world.Item("person", "blue", limbs=limbs),)))
    (points,) = drawing.keypoints
    radius = world.SIZES["large"] * world.SIZE
    assert np.allclose(points[[3, 4, 6, 7]], np.array(arms) * radius + world.SIZE / 2)
    assert all(drawing.labels[int(y), int(x)] for x, y in points)


def test_free_scenes_stay_inside_and_are_never_held_out() -> None:
    scenes = [world.sample_scene(seed, control.STAGE) for seed in range(200)]
    assert not any(world.is_held_out(scene) for scene in scenes)
    assert {len(scene.items) for scene in scenes} == {1, 2}
    for scene in scenes[:60]:
        labels = world.render(scene).labels
        assert labels.any()
        assert not labels[0].any()


def test_colour_caption_names_no_shape() -> None:
    rng = random.Random(0)
    nouns = {noun for names in world.SHAPE_WORDS.values() for noun in names}
    for seed in range(100):
        scene = world.sample_scene(seed, control.STAGE)
        said = set(world.colour_caption(scene, rng).replace(",", "").split())
        assert not said & nouns
        assert all(said & set(world.COLOUR_WORDS[item.colour]) for item in scene.items)


@pytest.mark.parametrize("kind", list(control_scores.TRIED))
def test_scores_of_true_and_of_other_drawings(kind: str) -> None:
    trials = control_scores.trials(kind, 12)
    assert all(world.is_held_out(trial.scene) for trial in trials)
    pictures = np.stack([trial.drawing.picture for trial in trials])
    right = control_scores.scores(kind, pictures, trials)
    wrong = control_scores.scores(kind, np.roll(pictures, 1, axis=0), trials)
    for name in right:
        better, worse = (wrong, right) if name.endswith("error") else (right, wrong)
        assert better[name] > worse[name] + 0.05, name
        assert right[name] <= 0.05 if name.endswith("error") else right[name] >= 0.9, name


def test_a_new_net_changes_nothing_and_is_ready_to_learn(base: UNet2DConditionModel) -> None:
    net = control.new_net(base)
    condition = control.as_condition(
        torch.from_numpy(np.stack([trial.map for trial in control_scores.trials("canny", 4)])).permute(0, 3, 1, 2)
    )
    control.settle(net.controlnet_cond_embedding, condition)
    with torch.no_grad():
        assert 0.5 < net.controlnet_cond_embedding(condition).std() < 1.5
        down, mid = net(
            torch.randn(4, 4, 16, 16), 500, torch.randn(4, 77, 128), controlnet_cond=condition, return_dict=False
        )
    assert not any(residual.any() for residual in (*down, mid))


def test_a_step_leaves_the_base_alone(base: UNet2DConditionModel) -> None:
    base.requires_grad_(False)
    before = {name: p.clone() for name, p in base.named_parameters()}
    trainer = control.Trainer(base, unet.Hints(base).requires_grad_(False), ("canny", "depth"))
    generator = torch.Generator().manual_seed(0)
    batch = torch.randn(2, 4, 16, 16), torch.full((2, 9, 16, 16), 1 / 9), torch.randn(2, 77, 128)
    reader = trainer.nets.readers["depth"].conv_in.weight.clone()
    assert math.isfinite(trainer.train_step("canny", *batch, torch.rand(2, 3, 128, 128), generator, 1e-3))
    assert all(torch.equal(p, before[name]) for name, p in base.named_parameters())
    assert trainer.nets.trunk.controlnet_mid_block.weight.any()
    assert torch.equal(trainer.nets.readers["depth"].conv_in.weight, reader)
    again = control.Trainer(base, unet.Hints(base), ("canny", "depth"))
    again.load(trainer.state())
    assert torch.equal(again.averaged_net("canny").conv_in.weight, trainer.averaged_net("canny").conv_in.weight)


# --- the shipped nets -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", control.KINDS)
def test_shipped_net_fits_the_shipped_model(kind: str) -> None:
    net = ControlNetModel.from_pretrained(SHIPPED / kind, local_files_only=True)
    model = UNet2DConditionModel.from_pretrained(store.MODEL_DIR / "unet", local_files_only=True)
    weights = SHIPPED / kind / "diffusion_pytorch_model.safetensors"
    assert weights.stat().st_size < 8e6
    assert net.config.block_out_channels == model.config.block_out_channels
    assert net.config.cross_attention_dim == model.config.cross_attention_dim
    assert net.controlnet_mid_block.weight.any()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "measure", "at_least", "without_at_most"),
    [("canny", "edge recall", 0.8, 0.4), ("openpose", "joints right", 0.65, 0.2), ("depth", "line right", 0.8, 0.3)],
)
def test_pictures_follow_their_maps(kind: str, measure: str, at_least: float, without_at_most: float) -> None:
    trials = control_scores.trials(kind, SLOW_SEEDS)

    def drawn(studio: Studio, seed: int, trial: control_scores.Trial, units: list[dict[str, str]]) -> np.ndarray:
        found = studio.draw(
            trial.prompt, width=128, height=128, steps=20, seed=seed, extensions={"controlnet": {"units": units}}
        )
        return np.asarray(found.picture.convert("RGB"))

    with Studio(Path(ROOT, "extensions", "controlnet")) as studio:
        units = [[{"model": f"starter_{kind}", "map": studio.image(Image.fromarray(trial.map))}] for trial in trials]
        led = np.stack([drawn(studio, k, trial, units[k]) for k, trial in enumerate(trials)])
        free = np.stack([drawn(studio, k, trial, []) for k, trial in enumerate(trials)])
    assert control_scores.scores(kind, led, trials)[measure] >= at_least
    assert control_scores.scores(kind, free, trials)[measure] <= without_at_most


def test_training_goes_on_from_the_landed_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(control, "SCENES", 64)
    adopt.adopt(store.MODEL_DIR, tmp_path, minutes=0)
    landed, nets = export.parts_of(store.MODEL_DIR), control.nets_of(store.MODEL_DIR)
    base, hints, samples = control.frozen_base(tmp_path)
    assert samples == 145_888
    assert all(torch.equal(p, base.get_parameter(name)) for name, p in landed.unet.named_parameters())
    trainer = control.newest_trainer("openpose", base, hints, tmp_path)
    assert trainer.samples >= 39_776
    again = trainer.averaged_net("openpose")
    assert all(torch.equal(p, again.get_parameter(name)) for name, p in nets["openpose"].named_parameters())
