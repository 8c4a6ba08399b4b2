"""Live events: a snapshot first, then always the newest state of each job."""

import asyncio
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient
from starlette.websockets import WebSocketDisconnect

from backend.api import jobs
from backend.api.server import create_app
from backend.services import Services
from tests.waiting import wait_for
from tests.web import HOME, NAME, PASSWORD, PORT, Painter, atelier, no_page, scope_of, visit

CIRCLE = {"prompt": "a red circle", "seed": 7, "steps": 5}
SOCKET = f"ws://127.0.0.1:{PORT}/ws"


@pytest.fixture
def painter() -> Painter:
    return Painter()


@pytest.fixture
def services(tmp_path: Path, painter: Painter) -> Services:
    return atelier(tmp_path, painter)


@pytest.fixture
def browser(services: Services) -> Iterator[TestClient]:
    with visit(services) as client:
        yield client


def events_until(socket: Any, state: str) -> list[dict[str, Any]]:
    """The views of a job up to the first one in `state`."""
    views: list[dict[str, Any]] = []
    while not views or views[-1]["state"] != state:
        event = json.loads(socket.receive_text())
        if event["type"] == "job":
            views.append(event["job"])
    return views


def test_the_first_message_is_a_snapshot(browser: TestClient) -> None:
    with browser.websocket_connect(SOCKET) as socket:
        first = json.loads(socket.receive_text())
    assert first == {
        "type": "snapshot",
        "jobs": [],
        "trainings": [],
        "engine": {"state": "ready", "device": "cpu", "detail": None},
    }


def test_a_job_is_followed_to_its_picture(browser: TestClient) -> None:
    with browser.websocket_connect(SOCKET) as socket:
        socket.receive_text()
        job = browser.post("/api/jobs", json=CIRCLE).json()
        views = events_until(socket, "done")
    assert {view["id"] for view in views} == {job["id"]}
    assert [picture["seed"] for picture in views[-1]["pictures"]] == [7]
    assert views[-1] == browser.get(f"/api/jobs/{job['id']}").json()  # REST says the same
    fractions = [view["progress"]["fraction"] for view in views if view["progress"]]
    assert fractions == sorted(fractions)


def test_a_second_tab_and_a_reload_join_the_running_job(browser: TestClient, painter: Painter) -> None:
    painter.go_on.clear()
    job = browser.post("/api/jobs", json=CIRCLE).json()
    wait_for(lambda: browser.get(f"/api/jobs/{job['id']}").json()["preview"])
    with browser.websocket_connect(SOCKET) as one, browser.websocket_connect(SOCKET) as two:
        for socket in (one, two):
            seen = json.loads(socket.receive_text())["jobs"]
            assert [(view["id"], view["state"]) for view in seen] == [(job["id"], "running")]
            assert seen[0]["preview"].startswith("data:image/webp;base64,")
        painter.go_on.set()
        for socket in (one, two):
            assert events_until(socket, "done")[-1]["pictures"]


def test_stop_in_one_tab_is_seen_in_the_other(browser: TestClient, painter: Painter) -> None:
    painter.go_on.clear()
    with browser.websocket_connect(SOCKET) as socket:
        socket.receive_text()
        job = browser.post("/api/jobs", json=CIRCLE).json()
        events_until(socket, "running")
        browser.post(f"/api/jobs/{job['id']}/cancel")
        assert events_until(socket, "cancelled")


def test_a_finished_job_is_still_in_the_snapshot(browser: TestClient) -> None:
    job = browser.post("/api/jobs", json=CIRCLE).json()
    wait_for(lambda: browser.get(f"/api/jobs/{job['id']}").json()["state"] == "done")
    with browser.websocket_connect(SOCKET) as socket:
        seen = json.loads(socket.receive_text())["jobs"]
    assert [(view["id"], view["state"]) for view in seen] == [(job["id"], "done")]


def test_what_a_page_sends_is_ignored(browser: TestClient) -> None:
    with browser.websocket_connect(SOCKET) as socket:
        socket.receive_text()
        socket.send_text("hello")
        socket.send_bytes(b"\xff\xfe")
        browser.post("/api/jobs", json=CIRCLE)
        assert events_until(socket, "done")


def test_nobody_listens_after_the_page_has_gone(browser: TestClient, services: Services) -> None:
    with browser.websocket_connect(SOCKET) as socket:
        socket.receive_text()
        assert len(services.hub._listeners) == 1
    wait_for(lambda: not services.hub._listeners)


@pytest.mark.parametrize(
    "origin", ["http://evil.example", "null", "http://localhost:8000", f"http://localhost:{PORT}"]
)
def test_another_site_hears_nothing(browser: TestClient, origin: str) -> None:
    with pytest.raises(WebSocketDisconnect), browser.websocket_connect(SOCKET, headers={"Origin": origin}):
        pass
    with browser.websocket_connect(SOCKET, headers={"Origin": HOME}) as socket:
        assert socket.receive_text()


def test_a_stranger_hears_nothing(tmp_path: Path) -> None:
    with visit(atelier(tmp_path, auth=f"{NAME}:{PASSWORD}"), follow_redirects=False) as browser:
        with pytest.raises(WebSocketDisconnect), browser.websocket_connect(SOCKET):
            pass
        assert browser.get("/events").status_code == 401
        browser.post("/signin", data={"name": NAME, "password": PASSWORD})
        with browser.websocket_connect(SOCKET) as socket:
            assert json.loads(socket.receive_text())["type"] == "snapshot"


def test_server_sent_events_say_the_same(services: Services, monkeypatch: pytest.MonkeyPatch) -> None:
    """The fallback; its stream has no end, so it is read by hand."""
    monkeypatch.setattr(jobs, "SILENCE", 0.05)

    async def listen() -> list[str]:
        lines = jobs._lines(jobs.stream(services, asyncio.Event()))
        heard = [await anext(lines), await anext(lines)]
        services.hub.publish({"id": 3, "state": "queued"})
        heard.append(await anext(lines))
        await lines.aclose()  # type: ignore[attr-defined]
        return heard

    snapshot, quiet, job = asyncio.run(listen())
    assert json.loads(snapshot.removeprefix("data: "))["type"] == "snapshot"
    assert snapshot.endswith("\n\n")
    assert quiet.startswith(":")
    assert json.loads(job.removeprefix("data: ")) == {"type": "job", "job": {"id": 3, "state": "queued"}}
    assert services.hub._listeners == []


def test_streams_end_with_the_server(services: Services) -> None:
    async def listen() -> list[str | None]:
        closing = asyncio.Event()
        events = jobs.stream(services, closing)
        await anext(events)
        asyncio.get_running_loop().call_later(0.05, closing.set)
        return [event async for event in events]

    assert asyncio.run(asyncio.wait_for(listen(), 60)) == [None]
    assert services.hub._listeners == []


def test_a_slow_listener_gets_the_newest_state_only(services: Services) -> None:
    async def listen() -> list[str | None]:
        events = jobs.stream(services, asyncio.Event())
        await anext(events)
        for step in range(100):
            services.hub.publish({"id": 1, "state": "running", "step": step})
        return [await anext(events)]

    (heard,) = asyncio.run(listen())
    assert heard is not None
    assert json.loads(heard)["job"]["step"] == 99


def test_events_are_never_compressed_or_kept(services: Services) -> None:
    """A compressor would hold them back."""

    async def first_answer() -> dict[bytes, bytes]:
        started: asyncio.Future[dict[bytes, bytes]] = asyncio.get_running_loop().create_future()

        async def send(message: Any) -> None:
            if message["type"] == "http.response.start":
                started.set_result(dict(message["headers"]))

        async def receive() -> Any:
            await asyncio.sleep(3600)

        scope = scope_of("/events", headers=[("host", f"127.0.0.1:{PORT}"), ("accept-encoding", "gzip, br")])
        answering = asyncio.create_task(create_app(services, no_page)(scope, receive, send))
        headers = await asyncio.wait_for(started, 60)
        answering.cancel()
        return headers

    headers = asyncio.run(first_answer())
    assert b"content-encoding" not in headers
    assert headers[b"content-type"].startswith(b"text/event-stream")
    assert headers[b"cache-control"] == b"no-store"


def test_events_are_quick(browser: TestClient, services: Services) -> None:
    with browser.websocket_connect(SOCKET) as socket:
        socket.receive_text()
        began = time.perf_counter()
        for number in range(200):
            services.hub.publish({"id": number, "state": "done"})
            socket.receive_text()
        assert (time.perf_counter() - began) / 200 < 0.05


def test_a_model_that_comes_is_told(services: Services, browser: TestClient) -> None:
    with browser.websocket_connect(SOCKET) as socket:
        socket.receive_json()
        (services.settings.models_dir / "loras").mkdir()
        (services.settings.models_dir / "loras" / "cat.safetensors").write_bytes(b"x")
        assert socket.receive_json() == {"type": "models"}
    assert [model.name for model in services.catalog.files("lora")] == ["cat"]
