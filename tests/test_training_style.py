"""A LoRA of the starter model, trained by the command and used by the page's engine: does it draw in its style?"""

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from PIL import Image

from backend import registry
from backend.catalog import Catalog
from backend.images import ImageStore
from backend.manifest import HOME
from backend.request import parse_request
from backend.settings import ROOT
from tests.outlined import colour_within, is_outlined
from tools.starter import evaluate, style, world

SET = ROOT / "tests" / "data" / "outlines"
PICTURES = 50
SHEET = os.environ.get("ATELIER_STYLE_SHEET", "")
"""A picture file that the contact sheet is written to, and the numbers into a .txt beside it."""
SUFFIXES = {"without": "", "at 0": " <lora:demo:0>", "with": " <lora:demo:1>"}


def test_the_set_is_what_the_world_draws(tmp_path: Path) -> None:
    style.write(tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted(p.name for p in SET.iterdir())
    for path in tmp_path.glob("*.txt"):
        assert path.read_text() == (SET / path.name).read_text()
    for path in tmp_path.glob("*.png"):
        drawn, kept = (np.asarray(Image.open(p), int) for p in (path, SET / path.name))
        assert np.abs(drawn - kept).max() <= 1


def test_the_detector_knows_the_style() -> None:
    scenes = style.scenes()
    assert all(is_outlined(style.drawing(scene)) for scene in scenes)
    assert [colour_within(style.drawing(scene)) for scene in scenes] == [scene.items[0].colour for scene in scenes]
    assert not any(is_outlined(world.render(scene).picture) for scene in scenes)
    assert not any(is_outlined(world.render(world.sample_scene(seed)).picture) for seed in range(200))
    for plain in (world.Scene("black", (world.Item("heart", "white"),)), world.Scene("red", (_BLACK_HOUSE,))):
        assert not is_outlined(world.render(plain).picture)


_BLACK_HOUSE = world.Item("house", "black")  # whose windows are enclosed by black


def test_no_picture_of_the_set_is_one_that_is_asked_for() -> None:
    taught = {(s.items[0].shape, s.items[0].colour, s.background) for s in style.scenes()}
    asked = {(t.scene.items[0].shape, t.scene.items[0].colour, t.scene.background) for t in trials()}
    assert not taught & asked


def trials() -> list[evaluate.Trial]:
    """Combinations that neither the model nor the LoRA has seen, of colours on which an outline shows."""
    found = evaluate.held_out_trials("plain", 2 * PICTURES)
    return [t for t in found if not {t.scene.background, t.scene.items[0].colour} & {*style.DARK}][:PICTURES]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A models folder with the starter and the LoRA `demo`, trained as docs/training.md says."""
    folder = tmp_path_factory.mktemp("style")
    shutil.copytree(ROOT / "models" / "starter", folder / "models" / "starter")
    arguments = ("--preset=style", "--model=starter", f"--data={SET}", "--out=demo")
    places = [f"--data-dir={folder / 'data'}", f"--models-dir={folder / 'models'}"]
    command = [sys.executable, "app.py", "train", *arguments, *places]
    started = time.monotonic()
    alone = {**os.environ, "OMP_NUM_THREADS": "1"}  # two threads wait for each other where others work too
    done = subprocess.run(command, cwd=ROOT, env=alone, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    took, busy = time.monotonic() - started, os.times().children_user
    _report(f"trained in {took:.0f} s; {busy:.0f} s of CPU time")
    return folder / "models"


def drawn(models: Path, suffix: str) -> Iterator[np.ndarray]:
    """Each trial's picture, as the engine draws it for the page; seed 1000 and on."""
    from backend.diffusion.engine import Engine

    extensions = registry.load(HOME, only={"lora"}, models=models)
    engine = Engine(Catalog(models, "starter"), extensions, "cpu")
    for number, trial in enumerate(trials()):
        request = parse_request(
            {
                **engine.catalog.find().defaults,
                "prompt": trial.prompt + suffix,
                "seed": 1000 + number,
            },
            extensions.params,
        )
        pictures: list[Any] = []
        engine.generate(request, ImageStore(models / "inputs"), lambda p: pictures.append(p.picture))  # noqa: B023
        (data,) = (picture.data for picture in pictures if picture)
        decoded = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
        yield cv2.cvtColor(decoded, cv2.COLOR_BGR2RGB)
    engine.close()


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_the_lora_draws_its_style_and_follows_the_prompt(models: Path) -> None:
    torch.set_num_threads(1)
    found = {name: list(drawn(models, suffix)) for name, suffix in SUFFIXES.items()}
    shares = {name: float(np.mean([is_outlined(p) for p in pictures])) for name, pictures in found.items()}
    scores = {
        name: evaluate.scores(np.stack(pictures), trials()) for name, pictures in found.items() if name != "at 0"
    }
    inside = [colour_within(p) == t.scene.items[0].colour for p, t in zip(found["with"], trials(), strict=True)]
    scores["with"]["colour"] = float(np.mean(inside))  # without the outline, which for the scorer is a colour too
    _report(f"outlined: {shares}; as the prompt says: {scores}")
    if SHEET:
        rows = [found[name][k : k + 8] for k in range(0, 24, 8) for name in ("without", "with")]
        sheet = evaluate.sheet(np.stack([picture for row in rows for picture in row]), columns=8)
        cv2.imwrite(SHEET, cv2.cvtColor(sheet, cv2.COLOR_RGB2BGR))
    assert shares["with"] >= 0.8
    assert shares["without"] <= 0.1
    assert shares["at 0"] <= 0.1
    assert scores["with"]["background"] >= 0.9
    assert scores["with"]["shape"] >= 0.85
    assert scores["with"]["colour"] >= 0.8
    assert all(np.array_equal(a, b) for a, b in zip(found["without"], found["at 0"], strict=True))


def _report(line: str) -> None:
    if SHEET:
        with open(Path(SHEET).with_suffix(".txt"), "a", encoding="utf-8") as file:
            file.write(line + "\n")
