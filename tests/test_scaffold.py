"""`extensions new` makes an extension that works; so does the template itself."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from backend import extensions_cli, registry, scaffold
from backend.errors import AtelierError, Conflict, Refused
from backend.scaffold import TEMPLATE, create
from backend.settings import ROOT


@pytest.mark.slow
def test_new_list_test_remove(tmp_path: Path) -> None:
    """What `python app.py extensions new hello && python app.py extensions list` shows, and the generated test."""
    place = ["--data-dir", str(tmp_path / "data"), "--extensions-dir", str(tmp_path / "extensions")]

    def run(*arguments: str) -> str:
        return CliRunner().invoke(extensions_cli.app, [*place, *arguments], catch_exceptions=False).output

    assert "is an extension that works" in run("new", "film-grain")
    listed = run("list")
    assert "film-grain" in listed
    assert "on" in listed
    tests = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-p",
        "no:cacheprovider",
        str(tmp_path / "extensions" / "film-grain"),
    ]
    done = subprocess.run(tests, cwd=ROOT, capture_output=True, text=True, timeout=280)
    assert "3 passed" in done.stdout, done.stdout + done.stderr
    assert "film-grain is removed" in run("remove", "film-grain")
    assert "There are no extensions" in run("list")


@pytest.mark.parametrize(
    ("id", "title", "name", "shown"),
    [
        ("hello", "", "Hello", "Hello"),
        ("film-grain_2", "", "FilmGrain2", "Film grain 2"),
        ("params", "", "MyParams", "Params"),
        ("none", "", "MyNone", "None"),
        ("quote", 'A "fine" \\', "Quote", "A fine"),
    ],
)
def test_names_follow_from_the_id(tmp_path: Path, id: str, title: str, name: str, shown: str) -> None:
    path = create(tmp_path, id, title)
    tree = ast.parse((path / "__init__.py").read_text("utf-8"))
    assert [node.name for node in tree.body if isinstance(node, ast.ClassDef)] == [f"{name}Params", name]
    assert [p.name for p in (path / "tests").iterdir()] == [f"test_{id.replace('-', '_')}.py"]
    left = [p for p in path.rglob("*.*") if re.search("my.?thing", p.read_text("utf-8"), re.IGNORECASE)]
    assert left == []
    found = registry.load(tmp_path)
    assert [(e.id, e.title) for e in found.extensions] == [(id, shown)], found.broken


def test_what_is_taken_is_refused(tmp_path: Path) -> None:
    create(tmp_path, "hello")
    with pytest.raises(Conflict):
        create(tmp_path, "hello")
    with pytest.raises(Refused):
        create(tmp_path, "controlnet")
    for id in ("Hello", "../x", "", "1st", "a b", "x" * 65):
        with pytest.raises(AtelierError, match="is not an id"):
            create(tmp_path, id)
    assert [p.name for p in tmp_path.iterdir()] == ["hello"]


def test_the_template_is_an_extension_of_twenty_lines() -> None:
    assert [e.id for e in registry.load(TEMPLATE.parent, only=[TEMPLATE.name]).extensions] == ["my_thing"]
    assert len((TEMPLATE / "__init__.py").read_text("utf-8").splitlines()) <= 20
    assert scaffold.__doc__
