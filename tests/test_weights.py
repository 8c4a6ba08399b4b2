"""Headers of model files, sound and hostile; no tensor is read, nothing ends the reader."""

import contextlib
import json
import random
import struct
from pathlib import Path
from typing import Any

import pytest

from backend import gguf, weights
from backend.weights import BrokenFile, Header

ONE = {"a.weight": {"dtype": "F16", "shape": [2, 3], "data_offsets": [0, 12]}}


def safetensors(path: Path, content: Any, data: bytes = b"\0" * 12, length: int | None = None) -> Path:
    text = content if isinstance(content, bytes) else json.dumps(content).encode()
    path.write_bytes(struct.pack("<Q", len(text) if length is None else length) + text + data)
    return path


def text(value: str) -> bytes:
    return struct.pack("<Q", len(value)) + value.encode()


def gguf_file(path: Path, data: bytes = b"\0" * 144, count: int = 1, entries: int = 2) -> Path:
    words = struct.pack("<IIQ", 9, 8, 2) + text("one") + text("two")
    metadata = text("general.architecture") + struct.pack("<I", 8) + text("flux") + text("tokens") + words
    tensor = text("double_blocks.0.img_attn.qkv.weight") + struct.pack("<IQQIQ", 2, 128, 2, 12, 0)
    head = b"GGUF" + struct.pack("<IQQ", 3, count, entries) + metadata + tensor
    path.write_bytes(head + b"\0" * (-len(head) % 32) + data)
    return path


def read(path: Path) -> Header:
    return gguf.read(path) if path.suffix == ".gguf" else weights.read(path)


def test_safetensors(tmp_path: Path) -> None:
    found = read(safetensors(tmp_path / "a.safetensors", {"__metadata__": {"format": "pt"}, **ONE}))
    assert found.entries["a.weight"] == ("F16", (2, 3), 0, 12)
    assert found.metadata == {"format": "pt"}


def test_gguf_file(tmp_path: Path) -> None:
    found = read(gguf_file(tmp_path / "a.gguf"))
    assert found.entries["double_blocks.0.img_attn.qkv.weight"] == ("Q4_K", (2, 128), 0, 144)
    assert found.metadata["general.architecture"] == "flux"


HOSTILE: dict[str, Any] = {
    "a number": 7,
    "a list": [1],
    "no offsets": {"a": {"dtype": "F16", "shape": [2]}},
    "a shape of text": {"a": {"dtype": "F16", "shape": "23", "data_offsets": [0, 12]}},
    "a negative side": {"a": {"dtype": "F16", "shape": [-2], "data_offsets": [0, 12]}},
    "a side of text": {"a": {"dtype": "F16", "shape": [2, "3"], "data_offsets": [0, 12]}},
    "a dtype of nothing": {"a": {"dtype": None, "shape": [2], "data_offsets": [0, 12]}},
    "offsets in reverse": {"a": {"dtype": "F16", "shape": [2], "data_offsets": [12, 0]}},
    "half an offset": {"a": {"dtype": "F16", "shape": [2], "data_offsets": [0, 1.5]}},
    "a tensor of nothing": {"a": None},
    "metadata of text": {"__metadata__": "x", **ONE},
    "bytes that are not those of its shape": {"a": {"dtype": "F32", "shape": [3, 3], "data_offsets": [0, 12]}},
    "cut short": {"a": {"dtype": "F16", "shape": [900], "data_offsets": [0, 1800]}},
    "dimensions without end": {"a": {"dtype": "F16", "shape": [999_999_999] * 300_000, "data_offsets": [0, 12]}},
    "not JSON": b"{'a': 1}",
    "not UTF-8": b'{"\xff": 1}',
    "deep": b'{"a":' * 100_000 + b"1" + b"}" * 100_000,
    "deep lists": b"[" * 100_000,
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_damaged_header_is_refused_in_a_sentence(tmp_path: Path, name: str) -> None:
    with pytest.raises(BrokenFile) as refusal:
        read(safetensors(tmp_path / "a.safetensors", HOSTILE[name]))
    assert str(refusal.value)


def test_empty_missing_and_zero(tmp_path: Path) -> None:
    with pytest.raises(BrokenFile, match="not there"):
        read(tmp_path / "a.safetensors")
    (tmp_path / "a.safetensors").write_bytes(b"")
    with pytest.raises(BrokenFile, match="empty"):
        read(tmp_path / "a.safetensors")
    (tmp_path / "a.safetensors").write_bytes(b"\0" * 64)
    with pytest.raises(BrokenFile):
        read(tmp_path / "a.safetensors")


def test_a_header_that_promises_a_hundred_gigabytes_costs_nothing(tmp_path: Path) -> None:
    with pytest.raises(BrokenFile, match="not whole"):
        read(safetensors(tmp_path / "a.safetensors", ONE, length=100 * 2**30))
    big = tmp_path / "sparse.safetensors"
    with open(big, "wb") as file:
        file.write(struct.pack("<Q", 90 * 2**30))
        file.truncate(100 * 2**30)
    with pytest.raises(BrokenFile, match="header of"):
        read(big)


def test_a_name_that_comes_twice_is_refused(tmp_path: Path) -> None:
    """Two readers could take two different tensors for the same."""
    tensor = b'{"dtype": "F16", "shape": [2, 3], "data_offsets": [0, 12]}'
    for content in (
        b'{"a": %b, "a": %b}' % (tensor, tensor),
        b'{"a": {"dtype": "F32", "dtype": "F16", "shape": [2, 3], "data_offsets": [0, 12]}}',
        b'{"__metadata__": {}, "a": %b, "__metadata__": {"x": "y"}}' % tensor,
    ):
        with pytest.raises(BrokenFile, match="twice"):
            read(safetensors(tmp_path / "a.safetensors", content))
    named = {"__metadata__": {"shape": 'a "dtype"', "dtype": "x"}, **ONE}
    assert read(safetensors(tmp_path / "a.safetensors", named)).metadata["dtype"] == "x"


def test_gguf_that_is_cut_short_or_promises_too_much(tmp_path: Path) -> None:
    whole = gguf_file(tmp_path / "a.gguf").read_bytes()
    for length in range(4, len(whole), 7):
        (tmp_path / "b.gguf").write_bytes(whole[:length])
        with pytest.raises(BrokenFile):
            read(tmp_path / "b.gguf")
    for damage in ({"count": 2**60}, {"entries": 2**60}, {"count": 100_000}):
        with pytest.raises(BrokenFile):
            read(gguf_file(tmp_path / "c.gguf", **damage))


def test_gguf_with_lists_in_lists_without_end(tmp_path: Path) -> None:
    value = struct.pack("<I", 9) + struct.pack("<IQ", 9, 1) * 5000 + struct.pack("<IQ", 0, 0)
    (tmp_path / "a.gguf").write_bytes(b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + text("k") + value)
    with pytest.raises(BrokenFile, match="nested"):
        read(tmp_path / "a.gguf")


def test_a_thousand_damaged_files(tmp_path: Path) -> None:
    """Whatever byte is wrong: it is read, or refused in a sentence."""
    chance = random.Random(0)
    sound = [
        safetensors(tmp_path / "a.safetensors", {"__metadata__": {"a": "b"}, **ONE}),
        gguf_file(tmp_path / "a.gguf"),
    ]
    for path in sound:
        whole = path.read_bytes()
        for _ in range(500):
            damaged = bytearray(whole[: chance.choice((len(whole), chance.randrange(len(whole))))])
            for _ in range(chance.randrange(4) if damaged else 0):
                damaged[chance.randrange(len(damaged))] = chance.randrange(256)
            path.write_bytes(damaged)
            with contextlib.suppress(BrokenFile):
                read(path)
