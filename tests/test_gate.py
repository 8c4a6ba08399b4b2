"""What the gate lets through: names of the server, other web sites, signing in, headers."""

import itertools
import os
import stat
import time
from pathlib import Path

import pytest
from pydantic import SecretStr
from starlette.responses import PlainTextResponse
from starlette.testclient import TestClient
from starlette.types import Receive, Scope, Send
from starlette.websockets import WebSocket, WebSocketDisconnect

from backend.api import auth
from backend.api.auth import CALLER, Account, Door, Throttle, open_door, own_key
from backend.api.gate import HEADERS, OPEN, Gate, Hosts, hosts_of
from backend.errors import Refused
from backend.settings import Settings
from tests.web import HOME, PASSWORD, PORT, ask, basic, scope_of


async def behind(scope: Scope, receive: Receive, send: Send) -> None:
    """An application that says who is there and lets every web site read it."""
    if scope["type"] == "websocket":
        socket = WebSocket(scope, receive, send)
        await socket.accept()
        await socket.send_text(str(scope[CALLER]))
        await socket.close()
        return
    echo = {"X-Root": dict(scope["headers"]).get(b"x-forwarded-host", b"").decode()}
    foreign = {"Access-Control-Allow-Origin": "*", "Access-Control-Allow-Credentials": "true"}
    await PlainTextResponse(str(scope[CALLER]), headers={**echo, **foreign})(scope, receive, send)


def account() -> Account:
    return Account(f"ada:{PASSWORD}", b"k" * 32, PORT)


def visitor(door: Door | None = None, hosts: Hosts | None = None, base_url: str = HOME) -> TestClient:
    gate = Gate(behind, hosts or Hosts(PORT), door or Door(None))
    return TestClient(gate, base_url=base_url, follow_redirects=False)


# names


@pytest.mark.parametrize(
    "host",
    [f"127.0.0.1:{PORT}", f"localhost:{PORT}", f"LOCALHOST:{PORT}", f"[::1]:{PORT}"],
)
def test_loopback_names_are_ours(host: str) -> None:
    assert visitor().get("/", headers={"Host": host}).status_code == 200


@pytest.mark.parametrize(
    "host",
    [
        "evil.example",
        f"evil.example:{PORT}",
        f"127.0.0.1.evil.example:{PORT}",
        f"localhost.evil.example:{PORT}",
        "localhost",
        "localhost:80",
        f"localhost:{PORT}0",
        f"localhost:{PORT}@evil.example",
        f"evil.example#localhost:{PORT}",
        f"127.0.0.2:{PORT}",
        f"0.0.0.0:{PORT}",
        f"192.168.1.7:{PORT}",
        f"[::ffff:127.0.0.1]:{PORT}",
        f"2130706433:{PORT}",
        f"localhost.:{PORT}",
        f" localhost:{PORT} x",
        "",
    ],
)
def test_other_names_are_not(host: str) -> None:
    answer = visitor().get("/", headers={"Host": host})
    assert answer.status_code == 400
    assert "is no name of this server" in answer.json()["detail"]


def test_two_host_headers_are_none() -> None:
    here = Gate(behind, Hosts(PORT), Door(None))
    assert ask(here, scope_of("/", headers=[("host", f"localhost:{PORT}"), ("host", "evil.example")])).status == 400


def test_a_rebound_name_cannot_open_a_websocket() -> None:
    with (
        pytest.raises(WebSocketDisconnect),
        visitor().websocket_connect("/ws", headers={"Host": f"evil.example:{PORT}"}),
    ):
        pass


def test_names_that_the_settings_allow() -> None:
    here = visitor(hosts=Hosts(PORT, ("studio.example", "tunnel.example:9000")))
    assert here.get("/", headers={"Host": "studio.example"}).status_code == 200
    assert here.get("/", headers={"Host": "studio.example:8443"}).status_code == 200
    assert here.get("/", headers={"Host": "tunnel.example:9000"}).status_code == 200
    assert here.get("/", headers={"Host": "tunnel.example"}).status_code == 400


def test_on_a_network_the_address_that_was_called_is_ours() -> None:
    here = visitor(hosts=Hosts(PORT, on_network=True), base_url=f"http://192.168.1.7:{PORT}")
    assert here.get("/").status_code == 200
    assert here.get("/", headers={"Host": f"192.168.1.8:{PORT}"}).status_code == 400
    assert here.get("/", headers={"Host": f"evil.example:{PORT}"}).status_code == 400


def test_a_socket_for_both_families_is_called_by_its_ipv4_address() -> None:
    scope = scope_of("/", headers=[("host", f"192.168.1.7:{PORT}")]) | {"server": ("::ffff:192.168.1.7", PORT)}
    assert ask(Gate(behind, Hosts(PORT, on_network=True), Door(None)), scope).status == 200


def test_settings_for_a_network() -> None:
    assert hosts_of(Settings(host="0.0.0.0"))._on_network
    assert not hosts_of(Settings(host="127.0.0.1"))._on_network


# other web sites

FOREIGN = (
    "http://evil.example",
    "null",
    "http://localhost:8000",
    f"https://evil.example:{PORT}",
    "file://",
    "http://[",
)
CONTENT = ("application/json", "text/plain", "multipart/form-data", "application/x-www-form-urlencoded", None)


@pytest.mark.parametrize("method", ["POST", "PUT", "PATCH", "DELETE", "OPTIONS", "PROPFIND"])
def test_another_site_changes_nothing(method: str) -> None:
    """Forged requests: method x origin x content type."""
    here = visitor()
    for origin, kind in itertools.product(FOREIGN, CONTENT):
        headers = {"Origin": origin} | ({"Content-Type": kind} if kind else {})
        assert here.request(method, "/api/jobs", headers=headers, content=b"{}").status_code == 403


@pytest.mark.parametrize("site", ["cross-site", "same-site"])
@pytest.mark.parametrize("origin", [None, HOME])
def test_what_the_browser_says_of_the_sender_counts(site: str, origin: str | None) -> None:
    headers = {"Sec-Fetch-Site": site} | ({"Origin": origin} if origin else {})
    assert visitor().post("/api/jobs", headers=headers).status_code == 403


def test_two_origins_are_foreign() -> None:
    origins = [("origin", HOME), ("origin", "http://evil.example")]
    forged = scope_of("/", "POST", [("host", f"127.0.0.1:{PORT}"), *origins])
    assert ask(Gate(behind, Hosts(PORT), Door(None)), forged).status == 403


@pytest.mark.parametrize(
    "headers",
    [{}, {"Origin": HOME}, {"Origin": HOME, "Sec-Fetch-Site": "same-origin"}, {"Sec-Fetch-Site": "none"}],
)
def test_our_own_page_and_programs_may(headers: dict[str, str]) -> None:
    assert visitor().post("/api/jobs", headers=headers).status_code == 200


@pytest.mark.parametrize("origin", FOREIGN)
def test_another_site_opens_no_websocket(origin: str) -> None:
    with pytest.raises(WebSocketDisconnect), visitor().websocket_connect("/ws", headers={"Origin": origin}):
        pass


@pytest.mark.parametrize("headers", [{}, {"Origin": HOME}])
def test_our_page_opens_a_websocket(headers: dict[str, str]) -> None:
    with visitor().websocket_connect(f"ws://127.0.0.1:{PORT}/ws", headers=headers) as socket:
        assert socket.receive_text() == "local"


def test_another_site_may_link_to_us_but_not_embed_us() -> None:
    here = visitor()
    link = {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate", "Sec-Fetch-Dest": "document"}
    assert here.get("/", headers=link).status_code == 200
    for embedded in (
        link | {"Sec-Fetch-Dest": "iframe"},
        link | {"Sec-Fetch-Mode": "no-cors", "Sec-Fetch-Dest": "image"},
        link | {"Sec-Fetch-Mode": "no-cors", "Sec-Fetch-Dest": "script"},
    ):
        assert here.get("/img/1", headers=embedded).status_code == 403


@pytest.mark.parametrize("origin", [*FOREIGN, HOME])
@pytest.mark.parametrize("method", ["GET", "POST", "OPTIONS"])
def test_no_site_is_ever_allowed_to_read(method: str, origin: str) -> None:
    preflight = {"Access-Control-Request-Method": "POST"} if method == "OPTIONS" else {}
    answer = visitor().request(method, "/", headers={"Origin": origin, **preflight})
    assert [name for name in answer.headers if name.startswith("access-control-")] == []


# headers


def test_every_answer_has_the_security_headers() -> None:
    for answer in (
        visitor().get("/"),
        visitor().get("/", headers={"Host": "evil"}),
        visitor(Door(account())).get("/"),
    ):
        assert {name: answer.headers[name] for name in HEADERS} == HEADERS


def test_files_in_gradios_cache_run_nothing() -> None:
    policy = visitor().get("/gradio_api/file=/x/y.svg").headers["Content-Security-Policy"]
    assert policy.endswith("sandbox")
    assert policy.startswith("default-src 'none'")


def test_nobody_tells_us_under_which_address_we_run() -> None:
    assert visitor().get("/", headers={"X-Forwarded-Host": "evil.example"}).headers["X-Root"] == ""


# signing in


def test_without_an_account_everybody_is_local() -> None:
    assert visitor().get("/").text == "local"


def test_nobody_gets_in_without_signing_in() -> None:
    here = visitor(Door(account()))
    assert here.get("/api/jobs").status_code == 401
    assert here.post("/api/jobs").status_code == 401
    assert here.get("/api/health/").status_code == 401
    with pytest.raises(WebSocketDisconnect), here.websocket_connect("/ws"):
        pass


@pytest.mark.parametrize("path", sorted(OPEN))
def test_what_is_open_is_open(path: str) -> None:
    assert visitor(Door(account())).get(path).text == "None"


@pytest.mark.parametrize(("path", "location"), [("/", "signin"), ("/img/3", "../signin"), ("/a/b/c", "../../signin")])
def test_a_browser_is_sent_to_sign_in(path: str, location: str) -> None:
    answer = visitor(Door(account())).get(path, headers={"Accept": "text/html"})
    assert (answer.status_code, answer.headers["Location"]) == (303, location)


def test_the_answer_to_a_stranger_opens_no_login_window() -> None:
    assert not visitor(Door(account())).get("/api/jobs").headers["WWW-Authenticate"].lower().startswith("basic")


def test_basic_credentials_of_a_program() -> None:
    here = visitor(Door(account()))
    assert here.get("/api/jobs", headers=basic("ada", PASSWORD)).text == "ada"
    for wrong in (basic("ada", "x"), basic("eve", PASSWORD), basic("", ""), {"Authorization": "Basic ???"}):
        assert here.get("/api/jobs", headers=wrong).status_code == 401


def test_a_ticket_opens_and_a_forged_one_does_not() -> None:
    owner = account()
    here = visitor(Door(owner))
    for ticket, status in (
        (owner.ticket(), 200),
        (owner.ticket().replace("ImFkYSI", "ImV2ZSI"), 401),  # "eve" under ada's signature
        (Account("ada:other password", b"k" * 32, PORT).ticket(), 401),
        (Account(f"ada:{PASSWORD}", b"x" * 32, PORT).ticket(), 401),
        ("ada", 401),
        ("", 401),
    ):
        assert here.get("/api/jobs", headers={"Cookie": f"atelier-{PORT}={ticket}"}).status_code == status


def test_a_ticket_grows_old(monkeypatch: pytest.MonkeyPatch) -> None:
    owner = account()
    ticket = owner.ticket()
    assert owner.holder(ticket) == "ada"
    now = time.time()
    monkeypatch.setattr("time.time", lambda: now + auth.LIFETIME + 5)
    assert owner.holder(ticket) is None


def test_the_cookie_is_another_one_at_another_port() -> None:
    assert account().cookie == f"atelier-{PORT}"


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def test_guessing_becomes_slow() -> None:
    clock = Clock()
    throttle = Throttle(clock)
    for _ in range(Throttle.FREE):
        assert throttle.wait("10.0.0.1") == 0
        throttle.failed("10.0.0.1")
    waits = []
    for _ in range(7):
        waits.append(throttle.wait("10.0.0.1"))
        clock.now += waits[-1]
        assert throttle.wait("10.0.0.1") == 0
        throttle.failed("10.0.0.1")
    assert waits == [15, 30, 60, 120, 240, 480, 900]
    clock.now += Throttle.WINDOW
    assert throttle.wait("10.0.0.1") == 0  # forgotten
    assert throttle.wait("10.0.0.2") == 0


def test_the_throttle_keeps_little() -> None:
    throttle = Throttle(Clock())
    for number in range(Throttle.MOST + 500):
        throttle.failed(f"10.{number >> 16}.{number >> 8 & 255}.{number & 255}")
    assert len(throttle._failures) == Throttle.MOST


def test_one_host_has_many_ipv6_addresses() -> None:
    throttle = Throttle(Clock())
    for number in range(Throttle.FREE):
        throttle.failed(f"2001:db8::{number + 1:x}")
    assert throttle.wait("2001:db8::ffff") > 0
    assert throttle.wait("2001:db8:1::1") == 0


def test_a_throttled_address_is_not_even_heard() -> None:
    here = visitor(Door(account()))
    for _ in range(Throttle.FREE):
        assert here.get("/api/jobs", headers=basic("ada", "guess")).status_code == 401
    answer = here.get("/api/jobs", headers=basic("ada", PASSWORD))
    assert answer.status_code == 429
    assert int(answer.headers["Retry-After"]) > 0
    ticket = account().ticket()
    assert here.get("/api/jobs", headers={"Cookie": f"atelier-{PORT}={ticket}"}).status_code == 200


@pytest.mark.parametrize("given", ["ada", "ada:", ":secret", ":"])
def test_an_account_has_a_name_and_a_password(given: str, tmp_path: Path) -> None:
    with pytest.raises(Refused, match="name:password"):
        open_door(Settings(auth=SecretStr(given), data_dir=tmp_path))


def test_the_key_is_kept_and_private(tmp_path: Path) -> None:
    path = tmp_path / "secrets" / "sign-in.key"
    key = own_key(path)
    assert len(key) == 32
    assert own_key(path) == key
    if os.name != "nt":
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    path.write_bytes(b"damaged")
    assert len(own_key(path)) == 32


def test_passwords_are_not_shown() -> None:
    settings = Settings(auth=SecretStr(f"ada:{PASSWORD}"))
    assert PASSWORD not in repr(settings) + str(settings) + str(vars(account()))
