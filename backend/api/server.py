"""The web server: puts routes, page and gate together, and runs them until it is told to stop."""

from __future__ import annotations

import asyncio
import errno
import ipaddress
import logging
import logging.config
import os
import secrets
import socket
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from functools import partial
from typing import Any

import anyio.to_thread
import uvicorn
from fastapi import APIRouter, Depends, FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp

from backend import __version__
from backend.api import auth, datasets, extensions, icon, jobs, models, pictures, trainings
from backend.api.gate import REPORTED, Gate, hosts_of
from backend.catalog.watch import Watch
from backend.errors import AtelierError, Conflict, InvalidRequest, Problem, Refused, TrainingFailed
from backend.images import DAY, MAX_BYTES
from backend.logs import Lines
from backend.services import Services
from backend.settings import Settings

log = logging.getLogger(__name__)

MAX_BODY = MAX_BYTES + 2**20
"""One image and the form around it; holds for every route, Gradio's too."""
Page = Callable[[FastAPI, Services], None]
"""Mounts the page at /."""


def serve(services: Services, page: Page | None = None) -> None:
    """Serve until told to stop. Raises Refused or Conflict before anything has been started."""
    configure_logging(services.settings.log_level)
    listener = listen(services.settings)
    with listener:
        port: int = listener.getsockname()[1]
        services = replace(services, settings=services.settings.model_copy(update={"port": port}))
        app = create_app(services, page)
        config = uvicorn.Config(
            app,
            host=services.settings.host,
            port=port,
            log_config=None,
            access_log=services.settings.log_level == "debug",
            server_header=False,
            ws_max_size=64 * 1024,  # pages only listen
            limit_concurrency=1000,
            timeout_graceful_shutdown=3,
        )
        with suppress(KeyboardInterrupt):  # said once more when all is closed
            _Server(config, app.state.closing).run(sockets=[listener])
        log.info("stopped")


def create_app(services: Services, page: Page | None = None, works: models.Works | None = None) -> FastAPI:
    """The whole application behind its gate; the runner lives as long as it does."""

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        await anyio.to_thread.run_sync(services.start)
        watch = Watch(services.catalog, services.hub.publish_models, hashing=services.settings.hash_models)
        watch.start()
        tidying = asyncio.create_task(_tidy(services))
        try:
            yield
        finally:
            tidying.cancel()
            plans.close()
            going_on.close()
            watch.stop()
            await anyio.to_thread.run_sync(services.stop)

    plans = extensions.Plans()
    going_on = works or models.Works(services)
    door = auth.open_door(services.settings)
    app = _Gated(
        lambda inner: Gate(inner, hosts_of(services.settings), door),
        title="Atelier",
        version=__version__,
        openapi_url=None,
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
        max_body_size=MAX_BODY,
        lifespan=lifespan,
        exception_handlers=ERROR_HANDLERS,
    )
    app.include_router(icon.router)
    app.include_router(auth.router(door))
    app.state.closing = asyncio.Event()
    app.include_router(jobs.router(services, app.state.closing))
    app.include_router(pictures.router(services))
    app.include_router(datasets.router(services))
    app.include_router(trainings.router(services))
    app.include_router(models.router(services, going_on))
    app.include_router(extensions.router(services, plans))
    for router in extension_routers(services):
        app.include_router(router)
    (page or _own_page())(app, services)
    return app


async def _tidy(services: Services) -> None:
    """Once a day, input images that led to nothing go."""
    while days := services.settings.keep_unused_days:
        try:
            since = time.time() - days * DAY
            gone = await anyio.to_thread.run_sync(services.jobs.forget_inputs, services.images, since)
            if gone:
                log.info("%d input images that nobody has used for %d days were deleted", gone, days)
        except (AtelierError, OSError) as error:
            log.warning("unused input images could not be deleted: %s", error)
        await asyncio.sleep(DAY)


class _Gated(FastAPI):
    """FastAPI with the gate outside everything, also outside its own middleware."""

    def __init__(self, gate: Callable[[ASGIApp], ASGIApp], **kwargs: Any) -> None:
        self._gate = gate
        super().__init__(**kwargs)

    def build_middleware_stack(self) -> ASGIApp:
        return self._gate(super().build_middleware_stack())


def extension_routers(services: Services) -> list[APIRouter]:
    """What extensions add under /extensions/<id>/; one that fails to is left out."""
    routers = []
    for extension in services.registry.extensions:
        extension.images = services.images
        extension.allow_downloads = services.settings.allow_downloads
        extension.ask = partial(services.runner.errands.ask, extension.id)
        router = APIRouter(prefix=f"/extensions/{extension.id}", dependencies=[Depends(auth.caller)])
        try:
            extension.routes(router)
        except Exception:  # whatever a stranger's module raises
            log.exception("extension %s has no routes", extension.id)
        else:
            routers.append(router)
    return routers


def _own_page() -> Page:
    from ui import mount  # the one place where the server knows the page; Gradio comes in only when it is called

    return mount.page


# errors


def _said(request: Request, error: Exception) -> Response:
    """An error that carries a message for people."""
    assert isinstance(error, AtelierError)
    if error.status >= 500:
        log.error("%s %s: %s", request.method, request.url.path, error)
    problems = error.problems if isinstance(error, InvalidRequest) else ()
    changes = error.changes if isinstance(error, TrainingFailed) else {}
    return _answer(error.status, str(error), problems, changes=changes)


def _malformed(request: Request, error: Exception) -> Response:
    """A request that does not fit the route's declaration."""
    assert isinstance(error, RequestValidationError)
    problems = []
    for found in error.errors():
        field = ".".join(str(part) for part in found["loc"][1:])  # without "body" or "query"
        message = "the body is not JSON" if found["type"] == "json_invalid" else found["msg"].removeprefix("Input ")
        problems.append(Problem("" if found["type"] == "json_invalid" else field, message))
    return _answer(422, str(InvalidRequest(*problems)), tuple(problems))


def _http(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    details = {404: "there is nothing here", 405: "this address does not take that method", 413: _too_large()}
    detail = details.get(error.status_code, str(error.detail))
    return _answer(error.status_code, detail, headers=error.headers)


def _unexpected(request: Request, error: Exception) -> Response:
    """A mistake of ours: the log gets everything, the caller a number to ask about."""
    number = secrets.token_hex(4)
    log.error("error %s in %s %s", number, request.method, request.url.path, exc_info=error)
    request.scope[REPORTED] = True
    return _answer(500, f"something went wrong here; the server's log has it as error {number}")


def _answer(
    status: int, detail: str, problems: tuple[Problem, ...] = (), headers: Any = None, changes: Any = None
) -> Response:
    content: dict[str, Any] = {"detail": _printable(detail)}
    if problems:
        content["problems"] = [{"field": _printable(p.field), "message": _printable(p.message)} for p in problems]
    if changes:
        content["changes"] = changes
    return JSONResponse(content, status, headers)


def _printable(text: str) -> str:
    """Half of a surrogate pair, which JSON can bring in, cannot go out."""
    return text.encode("utf-8", "backslashreplace").decode()


def _too_large() -> str:
    return f"that is too large; at most {MAX_BYTES // 2**20} MB are taken"


ERROR_HANDLERS: dict[Any, Callable[[Request, Exception], Response]] = {
    AtelierError: _said,
    RequestValidationError: _malformed,
    HTTPException: _http,
    Exception: _unexpected,
}


# the socket


def listen(settings: Settings) -> socket.socket:
    """A listening socket; browsers that come early wait in its queue.

    Raises Conflict if the port is taken, Refused if other machines could come in without signing in.
    """
    family, address = _resolve(settings.host, settings.port)
    if not ipaddress.ip_address(str(address[0]).partition("%")[0]).is_loopback and settings.auth is None:
        raise Refused(
            f"listening on {settings.host} lets other machines in, and nobody would have to sign in: "
            "give a name and a password with --auth name:password"
        )
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        if os.name == "nt":  # there SO_REUSEADDR would let a second program take the same port
            listener.setsockopt(socket.SOL_SOCKET, getattr(socket, "SO_EXCLUSIVEADDRUSE"), 1)  # noqa: B009
        else:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(512)
    except OSError as error:
        listener.close()
        raise Conflict(_why_not(error, settings)) from error
    return listener


def _resolve(host: str, port: int) -> tuple[socket.AddressFamily, Any]:
    try:
        found = socket.getaddrinfo(host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (OSError, UnicodeError):
        raise Conflict(f"{host!r} is no address of this machine") from None
    family, _, _, _, address = min(found, key=lambda info: info[0] != socket.AF_INET)  # IPv4 first
    return family, address


def _why_not(error: OSError, settings: Settings) -> str:
    host, port = settings.host, settings.port
    if error.errno == errno.EADDRINUSE or (os.name == "nt" and error.errno == errno.EACCES):
        return f"port {port} is taken, perhaps by another Atelier; stop that program or choose another --port"
    if error.errno == errno.EACCES:
        return f"port {port} is for administrators only; choose a --port above 1023"
    if error.errno == errno.EADDRNOTAVAIL:
        return f"{host!r} is no address of this machine"
    return f"cannot listen on {host} port {port}: {error.strerror}"


class _Server(uvicorn.Server):
    def __init__(self, config: uvicorn.Config, closing: asyncio.Event) -> None:
        super().__init__(config)
        self._closing = closing

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        log.info("Atelier is ready at %s", address_of(self.config.host, self.config.port))

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self._closing.set()
        await super().shutdown(sockets)


def address_of(host: str, port: int) -> str:
    """What to type into a browser on this machine."""
    everywhere = ("", "0.0.0.0", "::")  # noqa: S104 (read, not bound)
    name = "127.0.0.1" if host in everywhere else f"[{host}]" if ":" in host else host
    return f"http://{name}:{port}/"


def configure_logging(level: str) -> None:
    logging.config.dictConfig(
        {
            "version": 1,
            "disable_existing_loggers": False,
            "formatters": {"line": {"()": Lines, "fmt": "%(asctime)s %(levelname)-7s %(name)s: %(message)s"}},
            "handlers": {"console": {"class": "logging.StreamHandler", "formatter": "line"}},
            "root": {"level": "WARNING", "handlers": ["console"]},
            "loggers": {
                "backend": {"level": level.upper()},
                "ui": {"level": level.upper()},
                "extensions": {"level": level.upper()},
                "uvicorn": {"level": "INFO" if level == "debug" else "WARNING"},
            },
        }
    )
