"""What the tests of the web server share: a whole Atelier in a folder, with a painter instead of an engine."""

import asyncio
import base64
import io
import json
import threading
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import unquote

from fastapi import FastAPI
from PIL import Image, PngImagePlugin
from starlette.datastructures import Headers
from starlette.routing import Mount
from starlette.testclient import TestClient

from backend import database, infotext, registry
from backend.api.server import Page, create_app
from backend.catalog import Catalog
from backend.errors import AtelierError
from backend.gallery.index import Gallery
from backend.images import ImageStore
from backend.jobs.device import Device
from backend.jobs.events import Hub
from backend.jobs.runner import Runner
from backend.jobs.store import JobStore
from backend.request import GenerationRequest
from backend.result import Picture, Progress, Report, Result
from backend.services import Services
from backend.settings import Settings
from backend.training import runner as training

PORT = 7860
HOME = f"http://127.0.0.1:{PORT}"
NAME, PASSWORD = "ada", "correct horse"
EXTENSION = """
from backend.extension import Extension, Param, Params


class Knobs(Params):
    weight: float = Param(1.0, "Weight", ge=0, le=2, infotext="Demo weight")


class Demo(Extension):
    id = "demo"
    title = "Demo"
    Params = Knobs

    def routes(self, router):
        @router.get("/hello")
        def hello():
            return {"hello": "demo"}

        @router.post("/break")
        def broken():
            raise RuntimeError("/etc/secret in a traceback")
"""


class Painter:
    """A worker in this very process: paints one colour, step by step; `held` makes it wait in mid-picture."""

    def __init__(self) -> None:
        self.go_on = threading.Event()
        self.go_on.set()

    def generate(
        self, request: GenerationRequest, images: ImageStore, report: Report, done: frozenset[int] = frozenset()
    ) -> Result:
        for index in range(request.images):
            if index in done:
                continue
            for step in range(1, request.steps + 1):
                at = Progress("sampling", step, request.steps, index, request.images, preview=b"RIFF-preview")
                report(at)
                while not self.go_on.wait(0.01):
                    report(at)
            alone = request.model_copy(update={"seed": request.seed + index, "batch_size": 1, "n_iter": 1})
            report(
                Progress("saving", request.steps, request.steps, index, request.images, picture=paint(alone, index))
            )
        return Result(request, tuple(range(request.images)))

    def errand(
        self, extension: str, name: str, values: Mapping[str, Any], go_on: Callable[[], None]
    ) -> dict[str, Any]:
        raise AtelierError(f"a painter runs no errands, and so not {name} of {extension}")

    def start(self) -> None: ...
    def close(self) -> None: ...

    def state(self) -> dict[str, Any]:
        return {"state": "ready", "device": "cpu", "detail": None}

    def watch(self, listener: Callable[[dict[str, Any]], None]) -> None: ...


def paint(request: GenerationRequest, index: int) -> Picture:
    text = infotext.write(request)
    notes = PngImagePlugin.PngInfo()
    notes.add_text("parameters", text)
    data = png(request.width, request.height, (request.seed % 256, 64, 128), pnginfo=notes)
    return Picture(index, data, request, text, request.width, request.height)


def png(width: int = 64, height: int = 64, colour: tuple[int, ...] = (200, 30, 30), **how: Any) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (width, height), colour).save(file, "PNG", **how)
    return file.getvalue()


def atelier(folder: Path, worker: Painter | None = None, **settings: Any) -> Services:
    """All the real parts, but for the engine."""
    given = Settings(
        data_dir=folder / "data",
        models_dir=folder / "models",
        outputs_dir=folder / "outputs",
        extensions_dir=folder / "extensions",
        port=PORT,
        **settings,
    )
    given.data_dir.mkdir(parents=True)
    starter = given.models_dir / "starter"
    starter.mkdir(parents=True)
    (starter / "model_index.json").write_text(json.dumps({"_class_name": "StableDiffusionPipeline"}))
    (starter / "atelier.json").write_text(json.dumps({"defaults": {"width": 64, "height": 64, "steps": 3}}))
    demo = given.extensions_dir / "demo"
    demo.mkdir(parents=True)
    (demo / "extension.toml").write_text('id = "demo"\nversion = "1"\ntitle = "Demo"\n')
    (demo / "__init__.py").write_text(EXTENSION)
    engine = database.connect(given.database)
    database.migrate(engine)
    extensions = registry.load(given.extensions_dir)
    jobs = JobStore(engine, extensions.params)
    images = ImageStore(given.inputs_dir)
    gallery = Gallery(engine, given.outputs_dir, given.data_dir / "thumbs")
    hub = Hub()
    device = Device()
    runner = Runner(worker or Painter(), jobs, gallery, images, hub, device)
    trainings = training.build(given.data_dir / "training", given.roots, engine, hub, device, "cpu")
    return Services(given, extensions, Catalog(given.models_dir), images, jobs, gallery, hub, runner, trainings)


def no_page(app: FastAPI, services: Services) -> None:
    """The server without Gradio, which takes seconds to import."""


def visit(services: Services, page: Page = no_page, **how: Any) -> TestClient:
    """A browser at this Atelier; use it in a `with` block so that jobs run."""
    return TestClient(create_app(services, page), base_url=HOME, **how)


def basic(name: str, password: str) -> dict[str, str]:
    return {"Authorization": "Basic " + base64.b64encode(f"{name}:{password}".encode()).decode()}


def scope_of(path: str, method: str = "GET", headers: Iterable[tuple[str, str]] = ()) -> dict[str, Any]:
    """A request by hand, for what a client refuses to send: it tidies nothing up."""
    path, _, query = path.partition("?")
    return {
        "type": "http",
        "method": method,
        "path": unquote(path),
        "raw_path": path.encode(),
        "query_string": query.encode(),
        "scheme": "http",
        "server": ("127.0.0.1", PORT),
        "headers": [(name.encode(), value.encode()) for name, value in headers or [("host", f"127.0.0.1:{PORT}")]],
    }


class Answer(NamedTuple):
    status: int
    headers: Headers
    body: bytes


def ask(app: Any, scope: dict[str, Any], whole: bool = True) -> Answer:
    """The answer of an ASGI application; only its beginning if it has no end."""
    start: dict[str, Any] = {}
    body = b""

    async def answer() -> None:
        came = asyncio.Event()
        begun = asyncio.Event()

        async def receive() -> Any:
            if came.is_set():
                await asyncio.Event().wait()  # nothing more comes, and nobody goes
            came.set()
            return {"type": "http.request", "body": b""}

        async def send(message: Any) -> None:
            nonlocal start, body
            if message["type"] == "http.response.start":
                start = message
                begun.set()
            body += message.get("body", b"")

        answering = asyncio.ensure_future(app(scope, receive, send))
        beginning = asyncio.ensure_future(begun.wait())
        await asyncio.wait([answering] if whole else [answering, beginning], return_when=asyncio.FIRST_COMPLETED)
        if whole:
            await answering
        answering.cancel()
        beginning.cancel()

    asyncio.run(asyncio.wait_for(answer(), 60))
    return Answer(start["status"], Headers(raw=start["headers"]), body)


def walk(routes: Any, prefix: str = "") -> Any:
    """(method, path) of every route, also of included routers and mounted applications."""
    for route in routes:
        if hasattr(route, "original_router"):  # what include_router leaves in FastAPI
            yield from walk(route.original_router.routes, prefix)
        elif isinstance(route, Mount):
            if route.routes:
                yield from walk(route.routes, prefix + route.path)
            else:
                yield "GET", f"{prefix}{route.path}/{{file}}"
        elif getattr(route, "methods", None):
            yield from ((method, prefix + route.path) for method in sorted(route.methods))
        elif type(route).__name__ == "APIWebSocketRoute":
            yield "WEBSOCKET", prefix + route.path
        else:
            raise AssertionError(f"a route of an unknown kind: {route!r}")
