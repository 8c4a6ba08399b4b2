"""Maps: made once, written into the request, taken again; what is refused, and that the others go on."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import UNet2DConditionModel
from PIL import Image, ImageDraw

from backend import lineage
from backend.errors import AtelierError, InvalidRequest
from backend.testing import Drawn, Studio
from extensions.controlnet import fit, maps, pictures, text
from extensions.controlnet.tests import made
from tests.tiny import tiny_model

FOLDER = Path(__file__).parents[1]
_JOINTS = [number for n in range(18) for number in (8 + 3 * n, 12 + (7 * n) % 40, 1)]
POSE = json.dumps({"people": [{"pose_keypoints_2d": _JOINTS}], "canvas_width": 64, "canvas_height": 64})


@pytest.fixture(scope="module")
def studio(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Studio]:
    torch.set_num_threads(1)
    models = tmp_path_factory.mktemp("models")
    unet = UNet2DConditionModel.from_pretrained(tiny_model(models / "checkpoints" / "tiny") / "unet")
    made.save(made.lllyasviel(made.control(unet)), models / "controlnet" / "control.safetensors")
    with Studio(FOLDER, models=models, model="tiny", also=["hires", "inpaint", "outpaint"]) as studio:
        yield studio


@pytest.fixture
def photo(studio: Studio) -> str:
    return studio.image(made.photo())


@pytest.fixture
def makings(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The values of each map that is made."""
    seen: list[Any] = []
    inner = maps.make_map

    def make(picture: Image.Image, mask: Any, values: maps.MapValues, *more: Any) -> Image.Image:
        seen.append((picture, mask, values))
        return inner(picture, mask, values, *more)

    monkeypatch.setattr(maps, "make_map", make)
    return seen


def draw(studio: Studio, *units: dict[str, Any], **values: Any) -> Drawn:
    others = values.pop("extensions", {})
    given = [{"model": "control", **unit} for unit in units]
    return studio.draw(extensions={**others, "controlnet": {"units": given}}, **values)


def unit_of(drawn: Drawn, number: int = 0) -> Any:
    params: Any = drawn.request.extensions["controlnet"]
    return params.units[number]


def map_of(studio: Studio, drawn: Drawn) -> Image.Image:
    return studio.images.get(unit_of(drawn).map)


# --- made once


def test_the_request_as_used_carries_its_map(studio: Studio, photo: str) -> None:
    drawn = draw(studio, {"image": photo, "module": "canny"})
    unit = unit_of(drawn)
    assert (unit.processor_res, unit.threshold_a, unit.threshold_b) == (512, 100, 200)
    assert unit.model.startswith("control [")
    assert map_of(studio, drawn).size == (512, 512)
    named = {i.name: i.sha256 for i in lineage.inputs(drawn.request)}
    assert named["extensions.controlnet.units.0.map"] == unit.map


def test_a_picture_is_drawn_again_from_its_text_and_its_map(studio: Studio, photo: str, makings: list[Any]) -> None:
    units = [{"image": photo, "module": "canny", "weight": 0.7}, {"image": photo, "guidance_end": 0.5}]
    drawn = draw(studio, *units)
    studio.images.path(photo).rename(studio.images.path(photo).with_suffix(".away"))
    makings.clear()
    try:
        again = studio.read(drawn.text)
        assert again == drawn.request
        with pytest.raises(InvalidRequest, match=r"units\.1\.image: there is no image"):
            studio.draw(**again.model_dump())  # a map that is the image itself is gone with it
    finally:
        studio.images.path(photo).with_suffix(".away").rename(studio.images.path(photo))
    recalled = studio.draw(**again.model_dump())
    assert recalled.picture.tobytes() == drawn.picture.tobytes()
    assert recalled.text == drawn.text
    assert makings == []


def test_the_map_alone_is_enough(studio: Studio, photo: str) -> None:
    drawn = draw(studio, {"image": photo, "module": "canny"})
    path = studio.images.path(photo)
    path.rename(path.with_suffix(".away"))
    try:
        again = studio.draw(**studio.read(drawn.text).model_dump())
    finally:
        path.with_suffix(".away").rename(path)
    assert again.picture.tobytes() == drawn.picture.tobytes()


def test_one_map_serves_all_batches_and_passes(studio: Studio, photo: str, makings: list[Any]) -> None:
    hires = {"scale": 1.5, "denoising_strength": 0.7}
    unit = {"image": photo, "module": "canny", "pixel_perfect": True}
    draw(studio, unit, n_iter=2, steps=1, extensions={"hires": hires})
    assert len(makings) == 1


@pytest.mark.parametrize(
    "change",
    [
        {"module": "invert"},
        {"threshold_a": 10},
        {"processor_res": 256},
        {"image": "other"},
        {"pixel_perfect": True},
        {"pose": POSE},
    ],
    ids=str,
)
def test_a_map_is_made_anew_when_what_it_shows_changes(
    studio: Studio, photo: str, makings: list[Any], change: dict[str, Any]
) -> None:
    drawn = draw(studio, {"image": photo, "module": "canny"})
    other = made.photo()
    other.paste("red", (10, 10, 30, 30))
    change = {"image": studio.image(other)} if "image" in change else change
    again = draw(studio, {**unit_of(drawn).model_dump(), **change})
    assert unit_of(again).made_from != unit_of(drawn).made_from
    if "threshold_a" not in change:  # its lines are clear ones
        assert unit_of(again).map != unit_of(drawn).map


@pytest.mark.parametrize(
    "change", [{"weight": 0.5}, {"guidance_end": 0.4}, {"control_mode": 1}, {"resize_mode": 0}, {"hr_option": "Both"}]
)
def test_a_map_stays_when_something_else_changes(
    studio: Studio, photo: str, makings: list[Any], change: dict[str, Any]
) -> None:
    drawn = draw(studio, {"image": photo, "module": "canny"})
    again = draw(studio, {**unit_of(drawn).model_dump(), **change}, width=72)
    assert unit_of(again).map == unit_of(drawn).map
    assert len(makings) == 1


def test_a_perfect_map_is_made_anew_for_another_size(studio: Studio, photo: str) -> None:
    drawn = draw(studio, {"image": photo, "module": "canny", "pixel_perfect": True})
    assert map_of(studio, drawn).size == (64, 64)
    again = draw(studio, unit_of(drawn).model_dump(), width=96, height=96)
    assert map_of(studio, again).size == (96, 96)


def test_a_perfect_map_is_made_anew_for_another_way_to_fit_the_picture(studio: Studio) -> None:
    start, perfect = studio.image(made.photo(192, 128)), {"module": "canny", "pixel_perfect": True}
    size = {"width": 128, "height": 128, "init_image": start, "steps": 1}
    cropped = draw(studio, perfect, resize_mode=1, **size)
    again = draw(studio, unit_of(cropped).model_dump(), resize_mode=2, **size)
    assert (map_of(studio, cropped).size, map_of(studio, again).size) == ((192, 128), (128, 85))


def test_a_given_map_is_taken_as_it_is(studio: Studio, photo: str, makings: list[Any]) -> None:
    edges = studio.image(made.edges())
    drawn = draw(studio, {"map": edges, "module": "canny"})
    assert unit_of(drawn).map == edges
    assert makings == []
    assert drawn.picture.tobytes() == draw(studio, {"image": edges}).picture.tobytes()
    assert drawn.picture.tobytes() == draw(studio, {"map": edges, "image": photo, "module": "canny"}).picture.tobytes()


def test_a_pose_is_drawn(studio: Studio, makings: list[Any]) -> None:
    from extensions.controlnet import pose

    drawn = draw(studio, {"pose": POSE, "module": "openpose_full"})
    assert map_of(studio, drawn).tobytes() == pose.draw(pose.people(POSE)).tobytes()
    assert makings == []
    assert drawn.picture.tobytes() != studio.draw().picture.tobytes()


def test_an_image_of_another_shape_is_fitted(studio: Studio) -> None:
    wide = studio.image(made.photo(200, 40))
    drawn = {
        mode: draw(studio, {"image": wide, "resize_mode": mode}).picture.tobytes() for mode in pictures.OF_REQUEST[:3]
    }
    assert len(set(drawn.values())) == 3


def test_a_transparent_image_is_white_behind(studio: Studio) -> None:
    clear = made.photo().convert("RGBA")
    clear.putalpha(0)
    drawn = draw(studio, {"image": studio.image(clear)})
    assert map_of(studio, drawn).getcolors() == [(64 * 64, (255, 255, 255))]


# --- from the picture that it starts from


def test_the_requests_resize_mode_wins_for_its_own_image(studio: Studio) -> None:
    start = studio.image(made.photo(96, 64))
    unit = pictures_unit(studio, {"module": "canny", "resize_mode": "Just Resize"}, init_image=start, resize_mode=2)
    assert pictures._resize_mode(*unit) == "Resize and Fill"
    unit = pictures_unit(studio, {"image": start, "resize_mode": "Just Resize"}, init_image=start, resize_mode=2)
    assert pictures._resize_mode(*unit) == "Just Resize"


def pictures_unit(studio: Studio, unit: dict[str, Any], **values: Any) -> tuple[Any, Any]:
    others = values.pop("extensions", {})
    request = studio.request(extensions={**others, "controlnet": {"units": [{"model": "control", **unit}]}}, **values)
    given: Any = request.extensions["controlnet"]
    return given.units[0], request


def masked(box: tuple[int, int, int, int], size: tuple[int, int]) -> Image.Image:
    mask = Image.new("L", size)
    mask.paste(255, box)
    return mask


def test_only_masked_crops_the_image_with_the_region(studio: Studio, makings: list[Any]) -> None:
    whole = made.photo(200, 200)
    inpaint = {
        "mask": studio.image(masked((120, 120, 150, 150), (200, 200))),
        "area": "only_masked",
        "padding": 10,
        "blur": 0,
    }
    values: dict[str, Any] = {"init_image": studio.image(whole), "extensions": {"inpaint": inpaint}}
    drawn = draw(studio, {"module": "canny"}, **values)
    box = (110, 110, 160, 160)
    assert drawn.request.region == "50x50+110+110"
    assert makings[0][0].tobytes() == whole.crop(box).tobytes()
    assert studio.read(drawn.text) == drawn.request

    own = draw(studio, {"module": "canny", "image": studio.image(whole.resize((400, 400)))}, **values)
    assert makings[1][0].size == (50, 50)
    uncropped = draw(studio, {"module": "canny", "inpaint_crop_input_image": False}, **values)
    assert makings[2][0].size == (200, 200)
    assert len({d.picture.tobytes() for d in (drawn, own, uncropped)}) == 3

    edges = made.edges(200, 200)
    unit, request = pictures_unit(studio, {"map": studio.image(edges)}, **drawn_as(drawn))
    shown = pictures.shown(unit, request, studio.images)
    assert shown.size == (request.width, request.height)
    expected = fit.fitted(edges.crop(box), shown.size, "Just Resize")
    assert shown.tobytes() == expected.tobytes()


def drawn_as(drawn: Drawn) -> dict[str, Any]:
    values = drawn.request.model_dump()
    values["extensions"] = {id: given for id, given in values["extensions"].items() if id != "controlnet"}
    return values


def test_a_picture_from_a_pose_is_drawn_again_from_its_text(studio: Studio) -> None:
    drawn = draw(studio, {"pose": POSE, "module": "openpose_full"})
    again = studio.draw(**studio.read(drawn.text).model_dump())
    assert (unit_of(again).map, unit_of(again).pose) == (unit_of(drawn).map, unit_of(drawn).pose)
    assert again.picture.tobytes() == drawn.picture.tobytes()


def test_a_pose_that_is_too_long_for_the_text_leaves_its_map(studio: Studio, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(text, "LONGEST_POSE", 20)
    drawn = draw(studio, {"pose": POSE, "module": "openpose_full"})
    again = studio.draw(**studio.read(drawn.text).model_dump())
    assert (unit_of(again).map, unit_of(again).pose) == (unit_of(drawn).map, "")
    assert again.picture.tobytes() == drawn.picture.tobytes()


def test_a_pose_is_cropped_with_the_region(studio: Studio) -> None:
    inpaint = {"mask": studio.image(masked((32, 32, 64, 64), (64, 64))), "region": "32x32+32+32"}
    values: dict[str, Any] = {"init_image": studio.image(made.photo()), "extensions": {"inpaint": inpaint}}
    drawn = draw(studio, {"pose": POSE}, **values)
    assert map_of(studio, drawn).size == (64, 64)


def test_outpainting_shows_the_unit_the_larger_canvas(studio: Studio, photo: str, makings: list[Any]) -> None:
    drawn = draw(studio, {"module": "canny"}, init_image=photo, extensions={"outpaint": {"right": 32}})
    assert makings[0][0].size == (96, 64)
    assert unit_of(drawn).image is None


# --- inpaint preprocessors and what comes after


def test_the_hole_is_shown_as_minus_one(studio: Studio, photo: str) -> None:
    from extensions.controlnet.guide import hint

    hole = studio.image(masked((16, 16, 48, 48), (64, 64)))
    drawn = draw(studio, {"module": "inpaint_only", "image": photo, "mask": hole})
    shown = hint(pictures.shown(unit_of(drawn), drawn.request, studio.images))
    assert torch.equal(shown[0, :, 16:48, 16:48], -torch.ones(3, 32, 32))
    expected = torch.from_numpy(np.array(made.photo())).permute(2, 0, 1) / 255
    assert torch.equal(shown[0, :, :16], expected[:, :16])


def test_inpaint_only_keeps_what_lies_far_from_the_mask(studio: Studio) -> None:
    whole = made.photo(128, 128)
    hole = studio.image(masked((80, 80, 120, 120), (128, 128)))
    unit = {"module": "inpaint_only", "image": studio.image(whole), "mask": hole}
    drawn = draw(studio, unit, width=128, height=128)
    pixels, before = np.asarray(drawn.picture, int), np.asarray(whole, int)
    assert np.abs(pixels[:30, :30] - before[:30, :30]).max() == 0
    assert np.abs(pixels[90:110, 90:110] - before[90:110, 90:110]).mean() > 5
    larger = draw(studio, unit, width=128, height=128, extensions={"hires": {"scale": 1.5}}).picture
    assert larger.size == (192, 192)
    silent = draw(studio, {**unit, "weight": 0}, width=128, height=128).picture
    assert silent.tobytes() == studio.draw(width=128, height=128).picture.tobytes()


def test_with_a_mask_of_inpainting_the_unit_needs_none(studio: Studio, photo: str, makings: list[Any]) -> None:
    inpaint = {"mask": studio.image(masked((16, 16, 48, 48), (64, 64))), "mode": "not_masked", "blur": 0}
    drawn = draw(studio, {"module": "inpaint_only"}, init_image=photo, extensions={"inpaint": inpaint})
    hole = np.asarray(makings[0][1])
    assert hole[0, 0] == 255
    assert hole[30, 30] == 0
    assert np.array_equal(np.asarray(drawn.picture)[20:44, 20:44], np.asarray(made.photo())[20:44, 20:44])


def test_recolouring_brings_back_the_light_of_the_image(studio: Studio, photo: str) -> None:
    drawn = draw(studio, {"module": "recolor_luminance", "image": photo})
    light = np.asarray(drawn.picture.convert("L"), int) - np.asarray(made.photo().convert("L"), int)
    plain = np.asarray(studio.draw().picture.convert("L"), int) - np.asarray(made.photo().convert("L"), int)
    assert np.abs(light).mean() < 0.5 * np.abs(plain).mean()


# --- refused


def refused(studio: Studio, *units: dict[str, Any], **values: Any) -> tuple[str, str]:
    before = studio.draw().picture.tobytes()
    with pytest.raises(InvalidRequest) as error:
        draw(studio, *units, **values)
    assert studio.draw().picture.tobytes() == before  # the next one is drawn
    problem = error.value.problems[0]
    return problem.field.removeprefix("extensions.controlnet.units."), problem.message


def test_without_an_image(studio: Studio, photo: str) -> None:
    words = "an image is needed: give the unit one, or start from one"
    assert refused(studio, {"image": photo}, {"module": "canny"}) == ("1.image", words)


def test_without_a_model(studio: Studio, photo: str) -> None:
    assert refused(studio, {"model": "None", "image": photo}) == ("0.model", "choose a control model")
    field, words = refused(studio, {"model": "nowhere", "image": photo})
    assert field == "0.model"
    assert words.startswith("'nowhere' is not a control model here; near are control [")


def test_an_image_that_is_gone(studio: Studio) -> None:
    for name in ("image", "map"):
        field, words = refused(studio, {name: "0" * 64})
        assert field == f"0.{name}"
        assert words == "there is no image 000000000000; upload it again"


def test_a_preprocessor_whose_weights_are_missing(studio: Studio, photo: str) -> None:
    field, words = refused(studio, {"module": "hed", "image": photo})
    assert field == "0.module"
    assert "put ControlNetHED.pth into models/annotators" in words


def test_an_annotator_that_crashes(studio: Studio, photo: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def crash(*_: Any) -> None:
        raise RuntimeError("mat1 and mat2 cannot be multiplied\nat line 7")

    monkeypatch.setattr(maps, "make_map", crash)
    assert refused(studio, {"module": "canny", "image": photo}) == (
        "0.module",
        "canny failed on this image: mat1 and mat2 cannot be multiplied",
    )
    monkeypatch.setattr(maps, "make_map", lambda *_: (_ for _ in ()).throw(MemoryError()))
    with pytest.raises((AtelierError, MemoryError)):
        draw(studio, {"module": "canny", "image": photo})


def test_a_mask_that_is_missing_or_of_another_shape(studio: Studio, photo: str) -> None:
    unit = {"module": "inpaint_only", "image": photo}
    assert refused(studio, unit) == ("0.mask", "inpaint_only needs a mask: white is what is drawn anew")
    wide = studio.image(masked((0, 0, 8, 8), (64, 32)))
    said = refused(studio, {**unit, "mask": wide})
    assert said == ("0.mask", "the mask has 64 x 32 pixels, the image 64 x 64: they must be of one shape")


def test_what_is_wrong_is_said_before_it_is_queued(studio: Studio, photo: str) -> None:
    for unit, field in (
        ({}, "image"),
        ({"image": photo, "model": "no"}, "model"),
        ({"image": photo, "module": "hed"}, "module"),
    ):
        _, request = pictures_unit(studio, unit)
        params: Any = request.extensions["controlnet"]
        with pytest.raises(InvalidRequest) as error:
            studio.extension.check(request, params, studio.images)
        assert error.value.problems[0].field == f"extensions.controlnet.units.0.{field}"


def test_a_unit_of_weight_0_is_not_looked_at(studio: Studio, makings: list[Any]) -> None:
    drawn = draw(studio, {"weight": 0, "module": "hed", "model": "no", "map": "0" * 64})
    assert drawn.picture.tobytes() == studio.draw().picture.tobytes()
    assert studio.read(drawn.text) == drawn.request
    assert makings == []


def test_a_region_of_effect_is_fitted_too(studio: Studio, photo: str) -> None:
    mask = Image.new("L", (200, 100))
    ImageDraw.Draw(mask).rectangle((0, 0, 99, 99), fill=255)
    unit, request = pictures_unit(studio, {"image": photo, "effective_region_mask": studio.image(mask)})
    region = pictures.region_of_effect(unit, request, studio.images)
    assert region is not None
    pixels = np.asarray(region)
    assert pixels.shape == (64, 64)
    assert (pixels[:, :31] == 255).all()
    assert (pixels[:, 33:] == 0).all()
