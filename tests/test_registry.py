"""Extensions are found in folders; a broken one is listed and never fatal."""

from pathlib import Path

from backend.registry import load

GOOD = """
from backend.extension import Extension
class E(Extension):
    id = {id!r}
    title = "T"
    order = {order}
"""


def write(folder: Path, id: str, code: str | None = None, toml: str | None = None, order: int = 100) -> None:
    path = folder / id
    path.mkdir()
    (path / "extension.toml").write_text(toml or f'id = "{id}"\nversion = "1.0"\ntitle = "T"\n')
    (path / "__init__.py").write_text(code or GOOD.format(id=id, order=order))


def test_extensions_are_ordered_by_order_then_id(tmp_path: Path) -> None:
    write(tmp_path, "zoo", order=1)
    write(tmp_path, "bee")
    write(tmp_path, "ant")
    assert [e.id for e in load(tmp_path).extensions] == ["zoo", "ant", "bee"]


def test_broken_extensions_are_listed_with_their_reason(tmp_path: Path) -> None:
    write(tmp_path, "good")
    write(tmp_path, "raises", "1 / 0")
    write(tmp_path, "exits", "import sys\nraise ImportError('no module named torchx')")
    write(tmp_path, "empty", "x = 1")
    write(tmp_path, "liar", GOOD.format(id="other", order=1))
    write(tmp_path, "future", toml='id = "future"\nversion = "1"\ntitle = "T"\napi = 99\n')
    write(tmp_path, "odd", toml='id = "odd"\nversion = "1"\ntitle = "T"\nfrobnicate = true\n')
    write(tmp_path, "torn", toml='id = "torn\n')
    write(tmp_path, "renamed", toml='id = "was"\nversion = "1"\ntitle = "T"\n')
    registry = load(tmp_path)
    assert [e.id for e in registry.extensions] == ["good"]
    reasons = {b.id: b.reason for b in registry.broken}
    assert "ZeroDivisionError" in reasons["raises"]
    assert "torchx" in reasons["exits"]
    assert "it holds 0" in reasons["empty"]
    assert "'other'" in reasons["liar"]
    assert "API 99" in reasons["future"]
    assert "frobnicate" in reasons["odd"]
    assert "TOMLDecodeError" in reasons["torn"]
    assert "folder is 'renamed'" in reasons["renamed"]


def test_no_folder_is_no_extensions(tmp_path: Path) -> None:
    assert load(tmp_path / "none").extensions == ()
