"""Model files read and written a tensor at a time: of each only what is being worked on is in memory."""

import io
import json
import math
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from backend import weights
from backend.consents import is_pickle
from backend.diffusion.reading.errors import Unreadable
from backend.diffusion.reading.sources import Gguf, source
from backend.diffusion.reading.weights import BESIDE_WEIGHTS, SCALES
from backend.errors import ModelBroken, StorageFull
from backend.files import replacing
from backend.merging.recipe import Model
from backend.weights import Entry, Header

DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
NAMES = {dtype: name for name, dtype in DTYPES.items()}
_MARK, _SQUEEZED = "scaled_fp8", "_quantization_metadata"
"""What ComfyUI marks a file with whose weights have factors: a tensor of this name, or such metadata."""
SPARE = 2**28
"""Bytes that are left free on the disk."""


class Place(NamedTuple):
    file: Path
    key: str
    """There."""
    entry: Entry
    start: int
    """Of the tensors in that file."""


def is_quantised(file: Path) -> bool:
    return file.suffix.lower() == ".gguf"


class Weights:
    """The tensors of a model by name; those of a folder have the component in front, `unet/conv_in.weight`.

    Weights that were squeezed into eight bits, with a factor beside each, are what they stand for.

    Raises ModelBroken, with the model's name, for whatever is wrong with the files.
    """

    def __init__(self, model: Model) -> None:
        self.model = model
        self.is_folder = model.path.is_dir()
        self._open = ExitStack()
        self._files: dict[Path, io.BufferedReader] = {}
        self._factors: dict[str, Place] = {}
        """Of the weights that have one, by their names."""
        self.metadata: Mapping[str, str] = {}
        self.places = {name: place for file in self._weight_files() for name, place in self._places(file)}
        if not self.places:
            raise ModelBroken(f"{model.name} holds no weights in safetensors")

    def __enter__(self) -> "Weights":
        return self

    def __exit__(self, *_: object) -> None:
        self._open.close()

    def __contains__(self, name: str) -> bool:
        return name in self.places

    def shape(self, name: str) -> tuple[int, ...]:
        return self.places[name].entry.shape

    def dtype(self, name: str) -> torch.dtype:
        return torch.float16 if name in self._factors else DTYPES[self.places[name].entry.dtype]

    def read(self, name: str) -> Tensor:
        """The numbers as they are in the file, or float32 if there is a factor for them."""
        own = self._read(self.places[name])
        return own.float() * self._read(self._factors[name]).float() if name in self._factors else own

    def _read(self, place: Place) -> Tensor:
        entry = place.entry
        if place.file not in self._files:
            self._files[place.file] = self._open.enter_context(open(place.file, "rb"))  # noqa: SIM115
        data = bytearray(entry.end - entry.begin)
        self._files[place.file].seek(place.start + entry.begin)
        if self._files[place.file].readinto(data) != len(data):
            raise ModelBroken(f"{self.model.name} has become shorter while it was read")
        dtype = DTYPES[entry.dtype]
        if not data:
            return torch.empty(entry.shape, dtype=dtype)
        return torch.frombuffer(data, dtype=torch.uint8).view(dtype).view(entry.shape)

    def _weight_files(self) -> Sequence[Path]:
        path = self.model.path
        if not self.is_folder:
            return [path]
        inside = [file for file in sorted(path.glob("*/*.safetensors")) if file.parent.name != "safety_checker"]
        return inside or sorted(path.glob("*.safetensors"))  # a component of its own

    def _places(self, file: Path) -> Iterator[tuple[str, Place]]:
        header = self._header(file)
        if not self.is_folder:
            self.metadata = {key: value for key, value in header.metadata.items() if key != _SQUEEZED}
        front = f"{file.parent.name}/" if self.is_folder and file.parent != self.model.path else ""
        for key, entry in header.entries.items():
            if entry.dtype not in DTYPES:
                raise ModelBroken(f"{self.model.name} holds numbers of type {entry.dtype}, which cannot be worked on")
            place = Place(file, key, entry, header.start)
            if key.endswith(SCALES):
                of = f"{key.rpartition('.')[0]}.weight"
                if of in header.entries and not header.entries[of].dtype.startswith("F8"):
                    raise ModelBroken(f"{self.model.name} is quantised in blocks ({of}), which cannot be worked on")
                self._factors[front + of] = place
            elif not key.endswith((*BESIDE_WEIGHTS, _MARK)):
                yield front + key, place

    def _header(self, file: Path) -> Header:
        if is_quantised(file) or is_pickle(file):
            kind = "GGUF file" if is_quantised(file) else "pickle"
            raise ModelBroken(f"{self.model.name} is a {kind}: make a safetensors file of it first")
        try:
            return weights.read(file)
        except weights.BrokenFile as error:
            raise ModelBroken(f"{self.model.name} {error}") from None


class Pickle(Weights):
    """The tensors of a file that Python pickled; it is opened only if `model.sha256`, the consent, is its own."""

    def read(self, name: str) -> Tensor:
        return self._tensors[name].contiguous()

    def dtype(self, name: str) -> torch.dtype:
        return self._tensors[name].dtype

    def _weight_files(self) -> Sequence[Path]:
        return [self.model.path]

    def _places(self, file: Path) -> Iterator[tuple[str, Place]]:
        try:
            opened = source(file, (self.model.sha256,))
        except Unreadable as error:
            raise ModelBroken(f"{self.model.name} {error}") from None
        with opened.open() as tensors:
            self._tensors = {name: tensors.get_tensor(name) for name in opened.shapes}  # mapped, not read
        for key, tensor in self._tensors.items():
            if tensor.dtype not in NAMES:
                raise ModelBroken(f"{self.model.name} holds numbers of type {tensor.dtype}, which cannot be kept")
            yield key, Place(file, key, Entry(NAMES[tensor.dtype], tuple(tensor.shape), 0, 0), 0)


class Quantised(Weights):
    """The tensors of a GGUF file, made whole; half precision is what their factors have."""

    def read(self, name: str) -> Tensor:
        with self._source.open() as tensors:
            return tensors.get_tensor(name).to(self.dtype(name))

    def _places(self, file: Path) -> Iterator[tuple[str, Place]]:
        try:
            self._source = Gguf(file)
        except Unreadable as error:
            raise ModelBroken(f"{self.model.name} {error}") from None
        for key, shape in self._source.shapes.items():
            given = self._source.kind(key)
            yield key, Place(file, key, Entry(given if given in DTYPES else "F16", shape, 0, 0), 0)


class Spec(NamedTuple):
    """A tensor that is to be written."""

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]


def in_order(specs: Iterable[tuple[str, Spec]]) -> list[str]:
    """The names of what is to be written, so that each begins where numbers of its type can be mapped."""
    return [name for name, spec in sorted(specs, key=lambda named: (-named[1].dtype.itemsize, named[1].name))]


def write(path: Path, specs: Sequence[Spec], metadata: Mapping[str, str], tensors: Iterator[Tensor]) -> None:
    """A safetensors file, of tensors that come in the order of `specs`. Raises StorageFull, nothing left behind."""
    header, size = _header(specs, metadata)
    check_room(path.parent, len(header) + size)
    with replacing(path) as file:
        file.write(header)
        for spec, numbers in zip(specs, tensors, strict=True):
            if numbers.shape != spec.shape:
                raise AssertionError(f"{spec.name} has the shape {tuple(numbers.shape)}, {spec.shape} was said")
            flat = numbers.detach().to(spec.dtype).contiguous().flatten()
            file.write(flat.view(torch.uint8).numpy().data if flat.numel() else b"")


def check_room(folder: Path, size: int) -> None:
    """Raises StorageFull."""
    if shutil.disk_usage(folder).free < size + SPARE:
        raise StorageFull(f"the disk has no room: {size >> 20} MB are needed in {folder.name}")


def _header(specs: Sequence[Spec], metadata: Mapping[str, str]) -> tuple[bytes, int]:
    table: dict[str, object] = {"__metadata__": {"format": "pt", **metadata}}
    at = 0
    for name, dtype, shape in specs:
        end = at + math.prod(shape) * dtype.itemsize
        table[name] = {"dtype": NAMES[dtype], "shape": list(shape), "data_offsets": [at, end]}
        at = end
    text = json.dumps(table, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(weights.LENGTH, "little") + text, at


def size_of(path: Path) -> int:
    """Bytes of a file, or of all in a folder."""
    files = [path] if path.is_file() else [Path(place, name) for place, _, names in os.walk(path) for name in names]
    return sum(file.stat().st_size for file in files)
