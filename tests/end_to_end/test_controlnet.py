"""ControlNet's panel, its pose editor and its drawing board in a real browser; the routes are the real ones."""

import io
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from backend.settings import ROOT
from tests.end_to_end.conftest import Studio, new_context, ready, serving
from tests.end_to_end.conftest import painted as services_of
from tests.end_to_end.painter import Painter
from tests.end_to_end.test_create import drop, wait_for_job

pytestmark = pytest.mark.browser
UNIT = "#field-controlnet-units-0"
MAP = ".controlnet-map .look:not([hidden]) img"
NETS = ("control_canny", "control_openpose")
WRIST = 4


@pytest.fixture(scope="module")
def studio(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Studio]:
    """As everywhere, with ControlNet and two control models that only have names."""
    root = tmp_path_factory.mktemp("controlnet")
    folder = root / "extensions" / "controlnet"
    shutil.copytree(ROOT / "extensions" / "controlnet", folder, ignore=shutil.ignore_patterns("__pycache__", "tests"))
    for name in NETS:
        net = root / "models" / "controlnet" / name
        net.mkdir(parents=True)
        (net / "config.json").write_text(json.dumps({"_class_name": "ControlNetModel", "cross_attention_dim": 768}))
        (net / "diffusion_pytorch_model.safetensors").write_bytes(b"\x02\0\0\0\0\0\0\0{}")
    painter = Painter()
    services = services_of(root, painter)
    with serving(services) as url:
        yield Studio(url, services, painter)


@pytest.fixture
def unit(page: Any) -> Any:
    """The page with a first unit."""
    page.locator("#extension-controlnet .switch").first.click()
    page.wait_for_selector(".controlnet-map")
    return page


def scene() -> bytes:
    picture = Image.new("RGB", (320, 384), "lightsteelblue")
    ImageDraw.Draw(picture).rectangle((80, 100, 240, 300), fill="darkred")
    file = io.BytesIO()
    picture.save(file, "PNG")
    return file.getvalue()


def values(page: Any) -> Any:
    return page.evaluate("atelier.request().extensions.controlnet.units[0]")


def shown(page: Any, studio: Studio) -> NDArray[np.uint8]:
    """The map that the page shows."""
    page.wait_for_selector(MAP)
    ref = page.get_attribute(MAP, "data-ref")
    return np.asarray(studio.services.images.get(ref).convert("RGB"))


def another_map(page: Any, before: str | None) -> str:
    page.wait_for_function(
        f"(before) => ![null, undefined, before].includes(document.querySelector({MAP!r})?.dataset.ref)",
        arg=before,
        polling=50,
    )
    ref: str = page.get_attribute(MAP, "data-ref")
    return ref


def with_image(page: Any) -> None:
    drop(page, "[data-field=image] .well", scene())
    page.wait_for_selector("[data-field=image] .filled:not([hidden])")


def box_of(page: Any, selector: str) -> dict[str, float]:
    """Where it is, once it stays there."""
    page.wait_for_function(
        "(selector) => { const was = window.lastBox;"
        " window.lastBox = JSON.stringify(document.querySelector(selector).getBoundingClientRect());"
        " return window.lastBox === was }",
        arg=selector,
        polling=100,
    )
    box: dict[str, float] = page.locator(selector).bounding_box()
    return box


def drag(page: Any, selector: str, dx: float, dy: float) -> None:
    box = box_of(page, selector)
    x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    page.mouse.move(x, y)
    page.mouse.down()
    page.mouse.move(x + dx / 2, y + dy / 2)
    page.mouse.move(x + dx, y + dy)
    page.mouse.up()


def joints(page: Any, person: int = 0) -> NDArray[np.float64]:
    """(18, 3): x, y and confidence."""
    people = json.loads(values(page)["pose"])["people"]
    return np.array(people[person]["pose_keypoints_2d"]).reshape(18, 3)


def test_an_image_becomes_a_map_and_the_unit_is_sent(unit: Any, studio: Studio) -> None:
    with_image(unit)
    unit.select_option(f"{UNIT}-module", value='"canny"')
    unit.wait_for_function("atelier.request().extensions.controlnet.units[0].model.startsWith('control_canny')")
    edges = shown(unit, studio) > 127  # without a word: canny takes no time
    assert 0.002 < edges.mean() < 0.05
    rows, columns = np.nonzero(edges[:, :, 0])
    scale = edges.shape[0] / 384
    found = [columns.min() / scale, rows.min() / scale, columns.max() / scale, rows.max() / scale]
    assert np.allclose(found, [80, 100, 240, 300], atol=4)  # the edges of what was drawn
    before = unit.get_attribute(MAP, "data-ref")
    unit.fill(f"{UNIT}-processor_res", "256")
    another_map(unit, before)
    assert min(shown(unit, studio).shape[:2]) == 256
    unit.fill("#field-prompt", "a red square")
    unit.click("#go")
    job = wait_for_job(unit, "done")
    (sent,) = job["request"]["extensions"]["controlnet"]["units"]
    assert (sent["module"], sent["processor_res"], sent["map"], sent["pose"]) == ("canny", 256, None, "")
    assert sent["image"] == values(unit)["image"]
    assert "ControlNet 0: " in job["pictures"][0]["infotext"]
    unit.click("#details-button")
    unit.wait_for_selector("#stage .details .source")
    assert unit.locator("#stage .source").all_inner_texts() == ["Image"]
    assert sent["image"] in unit.get_attribute("#stage .source img", "src")
    unit.click("#details-button")


def test_a_joint_is_dragged_and_the_map_follows(unit: Any, studio: Studio) -> None:
    with_image(unit)
    unit.select_option(f"{UNIT}-module", value='"openpose"')
    unit.wait_for_selector(".controlnet-map .hint:has-text('body_pose_model')")  # which file is missing, and where
    unit.click(".controlnet-map .pose")
    unit.click(".pose-editor .use")
    unit.wait_for_selector(".pose-editor", state="detached")
    standing, first = joints(unit), another_map(unit, None)
    before = shown(unit, studio)
    assert standing.shape == (18, 3)
    assert before.shape == (384, 320, 3)  # over the image
    assert not unit.is_visible(".controlnet-map .hint")

    unit.click(".controlnet-map .pose")
    scale = box_of(unit, ".people")["width"] / 320
    drag(unit, f".hold[data-joint='{WRIST}']", -20 * scale, -90 * scale)
    unit.click(".pose-editor .use")
    another_map(unit, first)
    moved, after = joints(unit), shown(unit, studio)
    assert np.allclose(moved[WRIST, :2] - standing[WRIST, :2], [-20, -90], atol=1.5)
    assert np.array_equal(np.delete(moved, WRIST, 0), np.delete(standing, WRIST, 0))  # nothing else
    colour = [170, 255, 0]  # of the right wrist
    for place, then, now in ((standing, True, False), (moved, False, True)):
        x, y = place[WRIST, :2].astype(int)
        assert bool(np.all(before[y, x] == colour)) == then
        assert bool(np.all(after[y, x] == colour)) == now


def test_a_pose_that_would_be_cut_off_is_told(unit: Any) -> None:
    unit.click(".controlnet-map .pose")
    unit.click(".pose-editor .use")
    unit.wait_for_selector(MAP)
    assert not unit.is_visible(".controlnet-map .crop")
    unit.fill("#field-width", "512")
    unit.fill("#field-width-other", "128")
    unit.keyboard.press("Tab")
    unit.wait_for_selector(".controlnet-map .crop:not([hidden])")
    unit.select_option(f"{UNIT}-resize_mode", value='"Resize and Fill"')
    unit.wait_for_selector(".controlnet-map .crop", state="hidden")


def test_the_pose_editor(unit: Any) -> None:
    unit.click(".controlnet-map .pose")
    unit.click(".pose-editor .add")
    unit.click(".pose-editor .undo")  # which is off then, and does not have the focus any more
    unit.keyboard.press("Control+y")
    unit.click(".pose-editor .flip")
    unit.keyboard.press("Control+z")
    assert unit.locator(".people .person").count() == 2
    unit.locator(f".joint[data-person='1'][data-joint='{WRIST}']").focus()
    unit.keyboard.press("Shift+ArrowRight")
    unit.keyboard.press("h")
    assert "hidden" in unit.inner_text(".pose-editor .cn-said")
    unit.keyboard.press("Escape")
    unit.click(".pose-editor .stay")  # nothing is lost by a slip
    drag(unit, ".corner-3", 80, 80)
    unit.click(".pose-editor .use")
    unit.wait_for_selector(".pose-editor", state="detached")
    one, other = joints(unit), joints(unit, 1)
    assert other[WRIST].tolist() == [0, 0, 0]  # hidden
    assert np.ptp(other[5:14, 1]) > np.ptp(one[5:14, 1]) * 1.05  # larger
    unit.click(".controlnet-map .reset-map")
    assert (values(unit)["pose"], values(unit)["map"]) == ("", None)
    assert not unit.is_visible(MAP)


def test_a_pose_is_kept_as_a_file_and_read_again(unit: Any, tmp_path: Path) -> None:
    unit.click(".controlnet-map .pose")
    with unit.expect_download() as download:
        unit.click(".pose-editor [aria-label='Save as a file']")
    saved = json.loads(Path(download.value.path()).read_text())
    assert len(saved["people"]) == 1
    parts = [part for n in range(18) for part in (0.2 + n / 40, 0.5, 1)]
    face = {"pose_keypoints_2d": [], "face_keypoints_2d": [20, 30, 1] * 70}  # of openpose_faceonly
    (tmp_path / "pose.json").write_text(json.dumps({**saved, "people": [*saved["people"], face]}))
    (tmp_path / "parts.json").write_text(json.dumps({**saved, "people": [{"pose_keypoints_2d": parts}]}))
    other = {**saved, "people": [{"pose_keypoints_2d": [10] * 75}]}  # BODY_25, which has other joints
    (tmp_path / "other.json").write_text(json.dumps(other))
    unit.set_input_files(".pose-editor input[type=file]", tmp_path / "other.json")
    unit.wait_for_selector("#toasts >> text=no pose")
    unit.set_input_files(".pose-editor input[type=file]", tmp_path / "parts.json")
    unit.wait_for_function(
        "(x) => Math.abs(document.querySelector('.person .joint').getAttribute('cx') - x) < 1",
        arg=saved["canvas_width"] * 0.2,
    )
    unit.set_input_files(".pose-editor input[type=file]", tmp_path / "pose.json")
    unit.wait_for_selector(".person >> nth=1", state="attached")
    unit.keyboard.press("Delete")
    assert unit.locator(".people .person").count() == 1
    unit.keyboard.press("Escape")
    unit.click(".pose-editor .drop")
    assert values(unit)["pose"] == ""


def test_a_map_is_drawn_by_hand(unit: Any, studio: Studio) -> None:
    with_image(unit)
    unit.select_option(f"{UNIT}-module", value='"canny"')
    edges = shown(unit, studio)
    unit.click(".controlnet-map .draw")
    box = box_of(unit, "canvas.sketch")

    def at(x: float, y: float) -> tuple[float, float]:
        return box["x"] + x * box["width"], box["y"] + y * box["height"]

    for erases in (False, True):
        if erases:
            unit.keyboard.press("e")
        unit.mouse.move(*at(0.1, 0.5 if erases else 0.1))
        unit.mouse.down()
        unit.mouse.move(*at(0.9, 0.5 if erases else 0.1), steps=6)
        unit.mouse.up()
    unit.keyboard.press("Control+z")
    unit.keyboard.press("Control+y")
    unit.click(".controlnet-editor .use")
    unit.wait_for_selector(".controlnet-map .badge:not([hidden])")
    drawn = shown(unit, studio)
    height, width = drawn.shape[:2]
    assert drawn.shape == edges.shape
    line = drawn[int(height * 0.1), int(width * 0.15) : int(width * 0.85)]
    assert line.min() == 255  # drawn
    assert drawn[height // 2].max() == 0  # taken away
    assert edges[height // 2].max() == 255
    assert np.array_equal(drawn[height * 3 // 4 :], edges[height * 3 // 4 :])  # the rest is as it was
    assert studio.services.images.get(values(unit)["map"])
    unit.click(".controlnet-map .reset-map")
    assert values(unit)["map"] is None


def test_the_picture_shown_is_taken(unit: Any, studio: Studio) -> None:
    unit.fill("#field-prompt", "a red circle")
    unit.locator("#extension-controlnet .switch").first.click()
    unit.click("#go")
    wait_for_job(unit, "done")
    unit.locator("#extension-controlnet .switch").first.click()
    unit.click("[data-field=image] .unfilled .staged")
    unit.wait_for_selector("[data-field=image] .filled:not([hidden])")
    image = values(unit)["image"]
    assert studio.services.images.get(image).size == (128, 128)
    unit.wait_for_function("(image) => localStorage['atelier:draft']?.includes(image)", arg=image, polling=50)
    unit.reload(wait_until="commit")
    ready(unit)
    unit.click("#extension-controlnet summary >> nth=0")
    unit.wait_for_selector("[data-field=image] .filled:not([hidden])")


def test_a_recalled_map_is_the_servers_until_something_changes(unit: Any, studio: Studio) -> None:
    with_image(unit)
    unit.select_option(f"{UNIT}-module", value='"canny"')
    ref = another_map(unit, None)
    image = values(unit)["image"]
    text = (
        "a square\nSteps: 2, Sampler: Euler, Seed: 1, Size: 64x64, "
        f'ControlNet 0: "Module: canny, Model: None, Weight: 1, Processor Res: 512, Threshold A: 90, '
        f'Image: {image}, Map: {ref}, Made From: {"f" * 16}"'
    )
    unit.fill("#field-prompt", text)
    unit.click("#read-parameters")
    unit.wait_for_selector("#toasts .toast.done")
    assert another_map(unit, None) == ref
    assert not unit.is_visible(".controlnet-map .badge")  # not changed by hand
    assert values(unit)["made_from"] == "f" * 16
    assert not unit.is_visible("#field-controlnet-units-unit .count")  # what is not shown is not counted as changed
    resets = {
        name: f"#field-controlnet-units-unit [data-field={name}] .reset" for name in ("processor_res", "threshold_a")
    }
    assert [name for name, reset in resets.items() if unit.is_visible(reset)] == ["threshold_a"]
    unit.fill(f"{UNIT}-processor_res", "128")
    another_map(unit, ref)
    unit.evaluate(
        "([text, ref]) => { const area = document.querySelector('#field-prompt'); area.value = text;"
        " area.dispatchEvent(new Event('input')); }",
        [text.replace(f"Image: {image}, ", "").replace("Made From: f", "Made From: pose-f"), ref],
    )
    unit.click("#read-parameters")
    unit.wait_for_selector(".controlnet-map .badge:not([hidden])")  # its pose is not here: it stays as it is


@pytest.mark.parametrize("tab", [{"viewport": {"width": 390, "height": 844}, "has_touch": True}], indirect=True)
def test_a_finger_drags_a_joint(unit: Any) -> None:
    unit.tap(".controlnet-map .pose")
    unit.wait_for_selector(".people .hold", state="attached")
    room = unit.evaluate("document.querySelector('.pose-editor').getBoundingClientRect().toJSON()")
    assert (room["left"], room["right"]) == (0, 390)
    box = box_of(unit, f".hold[data-joint='{WRIST}']")
    x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    fingers = unit.context.new_cdp_session(unit)
    for kind, places in (("Start", [(x, y)]), ("Move", [(x - 10, y - 20)]), ("Move", [(x - 15, y - 40)]), ("End", [])):
        points = [{"x": px, "y": py, "id": 0} for px, py in places]
        fingers.send("Input.dispatchTouchEvent", {"type": f"touch{kind}", "touchPoints": points})
    unit.wait_for_selector(".pose-editor .undo:not([disabled])")
    before = unit.evaluate("document.querySelector('.people').getBoundingClientRect().width")
    unit.click(".pose-editor .use")
    unit.wait_for_selector(".pose-editor", state="detached")
    width = unit.evaluate("JSON.parse(atelier.request().extensions.controlnet.units[0].pose).canvas_width")
    rise = joints(unit)[7, 1] - joints(unit)[WRIST, 1]  # over the other wrist, which is as high
    assert abs(rise - 40 * width / before) < 2


@pytest.mark.parametrize("tab", [{"locale": "de-DE"}], indirect=True)
def test_it_speaks_german(unit: Any) -> None:
    unit.select_option(f"{UNIT}-module", value='"canny"')
    labels = unit.locator("#extension-controlnet .fields.unit label").all_inner_texts()
    assert {"Bild", "Karte", "Untere Schwelle", "Auflösung der Vorverarbeitung"} <= set(labels)
    unit.click(".controlnet-map .draw")
    assert unit.inner_text(".controlnet-editor h2") == "Die Karte zeichnen"


@pytest.fixture
def tab(tab: Any, browser: Any, request: pytest.FixtureRequest) -> Iterator[Any]:
    """The usual one, or one of another browser."""
    if not hasattr(request, "param"):
        yield tab
        return
    made = new_context(browser, **request.param)
    yield made.new_page()
    made.close()
