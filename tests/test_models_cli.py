"""`python app.py models list` and `verify`, and what they find wrong."""

import hashlib
import json
import os
import resource
import struct
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from backend import models_cli
from backend.settings import ROOT
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


def test_folders_are_given_as_to_a1111(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made(tmp_path / "a" / "cat.safetensors", LORA)
    made(tmp_path / "b" / "dog.safetensors", LORA)
    made(tmp_path / "c" / "one.safetensors", SD1)
    monkeypatch.setenv("ATELIER_MODEL_FOLDERS", json.dumps({"checkpoint": [str(tmp_path / "c")]}))
    flags = ("--lora-dir", str(tmp_path / "a"), "--lora-dir", str(tmp_path / "b"))
    places = ("--models-dir", str(tmp_path / "models"), "--data-dir", str(tmp_path / "data"))
    result = CliRunner().invoke(models_cli.app, [*places, *flags, "list", "--json"])
    found = {(model["name"], model["kind"], model["root"]) for model in json.loads(result.output)}
    assert found == {("cat", "lora", "a"), ("dog", "lora", "b"), ("one", "checkpoint", "c")}


@pytest.mark.slow
def test_ten_thousand_files(tmp_path: Path) -> None:
    """The first list in under 20 s, the next start in under 1 s; with as many tensors as real files have."""
    sides = [f"{side}.weight" for side in ("lora_down", "lora_up")]
    modules = [f"lora_unet_down_blocks_{block}_attentions_0_transformer_blocks_0_attn2_to_k" for block in range(132)]
    lora = {f"{module}.{side}": (1, 768) for module in modules for side in sides}
    checkpoint = SD1 | {f"model.diffusion_model.input_blocks.{n}.1.proj_in.weight": (1, 1) for n in range(690)}
    samples = {
        "loras": made(tmp_path / "lora.safetensors", lora, ss_network_dim="8"),
        "checkpoints": made(tmp_path / "checkpoint.safetensors", checkpoint),
    }
    for number in range(10_000):
        kind = "loras" if number % 10 else "checkpoints"
        path = tmp_path / "models" / kind / str(number % 97) / f"{number}.safetensors"
        path.parent.mkdir(parents=True, exist_ok=True)
        os.link(samples[kind], path)
    where = ["--models-dir", str(tmp_path / "models"), "--data-dir", str(tmp_path / "data")]
    for limit in (20, 1):
        before, started = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
        command = [sys.executable, "app.py", "models", *where, "list", "--json"]
        listed = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
        print(f"10,000 files listed in {time.perf_counter() - started:.2f} s, {cpu:.2f} s of them at work")  # noqa: T201
        assert len(json.loads(listed)) == 10_000
        assert cpu < limit  # others may keep the machine busy
