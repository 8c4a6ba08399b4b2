"""Outpainting: the old pixels stay where they are, and what is new is asked for in the right place."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from backend import registry
from backend.errors import InvalidRequest
from backend.testing import Drawn, Studio
from extensions.outpaint.canvas import Margins, grown, margins, mask

pytest_plugins = ["tests.tiny"]
HERE = Path(__file__).parents[1]
FILLS = ("edge", "reflect", "fill", "noise")
Pixels = NDArray[np.uint8]


@pytest.fixture(scope="module")
def studio(tiny_models: Path) -> Iterator[Studio]:
    with Studio(HERE, also=["inpaint"], models=tiny_models, model="tiny") as studio:
        yield studio


def photo(width: int = 64, height: int = 64) -> Image.Image:
    """No two pixels alike, so that none can be told from another by chance."""
    rows, columns = np.mgrid[0:height, 0:width]
    pixels = np.stack([columns * 255 / width, rows * 255 / height, (columns * 7 + rows * 13) % 256], axis=2)
    return Image.fromarray(pixels.astype(np.uint8))


def grow(studio: Studio, picture: Image.Image, **values: Any) -> Drawn:
    core = {name: values.pop(name) for name in ("seed", "width", "height", "n_iter") if name in values}
    return studio.draw(init_image=studio.image(picture), extensions={"outpaint": values}, **core)


def within(picture: Image.Image, margins: Margins, old: Image.Image, seam: int) -> tuple[Pixels, Pixels]:
    """The old pixels beyond the seam: as they are in the new picture, and as they were."""
    left, top = (seam if margins.left else 0), (seam if margins.top else 0)
    right = old.width - (seam if margins.right else 0)
    bottom = old.height - (seam if margins.bottom else 0)
    after = np.asarray(picture)[margins.top :, margins.left :][top:bottom, left:right]
    return after, np.asarray(old)[top:bottom, left:right]


# --- the canvas


@pytest.mark.parametrize("fill", FILLS)
@pytest.mark.parametrize("sides", [(8, 0, 0, 0), (0, 3, 0, 0), (5, 6, 7, 8), (200, 0, 0, 150)], ids=str)
def test_every_old_pixel_has_its_place_on_the_canvas(fill: str, sides: tuple[int, int, int, int]) -> None:
    margins = Margins(*sides)
    canvas = grown(photo(40, 30), margins, fill, 1)
    assert canvas.size == margins.around((40, 30))
    after, before = within(canvas, margins, photo(40, 30), 0)
    assert np.array_equal(after, before)


def test_the_new_area_starts_from_the_edge() -> None:
    picture = np.asarray(photo(8, 8))
    edge, reflect, noise = (np.asarray(grown(photo(8, 8), Margins(0, 4, 0, 0), f, 1)) for f in FILLS if f != "fill")
    assert (edge[:, 8:] == picture[:, 7:]).all()
    assert (reflect[:, 8:] == picture[:, 7:3:-1]).all()
    known = {tuple(pixel) for pixel in picture.reshape(-1, 3).tolist()}
    assert {tuple(pixel) for pixel in noise[:, 8:].reshape(-1, 3).tolist()} <= known
    assert grown(photo(8, 8), Margins(0, 4, 0, 0), "noise", 1).tobytes() == noise.tobytes()
    assert grown(photo(8, 8), Margins(0, 4, 0, 0), "noise", 2).tobytes() != noise.tobytes()


def test_the_mask_falls_over_the_seam() -> None:
    row = np.asarray(mask((20, 10), Margins(0, 6, 0, 0), 8))[5].astype(int)
    assert (row[:12] == 0).all()
    assert (np.diff(row[11:21]) > 0).all()
    assert (row[20:] == 255).all()
    assert abs(row[15] + row[16] - 255) <= 1
    hard = np.asarray(mask((20, 10), Margins(2, 0, 3, 0), 0))
    assert (hard == 255).sum() == 22 * 13 - 20 * 10
    assert (hard[3:, 2:] == 0).all()


@pytest.mark.parametrize(
    ("values", "size", "found"),
    [
        ({"right": 64}, (128, 128), (0, 64, 0, 0)),
        ({"ratio": "16:9"}, (90, 90), (35, 35, 0, 0)),
        ({"ratio": "1:1"}, (100, 51), (0, 0, 24, 25)),
        ({"ratio": "1:1", "top": 20}, (100, 50), (0, 0, 35, 15)),
        ({"ratio": "4:3"}, (400, 300), (0, 0, 0, 0)),
    ],
    ids=str,
)
def test_a_ratio_adds_what_is_lacking_evenly(
    studio: Studio, values: dict[str, Any], size: tuple[int, int], found: tuple[int, int, int, int]
) -> None:
    params: Any = studio.extension.Params(**values)
    assert margins(params, size) == found


# --- drawn


@pytest.mark.parametrize("fill", FILLS)
def test_beyond_the_seam_the_old_pixels_are_what_they_were(studio: Studio, fill: str) -> None:
    picture, margins = photo(), Margins(0, 32, 0, 0)
    drawn = grow(studio, picture, right=32, fill=fill, seam=8)
    assert drawn.picture.size == (96, 64)
    after, before = within(drawn.picture, margins, picture, 8)
    assert np.array_equal(after, before)
    canvas = np.asarray(grown(picture, margins, fill, 1))
    assert (np.asarray(drawn.picture)[:, 64:] != canvas[:, 64:]).any(axis=2).mean() > 0.9  # really drawn


@pytest.mark.parametrize("sides", [(8, 0, 0, 0), (0, 0, 24, 0), (0, 0, 0, 40), (3, 5, 7, 11), (0, 130, 0, 0)], ids=str)
@pytest.mark.parametrize("size", [(64, 64), (61, 53), (150, 100)])
def test_it_grows_on_every_side_whatever_the_size(
    studio: Studio, size: tuple[int, int], sides: tuple[int, int, int, int]
) -> None:
    margins = Margins(*sides)
    drawn = grow(studio, photo(*size), **margins._asdict(), seam=6)
    assert drawn.picture.size == margins.around(size)
    after, before = within(drawn.picture, margins, photo(*size), 6)
    assert np.array_equal(after, before)


def test_grown_again_and_again_the_first_pixels_stay(studio: Studio) -> None:
    first = photo()
    second = grow(studio, first, right=16, seam=4).picture
    third = grow(studio, second, left=16, seam=4, seed=2).picture
    fourth = grow(studio, third, top=16, bottom=16, seam=4, seed=3).picture
    assert fourth.size == (96, 96)
    inner = np.asarray(fourth)[16 + 4 : 16 + 60, 16 + 4 : 16 + 60]
    assert np.array_equal(inner, np.asarray(first)[4:60, 4:60])


def test_a_large_picture_is_worked_on_near_what_is_new(studio: Studio) -> None:
    asked = grow(studio, photo(300, 64), right=32, seam=8).request.extensions
    params: Any = asked["inpaint"]
    assert list(asked) == ["inpaint"]
    assert params.region == "72x64+260+0"


def test_a_grown_picture_is_drawn_again_from_its_text_without_growing_again(studio: Studio) -> None:
    drawn = grow(studio, photo(), right=32, fill="noise")
    again = studio.read(drawn.text)
    assert again == drawn.request
    assert studio.draw(**again.model_dump()).picture.tobytes() == drawn.picture.tobytes()


def test_what_goes_on_with_the_picture_is_drawn_without_the_words_of_the_prompt(studio: Studio) -> None:
    ref = studio.image(photo())
    words: dict[str, Any] = {
        "prompt": "a <glow:red:1> circle",
        "prompts": ("a <glow:red:1> circle", "a square"),
        "n_iter": 2,
    }
    going_on, said = (
        studio.draw(**words, negative_prompt="blurred", init_image=ref, extensions={"outpaint": {"right": 32, **more}})
        for more in ({}, {"shows": "prompt"})
    )
    assert [studio.read(text).prompt for text in going_on.texts] == ["<glow:red:1>", ""]
    assert [studio.read(text).prompt for text in said.texts] == ["a <glow:red:1> circle", "a square"]
    assert going_on.request.negative_prompt == said.request.negative_prompt == "blurred"
    assert going_on.picture.tobytes() != said.picture.tobytes()


def test_the_same_seed_gives_the_same_picture_before_and_after(studio: Studio) -> None:
    before, during, after = studio.around({"left": 32}, init_image=studio.image(photo()))
    assert before == after != during


# --- bad input


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({}, "extensions.outpaint.left: say how far the picture is to grow"),
        ({"ratio": "1:1"}, "extensions.outpaint.ratio: the picture has this ratio already, with 64 x 64 pixels"),
        ({"right": 100_000}, "extensions.outpaint.right: should be less than or equal to 2048, not 100000"),
        ({"top": -8}, "extensions.outpaint.top: should be greater than or equal to 0"),
        (
            {"left": 2048, "right": 2048},
            "extensions.outpaint.left: the picture would have 4160 x 64 pixels; a side may",
        ),
        (
            {"left": 2048, "top": 2040, "bottom": 2048},
            "extensions.outpaint.bottom: the picture would have 2112 x 4152",
        ),
        (
            {"ratio": "99999:1", "left": 8},
            "extensions.outpaint.ratio: the picture would have 6399936 x 64 pixels; a side may have 4096",
        ),
        ({"ratio": "wide"}, "extensions.outpaint.ratio: should be written as 16:9"),
        ({"ratio": "16:0"}, "extensions.outpaint.ratio: should be written as 16:9"),
        ({"fill": "water", "left": 8}, "extensions.outpaint.fill: "),
    ],
    ids=str,
)
def test_what_cannot_be_grown_is_said(studio: Studio, values: dict[str, Any], words: str) -> None:
    images = {path.name for path in studio.images.folder.rglob("*")}
    ref = studio.image(photo())
    with pytest.raises(InvalidRequest) as error:
        studio.draw(init_image=ref, extensions={"outpaint": values})
    assert str(error.value).startswith(words)
    assert {path.name for path in studio.images.folder.rglob("*")} <= images | {ref, ref[:2]}  # nothing is left


def test_it_needs_a_picture_and_no_mask_of_ones_own(studio: Studio) -> None:
    with pytest.raises(InvalidRequest, match="init_image: Outpaint needs an image to start from"):
        studio.draw(extensions={"outpaint": {"left": 8}})
    ref = studio.image(photo())
    with pytest.raises(InvalidRequest, match=r"extensions\.outpaint: do one after the other"):
        studio.draw(init_image=ref, extensions={"outpaint": {"left": 8}, "inpaint": {"mask": ref}})


def test_without_inpaint_it_is_broken_and_says_so() -> None:
    (broken,) = registry.load(HERE.parent, only={"outpaint"}).broken
    assert (broken.id, broken.reason) == ("outpaint", "needs the extension inpaint, which is not installed")
