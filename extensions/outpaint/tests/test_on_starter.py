"""What outpainting promises, on the embedded model: run with -m slow."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from backend.testing import Studio
from tools.starter import detect

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]
SEEDS = 50
SEAM = 16
OWN = "a red circle on a blue background"


@pytest.fixture(scope="module")
def studio() -> Iterator[Studio]:
    with Studio(Path(__file__).parents[1], also=["inpaint"]) as studio:
        yield studio


@pytest.mark.parametrize(("prompt", "shows"), [(OWN, "surroundings"), ("a blue background", "prompt")])
def test_the_new_area_continues_the_background_and_the_old_one_stays(studio: Studio, prompt: str, shows: str) -> None:
    whole: dict[str, Any] = {"width": 128, "height": 128, "steps": 20}
    old = studio.draw(OWN, **whole).picture
    circle = np.asarray(old)
    ground = np.median(np.concatenate([circle[:6].reshape(-1, 3), circle[:, -6:].reshape(-1, 3)]), axis=0)
    drawn = studio.draw(
        prompt,
        init_image=studio.image(old),
        extensions={"outpaint": {"right": 64, "seam": SEAM, "shows": shows}},
        batch_size=5,
        n_iter=SEEDS // 5,
        **whole,
    )
    continued, errors = 0, []
    for picture in drawn.pictures:
        pixels = np.asarray(picture)
        assert pixels.shape == (128, 192, 3)
        assert np.array_equal(pixels[:, : 128 - SEAM], circle[:, :-SEAM])
        new = pixels[:, 128:].astype(float)
        errors.append(float(np.abs(np.median(new.reshape(-1, 3), axis=0) - ground).max()))
        continued += (np.linalg.norm(new - ground, axis=2) < detect.THRESHOLD).mean() >= 0.9
    print(f"{prompt}: {continued} of {SEEDS}; error of the median colour: {np.median(errors):.1f} of 255")  # noqa: T201
    assert continued >= 0.9 * SEEDS, f"{continued} of {SEEDS}"
    assert np.median(errors) < 24
