"""Gradio inside our server, with every door shut that the page does not need (docs/security.md says why each)."""

from __future__ import annotations

import importlib
import importlib.machinery
import os
import re
import shutil
import sys
from collections.abc import Awaitable, Callable, Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, NoReturn

from fastapi import FastAPI, Request
from starlette.datastructures import MutableHeaders
from starlette.middleware.gzip import GZipMiddleware
from starlette.responses import JSONResponse, Response
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from backend.api.auth import CALLER
from backend.errors import Refused
from backend.images import MAX_BYTES
from backend.settings import ROOT, Settings

if TYPE_CHECKING:
    import gradio as gr

    from backend.services import Services

DANGEROUS = re.compile(r"GRADIO_(VIBE_MODE|MCP_SERVER|SHARE|LOCAL_DEV_MODE|WATCH_\w+)")
"""Variables that would open what we shut: a code editor without login, a tunnel to the Internet."""

BROWSER_NEEDS = tuple(
    (methods, re.compile(path))
    for methods, path in (
        (("GET", "HEAD"), r"/|/config/?|/theme\.css|/(assets|static|svelte)/.+"),
        (("GET",), r"/gradio_api/(queue/data|upload_progress|heartbeat/[\w-]+)"),
        (("GET", "HEAD"), r"/gradio_api/file=.+"),
        (("POST",), r"/gradio_api/(queue/join|upload|cancel|reset|component_server|run/[\w.-]+)"),
    )
)
"""All of Gradio's routes that answer: method and path; `run/` is where a click with queue=False goes."""

DOWNLOADERS = (
    ("gradio.processing_utils", "async_ssrf_protected_get"),
    ("gradio.processing_utils", "async_ssrf_protected_download"),
    ("safehttpx", "get"),
    ("safehttpx", "async_validate_url"),
)
QUEUE = 64
POLLS = (0.02, 0.1)
"""Seconds between Gradio's looks for a click to serve and for progress to tell; its own millisecond never lets a
processor rest."""
SESSIONS = 200
CACHE_CHECKED_EVERY, CACHE_KEPT = 3600, 86400  # seconds


def page(app: FastAPI, services: Services) -> None:
    """The page of `ui.layout` at /, its scripts at /ui/."""
    prepare(services.settings.data_dir)
    from ui import layout, words  # imports gradio: only now, and that takes seconds

    folders = [services.settings.extensions_dir / extension.id for extension in services.registry.extensions]

    @app.get("/ui/languages/{code}.json", include_in_schema=False)
    def language(code: str) -> Response:
        found = words.table(code, folders)
        return JSONResponse(found, 404 if found is None else 200, {"Cache-Control": "no-cache"})

    app.mount("/ui", GZipMiddleware(Static(directory=layout.STATIC)), name="static")
    demo = layout.build(services)
    mount(app, demo, services.settings, head=layout.HEAD, **layout.page_options())


def prepare(data_dir: Path) -> None:
    """Set the process up for Gradio, before it is imported. Raises Refused for an environment that opens holes."""
    if found := sorted(name for name in os.environ if DANGEROUS.fullmatch(name)):
        raise Refused(f"the environment variable {found[0]} lets strangers in; unset it and start again")
    cache = cache_folder(data_dir)
    shutil.rmtree(cache, ignore_errors=True)  # left over from a crash
    cache.mkdir(parents=True, mode=0o700)
    os.environ |= {
        "GRADIO_TEMP_DIR": str(cache),
        "GRADIO_EXAMPLES_CACHE": str(cache / "examples"),
        "GRADIO_ANALYTICS_ENABLED": "False",
        "GRADIO_RUN_HISTORY": "False",
        "HF_HUB_OFFLINE": "1",
    }
    if "gradio" not in sys.modules and not any(isinstance(finder, WithoutStubs) for finder in sys.meta_path):
        sys.meta_path.insert(0, WithoutStubs())


def cache_folder(data_dir: Path) -> Path:
    """Where Gradio keeps what passes through it."""
    return data_dir.resolve() / "gradio"


def mount(app: FastAPI, demo: gr.Blocks, settings: Settings, *, head: str = "", **looks: Any) -> None:
    """Put `demo` at / of `app`, behind all other routes; `head` goes to the top of the page's <head>.

    `prepare` comes first. `looks` are further arguments of `gr.mount_gradio_app`.
    """
    import gradio as gr

    refuse_downloads()
    demo.queue(max_size=QUEUE, api_open=False)
    demo._queue.sleep_when_free, demo._queue.progress_update_sleep_when_free = POLLS
    demo.state_session_capacity = SESSIONS
    demo.delete_cache = (CACHE_CHECKED_EVERY, CACHE_KEPT)
    shut: dict[str, Any] = {
        "auth_dependency": _caller,  # the gate has asked already; this is the second line
        "allowed_paths": [],
        "blocked_paths": [str(path) for path in private_paths(settings)],
        "show_error": False,
        "max_file_size": MAX_BYTES,
        "run_history": False,
        "enable_monitoring": False,
        "mcp_server": False,
        "ssr_mode": False,
        "pwa": False,
        "footer_links": [],
        "app_kwargs": {
            "openapi_url": None,
            "docs_url": None,
            "redoc_url": None,
            "exception_handlers": {k: v for k, v in app.exception_handlers.items() if k is Exception},
        },
    }
    gr.mount_gradio_app(app, demo, path="/", **{**looks, **shut})
    # a mounted app never gets this flag, and without it Gradio hands out any file that a request names
    demo.has_launched = True
    route: Any = app.routes[-1]
    route.app = BrowserOnly(route.app, Path(os.environ["GRADIO_TEMP_DIR"]), head)
    check(demo)


def check(demo: gr.Blocks) -> None:
    """Raises RuntimeError if one of the doors stands open."""
    shut = {
        "files that a request names are checked": demo.has_launched,
        "no folder is open": demo.allowed_paths == [],
        "our own folders are closed": bool(demo.blocked_paths),
        "no code editor": not demo.vibe_mode and not demo.dev_mode,
        "no history in browsers": not demo.run_history,
        "errors stay in the log": not demo.show_error,
        "no monitoring": not demo.enable_monitoring,
        "no analytics": not demo.analytics_enabled,
        "no server-side rendering": not demo.ssr_mode,
        "no tunnel": not demo.share,
        "queued functions only through the queue": not demo.api_open,
        "the queue has an end": demo._queue.max_size is not None,
        "uploads have a limit": demo.max_file_size is not None,
    }
    if opened := [what for what, holds in shut.items() if not holds]:
        raise RuntimeError(f"Gradio is not shut: {', '.join(opened)}")


def private_paths(settings: Settings) -> list[Path]:
    """What Gradio must not serve even if some handler names it; all of the data folder but Gradio's own cache."""
    code = [ROOT / name for name in ("backend", "ui", "models", "outputs", "extensions", "data", ".venv", ".git")]
    folders = [settings.models_dir, settings.outputs_dir, settings.extensions_dir, settings.data_dir]
    folders += settings.roots.elsewhere
    cache = cache_folder(settings.data_dir)
    closed: list[Path] = []
    for path in {path.resolve() for path in (*code, *folders)}:
        if cache.is_relative_to(path):  # its own name would close the cache as well
            known = {child for child in path.iterdir() if not cache.is_relative_to(child)} if path.is_dir() else set()
            closed += known | {
                path / name for name in ("inputs", "thumbs", "secrets", "settings.toml", "atelier.db", "models.db")
            }
        else:
            closed.append(path)
    return sorted(closed)


class BrowserOnly:
    """Gradio, as far as BROWSER_NEEDS; with a shorter way to the browser for what is large."""

    def __init__(self, gradio: ASGIApp, cache: Path, head: str) -> None:
        self.gradio = gradio
        self.packed = GZipMiddleware(WithHead(gradio, head), compresslevel=6)
        self.cache = os.path.normcase(cache)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        path = scope["path"].removeprefix(scope.get("root_path", ""))
        if not self.answers(scope, path):
            if scope["type"] == "websocket":
                await send({"type": "websocket.close", "code": 1008})
                return
            await JSONResponse({"detail": "there is nothing here"}, 404)(scope, receive, send)
        elif path in ("/", "/config"):
            # without the query: it would load other people's component values by `deep_link`
            await self.packed({**scope, "query_string": b""}, receive, send)
        elif path.startswith("/assets/"):
            await self.gradio(scope, receive, _kept_for_ever(send))  # their names hold a hash
        else:
            await self.gradio(scope, receive, send)

    def answers(self, scope: Scope, path: str) -> bool:
        if scope["type"] != "http":
            return False
        if not any(scope["method"] in methods and needed.fullmatch(path) for methods, needed in BROWSER_NEEDS):
            return False
        _, is_file, name = path.partition("/gradio_api/file=")
        return not is_file or os.path.normcase(os.path.abspath(name)).startswith(self.cache + os.sep)


class WithHead:
    """Gradio's HTML page with our lines in its <head>, and without its links to other hosts."""

    FOREIGN = re.compile(rb'\s*<meta\s[^>]*?(?:property="og:|name="twitter:)[^>]*>')
    BASE = re.compile(rb"<base [^>]*>")

    def __init__(self, app: ASGIApp, head: str) -> None:
        self.app = app
        self.head = head.encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        start: Message = {}
        body = b""

        async def rewriting(message: Message) -> None:
            nonlocal start, body
            if message["type"] == "http.response.start":
                start = message
                return
            if message["type"] != "http.response.body":
                return  # this page needs no trailers or pushes
            body += message.get("body", b"")
            if message.get("more_body"):
                return
            headers = MutableHeaders(scope=start)
            if headers.get("content-type", "").startswith("text/html") and body:
                body = self.rewrite(body)
                headers["Content-Length"] = str(len(body))
            await send(start)
            await send({"type": "http.response.body", "body": body})

        await self.app(scope, receive, rewriting)

    def rewrite(self, html: bytes) -> bytes:
        """Only what stands before the first script is touched: after it come values, among them people's words."""
        before, script, after = html.partition(b"<script")
        before = self.FOREIGN.sub(b"", before)
        base = self.BASE.search(before)
        at = base.end() if base else before.find(b"<head>") + len(b"<head>")
        return before[:at] + self.head + before[at:] + script + after


class Static(StaticFiles):
    """Our scripts and styles; browsers ask each time whether they have changed."""

    def file_response(self, full_path: Any, *args: Any, **kwargs: Any) -> Response:
        response = super().file_response(full_path, *args, **kwargs)
        response.headers["Cache-Control"] = "no-cache"
        if str(full_path).endswith(".js"):  # Windows may say text/plain, which browsers then refuse to run
            response.headers["Content-Type"] = "text/javascript; charset=utf-8"
        return response


class WithoutStubs(MetaPathFinder):
    """Loads `gradio.component_meta` without its rewriting of 81 stub files, half the time of `import gradio`.

    Where a later Gradio has moved or renamed that function nothing happens but a slower start.
    """

    MODULE = "gradio.component_meta"
    FUNCTION = "create_or_modify_pyi"

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname != self.MODULE:
            return None
        sys.meta_path.remove(self)
        spec = importlib.machinery.PathFinder.find_spec(fullname, path)
        if spec is not None and spec.loader is not None:
            spec.loader = _Emptying(spec.loader, self.FUNCTION)
        return spec


class _Emptying(Loader):
    def __init__(self, loader: Loader, function: str) -> None:
        self._loader = loader
        self._function = function

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self._loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        self._loader.exec_module(module)
        if hasattr(module, self._function):
            setattr(module, self._function, lambda *args, **kwargs: None)


def refuse_downloads() -> None:
    """Gradio would fetch any URL that a request names, for its caller to read; we take uploads only."""
    for name, function in DOWNLOADERS:
        module = importlib.import_module(name)
        if not hasattr(module, function):
            raise RuntimeError(f"{name}.{function} is gone; look where Gradio downloads now")
        setattr(module, function, _no_download)


async def _no_download(*args: Any, **kwargs: Any) -> NoReturn:
    raise Refused("this server fetches nothing from other hosts; upload the file instead")


def _caller(request: Request) -> str | None:
    name = request.scope.get(CALLER)
    return name if isinstance(name, str) else None


def _kept_for_ever(send: Send) -> Callable[[Message], Awaitable[None]]:
    async def sending(message: Message) -> None:
        if message["type"] == "http.response.start" and message["status"] == 200:
            MutableHeaders(scope=message)["Cache-Control"] = "public, max-age=31536000, immutable"
        await send(message)

    return sending
