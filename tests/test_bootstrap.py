"""The first start: real virtual environments and a real pip, with a tiny index on the disk instead of the network."""

import os
import re
import shutil
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from backend import bootstrap

REPOSITORY = Path(__file__).parent.parent
CLI = """
def main() -> None:
    import json, sys, backend.bootstrap as b
    print(json.dumps({"inside": b.is_inside(b.ROOT), "arguments": sys.argv[1:]}))
    sys.exit(7)
"""
UV = """
import os, pathlib, subprocess, sys
arguments = sys.argv[1:]
if arguments == ["--version"]:
    sys.exit(0)
if os.environ.get("UV_SAYS"):
    sys.exit(os.environ["UV_SAYS"])
with open(pathlib.Path(sys.prefix) / "uv.log", "a") as log:
    print(*arguments, file=log)
options = [a for a in arguments if a.startswith("-r") or a.endswith(".txt")]
sys.exit(subprocess.call([sys.executable, "-m", "pip", "install", *options]))
"""
Start = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the only packages to be had: `uv`, a small stand-in that says what it was asked, and `picture`."""
    folder = tmp_path_factory.mktemp("index")
    _wheel(folder, "uv", {"uv/__init__.py": "", "uv/__main__.py": UV})
    _wheel(folder, "picture", {"picture.py": "COLOUR = 'red'\n"})
    return folder


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, index: Path) -> Path:
    """A copy of our start-up files, with a command line that only says where it runs, started once."""
    root = tmp_path_factory.mktemp("made")
    (root / "backend").mkdir(parents=True)
    for name in ("app.py", "backend/__init__.py", "backend/bootstrap.py"):
        shutil.copy(REPOSITORY / name, root / name)
    (root / "backend/cli.py").write_text(CLI)
    (root / "requirements.txt").write_text("picture==1.0  # the one dependency\n")
    first = _start(root, index, "serve", "--port", "8000")
    assert first.stdout == '{"inside": true, "arguments": ["serve", "--port", "8000"]}\n', first.stderr
    assert first.returncode == 7  # the command's own
    assert "[1/3]" in first.stderr
    assert "[3/3]" in first.stderr
    return root


@pytest.fixture
def project(made: Path, tmp_path: Path) -> Path:
    return shutil.copytree(made, tmp_path / "atelier", symlinks=True)


@pytest.fixture
def start(project: Path, index: Path) -> Start:
    return partial(_start, project, index)


def _start(root: Path, index: Path, *arguments: str, **variables: str) -> "subprocess.CompletedProcess[str]":
    """`python app.py` in a terminal without a network."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("PIP_", "UV_", "VIRTUAL_ENV"))}
    environment |= {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(index), "PIP_CONFIG_FILE": os.devnull}
    return subprocess.run(
        [sys.executable, "app.py", *arguments],
        cwd=root,
        env=environment | variables,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=240,
    )


def test_second_start_does_nothing(project: Path, start: Start) -> None:
    began = time.perf_counter()
    second = start()
    assert time.perf_counter() - began < 10  # 0.1 s on an idle machine
    assert second.stderr == ""
    assert second.stdout == '{"inside": true, "arguments": []}\n'


def test_changed_requirements_are_installed(project: Path, start: Start) -> None:
    (project / "requirements.txt").write_bytes(b"picture==1.0  # the one dependency\r\n")
    assert start().stderr == ""  # the same lines, as git writes them on Windows
    (project / "requirements.txt").write_text("picture\n")
    assert "[3/3]" in start().stderr
    assert len((project / ".venv/uv.log").read_text().splitlines()) == 2


def test_killed_in_mid_install_is_repaired(project: Path, start: Start) -> None:
    venv = project / ".venv"
    (venv / "installed-requirements.txt").unlink()
    (venv / "installing").touch()
    assert start().returncode == 7
    assert "--reinstall" in (venv / "uv.log").read_text().splitlines()[-1]
    assert not (venv / "installing").exists()


def test_half_made_venv_is_made_anew(project: Path, start: Start) -> None:
    Path(bootstrap._python_of(project / ".venv")).unlink()
    again = start()
    assert again.stdout.startswith('{"inside": true')
    assert "[1/3]" in again.stderr


def test_folder_that_is_no_venv_is_seen(tmp_path: Path) -> None:
    assert bootstrap._version_of(tmp_path) is None
    (tmp_path / "pyvenv.cfg").write_text("home = /nowhere\n")
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin/python").symlink_to(tmp_path / "gone")
    assert bootstrap._version_of(tmp_path) is None


def test_second_of_two_starts_waits(project: Path) -> None:
    with bootstrap._lock(project / ".venv"):
        command = [sys.executable, "-c", f"import sys; sys.path.insert(0, {str(project)!r}); {WAIT}"]
        waiting = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        assert waiting.stderr is not None
        assert "Another start is installing" in waiting.stderr.readline()
    assert waiting.wait(timeout=60) == 0


WAIT = """
from pathlib import Path
from backend import bootstrap
with bootstrap._lock(bootstrap.ROOT / ".venv"): pass
"""


@pytest.mark.parametrize(
    ("said", "sentence"),
    [
        ("error: failed to write torch: No space left on device (os error 28)", "The disk is full"),
        ("error: dns error: failed to lookup address information", "cannot be reached"),
        ("error: failed to open file: Permission denied (os error 13)", "cannot be written to"),
    ],
)
def test_failure_is_one_sentence_and_the_next_start_repairs(
    project: Path, start: Start, said: str, sentence: str
) -> None:
    (project / ".venv/installed-requirements.txt").unlink()
    failed = start(UV_SAYS=said)
    assert failed.returncode == 1
    last = failed.stderr.splitlines()[-1]
    assert last.startswith("Atelier cannot start.")
    assert sentence in last
    assert "start again" in last
    assert "Traceback" not in failed.stderr
    assert start().returncode == 7


def test_without_network_nothing_hangs(project: Path, start: Start) -> None:
    _remove_uv(project)
    failed = start(PIP_NO_INDEX="0", PIP_FIND_LINKS="", PIP_INDEX_URL="http://127.0.0.1:9/simple", PIP_RETRIES="1")
    assert failed.returncode == 1
    assert "The package index cannot be reached" in failed.stderr.splitlines()[-1], failed.stderr


def test_pip_steps_in_for_uv(project: Path, start: Start, tmp_path: Path) -> None:
    _remove_uv(project)
    (tmp_path / "index").mkdir()
    _wheel(tmp_path / "index", "picture", {"picture.py": ""})
    done = start(PIP_FIND_LINKS=str(tmp_path / "index"))
    assert done.returncode == 7, done.stderr
    assert "[2/3]" in done.stderr


def _remove_uv(project: Path) -> None:
    for path in (project / ".venv").glob("[Ll]ib/**/uv*"):
        shutil.rmtree(path)
    (project / ".venv/installed-requirements.txt").unlink()


def test_what_is_not_to_be_had_is_said(project: Path, start: Start) -> None:
    (project / "requirements.txt").write_text("no-such-package==9\n")
    failed = start()
    assert failed.returncode == 1
    assert "requirements.txt could not be installed" in failed.stderr.splitlines()[-1]
    assert not (project / ".venv/installed-requirements.txt").exists()


@pytest.mark.parametrize("version", [(3, 6), (3, 10), (3, 14)])
def test_wrong_python_is_named(version: tuple[int, int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / ".venv").mkdir()
    monkeypatch.setattr(sys, "version_info", (*version, 0))
    monkeypatch.setattr(bootstrap, "_other_pythons", lambda: iter(()))
    monkeypatch.setattr(bootstrap, "_run", lambda command: (1, "nothing can be fetched"))
    said = rf"needs Python 3\.11 or 3\.12, and this is Python {version[0]}\.{version[1]} .* python3\.12 app\.py"
    with pytest.raises(bootstrap.SetupFailed, match=said):
        bootstrap._make(tmp_path)


def test_another_python_on_the_path_is_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / ".venv").mkdir()
    commands: list[list[str]] = []
    fitting = bootstrap.Interpreter("/usr/bin/python3.12", "/usr", (3, 12))
    monkeypatch.setattr(sys, "version_info", (3, 10, 0))
    monkeypatch.setattr(bootstrap, "_other_pythons", lambda: iter([fitting]))
    monkeypatch.setattr(bootstrap, "_succeeds", lambda command: True)
    monkeypatch.setattr(bootstrap, "_run", lambda command: (commands.append(command), (0, ""))[1])
    assert bootstrap._make(tmp_path) == (3, 12)
    assert commands == [["/usr/bin/python3.12", "-m", "venv", str(tmp_path / ".venv")]]


def test_where_no_python_fits_uv_fetches_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seed = tmp_path / ".venv/seed"
    seed.mkdir(parents=True)
    commands: list[list[str]] = []

    def ran(command: list[str]) -> tuple[int, str]:
        seed.mkdir(exist_ok=True)
        commands.append(command)
        return 0, ""

    monkeypatch.setattr(sys, "version_info", (3, 10, 0))
    monkeypatch.setattr(bootstrap, "_other_pythons", lambda: iter(()))
    monkeypatch.setattr(bootstrap, "_run", ran)
    assert bootstrap._make(tmp_path) == (3, 12)
    assert commands[-1][1:6] == ["-m", "uv", "venv", "--python", "3.12"]
    assert not seed.exists()


def test_missing_venv_module_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / ".venv").mkdir()
    monkeypatch.setattr(bootstrap, "_succeeds", lambda command: "ensurepip" not in command[-1])
    with pytest.raises(bootstrap.SetupFailed, match=r"sudo apt install python3\.\d+-venv"):
        bootstrap._make(tmp_path)


def test_old_pythons_can_read_it() -> None:
    """Python 3.6 must get as far as the message: its grammar, and nothing from outside the standard library."""
    import ast

    for name in ("app.py", "backend/__init__.py", "backend/bootstrap.py"):
        text = (REPOSITORY / name).read_text("utf-8")
        ast.parse(text, feature_version=(3, 6))
        assert not re.search(r"from __future__|:=|f\"|\bmatch \w+:", text), name


def _wheel(folder: Path, name: str, files: dict[str, str]) -> None:
    """The least that pip takes for a wheel."""
    info = f"{name}-1.0.dist-info"
    files = files | {
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    record = "".join(f"{path},,\n" for path in [*files, f"{info}/RECORD"])
    with zipfile.ZipFile(folder / f"{name}-1.0-py3-none-any.whl", "w") as wheel:
        for path, text in {**files, f"{info}/RECORD": record}.items():
            wheel.writestr(path, text)
