"""`models add`, `models convert` and `models merge` at the terminal."""

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner, Result

from backend import making_cli, models_cli
from backend.downloads.network import Network
from backend.downloads.sources import Hosts
from tests.hub import Server, hub, safetensors
from tests.test_api_models import checkpoint
from tests.test_weights import gguf_file


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    with hub() as server:
        network = Network(inside=(server.place,), patience=60)
        monkeypatch.setattr(making_cli, "network", lambda settings: (network, Hosts(server.url)))
        yield server


def run(folder: Path, *arguments: str) -> Result:
    common = ("--data-dir", str(folder / "data"), "--models-dir", str(folder / "models"))
    return CliRunner().invoke(models_cli.app, [*common, *arguments])


def made(result: Result) -> Path:
    assert result.exit_code == 0, result.stderr
    return Path(result.stdout.strip())


def test_a_model_of_a_repository(server: Server, tmp_path: Path) -> None:
    server.repository("ada/keep", {"keep.safetensors": checkpoint(), "small.safetensors": safetensors()})
    result = run(tmp_path, "add", "ada/keep", "--file", "keep.safetensors")
    assert made(result) == tmp_path / "models" / "checkpoints" / "keep.safetensors"
    assert made(result).read_bytes() == checkpoint()
    assert "small.safetensors" in result.stderr  # what else there is
    again = run(tmp_path, "add", "ada/keep", "--file", "keep.safetensors")
    assert (again.exit_code, "is there already" in again.stderr) == (1, True)


def test_a_broken_download_goes_on_with_the_same_command(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.repository("ada/keep", {"keep.safetensors": checkpoint()})
    thing = server.things["/ada/keep/resolve/c0ffee/keep.safetensors"]
    thing.status = 503
    failed = run(tmp_path, "add", "ada/keep")
    assert (failed.exit_code, "answers with error 503" in failed.stderr) == (1, True)
    assert list((tmp_path / "models" / ".downloads").iterdir()) == []  # nothing has come: the name is free
    thing.status, thing.breaks_after = 200, [100_000] * 5
    monkeypatch.setattr("backend.downloads.fetch.TRIES", 1)
    failed = run(tmp_path, "add", "ada/keep")
    assert (failed.exit_code, "the same command goes on" in failed.stderr) == (1, True)
    thing.breaks_after = []
    assert made(run(tmp_path, "add", "ada/keep")).read_bytes() == checkpoint()
    assert list((tmp_path / "models" / ".downloads").iterdir()) == []


@pytest.mark.parametrize(
    ("data", "name", "kind", "place"),
    [
        (checkpoint(), "castle.safetensors", "", "checkpoints/castle.safetensors"),
        (safetensors(), "odd.safetensors", "vae", "vae/odd.safetensors"),
    ],
)
def test_a_file_goes_where_its_kind_lies(tmp_path: Path, data: bytes, name: str, kind: str, place: str) -> None:
    (tmp_path / name).write_bytes(data)
    assert made(run(tmp_path, "add", str(tmp_path / name), "--kind", kind)) == tmp_path / "models" / place


def test_a_gguf_file_too(tmp_path: Path) -> None:
    file = gguf_file(tmp_path / "odd.gguf")
    assert made(run(tmp_path, "add", str(file))) == tmp_path / "models" / "diffusion_models" / "odd.gguf"


def test_a_file_has_to_be_the_one_that_it_is_said_to_be(tmp_path: Path) -> None:
    (tmp_path / "castle.safetensors").write_bytes(checkpoint())
    result = run(tmp_path, "add", str(tmp_path / "castle.safetensors"), "--sha256", "0" * 64)
    assert (result.exit_code, "not what it should be" in result.output) == (1, True)
    assert not list((tmp_path / "models").rglob("castle*"))
    digest = hashlib.sha256(checkpoint()).hexdigest().upper()
    assert made(run(tmp_path, "add", str(tmp_path / "castle.safetensors"), "--sha256", digest)).is_file()


@pytest.mark.parametrize(
    ("name", "data", "reason"),
    [
        ("old.ckpt", b"PK\x03\x04", "say --pickle"),
        ("page.safetensors", b"<!doctype html>", "web page"),
        ("notes.txt", b"to do", "is no model"),
        ("torn.safetensors", checkpoint()[:400], "is damaged or cut short"),
    ],
)
def test_what_is_no_model_is_not_taken(tmp_path: Path, name: str, data: bytes, reason: str) -> None:
    (tmp_path / name).write_bytes(data)
    result = run(tmp_path, "add", str(tmp_path / name))
    assert result.exit_code == 1
    assert reason in result.stderr
    assert not list((tmp_path / "models").rglob("*.*"))


def test_a_pickle_is_opened_only_by_who_trusts_it(tmp_path: Path) -> None:
    (tmp_path / "old.ckpt").write_bytes(b"PK\x03\x04")
    assert "say --trust" in run(tmp_path, "convert", str(tmp_path / "old.ckpt")).stderr


def test_a_file_that_is_damaged_is_named(tmp_path: Path) -> None:
    (tmp_path / "torn.safetensors").write_bytes(checkpoint()[:400])
    result = run(tmp_path, "convert", str(tmp_path / "torn.safetensors"))
    assert (result.exit_code, "torn.safetensors is damaged or cut short" in result.stderr) == (2, True)


def test_a_merge_at_the_terminal(tmp_path: Path) -> None:
    folder = tmp_path / "models" / "checkpoints"
    folder.mkdir(parents=True)
    for name, value in (("castle", 0.0), ("forest", 1.0)):
        (folder / f"{name}.safetensors").write_bytes(checkpoint())
        tensors = load_file(folder / f"{name}.safetensors")
        save_file({key: tensor.fill_(value) for key, tensor in tensors.items()}, folder / f"{name}.safetensors")
    path = made(run(tmp_path, "merge", "castle", "forest", "--share", "0.25", "--name", "both"))
    assert path == folder / "both.safetensors"
    assert {float(value) for tensor in load_file(path).values() for value in tensor.float().unique()} == {0.25}


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (("merge", "castle", "forest"), "--name"),
        (("merge", "castle", "nowhere", "--name", "x"), "nowhere"),
        (("merge", "castle", "castle", "--name", "x", "--share", "9"), "share"),
        (("convert", "castle", "--precision", "fp12"), "precision"),
    ],
)
def test_what_is_wrong_is_said_in_a_line(tmp_path: Path, arguments: tuple[str, ...], reason: str) -> None:
    folder: Any = tmp_path / "models" / "checkpoints"
    folder.mkdir(parents=True)
    (folder / "castle.safetensors").write_bytes(checkpoint())
    result = run(tmp_path, *arguments)
    assert result.exit_code in (1, 2)
    assert reason in result.stderr
    assert "Traceback" not in result.stderr
