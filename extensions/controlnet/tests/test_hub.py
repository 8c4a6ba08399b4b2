"""Fetching weights, from a hub on this machine: whole or not there, and on from where it was broken off."""

import hashlib
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import constants

from extensions.controlnet.hub import PARTS, Hub
from tests.waiting import wait_for

FILE = "ControlNetHED.pth"
DATA = bytes(range(256)) * 4096  # 1 MB
COMMIT = "c" * 40


class Server(ThreadingHTTPServer):
    """As much of huggingface.co as a download needs."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Answers)
        self.data = DATA
        self.tag = hashlib.sha256(DATA).hexdigest()
        self.broken_after: int | None = None
        """Bytes of the next answer; the rest does not come."""
        self.is_there = True
        self.asked: list[tuple[str, str, str | None]] = []
        self.headers: list[dict[str, str]] = []


class _Answers(BaseHTTPRequestHandler):
    server: Server

    def do_HEAD(self) -> None:
        self._start(200)

    def do_GET(self) -> None:
        first = int((self.headers["Range"] or "bytes=0-").removeprefix("bytes=").rstrip("-"))
        self._start(206 if first else 200, first)
        end, self.server.broken_after = self.server.broken_after, None
        self.wfile.write(self.server.data[first:end])

    def _start(self, status: int, first: int = 0) -> None:
        self.server.asked.append((self.command, self.path, self.headers["Range"]))
        self.server.headers.append(dict(self.headers))
        if not self.server.is_there:
            self.send_response(404)
            self.send_header("X-Error-Code", "EntryNotFound")
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        size = len(self.server.data)
        self.send_response(status)
        self.send_header("ETag", f'"{self.server.tag}"')
        self.send_header("X-Repo-Commit", COMMIT)
        self.send_header("Content-Length", str(size - first))
        if status == 206:
            self.send_header("Content-Range", f"bytes {first}-{size - 1}/{size}")
        self.end_headers()

    def log_message(self, *_: Any) -> None: ...


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    server = Server()
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


def fetch(server: Server, folder: Path) -> dict[str, Any]:
    hub = Hub(folder, f"http://127.0.0.1:{server.server_port}")
    hub.start([FILE])
    wait_for(lambda: hub.state()[0]["state"] in ("done", "failed"))
    return hub.state()[0]


def test_a_file_arrives_whole(server: Server, tmp_path: Path) -> None:
    said = fetch(server, tmp_path)
    assert said == {"file": FILE, "state": "done", "done": len(DATA), "total": len(DATA), "error": ""}
    assert (tmp_path / FILE).read_bytes() == DATA
    assert not list((tmp_path / PARTS).iterdir())
    assert server.asked[-1] == ("GET", f"/lllyasviel/Annotators/resolve/{COMMIT}/{FILE}", None)  # what HEAD has seen
    assert not any("authorization" in {name.lower() for name in headers} for headers in server.headers)


def test_it_goes_on_where_it_was_broken_off(server: Server, tmp_path: Path) -> None:
    part = tmp_path / PARTS / f"{FILE}.{server.tag}"
    part.parent.mkdir()
    part.write_bytes(DATA[:300_000])
    assert fetch(server, tmp_path)["state"] == "done"
    assert (tmp_path / FILE).read_bytes() == DATA
    assert server.asked[-1][2] == "bytes=300000-"


def test_a_connection_that_breaks_is_taken_up_again(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 100_000)
    server.broken_after = 300_000
    said = fetch(server, tmp_path)
    assert (said["state"], said["done"]) == ("done", len(DATA))
    assert (tmp_path / FILE).read_bytes() == DATA
    assert [at for method, _, at in server.asked if method == "GET"] == [None, "bytes=300000-"]


def test_what_changed_at_the_hub_begins_anew(server: Server, tmp_path: Path) -> None:
    part = tmp_path / PARTS / f"{FILE}.{'0' * 64}"
    part.parent.mkdir()
    part.write_bytes(b"of an older file")
    assert fetch(server, tmp_path)["state"] == "done"
    assert (tmp_path / FILE).read_bytes() == DATA


def test_what_arrives_damaged_is_thrown_away(server: Server, tmp_path: Path) -> None:
    server.tag = "1" * 64
    said = fetch(server, tmp_path)
    assert (said["state"], said["error"]) == ("failed", f"{FILE} arrived damaged; fetch it again")
    assert not (tmp_path / FILE).exists()
    assert not list((tmp_path / PARTS).iterdir())


def test_a_file_that_is_not_there_is_told(server: Server, tmp_path: Path) -> None:
    server.is_there = False
    said = fetch(server, tmp_path)
    assert said["state"] == "failed"
    assert "404" in said["error"]
    assert not (tmp_path / FILE).exists()


def test_a_full_disk_is_told_before_anything_is_fetched(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("extensions.controlnet.hub.SPARE", 2**60)
    said = fetch(server, tmp_path)
    assert "the disk has no room" in said["error"]
    assert [method for method, _, _ in server.asked] == ["HEAD"]


def test_what_is_under_way_is_not_begun_twice(server: Server, tmp_path: Path) -> None:
    hub = Hub(tmp_path, f"http://127.0.0.1:{server.server_port}")
    for _ in range(5):
        hub.start([FILE])
    wait_for(lambda: hub.state()[0]["state"] == "done")
    assert [method for method, _, _ in server.asked].count("GET") == 1
