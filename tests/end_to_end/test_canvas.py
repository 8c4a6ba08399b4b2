"""The canvas in a real browser: what is painted with mouse, pen and fingers is what the server gets."""

import io
import math
from collections.abc import Callable, Iterator, Sequence
from itertools import count
from typing import Any, NamedTuple

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from tests.end_to_end.conftest import Studio, new_context, open_page, ready
from tests.end_to_end.test_create import drop, generate, wait_for_job

pytestmark = pytest.mark.browser
SIZE = 512, 384
SPEED_LIMIT = 5.0
"""Milliseconds of script that a pointer's move may cost on 2048 x 2048."""
MASK = "(atelier.request().extensions.inpaint?.mask ?? null)"
Mask = NDArray[np.bool_]
Point = tuple[float, float]


class Easel(NamedTuple):
    """The open canvas."""

    page: Any
    studio: Studio
    left: float
    top: float
    z: float
    """Where the picture's corner is in the window, and how large its pixels are."""

    def at(self, x: float, y: float) -> Point:
        """The whole pixel of the window nearest to a point of the picture: browsers round a mouse's place."""
        return round(self.left + x * self.z), round(self.top + y * self.z)

    def back(self, spot: Point) -> Point:
        return (spot[0] - self.left) / self.z, (spot[1] - self.top) / self.z

    def drag(self, *points: Point, hold: str | None = None, button: str = "left") -> list[Point]:
        """With the mouse; gives where the picture was really touched."""
        spots = [self.at(*point) for point in points]
        if hold:
            self.page.keyboard.down(hold)
        self.page.mouse.move(*spots[0])
        self.page.mouse.down(button=button)
        for spot in spots[1:]:
            self.page.mouse.move(*spot)
        self.page.mouse.up(button=button)
        if hold:
            self.page.keyboard.up(hold)
        return [self.back(spot) for spot in spots]

    def size(self, pixels: int) -> None:
        self.page.fill(".brush-size .box", str(pixels))
        self.page.keyboard.press("Enter")

    def sent(self, act: Callable[[], Any]) -> tuple[Any, Mask]:
        """What `act` gives, and the mask that is on the server a moment after it."""
        before = self.page.evaluate(MASK)
        result = act()
        self.page.wait_for_function(f"(before) => ({MASK} ?? before) !== before", arg=before, polling=50)
        return result, mask_of(self.studio, self.page.evaluate(MASK))

    def moved(self) -> "Easel":
        """After a zoom."""
        return measured(self.page, self.studio)


def measured(page: Any, studio: Studio) -> Easel:
    left, top, z = page.evaluate(
        "(() => { const room = document.querySelector('.easel').getBoundingClientRect();"
        " const { style } = document.querySelector('.easel .paper');"
        " const { e, f } = new DOMMatrix(style.transform);"
        " return [room.left + e, room.top + f, 1 / style.getPropertyValue('--thin')] })()"  # in full precision
    )
    return Easel(page, studio, left, top, z)


def opened(page: Any, studio: Studio, data: bytes) -> Easel:
    page.evaluate("document.querySelector('#mode-inpaint').click()")
    drop(page, "#stage", data)
    page.wait_for_selector(".easel .ground")
    page.wait_for_timeout(100)
    return measured(page, studio)


@pytest.fixture
def easel(page: Any, studio: Studio) -> Easel:
    """The canvas with a picture on it, in Inpaint."""
    return opened(page, studio, photo())


NUMBERS = count()


def photo() -> bytes:
    """A picture in which no two rows or columns are alike; another one each time."""
    across, down = np.meshgrid(np.arange(SIZE[0]), np.arange(SIZE[1]) + next(NUMBERS))
    pixels = np.stack([across % 256, down % 256, (across + down) // 4 % 256], axis=-1).astype(np.uint8)
    return as_png(Image.fromarray(pixels))


def as_png(picture: Image.Image) -> bytes:
    file = io.BytesIO()
    picture.save(file, "PNG")
    return file.getvalue()


def pixels_of(studio: Studio, ref: str) -> NDArray[np.int16]:
    return np.asarray(studio.services.images.get(ref).convert("RGB")).astype(np.int16)


def mask_of(studio: Studio, ref: str) -> Mask:
    values = np.asarray(studio.services.images.get(ref).convert("L"))
    assert set(np.unique(values)) <= {0, 255}  # hard edges
    return values > 127


def stroke(points: Sequence[Point], diameter: float, size: tuple[int, int] = SIZE) -> Mask:
    """The pixels whose centres are within the radius of the line through the points."""
    x, y = np.meshgrid(np.arange(size[0]) + 0.5, np.arange(size[1]) + 0.5)
    covered = np.zeros((size[1], size[0]), bool)
    for (x0, y0), (x1, y1) in zip(points, [*points[1:], points[-1]], strict=True):
        squared = (x1 - x0) ** 2 + (y1 - y0) ** 2
        along = np.clip(((x - x0) * (x1 - x0) + (y - y0) * (y1 - y0)) / squared, 0, 1) if squared else 0
        covered |= np.hypot(x - x0 - along * (x1 - x0), y - y0 - along * (y1 - y0)) <= diameter / 2
    return covered


def area(points: Sequence[Point], size: tuple[int, int] = SIZE) -> Mask:
    """The pixels whose centres are inside a polygon that does not cross itself."""
    x, y = np.meshgrid(np.arange(size[0]) + 0.5, np.arange(size[1]) + 0.5)
    inside = np.zeros((size[1], size[0]), bool)
    for (x0, y0), (x1, y1) in zip(points, [*points[1:], points[0]], strict=True):
        if y0 != y1:
            inside ^= ((y0 > y) != (y1 > y)) & (x > x0 + (y - y0) / (y1 - y0) * (x1 - x0))
    return inside


def wave(n: int = 12) -> list[Point]:
    return [(80 + 28 * i, 180 + 70 * math.sin(i / 1.7)) for i in range(n)]


def test_the_server_gets_what_the_mouse_painted(easel: Easel, studio: Studio) -> None:
    easel.size(37)
    touched, mask = easel.sent(lambda: easel.drag(*wave()))
    painted = stroke(touched, 37)
    assert 10_000 < painted.sum() < 25_000
    assert (mask == painted).all()
    # closer, and moved by a held space bar; a right button rubs out
    easel.page.mouse.move(*easel.at(250, 200))
    easel.page.mouse.wheel(0, -400)
    near = easel.moved()
    assert near.z > 1.5 * easel.z
    near.drag((250, 200), (270, 190), hold="Space")
    near = near.moved()
    rubbed, mask = near.sent(lambda: near.drag((200, 150), (240, 210), (290, 230), button="right"))
    painted &= ~stroke(rubbed, 37)
    assert (mask == painted).all()
    generate(easel.page)
    job = wait_for_job(easel.page, "done")
    request = job["request"]
    assert (mask_of(studio, request["extensions"]["inpaint"]["mask"]) == painted).all()
    assert "outpaint" not in request["extensions"]
    raw = studio.services.images.read(request["extensions"]["inpaint"]["mask"])
    assert Image.open(io.BytesIO(raw)).mode == "1"
    assert len(raw) < 4000


def test_a_stroke_is_on_the_server_before_the_request(easel: Easel, studio: Studio) -> None:
    easel.size(40)
    easel.page.fill("#field-prompt", "a yellow star")
    touched = easel.drag((100, 100), (300, 100))
    easel.page.keyboard.press("Control+Enter")  # sooner than the mask goes up of itself
    mask = mask_of(studio, wait_for_job(easel.page, "done")["request"]["extensions"]["inpaint"]["mask"])
    assert (mask == stroke(touched, 40)).all()


def test_lasso_rectangle_fill_and_invert(easel: Easel) -> None:
    page = easel.page
    page.keyboard.press("l")
    ring = [(150 + 90 * math.cos(i / 4), 150 + 60 * math.sin(i / 4)) for i in range(25)]
    touched, mask = easel.sent(lambda: easel.drag(*ring))
    painted = area(touched)
    assert (mask == painted).all()
    page.keyboard.press("m")
    (a, b), mask = easel.sent(lambda: easel.drag((300, 200), (420, 333)))
    box = np.s_[math.floor(a[1]) : math.floor(b[1]) + 1, math.floor(a[0]) : math.floor(b[0]) + 1]
    painted[box] = True
    assert (mask == painted).all()
    _, mask = easel.sent(lambda: easel.drag((320, 220), (400, 300), hold="Alt"))  # Alt takes away
    left, top, right, bottom = (
        math.floor(v) for v in (*easel.back(easel.at(320, 220)), *easel.back(easel.at(400, 300)))
    )
    painted[top : bottom + 1, left : right + 1] = False
    assert (mask == painted).all()
    page.keyboard.press("g")  # what the frame of mask encloses
    _, mask = easel.sent(lambda: easel.drag((360, 260)))
    painted[top : bottom + 1, left : right + 1] = True
    assert (mask == painted).all()
    _, mask = easel.sent(lambda: page.keyboard.press("Control+i"))
    assert (mask == ~painted).all()
    _, mask = easel.sent(lambda: page.click("#canvas-invert"))
    assert (mask == painted).all()


def test_undo_is_exact(easel: Easel) -> None:
    page = easel.page
    easel.size(61)
    _, first = easel.sent(lambda: easel.drag(*wave()))
    page.keyboard.press("e")
    _, second = easel.sent(lambda: easel.drag((90, 120), (400, 300)))
    page.keyboard.press("l")
    _, third = easel.sent(lambda: easel.drag((10, 10), (500, 20), (300, 370)))
    assert first.sum() > second.sum() < third.sum()
    _, mask = easel.sent(lambda: page.keyboard.press("Control+z"))
    assert (mask == second).all()
    _, mask = easel.sent(lambda: page.click("#canvas-undo"))
    assert (mask == first).all()
    _, mask = easel.sent(lambda: (page.keyboard.press("Control+Shift+z"), page.keyboard.press("Control+y")))
    assert (mask == third).all()
    page.keyboard.press("Delete")
    page.wait_for_function("document.querySelector('.from-canvas .measure').textContent.startsWith('Paint it')")
    _, mask = easel.sent(lambda: page.keyboard.press("Control+z"))
    assert (mask == third).all()


def test_keys_wheel_and_pen_set_the_size_of_the_brush(easel: Easel) -> None:
    page = easel.page
    easel.size(40)
    page.mouse.move(*easel.at(200, 200))
    sizes = [40]
    for key in ("w", "]", "q", "["):
        page.keyboard.press(key)
        sizes.append(int(page.input_value(".brush-size .box")))
    assert sizes == [40, 46, 53, 46, 40]
    page.keyboard.down("Control")
    page.mouse.wheel(0, -100)
    page.wait_for_function("document.querySelector('.brush-size .box').value === '46'")
    page.keyboard.up("Control")
    assert measured(page, easel.studio).z == easel.z  # that did not zoom
    pen = page.context.new_cdp_session(page)
    x, y = easel.at(250, 190)

    def press() -> None:
        for kind, force in (("mouseMoved", 0), ("mousePressed", 0.4), ("mouseReleased", 0)):
            event = {"type": kind, "x": x, "y": y, "button": "left", "clickCount": 1, "pointerType": "pen"}
            pen.send("Input.dispatchMouseEvent", {**event, "force": force})

    _, mask = easel.sent(press)
    assert (mask == stroke([easel.back((x, y))], 46 * (0.15 + 0.85 * np.float32(0.4)))).all()


def test_colours_become_the_picture_to_start_from(easel: Easel, studio: Studio) -> None:
    page = easel.page
    page.click("label:has(#work-sketch)")
    easel.size(50)
    page.evaluate("((input) => { input.value = '#f0c020'; input.dispatchEvent(new Event('input')) })"
                  "(document.querySelector('.colour'))")  # fmt: skip
    easel = easel.moved()
    touched = easel.drag((100, 100), (400, 250))
    page.keyboard.press("Control+z")
    page.keyboard.press("Control+Shift+z")
    before = page.evaluate("atelier.request().init_image")
    generate(page)
    request = wait_for_job(page, "done")["request"]
    assert request["init_image"] != before
    was, now = pixels_of(studio, before), pixels_of(studio, request["init_image"])
    inside, beside = stroke(touched, 48), ~stroke(touched, 52)
    assert (now[inside] == (0xF0, 0xC0, 0x20)).all()
    assert (now[beside] == was[beside]).all()
    mask = mask_of(studio, request["extensions"]["inpaint"]["mask"])  # what was sketched is drawn anew
    assert mask[inside].all()
    assert not mask[beside].any()
    # a colour out of the picture
    page.keyboard.press("i")
    easel = easel.moved()
    page.mouse.click(*easel.at(30, 300))
    x, y = (math.floor(v) for v in easel.back(easel.at(30, 300)))
    assert page.input_value(".colour") == "#" + "".join(f"{v:02x}" for v in was[y, x])


def test_the_frame_is_dragged(easel: Easel, studio: Studio) -> None:
    page = easel.page
    page.click("label:has(#work-frame)")
    handle = page.locator(".handle.edge.right").bounding_box()
    x, y = round(handle["x"] + handle["width"] / 2), round(handle["y"] + handle["height"] / 2)
    page.mouse.move(x, y)
    page.mouse.down()
    page.mouse.move(x + 30 * easel.z, y + 5, steps=3)
    page.mouse.move(x + round(66 * easel.z), y + 9)
    assert page.inner_text(".grown.right") == "+64"  # in steps of 8
    page.mouse.up()
    assert "512 × 384 → 576 × 384" in page.inner_text(".canvas .meta")
    generate(page)
    request = wait_for_job(page, "done")["request"]
    asked = request["extensions"]["outpaint"]
    assert [asked[side] for side in ("left", "top", "right", "bottom")] == [0, 0, 64, 0]
    assert "inpaint" not in request["extensions"]
    page.wait_for_selector("#candidate-accept")  # it is shown in the frame
    over = page.locator(".easel .over").bounding_box()
    ground = page.locator(".easel .ground").bounding_box()
    assert over["x"] == pytest.approx(ground["x"], abs=1)
    assert over["width"] / ground["width"] == pytest.approx(576 / 512, abs=0.01)
    page.keyboard.press("Escape")
    page.click('.ratios .chip[data-ratio="16:9"]')
    assert page.inner_text(".grown.left") == "+80"
    assert "→ 680 × 384" in page.inner_text(".canvas .meta")  # 682.7 in steps of 8
    page.click("#canvas-undo")
    assert "→ 576 × 384" in page.inner_text(".canvas .meta")
    page.focus(".handle.edge.top")
    page.keyboard.press("Shift+ArrowUp")
    assert page.get_attribute(".handle.edge.top", "aria-valuenow") == "64"


def test_a_candidate_is_compared_and_accepted(easel: Easel, studio: Studio) -> None:
    page = easel.page
    easel.size(120)
    (_, mask) = easel.sent(lambda: easel.drag((150, 150), (350, 230)))
    before = page.evaluate("atelier.request().init_image")
    generate(page, "a yellow star on a purple background")
    wait_for_job(page, "done")
    page.wait_for_selector("#candidate-accept")
    assert page.locator(".candidates .tile").count() == 2
    over = page.locator(".easel .over")
    assert over.is_visible()
    page.mouse.move(*easel.at(200, 200))
    page.mouse.down()  # held: the picture as it was
    assert not over.is_visible()
    page.mouse.up()
    assert over.is_visible()
    page.click("#candidate-again")
    again = wait_for_job(page, "done", 2)
    page.wait_for_function("document.querySelectorAll('.candidates .tile').length === 3")
    assert again["request"]["init_image"] == before
    seeds = page.evaluate("[...atelier.jobs.values()].slice(-2).map((job) => job.request.seed)")
    assert seeds[0] != seeds[1]
    page.click("#candidate-discard")
    page.wait_for_function("document.querySelectorAll('.candidates .tile').length === 2")
    page.click("#candidate-accept")
    page.wait_for_function("(before) => atelier.request().init_image !== before", arg=before)
    accepted = page.evaluate("atelier.request().init_image")
    was, now = pixels_of(studio, before), pixels_of(studio, accepted)
    assert (now[~mask] == was[~mask]).all()
    assert (now[mask] != was[mask]).any(axis=-1).mean() > 0.9
    assert "inpaint" not in page.evaluate("atelier.request().extensions")  # the mask is gone
    page.keyboard.press("Control+z")
    page.wait_for_function("(before) => atelier.request().init_image === before", arg=before)
    assert page.locator(".candidates .tile").count() == 2  # with its mask and its candidates
    page.wait_for_function(MASK)
    assert (mask_of(studio, page.evaluate(MASK)) == mask).all()
    page.keyboard.press("Control+y")
    page.wait_for_function("(accepted) => atelier.request().init_image === accepted", arg=accepted)
    easel.drag((100, 100), (200, 100))
    generate(page)
    assert wait_for_job(page, "done", 3)["request"]["init_image"] == accepted


def test_a_preview_of_a_part_lies_where_the_part_is(easel: Easel, studio: Studio) -> None:
    assert studio.painter
    easel.drag((200, 150), (260, 170))
    studio.painter.region = "256x192+128+48"
    studio.painter.pace = 0.5
    try:
        generate(easel.page)
        easel.page.wait_for_selector(".easel .over[src^='data:']")
        easel = easel.moved()  # the strip has come
        over = easel.page.locator(".easel .over").bounding_box()
    finally:
        studio.painter.region, studio.painter.pace = "", 0.02
    corners = [over["x"], over["y"], over["x"] + over["width"], over["y"] + over["height"]]
    near = easel.back((corners[0], corners[1])), easel.back((corners[2], corners[3]))
    assert np.allclose(near, ((128, 48), (384, 240)), atol=0.5)
    wait_for_job(easel.page, "done")


def test_a_mask_comes_from_a_file_or_from_a_picture(easel: Easel, studio: Studio) -> None:
    page = easel.page
    half = np.zeros((SIZE[1] // 2, SIZE[0] // 2), np.uint8)
    half[20:90, 40:200] = 255
    file = {"name": "mask.png", "mimeType": "image/png", "buffer": as_png(Image.fromarray(half))}
    _, mask = easel.sent(lambda: page.set_input_files(".from-canvas input", file))
    assert (mask == np.kron(half > 0, np.ones((2, 2), bool))).all()
    generate(page)
    made = wait_for_job(page, "done")["pictures"][0]["id"]
    page.wait_for_selector("#candidate-accept")
    page.keyboard.press("Escape")
    page.click("#canvas-clear")
    page.wait_for_function("document.querySelector('.from-canvas .measure').textContent.startsWith('Paint it')")
    page.click(f'.thumb[data-picture="{made}"]')
    page.click('#stage [data-action="parameters"]')  # its text names the mask
    page.wait_for_function(MASK)
    assert (mask_of(studio, page.evaluate(MASK)) == mask).all()
    page.click(".live.back")
    page.wait_for_selector("#canvas-invert")
    _, inverted = easel.sent(lambda: page.click("#canvas-invert"))
    assert (inverted == ~mask).all()


def test_every_picture_can_be_sent_here(page: Any, studio: Studio) -> None:
    generate(page)
    picture = wait_for_job(page, "done")["pictures"][0]["id"]
    page.wait_for_selector("#stage img.done")
    for number, send in enumerate(
        (
            lambda: page.click('#stage [data-action="inpaint"]'),
            lambda: (page.click("#expand"), page.click('#lightbox [data-action="inpaint"]')),
            lambda: (page.hover(f'.thumb[data-picture="{picture}"]'), page.click(".on-thumb")),
        )
    ):
        send()
        page.wait_for_selector(".easel .ground")
        assert page.is_checked("#mode-inpaint")
        page.evaluate("document.querySelector('#mode-text').click()")
        page.click(f'.thumb[data-picture="{picture}"]')
        page.wait_for_selector("#stage img.done")
        assert not page.is_visible(".easel"), number
    page.evaluate("document.querySelector('#mode-inpaint').click()")
    page.wait_for_selector(".easel .ground")
    page.click("#go")  # nothing is painted: nothing is sent
    page.wait_for_selector("#toasts .toast >> text=Paint over what should change")
    assert page.evaluate("[...atelier.jobs.values()].filter((job) => job.id > since).length") == 1


def test_a_reload_keeps_mask_and_colours(easel: Easel) -> None:
    page = easel.page
    easel.size(60)
    _, mask = easel.sent(lambda: easel.drag((100, 100), (300, 200)))
    page.click("label:has(#work-sketch)")
    easel = easel.moved()
    easel.drag((300, 300), (420, 300))
    page.wait_for_function("JSON.parse(localStorage['atelier:canvas']).sketch")
    page.wait_for_function(f"localStorage['atelier:draft']?.includes({MASK})")
    page.reload(wait_until="commit")
    ready(page)
    page.wait_for_selector(".easel .layer.sketch")
    again = measured(page, easel.studio)
    assert (mask_of(easel.studio, page.evaluate(MASK)) == mask).all()
    page.keyboard.press("m")
    _, more = again.sent(lambda: again.drag((5, 5), (20, 20)))
    assert (more[50:] == mask[50:]).all()
    assert more[:50].sum() > mask[:50].sum()


@pytest.fixture
def tablet(browser: Any, studio: Studio) -> Iterator[Any]:
    context = new_context(browser, viewport={"width": 820, "height": 1180}, has_touch=True, is_mobile=True)
    yield open_page(context, studio.url)
    context.close()


def test_fingers_paint_and_pinch(tablet: Any, studio: Studio) -> None:
    easel = opened(tablet, studio, photo())
    tablet.evaluate("scrollTo(0, 0)")
    easel = easel.moved()
    fingers = tablet.context.new_cdp_session(tablet)

    def touch(kind: str, *spots: Point) -> None:
        points = [{"x": x, "y": y, "id": i} for i, (x, y) in enumerate(spots)]
        fingers.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": points})

    spots = [easel.at(*point) for point in wave()]

    def paint() -> None:
        touch("touchStart", spots[0])
        for spot in spots[1:]:
            touch("touchMove", spot)
        touch("touchEnd")

    _, mask = easel.sent(paint)
    size = round(max(SIZE) / 12)
    assert (mask == stroke([easel.back(spot) for spot in spots], size)).all()
    x, y = easel.at(256, 192)
    touch("touchStart", (x - 40, y))
    touch("touchStart", (x - 40, y), (x + 40, y))
    for i in range(10):
        touch("touchMove", (x - 40 - 8 * i, y), (x + 40 + 8 * i, y))
    touch("touchEnd")
    near = easel.moved()
    assert near.z == pytest.approx(easel.z * 224 / 80, rel=0.1)
    tablet.keyboard.press("m")
    _, mask = near.sent(lambda: near.drag((250, 190), (260, 200)))
    covered = stroke([easel.back(spot) for spot in spots], size)
    assert (mask & ~covered).sum() < 150  # the first finger of the pinch left no stroke
    assert tablet.evaluate("document.documentElement.scrollWidth <= innerWidth")
    small = tablet.evaluate(
        "[...document.querySelectorAll('.canvas .button')].filter((each) => each.offsetParent)"
        ".filter((each) => each.offsetWidth < 44 || each.offsetHeight < 44).map((each) => each.outerHTML)"
    )
    assert small == []


def test_a_move_costs_little_on_a_large_picture(page: Any, studio: Studio) -> None:
    easel = opened(page, studio, as_png(Image.linear_gradient("L").resize((2048, 2048)).convert("RGB")))
    easel.size(160)
    session = page.context.new_cdp_session(page)
    session.send("Performance.enable")

    def script() -> float:
        metrics = session.send("Performance.getMetrics")["metrics"]
        return float(next(each["value"] for each in metrics if each["name"] == "ScriptDuration"))

    x, y = easel.at(400, 1000)
    page.mouse.move(x, y)
    page.mouse.down()
    before = script()
    for i in range(200):
        page.mouse.move(x + 2 * i, y + 120 * math.sin(i / 20))
    spent = 1000 * (script() - before) / 200
    page.mouse.up()
    assert spent < SPEED_LIMIT, f"{spent:.2f} ms of script per move on 2048 x 2048"
