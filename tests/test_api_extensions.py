"""Extensions over HTTP: who may change them, planning before applying, and the files that they bring to the page."""

import io
import json
import zipfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from backend import registry
from backend.api.extensions import AT_ONCE, Plans, web_files
from backend.install import Place, planned
from backend.services import Services
from backend.sources import Folder
from tests.web import NAME, PASSWORD, atelier, visit

CODE = "from backend.extension import Extension\nclass E(Extension):\n    pass\n"
AFAR: dict[str, Any] = {"host": "0.0.0.0", "auth": f"{NAME}:{PASSWORD}", "allowed_hosts": ("127.0.0.1:7860",)}


@pytest.fixture
def services(tmp_path: Path) -> Services:
    return atelier(tmp_path)


@pytest.fixture
def browser(services: Services) -> Iterator[TestClient]:
    with visit(services) as client:
        yield client


def files(id: str = "hello", version: str = "1.0", toml: str = "") -> dict[str, str]:
    return {"extension.toml": f'id = "{id}"\nversion = "{version}"\ntitle = "Hello"\n{toml}', "__init__.py": CODE}


def folder(path: Path, content: dict[str, str]) -> str:
    for name, text in content.items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_text(text)
    return str(path)


def zipped(content: dict[str, str]) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for name, text in content.items():
            archive.writestr(name, text)
    return file.getvalue()


def plan(browser: TestClient, **wish: str) -> Any:
    answer = browser.post("/api/extensions/plan", json=wish)
    assert answer.status_code == 201, answer.text
    return answer.json()


def plan_zip(browser: TestClient, data: bytes, **query: str) -> Any:
    return browser.post("/api/extensions/plan/zip", content=data, params=query)


def do(browser: TestClient, path: str) -> dict[str, Any]:
    """The extensions by id, as the answer to a change lists them."""
    answer = browser.post(f"/api/extensions/{path}")
    assert answer.status_code == 200, answer.text
    return {one["id"]: one for one in answer.json()["extensions"]}


def install(browser: TestClient, **wish: str) -> dict[str, Any]:
    return do(browser, f"plans/{plan(browser, **wish)['token']}/apply")


def staged(services: Services) -> list[Path]:
    return list(services.settings.extensions_dir.glob(".staging-*"))


# the list


def test_the_list_says_what_is_there(services: Services) -> None:
    extensions = services.settings.extensions_dir
    folder(extensions / "torn", {"extension.toml": "id ="})
    services = replace(services, registry=registry.load(extensions, services.settings.data_dir, safe_mode=False))
    with visit(services) as browser:
        answer = browser.get("/api/extensions").json()
    demo, torn = answer["extensions"]
    assert (demo["id"], demo["title"], demo["state"], demo["enabled"], demo["pending"]) == (
        *("demo", "Demo", "on"),
        True,
        "",
    )
    assert torn["state"] == "broken"
    assert "not TOML" in torn["problem"]
    assert (answer["notice"], answer["refusal"], answer["paths"], answer["restart"]) == ("", "", True, False)


def test_safe_mode_is_said(services: Services) -> None:
    services = replace(services, registry=replace(services.registry, notice="Safe mode: glow."))
    with visit(services) as browser:
        assert browser.get("/api/extensions").json()["notice"] == "Safe mode: glow."


# who may

CHANGES: tuple[tuple[str, dict[str, Any]], ...] = (
    ("plan", {"json": {"source": "https://example.invalid/x"}}),
    ("plan/zip", {"content": b"x"}),
    ("plans/x/apply", {}),
    ("plans/x/cancel", {}),
    *((f"demo/{verb}", {}) for verb in ("enable", "disable", "remove", "rollback")),
)


@pytest.mark.parametrize(("path", "how"), CHANGES, ids=[path for path, _ in CHANGES])
def test_from_afar_nothing_is_changed(tmp_path: Path, path: str, how: dict[str, Any]) -> None:
    services = atelier(tmp_path, **AFAR)
    with visit(services) as browser:
        assert browser.post(f"/api/extensions/{path}", **how).status_code == 401
        browser.auth = (NAME, PASSWORD)
        answer = browser.post(f"/api/extensions/{path}", **how)
        assert answer.status_code == 403
        assert "command line" in answer.json()["detail"]
        assert "command line" in browser.get("/api/extensions").json()["refusal"]
    assert (services.settings.extensions_dir / "demo").is_dir()


def test_from_afar_it_can_be_allowed_but_no_path_of_this_machine(tmp_path: Path) -> None:
    services = atelier(tmp_path, **AFAR, allow_extension_install=True)
    with visit(services) as browser:
        browser.auth = (NAME, PASSWORD)
        listed = browser.get("/api/extensions").json()
        assert (listed["refusal"], listed["paths"]) == ("", False)
        for source in (folder(tmp_path / "hello", files()), str(tmp_path / "missing")):
            answer = browser.post("/api/extensions/plan", json={"source": source})
            assert answer.status_code == 422
            assert "only addresses that begin with https://" in answer.json()["detail"]
        made = plan_zip(browser, zipped(files())).json()
        assert "hello" in do(browser, f"plans/{made['token']}/apply")


BEHIND_A_PROXY = (
    {"X-Forwarded-For": "203.0.113.7"},
    {"Forwarded": "for=203.0.113.7"},
    {"X-Real-IP": "203.0.113.7"},
    {"X-Forwarded-Proto": "https"},
    {"Via": "1.1 proxy"},
    {"Host": "studio.example"},
)


@pytest.mark.parametrize("headers", BEHIND_A_PROXY, ids=str)
def test_through_a_proxy_nothing_is_changed(tmp_path: Path, headers: dict[str, str]) -> None:
    services = atelier(tmp_path, allowed_hosts=("studio.example",))
    with visit(services) as browser:
        for path, how in CHANGES:
            answer = browser.post(f"/api/extensions/{path}", headers=headers, **how)
            assert (answer.status_code, "command line" in answer.json()["detail"]) == (403, True), path
        listed = browser.get("/api/extensions", headers=headers).json()
        assert ("command line" in listed["refusal"], listed["paths"]) == (True, False)
        assert browser.get("/api/extensions").json()["refusal"] == ""  # at this machine all is as before
    assert (services.settings.extensions_dir / "demo").is_dir()


@pytest.mark.parametrize("headers", BEHIND_A_PROXY, ids=str)
def test_through_a_proxy_it_can_be_allowed_but_no_path_of_this_machine(
    tmp_path: Path, headers: dict[str, str]
) -> None:
    services = atelier(tmp_path, allowed_hosts=("studio.example",), allow_extension_install=True)
    with visit(services) as browser:
        source = folder(tmp_path / "hello", files())
        answer = browser.post("/api/extensions/plan", json={"source": source}, headers=headers)
        assert (answer.status_code, "https://" in answer.json()["detail"]) == (422, True)
        assert browser.post("/api/extensions/demo/disable", headers=headers).status_code == 200


def test_another_site_installs_nothing(browser: TestClient) -> None:
    answer = browser.post("/api/extensions/demo/disable", headers={"Origin": "https://evil.example"})
    assert answer.status_code == 403
    assert browser.get("/api/extensions").json()["extensions"][0]["enabled"]


# two steps


def test_a_plan_is_shown_then_applied(browser: TestClient, services: Services, tmp_path: Path) -> None:
    more = 'capabilities = ["network"]\nroutes = "/hello"\nlicence = "MIT"\n'
    made = plan(browser, source=folder(tmp_path / "hello", files(toml=more)))
    assert made["extension"]["capabilities"] == ["network"]
    assert (made["extension"]["routes"], made["before"], made["files"], made["packages"]) == ("/hello", None, 2, [])
    assert not (services.settings.extensions_dir / "hello").exists()
    listed = do(browser, f"plans/{made['token']}/apply")
    assert (listed["hello"]["pending"], listed["hello"]["state"]) == ("install", "off")
    assert (services.settings.extensions_dir / "hello" / "__init__.py").is_file()
    assert staged(services) == []
    assert browser.post(f"/api/extensions/plans/{made['token']}/apply").status_code == 404  # once


def test_a_plan_that_is_cancelled_leaves_nothing(browser: TestClient, services: Services, tmp_path: Path) -> None:
    made = plan(browser, source=folder(tmp_path / "hello", files()))
    assert staged(services)
    assert browser.post(f"/api/extensions/plans/{made['token']}/cancel").status_code == 200
    assert staged(services) == []
    assert "hello" not in {path.name for path in services.settings.extensions_dir.iterdir()}


def test_an_update_shows_what_changes_and_can_be_taken_back(browser: TestClient, tmp_path: Path) -> None:
    install(browser, source=folder(tmp_path / "hello", files()))
    folder(tmp_path / "hello", files(version="2.0", toml='capabilities = ["files"]\n'))
    made = plan(browser, update="hello")
    assert {"key": "version", "before": "1.0", "after": "2.0"} in made["changes"]
    assert (made["before"], made["wider"], made["news"]) == ("1.0", True, True)
    listed = do(browser, f"plans/{made['token']}/apply")
    assert (listed["hello"]["version"], listed["hello"]["can_roll_back"]) == ("2.0", True)
    assert do(browser, "hello/rollback")["hello"]["version"] == "1.0"


def test_the_file_of_a_zip_gives_its_name(browser: TestClient) -> None:
    made = plan_zip(browser, zipped(files()), name="../../hello world.zip").json()
    assert made["from"] == "hello-world.zip"
    listed = do(browser, f"plans/{made['token']}/apply")
    assert (listed["hello"]["kind"], listed["hello"]["from"]) == ("zip", "hello-world.zip")
    again = plan_zip(browser, zipped(files(version="1.1")), update="hello")
    assert again.json()["before"] == "1.0"


def test_off_and_on_take_effect_at_the_next_start(browser: TestClient) -> None:
    off = do(browser, "demo/disable")["demo"]
    assert (off["state"], off["enabled"], off["pending"]) == ("on", False, "disable")
    assert browser.get("/api/extensions").json()["restart"]
    assert do(browser, "demo/enable")["demo"]["pending"] == ""


def test_a_removed_one_is_said_to_be(browser: TestClient, services: Services) -> None:
    assert do(browser, "demo/remove")["demo"]["pending"] == "remove"
    assert not (services.settings.extensions_dir / "demo").exists()


def test_a_change_behind_the_servers_back_is_seen(browser: TestClient, services: Services) -> None:
    with open(services.settings.extensions_dir / "demo" / "__init__.py", "a") as file:
        file.write("# newer\n")
    assert browser.get("/api/extensions").json()["extensions"][0]["pending"] == "update"


# bad input


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"no zip", "not a zip"),
        (b"", "not a zip"),
        (zipped({"../evil.py": "x"}), "bad name"),
        (zipped({"notes.txt": "x"}), "there is no extension.toml"),
        (zipped(files(id="Not An Id")), "is not an id"),
        (zipped(files(id="inpaint")), "Atelier's own"),
        (zipped(files(toml="api = 99\n")), "extension API 99"),
        (zipped(files(toml="colour = 1\n")), "colour"),
    ],
)
def test_a_bad_zip_is_refused_in_a_sentence(browser: TestClient, services: Services, data: bytes, says: str) -> None:
    before = sorted(services.settings.extensions_dir.rglob("*"))
    answer = plan_zip(browser, data)
    assert answer.status_code == 422
    assert says in answer.json()["detail"]
    assert sorted(services.settings.extensions_dir.rglob("*")) == before


@pytest.mark.parametrize(
    ("wish", "status"),
    [
        ({}, 422),
        ({"source": "ext::sh -c true"}, 422),
        ({"source": "http://example.invalid/x"}, 422),
        ({"source": "/nowhere/at/all"}, 422),
        ({"source": "/" + 300 * "x"}, 422),
        ({"source": "https://example.invalid/x", "ref": "--upload-pack=x"}, 422),
        ({"update": "missing"}, 404),
        ({"update": "../demo"}, 404),
        ({"catalogue": "grain"}, 404),
        ({"catalogue": "../x"}, 404),
        ({"sauce": "x"}, 422),
        ({"source": 1}, 422),
        ([], 422),
    ],
)
def test_a_bad_wish_is_refused(browser: TestClient, wish: Any, status: int) -> None:
    answer = browser.post("/api/extensions/plan", json=wish)
    assert answer.status_code == status
    assert answer.json()["detail"]


@pytest.mark.parametrize("path", ["missing/disable", "..%2Fdemo/remove", ".previous/enable", "demo/rollback"])
def test_an_unknown_one_is_not_changed(browser: TestClient, path: str) -> None:
    assert browser.post(f"/api/extensions/{path}").status_code == 404


def test_one_that_does_not_work_here_is_not_installed(browser: TestClient, services: Services, tmp_path: Path) -> None:
    made = plan(browser, source=folder(tmp_path / "hello", {**files(), "__init__.py": "1 / 0"}))
    answer = browser.post(f"/api/extensions/plans/{made['token']}/apply")
    assert answer.status_code == 422
    assert "ZeroDivisionError" in answer.json()["detail"]
    assert not (services.settings.extensions_dir / "hello").exists()
    assert staged(services) == []


# plans


def test_a_plan_is_forgotten_after_a_while(tmp_path: Path) -> None:
    place = Place(tmp_path / "extensions", tmp_path / "data")
    plans = Plans(kept=0.05)
    source = Folder(Path(folder(tmp_path / "hello", files())))
    token, made = plans.make(planned(place, source))
    plans._open[token].timer.join(5)
    assert not made.staged.exists()


def test_only_so_many_plans_are_kept_and_none_beyond_the_end(tmp_path: Path) -> None:
    place = Place(tmp_path / "extensions", tmp_path / "data")
    plans = Plans()
    source = Folder(Path(folder(tmp_path / "hello", files())))
    made = [plans.make(planned(place, source))[1] for _ in range(AT_ONCE + 1)]
    assert [plan.staged.exists() for plan in made] == [False] + [True] * AT_ONCE
    plans.close()
    assert not any(plan.staged.exists() for plan in made)


# the catalogue


def test_the_catalogue_is_searched(tmp_path: Path) -> None:
    entries = [
        {"id": "grain", "title": "Film grain", "url": "https://example.invalid/grain", "description": "Noise"},
        {"id": "demo", "title": "Demo", "url": "https://example.invalid/demo"},
    ]
    (tmp_path / "index.json").write_text(json.dumps({"extensions": entries}))
    with visit(atelier(tmp_path, extension_index=str(tmp_path / "index.json"))) as browser:
        found = browser.get("/api/extensions/catalogue", params={"q": "noise"}).json()
        assert [(e["id"], e["installed"]) for e in found["extensions"]] == [("grain", False)]
        everything = browser.get("/api/extensions/catalogue").json()
        assert [(e["id"], e["installed"]) for e in everything["extensions"]] == [("demo", True), ("grain", False)]


def test_without_a_catalogue_there_is_none(browser: TestClient) -> None:
    assert browser.get("/api/extensions/catalogue").status_code == 404


# web/


@pytest.fixture
def with_web(services: Services) -> Services:
    extensions = services.settings.extensions_dir
    folder(
        extensions / "demo" / "web",
        {"demo.js": "export {};", "look.css": "a {}", "notes.txt": "x", "page.html": "<p>", ".hidden.js": "x"},
    )
    folder(extensions / "off", files(id="off"))
    folder(extensions / "off" / "web", {"off.js": "1"})
    (extensions / "demo" / "web" / "way-out.js").symlink_to(extensions / "demo" / "__init__.py")
    return services


def test_scripts_and_styles_are_served(with_web: Services) -> None:
    with visit(with_web) as browser:
        for name, kind in (("demo.js", "text/javascript"), ("look.css", "text/css")):
            answer = browser.get(f"/extensions/demo/web/{name}")
            assert answer.status_code == 200
            assert answer.headers["content-type"].startswith(kind)
            assert answer.headers["x-content-type-options"] == "nosniff"
            assert "default-src 'self'" in answer.headers["content-security-policy"]
        assert browser.get("/extensions/demo/hello").json() == {"hello": "demo"}  # its own routes go on


@pytest.mark.parametrize(
    "path",
    [
        "demo/web/notes.txt",
        "demo/web/page.html",
        "demo/web/.hidden.js",
        "demo/web/way-out.js",
        "demo/web/missing.js",
        "demo/web/..%2F__init__.py",
        "demo/web/..%2F..%2Foff%2Fweb%2Foff.js",
        "demo/web/%2e%2e/__init__.py",
        "off/web/off.js",
        "missing/web/x.js",
        "..%2Fdemo/web/demo.js",
    ],
)
def test_nothing_else_is_served(with_web: Services, path: str) -> None:
    with visit(with_web) as browser:
        assert browser.get(f"/extensions/{path}").status_code == 404


def test_nobody_gets_them_without_signing_in(tmp_path: Path) -> None:
    services = atelier(tmp_path, auth=f"{NAME}:{PASSWORD}")
    folder(services.settings.extensions_dir / "demo" / "web", {"demo.js": "1"})
    with visit(services) as browser:
        assert browser.get("/extensions/demo/web/demo.js").status_code == 401


def test_the_page_is_told_what_to_load(with_web: Services) -> None:
    (told,) = web_files(with_web.settings, with_web.registry)
    assert told["id"] == "demo"
    assert told["styles"] == ["extensions/demo/web/look.css"]
    assert told["scripts"] == ["extensions/demo/web/demo.js"]
