"""Extensions are found in folders; a broken one is listed and never fatal."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from backend import importing, locks, manifest, packages, registry
from backend.manifest import ManifestError, Record, read_manifest
from backend.registry import GUARD, Registry, load
from backend.settings import ROOT
from tests.waiting import least_cpu

GOOD = """
from backend.extension import Extension
class E(Extension):
    order = {order}
"""
IN_A_TRIAL = 'sys.modules["__main__"].__spec__ and sys.modules["__main__"].__spec__.name == "backend.importing"'


def write(folder: Path, id: str, code: str | None = None, toml: str | None = None, order: int = 100) -> Path:
    """An extension; `toml` replaces its manifest, or is added to it if it begins with a plus."""
    path = folder / id
    path.mkdir(parents=True)
    usual = f'id = "{id}"\nversion = "1.0"\ntitle = "T"\n'
    text = usual + toml[1:] if toml and toml.startswith("+") else toml
    (path / "extension.toml").write_text(usual if text is None else text)
    (path / "__init__.py").write_text(GOOD.format(order=order) if code is None else code)
    return path


def ids(registry: Registry) -> list[str]:
    return [e.id for e in registry.extensions]


def reasons(registry: Registry) -> dict[str, str]:
    return {b.id: b.reason for b in registry.broken}


# ---------------------------------------------------------------- finding and checking


def test_extensions_are_ordered_by_order_then_id(tmp_path: Path) -> None:
    write(tmp_path, "zoo", order=1)
    write(tmp_path, "bee")
    write(tmp_path, "ant")
    assert ids(load(tmp_path)) == ["zoo", "ant", "bee"]
    assert [m.id for m in load(tmp_path).manifests] == ["zoo", "ant", "bee"]


def test_an_extension_is_told_of_its_folders(tmp_path: Path) -> None:
    write(tmp_path / "e", "ant")
    (ant,) = load(tmp_path / "e", tmp_path / "data", models=tmp_path / "models").extensions
    assert (ant.models, ant.data) == (tmp_path / "models", tmp_path / "data" / "extensions" / "ant")
    (again,) = load(tmp_path / "e", only=["ant"], kept=tmp_path / "data" / "extensions").extensions
    assert again.data == ant.data
    assert not ant.data.exists()


def test_extensions_offer_choices(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write(tmp_path, "ant", GOOD.format(order=1) + "    def choices(self): return {'sizes': [(1, 'S'), (2, 'L')]}")
    write(tmp_path, "bee", GOOD.format(order=2) + "    def choices(self): return {'sizes': 1 / 0}")
    write(tmp_path, "cow", GOOD.format(order=3) + "    def choices(self): return {'sizes': [1]}")
    write(tmp_path, "dog")
    assert load(tmp_path).choices() == {"ant": {"sizes": [(1, "S"), (2, "L")]}}
    assert [record.args for record in caplog.records if "choose from" in record.message] == [("bee",), ("cow",)]


def test_broken_extensions_are_listed_with_their_reason(tmp_path: Path) -> None:
    write(tmp_path, "good")
    write(tmp_path, "raises", "\n\n1 / 0")
    write(tmp_path, "lacks", "import torchx")
    write(tmp_path, "exits", "import sys\nsys.exit(3)")
    write(tmp_path, "slip", "def x(:")
    write(tmp_path, "empty", "x = 1")
    write(tmp_path, "twins", GOOD.format(order=1) + GOOD.format(order=1).replace("class E", "class F"))
    write(tmp_path, "liar", GOOD.format(order=1) + "    id = 'other'")
    write(tmp_path, "renamed", toml='id = "good"\nversion = "1"\ntitle = "T"\n')
    write(tmp_path, "bare").joinpath("extension.toml").unlink()
    write(tmp_path, "hollow").joinpath("__init__.py").unlink()
    found = load(tmp_path)
    assert ids(found) == ["good"]
    assert reasons(found) == {
        "raises": "ZeroDivisionError: division by zero (__init__.py, line 3)",
        "lacks": "ModuleNotFoundError: No module named 'torchx' (__init__.py, line 1)",
        "exits": "SystemExit: 3 (__init__.py, line 2)",
        "slip": reasons(found)["slip"],
        "empty": "__init__.py must hold one subclass of Extension, it holds 0",
        "twins": "__init__.py must hold one subclass of Extension, it holds 2",
        "liar": "the class says id = 'other', extension.toml 'liar'",
        "renamed": "extension.toml says id = 'good', but the folder is 'renamed' (good is another extension here)",
        "bare": "there is no extension.toml",
        "hollow": "there is no __init__.py",
    }
    assert reasons(found)["slip"].startswith("SyntaxError")
    assert "extensions.raises" not in sys.modules


@pytest.mark.parametrize(
    ("toml", "said"),
    [
        ('id = "torn\n', "not TOML"),
        ("+frobnicate = true\n", "frobnicate is not a key of it"),
        ('+license = "MIT"\n', "license is not a key of it; did you mean licence?"),
        ('+require = ["numpy"]\n', "did you mean requires?"),
        ('id = "x"\nversion = 1.0\ntitle = "T"\n', "version: should be a valid string"),
        ('id = "x"\nversion = "latest"\ntitle = "T"\n', "'latest' is not a version"),
        ('id = "../x"\nversion = "1"\ntitle = "T"\n', "'../x' is not an id"),
        ('id = "X"\nversion = "1"\ntitle = "T"\n', "'X' is not an id"),
        ('id = "x"\n', "version is missing; title is missing"),
        ('+requires = ["numpy >"]\n', "does not name a package"),
        ('+requires = ["a @ https://example.org/a.whl"]\n', "only packages of the index"),
        ('+atelier = "new"\n', "is not a range of versions"),
        ('+capabilities = ["everything"]\n', "capabilities"),
        ('+routes = "/api"\n', "'/api' is not free"),
        ('+homepage = "javascript:alert(1)"\n', "homepage"),
        ("+" + "#" * 70_000, "larger than 64 KB"),
    ],
)
def test_a_wrong_manifest_says_what_is_wrong(tmp_path: Path, toml: str, said: str) -> None:
    write(tmp_path, "x", toml=toml)
    with pytest.raises(ManifestError) as caught:
        read_manifest(tmp_path / "x")
    assert said in str(caught.value)
    assert said in reasons(load(tmp_path))["x"]


def test_a_manifest_of_other_bytes_is_refused(tmp_path: Path) -> None:
    write(tmp_path, "x").joinpath("extension.toml").write_bytes(b'id = "\xff"')
    assert "not UTF-8" in reasons(load(tmp_path))["x"]


@pytest.mark.parametrize(
    ("toml", "said"),
    [
        ("+api = 99\n", "extension API 99, this Atelier has 1: update Atelier"),
        ("+api = 0\n", "ask its author"),
        ('+atelier = ">=99"\n', "made for Atelier >=99"),
    ],
)
def test_an_extension_for_another_atelier_is_not_run(tmp_path: Path, toml: str, said: str) -> None:
    write(tmp_path, "x", "raise AssertionError", toml)
    assert said in reasons(load(tmp_path))["x"]


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ("def finish(self, pictures): ...", "finish must take (self, run, params, pictures)"),
        ("Params = dict", "Params must be a subclass"),
        ("order = 'first'", "order must be a whole number"),
        ("prompt_tag = '<x>'", "prompt_tag must be a word"),
    ],
)
def test_a_class_that_cannot_work_is_broken(tmp_path: Path, body: str, said: str) -> None:
    write(tmp_path, "x", f"from backend.extension import Extension\nclass E(Extension):\n    {body}\n")
    assert said in reasons(load(tmp_path))["x"]


def test_two_extensions_for_one_tag_or_prefix(tmp_path: Path) -> None:
    tag = "\n    prompt_tag = 'glow'\n"
    write(tmp_path, "a", GOOD.format(order=1) + tag, '+routes = "/glow"\n')
    write(tmp_path, "b", GOOD.format(order=1) + tag)
    write(tmp_path, "c", toml='+routes = "/glow"\n')
    found = load(tmp_path)
    assert ids(found) == ["a"]
    assert reasons(found) == {
        "b": "wants the tag <glow:...>, which a has",
        "c": "wants the routes /glow, which a has",
    }


def test_what_is_no_extension_is_passed_over(tmp_path: Path) -> None:
    assert load(tmp_path / "none") == Registry()
    (tmp_path / "left-over" / "__pycache__").mkdir(parents=True)
    (tmp_path / ".previous" / "x").mkdir(parents=True)
    (tmp_path / "README.md").write_text("hello")
    assert load(tmp_path) == Registry()


def test_an_extension_imports_its_own_modules(tmp_path: Path) -> None:
    code = (
        GOOD.format(order=1)
        + "    def prepare(self, request, params, images):\n        from .net import up\n        return up\n"
    )
    path = write(tmp_path, "my-thing", code)
    (path / "net.py").write_text("up = 7\n")
    extension = load(tmp_path).extensions[0]
    assert extension.prepare(None, None, None) == 7  # type: ignore[arg-type, comparison-overlap]
    assert extension.title == "T"


def test_a_missing_package_is_named(tmp_path: Path) -> None:
    write(tmp_path, "x", toml='+requires = ["numpy>=1", "nosuchpackage>=2"]\n')
    assert reasons(load(tmp_path))["x"].startswith("needs nosuchpackage>=2; `python app.py extensions update x`")


def test_own_packages_come_after_ours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", list(sys.path))
    own = write(tmp_path, "x", "import numpy, onlyhere\n" + GOOD.format(order=1)) / packages.PACKAGES
    own.mkdir()
    (own / "onlyhere.py").write_text("")
    (own / "numpy.py").write_text("raise AssertionError")
    assert ids(load(tmp_path)) == ["x"]
    assert sys.path[-1] == str(own)


# ---------------------------------------------------------------- depending on one another


def test_what_is_needed_comes_first(tmp_path: Path) -> None:
    write(tmp_path, "a", toml='+depends = ["c"]\nafter = ["b"]\n', order=1)
    write(tmp_path, "b")
    write(tmp_path, "c")
    assert ids(load(tmp_path)) == ["b", "c", "a"]


def test_a_wish_for_order_never_breaks_anything(tmp_path: Path) -> None:
    write(tmp_path, "a", toml='+after = ["b", "nobody"]\n')
    write(tmp_path, "b", toml='+after = ["a"]\n')
    assert ids(load(tmp_path)) == ["a", "b"]


def test_what_is_needed_must_work(tmp_path: Path) -> None:
    write(tmp_path, "bad", "1 / 0")
    write(tmp_path, "off")
    for id, need in {"a": "nobody", "b": "bad", "c": "b", "d": "off", "e": "f", "f": "e", "g": "e"}.items():
        write(tmp_path / "x", id, toml=f'+depends = ["{need}"]\n').rename(tmp_path / id)
    Record().with_disabled("off").write(tmp_path / "data")
    (tmp_path / "x").rmdir()
    found = load(tmp_path, tmp_path / "data")
    assert ids(found) == []
    assert {id: said for id, said in reasons(found).items() if id in "abcdefg"} == {
        "a": "needs the extension nobody, which is not installed",
        "b": "needs the extension bad, which is broken",
        "c": "needs the extension b, which is broken",
        "d": "needs the extension off, which is off",
        "e": "depends on itself: e -> f -> e",
        "f": "depends on itself: e -> f -> e",
        "g": "needs the extension e, which is broken",
    }


# ---------------------------------------------------------------- strangers


@pytest.fixture
def place(tmp_path: Path) -> tuple[Path, Path]:
    (tmp_path / "extensions").mkdir()
    return tmp_path / "extensions", tmp_path / "data"


@pytest.fixture
def untried(monkeypatch: pytest.MonkeyPatch) -> None:
    """For what is not about trying strangers: that takes a process."""
    monkeypatch.setattr(importing, "probe", lambda folders, limit: dict.fromkeys(folders, importing.Trial()))


def no_process(*_: object, **__: object) -> None:
    raise AssertionError("a process was started")


def test_an_import_that_hangs_or_ends_the_process(place: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    write(place[0], "good", "print('no answer')\n" + GOOD.format(order=1))
    write(place[0], "loops", "while True:\n    try:\n        x = 1\n    except BaseException:\n        pass\n")
    write(place[0], "exits", "import os\nos._exit(3)")
    write(place[0], "interrupts", "raise KeyboardInterrupt")
    write(place[0], "raises", "1 / 0")
    found = load(*place, limit=2)
    assert ids(found) == ["good"]
    assert reasons(found) == {
        "loops": "its import did not end within 2 seconds",
        "exits": "its import ends the process with exit code 3",
        "interrupts": "its import raises KeyboardInterrupt (__init__.py, line 1)",
        "raises": "ZeroDivisionError: division by zero (__init__.py, line 1)",
    }
    monkeypatch.setattr(importing.subprocess, "Popen", no_process)
    assert load(*place) == found or reasons(load(*place)) == reasons(found)  # remembered


@pytest.mark.skipif(os.name == "nt", reason="signals")
def test_a_changed_extension_is_tried_again(place: tuple[Path, Path]) -> None:
    path = write(place[0], "x", "import os, signal\nos.kill(os.getpid(), signal.SIGKILL)")
    assert reasons(load(*place)) == {"x": "its import ends the process with SIGKILL"}
    (path / "__init__.py").write_text(GOOD.format(order=1))
    assert ids(load(*place)) == ["x"]


def test_a_disabled_extension_is_not_run(place: tuple[Path, Path]) -> None:
    write(place[0], "x", "import os\nos._exit(3)")
    Record().with_disabled("x").write(place[1])
    found = load(*place)
    assert (ids(found), reasons(found), [m.id for m in found.idle]) == ([], {}, ["x"])


def test_only_some_are_loaded_again(tmp_path: Path) -> None:
    write(tmp_path, "a")
    write(tmp_path, "b", "1 / 0")
    write(tmp_path, "c", toml="x")
    found = load(tmp_path, only={"a"})
    assert (ids(found), reasons(found)) == (["a"], {})


@pytest.mark.skipif(os.name == "nt", reason="signals")
def test_the_process_is_left_as_it_was(tmp_path: Path) -> None:
    handler, folder = signal.getsignal(signal.SIGINT), os.getcwd()
    code = "import os, signal\nsignal.signal(signal.SIGINT, signal.SIG_IGN)\nos.chdir('/')\n"
    write(tmp_path, "x", code + GOOD.format(order=1))
    assert ids(load(tmp_path)) == ["x"]
    assert (signal.getsignal(signal.SIGINT), os.getcwd()) == (handler, folder)


# ---------------------------------------------------------------- safe mode


@pytest.fixture
def own(place: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """`lora` beside the others; calling it makes this place Atelier's own."""
    write(place[0], "lora")
    return lambda: monkeypatch.setattr(manifest, "HOME", place[0].resolve())


def test_safe_mode_loads_the_built_in_ones(place: tuple[Path, Path], own: Callable[[], None]) -> None:
    write(place[0], "x", "1 / 0")
    own()
    found = load(*place, safe_mode=True)
    assert (ids(found), reasons(found), [m.id for m in found.idle]) == (["lora"], {}, ["x"])
    assert found.notice == "Safe mode, as asked for."


def test_a_name_does_not_make_an_extension_built_in(place: tuple[Path, Path], own: Callable[[], None]) -> None:
    assert ids(load(*place, safe_mode=True)) == []
    own()
    assert ids(load(*place, safe_mode=True)) == ["lora"]


def test_after_a_start_that_died_comes_safe_mode(place: tuple[Path, Path], own: Callable[[], None]) -> None:
    own()
    write(place[0], "nice")
    write(place[0], "evil", f"import os, sys\nif not ({IN_A_TRIAL}):\n    os._exit(9)\n" + GOOD.format(order=1))
    code = "import sys, pathlib; from backend.registry import load; load(*map(pathlib.Path, sys.argv[1:]))"
    died = subprocess.run([sys.executable, "-c", code, *map(str, place)], cwd=ROOT)
    assert died.returncode == 9
    found = load(*place)
    assert ids(found) == ["lora"]
    assert "while the extension evil was being loaded" in found.notice
    found = load(*place)  # the one after that leaves only the culprit out
    assert (ids(found), [m.id for m in found.idle], found.notice) == (["lora", "nice"], ["evil"], "")
    assert Record.read(place[1]).disabled == {"evil": "the start that loaded it did not survive"}


def test_ctrl_c_while_one_is_imported_counts_as_a_crash(
    place: tuple[Path, Path], untried: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(place[0], "slow")

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(importing, "import_extension", interrupted)
        with pytest.raises(KeyboardInterrupt):
            load(*place)
    assert "slow" in load(*place).notice


def test_a_start_that_still_runs_is_not_blamed(place: tuple[Path, Path], untried: None) -> None:
    write(place[0], "x")
    with locks.held(place[1] / GUARD) as file:
        assert file
        file.write(b"x")
        found = load(*place)
    assert (ids(found), found.notice) == (["x"], "")


def test_a_damaged_record_is_safe_mode(place: tuple[Path, Path], own: Callable[[], None]) -> None:
    own()
    write(place[0], "x")
    place[1].mkdir()
    (place[1] / "extensions.json").write_text('{"disabled": {"x": ')
    (place[1] / GUARD).write_text("x")
    found = load(*place)
    assert ids(found) == ["lora"]
    assert "extensions.json is damaged" in found.notice
    assert (place[1] / "extensions.json").read_text() == '{"disabled": {"x": '


def test_a_damaged_memory_of_trials_is_forgotten(place: tuple[Path, Path], untried: None) -> None:
    write(place[0], "x")
    place[1].mkdir()
    (place[1] / registry.TRIED).write_text(json.dumps({"x": 3}))
    assert ids(load(*place)) == ["x"]


# ---------------------------------------------------------------- speed


def test_a_hundred_extensions_take_less_than_a_second(place: tuple[Path, Path]) -> None:
    for number in range(100):
        write(place[0], f"x{number:02}")
    assert len(load(*place).extensions) == 100  # tries them
    assert least_cpu(lambda: load(*place), 2) < 1
