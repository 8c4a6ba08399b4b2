"""What Gradio would let in if nobody looked, measured on Gradio 6.31; run again on every new version of it."""

import asyncio
import gzip
import importlib
import json
import os
import re
import stat
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fastapi import FastAPI
from starlette.testclient import TestClient
from starlette.websockets import WebSocketDisconnect

from backend.api import server
from backend.api.auth import open_door
from backend.errors import Refused
from backend.services import Services
from tests.web import HOME, NAME, PASSWORD, PORT, ask, atelier, basic, no_page, png, scope_of, visit, walk
from ui import mount

CANARY = "canary-7d1f"
EVIL = "${alert(1)}<img src=x onerror=alert(1)></script><script>alert(1)</script>"


def tiny_page(app: FastAPI, services: Services) -> None:
    """A page with the kinds of components through which files were stolen."""
    mount.prepare(services.settings.data_dir)
    import gradio as gr

    def same(value: Any) -> Any:
        return value

    def shown(value: Any) -> Any:
        return {"given": value if isinstance(value, dict | list) else str(value)}

    def broken(value: Any) -> Any:
        raise RuntimeError(f"{CANARY} in /etc/secret")

    def who(request: gr.Request) -> Any:
        return [request.username]

    with gr.Blocks(title="Tiny", analytics_enabled=False) as demo:
        out = gr.JSON()
        for kind in (gr.Textbox, gr.Number, gr.JSON, gr.Image, gr.File, gr.HTML):
            given = kind()
            name = kind.__name__.lower()
            gr.Button().click(shown, given, out, api_name=name, queue=False, api_visibility="private")
            gr.Button().click(same, given, given, api_name=f"{name}_back", queue=False, api_visibility="private")
        gr.Button().click(broken, gr.Textbox(), out, api_name="broken", queue=False)
        gr.Button().click(who, None, out, api_name="who", queue=False, api_visibility="private")
        gr.Button().click(who, None, out, api_name="queued", api_visibility="private")
    mount.mount(app, demo, services.settings, head='<title>Ours</title><script src="ui/head.js"></script>')


@pytest.fixture(scope="module")
def services(tmp_path_factory: pytest.TempPathFactory) -> Services:
    return atelier(tmp_path_factory.mktemp("atelier"))


@pytest.fixture(scope="module")
def browser(services: Services) -> Iterator[TestClient]:
    with visit(services, tiny_page, follow_redirects=False) as client:
        yield client


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Services:
    return atelier(tmp_path_factory.mktemp("guarded"), auth=f"{NAME}:{PASSWORD}")


@pytest.fixture(scope="module")
def stranger(guarded: Services) -> Iterator[TestClient]:
    """A browser at an Atelier with an account, not signed in."""
    with visit(guarded, tiny_page, follow_redirects=False) as client:
        yield client


def demo_of(client: TestClient) -> Any:
    app: Any = client.app
    return app.routes[-1].app.gradio.blocks


def config(client: TestClient) -> dict[str, Any]:
    found: dict[str, Any] = client.get("/config").json()
    return found


def run(client: TestClient, name: str, *data: Any, **how: Any) -> Any:
    return client.post(f"/gradio_api/run/{name}", json={"data": list(data), "session_hash": "s"}, **how)


# files of the server

KINDS = ("textbox", "number", "json", "image", "file", "html")


@pytest.mark.parametrize("way", ["", "_back"])
@pytest.mark.parametrize("kind", KINDS)
def test_no_component_hands_out_a_file_that_a_request_names(
    browser: TestClient, services: Services, tmp_path: Path, kind: str, way: str
) -> None:
    canary = tmp_path / "canary.png"
    canary.write_bytes(png() + CANARY.encode())
    for path in (canary, Path("/etc/hostname"), services.settings.data_dir / "atelier.db", Path(__file__)):
        trick = {"path": str(path), "meta": {"_type": "gradio.FileData"}}
        for given in (trick, [trick], {"a": trick}):
            answer = run(browser, kind + way, given)
            assert CANARY not in answer.text
            assert not in_cache(services, path)
            assert answer.status_code in (500, 422)


def in_cache(services: Services, stolen: Path) -> bool:
    kept = mount.cache_folder(services.settings.data_dir).rglob("*")
    return any(path.name == stolen.name for path in kept)


def test_the_trick_works_when_the_door_stands_open(browser: TestClient, services: Services, tmp_path: Path) -> None:
    """Else the test above proves nothing."""
    canary = tmp_path / "left-open.png"
    canary.write_bytes(png())
    demo = demo_of(browser)
    demo.has_launched = False
    try:
        answer = run(browser, "json", {"path": str(canary), "meta": {"_type": "gradio.FileData"}})
    finally:
        demo.has_launched = True
    assert answer.status_code == 200
    assert in_cache(services, canary)


def test_an_upload_of_ones_own_still_works(browser: TestClient) -> None:
    path = browser.post("/gradio_api/upload", files={"files": ("a.png", png())}).json()[0]
    answer = run(browser, "file", {"path": path, "meta": {"_type": "gradio.FileData"}})
    assert answer.status_code == 200
    served = browser.get(f"/gradio_api/file={path}")
    assert served.content == png()
    assert "sandbox" in served.headers["Content-Security-Policy"]


def test_an_uploaded_page_is_not_shown(browser: TestClient) -> None:
    path = browser.post("/gradio_api/upload", files={"files": ("a.html", b"<script>alert(1)</script>")}).json()[0]
    served = browser.get(f"/gradio_api/file={path}")
    assert served.headers["Content-Disposition"].startswith("attachment")
    assert served.headers["Content-Type"] == "application/octet-stream"


FILES = [
    "/etc/passwd",
    "/etc/hostname",
    "//etc/passwd",
    "/../etc/passwd",
    "../../../../etc/passwd",
    "{cache}/../atelier.db",
    "{cache}/../secrets/sign-in.key",
    "{cache}/../../outputs/canary.txt",
    "{cache}",
    "{cache}x/y",
    "{cache}/%00",
    "backend/api/server.py",
    "{root}/backend/api/server.py",
    "http://127.0.0.1:7860/api/health",
    "HTTP://127.0.0.1:7860/api/health",
    "https:%2f%2fexample.com/",
    "http:%5c%5cexample.com/",
    "file:///etc/passwd",
    "%5c%5cserver%5cshare%5cx",
    "C:%5cwindows%5cwin.ini",
    "~/.bashrc",
    "",
]


@pytest.mark.parametrize("method", ["GET", "HEAD"])
@pytest.mark.parametrize("file", FILES)
def test_only_gradios_own_cache_is_served(browser: TestClient, services: Services, file: str, method: str) -> None:
    cache = mount.cache_folder(services.settings.data_dir)
    path = "/gradio_api/file=" + file.format(cache=cache, root=Path(server.__file__).parents[2])
    answer = ask(browser.app, scope_of(path, method))
    assert answer.status in (403, 404)
    assert b"root:" not in answer.body


def test_the_cache_is_private_and_in_our_folder(browser: TestClient, services: Services) -> None:
    cache = mount.cache_folder(services.settings.data_dir)
    assert cache.is_relative_to(services.settings.data_dir.resolve())
    assert Path(demo_of(browser).GRADIO_CACHE) == cache
    if os.name != "nt":
        assert stat.S_IMODE(cache.stat().st_mode) == 0o700


def test_what_a_crash_left_in_the_cache_goes_at_the_next_start(tmp_path: Path) -> None:
    cache = mount.cache_folder(tmp_path)
    cache.mkdir()
    (cache / "old.png").write_bytes(b"x")
    before = dict(os.environ)
    try:
        mount.prepare(tmp_path)
    finally:
        os.environ.clear()
        os.environ.update(before)
    assert list(cache.iterdir()) == []


def test_everything_of_ours_is_blocked(browser: TestClient, services: Services) -> None:
    demo, given = demo_of(browser), services.settings
    blocked = {Path(path) for path in demo.blocked_paths}
    for private in (given.outputs_dir, given.models_dir, given.extensions_dir, given.inputs_dir):
        assert private.resolve() in blocked
    for name in ("atelier.db", "secrets", "settings.toml"):
        assert given.data_dir.resolve() / name in blocked
    assert not any(mount.cache_folder(given.data_dir).is_relative_to(path) for path in blocked)
    assert demo.allowed_paths == []


# other hosts


@pytest.mark.parametrize(
    "url", ["http://127.0.0.1:7860/", "http://100.100.100.200/", "https://huggingface.co/x.png", "http://192.0.0.192/"]
)
@pytest.mark.parametrize("kind", ["image", "file", "json"])
def test_nothing_is_fetched_from_other_hosts(
    browser: TestClient, monkeypatch: pytest.MonkeyPatch, kind: str, url: str
) -> None:
    def contacted(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("another host was contacted")

    for target in (
        "httpx.AsyncClient.get",
        "httpx.AsyncClient.send",
        "httpx.Client.stream",
        "socket.create_connection",
    ):
        monkeypatch.setattr(target, contacted)
    answer = run(browser, kind, {"path": url, "meta": {"_type": "gradio.FileData"}})
    assert answer.status_code == 500
    assert "contacted" not in answer.text


def test_a_downloader_that_has_moved_stops_the_start(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mount, "DOWNLOADERS", (("safehttpx", "fetch_it_elsewhere"),))
    with pytest.raises(RuntimeError, match="is gone"):
        mount.refuse_downloads()


def test_the_page_asks_no_other_host(browser: TestClient) -> None:
    html = browser.get("/").text
    asked = re.findall(r"<(?:script|link|img|iframe|source|video|audio)\b[^>]*?\b(?:src|href)=\"([^\"]*)\"", html)
    assert asked
    assert [address for address in asked if re.match(r"(?:https?:)?//", address)] == []
    before_values = html.partition("window.gradio_config")[0]
    assert re.findall(r"https?://[^\s\"'<]+", before_values) == []
    css = browser.get("/theme.css").text
    assert re.findall(r"url\(\s*['\"]?https?:|@import", css) == []


def test_our_lines_come_first_in_the_head(browser: TestClient) -> None:
    html = browser.get("/").text
    assert html.index("<title>Ours</title>") < html.index("<style>") < html.index("window.gradio_config")
    assert html.index("<meta charset") < html.index("<title>Ours</title>")


def test_the_head_is_found_in_any_page() -> None:
    page = mount.WithHead(no_page, "<x>")  # type: ignore[arg-type]
    assert page.rewrite(b"<html><head><p><script>1</script>") == b"<html><head><x><p><script>1</script>"
    values = b'<script>"<base href=x><meta property=\\"og:a\\">"</script>'
    assert (
        page.rewrite(b'<head><base href="./"><meta property="og:url">' + values)
        == b'<head><base href="./"><x>' + values
    )


# routes


@pytest.mark.parametrize(
    "path",
    [
        "/gradio_api/info",
        "/gradio_api/info/",
        "/gradio_api/openapi.json",
        "/openapi.json",
        "/docs",
        "/redoc",
        "/gradio_api/deep_link?session_hash=s",
        "/gradio_api/startup-events",
        "/gradio_api/proxy=http://127.0.0.1:7860/",
        "/gradio_api/file/etc/passwd",
        "/gradio_api/runs",
        "/gradio_api/run-history/buckets",
        "/gradio_api/app_id",
        "/gradio_api/user",
        "/gradio_api/token",
        "/gradio_api/login_check",
        "/gradio_api/custom_component/x/client/component/style.css",
        "/gradio_api/vibe-code",
        "/gradio_api/mcp/sse",
        "/gradio_api/dev/reload",
        "/gradio_api/profiling/summary",
        "/gradio_api/queue/status",
        "/gradio_api/call/json/x",
        "/gradio_api/stream/a/b/1/playlist.m3u8",
        "/monitoring",
        "/monitoring/summary",
        "/login",
        "/logout",
        "/pwa_icon",
        "/robots.txt",
    ],
)
def test_what_the_page_does_not_need_is_not_there(browser: TestClient, path: str) -> None:
    assert browser.get(path).status_code == 404


@pytest.mark.parametrize(
    "path", ["call/json", "call/v2/json", "api/json", "vibe-code", "vibe-edit", "process_recording"]
)
def test_functions_have_one_entrance(browser: TestClient, path: str) -> None:
    assert browser.post(f"/gradio_api/{path}", json={"data": [1]}).status_code == 404
    assert browser.post("/login", data={"username": "a", "password": "b"}).status_code == 404


def test_gradio_answers_nothing_else(browser: TestClient) -> None:
    """Every route that this Gradio has, tried: what answers is on our list."""
    gradio: Any = browser.app.routes[-1]  # type: ignore[attr-defined]
    routes = [(method, path) for method, path in walk(gradio.routes) if method != "WEBSOCKET"]
    assert len(routes) > 70
    for method, path in routes:
        address = re.sub(r"\{[^}]+\}", "x", path)
        needed = any(method in methods and known.fullmatch(address) for methods, known in mount.BROWSER_NEEDS)
        if not needed:
            answer = ask(gradio.app, scope_of(address, method))
            assert answer.status == 404, (method, path)


def test_a_deep_link_loads_nothing(browser: TestClient) -> None:
    assert '"deep_link_state":"none"' in browser.get("/?deep_link=../../x").text.replace(" ", "")
    assert "deep_link_state" not in browser.get("/config?deep_link=abc").json()


def test_the_page_says_nothing_of_its_functions(browser: TestClient) -> None:
    info = re.search(r"window\.gradio_api_info = (.*?);</script>", browser.get("/").text)
    assert info
    assert not set(json.loads(info[1])["named_endpoints"]) & {f"/{kind}" for kind in (*KINDS, "who")}


def test_a_queued_function_cannot_jump_the_queue(browser: TestClient) -> None:
    assert run(browser, "queued").status_code == 404


def test_no_tab_holds_a_connection_open(browser: TestClient) -> None:
    """With a heartbeat per tab, the seventh tab of a browser hangs."""
    assert config(browser)["connect_heartbeat"] is False


# settings


def test_every_door_is_shut(browser: TestClient) -> None:
    demo = demo_of(browser)
    mount.check(demo)
    assert demo.has_launched
    assert demo.state_session_capacity == mount.SESSIONS
    assert demo._queue.max_size == mount.QUEUE
    assert demo.delete_cache == (mount.CACHE_CHECKED_EVERY, mount.CACHE_KEPT)
    assert demo.footer_links == []


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("has_launched", False),
        ("allowed_paths", ["/"]),
        ("run_history", True),
        ("show_error", True),
        ("vibe_mode", True),
    ],
)
def test_an_open_door_stops_the_start(
    browser: TestClient, monkeypatch: pytest.MonkeyPatch, name: str, value: object
) -> None:
    monkeypatch.setattr(demo_of(browser), name, value)
    with pytest.raises(RuntimeError, match="not shut"):
        mount.check(demo_of(browser))


@pytest.mark.parametrize(
    "name",
    [
        *("GRADIO_VIBE_MODE", "GRADIO_MCP_SERVER", "GRADIO_SHARE", "GRADIO_LOCAL_DEV_MODE"),
        *("GRADIO_WATCH_DIRS", "GRADIO_WATCH_DEMO_PATH"),
    ],
)
@pytest.mark.parametrize("value", ["1", "False", ""])
def test_a_dangerous_environment_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, value: str
) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(Refused, match=f"{name} lets strangers in"):
        mount.prepare(tmp_path)
    assert not mount.cache_folder(tmp_path).exists()


def test_nothing_is_reported_to_others(browser: TestClient) -> None:
    assert os.environ["GRADIO_ANALYTICS_ENABLED"] == "False"
    assert os.environ["HF_HUB_OFFLINE"] == "1"
    assert demo_of(browser).analytics_enabled is False


def test_an_error_shows_nothing_of_itself(browser: TestClient) -> None:
    answer = run(browser, "broken", "x")
    assert answer.status_code == 500
    assert CANARY not in answer.text
    assert "Traceback" not in answer.text


def test_text_in_the_page_is_no_code(browser: TestClient, services: Services) -> None:
    """Gradio writes values into a script on the page; a prompt must not be able to end it."""
    assert EVIL not in browser.get("/", headers={"Cookie": f"x={EVIL}"}).text
    assert EVIL not in browser.get("/?__theme=" + EVIL).text


# requests that are too large, or forged


@pytest.mark.parametrize("path", ["upload", "queue/join", "run/json", "cancel", "component_server", "reset"])
def test_every_body_has_a_limit(browser: TestClient, path: str) -> None:
    def flood() -> Iterator[bytes]:
        for _ in range(server.MAX_BODY // 2**20 + 2):
            yield b"x" * 2**20

    for content, headers in (
        (b"x", {"Content-Length": str(server.MAX_BODY + 1), "Content-Type": "application/json"}),
        (flood(), {"Content-Type": "application/json"}),
    ):
        answer = browser.post(f"/gradio_api/{path}", content=content, headers=headers)
        # these two see that it is no form, or no JSON, before they see how long it is
        assert answer.status_code == 413 or (answer.status_code == 400 and path in ("upload", "component_server"))


def test_a_text_field_of_an_upload_has_the_same_limit(browser: TestClient) -> None:
    body = (
        b'--b\r\nContent-Disposition: form-data; name="text"\r\n\r\n' + b"x" * (server.MAX_BODY + 1) + b"\r\n--b--\r\n"
    )
    answer = browser.post(
        "/gradio_api/upload", content=body, headers={"Content-Type": "multipart/form-data; boundary=b"}
    )
    assert answer.status_code == 413


@pytest.mark.parametrize("origin", ["http://evil.example", "null", "http://localhost:1"])
@pytest.mark.parametrize("path", ["upload", "component_server", "run/json", "queue/join", "cancel"])
def test_another_site_cannot_use_gradio(browser: TestClient, path: str, origin: str) -> None:
    answer = browser.post(f"/gradio_api/{path}", files={"files": ("a.png", png())}, headers={"Origin": origin})
    assert answer.status_code == 403


def test_gradio_allows_no_site_to_read(browser: TestClient) -> None:
    for path in ("/", "/config", "/theme.css"):
        answer = browser.get(path, headers={"Origin": HOME})
        assert [name for name in answer.headers if name.startswith("access-control-")] == []


def test_the_address_in_the_page_is_the_one_that_was_asked(browser: TestClient) -> None:
    for header in ("X-Forwarded-Host", "X-Gradio-Server", "X-Forwarded-Proto"):
        assert "evil.example" not in browser.get("/config", headers={header: "https://evil.example"}).text
    assert config(browser)["root"] == HOME


# speed


@pytest.mark.parametrize("path", ["/", "/config", "/theme.css"])
def test_what_is_large_is_packed(browser: TestClient, path: str) -> None:
    answer = browser.get(path, headers={"Accept-Encoding": "gzip"})
    assert answer.headers["Content-Encoding"] == "gzip"
    packed = ask(browser.app, scope_of(path, headers=[("host", f"127.0.0.1:{PORT}"), ("accept-encoding", "gzip")]))
    assert len(packed.body) < len(gzip.decompress(packed.body)) / 2
    plain = browser.get(path, headers={"Accept-Encoding": "identity"})
    assert "Content-Encoding" not in plain.headers
    assert plain.status_code == 200


def test_assets_are_kept_for_ever(browser: TestClient) -> None:
    asset = re.search(r"assets/[\w.-]+\.js", browser.get("/").text)
    assert asset
    assert "immutable" in browser.get("/" + asset[0]).headers["Cache-Control"]
    assert "immutable" not in browser.get("/assets/nothing.js").headers.get("Cache-Control", "")


def test_our_scripts_are_checked_for_news(tmp_path: Path) -> None:
    (tmp_path / "a.js").write_text("1;" * 1000)
    app = FastAPI()
    app.mount("/ui", mount.Static(directory=tmp_path))
    here = TestClient(app)
    first = here.get("/ui/a.js")
    assert first.headers["Content-Type"].startswith("text/javascript")
    assert first.headers["Cache-Control"] == "no-cache"
    assert here.get("/ui/a.js", headers={"If-None-Match": first.headers["ETag"]}).status_code == 304
    assert here.get("/ui/../test_api.py").status_code == 404


def test_a_server_at_rest_rests(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Turns of its event loop are counted: processor time is another one on each machine."""
    turns: Counter[int] = Counter()
    turn = asyncio.BaseEventLoop._run_once  # type: ignore[attr-defined]

    def count(loop: asyncio.BaseEventLoop) -> None:
        turns[id(loop)] += 1
        turn(loop)

    monkeypatch.setattr(asyncio.BaseEventLoop, "_run_once", count)
    with visit(atelier(tmp_path), tiny_page) as client:
        assert client.get("/").status_code == 200
        assert not demo_of(client)._queue.stopped
        turns.clear()
        began = time.monotonic()
        time.sleep(2)
        took = time.monotonic() - began
    assert 0 < max(turns.values()) / took < 400  # of some 1700: Gradio looks at its queue each millisecond


def test_gradio_is_imported_without_rewriting_its_stubs(tmp_path: Path) -> None:
    code = (
        f"from pathlib import Path; from ui import mount; mount.prepare(Path({str(tmp_path)!r}));"
        "import sys, gradio.component_meta as meta, gradio.blocks_events as events;"
        "print(meta.create_or_modify_pyi.__module__, events.create_or_modify_pyi.__module__,"
        " any(isinstance(f, mount.WithoutStubs) for f in sys.meta_path), 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=Path(__file__).parents[1])
    assert done.stdout.strip() == "ui.mount ui.mount False False", done.stderr


@pytest.mark.parametrize(
    ("module", "function", "left"),
    [
        ("meta", "write_stubs", None),
        ("meta", "write_them_elsewhere", 1),
        ("another", "write_stubs", 1),
    ],
)
def test_where_the_stubs_have_moved_the_import_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, module: str, function: str, left: int | None
) -> None:
    """On a small package that stands for a later Gradio."""
    package = f"small_{module}_{function}"
    (tmp_path / package).mkdir()
    (tmp_path / package / "__init__.py").write_text("")
    (tmp_path / package / f"{module}.py").write_text(f"def {function}(): return 1\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(mount.WithoutStubs, "MODULE", f"{package}.meta")
    monkeypatch.setattr(mount.WithoutStubs, "FUNCTION", "write_stubs")
    monkeypatch.setattr(sys, "meta_path", [mount.WithoutStubs(), *sys.meta_path])
    loaded = importlib.import_module(f"{package}.{module}")
    assert getattr(loaded, function)() == left


# who may

OPEN = {
    *(("GET", "/signin"), ("POST", "/signin"), ("GET", "/api/health"), ("GET", "/manifest.json")),
    *(("GET", "/favicon.ico"), ("GET", "/icon.svg"), ("GET", "/icon-192.png")),
}
STRANGERS = {
    "nobody": {},
    "a wrong password": basic(NAME, "guess"),
    "an unknown name": basic("eve", PASSWORD),
    "a forged cookie": {"Cookie": f"atelier-{PORT}=ImFkYSI.aaaaaa.bbbbbbbbbbbbbbbbbbbbbbbbbbb"},
    "another port's cookie": {"Cookie": "atelier-1=ImFkYSI.aaaaaa.bbbbbbbbbbbbbbbbbbbbbbbbbbb"},
}


def every_route(client: TestClient) -> list[tuple[str, str]]:
    """All of the server's own routes, those of an extension, and all that this Gradio has."""
    app: Any = client.app
    found = [(m, p.replace("{size}", "192")) for m, p in walk(app.routes) if m != "WEBSOCKET"]
    return sorted({(method, re.sub(r"\{[^}]+\}", "1", path)) for method, path in found})


def test_walking_finds_every_kind_of_route(stranger: TestClient) -> None:
    routes = every_route(stranger)
    assert len(routes) > 90
    for known in (
        *(("POST", "/api/jobs"), ("GET", "/img/1"), ("GET", "/extensions/demo/hello"), ("GET", "/events")),
        *(("POST", "/gradio_api/queue/join"), ("GET", "/gradio_api/heartbeat/1"), ("GET", "/config")),
    ):
        assert known in routes


@pytest.mark.parametrize("role", STRANGERS)
def test_strangers_get_nowhere(stranger: TestClient, role: str) -> None:
    number = list(STRANGERS).index(role) + 1
    for method, path in every_route(stranger):
        headers = [("host", f"127.0.0.1:{PORT}"), *((k.lower(), v) for k, v in STRANGERS[role].items())]
        scope = scope_of(path, method, headers) | {"client": (f"10.0.0.{number}", 1)}
        status = ask(stranger.app, scope, whole=False).status
        if (method, path) not in OPEN:
            assert status in (401, 429), (method, path, status)
        elif "password" not in role and "unknown" not in role:  # those wait after five failures, everywhere
            assert status in (200, 401), (method, path, status)
    with pytest.raises(WebSocketDisconnect), stranger.websocket_connect("/ws", headers=STRANGERS[role]):
        pass


@pytest.mark.parametrize("way", ["cookie", "basic"])
def test_the_account_gets_everywhere(stranger: TestClient, guarded: Services, way: str) -> None:
    account = open_door(guarded.settings).account
    assert account is not None
    cookie = {"Cookie": f"{account.cookie}={account.ticket()}"}
    mine = cookie if way == "cookie" else basic(NAME, PASSWORD)
    headers = [("host", f"127.0.0.1:{PORT}"), *((k.lower(), v) for k, v in mine.items())]
    reached = 0
    for method, path in every_route(stranger):
        scope = scope_of(path, method, headers) | {"client": ("10.0.1.1", 1)}
        status = ask(stranger.app, scope, whole=False).status
        assert status not in (401, 403, 429) or path == "/signin", (method, path, status)
        assert status < 500 or path == "/extensions/demo/break", (method, path, status)
        reached += status != 404
    assert reached > 25
    assert run(stranger, "who", headers=mine).json()["data"] == [[NAME]]


def test_without_an_account_handlers_hear_that_it_is_local(browser: TestClient) -> None:
    assert run(browser, "who").json()["data"] == [["local"]]


def test_gradio_behind_no_gate_lets_nobody_in(browser: TestClient) -> None:
    """The second line: without the gate's word there is no caller."""
    gradio: Any = browser.app.routes[-1]  # type: ignore[attr-defined]
    for path in ("/", "/config"):
        assert ask(gradio.app, scope_of(path)).status == 401
    for path in ("/gradio_api/run/who", "/gradio_api/queue/join", "/gradio_api/upload"):
        assert ask(gradio.app, scope_of(path, "POST")).status in (401, 422)


def test_a_stranger_cannot_end_sessions(stranger: TestClient) -> None:
    """Gradio's own heartbeat asks nobody who they are, and leaving it ends a session."""
    for path in ("heartbeat/someones-session", "queue/data?session_hash=someones"):
        assert stranger.get(f"/gradio_api/{path}").status_code == 401
    for path in ("cancel", "reset"):
        assert stranger.post(f"/gradio_api/{path}", json={}).status_code == 401
