"""The stages of extensions as the engine runs them: in order, undone, and blamed by name."""

import io
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps

from backend.catalog import Catalog
from backend.diffusion.engine import Engine
from backend.errors import Conflict, ExtensionFailed, InvalidRequest, Problem
from backend.extension import Contribution, Extension, GenerationRequest, Param, Params, Task
from backend.images import ImageStore
from backend.registry import Registry
from backend.result import JobCancelled, Progress
from tests.tiny import SIZE, Drawing, draw, tiny_request

pytest_plugins = ["tests.tiny"]
ON: dict[str, Any] = {}


class Strength(Params):
    value: float = Param(1.0, "Strength", infotext="Strength")


class Journal(Extension):
    """Writes down which stage it is called in; off unless asked for."""

    Params = Strength

    def __init__(self, id: str, written: list[str], order: int = 100) -> None:
        self.id, self.title, self.order = id, id.title(), order  # type: ignore[misc]
        self.written = written

    def check(self, request: GenerationRequest, params: Any, images: ImageStore) -> None:
        self.written.append(f"{self.id} check")

    def prepare(self, request: GenerationRequest, params: Any, images: ImageStore) -> GenerationRequest:
        self.written.append(f"{self.id} prepare")
        return request

    @contextmanager
    def _patched(self) -> Iterator[None]:
        self.written.append(f"{self.id} patch")
        try:
            yield
        finally:
            self.written.append(f"{self.id} undo")

    def patch(self, run: Any, params: Any) -> AbstractContextManager[object]:
        return self._patched()

    def contribute(self, run: Any, params: Any) -> Contribution:
        self.written.append(f"{self.id} contribute")
        return Contribution(notes={self.id: "was here"})

    def step(self, run: Any, params: Any, step: Any) -> None:
        self.written.append(f"{self.id} step {step.index}")

    def finish(self, run: Any, params: Any, pictures: list[Image.Image]) -> list[Image.Image]:
        self.written.append(f"{self.id} finish")
        return pictures


@pytest.fixture(scope="module")
def plain(tiny_catalog: Catalog) -> Engine:
    return Engine(tiny_catalog, Registry(), "cpu")


def engine_with(plain: Engine, *extensions: Extension) -> Engine:
    """An engine that shares the loaded models of `plain`."""
    engine = Engine(plain.catalog, Registry(tuple(extensions)), "cpu")
    engine.store = plain.store
    return engine


def on(*extensions: Extension, **values: Any) -> dict[str, Any]:
    return {"extensions": {e.id: e.Params(**values) for e in extensions}}


def image(data: bytes) -> Image.Image:
    return Image.open(io.BytesIO(data)).convert("RGB")


def test_stages_run_in_order_and_patches_are_undone_in_reverse(plain: Engine, images: ImageStore) -> None:
    written: list[str] = []
    a, b = Journal("a", written), Journal("b", written)
    picture = draw(engine_with(plain, a, b), images, steps=2, **on(b, a)).pictures[0]
    assert written == [
        *("a check", "a prepare", "b check", "b prepare", "a patch", "b patch", "a contribute", "b contribute"),
        *("a step 0", "b step 0", "a step 1", "b step 1", "b undo", "a undo", "a finish", "b finish"),
    ]
    assert "Strength: 1" in picture.infotext
    assert "a: was here" in picture.infotext


def test_off_means_absent(plain: Engine, images: ImageStore) -> None:
    written: list[str] = []
    draw(engine_with(plain, Journal("a", written)), images)
    assert not written


def test_a_tag_in_the_prompt_calls_an_extension(plain: Engine, images: ImageStore) -> None:
    class Tagged(Extension):
        id, title, prompt_tag, Params = "tagged", "Tagged", "cat", Strength
        seen: list[Any] = []

        def contribute(self, run: Any, params: Any) -> Contribution:
            self.seen += [params, run.tags, run.prompt.text, run.negative_prompt.text]
            return Contribution()

    tagged = Tagged()
    draw(engine_with(plain, tagged), images, prompt="a <cat:tom:0.5>circle", negative_prompt="<cat:x>")
    assert tagged.seen == [Strength(), (("cat", ("tom", "0.5")),), "a circle", ""]
    draw(engine_with(plain, tagged), images, prompt="a <dog:rex>", negative_prompt="<cat:x>")
    assert len(tagged.seen) == 4


def test_prepare_rewrites_the_request_and_may_call_others(plain: Engine, images: ImageStore) -> None:
    written: list[str] = []
    other = Journal("other", written)

    class Grow(Extension):
        id, title, order = "grow", "Grow", 1

        def prepare(self, request: GenerationRequest, params: Any, images: ImageStore) -> GenerationRequest:
            return request.model_copy(update={"width": 96, "extensions": {"other": Strength()}})

    grow = Grow()
    drawing = draw(engine_with(plain, grow, other), images, **on(grow))
    assert (drawing.pictures[0].width, drawing.pictures[0].request.width) == (96, 96)
    assert "Size: 96x64" in drawing.pictures[0].infotext
    assert written[:2] == ["other check", "other prepare"]


class Louder(Extension):
    """Patches weights, as a LoRA does."""

    id, title, Params = "louder", "Louder", Strength

    @contextmanager
    def patch(self, run: Any, params: Any) -> Iterator[None]:
        weights = run.pipeline.unet.conv_out.weight
        before = weights.detach().clone()
        weights.data *= 1 + params.value
        try:
            yield
        finally:
            weights.data.copy_(before)


def test_a_patch_is_undone(plain: Engine, images: ImageStore) -> None:
    louder = Louder()
    engine = engine_with(plain, louder)
    before = draw(engine, images).pictures[0]
    assert draw(engine, images, **on(louder)).pictures[0].data != before.data
    assert draw(engine, images).pictures[0].data == before.data


@pytest.mark.parametrize("raised", [JobCancelled, ZeroDivisionError])
def test_a_patch_is_undone_when_a_run_is_cut_short(plain: Engine, images: ImageStore, raised: type[Exception]) -> None:
    louder = Louder()
    engine = engine_with(plain, louder)
    before = draw(engine, images).pictures[0]

    def report(progress: Progress) -> None:
        if progress.step == 2:
            raise raised

    with pytest.raises(raised):
        engine.generate(tiny_request(**on(louder)), images, report)
    assert draw(engine, images).pictures[0].data == before.data


def test_an_extension_cannot_hold_back_a_cancel(plain: Engine, images: ImageStore) -> None:
    class Stubborn(Extension):
        id, title = "stubborn", "Stubborn"

        @contextmanager
        def patch(self, run: Any, params: Any) -> Iterator[None]:
            with suppress(JobCancelled):
                yield

    def report(progress: Progress) -> None:
        if progress.step == 1:
            raise JobCancelled

    with pytest.raises(JobCancelled):
        engine_with(plain, Stubborn()).generate(tiny_request(**on(Stubborn())), images, report)


def test_a_model_that_cannot_be_unpatched_is_read_anew(tiny_catalog: Catalog, images: ImageStore) -> None:
    class Leaky(Extension):
        id, title = "leaky", "Leaky"

        @contextmanager
        def patch(self, run: Any, params: Any) -> Iterator[None]:
            run.pipeline.unet.conv_out.weight.data *= 2
            yield
            raise RuntimeError("lost the old weights")

    leaky = Leaky()
    engine = Engine(tiny_catalog, Registry((leaky,)), "cpu")
    before = draw(engine, images).pictures[0]
    with pytest.raises(ExtensionFailed, match=r"^Leaky: RuntimeError: lost the old weights; the log"):
        draw(engine, images, **on(leaky))
    assert draw(engine, images).pictures[0].data == before.data


@pytest.mark.parametrize("value", [0.0, 0.5])
def test_the_text_encoder_is_asked_again_while_it_is_patched(plain: Engine, images: ImageStore, value: float) -> None:
    class Muffle(Extension):
        id, title, Params = "muffle", "Muffle", Strength

        @contextmanager
        def patch(self, run: Any, params: Any) -> Iterator[None]:
            norm = run.pipeline.text_encoder.final_layer_norm
            handle = norm.register_forward_hook(lambda _, __, out: out * params.value)
            yield
            handle.remove()

    muffle = Muffle()
    engine = engine_with(plain, muffle)
    before = draw(engine, images).pictures[0]
    patched = draw(engine, images, **on(muffle, value=value)).pictures[0]
    assert np.abs(np.asarray(image(patched.data), int) - np.asarray(image(before.data), int)).max() > 0
    assert draw(engine, images).pictures[0].data == before.data


class Argument(Extension):
    def __init__(self, id: str, **given: Any) -> None:
        self.id, self.title, self.given = id, id.title(), given  # type: ignore[misc]

    def contribute(self, run: Any, params: Any) -> Contribution:
        return Contribution(**self.given)


def test_what_is_contributed_reaches_the_pipeline(plain: Engine, images: ImageStore) -> None:
    rescale = Argument("rescale", arguments={"guidance_rescale": 0.9})
    engine = engine_with(plain, rescale)
    assert draw(engine, images).pictures[0].data != draw(engine, images, **on(rescale)).pictures[0].data


def test_two_givers_of_one_argument_are_a_conflict_that_names_both(plain: Engine, images: ImageStore) -> None:
    a, b = (Argument(id, arguments={"guidance_rescale": 0.9}) for id in ("alpha", "beta"))
    with pytest.raises(Conflict, match="Alpha and Beta cannot be used together: both set guidance_rescale"):
        draw(engine_with(plain, a, b), images, **on(a, b))


def test_the_core_is_a_giver_like_everybody(plain: Engine, images: ImageStore) -> None:
    taker = Argument("taker", arguments={"latents": None})
    with pytest.raises(Conflict, match="Atelier and Taker cannot be used together: both set latents"):
        draw(engine_with(plain, taker), images, **on(taker))


@pytest.mark.parametrize("given", [{"arguments": {"nonsense": 1}}, {"components": {"nonsense": 1}}])
def test_a_name_that_the_pipeline_does_not_take_is_an_error(
    plain: Engine, images: ImageStore, given: dict[str, Any]
) -> None:
    wrong = Argument("wrong", **given)
    with pytest.raises(ExtensionFailed, match="Wrong: StableDiffusionPipeline takes no nonsense"):
        draw(engine_with(plain, wrong), images, **on(wrong))


def test_a_component_takes_the_place_of_the_models_own(plain: Engine, images: ImageStore) -> None:
    class OtherUnet(Extension):
        id, title = "other", "Other"

        def contribute(self, run: Any, params: Any) -> Contribution:
            return Contribution(components={"unet": plain.store.load(plain.catalog.find("tiny-v")).pipeline.unet})

    plain.store.load(plain.catalog.find("tiny-v")).pipeline.unet.conv_out.bias.data += 0.1
    try:
        other = OtherUnet()
        engine = engine_with(plain, other)
        before = draw(engine, images).pictures[0]
        assert draw(engine, images, **on(other)).pictures[0].data != before.data
        assert draw(engine, images).pictures[0].data == before.data
    finally:
        plain.store.free("tiny-v")


def test_a_step_may_change_the_latents(plain: Engine, images: ImageStore) -> None:
    class Freeze(Extension):
        id, title, Params = "freeze", "Freeze", Strength
        seen: list[Any] = []

        def step(self, run: Any, params: Any, step: Any) -> None:
            self.seen.append((step.index, step.steps, step.sigma, step.timestep, step.denoised.shape))
            step.latents = torch.zeros_like(step.latents)

    freeze = Freeze()
    drawing = draw(engine_with(plain, freeze), images, batch_size=2, steps=3, **on(freeze))
    assert drawing.pictures[0].data[-500:] == drawing.pictures[1].data[-500:]
    assert [s[:2] for s in freeze.seen] == [(0, 3), (1, 3), (2, 3)]
    assert [s[2] > 0 for s in freeze.seen] == [True, True, False]
    assert freeze.seen[0][3] == pytest.approx(999)
    assert freeze.seen[0][4] == (2, 4, SIZE // 8, SIZE // 8)


def test_finish_works_on_the_pictures(plain: Engine, images: ImageStore) -> None:
    class Mirror(Extension):
        id, title = "mirror", "Mirror"

        def finish(self, run: Any, params: Any, pictures: list[Image.Image]) -> list[Image.Image]:
            return [ImageOps.mirror(picture) for picture in pictures]

    mirror = Mirror()
    engine = engine_with(plain, mirror)
    a, b = draw(engine, images).pictures[0], draw(engine, images, **on(mirror)).pictures[0]
    assert np.array_equal(np.asarray(image(a.data)), np.asarray(ImageOps.mirror(image(b.data))))


class Hires(Extension):
    """A further pass over each picture, at twice its size."""

    id, title, Params = "hires", "Hires", Strength

    def finish(self, run: Any, params: Any, pictures: list[Image.Image]) -> list[Image.Image]:
        done = []
        for seed, picture in zip(run.seeds, pictures, strict=True):
            file = io.BytesIO()
            picture.save(file, "PNG")
            others = {id: p for id, p in run.request.extensions.items() if id != self.id}
            changes = {
                "init_image": run.images.put(file.getvalue()),
                "seed": seed,
                "batch_size": 1,
                "n_iter": 1,
                "width": 2 * picture.width,
                "height": 2 * picture.height,
                "extensions": others,
            }
            done += run.generate(run.request.model_copy(update=changes))
        return done


def test_a_further_pass_runs_all_stages_of_its_request(plain: Engine, images: ImageStore) -> None:
    written: list[str] = []
    hires, journal = Hires(), Journal("a", written)
    drawing = draw(engine_with(plain, journal, hires), images, batch_size=2, steps=2, **on(hires, journal))
    assert [(p.width, p.height, p.index) for p in drawing.pictures] == [(2 * SIZE, 2 * SIZE, i) for i in (0, 1)]
    patches = [w for w in written if "patch" in w or "undo" in w]
    assert patches == ["a patch", "a undo"] * 3
    assert {(p.batch, p.batches) for p in drawing.told if p.stage == "sampling"} == {(0, 1)}


class Again(Extension):
    """A further pass that begins from what the first one ended with."""

    id, title, Params, order = "again", "Again", Strength, 1

    def __init__(self, **changes: Any) -> None:
        self.changes = changes
        self.seen: list[Any] = []

    def finish(self, run: Any, params: Any, pictures: list[Image.Image]) -> list[Image.Image]:
        others = {id: p for id, p in run.batch.extensions.items() if id != self.id}
        self.seen.append((run.batch.seed, run.batch.images, run.batch.prompt, tuple(run.latents.shape)))
        again = run.batch.model_copy(update={"extensions": others, **self.changes})
        drawn: list[Image.Image] = run.generate(again, start=run.latents, finish=params.value == 0)
        return drawn


@pytest.mark.parametrize(("strength", "steps"), [(0.0, 3), (0.01, 1), (0.3, 3), (0.5, 4), (0.7, 20), (1.0, 5)])
@pytest.mark.parametrize("sampler", ["DPM++ 2M", "LCM"])
def test_a_further_pass_from_latents_runs_all_its_steps(
    plain: Engine, images: ImageStore, strength: float, steps: int, sampler: str
) -> None:
    again = Again(denoising_strength=strength, steps=steps, sampler_name=sampler)
    drawing = draw(engine_with(plain, again), images, steps=2, batch_size=2, n_iter=2, **on(again))
    ends = [p.step for p in drawing.told if p.stage == "sampling" and p.step == p.steps]
    assert ends == [2, 2 + steps] * 2
    assert again.seen == [(seed, 2, "a red circle", (2, 4, 8, 8)) for seed in (7, 9)]


def test_a_further_pass_keeps_as_much_as_it_is_told(plain: Engine, images: ImageStore) -> None:
    first = np.asarray(image(draw(plain, images).pictures[0].data), float)
    kept = []
    for strength in (0.0, 0.5, 1.0):
        again = Again(denoising_strength=strength)
        picture = draw(engine_with(plain, again), images, **on(again)).pictures[0]
        kept.append(np.abs(np.asarray(image(picture.data), float) - first).mean())
    assert kept[0] < kept[1] < kept[2]


@pytest.mark.parametrize(("value", "times"), [(0.0, 2), (1.0, 1)])
def test_a_further_pass_may_leave_finish_to_the_first(
    plain: Engine, images: ImageStore, value: float, times: int
) -> None:
    written: list[str] = []
    again, journal = Again(), Journal("a", written)
    draw(engine_with(plain, again, journal), images, steps=1, **on(again, journal, value=value))
    assert written.count("a finish") == times
    assert written.count("a patch") == 2


def test_a_further_pass_wants_latents_for_each_image(plain: Engine, images: ImageStore) -> None:
    again = Again(batch_size=2)
    with pytest.raises(ExtensionFailed, match=r"^Again: there are 1 images to start from, for 2$"):
        draw(engine_with(plain, again), images, **on(again))


def test_images_may_have_prompts_of_their_own(plain: Engine, images: ImageStore) -> None:
    words = ["a red circle", "a blue square", "a blue square", "a " * 100]
    together = draw(plain, images, prompts=words, negative_prompts=["", "", "green", ""], batch_size=2, n_iter=2)
    assert [p.index for p in together.pictures] == [0, 1, 2, 3]
    assert [p.request.prompt for p in together.pictures] == words
    assert {p.batches for p in together.told} == {4}
    for picture in together.pictures:
        assert not picture.request.prompts
        assert picture.infotext.startswith(picture.request.prompt.strip())
        alone = draw(plain, images, **picture.request.model_dump()).pictures[0]
        assert alone.data == picture.data


def test_images_with_one_prompt_are_drawn_at_once(plain: Engine, images: ImageStore) -> None:
    drawing = draw(plain, images, prompts=["a", "b", "b", "b"], batch_size=4)
    assert {p.batches for p in drawing.told} == {2}
    assert drawing.result
    assert drawing.result.pictures == (0, 1, 2, 3)
    rest = draw(plain, images, done={0}, prompts=["a", "b", "b", "b"], batch_size=4)
    assert [p.index for p in rest.pictures] == [1, 2, 3]


def test_a_tag_calls_an_extension_for_the_images_that_have_it(plain: Engine, images: ImageStore) -> None:
    class Tagged(Extension):
        id, title, prompt_tag, Params = "tagged", "Tagged", "cat", Strength
        seen: list[Any] = []

        def prepare(self, request: GenerationRequest, params: Any, images: ImageStore) -> GenerationRequest:
            self.seen.append("prepare")
            return request

        def contribute(self, run: Any, params: Any) -> Contribution:
            self.seen.append((run.indices, run.tags))
            return Contribution()

    tagged = Tagged()
    draw(engine_with(plain, tagged), images, prompts=["a", "a <cat:tom>", "a <cat:rex>"], n_iter=3)
    assert tagged.seen == ["prepare", ((1,), (("cat", ("tom",)),)), ((2,), (("cat", ("rex",)),))]


def test_a_further_pass_can_be_cancelled(plain: Engine, images: ImageStore) -> None:
    hires = Hires()
    told: list[Progress] = []

    def report(progress: Progress) -> None:
        told.append(progress)
        if [p.stage for p in told].count("encoding") == 2 and progress.step == tiny_request().steps + 1:
            raise JobCancelled

    with pytest.raises(JobCancelled):
        engine_with(plain, hires).generate(tiny_request(**on(hires)), images, report)
    assert not [p for p in told if p.picture]


def test_a_further_pass_before_the_end_is_refused(plain: Engine, images: ImageStore) -> None:
    class Early(Extension):
        id, title = "early", "Early"

        def step(self, run: Any, params: Any, step: Any) -> None:
            run.generate(run.request)

    with pytest.raises(ExtensionFailed, match=r"Early: RuntimeError: run\.generate is for the stage `finish`"):
        draw(engine_with(plain, Early()), images, **on(Early()))


@pytest.mark.parametrize("stage", ["check", "prepare", "patch", "contribute", "step", "finish"])
def test_what_raises_in_a_stage_is_blamed_on_its_extension(
    plain: Engine, images: ImageStore, caplog: pytest.LogCaptureFixture, stage: str
) -> None:
    def fail(*_: Any) -> None:
        raise KeyError("left hand")

    def refuse(*_: Any) -> None:
        raise InvalidRequest(Problem("extensions.clumsy.hand", "which one?"))

    def silent(*_: Any) -> None:
        raise ZeroDivisionError

    for raised, kind, words in (
        (fail, ExtensionFailed, "^Clumsy: KeyError: 'left hand'; the log says more at error [0-9a-f]{8}$"),
        (refuse, InvalidRequest, "^extensions.clumsy.hand: which one"),
        (silent, ExtensionFailed, "^Clumsy: ZeroDivisionError; the log"),
    ):
        clumsy = type("Clumsy", (Extension,), {"id": "clumsy", "title": "Clumsy", stage: raised})()
        with pytest.raises(kind, match=words):
            draw(engine_with(plain, clumsy), images, **on(clumsy))
    assert "in fail" in caplog.text  # where it was raised
    assert draw(plain, images).pictures


def test_finish_must_give_back_as_many_pictures(plain: Engine, images: ImageStore) -> None:
    class Thief(Extension):
        id, title = "thief", "Thief"

        def finish(self, run: Any, params: Any, pictures: list[Image.Image]) -> list[Image.Image]:
            return pictures[1:]

    with pytest.raises(ExtensionFailed, match="Thief: it made 0 pictures out of 1"):
        draw(engine_with(plain, Thief()), images, **on(Thief()))


def test_pictures_finished_before_a_failure_go_out(plain: Engine, images: ImageStore) -> None:
    class Once(Extension):
        id, title = "once", "Once"

        def contribute(self, run: Any, params: Any) -> Contribution:
            if run.indices != (0,):
                raise ValueError("no more")
            return Contribution()

    drawing = Drawing()
    with pytest.raises(ExtensionFailed, match="Once: no more"):
        engine_with(plain, Once()).generate(tiny_request(n_iter=2, **on(Once())), images, drawing)
    assert [p.index for p in drawing.pictures] == [0]


def test_an_extension_may_ask_for_inpainting(plain: Engine, images: ImageStore) -> None:
    class Inpaint(Extension):
        id, title, task = "inpaint", "Inpaint", Task.INPAINT
        seen: list[Task] = []

        def check(self, request: GenerationRequest, params: Any, images: ImageStore) -> None:
            """It brings a picture of its own."""

        def contribute(self, run: Any, params: Any) -> Contribution:
            self.seen.append(run.task)
            mask = Image.new("L", (SIZE, SIZE))
            mask.paste(255, (0, 0, SIZE // 2, SIZE))
            picture = Image.new("RGB", (SIZE, SIZE), "navy")
            return Contribution(arguments={"image": picture, "mask_image": mask})

    inpaint = Inpaint()
    drawing = draw(engine_with(plain, inpaint), images, **on(inpaint))
    assert inpaint.seen == [Task.INPAINT]
    assert [p.step for p in drawing.told if p.stage == "sampling"] == [0, 1, 2, 3, 4]
    assert len(drawing.pictures) == 1


class Begin(Extension):
    """Starts from a picture of its own."""

    def __init__(self, id: str, colour: str) -> None:
        self.id, self.title, self.colour = id, id.title(), colour  # type: ignore[misc]

    def contribute(self, run: Any, params: Any) -> Contribution:
        return Contribution(start=run.encode(Image.new("RGB", (SIZE, SIZE), self.colour)))


def put(images: ImageStore, colour: str) -> str:
    file = io.BytesIO()
    Image.new("RGB", (SIZE, SIZE), colour).save(file, "PNG")
    return images.put(file.getvalue())


def test_an_extension_may_say_what_the_picture_starts_from(plain: Engine, images: ImageStore) -> None:
    green = Begin("green", "green")
    engine, ref = engine_with(plain, green), put(images, "navy")
    theirs = image(draw(engine, images, init_image=ref, **on(green)).pictures[0].data).tobytes()
    assert theirs == image(draw(engine, images, init_image=put(images, "green")).pictures[0].data).tobytes()
    assert theirs != image(draw(engine, images, init_image=ref).pictures[0].data).tobytes()


def test_two_starts_are_a_conflict(plain: Engine, images: ImageStore) -> None:
    a, b = Begin("alpha", "red"), Begin("beta", "green")
    with pytest.raises(Conflict, match="Alpha and Beta cannot be used together: both set what the picture starts"):
        draw(engine_with(plain, a, b), images, init_image=put(images, "navy"), **on(a, b))


def test_what_is_worked_out_once_serves_all_batches_of_a_request(plain: Engine, images: ImageStore) -> None:
    class Careful(Extension):
        id, title = "careful", "Careful"
        made: list[int] = []
        got: list[int] = []

        def step(self, run: Any, params: Any, step: Any) -> None:
            self.got.append(run.once(self.id, lambda: self.made.append(step.index) or 7))

    careful = Careful()
    engine = engine_with(plain, careful)
    draw(engine, images, n_iter=2, steps=2, **on(careful))
    assert (careful.made, careful.got) == ([0], [7] * 4)
    draw(engine, images, steps=1, **on(careful))
    assert careful.made == [0, 0]  # another request


def test_a_picture_comes_to_its_size_by_the_resize_mode(plain: Engine, images: ImageStore) -> None:
    class Look(Extension):
        id, title = "look", "Look"
        seen: list[Image.Image] = []

        def contribute(self, run: Any, params: Any) -> Contribution:
            wide = Image.new("RGBA", (4 * SIZE, SIZE), (0, 0, 0, 0))
            wide.paste((255, 0, 0, 255), (SIZE, 0, 3 * SIZE, SIZE))
            self.seen.append(run.resized(wide))
            return Contribution()

    look = Look()
    for mode in range(4):
        draw(engine_with(plain, look), images, steps=1, resize_mode=mode, **on(look))
    assert {(p.size, p.mode) for p in look.seen} == {((SIZE, SIZE), "RGB")}
    assert [p.getpixel((2, SIZE // 2)) == (255, 255, 255) for p in look.seen] == [True, False, True, True]


class Caller(Extension):
    """Calls another extension by its name."""

    id, title = "caller", "Caller"
    given: dict[str, Any] = {"value": 2.0}

    def prepare(self, request: GenerationRequest, params: Any, images: ImageStore) -> GenerationRequest:
        others = {id: given for id, given in request.extensions.items() if id != self.id}
        return request.model_copy(update={"extensions": others}).calling("a", **self.given)


@pytest.mark.parametrize("order", [50, 150])
def test_an_extension_that_another_calls_runs_whole_whichever_comes_first(
    plain: Engine, images: ImageStore, order: int
) -> None:
    written: list[str] = []
    called = Journal("a", written, order)
    drawing = draw(engine_with(plain, *sorted([called, Caller()], key=lambda e: e.order)), images, **on(Caller()))
    assert written[:2] == ["a check", "a prepare"]
    assert written.count("a prepare") == 1
    assert drawing.pictures[0].request.extensions == {"a": Strength(value=2)}
    assert "Strength: 2" in drawing.pictures[0].infotext


def test_what_another_is_called_with_is_checked(plain: Engine, images: ImageStore) -> None:
    class Careless(Caller):
        given = {"value": "warm"}

    with pytest.raises(InvalidRequest, match=r"^extensions\.a\.value: should be a valid number"):
        draw(engine_with(plain, Journal("a", []), Careless()), images, **on(Careless()))
    with pytest.raises(InvalidRequest, match=r"^extensions\.a: there is no such extension here"):
        draw(engine_with(plain, Caller()), images, **on(Caller()))
