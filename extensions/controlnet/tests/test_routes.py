"""What the page asks over HTTP: previews, poses, what there is, downloads."""

import importlib
import json
import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from PIL import Image
from starlette.testclient import TestClient

from backend import registry
from backend.diffusion.models import ModelStore
from backend.errors import Busy, InvalidRequest, Problem
from extensions.controlnet import maps, pose, preview
from extensions.controlnet.preprocessors import TABLE, Annotators
from extensions.controlnet.routes import AT_ONCE, fits, types_with
from tests import web
from tests.waiting import wait_for

FOLDER = Path(__file__).parents[1]
AT = "/extensions/controlnet"


class Hands(web.Painter):
    """A worker who notes the errands that he is sent on."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[tuple[str, str, dict[str, Any]]] = []
        self.answer: dict[str, Any] | Exception = {"image": "f" * 64, "pose": None}

    def errand(
        self, extension: str, name: str, values: Mapping[str, Any], go_on: Callable[[], None]
    ) -> dict[str, Any]:
        self.asked.append((extension, name, dict(values)))
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer


class Page:
    """A browser at an Atelier with ControlNet."""

    def __init__(self, folder: Path, **settings: Any) -> None:
        self.hands = Hands()
        built = web.atelier(folder, worker=self.hands, **settings)
        models, kept = built.settings.models_dir, built.settings.data_dir / "extensions"
        loaded = registry.load(FOLDER.parent, only={"controlnet"}, models=models, kept=kept)
        assert not loaded.broken
        self.services = replace(built, registry=loaded)
        self.annotators = models / "annotators"
        self.annotators.mkdir()
        self.images = built.images
        self.browser: TestClient = web.visit(self.services)

    def image(self, width: int = 96, height: int = 64, seed: int = 0) -> str:
        pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
        return self.images.put(
            preview.png(Image.fromarray(cv2.resize(pixels[:8, :8], (width, height), interpolation=cv2.INTER_NEAREST)))
        )

    def preview(self, status: int = 200, **unit: Any) -> dict[str, Any]:
        beside = {name: unit.pop(name) for name in ("width", "height", "init_image") if name in unit}
        answer = self.browser.post(f"{AT}/preview", json={"unit": unit, **beside})
        assert answer.status_code == status, answer.text
        found: dict[str, Any] = answer.json()
        return found


@pytest.fixture
def page(tmp_path: Path) -> Iterator[Page]:
    page = Page(tmp_path)
    with page.browser:
        yield page


def test_a_preview_is_the_map_that_a_job_would_get(page: Page) -> None:
    ref = page.image()
    found = page.preview(image=ref, module="canny", processor_res=128, threshold_a=50, threshold_b=120)
    assert found["pose"] is None
    picture = page.images.get(found["image"])
    assert picture.size == (192, 128)
    values = maps.MapValues("canny", 128, 50, 120)
    assert (
        picture.tobytes()
        == maps.make_map(page.images.get(ref), None, values, Annotators((page.annotators,))).tobytes()
    )
    assert set(np.unique(np.asarray(picture))) == {0, 255}
    assert page.hands.asked == []


def test_the_init_image_stands_in_for_the_units_own(page: Page) -> None:
    ref = page.image()
    found = page.preview(module="canny", init_image=ref)
    assert page.images.get(found["image"]).size == (768, 512)
    own = page.image(64, 64, seed=1)
    assert page.images.get(page.preview(image=own, module="canny", init_image=ref)["image"]).size == (512, 512)


def test_pixel_perfect_goes_by_the_size_that_is_drawn(page: Page) -> None:
    given: dict[str, Any] = {"image": page.image(), "module": "canny", "pixel_perfect": True}
    assert page.images.get(page.preview(**given, width=480, height=320)["image"]).size == (480, 320)


def test_a_pose_is_drawn(page: Page) -> None:
    text = json.dumps({"people": [{"pose_keypoints_2d": [32, 32, 1] * 18}], "canvas_width": 64, "canvas_height": 48})
    found = page.browser.post(f"{AT}/pose/draw", json={"pose": text}).json()
    assert page.images.get(found["image"]).size == (64, 48)
    assert pose.people(json.dumps(found["pose"])) == pose.people(text)
    assert page.preview(pose=text, module="openpose") == found
    refused = page.browser.post(f"{AT}/pose/draw", json={"pose": "{}"})
    assert refused.status_code == 422
    assert refused.json()["problems"][0]["field"] == "pose"


@pytest.mark.parametrize(
    ("unit", "field", "said"),
    [
        ({"module": "canny"}, "image", "an image is needed"),
        ({"module": "canny", "image": "a" * 64}, "", "there is no image aaaaaaaaaaaa"),
        ({"module": "canny", "image": "../../etc/passwd"}, "unit.image", "neither paths nor files are taken here"),
        ({"module": "cany"}, "unit.module", "'cany' is not a preprocessor; the nearest is canny"),
        ({"module": "hed", "image": "?"}, "module", "put ControlNetHED.pth into models/annotators"),
        ({"module": "inpaint_only", "image": "?"}, "module", "inpaint_only needs a mask"),
        ({"module": "canny", "image": "?", "weight": 5}, "unit.weight", "less than or equal to 2"),
    ],
)
def test_what_is_wrong_is_said_at_its_field(page: Page, unit: dict[str, Any], field: str, said: str) -> None:
    if unit.get("image") == "?":
        unit = {**unit, "image": page.image()}
    answer = page.preview(404 if not field else 422, **unit)
    assert said in answer["detail"]
    assert [p["field"] for p in answer.get("problems", [])] == ([field] if field else [])


def test_a_strip_is_refused_before_it_fills_the_memory(page: Page) -> None:
    ref = page.image(30000, 8)
    assert "too long for a map of 2048" in page.preview(422, image=ref, module="canny", processor_res=2048)["detail"]


def test_what_is_large_is_refused(page: Page) -> None:
    answer = page.browser.post(f"{AT}/preview", json={"unit": {"pose": "x" * 600_000}})
    assert answer.status_code == 413
    assert page.browser.post(f"{AT}/pose/draw", json={"pose": "x" * 300_000}).status_code == 422


# in the engine's process


def test_what_needs_torch_is_done_by_the_engine(page: Page) -> None:
    (page.annotators / "ControlNetHED.pth").touch()
    ref = page.image()
    assert page.preview(image=ref, module="hed", processor_res=256) == page.hands.answer
    ((extension, name, values),) = page.hands.asked
    assert (extension, name) == ("controlnet", "detect")
    again = preview.wish(json.loads(json.dumps(values)))
    assert again == preview.Wish(ref, None, maps.MapValues("hed", 256, -1, -1, None, "Crop and Resize"))


def test_what_the_engine_says_comes_out(page: Page) -> None:
    (page.annotators / "ControlNetHED.pth").touch()
    given: dict[str, Any] = {"image": page.image(), "module": "hed"}
    page.hands.answer = InvalidRequest(Problem("module", "hed failed on this picture"))
    assert page.preview(422, **given)["problems"] == [{"field": "module", "message": "hed failed on this picture"}]
    page.hands.answer = Busy("try again when the job is done")
    assert page.preview(503, **given)["detail"] == "try again when the job is done"


def test_a_map_that_was_made_before_needs_no_engine(page: Page) -> None:
    (page.annotators / "ControlNetHED.pth").touch()
    ref = page.image()
    asked = maps._asked(page.images.get(ref), None, maps.MapValues("hed", 256), Annotators((page.annotators,)))
    picture = Image.new("RGB", (384, 256), "blue")
    kept = page.services.settings.data_dir / "extensions" / "controlnet" / "maps"
    maps.Cache(kept).put(asked.key, maps.Made(picture))
    found = page.preview(image=ref, module="hed", processor_res=256)
    assert page.images.get(found["image"]).tobytes() == picture.tobytes()
    assert page.hands.asked == []


def test_the_errand_makes_the_map(page: Page) -> None:
    """Here with a module that needs no torch; tests/test_errands.py has the process."""
    extension = next(iter(page.services.registry.extensions))
    extension.images, extension.keep = page.images, ModelStore(torch.device("cpu")).keep
    given = preview.Wish(page.image(), None, maps.MapValues("canny", 128, pixel_perfect=(96, 64)))
    found = extension.errand("detect", json.loads(json.dumps(given.written())))
    assert page.images.get(found["image"]).size == (96, 64)
    with pytest.raises(InvalidRequest, match=r"module: softedge_hed needs weights"):
        extension.errand("detect", preview.Wish(page.image(), None, maps.MapValues("hed")).written())


# what there is


def test_the_preprocessors_are_described(page: Page) -> None:
    found = {each["name"]: each for each in page.browser.get(f"{AT}/preprocessors").json()}
    assert list(found) == list(TABLE)
    assert found["canny"] == {
        "name": "canny",
        "label": "canny",
        "types": ["Canny"],
        "weightless": True,
        "pose": False,
        "needs_mask": False,
        "sliders": {
            "resolution": {"label": "Preprocessor resolution", "default": 512, "ge": 64, "le": 2048, "step": 8},
            "threshold_a": {"label": "Canny low threshold", "default": 100, "ge": 1, "le": 255, "step": 1},
            "threshold_b": {"label": "Canny high threshold", "default": 200, "ge": 1, "le": 255, "step": 1},
        },
        "missing": [],
        "hint": "",
    }
    assert found["openpose"]["pose"]
    assert found["openpose"]["missing"] == [
        {
            "file": "body_pose_model.pth",
            "page": "https://huggingface.co/lllyasviel/Annotators/blob/main/body_pose_model.pth",
        }
    ]
    assert "models/annotators" in found["openpose"]["hint"]
    (page.annotators / "body_pose_model.pth").touch()
    found = {each["name"]: each for each in page.browser.get(f"{AT}/preprocessors").json()}
    assert found["openpose"]["missing"] == []


def test_the_types_bring_modules_and_models_together(page: Page) -> None:
    found = page.browser.get(f"{AT}/types").json()
    assert found["Canny"]["default_module"] == "canny"
    assert found["All"]["modules"] == list(TABLE)
    names = ["control_v11p_sd15_canny [d14c016b]", "control_canny-fp16 [0123abcd]", "t2iadapter_color [aa]"]
    names += ["controlnet-union-sdxl [bb]", "control_v11p_sd15_normalbae [cc]"]
    types = types_with(names)
    assert types["Canny"]["models"] == [names[0], names[1], names[3]]
    assert types["Canny"]["default_model"] == names[0]
    assert types["T2I-Adapter"]["models"] == names[2:4]
    assert types["NormalMap"]["default_model"] == names[4]
    assert types["Inpaint"]["models"] == [names[3]]
    assert types_with([])["Depth"]["default_model"] == "None"
    assert fits("Segmentation", "control_sd15_seg [dd]")


# downloads


def test_downloads_are_off_unless_the_settings_allow_them(page: Page) -> None:
    assert page.browser.get(f"{AT}/downloads").json() == {"allowed": False, "files": []}
    refused = page.browser.post(f"{AT}/downloads", json={"module": "hed"})
    assert refused.status_code == 403
    assert "allow_downloads = true" in refused.json()["detail"]


def test_downloads_that_are_allowed_begin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fetched = []
    page = Page(tmp_path, allow_downloads=True)
    hub = importlib.import_module(f"{type(page.services.registry.extensions[0]).__module__}.hub")
    monkeypatch.setattr(hub.Hub, "_fetch", lambda self, fetch: fetched.append(fetch.file))
    with page.browser:
        answer = page.browser.post(f"{AT}/downloads", json={"module": "openpose_full"})
        assert answer.status_code == 202
        wait_for(lambda: {f["state"] for f in page.browser.get(f"{AT}/downloads").json()["files"]} == {"done"})
        assert page.browser.post(f"{AT}/downloads", json={"module": "what"}).status_code == 422
    assert fetched == ["body_pose_model.pth", "hand_pose_model.pth", "facenet.pth"]


def test_who_may_not_use_atelier_may_not_use_these(tmp_path: Path) -> None:
    page = Page(tmp_path, auth=f"{web.NAME}:{web.PASSWORD}")
    with page.browser:
        for path in ("preprocessors", "types", "downloads"):
            assert page.browser.get(f"{AT}/{path}", follow_redirects=False).status_code in (303, 401, 403)
        assert page.browser.post(f"{AT}/preview", json={"unit": {}}).status_code in (401, 403)
        allowed = page.browser.get(f"{AT}/preprocessors", headers=web.basic(web.NAME, web.PASSWORD))
        assert allowed.status_code == 200


# --- many at once


def test_of_many_previews_a_few_are_made_at_once(page: Page, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each of a large picture takes hundreds of megabytes."""
    go, lock, now, most = threading.Event(), threading.Lock(), 0, 0

    def made(*_: Any) -> dict[str, Any]:
        nonlocal now, most
        with lock:
            now, most = now + 1, max(most, now + 1)
        go.wait(60)
        with lock:
            now -= 1
        return {"image": "f" * 64, "pose": None}

    monkeypatch.setattr(preview, "made", made)
    ref = page.image()
    with ThreadPoolExecutor(8) as pool:
        asked = [pool.submit(page.preview, module="canny", image=ref) for _ in range(8)]
        wait_for(lambda: most >= AT_ONCE)
        go.set()
        assert all(each.result()["image"] for each in asked)
    assert most == AT_ONCE


# --- a picture's text


def test_of_a_unit_in_a_text_just_what_is_wrong_is_left_out(page: Page) -> None:
    """As of pictures by A1111 that were drawn with a preprocessor that is not here."""
    text = "a cat\nSteps: 20, Sampler: Euler, Seed: 5"
    for number, line in enumerate(
        ("Module: canny, Model: a, Weight: 0.5", "Module: ip-adapter_clip_sd15, Model: b, Weight: 9")
    ):
        text += f', ControlNet {number}: "{line}"'
    recalled = page.browser.post("/api/infotext", content=text, headers={"Content-Type": "text/plain"}).json()
    at = "extensions.controlnet.units.1"
    assert [problem["field"] for problem in recalled["problems"]] == [f"{at}.module", f"{at}.weight"]
    units = recalled["values"]["extensions"]["controlnet"]["units"]
    assert [(u["module"], u["model"], u["weight"]) for u in units] == [("canny", "a", 0.5), ("none", "b", 1)]
