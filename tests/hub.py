"""A server on this machine that plays Hugging Face, Civitai and others, and can be told to misbehave."""

import json
import struct
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from hashlib import sha256
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import urlsplit


def safetensors(numbers: int = 4096, **metadata: str) -> bytes:
    """A whole file of that many float32."""
    data = bytes(range(256)) * (numbers * 4 // 256 + 1)
    header: dict[str, Any] = {"w": {"dtype": "F32", "shape": [numbers], "data_offsets": [0, numbers * 4]}}
    text = json.dumps({"__metadata__": metadata, **header}).encode()
    return struct.pack("<Q", len(text)) + text + data[: numbers * 4]


@dataclass
class Thing:
    """What lies at a path."""

    data: bytes = b""
    status: int = 200
    location: str = ""
    breaks_after: list[int] = field(default_factory=list)
    """Bytes after which each of the next answers ends; the rest does not come."""
    says: int | None = None
    """The length that is announced, if that is not the truth."""
    chunked: bool = False
    endless: bool = False
    pause: float = 0.0
    """Seconds between two pieces."""
    piece: int = 1 << 16
    has_ranges: bool = True
    tag: str = ""


@dataclass
class Asked:
    path: str
    headers: dict[str, str]


class Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Answers)
        self.things: dict[str, Thing] = {}
        self.asked: list[Asked] = []
        self.go_on = threading.Event()
        self.go_on.set()
        self.at_once = 0
        self.most_at_once = 0

    @property
    def place(self) -> str:
        return f"127.0.0.1:{self.server_address[1]}"

    @property
    def url(self) -> str:
        return f"http://{self.place}"

    def put(self, path: str, data: bytes = b"", **how: Any) -> str:
        """Have something lie at a path; its address."""
        self.things[path] = Thing(data, tag=sha256(data).hexdigest()[:16], **how)
        return self.url + path

    def table(self, path: str, said: Any) -> str:
        return self.put(path, json.dumps(said).encode())

    def repository(self, repo: str, files: dict[str, bytes], licence: str = "apache-2.0", **lies: Any) -> None:
        """A repository of Hugging Face; `lies` are put into what is said of each large file."""
        siblings: list[dict[str, Any]] = []
        for name, data in files.items():
            said: dict[str, Any] = {"rfilename": name, "size": len(data)}
            if name.endswith((".safetensors", ".bin", ".ckpt")):
                said["lfs"] = {"sha256": sha256(data).hexdigest(), "size": len(data), **lies}
            siblings.append(said | {key: value for key, value in lies.items() if key == "size"})
            self.put(f"/{repo}/resolve/c0ffee/{name}", data)
        self.table(
            f"/api/models/{repo}/revision/main",
            {"sha": "c0ffee", "siblings": siblings, "cardData": {"license": licence}},
        )


class _Answers(BaseHTTPRequestHandler):
    server: Server
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self.server.asked.append(Asked(self.path, dict(self.headers)))
        thing = self.server.things.get(urlsplit(self.path).path, Thing(status=404))
        self.close_connection = True
        if thing.status != 200:
            self.send_response(thing.status)
            if thing.location:
                self.send_header("Location", thing.location)
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        self.server.at_once += 1
        self.server.most_at_once = max(self.server.most_at_once, self.server.at_once)
        try:
            self._give(thing)
        except OSError:
            pass  # the other side has had enough
        finally:
            self.server.at_once -= 1

    def _give(self, thing: Thing) -> None:
        given = self.headers["Range"] if thing.has_ranges else None
        if given and self.headers["If-Range"] not in (None, f'"{thing.tag}"'):
            given = None
        first = int(given.removeprefix("bytes=").rstrip("-")) if given else 0
        if given and first >= len(thing.data):
            self.send_response(416)
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        self.send_response(206 if given else 200)
        if given:
            self.send_header("Content-Range", f"bytes {first}-{len(thing.data) - 1}/{len(thing.data)}")
        self.send_header("ETag", f'"{thing.tag}"')
        if thing.chunked:
            self.send_header("Transfer-Encoding", "chunked")
        else:
            self.send_header("Content-Length", str((thing.says or len(thing.data)) - first))
        self.end_headers()
        end = thing.breaks_after.pop(0) if thing.breaks_after else len(thing.data)
        for at in range(first, end, thing.piece):
            if len(thing.data) > 1 << 16:  # tables are not held up
                self.server.go_on.wait(20)
            self._send(thing, thing.data[at : min(end, at + thing.piece)])
            time.sleep(thing.pause)
        while thing.endless:
            self._send(thing, bytes(thing.piece))
        if thing.chunked and end == len(thing.data):
            self.wfile.write(b"0\r\n\r\n")

    def _send(self, thing: Thing, data: bytes) -> None:
        self.wfile.write(f"{len(data):x}\r\n".encode() + data + b"\r\n" if thing.chunked else data)

    def log_message(self, *_: Any) -> None: ...


@contextmanager
def hub() -> Iterator[Server]:
    with Server() as server:
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        yield server
        server.go_on.set()
        server.shutdown()
