"""Out of memory at every stage: the job is drawn again with less, its owner is told, and the next one is as before."""

import itertools
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from diffusers import UNet2DConditionModel
from PIL import Image

from backend.catalog import Catalog
from backend.diffusion import memory, placement, reading
from backend.diffusion.engine import Engine
from backend.errors import AtelierError
from backend.extension import Extension, GenerationRequest, ImageStore, Params
from backend.registry import Registry
from backend.result import JobCancelled
from tests.pixels import difference
from tests.tiny import Drawing, draw, tiny_request

pytest_plugins = ["tests.tiny"]
NO_MEMORY = "there is not enough memory for 1 x 64 x 64 pixels; try a smaller size or batch"


class Greedy(Extension):
    """Draws a second pass, and takes more memory than there is wherever it is told to."""

    class Params(Params):
        pass

    id, title = "greedy", "Greedy"

    def __init__(self) -> None:
        self.at: dict[str, Callable[[], None]] = {}

    def prepare(self, request: GenerationRequest, params: Params, images: ImageStore) -> GenerationRequest:
        self.at.get("prepare", lambda: None)()
        return request

    def contribute(self, run: Any, params: Params) -> Any:
        self.at.get("contribute", lambda: None)()
        return super().contribute(run, params)

    def finish(self, run: Any, params: Params, pictures: list[Image.Image]) -> list[Image.Image]:
        self.at.get("finish", lambda: None)()
        further = run.batch.model_copy(update={"extensions": {}, "seed": 99})
        return [Image.blend(a, b, 0.5) for a, b in zip(pictures, run.generate(further), strict=True)]


@pytest.fixture(scope="module")
def greedy() -> Greedy:
    return Greedy()


@pytest.fixture(scope="module")
def engine(tiny_catalog: Catalog, greedy: Greedy) -> Iterator[Engine]:
    engine = Engine(tiny_catalog, Registry((greedy,)), "cpu")
    yield engine
    engine.close()


@pytest.fixture
def usual(engine: Engine, images: ImageStore) -> Drawing:
    return draw(engine, images, extensions={"greedy": Params()})


Injection = Callable[[str, Callable[[], None]], None]


@pytest.fixture
def at(engine: Engine, greedy: Greedy, monkeypatch: pytest.MonkeyPatch) -> Injection:
    """Have something happen at a stage."""
    pipeline = engine.store.load(engine.catalog.find("tiny")).pipeline

    def before(owner: Any, name: str, action: Callable[[], None]) -> None:
        original = getattr(owner, name)

        def both(*arguments: Any, **keywords: Any) -> Any:
            action()
            return original(*arguments, **keywords)

        monkeypatch.setattr(owner, name, both)

    def inject(stage: str, action: Callable[[], None]) -> None:
        if stage == "load":
            engine.store.free()
            before(reading, "parts", action)
        elif stage == "encode":
            engine.store.load(engine.catalog.find("tiny")).embeddings._kept.clear()
            before(pipeline.text_encoder, "forward", action)
        elif stage == "step":
            calls = itertools.count(1)
            before(pipeline.unet, "forward", lambda: action() if next(calls) % 4 == 3 else None)
        elif stage == "decode":
            before(pipeline.vae, "decode", action)
        else:
            monkeypatch.setitem(greedy.at, stage, action)

    return inject


def exhausted(times: float = 1) -> Callable[[], None]:
    """Raises as torch does on a card, so often."""
    left = [times]

    def act() -> None:
        if left[0] > 0:
            left[0] -= 1
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB")

    return act


STAGES = ["prepare", "load", "contribute", "encode", "step", "decode", "finish"]


@pytest.mark.parametrize("stage", STAGES)
def test_a_job_that_ran_out_of_memory_once_gives_the_same_picture(
    engine: Engine, images: ImageStore, usual: Drawing, at: Injection, stage: str
) -> None:
    at(stage, exhausted())
    drawing = draw(engine, images, extensions={"greedy": Params()})
    assert drawing.pictures[0].data == usual.pictures[0].data
    (notice,) = drawing.told[-1].notices
    assert "there was not enough memory" in notice
    assert "other models were let go of" in notice
    assert usual.told[-1].notices == ()


@pytest.mark.parametrize("stage", STAGES)
def test_the_job_after_one_that_cannot_be_drawn_is_as_before(
    engine: Engine, images: ImageStore, usual: Drawing, at: Injection, stage: str
) -> None:
    there_is_enough = False

    def act() -> None:
        if not there_is_enough:
            raise torch.OutOfMemoryError("CUDA out of memory")

    at(stage, act)
    with pytest.raises(AtelierError, match=NO_MEMORY):
        draw(engine, images, extensions={"greedy": Params()})
    there_is_enough = True
    after = draw(engine, images, extensions={"greedy": Params()})
    assert after.pictures[0].data == usual.pictures[0].data
    assert not after.told[-1].notices


def test_a_lack_of_memory_while_a_folder_is_read_is_no_broken_folder(
    engine: Engine, images: ImageStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    original, act = UNet2DConditionModel.from_pretrained, itertools.count()

    def read(*arguments: Any, **keywords: Any) -> Any:
        if not next(act):
            raise RuntimeError("[enforce fail at alloc_cpu.cpp:121] DefaultCPUAllocator: can't allocate memory")
        return original(*arguments, **keywords)

    engine.store.free()
    monkeypatch.setattr(UNet2DConditionModel, "from_pretrained", read)
    assert "not enough memory (loading)" in draw(engine, images).told[-1].notices[0]


def test_what_is_beside_the_model_is_let_go_of_first(engine: Engine, images: ImageStore, at: Injection) -> None:
    other = engine.catalog.find("tiny-v")
    engine.store.load(other)
    at("step", exhausted())
    draw(engine, images)
    assert not engine.store.is_loaded(other)
    assert engine.store.is_loaded(engine.catalog.find("tiny"))


def test_a_picture_that_cannot_be_decoded_whole_is_decoded_in_tiles(
    engine: Engine, images: ImageStore, at: Injection
) -> None:
    vae = engine.store.load(engine.catalog.find("tiny")).pipeline.vae
    before = vae.tile_sample_min_size
    usual = draw(engine, images, width=320).pictures[0]

    def act() -> None:
        if not vae.use_tiling:
            raise torch.OutOfMemoryError("CUDA out of memory")

    at("decode", act)
    drawing = draw(engine, images, width=320)
    assert "the VAE works in tiles of 256 pixels" in drawing.told[-1].notices[-1]
    assert "VAE tiles: 256" in drawing.pictures[0].infotext
    assert "VAE tiles" not in usual.infotext
    assert 0 < difference(drawing.pictures[0], usual) < 60
    assert (vae.use_tiling, vae.tile_sample_min_size) == (False, before)


def test_a_batch_that_does_not_fit_is_drawn_one_by_one(engine: Engine, images: ImageStore, at: Injection) -> None:
    usual = draw(engine, images, batch_size=3, n_iter=2).pictures
    unet, sizes = engine.store.load(engine.catalog.find("tiny")).pipeline.unet, list[int]()

    def seen(_: Any, inputs: tuple[torch.Tensor, ...]) -> None:
        sizes.append(len(inputs[0]))
        if len(inputs[0]) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")

    handle = unet.register_forward_pre_hook(seen)
    try:
        drawing = draw(engine, images, batch_size=3, n_iter=2)
    finally:
        handle.remove()
    assert [p.index for p in drawing.pictures] == list(range(6))
    assert all(difference(a, b) <= 1 for a, b in zip(drawing.pictures, usual, strict=True))
    assert len([size for size in sizes if size > 2]) == 2  # twice, and the second batch is drawn one by one at once
    assert "drawn one by one" in drawing.told[-1].notices[-1]


def test_a_decode_that_would_not_fit_is_not_tried(
    engine: Engine, images: ImageStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The system would end the process: on the processor memory is promised before it is there."""
    vae = engine.store.load(engine.catalog.find("tiny")).pipeline.vae
    monkeypatch.setattr(memory, "free", lambda device: placement.decoding(vae, 300, 300))
    drawing = draw(engine, images, width=320, height=320)
    assert "VAE tiles: 256" in drawing.pictures[0].infotext
    assert not drawing.told[-1].notices
    assert "VAE tiles" not in draw(engine, images, width=280, height=280).pictures[0].infotext


@pytest.mark.parametrize(
    ("free", "side"), [(10**12, None), (12 * 4 * 4 * 600**2, 512), (12 * 4 * 4 * 400**2, 256), (1, 256)]
)
def test_tiles_are_as_large_as_fits(engine: Engine, free: int, side: int | None) -> None:
    vae = engine.store.load(engine.catalog.find("tiny")).pipeline.vae
    assert placement.tile_for(vae, 1024, 1024, free) == side


def test_a_cancelled_retry_stops(engine: Engine, images: ImageStore, at: Injection) -> None:
    class Stopping(Drawing):
        def __call__(self, progress: Any) -> None:
            super().__call__(progress)
            if progress.notices:
                raise JobCancelled

    at("step", exhausted())
    stopping = Stopping()
    with pytest.raises(JobCancelled):
        engine.generate(tiny_request(), images, stopping)
    assert not stopping.pictures
