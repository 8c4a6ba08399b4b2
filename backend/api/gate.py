"""The gate: every request passes it first, also those for the page that Gradio serves.

It refuses what another web site may have sent (foreign Host or Origin), lets nobody in without signing in where
there is an account, and puts the security headers on every answer. What it does not know it refuses.
"""

import ipaddress
import json
import re
import socket
from collections.abc import Iterable
from typing import NamedTuple
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import HTTPConnection
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from backend.api.auth import CALLER, Door, Throttled
from backend.settings import Settings

OPEN = frozenset(
    {"/signin", "/api/health", "/favicon.ico", "/icon.svg", "/icon-192.png", "/icon-512.png", "/manifest.json"}
)
"""What answers without signing in."""

REPORTED = "atelier.reported"
"""Set in the ASGI scope when an unexpected error has been logged and answered."""

HERE = "atelier.here"
"""Set in the ASGI scope: whether the request comes from this very machine, as far as it can be told; see `is_here`."""

CONTENT_SECURITY_POLICY = "; ".join(
    (
        "default-src 'self'",
        "script-src 'self' 'unsafe-eval'",  # Gradio compiles its templates in the browser
        "script-src-elem 'self' 'unsafe-inline'",
        "script-src-attr 'none'",
        "style-src 'self' 'unsafe-inline'",
        "img-src 'self' data: blob:",
        "media-src 'self' data: blob:",
        "font-src 'self' data:",
        "connect-src 'self' data: blob:",
        "worker-src 'self' blob:",
        "object-src 'none'",
        "base-uri 'self'",
        "form-action 'self'",
        "frame-ancestors 'none'",
    )
)
HEADERS = {
    "Content-Security-Policy": CONTENT_SECURITY_POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
}
SANDBOX = "default-src 'none'; style-src 'unsafe-inline'; sandbox"
"""The policy of a file that somebody made: it is looked at, it runs nothing."""

_HOST = re.compile(r"(\[[0-9a-f:.]+\]|[a-z0-9_.-]+)(?::([0-9]{1,5}))?")
_NOT_FROM_CLIENTS = re.compile(rb"x-forwarded-.*|forwarded|x-gradio-server|x-original-.*|x-rewrite-.*")
_OF_PROXIES = re.compile(rb"forwarded|x-forwarded-.*|x-real-ip|via")
_LOOPBACK = ("localhost", "127.0.0.1", "[::1]")


class Refusal(NamedTuple):
    status: int
    detail: str
    headers: tuple[tuple[str, str], ...] = ()


class Hosts:
    """The names under which browsers may reach this server; a rebound DNS name is not one of them."""

    def __init__(self, port: int, allowed: Iterable[str] = (), on_network: bool = False) -> None:
        self._port = port
        self._on_network = on_network
        self._allowed = {name.lower() for name in allowed}
        self._own = set(_LOOPBACK)
        if on_network:
            name = socket.gethostname().lower()
            self._own |= {name, f"{name}.local"}

    def allows(self, connection: HTTPConnection) -> bool:
        given = connection.headers.getlist("host")
        parsed = _HOST.fullmatch(given[0].lower()) if len(given) == 1 else None
        if parsed is None:
            return False
        name, port = parsed[1], int(parsed[2] or _usual_port(connection))
        if name in self._allowed or f"{name}:{port}" in self._allowed:
            return True
        return port == self._port and (name in self._own or self._is_own_address(name, connection))

    def _is_own_address(self, name: str, connection: HTTPConnection) -> bool:
        """Whether `name` is the very address of ours that this connection came to."""
        server = connection.scope.get("server")
        if not self._on_network or not server:
            return False
        try:
            return _ip(name.strip("[]")) == _ip(str(server[0]))
        except ValueError:
            return False


def hosts_of(settings: Settings) -> Hosts:
    return Hosts(settings.port, settings.allowed_hosts, on_network=not settings.is_local)


class Gate:
    def __init__(self, app: ASGIApp, hosts: Hosts, door: Door) -> None:
        self.app = app
        self.hosts = hosts
        self.door = door

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            return
        if scope["type"] not in ("http", "websocket"):
            raise ValueError(f"the gate knows no {scope['type']} connections")
        connection = HTTPConnection(scope)
        admitted = self.admit(connection)
        if isinstance(admitted, Refusal):
            await _refuse(admitted, scope, send)
            return
        headers = [(name, value) for name, value in scope["headers"] if not _NOT_FROM_CLIENTS.fullmatch(name)]
        scope = {**scope, "headers": headers, CALLER: admitted, HERE: is_here(connection)}
        try:
            await self.app(scope, receive, _with_headers(send, connection.scope["path"]))
        except Exception:
            if not scope.get(REPORTED):
                raise

    def admit(self, connection: HTTPConnection) -> str | Refusal | None:
        """The caller's name, None for nobody on an open path, or why not."""
        if not self.hosts.allows(connection):
            host = connection.headers.get("host", "")
            return Refusal(400, f"{host[:100]!r} is no name of this server; if it should be, add it to allowed_hosts")
        if not is_ours(connection):
            return Refusal(403, "this request came from another web site")
        path = _path(connection)
        try:
            name = self.door.caller(connection)
        except Throttled as error:
            return Refusal(429, str(error), (("Retry-After", str(error.seconds)),))
        if name is not None or path in OPEN:
            return name
        if _wants_page(connection):  # relative: a proxy may have put a prefix before the path
            return Refusal(303, "sign in first", (("Location", "../" * (path.count("/") - 1) + "signin"),))
        return Refusal(401, "sign in first", (("WWW-Authenticate", 'xBasic realm="Atelier"'),))  # no browser's pop-up


def is_here(connection: HTTPConnection) -> bool:
    """Whether it was called by a loopback name and no proxy says that it has handed the request on."""
    name = _HOST.fullmatch(connection.headers["host"].lower())
    relayed = any(_OF_PROXIES.fullmatch(header) for header, _ in connection.scope["headers"])
    return name is not None and name[1] in _LOOPBACK and not relayed


def is_ours(connection: HTTPConnection) -> bool:
    """Whether no other web site can have sent this: it changes nothing, or it comes from a page of this server.

    On plain HTTP in a local network browsers send no Sec-Fetch headers, so Origin is the main witness.
    """
    site = connection.headers.get("sec-fetch-site", "none")
    if connection.scope["type"] == "http" and connection.scope["method"] in ("GET", "HEAD"):
        is_navigation = (
            connection.headers.get("sec-fetch-mode") == "navigate"
            and connection.headers.get("sec-fetch-dest") == "document"
        )
        return site in ("same-origin", "none") or is_navigation
    origins = connection.headers.getlist("origin")
    return site in ("same-origin", "none") and all(_same_origin(o, connection.headers["host"]) for o in origins)


def _same_origin(origin: str, host: str) -> bool:
    try:
        parts = urlsplit(origin)
    except ValueError:
        return False
    return parts.scheme in ("http", "https") and parts.netloc.lower() == host.lower()


def _ip(text: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address:
    address = ipaddress.ip_address(text.partition("%")[0])
    return getattr(address, "ipv4_mapped", None) or address  # a socket for both families names IPv4 so


def _usual_port(connection: HTTPConnection) -> int:
    return 443 if connection.scope.get("scheme") in ("https", "wss") else 80


def _wants_page(connection: HTTPConnection) -> bool:
    return (
        connection.scope["type"] == "http"
        and connection.scope["method"] in ("GET", "HEAD")
        and "text/html" in connection.headers.get("accept", "")
    )


def _path(connection: HTTPConnection) -> str:
    return str(connection.scope["path"]).removeprefix(connection.scope.get("root_path", ""))


def _with_headers(send: Send, path: str) -> Send:
    async def sending(message: Message) -> None:
        if message["type"] in ("http.response.start", "websocket.http.response.start"):
            headers = MutableHeaders(scope=message)
            for name in [name for name in headers if name.startswith("access-control-")]:
                del headers[name]  # no other site may read anything
            if "/gradio_api/file=" in path:
                headers["Content-Security-Policy"] = SANDBOX
            for name, value in HEADERS.items():
                headers.setdefault(name, value)
        await send(message)

    return sending


async def _refuse(refusal: Refusal, scope: Scope, send: Send) -> None:
    if scope["type"] == "websocket":
        await send({"type": "websocket.close", "code": 1008, "reason": refusal.detail[:100]})
        return
    body = json.dumps({"detail": refusal.detail}).encode()
    headers = Headers({"Content-Type": "application/json", "Content-Length": str(len(body)), **dict(refusal.headers)})
    send = _with_headers(send, scope["path"])
    await send({"type": "http.response.start", "status": refusal.status, "headers": headers.raw})
    await send({"type": "http.response.body", "body": b"" if scope["method"] == "HEAD" else body})
