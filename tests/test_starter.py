"""The starter model's world, scorer and shipped weights."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import CLIPTokenizer

from tools.starter import detect, evaluate, muon, store, text_encoder, tokenizer, world

MODEL = store.MODEL_DIR

RED, BLUE = (np.array(world.COLOURS[name]) for name in ("red", "blue"))


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """Two threads on a busy machine wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def person(pose: str = "waving") -> world.Scene:
    return world.Scene("white", (world.Item("person", "green", pose=pose),))


def test_same_seed_draws_the_same_picture() -> None:
    one, other = (world.render(world.sample_scene(7)) for _ in range(2))
    assert np.array_equal(one.picture, other.picture)
    assert not np.array_equal(one.picture, world.render(world.sample_scene(8)).picture)


def test_maps_agree_with_the_picture() -> None:
    scene = world.Scene("blue", (world.Item("square", "red"),))
    drawing = world.render(scene)
    inside = drawing.labels == world.SHAPES.index("square") + 1
    assert np.abs(drawing.picture[inside].astype(int).mean(0) - RED).max() < 6
    assert drawing.depth[inside].min() > drawing.depth[~inside].max()
    edges = world.canny_map(drawing)[..., 0] > 0
    assert edges.any()
    assert not edges[:10].any()
    assert not edges[60:68, 60:68].any()
    assert (world.outline(drawing)[edges] == 0).all()


@pytest.mark.parametrize("pose", world.POSES)
def test_keypoints_lie_on_the_person(pose: str) -> None:
    drawing = world.render(person(pose))
    (points,) = drawing.keypoints
    assert points.shape == (len(world.KEYPOINTS), 2)
    for x, y in points:
        assert drawing.labels[int(y), int(x)] == world.SHAPES.index("person") + 1
    assert world.pose_map(drawing).max() > 100


def test_nobody_has_no_skeleton() -> None:
    drawing = world.render(world.Scene("red", (world.Item("tree", "green"),)))
    assert drawing.keypoints == ()
    assert world.pose_map(drawing).max() == 0


def test_label_shares_sum_to_one() -> None:
    shares = world.label_fractions(world.render(world.sample_scene(3)).labels)
    assert shares.shape == (9, 16, 16)
    assert np.allclose(shares.sum(0), 1)


@pytest.mark.parametrize("stage", list(world.STAGES))
def test_held_out_combinations_are_never_sampled(stage: str) -> None:
    assert not any(world.is_held_out(world.sample_scene(seed, stage)) for seed in range(300))


@pytest.mark.parametrize("kind", ["plain", "placed", "place", "pair"])
def test_trials_are_held_out(kind: str) -> None:
    trials = evaluate.held_out_trials(kind, 120)
    assert all(world.is_held_out(trial.scene) for trial in trials)
    assert trials == evaluate.held_out_trials(kind, 120)


@pytest.mark.parametrize(("stage", "least"), [("simple", 1.0), ("sizes", 0.99), ("all", 0.9)])
def test_detector_reads_true_drawings(stage: str, least: float) -> None:
    scenes = [world.sample_scene(seed, stage) for seed in range(40)]
    right = [detect.score(world.render(scene).picture, scene).all for scene in scenes]
    assert np.mean(right) >= least


@pytest.mark.parametrize("kind", ["plain", "placed", "place", "pair"])
def test_detector_reads_true_trials(kind: str) -> None:
    trials = evaluate.held_out_trials(kind, 24)
    pictures = np.stack([world.render(trial.scene).picture for trial in trials])
    assert evaluate.scores(pictures, trials)["all"] >= (0.9 if kind == "place" else 0.95)


def test_detector_notices_what_is_wrong() -> None:
    scene = world.Scene("blue", (world.Item("circle", "red"),))
    picture = world.render(world.Scene("blue", (world.Item("star", "green", "medium", "left"),))).picture
    assert detect.score(picture, scene) == detect.Score(background=True, colour=False, shape=False, position=False)


def test_caption_says_what_is_not_default() -> None:
    rng = random.Random(0)
    scene = world.Scene("green", (world.Item("star", "pink", "small", "left"),))
    for _ in range(50):
        text = world.caption(scene, rng).lower()
        assert "pink" in text
        assert "star" in text
        assert "left" in text
        assert "green" in text
        assert any(word in text for word in world.SIZE_WORDS["small"])


def test_attributes_follow_the_scene() -> None:
    answers = dict(zip(text_encoder.ATTRIBUTES, text_encoder.attributes(person("cheering")), strict=True))
    assert world.POSES[answers["pose"]] == "cheering"
    assert world.BACKGROUNDS[answers["background"]] == "white"
    assert answers["second shape"] == 0


def test_muon_step_is_orthogonal() -> None:
    product = muon.orthogonalised(torch.randn(2, 16, 48, generator=torch.Generator().manual_seed(0)))
    singular = torch.linalg.svdvals(product)
    assert singular.min() > 0.6
    assert singular.max() < 1.3


def test_checkpoint_is_whole_or_old(tmp_path: Path) -> None:
    store.save(tmp_path / "a" / "x.pt", {"step": 1})
    store.save(tmp_path / "a" / "x.pt", {"step": 2})
    assert store.load(tmp_path / "a" / "x.pt") == {"step": 2}
    assert [p.name for p in (tmp_path / "a").iterdir()] == ["x.pt"]


def test_learnt_tokenizer_round_trips() -> None:
    tokens = tokenizer.new_tokenizer()
    text = "a small red circle on the left, blue background"
    assert tokens.decode(tokens(text).input_ids, skip_special_tokens=True).replace(" ,", ",").strip() == text
    assert tokens.eos_token_id == len(tokens) - 1
    assert len(tokens("a red circle on a blue background").input_ids) == 9


# --- the shipped model ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def pipeline():
    from diffusers import StableDiffusionPipeline

    loaded = StableDiffusionPipeline.from_pretrained(MODEL, local_files_only=True, torch_dtype=torch.float32)
    loaded.set_progress_bar_config(disable=True)
    return loaded


def test_shipped_model_is_small() -> None:
    sizes = [path.stat().st_size for path in MODEL.rglob("*") if path.is_file()]
    assert sum(sizes) < 30e6
    assert max(sizes) < 12e6


def test_shipped_model_is_stable_diffusion_1(pipeline) -> None:
    assert [
        type(part).__name__ for part in (pipeline.tokenizer, pipeline.text_encoder, pipeline.vae, pipeline.unet)
    ] == ["CLIPTokenizer", "CLIPTextModel", "AutoencoderKL", "UNet2DConditionModel"]
    assert pipeline.vae.config.scaling_factor == 0.18215
    assert pipeline.scheduler.config.prediction_type == "v_prediction"
    assert pipeline.scheduler.config.beta_schedule == "scaled_linear"
    for name in ("vocab.json", "merges.txt"):
        assert (MODEL / "tokenizer" / name).exists()


def test_shipped_vocabulary_files_agree(pipeline) -> None:
    vocabulary = json.loads((MODEL / "tokenizer" / "vocab.json").read_text(encoding="utf-8"))
    merges = (MODEL / "tokenizer" / "merges.txt").read_text(encoding="utf-8").splitlines()[1:]
    again = CLIPTokenizer(vocab=vocabulary, merges=[tuple(line.split(" ")) for line in merges])
    text = "two purple stars at night, masterpiece"
    ids = pipeline.tokenizer(text).input_ids
    assert ids == again(text).input_ids
    assert pipeline.tokenizer.decode(ids, skip_special_tokens=True).replace(" ,", ",").strip() == text


def test_latents_are_normalised(pipeline) -> None:
    pictures = torch.from_numpy(np.stack([world.render(world.sample_scene(s)).picture for s in range(24)])).permute(
        0, 3, 1, 2
    )
    with torch.no_grad():
        latents = (
            pipeline.vae.encode(pictures.float() / 127.5 - 1).latent_dist.mean * pipeline.vae.config.scaling_factor
        )
    assert latents.mean((0, 2, 3)).abs().max() < 0.6
    assert latents.std((0, 2, 3)).min() > 0.4
    assert latents.std((0, 2, 3)).max() < 1.6


def test_red_circle_on_blue(pipeline) -> None:
    picture = (
        pipeline(
            "a red circle on a blue background",
            height=128,
            width=128,
            num_inference_steps=20,
            guidance_scale=3.0,
            generator=torch.Generator().manual_seed(1),
            output_type="np",
        ).images[0]
        * 255
    )
    border = np.concatenate(
        [
            picture[:6].reshape(-1, 3),
            picture[-6:].reshape(-1, 3),
            picture[:, :6].reshape(-1, 3),
            picture[:, -6:].reshape(-1, 3),
        ]
    )
    assert np.abs(np.median(border, axis=0) - BLUE).max() < 50
    assert np.abs(np.median(picture[52:76, 52:76].reshape(-1, 3), axis=0) - RED).max() < 50
