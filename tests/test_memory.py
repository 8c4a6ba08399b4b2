"""Memory: who makes room for whom, where a model's parts lie, what precision and attention are chosen."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import torch

from backend.catalog import Catalog
from backend.diffusion import attention, memory, placement
from backend.diffusion.engine import Engine
from backend.diffusion.memory import Budget, Held, Move, room
from backend.diffusion.models import ModelStore
from backend.errors import AtelierError, EngineFailed
from backend.hardware import Hardware
from backend.images import ImageStore
from backend.registry import Registry
from tests.pixels import difference
from tests.tiny import draw

pytest_plugins = ["tests.tiny"]
CPU, CARD = torch.device("cpu"), torch.device("cuda")
GB = memory.GB


# --- who makes room


def on_card(name: str, size: int, stays: bool = False) -> Held:
    return Held(name, size, vram=size, ram=0, stays=stays)


def in_ram(name: str, size: int, stays: bool = False) -> Held:
    return Held(name, size, vram=0, ram=size, stays=stays)


@pytest.mark.parametrize(
    ("held", "needed", "budget", "moves"),
    [
        ([on_card("a", 4)], Budget(0, 4), Budget(9, 8), []),
        ([on_card("a", 4), on_card("b", 4)], Budget(0, 4), Budget(9, 8), [Move("a", True)]),
        ([on_card("a", 4), on_card("b", 4)], Budget(0, 8), Budget(9, 8), [Move("a", True), Move("b", True)]),
        ([on_card("a", 4), on_card("b", 4)], Budget(0, 4), Budget(3, 8), [Move("a", False)]),
        ([on_card("a", 4), on_card("b", 4)], Budget(0, 8), Budget(5, 8), [Move("a", False), Move("b", True)]),
        ([in_ram("a", 4), on_card("b", 4)], Budget(0, 8), Budget(5, 8), [Move("a", False), Move("b", True)]),
        ([on_card("a", 4, stays=True), on_card("b", 4)], Budget(0, 4), Budget(9, 8), [Move("b", True)]),
        ([on_card("a", 4, stays=True)], Budget(0, 8), Budget(9, 8), []),
        ([in_ram("a", 4), in_ram("b", 4)], Budget(4), Budget(10), [Move("a", False)]),
        ([in_ram("a", 4), in_ram("b", 4)], Budget(4), Budget(12), []),
        ([in_ram("a", 4, stays=True), in_ram("b", 4)], Budget(4), Budget(1), [Move("b", False)]),
    ],
)
def test_what_was_used_longest_ago_leaves_the_card_and_then_the_ram(
    held: list[Held], needed: Budget, budget: Budget, moves: list[Move]
) -> None:
    assert room(held, needed, budget) == moves


def test_the_budget_is_what_is_said_or_half_of_the_ram() -> None:
    assert memory.budget(CPU, Hardware()) == Budget(memory.total_ram() // 2)
    assert memory.budget(CPU, Hardware(ram_budget=2.5)) == Budget(2_500_000_000)


def test_others_memory_is_not_counted_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "free_ram", lambda: 3 * GB)
    assert memory.within(Budget(10 * GB), [in_ram("a", GB)], CPU) == Budget(GB + 3 * GB - memory.SPARE)
    assert memory.within(Budget(2 * GB), [in_ram("a", GB)], CPU) == Budget(2 * GB)


@pytest.mark.parametrize(
    ("error", "exhausted"),
    [
        (MemoryError(), True),
        (torch.OutOfMemoryError("CUDA out of memory"), True),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory"), True),
        (RuntimeError("MPS backend out of memory"), True),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), False),
        (ValueError("CUDA out of memory"), False),
    ],
)
def test_a_lack_of_memory_is_known_in_all_its_words(error: Exception, exhausted: bool) -> None:
    assert memory.is_exhausted(error) is exhausted


@pytest.mark.slow
def test_fifty_switches_among_three_models_leave_nothing_behind(tiny_xl_models: Path, tiny_models: Path) -> None:
    """Each is read anew, as there is room for one; what a switch leaves in memory, in the mean of the last forty."""
    store, process = ModelStore(CPU, Budget(1)), psutil.Process()
    models = [
        Catalog(tiny_models).find("tiny"),
        Catalog(tiny_models).find("tiny-v"),
        Catalog(tiny_xl_models).find("tiny-xl"),
    ]
    taken = []
    for number in range(50):
        loaded = store.load(models[number % 3])
        loaded.pipeline.vae.ballast = torch.nn.Parameter(torch.ones(4_000_000))  # 16 MB: a leak would stand out
        taken.append(process.memory_info().rss)
    slope = float(np.polyfit(range(40), taken[10:], 1)[0]) / 1e6
    print(f"\nRSS slope over 50 switches: {slope:+.3f} MB a switch")  # noqa: T201 (to be read with -s)
    assert abs(slope) < 1


# --- where a model's parts lie

SD15 = {"text_encoder": 250, "vae": 170, "unet": 1720}
FLUX = {"text_encoder": 250, "text_encoder_2": 9500, "vae": 170, "transformer": 23800}


@pytest.mark.parametrize(
    ("sizes", "working", "budget", "placed"),
    [
        (SD15, 1500, 8000, "none"),
        (SD15, 1500, 3500, "model"),
        (SD15, 1500, 2500, "group"),
        (SD15, 1500, 1700, "sequential"),
        (FLUX, 3100, 80000, "none"),
        (FLUX, 3100, 32000, "model"),
        (FLUX, 3100, 24000, "group"),
        (FLUX, 3100, 16000, "group"),
        (FLUX, 3100, 8000, "sequential"),
    ],
)
def test_the_fastest_placement_that_fits_is_taken(
    sizes: dict[str, int], working: int, budget: int, placed: placement.Placed
) -> None:
    assert placement.place(sizes, working, budget) == placed
    lower = placement.LOWER.get(placed)
    assert lower is None or placement.resident(sizes, lower) < placement.resident(sizes, placed)


def test_a_placement_that_is_asked_for_is_taken() -> None:
    assert placement.place(SD15, 1500, 8000, "group") == "group"


@pytest.mark.parametrize(
    ("device", "wanted", "flow", "dtype"),
    [
        (CPU, "auto", True, torch.float32),
        (CPU, "bf16", False, torch.bfloat16),
        (CPU, "fp8", False, torch.float32),
        (CARD, "auto", False, torch.float16),
        (CARD, "auto", True, torch.bfloat16),
        (CARD, "fp8", True, torch.bfloat16),
        (CARD, "fp32", True, torch.float32),
    ],
)
def test_the_precision_is_that_of_the_device_and_the_family(
    monkeypatch: pytest.MonkeyPatch, device: torch.device, wanted: Any, flow: bool, dtype: torch.dtype
) -> None:
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: True)
    assert placement.compute_dtype(device, wanted, flow) == dtype


def test_an_old_card_runs_flow_models_in_half_precision(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: False)
    assert placement.compute_dtype(CARD, "auto", True) == torch.float16


def engine(catalog: Catalog, **hardware: Any) -> Engine:
    return Engine(catalog, Registry(), "cpu", Hardware(**hardware))


@pytest.fixture(scope="module")
def plain(tiny_catalog: Catalog) -> Iterator[Engine]:
    made = engine(tiny_catalog)
    yield made
    made.close()


def test_eight_bits_take_less_memory_and_nearly_give_the_picture(
    tiny_catalog: Catalog, plain: Engine, images: ImageStore
) -> None:
    sparing = engine(tiny_catalog, precision="fp8")
    ours, usual = (draw(e, images).pictures[0] for e in (sparing, plain))
    small, whole = (e.store.load(tiny_catalog.find("tiny")) for e in (sparing, plain))
    assert small.sizes["unet"] < whole.sizes["unet"] / 2
    assert 0 < difference(ours, usual) < 100
    assert "FP8 weight: Enable" in ours.infotext
    assert "FP8 weight" not in usual.infotext
    assert draw(sparing, images).pictures[0].data == ours.data


def test_bfloat16_runs_on_the_processor_too(tiny_catalog: Catalog, plain: Engine, images: ImageStore) -> None:
    halved = engine(tiny_catalog, precision="bf16")
    ours = draw(halved, images).pictures[0]
    assert halved.store.load(tiny_catalog.find("tiny")).size * 2 == plain.store.load(tiny_catalog.find("tiny")).size
    assert difference(ours, draw(plain, images).pictures[0]) < 100


@pytest.mark.parametrize("offload_type", ["block_level", "leaf_level"])
def test_parts_that_lie_elsewhere_give_the_same_picture(
    tiny_catalog: Catalog, plain: Engine, images: ImageStore, tmp_path: Path, offload_type: str
) -> None:
    """Without a card their place is the disk: the hooks are those that `put` sets, what they move is not."""
    from diffusers.hooks import apply_group_offloading

    elsewhere = engine(tiny_catalog)
    loaded = elsewhere.store.load(tiny_catalog.find("tiny"))
    for name in ("unet", "text_encoder"):
        blocks = {"num_blocks_per_group": 1} if offload_type == "block_level" and name == "unet" else {}
        kind = offload_type if blocks else "leaf_level"
        folder = tmp_path / name
        apply_group_offloading(
            getattr(loaded.pipeline, name), CPU, CPU, kind, offload_to_disk_path=str(folder), **blocks
        )
        assert [*folder.iterdir()]
    for values in ({}, {"clip_skip": 2}):
        ours, usual = (draw(e, images, **values).pictures[0] for e in (elsewhere, plain))
        assert ours.data == usual.data


@pytest.mark.parametrize("placed", ["model", "group", "sequential"])
def test_the_hooks_of_each_placement_change_no_picture(
    tiny_catalog: Catalog, plain: Engine, images: ImageStore, monkeypatch: pytest.MonkeyPatch, placed: str
) -> None:
    """All of them are set and run, though on the processor they move nothing."""
    hooked = engine(tiny_catalog)
    monkeypatch.setattr(hooked.store, "_placed", lambda model, sizes: placed)
    for values in ({}, {"clip_skip": 2, "batch_size": 2}, {"model": "tiny-v"}, {}):
        ours, usual = (draw(e, images, **values).pictures[0] for e in (hooked, plain))
        assert ours.data == usual.data
    assert hooked.store.load(tiny_catalog.find("tiny")).placed == placed


# --- numbers that do not fit into half precision


@pytest.mark.parametrize("given", [torch.nan, torch.inf, "black"])
@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_a_vae_that_gives_no_picture_in_half_precision_works_in_full_from_then_on(
    tiny_catalog: Catalog, plain: Engine, images: ImageStore, given: Any, precision: str
) -> None:
    halved = engine(tiny_catalog, precision=precision)
    vae = halved.store.load(tiny_catalog.find("tiny")).pipeline.vae
    runs: list[torch.dtype] = []

    def overflowing(module: torch.nn.Module, _: Any, out: torch.Tensor) -> torch.Tensor:
        runs.append(module.weight.dtype)
        if module.weight.dtype == torch.float32:
            return out
        return torch.full_like(out, -2) if given == "black" else out * given

    vae.decoder.conv_out.register_forward_hook(overflowing)
    first, second = draw(halved, images), draw(halved, images)
    half = torch.float16 if precision == "fp16" else torch.bfloat16
    assert runs == [half, torch.float32, torch.float32]
    assert "it works in full precision" in first.told[-1].notices[0]
    assert not second.told[-1].notices
    for drawing in (first, second):
        assert difference(drawing.pictures[0], draw(plain, images).pictures[0]) < 60
        assert "VAE precision: fp32" in drawing.pictures[0].infotext


def test_a_denoiser_that_overflows_says_what_helps(tiny_catalog: Catalog, images: ImageStore) -> None:
    halved = engine(tiny_catalog, precision="fp16")
    unet = halved.store.load(tiny_catalog.find("tiny")).pipeline.unet
    unet.conv_out.register_forward_hook(lambda _, __, out: out * torch.nan)
    with pytest.raises(AtelierError, match=r"none \(NaN\); it computes in fp16: --precision fp32 helps"):
        draw(halved, images)


# --- attention


def test_attention_is_torchs_own_where_there_is_no_card() -> None:
    assert attention.ways("auto", CPU, torch.float32) == ("sdpa",)
    assert attention.ways("sdpa", CPU, torch.float32) == ("sdpa",)


def test_attention_that_cannot_be_used_is_said() -> None:
    with pytest.raises(EngineFailed, match=r"attention by flash cannot be used .*flash_attn is not installed"):
        attention.ways("flash", CPU, torch.float32)
    with pytest.raises(EngineFailed, match=r"attention by xformers cannot be used"):
        attention.ways("xformers", CPU, torch.float32)


def test_a_way_that_gives_wrong_numbers_is_not_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention, "dispatch_attention_fn", lambda query, *_, **__: torch.zeros_like(query))
    assert "wrong numbers" in attention.fault("sdpa", CPU, torch.float32)


def test_attention_that_is_not_the_usual_is_in_the_pictures_text(
    tiny_catalog: Catalog, images: ImageStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attention, "apply", lambda pipeline, ways, chosen: "xformers")  # which needs a card
    assert "Attention: xformers" in draw(engine(tiny_catalog), images).pictures[0].infotext
