"""Who is calling: the one account of an instance, its cookie, and the page where one signs in."""

import base64
import binascii
import hashlib
import hmac
import ipaddress
import logging
import os
import secrets
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

from fastapi import APIRouter, Depends, Form
from fastapi.responses import HTMLResponse, RedirectResponse, Response
from itsdangerous import BadSignature, URLSafeTimedSerializer
from starlette.requests import HTTPConnection, Request

from backend.api.icon import STAR
from backend.errors import Refused
from backend.settings import Settings

log = logging.getLogger(__name__)

LOCAL = "local"
"""The owner of everything on an instance without an account."""
LIFETIME = 7 * 24 * 3600
"""Seconds for which a cookie is good."""
CALLER = "atelier.caller"
"""Where the gate leaves the caller's name in the ASGI scope."""


def caller(connection: HTTPConnection) -> str:
    """The name of who is calling; raises Refused where the gate has let nobody in."""
    name = connection.scope.get(CALLER)
    if not isinstance(name, str):
        raise Refused("sign in first")
    return name


Caller = Annotated[str, Depends(caller)]
FormText = Annotated[str, Form()]


class Account:
    """The `name:password` that the settings give, and the cookie of a browser that has shown it."""

    def __init__(self, auth: str, key: bytes, port: int) -> None:
        self.name, _, password = auth.partition(":")
        if not self.name or not password:
            raise Refused("the account is given as name:password, both not empty")
        self._digest = _digest(self.name, password)
        self.cookie = f"atelier-{port}"  # cookies are shared by all ports of a host
        self._signer = URLSafeTimedSerializer(key + self._digest, salt="sign-in")  # a new password ends old cookies

    def fits(self, name: str, password: str) -> bool:
        return hmac.compare_digest(_digest(name, password), self._digest)

    def ticket(self) -> str:
        """What the cookie holds."""
        return str(self._signer.dumps(self.name))

    def holder(self, ticket: str) -> str | None:
        """The name on a ticket that is ours and not too old."""
        try:
            return str(self._signer.loads(ticket, max_age=LIFETIME))
        except BadSignature:
            return None


class Throttle:
    """Failed attempts by address: five are free, then each doubles the wait; forgotten after 15 quiet minutes."""

    FREE = 5
    FIRST_WAIT = 15.0
    WINDOW = 15 * 60.0
    MOST = 10_000

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._failures: dict[str, tuple[int, float]] = {}

    def wait(self, address: str) -> float:
        """Seconds until `address` may try again."""
        count, last = self._recent(_network(address))
        if count < self.FREE:
            return 0.0
        pause = min(self.FIRST_WAIT * 2.0 ** min(count - self.FREE, 10), self.WINDOW)
        return max(0.0, last + pause - self._clock())

    def failed(self, address: str) -> None:
        key = _network(address)
        count, _ = self._recent(key)
        self._failures.pop(key, None)
        self._failures[key] = (count + 1, self._clock())  # the newest stands last
        if len(self._failures) > self.MOST:
            del self._failures[next(iter(self._failures))]
        if count + 1 >= self.FREE:
            log.warning("%d failed attempts to sign in from %s", count + 1, key)

    def succeeded(self, address: str) -> None:
        self._failures.pop(_network(address), None)

    def _recent(self, key: str) -> tuple[int, float]:
        count, last = self._failures.get(key, (0, 0.0))
        return (count, last) if self._clock() - last < self.WINDOW else (0, 0.0)


class Throttled(Exception):
    """Too many wrong passwords from this address."""

    def __init__(self, wait: float) -> None:
        self.seconds = int(wait) + 1
        super().__init__(f"too many wrong passwords from your address; try again in {self.seconds} seconds")


class Door:
    """Tells who is calling; without an account everybody is `local`."""

    def __init__(self, account: Account | None, throttle: Throttle | None = None) -> None:
        self.account = account
        self.throttle = throttle or Throttle()

    def caller(self, connection: HTTPConnection) -> str | None:
        """By cookie or HTTP Basic; None for nobody. Raises Throttled."""
        if self.account is None:
            return LOCAL
        ticket = connection.cookies.get(self.account.cookie)
        if ticket and (name := self.account.holder(ticket)):
            return name
        given = _basic(connection.headers.get("authorization", ""))
        return self.try_password(address(connection), *given) if given else None

    def try_password(self, address: str, name: str, password: str) -> str | None:
        """The account's name if both fit; a failure is remembered. Raises Throttled."""
        assert self.account is not None
        if wait := self.throttle.wait(address):
            raise Throttled(wait)
        if self.account.fits(name, password):
            self.throttle.succeeded(address)
            return self.account.name
        self.throttle.failed(address)
        return None


def open_door(settings: Settings) -> Door:
    """The door that the settings ask for. Raises Refused for a malformed account."""
    if settings.auth is None:
        return Door(None)
    key = own_key(settings.data_dir / "secrets" / "sign-in.key")
    return Door(Account(settings.auth.get_secret_value(), key, settings.port))


def own_key(path: Path) -> bytes:
    """The random key in `path`, made at the first start; only this user can read it."""
    if path.exists() and len(key := path.read_bytes()) == 32:
        return key
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    key = secrets.token_bytes(32)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    with open(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
        file.write(key)
    os.replace(temporary, path)
    return key


def address(connection: HTTPConnection) -> str:
    return connection.client.host if connection.client else "?"


def router(door: Door) -> APIRouter:
    """The page where one signs in, and signing out."""
    routes = APIRouter()

    @routes.get("/signin")
    def page(request: Request) -> Response:
        if door.account is None or _has_ticket(door.account, request):
            return _home()
        return _page("")

    @routes.post("/signin", max_body_size=16 * 1024)
    def sign_in(request: Request, name: FormText = "", password: FormText = "") -> Response:
        if door.account is None:
            return _home()
        try:
            signed_in = door.try_password(address(request), name, password)
        except Throttled as error:
            return _page(str(error).capitalize() + ".", 429, {"Retry-After": str(error.seconds)})
        if signed_in is None:
            return _page("That name and password do not fit.", 401)
        response = _home()
        response.set_cookie(
            door.account.cookie,
            door.account.ticket(),
            max_age=LIFETIME,
            httponly=True,
            samesite="lax",
            secure=request.url.scheme == "https",
        )
        return response

    @routes.post("/signout")
    def sign_out(name: Caller) -> Response:
        response = RedirectResponse("signin", 303)
        if door.account is not None:
            response.delete_cookie(door.account.cookie, httponly=True, samesite="lax")
        return response

    return routes


def _has_ticket(account: Account, request: Request) -> bool:
    return account.holder(request.cookies.get(account.cookie, "")) is not None


def _digest(name: str, password: str) -> bytes:
    return hashlib.sha256(f"{len(name)}:{name}:{password}".encode("utf-8", "surrogatepass")).digest()


def _basic(header: str) -> tuple[str, str] | None:
    scheme, _, encoded = header.partition(" ")
    if scheme.lower() != "basic":
        return None
    try:
        name, _, password = base64.b64decode(encoded, validate=True).decode().partition(":")
    except (binascii.Error, UnicodeDecodeError):
        return "", ""  # counts as a wrong password
    return name, password


def _network(address: str) -> str:
    """The address, or the /64 that one IPv6 host can choose its addresses from."""
    try:
        parsed = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return address
    return str(ipaddress.ip_network((parsed, 64), strict=False)) if parsed.version == 6 else address


def _home() -> Response:
    return RedirectResponse("./", 303)  # relative: a proxy may have put a prefix before it


def _page(message: str, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    """`message` is one of our own sentences, never text from outside."""
    return HTMLResponse(_PAGE.replace("{message}", message), status, {**_PAGE_HEADERS, **(headers or {})})


_PAGE_HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; style-src 'unsafe-inline'; img-src 'self'; form-action 'self'; "
        "base-uri 'none'; frame-ancestors 'none'"
    ),
    "Referrer-Policy": "same-origin",  # with no-referrer a browser sends the form with `Origin: null`
    "Cache-Control": "no-store",
}
_PAGE = f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="dark light">
<title>Sign in · Atelier</title>
<link rel="icon" href="favicon.ico">
<style>
  :root {{ --back: #121216; --line: #2e2e38; --field: #24242c; --text: #ececf1; --dim: #9a9aa6; --bad: #f0708a; }}
  @media (prefers-color-scheme: light) {{
    :root {{ --back: #f6f6f8; --line: #d9d9e0; --field: #ffffff; --text: #1c1c22; --dim: #62626d; --bad: #b3203f; }}
  }}
  * {{ box-sizing: border-box; }}
  body {{ margin: 0; min-height: 100dvh; display: grid; place-items: center; background: var(--back);
         color: var(--text); font: 15px/1.45 system-ui, sans-serif; }}
  form {{ width: min(320px, calc(100vw - 48px)); display: grid; gap: 14px; }}
  h1 {{ display: flex; gap: 10px; align-items: center; margin: 0 0 6px; font-size: 20px; font-weight: 600; }}
  svg {{ width: 26px; height: 26px; }}
  label {{ display: grid; gap: 5px; color: var(--dim); font-size: 13px; }}
  input {{ padding: 10px 12px; font: inherit; font-size: 16px; color: var(--text); background: var(--field);
          border: 1px solid var(--line); border-radius: 8px; }}
  input:focus, button:focus-visible {{ outline: 2px solid #5d4de0; outline-offset: 1px; }}
  button {{ padding: 11px; margin-top: 4px; font: inherit; font-weight: 600; color: #fff; background: #5d4de0;
           border: 0; border-radius: 8px; cursor: pointer; }}
  button:hover {{ background: #6c5ce8; }}
  p {{ margin: 0; min-height: 1.45em; color: var(--bad); font-size: 14px; }}
</style>
</head>
<body>
<form method="post" action="signin">
  <h1>{STAR} Atelier</h1>
  <label>Name <input name="name" autocomplete="username" autocapitalize="none" required autofocus></label>
  <label>Password <input name="password" type="password" autocomplete="current-password" required></label>
  <button>Sign in</button>
  <p role="alert">{{message}}</p>
</form>
</body>
</html>
"""
