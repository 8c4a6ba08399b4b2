"""With the real engine and the embedded model: a newcomer's first picture; from a zip of drawings to a picture drawn
with the LoRA that learnt from them, a few steps long.
"""

import io
import json
import zipfile
from collections.abc import Iterator
from typing import Any

import pytest
from PIL import Image

from backend import services
from backend.settings import ROOT
from tests.end_to_end.conftest import STARTER, Studio, Watch, open_page, serving, settings_in
from tests.end_to_end.test_create import BLUE_RED, shown_picture

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(not (STARTER / "model_index.json").exists(), reason="the starter model has no weights yet"),
]
OUTLINES = ROOT / "tests" / "data" / "outlines"
PICTURES = 6
STEPS = 16
SETTINGS = {"steps": STEPS, "batch_size": 1, "sample_every": 0, "save_every": 0, "sample_steps": 2}
TAB = "#tab-train-button"


@pytest.fixture(scope="module")
def studio(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Studio]:
    root = tmp_path_factory.mktemp("real")
    models = root / "models"
    models.mkdir()
    (models / "starter").symlink_to(STARTER, target_is_directory=True)
    built = services.build(settings_in(root, ROOT / "extensions"))
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


def outlines(pictures: int = PICTURES) -> dict[str, Any]:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as zipped:
        for path in sorted(OUTLINES.glob("*.png"))[:pictures]:
            zipped.write(path, path.name)
            zipped.write(path.with_suffix(".txt"), path.with_suffix(".txt").name)
    return {"name": "outlines.zip", "mimeType": "application/zip", "buffer": out.getvalue()}


def brought(page: Any) -> None:
    """The zip, through the file picker."""
    page.click(TAB)
    with page.expect_file_chooser() as chooser:
        page.click("#train .home .drop .primary")
    chooser.value.set_files(outlines())
    page.wait_for_function(f"document.querySelectorAll('#train .shot').length === {PICTURES}")


def points(page: Any) -> int:
    return int(page.get_attribute("#train .plot", "data-points") or 0)


def wait_for_state(page: Any, state: str) -> None:
    page.wait_for_selector(f"#train .run[data-state={state}]")


def test_from_a_zip_to_a_picture_in_create(context: Any, studio: Studio, watch: Watch) -> None:
    context.set_default_timeout(240_000)  # torch is imported twice meanwhile
    kept = json.dumps(json.dumps(SETTINGS))
    context.add_init_script(f"localStorage['atelier:train-form'] ??= {kept}")
    page = open_page(context, studio.url, watch)
    brought(page)
    page.click("#train .walk [data-step=settings]")
    page.click("#train [data-goal=style]")
    for name, value in SETTINGS.items():  # choosing a preset takes back what was changed before
        page.evaluate("document.querySelector('#train .everything').open = true")
        page.fill(f"#field-train-{name}", str(value))
    page.click("#train-start")
    page.wait_for_function("Number(document.querySelector('#train .plot')?.dataset.points) >= 3")
    page.click("#train [data-act=stop]")
    wait_for_state(page, "stopped")
    before = points(page)
    assert 3 <= before < STEPS
    page.reload()  # nothing of it is the page's alone
    page.wait_for_function("window.atelier?.state.known")
    page.click(TAB)
    page.click("#train [data-act=resume]")
    page.wait_for_function(f"Number(document.querySelector('#train .plot').dataset.points) > {before}")
    wait_for_state(page, "done")
    assert points(page) == STEPS
    page.click("#train [data-act=result]")
    page.click("#train [data-act=test]")
    prompt = page.input_value("#field-prompt")
    assert prompt.endswith("<lora:outlines:1>")
    page.fill("#field-steps", "2")
    page.click("#go")
    page.wait_for_selector("#stage .paper img.done")
    picture = studio.services.gallery.recent()[0]
    assert "Lora hashes: " in picture.infotext
    assert watch.unexpected() == []
