"""Making maps and keeping them: the same question is answered once, and the folder stays small."""

import os
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from extensions.controlnet import maps, weightless
from extensions.controlnet.maps import Cache, Made, MapValues, detect, known, make_map, perfect, settled
from extensions.controlnet.pose import Person, Point, Pose
from extensions.controlnet.preprocessors import TABLE, Annotators

NOWHERE = Annotators((Path("nowhere"),))


def picture(width: int = 120, height: int = 90, seed: int = 0, mode: str = "RGB") -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
    return Image.fromarray(pixels).convert(mode)


@pytest.fixture
def cache(tmp_path: Path) -> Cache:
    return Cache(tmp_path / "maps")


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the preprocessors that ran."""
    ran: list[str] = []
    make = weightless.make

    def noted(name: str, *rest: Any) -> Any:
        ran.append(name)
        return make(name, *rest)

    monkeypatch.setattr(weightless, "make", noted)
    return ran


def test_a_map_has_the_modules_resolution() -> None:
    assert make_map(picture(), None, MapValues("canny"), NOWHERE).size == (683, 512)
    assert make_map(picture(), None, MapValues("canny", 64), NOWHERE).size == (85, 64)
    assert make_map(picture(), None, MapValues("invert", 64), NOWHERE).size == (120, 90)
    assert make_map(picture(), None, MapValues("none"), NOWHERE).tobytes() == picture().tobytes()


def test_names_of_older_clients_and_labels_do() -> None:
    given = MapValues("invert (from white bg & black line)")
    assert (
        make_map(picture(), None, given, NOWHERE).tobytes()
        == make_map(picture(), None, MapValues("invert"), NOWHERE).tobytes()
    )


@pytest.mark.parametrize(
    ("mode", "resolution"), [("Resize and Fill", 50), ("Crop and Resize", 100), ("Just Resize", 100)]
)
def test_pixel_perfect_is_that_of_sd_webui_controlnet(mode: str, resolution: int) -> None:
    assert perfect((100, 100), (50, 100), mode) == resolution
    values = MapValues("canny", 999, pixel_perfect=(50, 100), resize_mode=mode)
    assert settled(TABLE["canny"], values, (100, 100)).processor_res == max(64, resolution)


def test_what_is_lacking_is_named() -> None:
    with pytest.raises(
        ValueError, match=r"softedge_hed needs weights .* put ControlNetHED\.pth into models/annotators"
    ):
        make_map(picture(), None, MapValues("hed"), NOWHERE)
    with pytest.raises(ValueError, match="inpaint_only needs a mask"):
        make_map(picture(), None, MapValues("inpaint_only"), NOWHERE)
    with pytest.raises(ValueError, match="'what' is not a preprocessor"):
        make_map(picture(), None, MapValues("what"), NOWHERE)


def test_a_mask_is_read_from_light_or_transparency() -> None:
    light = Image.new("RGB", (120, 90))
    light.paste((255, 255, 255), (60, 0, 120, 90))
    clear = Image.new("RGBA", (120, 90), (9, 9, 9, 0))
    clear.paste((9, 9, 9, 255), (60, 0, 120, 90))
    made = [make_map(picture(), mask, MapValues("inpaint"), NOWHERE) for mask in (light, clear)]
    assert made[0].mode == "RGBA"
    assert made[0].tobytes() == made[1].tobytes()
    assert made[0].getpixel((100, 40))[3] == 0  # type: ignore[index]
    assert made[0].getpixel((10, 40))[3] == 255  # type: ignore[index]


def test_what_is_transparent_shows_the_background() -> None:
    clear = Image.new("RGBA", (64, 64), (0, 0, 0, 0))
    assert make_map(clear, None, MapValues("invert"), NOWHERE).getpixel((5, 5)) == (0, 0, 0)


def test_the_same_question_is_answered_once(cache: Cache, runs: list[str]) -> None:
    values = MapValues("canny", 64)
    first = make_map(picture(), None, values, NOWHERE, cache)
    assert make_map(picture(), None, values, NOWHERE, cache).tobytes() == first.tobytes()
    make_map(picture(), None, MapValues("canny", 64, 100, 200), NOWHERE, cache)  # the defaults, said aloud
    assert runs == ["canny"]
    for other in (MapValues("canny", 72), MapValues("canny", 64, 50), MapValues("scribble_xdog", 64)):
        make_map(picture(), None, other, NOWHERE, cache)
    make_map(picture(seed=1), None, values, NOWHERE, cache)
    make_map(picture(90, 120), None, values, NOWHERE, cache)
    assert len(runs) == 6


def test_what_is_known_is_not_made(cache: Cache, runs: list[str]) -> None:
    values = MapValues("canny", 64)
    assert known(picture(), None, values, NOWHERE, cache) is None
    made = detect(picture(), None, values, NOWHERE, cache)
    kept = known(picture(), None, values, NOWHERE, cache)
    assert kept
    assert kept.picture.tobytes() == made.picture.tobytes()
    assert runs == ["canny"]


def test_an_inpaint_map_depends_on_its_mask(cache: Cache) -> None:
    masks = [Image.new("L", (120, 90), shade) for shade in (0, 255)]
    first, second = (make_map(picture(), mask, MapValues("inpaint"), NOWHERE, cache) for mask in masks)
    assert first.tobytes() != second.tobytes()
    again = make_map(picture(), masks[1], MapValues("inpaint"), NOWHERE, cache)
    assert again.mode == "RGBA"
    assert again.tobytes() == second.tobytes()  # also the colours under what is transparent


def test_new_weights_make_a_new_map(tmp_path: Path) -> None:
    hed, given = TABLE["hed"], MapValues("hed", 64)
    weights = tmp_path / "ControlNetHED.pth"
    weights.write_bytes(b"one")
    first = maps._asked(picture(), None, given, Annotators((tmp_path,))).key
    os.utime(weights, (1, 1))
    assert maps._asked(picture(), None, given, Annotators((tmp_path,))).key != first
    assert hed.needs == (weights.name,)


def test_people_are_kept_with_their_map(cache: Cache) -> None:
    found = Pose((Person(body=(Point(0.5, 0.25), *[None] * 17)),), 64, 32)
    cache.put("a" * 64, Made(picture(64, 32), found))
    kept = cache.get("a" * 64)
    assert kept
    assert kept.pose == found


def test_a_damaged_map_is_made_anew(cache: Cache, runs: list[str], tmp_path: Path) -> None:
    values = MapValues("canny", 64)
    first = make_map(picture(), None, values, NOWHERE, cache)
    (file,) = (tmp_path / "maps").iterdir()
    whole = file.read_bytes()
    for damaged in (b"", b"no picture", whole[: len(whole) // 2]):
        file.write_bytes(damaged)
        assert make_map(picture(), None, values, NOWHERE, cache).tobytes() == first.tobytes()
    assert len(runs) == 4


def test_what_was_not_asked_for_longest_goes(tmp_path: Path) -> None:
    one = len(maps._written(Made(picture(64, 64))))
    cache = Cache(tmp_path, room=3 * one + one // 2)
    for key in "abc":
        cache.put(key, Made(picture(64, 64)))
        os.utime(tmp_path / f"{key}.png", (time.time() - 100 + ord(key),) * 2)
    assert cache.get("a")
    cache.put("d", Made(picture(64, 64)))
    assert sorted(path.stem for path in tmp_path.iterdir()) == ["a", "c", "d"]


def test_a_disk_that_takes_nothing_is_no_harm(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    cache = Cache(tmp_path / "file" / "maps")
    assert make_map(picture(), None, MapValues("canny", 64), NOWHERE, cache).size == (85, 64)
