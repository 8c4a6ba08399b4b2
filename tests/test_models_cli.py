"""`python app.py models list` and `verify`, and what they find wrong."""

import hashlib
import json
import struct
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from backend import models_cli
from tests.test_catalog import FLUX, LORA, SD1, made


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made(tmp_path / "models/checkpoints/one.safetensors", SD1)
    made(tmp_path / "models/loras/cat.safetensors", LORA)
    (tmp_path / "models/loras/empty.safetensors").write_bytes(b"")
    return tmp_path


def models(folder: Path, *arguments: str, code: int = 0) -> str:
    where = ["--models-dir", str(folder / "models"), "--data-dir", str(folder / "data")]
    result = CliRunner().invoke(models_cli.app, [*where, *arguments])
    assert result.exit_code == code, result.output
    return result.stdout if not code else result.output


def listed(folder: Path, *arguments: str) -> list[str]:
    return [model["name"] for model in json.loads(models(folder, "list", "--json", *arguments))]


def test_list(folder: Path) -> None:
    assert listed(folder) == ["one", "cat", "empty"]
    assert listed(folder, "--kind", "lora") == ["cat", "empty"]
    assert listed(folder, "--family", "sd1") == ["one", "cat"]
    table = models(folder, "list")
    assert "one" in table
    assert "is empty" in table
    assert "checkpoint, " in models(folder, "list", "--kind", "checkpiont", code=2)


def test_the_second_list_reads_the_index(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = models(folder, "list", "--json", "--family", "sd1")
    (folder / "models/loras/empty.safetensors").unlink()
    monkeypatch.setattr("backend.weights.read", lambda path: pytest.fail(f"{path} was read"))
    assert models(folder, "list", "--json", "--family", "sd1") == before


def test_verify_what_is_good(folder: Path) -> None:
    sha256 = hashlib.sha256((folder / "models/checkpoints/one.safetensors").read_bytes()).hexdigest()
    assert models(folder, "verify", "one") == f"one: good {sha256[:10]}\n"
    assert "cat: good" in models(folder, "verify", "cat", "--numbers")
    assert "empty: is empty" in models(folder, "verify", code=1)
    assert "near to it: one" in models(folder, "verify", "onne", code=2)


def verified(folder: Path, name: str, *options: str, code: int = 1) -> Any:
    out = models(folder, "verify", name, "--json", *options, code=code)
    return json.loads(out.splitlines()[0])[0]["problems"]


def test_verify_finds_another_file_than_it_is_said_to_be(folder: Path) -> None:
    path = folder / "models/checkpoints/one.safetensors"
    (folder / "models/checkpoints/one.sha256").write_text(hashlib.sha256(path.read_bytes()).hexdigest())
    assert verified(folder, "one", code=0) == []
    (folder / "models/checkpoints/one.sha256").write_text("0" * 64)
    (problem,) = verified(folder, "one")
    assert "is another file" in problem


def test_verify_finds_tensors_that_have_changed(folder: Path) -> None:
    data = b"\0" * 2 * 768
    made(folder / "models/loras/cat.safetensors", LORA, sshs_model_hash=hashlib.sha256(data).hexdigest())
    assert verified(folder, "cat", code=0) == []
    made(folder / "models/loras/cat.safetensors", LORA, 1, sshs_model_hash=hashlib.sha256(data).hexdigest())
    (problem,) = verified(folder, "cat")
    assert "sshs_model_hash" in problem


def test_verify_finds_overlaps_and_what_belongs_to_nothing(folder: Path) -> None:
    entry = {"dtype": "F16", "shape": [768], "data_offsets": [0, 1536]}
    header = json.dumps({"emb_params": entry, "x": {**entry, "data_offsets": [2, 1538]}}).encode()
    path = folder / "models/embeddings/e.safetensors"
    path.parent.mkdir()
    path.write_bytes(struct.pack("<Q", len(header)) + header + b"\0" * 1540)
    assert verified(folder, "e") == ["x overlaps emb_params", "has 2 bytes that belong to nothing"]


@pytest.mark.parametrize(("dtype", "nan"), [("F16", b"\x00\x7e"), ("BF16", b"\xc0\x7f"), ("F32", b"\0\0\x80\x7f")])
def test_verify_finds_weights_that_are_no_numbers(folder: Path, dtype: str, nan: bytes) -> None:
    count = 4 * len(nan)
    header = json.dumps({next(iter(FLUX)): {"dtype": dtype, "shape": [4], "data_offsets": [0, count]}}).encode()
    path = folder / "models/diffusion_models/f.safetensors"
    path.parent.mkdir()
    path.write_bytes(struct.pack("<Q", len(header)) + header + b"\0" * (count - len(nan)) + nan)
    assert verified(folder, "f", code=0) == []
    assert verified(folder, "f", "--numbers") == [f"{next(iter(FLUX))} has 1 weights that are no numbers, or infinite"]
