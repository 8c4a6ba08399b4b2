"""Our own REST routes: what they answer, and how they refuse."""

import hashlib
import io
import json
import logging
import re
import socket
import struct
import sys
import threading
import urllib.request
import zlib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from starlette.testclient import TestClient

from backend.api import server
from backend.errors import Conflict, Refused, StorageFull
from backend.logs import Lines
from backend.services import Services
from backend.settings import Settings
from tests.waiting import wait_for
from tests.web import HOME, NAME, PASSWORD, Painter, ask, atelier, no_page, paint, png, scope_of, visit, walk

CIRCLE = {"prompt": "a red circle on a blue background", "seed": 7}


@pytest.fixture(scope="module")
def services(tmp_path_factory: pytest.TempPathFactory) -> Services:
    return atelier(tmp_path_factory.mktemp("atelier"))


@pytest.fixture(scope="module")
def browser(services: Services) -> Iterator[TestClient]:
    with visit(services) as client:
        yield client


def finished(browser: TestClient, job: dict[str, Any]) -> dict[str, Any]:
    def look() -> dict[str, Any] | None:
        found: dict[str, Any] = browser.get(f"/api/jobs/{job['id']}").json()
        return found if found["state"] not in ("queued", "running") else None

    return wait_for(look)  # type: ignore[no-any-return]


def drawn(browser: TestClient, **values: Any) -> dict[str, Any]:
    """A picture that has been made."""
    job = finished(browser, browser.post("/api/jobs", json={**CIRCLE, **values}).json())
    assert job["state"] == "done", job["error"]
    picture: dict[str, Any] = job["pictures"][0]
    return picture


# jobs


def test_from_a_prompt_to_a_picture(browser: TestClient) -> None:
    answer = browser.post("/api/jobs", json={**CIRCLE, "batch_size": 2})
    assert answer.status_code == 201
    job = finished(browser, answer.json())
    assert (job["state"], job["owner"], job["error"]) == ("done", "local", None)
    assert [(p["index"], p["seed"]) for p in job["pictures"]] == [(0, 7), (1, 8)]
    picture = browser.get("/" + job["pictures"][1]["url"])
    assert Image.open(io.BytesIO(picture.content)).getpixel((5, 5)) == (8, 64, 128)


def test_a_request_is_completed_before_it_waits(browser: TestClient) -> None:
    request = browser.post("/api/jobs", json={"prompt": "x"}).json()["request"]
    assert request["model"] == "starter"
    assert request["steps"] == 3  # the model's default
    assert request["seed"] >= 0


def test_jobs_are_listed_newest_first(browser: TestClient) -> None:
    first, second = (finished(browser, browser.post("/api/jobs", json=CIRCLE).json())["id"] for _ in range(2))
    jobs = browser.get("/api/jobs", params={"state": "done", "limit": 2}).json()["jobs"]
    assert [job["id"] for job in jobs] == [second, first]
    assert jobs[0]["pictures"]
    older = browser.get("/api/jobs", params={"before": second, "limit": 1}).json()["jobs"]
    assert [job["id"] for job in older] == [first]


def test_cancel_stops_a_running_job_and_a_waiting_one(tmp_path: Path) -> None:
    painter = Painter()
    painter.go_on.clear()
    with visit(atelier(tmp_path, painter)) as browser:
        running = browser.post("/api/jobs", json=CIRCLE).json()
        wait_for(lambda: browser.get(f"/api/jobs/{running['id']}").json()["state"] == "running")
        waiting = browser.post("/api/jobs", json=CIRCLE).json()
        assert browser.get(f"/api/jobs/{waiting['id']}").json()["position"] == 1
        assert browser.post(f"/api/jobs/{waiting['id']}/cancel").json()["state"] == "cancelled"
        browser.post(f"/api/jobs/{running['id']}/cancel")
        assert finished(browser, running)["state"] == "cancelled"


def test_skip_is_taken(browser: TestClient) -> None:
    job = finished(browser, browser.post("/api/jobs", json=CIRCLE).json())
    assert browser.post(f"/api/jobs/{job['id']}/skip").status_code == 200


@pytest.mark.parametrize(
    ("values", "field"),
    [
        ({"width": 0}, "width"),
        ({"width": 10**9}, "width"),
        ({"width": 10**400}, "width"),
        ({"width": 65}, "width"),
        ({"width": 64.5}, "width"),
        ({"width": None}, "width"),
        ({"steps": -1}, "steps"),
        ({"seed": "x"}, "seed"),
        ({"seed": []}, "seed"),
        ({"cfg_scale": float("inf")}, "cfg_scale"),
        ({"sampler_name": "Eulr"}, "sampler_name"),
        ({"sampler_name": 3}, "sampler_name"),
        ({"scheduler": "Karas"}, "scheduler"),
        ({"model": "no such model"}, "model"),
        ({"model": "../../etc"}, "model"),
        ({"model": 5}, "model"),
        ({"prompt": "a" * 100_000}, "prompt"),
        ({"prompt": ["a"]}, "prompt"),
        ({"prompt": "\ud800"}, "prompt"),
        ({"init_image": "../../etc/passwd"}, "init_image"),
        ({"init_image": "0" * 64}, "init_image"),
        ({"init_image": "http://127.0.0.1/x.png"}, "init_image"),
        ({"extensions": {"nope": {}}}, "extensions"),
        ({"extensions": {"demo": {"weight": 9}}}, "extensions"),
        ({"extensions": 3}, "extensions"),
        ({"stepz": 20}, "stepz"),
    ],
)
def test_a_wrong_value_is_refused_at_its_field(browser: TestClient, values: dict[str, Any], field: str) -> None:
    body = json.dumps({**CIRCLE, **values}).encode()
    answer = browser.post("/api/jobs", content=body, headers={"Content-Type": "application/json"})
    assert answer.status_code == 422, answer.text
    assert [p["field"].split(".")[0] for p in answer.json()["problems"]] == [field]
    assert len(answer.json()["detail"]) < 500


def test_all_wrong_fields_are_named(browser: TestClient) -> None:
    problems = browser.post("/api/jobs", json={"steps": 0, "width": 3, "seed": "x"}).json()["problems"]
    assert {problem["field"] for problem in problems} == {"steps", "width", "seed"}


@pytest.mark.parametrize(
    "body", [b"", b"{", b"[]", b"3", b"null", b'"x"', b"\xff\xfe", b"[" * 100_000, b'{"a":' * 9999]
)
def test_what_is_no_request_is_refused(browser: TestClient, body: bytes) -> None:
    answer = browser.post("/api/jobs", content=body, headers={"Content-Type": "application/json"})
    assert answer.status_code in (400, 422)
    assert answer.json()["detail"]


def test_a_request_is_json_and_says_so(browser: TestClient) -> None:
    answer = browser.post("/api/jobs", content=b"{}", headers={"Content-Type": "text/plain"})
    assert answer.status_code == 422


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda children: st.lists(children, max_size=3) | st.dictionaries(st.text(max_size=5), children, max_size=3),
    max_leaves=5,
)
FIELDS = st.sampled_from(
    (
        *("prompt", "negative_prompt", "model", "width", "steps", "seed", "sampler_name", "scheduler", "init_image"),
        *("resize_mode", "extensions", "clip_skip", "n_iter", "", "__class__"),
    )
)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.dictionaries(FIELDS, JSON, min_size=1, max_size=4))
def test_any_request_is_taken_or_refused_politely(browser: TestClient, values: dict[str, Any]) -> None:
    with mock.patch.object(Services, "submit", lambda self, values, owner: refuse(self.complete(values))):
        answer = browser.post(
            "/api/jobs", content=json.dumps(values).encode(), headers={"Content-Type": "application/json"}
        )
    assert answer.status_code in (409, 422), answer.text
    assert answer.json()["detail"]


def refuse(request: object) -> None:
    raise Conflict("the request was fine")


# images


def test_an_upload_is_kept_under_its_hash(browser: TestClient) -> None:
    data = png(70, 50)
    raw = browser.post("/api/images", content=data)
    form = browser.post("/api/images", files={"file": ("../../evil.html", data, "text/html")})
    assert raw.status_code == form.status_code == 201
    assert raw.json() == form.json()
    assert (raw.json()["width"], raw.json()["height"]) == (70, 50)
    served = browser.get(f"/api/images/{raw.json()['id']}")
    assert served.content == data
    assert served.headers["Content-Type"] == "image/png"


def huge_png(width: int, height: int) -> bytes:
    """A few bytes that promise many pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(b"\0" * 999))
        + chunk(b"IEND", b"")
    )


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (png(100, 100, compress_level=0)[:-2000], "cut short"),
        (huge_png(10_000, 5_000), "at most 40 million"),
        (huge_png(2**31 - 1, 2**31 - 1), "bomb"),
        (b"", "not a whole picture"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'><script>alert(1)</script></svg>", "not a whole picture"),
        (b"GIF89a" + b"\0" * 50, "not a whole picture"),
        (b"<html>", "not a whole picture"),
    ],
    ids=["truncated", "50 megapixels", "2 gigapixels squared", "empty", "svg", "gif", "html"],
)
def test_what_is_no_picture_is_refused(browser: TestClient, data: bytes, said: str) -> None:
    for answer in (browser.post("/api/images", content=data), browser.post("/api/images", files={"file": data})):
        assert answer.status_code == 422
        assert said in answer.json()["detail"]


def test_a_form_without_a_file_is_refused(browser: TestClient) -> None:
    assert browser.post("/api/images", files={"other": png()}).status_code == 422
    assert browser.post("/api/images", data={"file": "text"}).status_code == 422
    broken = browser.post("/api/images", content=b"x", headers={"Content-Type": "multipart/form-data"})
    assert broken.status_code == 400


def test_a_body_that_is_too_large_is_refused(browser: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    def flood() -> Iterator[bytes]:
        for _ in range(server.MAX_BODY // 2**20 + 2):
            yield b"x" * 2**20

    for answer in (
        browser.post("/api/images", content=b"x", headers={"Content-Length": str(server.MAX_BODY + 1)}),
        browser.post("/api/images", content=flood()),
        browser.post("/api/jobs", content=b" " * (2**20 + 1), headers={"Content-Type": "application/json"}),
        browser.post("/nowhere", content=b"x", headers={"Content-Length": str(server.MAX_BODY + 1)}),
    ):
        assert answer.status_code == 413
        assert "X-Content-Type-Options" in answer.headers


def test_a_finished_picture_becomes_an_input_image(browser: TestClient, services: Services) -> None:
    picture = drawn(browser)
    image = browser.post(f"/api/pictures/{picture['id']}/use").json()
    assert (image["width"], image["height"]) == (64, 64)
    assert image["id"] in services.images
    job = browser.post("/api/jobs", json={**CIRCLE, "init_image": image["id"]})
    assert job.status_code == 201
    finished(browser, job.json())


# pictures


def test_pictures_are_served_as_what_they_are(browser: TestClient) -> None:
    picture = drawn(browser)
    full = browser.get(f"/{picture['url']}")
    thumb = browser.get(f"/{picture['thumb']}")
    assert full.headers["Content-Type"] == "image/png"
    assert thumb.headers["Content-Type"] == "image/webp"
    for answer in (full, thumb):
        assert "immutable" in answer.headers["Cache-Control"]
        assert "public" not in answer.headers["Cache-Control"]
        assert answer.headers["X-Content-Type-Options"] == "nosniff"
        assert "sandbox" in answer.headers["Content-Security-Policy"]
        assert "attachment" not in answer.headers.get("Content-Disposition", "")
    saved = browser.get(f"/{picture['url']}?download=1").headers["Content-Disposition"]
    assert re.fullmatch(r'attachment; filename="[\w-]+\.png"', saved)


def test_pictures_are_listed_newest_first(browser: TestClient) -> None:
    first, second = drawn(browser)["id"], drawn(browser)["id"]
    pictures = browser.get("/api/pictures", params={"limit": 2}).json()["pictures"]
    assert [picture["id"] for picture in pictures] == [second, first]
    before = browser.get("/api/pictures", params={"before": second, "limit": 1}).json()["pictures"]
    assert [picture["id"] for picture in before] == [first]


def test_a_picture_whose_file_is_gone_is_not_found(browser: TestClient, services: Services) -> None:
    picture = drawn(browser)
    services.gallery.path(services.gallery.get(picture["id"])).unlink()
    for path in (picture["url"], f"{picture['url']}?download=1", f"thumbs/{picture['id']}?s=512"):
        assert browser.get(f"/{path}").status_code == 404
    assert browser.post(f"/api/pictures/{picture['id']}/use").status_code == 404


@pytest.mark.parametrize(
    "path",
    [
        *("/thumbs/1?s=100", "/thumbs/1?s=x", "/img/x", "/img/-1", f"/img/{10**30}", "/api/jobs/x"),
        *(f"/api/jobs/{10**30}", "/api/pictures?limit=0", "/api/pictures?limit=10000", "/api/jobs?state=odd"),
        f"/api/pictures?before={10**30}",
    ],
)
def test_a_wrong_number_is_refused(browser: TestClient, path: str) -> None:
    drawn(browser)
    answer = browser.get(path)
    assert answer.status_code == 422
    assert answer.json()["problems"]


@pytest.mark.parametrize(
    "path", ["/img/999999", "/thumbs/999999", "/api/jobs/999999", f"/api/images/{'0' * 64}", "/x"]
)
def test_what_is_not_there_is_not_found(browser: TestClient, path: str) -> None:
    answer = browser.get(path)
    assert answer.status_code == 404
    assert answer.json()["detail"]


# parameters in pictures


def test_a_pictures_parameters_come_back(browser: TestClient) -> None:
    picture = drawn(browser, prompt="a cat, big: yes", negative_prompt="dog", sampler_name="Euler", cfg_scale=3.5)
    data = browser.get(f"/{picture['url']}").content
    for answer in (
        browser.post("/api/infotext", content=data),
        browser.post("/api/infotext", files={"file": data}),
        browser.post("/api/infotext", content=picture["infotext"], headers={"Content-Type": "text/plain"}),
    ):
        assert answer.status_code == 200
        recalled = answer.json()
        assert recalled["text"] == picture["infotext"]
        assert recalled["fields"]["Sampler"] == "Euler"
        assert recalled["problems"] == []
        expected = {"prompt": "a cat, big: yes", "negative_prompt": "dog", "sampler_name": "Euler", "cfg_scale": 3.5}
        assert recalled["values"].items() >= {**expected, "seed": 7, "width": 64, "steps": 3}.items()
        assert browser.post("/api/jobs", json=recalled["values"]).status_code == 201


def test_a_parameter_that_cannot_be_used_is_named_and_the_rest_kept(browser: TestClient) -> None:
    text = f"a cat\nSteps: 20, Sampler: Magic, CFG scale: 9999, Seed: 5, Size: 8x8, Init image hash: {'0' * 64}"
    recalled = browser.post("/api/infotext", content=text, headers={"Content-Type": "text/plain"}).json()
    assert recalled["values"].items() >= {"prompt": "a cat", "steps": 20, "seed": 5}.items()
    assert {"sampler_name", "cfg_scale", "width", "init_image"} <= {p["field"] for p in recalled["problems"]}
    assert not {"sampler_name", "cfg_scale", "width", "init_image"} & recalled["values"].keys()


def test_a_sampler_that_names_its_schedule_is_read_as_both(browser: TestClient) -> None:
    text = "a cat\nSteps: 20, Sampler: DPM++ 2M Karras, CFG scale: 7, Seed: 5"
    recalled = browser.post("/api/infotext", content=text, headers={"Content-Type": "text/plain"}).json()
    assert recalled["values"].items() >= {"sampler_name": "DPM++ 2M", "scheduler": "Karras"}.items()
    assert not {"width", "model", "extensions"} & recalled["values"].keys()  # of which it says nothing


def test_a_model_and_a_vae_are_known_by_their_hashes(browser: TestClient, services: Services) -> None:
    files = [services.settings.models_dir / kind / "here.safetensors" for kind in ("checkpoints", "vae")]
    for file in files:
        file.parent.mkdir(exist_ok=True)
        file.write_bytes(file.parent.name.encode())
        services.catalog.fingerprint(file)
    model, vae = (hashlib.sha256(kind).hexdigest()[:10] for kind in (b"checkpoints", b"vae"))
    text = f"a cat\nSteps: 20, Model hash: {model}, Model: theirs, VAE hash: {vae}, VAE: theirs.pt"
    recalled = browser.post("/api/infotext", content=text, headers={"Content-Type": "text/plain"}).json()
    assert recalled["values"].items() >= {"model": "here", "vae": "here"}.items()
    text = "a cat\nSteps: 20, Model hash: 0123456789, Model: theirs, VAE: here.safetensors"
    recalled = browser.post("/api/infotext", content=text, headers={"Content-Type": "text/plain"}).json()
    assert recalled["values"].items() >= {"model": "theirs", "vae": "here"}.items()
    for file in files:
        file.unlink()


def test_a_picture_without_parameters_says_so(browser: TestClient) -> None:
    answer = browser.post("/api/infotext", content=png())
    assert answer.status_code == 422
    assert "carries no parameters" in answer.json()["detail"]


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.text(max_size=300) | st.binary(max_size=300))
def test_any_text_is_read(browser: TestClient, text: str | bytes) -> None:
    body = text if isinstance(text, bytes) else text.encode("utf-8", "surrogatepass")
    assert browser.post("/api/infotext", content=body, headers={"Content-Type": "text/plain"}).status_code == 200


# what there is


def test_the_schema_tells_what_a_request_may_say(browser: TestClient) -> None:
    schema = browser.get("/api/schema").json()
    assert schema["request"]["properties"]["steps"]["maximum"] == 150
    assert schema["request"]["properties"]["steps"]["atelier"]["widget"] == "slider"
    assert schema["extensions"]["demo"]["schema"]["properties"]["weight"]["maximum"] == 2


def test_models_and_health(browser: TestClient) -> None:
    (model,) = browser.get("/api/models").json()
    told = {"name": "starter", "title": "starter", "kind": "checkpoint", "family": "", "problem": None, "examples": []}
    assert told.items() <= model.items()
    assert model["defaults"] == {"width": 64, "height": 64, "steps": 3}
    assert "path" not in model  # where it lies on this machine is nobody's business
    assert browser.get("/api/health").json() == {"status": "ok"}


def test_the_icon_is_our_star(browser: TestClient) -> None:
    icon = Image.open(io.BytesIO(browser.get("/favicon.ico").content))
    assert icon.size == (64, 64)
    assert icon.getpixel((32, 32)) == (0x5D, 0x4D, 0xE0, 255)
    assert icon.getpixel((4, 4))[3] == 0  # type: ignore[index]
    manifest = browser.get("/manifest.json").json()
    assert manifest["name"] == "Atelier"
    for listed in manifest["icons"]:
        assert browser.get("/" + listed["src"]).headers["Content-Type"] == listed["type"]
    assert browser.get("/icon-7.png").status_code == 404


def test_the_documentation_lists_every_route(browser: TestClient) -> None:
    text = (Path(server.__file__).parents[2] / "docs" / "api.md").read_text("utf-8")
    for method, path in walk(browser.app.routes):  # type: ignore[attr-defined]
        if not path.startswith("/extensions/demo"):
            assert f"`{'WebSocket' if method == 'WEBSOCKET' else method} {path}`" in text


def test_extensions_have_routes_of_their_own(browser: TestClient) -> None:
    assert browser.get("/extensions/demo/hello").json() == {"hello": "demo"}


def test_an_extension_whose_routes_fail_is_left_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    services = atelier(tmp_path)
    broken = services.registry.extensions[0]
    with mock.patch.object(type(broken), "routes", side_effect=RuntimeError("no")), visit(services) as browser:
        assert browser.get("/extensions/demo/hello").status_code == 404
        assert browser.get("/api/health").status_code == 200
    assert "extension demo has no routes" in caplog.text


# errors


def test_an_unexpected_error_shows_a_number_and_nothing_else(
    browser: TestClient, caplog: pytest.LogCaptureFixture
) -> None:
    answer = browser.post("/extensions/demo/break")
    assert answer.status_code == 500
    number = re.search(r"error ([0-9a-f]{8})$", answer.json()["detail"])
    assert number
    assert "secret" not in answer.text
    assert "Traceback" not in answer.text
    assert number[1] in caplog.text
    assert "/etc/secret in a traceback" in caplog.text
    assert answer.headers["X-Content-Type-Options"] == "nosniff"


def test_errors_with_a_message_keep_their_status(browser: TestClient, services: Services) -> None:
    with mock.patch.object(type(services.images), "put", side_effect=StorageFull("the disk is full")):
        answer = browser.post("/api/images", content=png())
    assert (answer.status_code, answer.json()) == (507, {"detail": "the disk is full"})


def test_a_wrong_method_is_refused(browser: TestClient) -> None:
    answer = browser.delete("/api/jobs")
    assert answer.status_code == 405
    assert answer.json()["detail"]


# paths

TRAVERSAL = [
    "../../../../etc/passwd",
    "..%2f..%2f..%2fetc%2fpasswd",
    "%2e%2e/%2e%2e/etc/passwd",
    "....//....//etc/passwd",
    "..\\..\\windows\\win.ini",
    "..%5c..%5cwindows%5cwin.ini",
    "%252e%252e%252fetc%252fpasswd",
    "/etc/passwd",
    "//etc/passwd",
    "%00",
    "1%00.png",
    "file:///etc/passwd",
    "C:%5cwindows%5cwin.ini",
    "CON",
    "~root",
    ".",
    "..",
    "..;/",
    "%c0%ae%c0%ae/etc/passwd",
    "\u2025/etc/passwd",
    "canary.txt",
    "../canary.txt",
    "../../data/atelier.db",
    "../secrets/sign-in.key",
]


def test_no_path_leads_out(browser: TestClient, services: Services) -> None:
    """Every path parameter of every route, each with the whole corpus."""
    for folder in (services.settings.data_dir, services.settings.inputs_dir, services.settings.outputs_dir):
        folder.mkdir(exist_ok=True)
        (folder / "canary.txt").write_text("canary")
    tried = 0
    for method, path in walk(browser.app.routes):  # type: ignore[attr-defined]
        for parameter in re.findall(r"\{[^}]+\}", path) if method != "WEBSOCKET" else ():
            for way_out in TRAVERSAL:
                address = re.sub(r"\{[^}]+\}", "1", path.replace(parameter, "@")).replace("@", way_out)
                status, headers, body = ask(browser.app, scope_of(address, method))
                assert status in (200, 404, 405, 422), address
                assert b"canary" not in body.replace(b"canary.txt", b"")
                assert b"root:" not in body
                assert status != 200 or headers["Content-Type"].startswith(("image/", "application/json"))
                tried += 1
    assert tried >= 8 * len(TRAVERSAL)


# starting and stopping


def test_a_taken_port_is_said_plainly(tmp_path: Path) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        with pytest.raises(Conflict, match=f"port {port} is taken"):
            server.listen(Settings(port=port))


@pytest.mark.parametrize("host", ["no such host.invalid", "203.0.113.77", "\u2603" * 80])
def test_a_foreign_address_is_said_plainly(host: str) -> None:
    with pytest.raises(Conflict, match="no address of this machine"):
        server.listen(Settings(host=host, port=0, auth="a:b"))


@pytest.mark.parametrize("host", ["0.0.0.0", "::", ""])
def test_other_machines_come_in_only_with_a_password(host: str) -> None:
    with pytest.raises(Refused, match="--auth name:password"):
        server.listen(Settings(host=host, port=0))
    with server.listen(Settings(host=host, port=0, auth="ada:secret")) as listener:
        assert listener.getsockname()[1] > 0


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
def test_this_machine_needs_none(host: str) -> None:
    with server.listen(Settings(host=host, port=0)) as listener:
        assert listener.getsockname()[0] == "127.0.0.1"


def test_the_runner_lives_as_long_as_the_server(tmp_path: Path) -> None:
    services = atelier(tmp_path)
    with (
        mock.patch.object(type(services.runner), "start") as start,
        mock.patch.object(type(services.runner), "stop") as stop,
    ):
        with visit(services) as browser:
            assert browser.get("/api/health").status_code == 200
            assert (start.call_count, stop.call_count) == (1, 0)
        assert stop.call_count == 1


def test_serve_runs_until_it_is_told_to_stop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The real thing on a real socket, with port 0."""
    running: list[Any] = []
    startup = server._Server.startup

    async def noticed(self: Any, sockets: Any = None) -> None:
        await startup(self, sockets)
        running.append(self)

    monkeypatch.setattr(server._Server, "startup", noticed)
    monkeypatch.setattr(server, "configure_logging", lambda level: None)
    services = atelier(tmp_path)
    services = replace(services, settings=services.settings.model_copy(update={"port": 0}))
    thread = threading.Thread(target=server.serve, args=(services, no_page))
    thread.start()
    here = wait_for(lambda: running and running[0])
    answer = urllib.request.urlopen(f"http://127.0.0.1:{here.config.port}/api/health", timeout=60)
    assert json.load(answer) == {"status": "ok"}
    assert "server" not in answer.headers
    listening = urllib.request.urlopen(f"http://127.0.0.1:{here.config.port}/events", timeout=60)
    assert listening.readline().startswith(b"data: ")
    here.should_exit = True
    thread.join(60)
    assert not thread.is_alive()


def test_what_to_type_into_the_browser() -> None:
    assert server.address_of("127.0.0.1", 7860) == "http://127.0.0.1:7860/"
    assert server.address_of("0.0.0.0", 80) == "http://127.0.0.1:80/"
    assert server.address_of("fd00::1", 7860) == "http://[fd00::1]:7860/"


def test_logging_shows_no_requests_at_info(monkeypatch: pytest.MonkeyPatch) -> None:
    with mock.patch("logging.config.dictConfig") as configured:
        server.configure_logging("info")
    assert configured.call_args[0][0]["loggers"]["uvicorn"]["level"] == "WARNING"
    assert logging.getLogger("backend")


def test_text_of_people_forges_no_line_of_the_log() -> None:
    forged = "<lora:x\n2026-11-27 ERROR backend: forged>\x1b[2J"
    try:
        raise ValueError(forged)
    except ValueError:
        record = logging.LogRecord("backend", logging.ERROR, "", 0, "job %d: %s", (3, forged), sys.exc_info())
    first, *traceback = Lines("%(levelname)s %(message)s").format(record).split("\n")
    assert first == r"ERROR job 3: <lora:x\n2026-11-27 ERROR backend: forged>\x1b[2J"
    assert traceback[-1] == r"    2026-11-27 ERROR backend: forged>\x1b[2J"
    assert all(line.startswith("    ") for line in traceback)


# signing in, as a browser does it


def test_signing_in_and_out(tmp_path: Path) -> None:
    with visit(atelier(tmp_path, auth=f"{NAME}:{PASSWORD}"), follow_redirects=False) as browser:
        assert browser.get("/api/jobs").status_code == 401
        page = browser.get("/signin")
        assert page.status_code == 200
        assert "http" not in page.text.replace("http://www.w3.org/2000/svg", "")  # nothing from elsewhere
        # with no-referrer browsers send a form's Origin as "null"
        assert page.headers["Referrer-Policy"] == "same-origin"
        assert "script" not in page.headers["Content-Security-Policy"]
        wrong = browser.post("/signin", data={"name": NAME, "password": "<b>x"}, headers={"Origin": HOME})
        assert wrong.status_code == 401
        assert "do not fit" in wrong.text
        assert "<b>x" not in wrong.text
        assert (
            browser.post(
                "/signin", data={"name": NAME, "password": PASSWORD}, headers={"Origin": "http://evil.example"}
            ).status_code
            == 403
        )
        right = browser.post("/signin", data={"name": NAME, "password": PASSWORD}, headers={"Origin": HOME})
        assert (right.status_code, right.headers["Location"]) == (303, "./")
        cookie = right.headers["Set-Cookie"]
        assert cookie.startswith("atelier-7860=")
        for flag in ("HttpOnly", "SameSite=lax", "Path=/", "Max-Age="):
            assert flag in cookie
        job = browser.post("/api/jobs", json=CIRCLE).json()
        assert job["owner"] == NAME
        finished(browser, job)
        assert browser.get("/signin").status_code == 303
        browser.post("/signout")
        assert browser.get("/api/jobs").status_code == 401


def test_guessing_at_the_sign_in_page_becomes_slow(tmp_path: Path) -> None:
    with visit(atelier(tmp_path, auth=f"{NAME}:{PASSWORD}"), follow_redirects=False) as browser:
        said = [browser.post("/signin", data={"name": NAME, "password": "guess"}).status_code for _ in range(7)]
        assert said == [401] * 5 + [429] * 2
        answer = browser.post("/signin", data={"name": NAME, "password": PASSWORD})
        assert answer.status_code == 429
        assert int(answer.headers["Retry-After"]) > 0


def test_without_an_account_there_is_nothing_to_sign_in_to(browser: TestClient) -> None:
    assert browser.get("/signin", follow_redirects=False).headers["Location"] == "./"


def test_a_picture_of_the_painter_is_a_picture(services: Services) -> None:
    request = services.complete(CIRCLE)
    assert paint(request, 0).infotext.startswith("a red circle")
