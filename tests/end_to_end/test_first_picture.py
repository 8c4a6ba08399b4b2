"""A newcomer's first picture with the real engine and the embedded model."""

from collections.abc import Iterator
from typing import Any

import pytest
from PIL import Image

from backend import services
from backend.settings import Settings
from tests.end_to_end.conftest import STARTER, Studio, free_port, open_page, serving
from tests.end_to_end.test_create import BLUE_RED, shown_picture

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(not (STARTER / "model_index.json").exists(), reason="the starter model has no weights yet"),
]


@pytest.fixture(scope="module")
def studio(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Studio]:
    root = tmp_path_factory.mktemp("real")
    settings = Settings(
        port=free_port(),
        data_dir=root / "data",
        models_dir=STARTER.parent,
        outputs_dir=root / "outputs",
        extensions_dir=root / "extensions",
        default_model="starter",
    )
    built = services.build(settings)
    with serving(built) as url:
        yield Studio(url, built, None)


def test_words_become_the_picture_they_say(context: Any, studio: Studio) -> None:
    context.set_default_timeout(240_000)  # torch is imported while the page is already there
    page = open_page(context, studio.url)
    page.fill("#field-prompt", BLUE_RED)
    page.fill("#field-seed", "1")
    page.click("#go")
    page.wait_for_selector("#stage img.preview")
    picture = shown_picture(page)
    width, height = picture.size
    edge = [rgb(picture, x, y) for x in (2, width // 2, width - 3) for y in (2, height - 3)]
    assert all(blue > red and blue > green for red, green, blue in edge), edge
    red, green, blue = rgb(picture, width // 2, height // 2)
    assert red > blue
    assert red > green


def rgb(picture: Image.Image, x: int, y: int) -> tuple[int, int, int]:
    red, green, blue = picture.crop((x, y, x + 1, y + 1)).tobytes()
    return red, green, blue
