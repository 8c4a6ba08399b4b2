"""Quantised weights stay in their blocks where the whole ones would not fit, and give the same pictures."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch

from backend import packed
from backend.catalog import Model
from backend.diffusion import reading
from backend.diffusion.engine import Engine
from backend.hardware import Hardware
from backend.images import ImageStore
from backend.registry import Registry
from tests.pixels import difference
from tests.single_files import Listed, quantised, write_both
from tests.tiny import draw

NO_ROOM = Hardware(ram_budget=0.0001)


@pytest.fixture(scope="module")
def shelf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.set_num_threads(1)
    return tmp_path_factory.mktemp("shelf")


@pytest.fixture(scope="module")
def flux(shelf: Path) -> Model:
    return quantised(write_both("flux-dev", shelf)[1], "Q8_0", shelf / "flux.gguf")


@pytest.fixture
def images(tmp_path: Path) -> ImageStore:
    return ImageStore(tmp_path)


@pytest.fixture(scope="module")
def wide(flux: Model) -> Iterator[Engine]:
    engine = Engine(Listed(flux), Registry(), "cpu")
    yield engine
    engine.close()


def drawn(engine: Engine, images: ImageStore, model: Model, **values: Any) -> Any:
    return draw(engine, images, model=model.name, steps=2, **values).pictures[0]


@pytest.mark.parametrize(("name", "kind"), [("flux-dev", "Q5_1"), ("sd3.5", "Q8_0")])
def test_a_model_that_would_not_fit_stays_as_small_as_its_file(
    name: str, kind: str, shelf: Path, images: ImageStore
) -> None:
    model = quantised(write_both(name, shelf)[1], kind, shelf / f"{name}-{kind}.gguf")
    whole, sparing = Engine(Listed(model), Registry(), "cpu"), Engine(Listed(model), Registry(), "cpu", NO_ROOM)
    try:
        assert drawn(sparing, images, model).data == drawn(whole, images, model).data
        size = sparing.store.load(model).sizes["transformer"]
        assert size == bytes_of(sparing.store.load(model).denoiser)
        assert size == pytest.approx(model.path.stat().st_size, rel=0.15)  # that has a header, and what is no weight
        assert size < whole.store.load(model).sizes["transformer"]
    finally:
        whole.close()
        sparing.close()


def test_what_it_takes_is_known_from_the_header(flux: Model) -> None:
    family = reading.family_of(flux)
    dtypes = reading.dtypes(flux, family, torch.float16)
    for stays in (False, True):
        parts = reading.parts(flux, family, dtypes, stays)
        assert reading.sizes(flux, family, dtypes, stays)["transformer"] == bytes_of(parts["transformer"])


def test_blocks_stay_where_they_are_in_the_file(flux: Model) -> None:
    family = reading.family_of(flux)
    transformer = reading.parts(flux, family, reading.dtypes(flux, family, torch.float32), packed=True)["transformer"]
    places = [p.data_ptr() for p in transformer.parameters() if isinstance(p, packed.Blocks)]
    assert len(places) > 40
    assert max(places) - min(places) < flux.path.stat().st_size


def test_a_quantised_file_gives_about_what_the_whole_one_gives(flux: Model, shelf: Path) -> None:
    exact, given = (transformer(model).state_dict() for model in (write_both("flux-dev", shelf)[1], flux))
    for name, numbers in exact.items():
        assert torch.allclose(given[name], numbers, atol=float(numbers.abs().max()) / 100), name


@pytest.mark.parametrize("placed", ["model", "group", "sequential"])
def test_the_hooks_of_each_placement_leave_blocks_alone(
    flux: Model, wide: Engine, images: ImageStore, monkeypatch: pytest.MonkeyPatch, placed: str
) -> None:
    hooked = Engine(Listed(flux), Registry(), "cpu", NO_ROOM)
    monkeypatch.setattr(hooked.store, "_placed", lambda model, sizes: placed)
    try:
        assert drawn(hooked, images, flux).data == drawn(wide, images, flux).data
    finally:
        hooked.close()


def test_eight_bits_leave_blocks_alone(flux: Model, wide: Engine, images: ImageStore) -> None:
    eight = Engine(Listed(flux), Registry(), "cpu", NO_ROOM.model_copy(update={"precision": "fp8"}))
    try:
        assert 0 < difference(drawn(eight, images, flux), drawn(wide, images, flux)) < 60
        assert eight.store.load(flux).sizes["transformer"] < flux.path.stat().st_size * 1.02
    finally:
        eight.close()


@pytest.mark.parametrize("kind", sorted(packed.KINDS))
def test_blocks_are_made_whole_to_the_bit(kind: str) -> None:
    data, type_ = blocks(kind, 3, 512), gguf.GGMLQuantizationType[kind]
    expected = torch.from_numpy(gguf.dequantize(data, type_).copy())
    assert expected.abs().max() > 0
    assert torch.equal(packed.blocks(data, type_).whole(torch.float32), expected)
    assert torch.equal(packed.blocks(data, type_).whole(torch.bfloat16), expected.bfloat16())


def blocks(kind: str, rows: int, columns: int) -> Any:
    """Random blocks; the bytes that are floating-point factors of theirs stay small."""
    elements, size = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[kind]]
    at = {"Q6_K": (208,), "Q3_K": (108,), "Q2_K": (80, 82)}.get(kind, (0, 2) if kind[-1] in "1K" else (0,))
    data = np.random.default_rng(1).integers(0, 256, (rows * columns // elements, size), dtype=np.uint8)
    for begin in at:
        data[:, begin : begin + 2] = np.array([0.01], np.float16).view(np.uint8)
    return data.reshape(rows, -1)


def transformer(model: Model) -> Any:
    family = reading.family_of(model)
    return reading.parts(model, family, reading.dtypes(model, family, torch.float32))["transformer"]


def bytes_of(module: torch.nn.Module) -> int:
    return sum(p.nbytes for p in module.parameters())
