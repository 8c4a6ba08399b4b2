"""What inpainting promises, on the embedded model: run with -m slow."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFilter

from backend.testing import Studio
from tools.starter import detect

pytestmark = pytest.mark.slow
SEEDS = 50
BLUR = 4


@pytest.fixture(scope="module")
def studio() -> Iterator[Studio]:
    with Studio(Path(__file__).parents[1]) as studio:
        yield studio


def test_a_red_circle_becomes_a_yellow_star_and_the_rest_stays(studio: Studio) -> None:
    whole: dict[str, Any] = {"width": 128, "height": 128, "steps": 20}
    circle = studio.draw("a red circle on a blue background", **whole).picture
    assert detect.read(np.asarray(circle)).items[0].shape == "circle"
    mask = Image.new("L", circle.size)
    ImageDraw.Draw(mask).ellipse((12, 12, 115, 115), fill=255)
    drawn = studio.draw(
        "a yellow star on a blue background",
        init_image=studio.image(circle),
        extensions={"inpaint": {"mask": studio.image(mask), "blur": BLUR}},
        batch_size=5,
        n_iter=SEEDS // 5,
        **whole,
    )
    beside = np.asarray(mask.filter(ImageFilter.GaussianBlur(BLUR))) == 0
    assert beside.sum() > 4000
    stars = 0
    for picture in drawn.pictures:
        assert np.array_equal(np.asarray(picture)[beside], np.asarray(circle)[beside])
        seen = detect.read(np.asarray(picture))
        found = [(item.shape, item.colour) for item in seen.items[:1]]
        stars += seen.background == "blue" and found == [("star", "yellow")]
    print(f"stars: {stars} of {SEEDS}")  # noqa: T201
    assert stars >= 0.8 * SEEDS, f"{stars} stars of {SEEDS}"
