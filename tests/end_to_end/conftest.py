"""A real server with a painter instead of an engine, and one browser, with one tab, for all tests."""

import json
import os
import shutil
import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import uvicorn

from backend import database, registry
from backend.api import server
from backend.api.models import Works
from backend.catalog import Catalog
from backend.gallery.index import Gallery
from backend.images import ImageStore
from backend.jobs.device import Device
from backend.jobs.events import Hub
from backend.jobs.runner import Runner
from backend.jobs.store import JobState, JobStore
from backend.services import Services
from backend.settings import ROOT, Settings
from backend.training import runner as training
from tests.end_to_end.painter import Painter

FLAGS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-quic",
    "--no-first-run",
)
WINDOW = {"width": 1440, "height": 900}
TIMEOUT = 60_000
"""Milliseconds for what never comes: no machine is too slow for a test."""
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
EXTENSION = """
from backend.extension import Extension, Param, Params


class Given(Params):
    amount: float = Param(0.5, "Amount", ge=0, le=2, step=0.05, infotext="Glow amount")
    kind: str = Param("soft", "Kind", choices=(("soft", "Soft"), ("hard", "Hard")), widget="segmented")
    twice: bool = Param(False, "Twice")
    lamp: str = Param("", "Lamp", choices="lamps")


class Glow(Extension):
    id = "glow"
    title = "Glow"
    Params = Given

    def choices(self):
        return {"lamps": [("", "None"), ("desk", "Desk lamp")]}
"""
TOML = 'id = "glow"\nversion = "1.0"\ntitle = "Glow"\n'


@dataclass
class Studio:
    """A running server."""

    url: str
    services: Services
    painter: Painter | None


@dataclass
class Watch:
    """What a page asked for and complained about."""

    requests: list[str] = field(default_factory=list)
    complaints: list[str] = field(default_factory=list)
    expected: tuple[str, ...] = ()
    """Words of complaints that a test provokes."""
    _ends: list[Callable[[], None]] = field(default_factory=list)

    def begin(self, page: Any) -> None:
        told = {
            "request": lambda request: self.requests.append(request.url),
            "pageerror": lambda error: self.complaints.append(str(error.stack or error)),
            "console": lambda message: self.complaints.extend([message.text] * (message.type == "error")),
        }
        for event, listener in told.items():
            page.on(event, listener)
            self._ends.append(partial(page.remove_listener, event, listener))

    def end(self) -> None:
        for end in self._ends:
            end()

    def unexpected(self) -> list[str]:
        return [each for each in self.complaints if not any(words in each for words in self.expected)]


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    """Chromium; without one the browser tests are skipped, or fail if ATELIER_REQUIRE_BROWSER=1."""
    from playwright.sync_api import Error, sync_playwright

    path = os.environ.get("ATELIER_CHROMIUM") or next(filter(None, map(shutil.which, BROWSERS)), None)
    with sync_playwright() as playwright:
        try:
            started = playwright.chromium.launch(executable_path=path, headless=True, args=FLAGS)
        except Error as error:
            message = (
                f"NO BROWSER: Chromium cannot be started, the page stays untested ({error.message.splitlines()[0]})"
            )
            if os.environ.get("ATELIER_REQUIRE_BROWSER") == "1":
                pytest.fail(message)
            pytest.skip(message)
        yield started
        started.close()


@pytest.fixture(scope="module")
def studio(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Studio]:
    """The real application on a free port; only the engine is a painter."""
    root = tmp_path_factory.mktemp("studio")
    painter = Painter()
    services = painted(root, painter)
    with serving(services) as url:
        yield Studio(url, services, painter)


@pytest.fixture(scope="session")
def _tab(browser: Any) -> Iterator[Any]:
    made = new_context(browser)
    yield made.new_page()
    made.close()


@pytest.fixture
def tab(_tab: Any) -> Iterator[Any]:
    """A tab of a browser that remembers nothing. It is the same one for all tests: what is compiled already makes a
    page take a third of the time.
    """
    yield _tab
    context, origin = _tab.context, _tab.evaluate("origin")
    for other in context.pages[1:]:
        other.close()
    _tab.unroute_all()
    _tab.mouse.move(0, 0)
    _tab.set_viewport_size(WINDOW)
    empty = f"{origin}/empty"  # of the same origin: for another, about:blank too, the browser takes a new process
    _tab.route(empty, lambda route: route.fulfill(body="", content_type="text/html"))
    _tab.goto(empty)
    _tab.unroute_all()
    _tab.evaluate("localStorage.clear(), sessionStorage.clear()")
    context.clear_cookies()


@pytest.fixture
def context(browser: Any) -> Iterator[Any]:
    """A browser of its own, for what a tab is not enough for."""
    made = new_context(browser)
    yield made
    made.close()


def new_context(browser: Any, **how: Any) -> Any:
    made = browser.new_context(**{"viewport": WINDOW, "locale": "en-US", **how})
    made.set_default_timeout(TIMEOUT)
    return made


@pytest.fixture
def watch() -> Iterator[Watch]:
    watch = Watch()
    yield watch
    watch.end()


@pytest.fixture
def page(tab: Any, studio: Studio, watch: Watch) -> Iterator[Any]:
    """An open page; the test fails if it asks another host for anything, or complains in the console."""
    assert studio.painter
    studio.painter.pace = 0.02
    studio.painter.going.set()
    for job in studio.services.jobs.recent(states=[JobState.QUEUED, JobState.RUNNING]):
        studio.services.runner.cancel(job.id)  # left by a test that failed
    yield shown(tab, studio.url, watch)
    studio.painter.going.set()
    assert [
        url for url in watch.requests if not url.startswith((studio.url, "data:", "blob:", "ws://127.0.0.1"))
    ] == []
    assert watch.unexpected() == []


def open_page(context: Any, url: str, watch: Watch | None = None) -> Any:
    """A page of ours in a new tab, ready to be used."""
    return shown(context.new_page(), url, watch)


def shown(page: Any, url: str, watch: Watch | None = None) -> Any:
    """The tab with a page of ours in it, ready to be used."""
    if watch:
        watch.begin(page)
    page.goto(url, wait_until="commit")
    ready(page)
    return page


def ready(page: Any) -> None:
    page.wait_for_selector("#go")
    page.wait_for_function("window.atelier?.state.known && document.querySelector('#model option')", polling=50)
    page.evaluate("window.since = Math.max(0, ...atelier.jobs.keys())")


def painted(root: Path, painter: Painter) -> Services:
    """Services as `backend.services.build` makes them, with a painter, two models and three extensions."""
    models = root / "models"
    model(models / "starter", "Starter (embedded)", {"width": 128, "height": 128, "cfg_scale": 4.0})
    model(models / "checkpoints" / "grand", "Grand", {"width": 512, "height": 768, "steps": 30})
    (models / "checkpoints" / "torn").mkdir()
    (models / "checkpoints" / "torn" / "unet.safetensors").touch()
    glow = root / "extensions" / "glow"
    glow.mkdir(parents=True)
    (glow / "__init__.py").write_text(EXTENSION, "utf-8")
    (glow / "extension.toml").write_text(TOML, "utf-8")
    for name in ("inpaint", "outpaint"):  # the real ones, of which a painter only uses the declarations
        shutil.copytree(ROOT / "extensions" / name, root / "extensions" / name)
    settings = settings_in(root, root / "extensions")
    settings.data_dir.mkdir()
    engine = database.connect(settings.database)
    database.migrate(engine)
    extensions = registry.load(settings.extensions_dir, models=models, kept=root / "kept")
    assert not extensions.broken
    images, hub = ImageStore(settings.inputs_dir), Hub()
    jobs = JobStore(engine, extensions.params)
    gallery = Gallery(engine, settings.outputs_dir, settings.data_dir / "thumbs")
    catalog = Catalog(settings.models_dir, settings.default_model)
    device = Device()
    runner = Runner(painter, jobs, gallery, images, hub, device)
    trainings = training.build(settings.data_dir / "training", settings.roots, engine, hub, device, "cpu")
    return Services(settings, extensions, catalog, images, jobs, gallery, hub, runner, trainings)


def settings_in(root: Path, extensions: Path) -> Settings:
    """Of a server that keeps everything below `root`."""
    return Settings(
        port=free_port(),
        data_dir=root / "data",
        models_dir=root / "models",
        outputs_dir=root / "outputs",
        extensions_dir=extensions,
        default_model="starter",
        log_level="warning",
    )


def model(folder: Path, title: str, defaults: dict[str, Any]) -> None:
    folder.mkdir(parents=True)
    (folder / "model_index.json").write_text('{"_class_name": "StableDiffusionPipeline"}', "utf-8")
    (folder / "atelier.json").write_text(json.dumps({"title": title, "defaults": defaults}), "utf-8")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


class serving:  # noqa: N801 (a context manager, used like a function)
    """The application of `services`, on its port, in a thread."""

    def __init__(self, services: Services, works: Works | None = None) -> None:
        port = services.settings.port
        app = server.create_app(services, works=works)
        config = uvicorn.Config(app, host="127.0.0.1", port=port, log_level="warning", timeout_graceful_shutdown=1)
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(target=self._server.run, daemon=True)
        self.url = f"http://127.0.0.1:{port}/"

    def __enter__(self) -> str:
        self._thread.start()
        until = time.monotonic() + 60
        while not self._server.started:
            assert self._thread.is_alive(), "the server did not start"
            assert time.monotonic() < until, "the server takes too long to start"
            time.sleep(0.05)
        return self.url

    def __exit__(self, *_: object) -> None:
        self._server.should_exit = True
        self._thread.join(15)


STARTER = ROOT / "models" / "starter"
