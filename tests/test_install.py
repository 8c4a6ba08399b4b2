"""Extensions are installed as a whole or not at all, and nothing of them runs before somebody has agreed."""

import importlib.metadata
import io
import json
import os
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
from pydantic import ValidationError
from typer.testing import CliRunner

from backend import extension_index, extensions_cli, importing, install, locks, manifest, packages, registry, sources
from backend.errors import AtelierError, Conflict, NotFound, Refused, StorageFull
from backend.extension_index import read_index
from backend.install import Place
from backend.manifest import Record
from backend.settings import Settings
from backend.sources import Folder, Git, Zip, checked_ref, checked_url, source_of

CODE = "from backend.extension import Extension\nclass E(Extension):\n    pass\n"


def files(id: str = "hello", toml: str = "", version: str = "1.0", code: str = CODE) -> dict[str, str]:
    head = f'id = "{id}"\nversion = "{version}"\ntitle = "Hello"\n'
    return {"extension.toml": head + toml, "__init__.py": code, "data/words.txt": "a\n"}


def folder(path: Path, content: dict[str, str]) -> Path:
    for name, text in content.items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_text(text)
    return path


def zipped(path: Path, content: dict[str, str]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        for name, text in content.items():
            file.writestr(name, text)
    return path


def wheel(place: Path, name: str, version: str, *needs: str) -> None:
    about = f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"
    about += "".join(f"Requires-Dist: {need}\n" for need in needs)
    zipped(
        place / f"{name}-{version}-py3-none-any.whl",
        {
            f"{name}.py": f"version = {version!r}\n",
            f"{name}-{version}.dist-info/METADATA": about,
            f"{name}-{version}.dist-info/WHEEL": "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
            f"{name}-{version}.dist-info/RECORD": "",
        },
    )


def state(place: Place) -> dict[str, bytes]:
    """Everything on the disk but the lock."""
    return {
        path.relative_to(root).as_posix(): path.read_bytes()
        for root in (place.extensions, place.data)
        for path in sorted(root.rglob("*"))
        if path.is_file() and path.name != install.LOCK and "__pycache__" not in path.parts
    }


def put(place: Place, source: sources.Source) -> install.Plan:
    with install.planned(place, source) as plan:
        install.apply(plan)
    return plan


def renew(place: Place, id: str = "hello", source: sources.Source | None = None) -> install.Plan:
    with install.planned_update(place, id, source) as plan:
        install.apply(plan)
    return plan


@pytest.fixture
def place(tmp_path: Path) -> Place:
    place = Place(tmp_path / "extensions", tmp_path / "data")
    place.extensions.mkdir()
    place.data.mkdir()
    return place


@pytest.fixture
def trusting(monkeypatch: pytest.MonkeyPatch) -> None:
    """For what is not about trying strangers: that takes a process."""
    trust: Callable[..., object] = lambda folders, limit=0: dict.fromkeys(folders, importing.Trial())  # noqa: E731
    monkeypatch.setattr(importing, "probe", trust)


# ---------------------------------------------------------------- from a folder, a zip, a repository


def test_a_folder_is_installed_and_works(place: Place, tmp_path: Path) -> None:
    source = folder(tmp_path / "source", {**files(), ".git/config": "x", "__pycache__/x.pyc": "x"})
    with install.planned(place, Folder(source)) as plan:
        assert [p.name for p in place.extensions.iterdir() if not p.name.startswith(".")] == []
        assert (plan.manifest.id, plan.files, plan.before, plan.asks) == ("hello", 3, None, ())
        install.apply(plan)
    assert sorted(p.name for p in place.extensions.iterdir()) == ["hello"]
    installed = {p.name for p in (place.extensions / "hello").iterdir()} - {"__pycache__"}  # it has been imported
    assert installed == {"__init__.py", "data", "extension.toml"}
    assert Record.read(place.data).installed["hello"] == plan.origin
    assert [e.id for e in registry.load(place.extensions, place.data).extensions] == ["hello"]


def test_a_zip_may_have_one_folder_around_it(place: Place, tmp_path: Path, trusting: None) -> None:
    around = {f"hello-main/{name}": text for name, text in files().items()}
    plan = put(place, Zip(zipped(tmp_path / "hello.zip", around)))
    assert (place.extensions / "hello" / "data" / "words.txt").read_text() == "a\n"
    assert plan.origin.sha256 == sources.fingerprint(place.extensions / "hello")


def git(*arguments: str, at: Path) -> str:
    who = ["-c", "user.name=t", "-c", "user.email=t@example.org", "-c", "protocol.file.allow=always"]
    return subprocess.run(["git", *who, *arguments], cwd=at, check=True, capture_output=True, text=True).stdout.strip()


def commit(repository: Path, content: dict[str, str]) -> str:
    folder(repository, content)
    git("add", "-A", at=repository)
    git("commit", "-q", "-m", "x", at=repository)
    return git("rev-parse", "HEAD", at=repository)


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(sources, "GIT_SCHEMES", ("https", "file"))
    path = tmp_path / "repository"
    path.mkdir()
    git("init", "-q", "-b", "main", at=path)
    return path


def test_a_repository_is_pinned_updated_and_rolled_back(place: Place, repository: Path, trusting: None) -> None:
    first = commit(repository, files())
    git("tag", "v1", at=repository)
    source = Git(repository.as_uri())
    assert put(place, source).origin.commit == first
    before = state(place)
    second = commit(repository, files(version="2.0", toml='capabilities = ["network"]\nroutes = "/hello"\n'))
    with install.planned_update(place, "hello") as plan:
        assert plan.origin.commit == second
        assert plan.changes == (
            ("version", "1.0", "2.0"),
            ("capabilities", (), ("network",)),
            ("routes", "", "/hello"),
        )
        assert plan.is_wider
        assert plan.asks == ("reaches the network", "answers at /hello")
        assert state(place).keys() > before.keys()  # staged, under a dot
    assert state(place) == before  # not agreed to
    renew(place)
    assert Record.read(place.data).installed["hello"].commit == second
    assert install.roll_back(place, "hello").version == "1.0"
    assert Record.read(place.data).installed["hello"].commit == first
    assert install.roll_back(place, "hello").version == "2.0"
    assert Record.read(place.data).installed["hello"].commit == second
    assert not renew(place).is_news
    with install.planned_update(place, "hello", Git(repository.as_uri(), "v1")) as plan:
        assert plan.origin.commit == first


def test_git_runs_nothing_of_a_repository(
    place: Place, repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, trusting: None
) -> None:
    hook = tmp_path / "template" / "hooks"
    hook.mkdir(parents=True)
    for name in ("post-checkout", "reference-transaction", "post-merge"):
        (hook / name).write_text(f"#!/bin/sh\ntouch {tmp_path}/ran\n")
        (hook / name).chmod(0o755)
    commit(repository, files())
    monkeypatch.setenv("GIT_TEMPLATE_DIR", str(tmp_path / "template"))
    monkeypatch.setenv("GIT_CONFIG_PARAMETERS", f"'core.hooksPath={hook}'")
    put(place, Git(repository.as_uri()))
    assert not (tmp_path / "ran").exists()


@pytest.mark.skipif(os.name == "nt", reason="symbolic links")
def test_a_repository_with_links_or_submodules_is_refused(place: Place, repository: Path, tmp_path: Path) -> None:
    (repository / "link").symlink_to("/etc/passwd")
    commit(repository, files())
    before = state(place)
    with pytest.raises(Refused, match="link or a device: link"), install.planned(place, Git(repository.as_uri())):
        pass
    (repository / "link").unlink()
    other = tmp_path / "other"
    other.mkdir()
    git("init", "-q", at=other)
    commit(other, {"a": "a"})
    git("submodule", "add", "-q", other.as_uri(), "vendor", at=repository)
    commit(repository, {})
    with (
        pytest.raises(Refused, match=r"another repository \(vendor\)"),
        install.planned(place, Git(repository.as_uri())),
    ):
        pass
    with (
        pytest.raises(Refused, match="git could not fetch it"),
        install.planned(place, Git(repository.as_uri(), "nosuchref")),
    ):
        pass
    assert state(place) == before


@pytest.mark.parametrize(
    "url",
    [
        "ext::sh -c touch% /tmp/x",
        "ext::https://example.org/x",
        "file:///etc",
        "ssh://-oProxyCommand=x/y",
        "git@example.org:you/it",
        "http://example.org/you/it",
        "git://example.org/you/it",
        "fd::17/x",
        "transport::address://x",
        "https://",
        "https://-x/y",
        "https://name:secret@example.org/it",
        "https://example.org/it\n--upload-pack=x",
        "https://example.org/a b",
        "https://example.org/it?x=1",
        "HTTPS://[::1",
    ],
)
def test_strange_addresses_are_refused(url: str) -> None:
    with pytest.raises(Refused) as caught:
        source_of(url)
    assert "secret" not in str(caught.value)


def test_usual_addresses_are_taken() -> None:
    for url in ("https://example.org/you/it", "https://example.org:8443/you/it.git", "https://[::1]/it"):
        assert source_of(url, "v1.0") == Git(url, "v1.0")
        assert checked_url(url) == url


@pytest.mark.parametrize("ref", ["--upload-pack=x", "-f", "a..b", "a b", "x;y", "a/", "a.lock", "@{-1}", "x" * 300])
def test_a_ref_is_no_option(ref: str) -> None:
    with pytest.raises(Refused):
        checked_ref(ref)


# ---------------------------------------------------------------- harmful zips and folders


def entry(name: str, mode: int = 0o100644) -> zipfile.ZipInfo:
    info = zipfile.ZipInfo(name)
    info.create_system, info.external_attr = 3, mode << 16
    return info


@pytest.mark.parametrize(
    ("extra", "said"),
    [
        ([(entry("../out.py"), "x")], "bad name"),
        ([(entry("a/../../out.py"), "x")], "bad name"),
        ([(entry("/etc/out.py"), "x")], "bad name"),
        ([(entry("C:/out.py"), "x")], "bad name"),
        ([(entry("a\\..\\out.py"), "x")], "bad name"),
        ([(entry("a//b.py"), "x")], "bad name"),
        ([(entry("a\x01b.py"), "x")], "bad name"),
        ([(entry("x" * 300), "x")], "bad name"),
        ([(entry("aux.py"), "x")], "Windows"),
        ([(entry("link", 0o120777), "/etc/passwd")], "link or a device: link"),
        ([(entry("pipe", 0o010644), "")], "link or a device: pipe"),
        ([(entry("A.py"), "1"), (entry("a.py"), "2")], "holds a.py twice"),
        ([(entry("data"), "x")], "two things of one name"),
        ([(entry("bomb"), "0" * 40_000_000)], "too much"),
        ([(entry(f"f{number}"), "") for number in range(2001)], "at most 2000"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_harmful_zip_is_refused(
    place: Place, tmp_path: Path, extra: list[tuple[zipfile.ZipInfo, str]], said: str
) -> None:
    path = zipped(tmp_path / "hello.zip", files())
    with zipfile.ZipFile(path, "a") as file:
        for info, text in extra:
            file.writestr(info, text, zipfile.ZIP_DEFLATED)
    before = state(place)
    with pytest.raises(Refused, match=said), install.planned(place, Zip(path)):
        pass
    assert state(place) == before
    assert not (tmp_path / "out.py").exists()


def test_a_zip_that_lies_about_its_size(place: Place, tmp_path: Path) -> None:
    path = zipped(tmp_path / "hello.zip", {**files(), "lie": "0" * 5000})
    data = path.read_bytes().replace((5000).to_bytes(4, "little"), (5).to_bytes(4, "little"))
    path.write_bytes(data)
    with pytest.raises(Refused, match=r"not a zip that can be read|holds more"), install.planned(place, Zip(path)):
        pass


@pytest.mark.parametrize("data", [b"", b"no zip", b"PK\x03\x04" + b"\0" * 40])
def test_what_is_no_zip(place: Place, tmp_path: Path, data: bytes) -> None:
    (tmp_path / "x.zip").write_bytes(data)
    with pytest.raises(Refused, match="not a zip"), install.planned(place, source_of(str(tmp_path / "x.zip"))):
        pass


@pytest.mark.skipif(os.name == "nt", reason="symbolic links")
def test_a_folder_with_links_is_refused(place: Place, tmp_path: Path) -> None:
    source = folder(tmp_path / "source", files())
    (source / "data" / "link").symlink_to("/etc")
    with pytest.raises(Refused, match="link or a device: data/link"), install.planned(place, Folder(source)):
        pass
    assert state(place) == {}


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ({"README.md": "x"}, "no extension.toml in it"),
        ({"a/extension.toml": "x", "b/extension.toml": "x"}, "no extension.toml in it"),
        ({"extension.toml": 'id = "torn'}, "not TOML"),
        (files(toml="frobnicate = 1\n"), "frobnicate"),
        (files(id="../x"), "not an id"),
        (files(id="lora"), "one of Atelier's own"),
        (files(version="new"), "not a version"),
        (files(toml="api = 99\n"), "extension API 99"),
        (files(toml='atelier = ">=99"\n'), "made for Atelier >=99"),
        (files(toml='depends = ["other"]\n'), "needs the extension other; install that first"),
        ({"extension.toml": files()["extension.toml"]}, "no __init__.py"),
    ],
)
def test_what_is_no_extension_is_refused(place: Place, tmp_path: Path, content: dict[str, str], said: str) -> None:
    source = folder(tmp_path / "source", content)
    with pytest.raises(AtelierError, match=said), install.planned(place, Folder(source)):
        pass
    assert state(place) == {}


def test_what_cannot_be_imported_is_refused(place: Place, tmp_path: Path) -> None:
    source = folder(tmp_path / "source", files(code="1 / 0"))
    with pytest.raises(Refused, match=r"hello 1\.0 does not work here: ZeroDivisionError"):
        put(place, Folder(source))
    assert state(place) == {}


# ---------------------------------------------------------------- all or nothing


def test_two_of_one_id(place: Place, tmp_path: Path, trusting: None) -> None:
    source = Folder(folder(tmp_path / "source", files()))
    put(place, source)
    with pytest.raises(Conflict, match="installed already"), install.planned(place, source):
        pass
    other = Folder(folder(tmp_path / "other", files(id="other")))
    with pytest.raises(Refused, match="is the extension other, not hello"):
        renew(place, source=other)


def test_a_record_that_cannot_be_written_leaves_all_as_it_was(
    place: Place, tmp_path: Path, trusting: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = Folder(folder(tmp_path / "source", files()))

    def full(*_: object) -> None:
        raise StorageFull("the disk is full")

    with monkeypatch.context() as patch:
        patch.setattr(Record, "write", full)
        with pytest.raises(StorageFull):
            put(place, source)
    assert state(place) == {}
    put(place, source)
    for version in ("2.0", "3.0"):
        folder(tmp_path / "source", files(version=version))
        renew(place)
    before = state(place)
    folder(tmp_path / "source", files(version="4.0"))
    monkeypatch.setattr(Record, "write", full)
    for action in (
        lambda: renew(place),
        lambda: install.roll_back(place, "hello"),
        lambda: install.remove(place, "hello"),
    ):
        with pytest.raises(StorageFull):
            action()
        assert state(place) == before


def test_a_move_that_fails_is_undone(
    place: Place, tmp_path: Path, trusting: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(place, Folder(folder(tmp_path / "source", files())))
    before = state(place)
    folder(tmp_path / "source", files(version="2.0"))
    replace = os.replace

    def stubborn(old: Path, new: Path) -> None:
        if Path(new) == place.extensions / "hello" and ".staging" in str(old):
            raise PermissionError(13, "Permission denied", str(new))
        replace(old, new)

    monkeypatch.setattr(os, "replace", stubborn)
    with pytest.raises(StorageFull, match="Permission denied"):
        renew(place)
    assert state(place) == before


def test_one_installation_at_a_time(place: Place, tmp_path: Path, trusting: None) -> None:
    source = Folder(folder(tmp_path / "source", files()))
    with locks.held(place.data / install.LOCK), pytest.raises(Conflict, match="another installation"):
        put(place, source)
    with install.planned(place, source) as plan:
        put(place, source)  # somebody was faster
        with pytest.raises(Conflict, match="changed in the meantime"):
            install.apply(plan)


def test_changes_of_the_owner_are_kept(place: Place, tmp_path: Path, trusting: None) -> None:
    put(place, Folder(folder(tmp_path / "source", files())))
    (place.extensions / "hello" / "data" / "words.txt").write_text("mine")
    folder(tmp_path / "source", files(version="2.0"))
    assert renew(place).is_edited
    install.roll_back(place, "hello")
    assert (place.extensions / "hello" / "data" / "words.txt").read_text() == "mine"


def test_what_a_killed_installation_left_is_swept(place: Place, tmp_path: Path) -> None:
    left = folder(place.extensions / ".staging-dead", {"x": "x"})
    os.utime(left, (1, 1))
    with install.planned(place, Folder(folder(tmp_path / "source", files()))):
        assert not left.exists()
    assert registry.load(place.extensions).broken == ()


# ---------------------------------------------------------------- packages


@pytest.fixture
def wheels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The only packages that uv can see."""
    monkeypatch.setenv("UV_OFFLINE", "1")
    monkeypatch.setenv("UV_NO_CACHE", "1")
    monkeypatch.setenv("UV_FIND_LINKS", str(tmp_path / "wheels"))
    monkeypatch.setattr(sys, "path", list(sys.path))
    (tmp_path / "wheels").mkdir()
    return tmp_path / "wheels"


def ours() -> dict[str, str]:
    return {
        d.name: d.version for d in importlib.metadata.distributions(path=[p for p in sys.path if "site-packages" in p])
    }


def test_packages_go_to_the_extension_alone(place: Place, tmp_path: Path, wheels: Path) -> None:
    wheel(wheels, "attire", "1.1", "buckle>=1", "numpy")
    wheel(wheels, "buckle", "1.0")
    before = ours()
    wheel(wheels, "attire", "1.0")
    code = "import attire, buckle\nassert attire.version == '1.1'\n" + CODE
    source = folder(tmp_path / "source", files(toml='requires = ["attire>=1", "numpy>=1"]\n', code=code))
    plan = put(place, Folder(source))
    assert plan.packages == ("attire==1.1", "buckle==1.0")
    assert plan.asks == ("brings the packages attire==1.1, buckle==1.0",)
    assert ours() == before
    assert [e.id for e in registry.load(place.extensions, place.data).extensions] == ["hello"]
    with install.planned_update(place, "hello") as plan:
        assert not plan.is_news


def test_what_we_have_is_not_looked_up(
    place: Place, tmp_path: Path, trusting: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(packages.subprocess, "run", None)
    toml = 'requires = ["numpy>=1", "Pillow", "nothere; python_version < \'3\'"]\n'
    assert put(place, Folder(folder(tmp_path / "source", files(toml=toml)))).packages == ()


def test_conflicts_name_the_packages_and_both_owners(place: Place, tmp_path: Path, wheels: Path) -> None:
    wheel(wheels, "attire", "1.0")
    wheel(wheels, "attire", "2.0")
    wheel(wheels, "old", "1.0", "numpy<2")
    put(place, Folder(folder(tmp_path / "a", files("a", 'requires = ["attire<2"]\n'))))
    before = state(place)
    numpy = importlib.metadata.version("numpy")
    for requires, said in {
        "numpy<2": f"b needs numpy<2, Atelier has numpy {numpy}",
        "old": f"b needs another numpy, Atelier has numpy {numpy}",
        "attire>=2": "b needs attire>=2, the extension a has attire 1.0",
        "nowhere": "the packages of b cannot be",
    }.items():
        source = folder(tmp_path / "b", files("b", f'requires = ["{requires}"]\n'))
        with pytest.raises(AtelierError) as caught, install.planned(place, Folder(source)):
            pass
        assert said in str(caught.value)
        assert isinstance(caught.value, Refused if requires == "nowhere" else Conflict)
    assert state(place) == before


def test_no_code_of_a_package_runs(place: Place, tmp_path: Path, wheels: Path) -> None:
    ran = tmp_path / "ran"
    setup = f"import pathlib\npathlib.Path({str(ran)!r}).touch()\nimport setuptools\nsetuptools.setup(name='src')\n"
    archive = wheels / "src-1.zip"
    zipped(archive, {"src-1/setup.py": setup, "src-1/PKG-INFO": "Metadata-Version: 1.0\nName: src\nVersion: 1\n"})
    source = folder(tmp_path / "source", files(toml='requires = ["src"]\n'))
    with pytest.raises(Refused, match="no usable wheels"), install.planned(place, Folder(source)):
        pass
    assert not ran.exists()


def test_an_extension_made_here_keeps_its_files_and_gets_its_packages(
    place: Place, wheels: Path, trusting: None
) -> None:
    wheel(wheels, "attire", "1.0")
    path = folder(place.extensions / "mine", {**files("mine", 'requires = ["attire"]\n'), ".git/config": "x"})
    assert "needs attire" in registry.load(place.extensions).broken[0].reason
    assert renew(place, "mine").is_by_hand
    assert registry.load(place.extensions).broken == ()
    assert (path / ".git" / "config").read_text() == "x"
    assert Record.read(place.data).installed == {}


# ---------------------------------------------------------------- removing, disabling, listing


def test_a_removed_extension_lies_in_the_trash(place: Place, tmp_path: Path, trusting: None) -> None:
    put(place, Folder(folder(tmp_path / "source", files())))
    put(place, Folder(folder(tmp_path / "other", files("other", 'depends = ["hello"]\n'))))
    with pytest.raises(Conflict, match="other cannot work without hello"):
        install.remove(place, "hello")
    install.remove(place, "other")
    trash = install.remove(place, "hello")
    assert (trash / "__init__.py").read_text() == CODE
    assert list(place.extensions.glob("[a-z]*")) == []
    assert Record.read(place.data) == Record()


def test_what_is_ours_or_nowhere_cannot_be_removed(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    folder(place.extensions / "lora", files("lora"))
    monkeypatch.setattr(manifest, "HOME", place.extensions.resolve())
    for action in (install.remove, install.planned_update, install.roll_back):
        with pytest.raises(Refused, match="belongs to Atelier"):
            action(place, "lora")
        for id in ("nobody", "..", "../data", ".previous", ""):
            with pytest.raises(NotFound):
                action(place, id)
    install.disable(place, "lora")
    assert registry.load(place.extensions, place.data).extensions == ()


def test_an_extension_that_hung_is_tried_again_when_enabled(place: Place) -> None:
    folder(place.extensions / "hello", files())
    tried = {"hello": (importing.stamp(place.extensions / "hello"), "its import did not end within 10 seconds")}
    (place.data / registry.TRIED).write_text(json.dumps(tried))
    assert registry.load(place.extensions, place.data).broken[0].reason == tried["hello"][1]
    install.enable(place, "hello")
    assert registry.load(place.extensions, place.data).broken == ()


def test_the_list_says_where_from_and_what_is_wrong(place: Place, tmp_path: Path, trusting: None) -> None:
    put(place, Zip(zipped(tmp_path / "hello.zip", files())))
    folder(place.extensions / "mine", files("mine"))
    folder(place.extensions / "odd", {"extension.toml": "x"})
    folder(place.extensions / "slip", files("slip", code="1 / 0"))
    install.disable(place, "mine")
    listed = install.listing(place, registry.load(place.extensions, place.data))
    assert [(e.id, e.version, e.state, e.origin, e.problem.split(":")[0]) for e in listed] == [
        ("hello", "1.0", "on", "hello.zip", ""),
        ("mine", "1.0", "off", "put here by hand", ""),
        ("odd", "", "broken", "put here by hand", "extension.toml is not TOML"),
        ("slip", "1.0", "broken", "put here by hand", "ZeroDivisionError"),
    ]


# ---------------------------------------------------------------- who may


@pytest.mark.parametrize("host", ["127.0.0.1", "::1", "localhost", "0.0.0.0", "::", "192.168.1.5"])
@pytest.mark.parametrize("allowed", [False, True])
@pytest.mark.parametrize("is_admin", [False, True])
def test_who_may_install_from_the_page(tmp_path: Path, host: str, allowed: bool, is_admin: bool) -> None:
    settings = Settings(host=host, allow_extension_install=allowed, data_dir=tmp_path)
    if is_admin and (host in ("127.0.0.1", "::1", "localhost") or allowed):
        install.permit(settings, is_admin)
    else:
        with pytest.raises(Refused):
            install.permit(settings, is_admin)


def test_a_running_server_cannot_be_told_to_allow_it(tmp_path: Path) -> None:
    settings = Settings(data_dir=tmp_path)
    assert settings.allow_extension_install is False
    with pytest.raises(ValidationError):
        settings.allow_extension_install = True


# ---------------------------------------------------------------- the catalogue


CATALOGUE = {
    "extensions": [
        {"id": "film-grain", "title": "Film grain", "url": "https://example.org/g", "ref": "v1", "tags": ["analogue"]},
        {"id": "halo", "title": "Halo", "url": "https://example.org/h", "description": "Grain of light", "stars": 3},
    ],
    "made": "today",
}


def test_the_catalogue_is_searched(tmp_path: Path) -> None:
    path = tmp_path / "index.json"
    path.write_text(json.dumps(CATALOGUE))
    index = read_index(str(path))
    assert [e.id for e in index.search("grain")] == ["film-grain", "halo"]
    assert [e.id for e in index.search("LIGHT grain")] == ["halo"]
    assert [e.id for e in index.search()] == ["film-grain", "halo"]
    assert index.find("film-grain").source == Git("https://example.org/g", "v1")
    with pytest.raises(NotFound, match="did you mean film-grain"):
        index.find("film_grain")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{", "damaged"),
        ("[]", "damaged"),
        ('{"extensions": [{"id": "x"}]}', "extensions.0.title"),
        ('{"extensions": [{"id": "x", "title": "x", "url": "ext::sh"}]}', "only addresses that begin with https"),
        (
            '{"extensions": [{"id": "x", "title": "x", "url": "https://a/b", "ref": "--x"}]}',
            "not the name of a branch",
        ),
        ('{"extensions": [{"id": "../x", "title": "x", "url": "https://a/b"}]}', "not an id"),
        (" " * (extension_index.MAX_BYTES + 1), "larger than"),
    ],
)
def test_a_bad_catalogue_is_refused(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "index.json"
    path.write_text(text)
    with pytest.raises(Refused, match=said):
        read_index(str(path))


def test_a_catalogue_at_an_address(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    class Opener:
        def open(self, url: str, timeout: float) -> io.BytesIO:
            asked.append(url)
            return io.BytesIO(json.dumps(CATALOGUE).encode())

    monkeypatch.setattr(extension_index.urllib.request, "build_opener", lambda *_: Opener())
    assert len(read_index("https://example.org/index.json").extensions) == 2
    for url in ("http://example.org/index.json", "file:///etc/passwd", "ftp://example.org/x"):
        with pytest.raises(Refused, match="https"):
            read_index(url)
    assert asked == ["https://example.org/index.json"]
    for nowhere in ("", "/no/such/file"):
        with pytest.raises(NotFound):
            read_index(nowhere)


# ---------------------------------------------------------------- the command line


@pytest.fixture
def atelier(place: Place, monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """Runs `extensions ...`; what it printed, after the exit code if that is not 0."""
    monkeypatch.setenv("COLUMNS", "300")
    folders = ["--data-dir", str(place.data), "--extensions-dir", str(place.extensions)]

    def run(*arguments: str) -> str:
        result = CliRunner().invoke(extensions_cli.app, [*folders, *arguments])
        assert result.exception is None or isinstance(result.exception, SystemExit)
        return f"{result.exit_code or ''}{result.output}"

    return run


def test_install_list_update_rollback_remove(
    atelier: Callable[..., str], place: Place, tmp_path: Path, trusting: None
) -> None:
    source = folder(tmp_path / "source", files(toml='capabilities = ["files"]\n'))
    said = atelier("install", str(source))
    assert "It reads or writes files" in said
    assert said.startswith("1")
    assert "nobody to ask" in said
    assert state(place) == {}
    assert "Hello 1.0 is installed" in atelier("install", str(source), "--yes")
    assert json.loads(atelier("list", "--json"))[0]["state"] == "on"
    folder(source, files(version="1.1"))
    said = atelier("update", "hello", "-y")
    assert "version: 1.0 -> 1.1" in said
    assert "capabilities: files -> none" in said
    assert "up to date" in atelier("update", "hello", "-y")
    assert "hello is 1.0 again" in atelier("rollback", "hello")
    assert "off" in atelier("disable", "hello")
    assert "hello   1.0       off" in atelier("list")
    atelier("enable", "hello")
    assert "hello is removed" in atelier("remove", "hello")
    assert "There are no extensions" in atelier("list")


def test_what_goes_wrong_is_one_line(atelier: Callable[..., str], tmp_path: Path) -> None:
    for arguments, said in {
        ("install", "nowhere"): "neither a git address",
        ("install", "ext::sh -c x"): "only addresses that begin with https",
        ("remove", "nobody"): "there is no extension 'nobody' here",
        ("rollback", "nobody"): "no earlier version",
        ("search", "x"): "no catalogue is set",
        ("new", "Bad Name"): "is not an id",
    }.items():
        output = atelier(*arguments)
        assert output[0] == "1"
        assert said in output
        assert output.count("\n") == 1


def test_the_catalogue_from_the_command_line(
    atelier: Callable[..., str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "index.json").write_text(json.dumps(CATALOGUE))
    monkeypatch.setenv("ATELIER_EXTENSION_INDEX", str(tmp_path / "index.json"))
    assert "Film grain" in atelier("search", "analogue")
    assert "Nothing" in atelier("search", "zebra")
    assert "is not in the catalogue" in atelier("install", "film_grain")
