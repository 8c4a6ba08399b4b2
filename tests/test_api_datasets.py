"""Datasets over HTTP: from an upload to what the trainer sees, and what is refused."""

import errno
import io
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from starlette.testclient import TestClient

from backend import archives
from backend.services import Services
from tests.test_api import CIRCLE, finished
from tests.test_workbench import drawn, zipped
from tests.web import atelier, visit

SETS = "/api/datasets"
JSON = {"Content-Type": "application/json"}


@pytest.fixture
def services(tmp_path: Path) -> Services:
    return atelier(tmp_path)


@pytest.fixture
def browser(services: Services) -> Iterator[TestClient]:
    with visit(services) as made:
        made.post(SETS, json={"name": "my cats"})
        yield made


def bring(browser: TestClient, data: bytes, **how: str) -> Any:
    return browser.post(f"{SETS}/my cats/files", params={"name": "a cat.png", **how}, content=data)


def look(browser: TestClient, **how: Any) -> dict[str, Any]:
    found: dict[str, Any] = browser.get(f"{SETS}/my cats", params=how).json()
    return found


def test_from_an_upload_to_what_the_trainer_sees(browser: TestClient) -> None:
    answer = bring(browser, drawn(1, (192, 96)))
    assert answer.status_code == 201
    (id,) = answer.json()["ids"]
    assert browser.post(f"{SETS}/my cats/images/{id}/caption", json={"caption": " a cat "}).json() == {
        "caption": "a cat"
    }
    found = look(browser, resolution=64, bucket_step=32, largest_aspect=1)
    (picture,) = found["pictures"]
    assert (found["images"], found["captioned"]) == (1, 1)
    assert (picture["name"], picture["caption"], picture["width"], picture["folder"]) == (
        "a cat.png",
        "a cat",
        192,
        "",
    )
    assert picture["crop"] == {"width": 64, "height": 64, "scaled": [128, 64], "left": 32, "top": 0}
    thumb = browser.get("/" + picture["thumb"] + "&s=64")
    assert Image.open(io.BytesIO(thumb.content)).size == (64, 32)
    assert browser.get("/" + picture["image"]).content == drawn(1, (192, 96))
    way = f"{SETS}/my cats/images/{id}/crop"
    crop = browser.get(way, params={"resolution": 64, "bucket_step": 32, "largest_aspect": 1})
    assert Image.open(io.BytesIO(crop.content)).size == (64, 64)


def test_flags_are_at_their_pictures(browser: TestClient, services: Services) -> None:
    bring(browser, drawn(1))
    bring(browser, drawn(1))
    (services.settings.data_dir / "datasets" / "my cats" / "torn.png").write_bytes(b"\x89PNG")
    found = look(browser, resolution=256)
    first, second = found["pictures"]
    assert [flag["kind"] for flag in first["flags"]] == ["caption", "small"]
    assert [flag["kind"] for flag in second["flags"]] == ["caption", "duplicate", "small"]
    assert second["flags"][1]["message"] == "is the same as a cat (2).png"
    assert [(one["file"], one["kind"]) for one in found["broken"]] == [("torn.png", "corrupt")]
    browser.post(f"{SETS}/my cats/remove", json={"ids": [found["broken"][0]["id"]]})
    assert look(browser)["broken"] == []


def test_a_zip_comes_in_and_goes_out(browser: TestClient, tmp_path: Path) -> None:
    data = zipped(tmp_path / "x.zip", {"3_cat/a.png": drawn(1), "b.png": b"\x89PNG"}).read_bytes()
    said = bring(browser, data, name="x.zip").json()
    assert len(said["ids"]) == 1
    assert [flag["file"] for flag in said["left_out"]] == ["b.png"]
    out = browser.get(f"{SETS}/my cats/zip")
    assert out.headers["Content-Disposition"] == "attachment; filename*=utf-8''my%20cats.zip"
    assert zipfile.ZipFile(io.BytesIO(out.content)).namelist() == ["3_cat/a.png"]
    assert not list((tmp_path / "data" / "datasets").glob(".*"))


def test_bulk_edits_and_undo(browser: TestClient) -> None:
    ids = [bring(browser, drawn(n)).json()["ids"][0] for n in range(2)]
    edit = {"kind": "prefix", "text": "photo"}
    way = f"{SETS}/my cats/captions"
    assert browser.post(way, json={"edit": edit, "dry": True}).json()["changed"] == dict.fromkeys(ids, "photo")
    assert look(browser)["captioned"] == 0
    browser.post(way, json={"edit": edit, "ids": ids[:1]})
    assert (look(browser)["captioned"], look(browser)["undo"]) == (1, "prefix")
    assert browser.post(f"{way}/undo").json() == {"changed": 1}
    assert browser.post(f"{way}/undo").status_code == 409
    wrong = browser.post(way, json={"edit": {"kind": "replace", "find": "(", "regex": True}})
    assert (wrong.status_code, wrong.json()["problems"][0]["field"]) == (422, "find")
    half = b'{"caption": "a \\ud83d"}'  # of a character, as JSON can hold it
    wrong = browser.post(f"{SETS}/my cats/images/{ids[0]}/caption", content=half, headers=JSON)
    assert (wrong.status_code, wrong.json()["problems"][0]["field"]) == (422, "caption")


def test_without_a_captioner_the_answer_says_where_to_put_one(browser: TestClient) -> None:
    (id,) = bring(browser, drawn()).json()["ids"]
    answer = browser.post(f"{SETS}/my cats/captions/auto", json={"ids": [id]})
    assert answer.status_code == 404
    assert "captioners" in answer.json()["detail"]
    assert browser.get(SETS).json()["captioners"] == []
    assert browser.post(f"{SETS}/my cats/captions/undo").status_code == 409


def test_a_model_writes_captions_that_can_be_taken_back(
    browser: TestClient, services: Services, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The model itself is tested with the trainings."""
    ids = [bring(browser, drawn(n)).json()["ids"][0] for n in range(2)]
    meanwhile: list[Callable[[], None]] = []
    folder = services.settings.models_dir / "captioners" / "blip"
    folder.mkdir(parents=True)
    (folder / "config.json").write_text('{"model_type": "blip"}')

    def written(
        paths: list[Path], captioner: str, tell: Callable[[int, str], object], go_on: Callable[[], object]
    ) -> None:
        for number, path in enumerate(paths):
            go_on()
            tell(number, f"{captioner} sees {path.name}")
            for each in meanwhile:
                each()

    monkeypatch.setattr(services.trainings, "caption", written)
    assert browser.get(SETS).json()["captioners"] == ["blip"]
    assert browser.post(f"{SETS}/my cats/captions/auto", json={"ids": ids}).json() == {"changed": 2}
    assert {picture["caption"] for picture in look(browser)["pictures"]} == {
        "blip sees a cat.png",
        "blip sees a cat (2).png",
    }
    assert browser.post(f"{SETS}/my cats/captions/undo").json() == {"changed": 2}
    assert look(browser)["captioned"] == 0

    def another() -> None:
        assert look(browser)["writing"] == {"done": 1, "of": 2}
        for refused in ("captions/auto", "rename", "delete"):
            answer = browser.post(
                f"{SETS}/my cats/{refused}", json={"ids": ids} if "auto" in refused else {"name": "x"}
            )
            assert (answer.status_code, "captions of the set my cats are being written" in answer.text) == (409, True)
        assert browser.post(f"{SETS}/my cats/captions/auto/stop").status_code == 200

    meanwhile.append(another)
    assert browser.post(f"{SETS}/my cats/captions/auto", json={"ids": ids}).json() == {"changed": 1}
    assert (look(browser)["captioned"], look(browser)["writing"]) == (1, None)
    assert browser.post(f"{SETS}/my cats/captions/auto/stop").status_code == 409


def test_pictures_of_the_gallery_bring_their_prompt(browser: TestClient) -> None:
    job = finished(browser, browser.post("/api/jobs", json={**CIRCLE, "prompt": "a circle <lora:x:1>"}).json())
    answer = browser.post(f"{SETS}/my cats/pictures", json={"pictures": [job["pictures"][0]["id"]]})
    assert answer.status_code == 201
    assert [picture["caption"] for picture in look(browser)["pictures"]] == ["a circle"]
    assert browser.post(f"{SETS}/my cats/pictures", json={"pictures": [999]}).status_code == 404
    assert browser.post(f"{SETS}/my cats/pictures", json={"pictures": [10**30]}).status_code == 422


def test_exclude_move_and_note(browser: TestClient) -> None:
    ids = [bring(browser, drawn(n)).json()["ids"][0] for n in range(3)]
    found = browser.post(f"{SETS}/my cats/exclude", json={"ids": ids[:1]}).json()
    assert [picture["excluded"] for picture in found["pictures"]] == [False, False, True]
    found = browser.post(f"{SETS}/my cats/move", json={"ids": ids[1:2], "folder": "4_cat"}).json()
    assert {picture["repeats"] for picture in found["pictures"]} == {1, 4}
    assert browser.post(f"{SETS}/my cats/move", json={"ids": ids[2:], "folder": "../4_cat"}).status_code == 422
    note = {"source": "drawn by <b>us</b>", "licence": "CC0", "consent": "ours"}
    assert browser.post(f"{SETS}/my cats/note", json=note).json()["note"] == note
    (row,) = browser.get(SETS).json()["datasets"]
    assert (row["name"], row["images"], row["excluded"], len(row["cover"])) == ("my cats", 2, 1, 2)


def test_rename_and_delete(browser: TestClient) -> None:
    assert browser.post(f"{SETS}/my cats/rename", json={"name": "cats"}).json()["name"] == "cats"
    assert browser.post(SETS, json={"name": "cats"}).status_code == 409
    assert browser.post(f"{SETS}/cats/delete").status_code == 200
    assert browser.get(SETS).json()["datasets"] == []


@pytest.mark.parametrize(
    ("data", "why"),
    [(b"no picture", "not a whole picture"), (b"PK\x03\x04", "not a zip"), (b"", "not a whole picture")],
)
def test_an_upload_that_is_none(browser: TestClient, data: bytes, why: str, tmp_path: Path) -> None:
    answer = bring(browser, data)
    assert answer.status_code == 422
    assert why in answer.json()["detail"]
    assert not list((tmp_path / "data" / "datasets").glob(".*"))


def test_a_zip_may_be_larger_than_a_picture(browser: TestClient, tmp_path: Path) -> None:
    path = tmp_path / "x.zip"
    with zipfile.ZipFile(path, "w") as archive:  # stored: the zip itself has 66 MB
        archive.writestr("a.png", drawn())
        archive.writestr("more.bin", bytes(66 << 20))
    with open(path, "rb") as file:
        assert browser.post(f"{SETS}/my cats/files?name=x.zip", content=file).status_code == 201


@pytest.mark.parametrize("way", ["", "/zip", "/images/1", "/images/1/thumb", "/images/1/crop"])
def test_what_is_not_there(browser: TestClient, way: str) -> None:
    assert browser.get(f"{SETS}/dogs{way}").status_code == 404
    assert browser.get(f"{SETS}/my cats{way}").status_code == (404 if "images" in way else 200)


def test_a_full_disk_is_said(browser: TestClient, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(archives, "unpack", full)
    answer = bring(browser, zipped(tmp_path / "x.zip", {"a.png": drawn()}).read_bytes())
    assert (answer.status_code, answer.json()["detail"]) == (507, "the disk does not take it: No space left on device")
    assert not list((tmp_path / "data" / "datasets").glob(".*"))
