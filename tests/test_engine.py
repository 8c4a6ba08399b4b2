"""The engine on real, tiny pipelines: the same request gives the same picture, whatever happened before."""

import io
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw

from backend import infotext, sampling
from backend.catalog import Catalog, fingerprint
from backend.diffusion import encode, latents, preview
from backend.diffusion.encode import Embedded, Embeddings, Reading
from backend.diffusion.engine import Engine, steps_from_image
from backend.diffusion.families import STABLE_DIFFUSION
from backend.errors import AtelierError, InvalidRequest, ModelBroken, NotFound
from backend.images import ImageStore
from backend.registry import Registry
from backend.request import MAX_SEED, ResizeMode, parse_request
from backend.result import BatchSkipped, JobCancelled, Progress
from tests.pixels import difference, pixels, put
from tests.tiny import SIZE, Drawing, draw, tiny_request

pytest_plugins = ["tests.tiny"]
SAMPLERS = [s.name for s in sampling.SAMPLERS]
SCHEDULES = [s.label for s in sampling.SCHEDULES]


@pytest.fixture(scope="module")
def engine(tiny_catalog: Catalog) -> Iterator[Engine]:
    engine = Engine(tiny_catalog, Registry(), "cpu")
    yield engine
    engine.close()


def photo(width: int = SIZE, height: int = SIZE) -> Image.Image:
    picture = Image.new("RGB", (width, height), "navy")
    ImageDraw.Draw(picture).ellipse((width // 4, height // 4, width // 2, height // 2), fill="orange")
    return picture


# --- the same request, the same picture


def test_a_request_becomes_a_picture_with_its_text(engine: Engine, images: ImageStore, tiny_models: Path) -> None:
    (picture,) = draw(engine, images, prompt="a blue circle", negative_prompt="red").pictures
    file = Image.open(io.BytesIO(picture.data))
    assert (file.format, file.size, file.mode) == ("PNG", (SIZE, SIZE), "RGB")
    assert (picture.index, picture.width, picture.height) == (0, SIZE, SIZE)
    assert infotext.of_picture(file) == picture.infotext
    sha256 = fingerprint(tiny_models / "checkpoints" / "tiny")
    assert picture.models == {"tiny": sha256}
    assert f"Model hash: {sha256[:10]}, Model: tiny" in picture.infotext


def test_the_same_request_gives_the_same_bytes(engine: Engine, images: ImageStore, tiny_catalog: Catalog) -> None:
    first, second = draw(engine, images).pictures[0], draw(engine, images).pictures[0]
    afresh = draw(Engine(tiny_catalog, Registry(), "cpu"), images).pictures[0]
    assert first.data == second.data == afresh.data


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_a_picture_does_not_depend_on_its_batch(engine: Engine, images: ImageStore, sampler: str) -> None:
    together = draw(engine, images, sampler_name=sampler, batch_size=3).pictures
    in_turn = draw(engine, images, sampler_name=sampler, n_iter=3).pictures
    for i in range(3):
        alone = draw(engine, images, sampler_name=sampler, seed=7 + i).pictures[0]
        assert in_turn[i].data == alone.data
        assert difference(together[i], alone) <= 1
    assert difference(together[0], together[1]) > 20


@pytest.mark.parametrize(
    "values",
    [
        {"sampler_name": "Euler a", "scheduler": "Karras", "cfg_scale": 4.5, "negative_prompt": "a blue square"},
        {"model": "tiny-v", "clip_skip": 2, "height": 96, "prompt": "a picture <lora:cat:0.8>, of two"},
        {"sampler_name": "LCM", "cfg_scale": 1, "prompt": "große Kätzchen\nauf 日本"},
    ],
    ids=["sampler", "model", "unicode"],
)
def test_a_picture_is_drawn_again_from_its_own_text(
    engine: Engine, images: ImageStore, values: dict[str, Any]
) -> None:
    picture = draw(engine, images, batch_size=2, **values).pictures[1]
    again = parse_request(infotext.read(picture.infotext).values)
    assert again == picture.request
    assert (again.seed, again.batch_size, again.n_iter) == (8, 1, 1)
    assert difference(draw(engine, images, **again.model_dump()).pictures[0], picture) <= 1


def test_a_picture_from_an_image_is_drawn_again_from_its_own_text(engine: Engine, images: ImageStore) -> None:
    picture = draw(engine, images, init_image=put(images, photo(80, 40)), resize_mode=1).pictures[0]
    again = parse_request(infotext.read(picture.infotext).values)
    assert draw(engine, images, **again.model_dump()).pictures[0].data == picture.data


def test_every_sampler_and_schedule_draws_a_picture_of_its_own(engine: Engine, images: ImageStore) -> None:
    drawn = {
        (sampler, schedule): pixels(
            draw(engine, images, sampler_name=sampler, scheduler=schedule).pictures[0]
        ).tobytes()
        for sampler in SAMPLERS
        for schedule in SCHEDULES
    }
    ours = {s.name: s.schedule for s in sampling.SAMPLERS}
    for sampler in SAMPLERS:
        if ours[sampler] in SCHEDULES:
            assert drawn[sampler, "Automatic"] == drawn[sampler, ours[sampler]]
    named = [data for (_, schedule), data in drawn.items() if schedule != sampling.AUTOMATIC]
    assert len(set(named)) == len(named)


@pytest.mark.parametrize(
    "values",
    [
        {"prompt": "a blue square"},
        {"negative_prompt": "a blue square"},
        {"cfg_scale": 3},
        {"cfg_scale": 1},
        {"cfg_scale": 0.5},
        {"steps": 5},
        {"clip_skip": 2},
        {"model": "tiny-v"},
    ],
    ids=str,
)
def test_every_parameter_changes_the_picture(engine: Engine, images: ImageStore, values: dict[str, Any]) -> None:
    assert difference(draw(engine, images).pictures[0], draw(engine, images, **values).pictures[0]) > 0


def test_without_guidance_only_the_positive_prompt_is_run(engine: Engine, images: ImageStore) -> None:
    unet = engine.store.load(engine.catalog.find("tiny")).pipeline.unet
    sizes: list[int] = []
    handle = unet.register_forward_pre_hook(lambda module, inputs: sizes.append(len(inputs[0])))
    try:
        draw(engine, images, cfg_scale=1, negative_prompt="red")
        assert set(sizes) == {1}
        sizes.clear()
        draw(engine, images, cfg_scale=2)
        assert set(sizes) == {2}
    finally:
        handle.remove()


def test_no_guidance_at_all_is_the_negative_prompt(engine: Engine, images: ImageStore) -> None:
    a = draw(engine, images, cfg_scale=0, prompt="red", negative_prompt="a blue square").pictures[0]
    b = draw(engine, images, cfg_scale=1, prompt="a blue square").pictures[0]
    assert difference(a, b) <= 1


def test_the_seed_is_drawn_where_none_is_given(engine: Engine, images: ImageStore) -> None:
    drawing = draw(engine, images, seed=-1)
    assert drawing.result
    assert drawing.result.request.seed == drawing.pictures[0].request.seed >= 0


def test_seeds_beyond_the_last_begin_anew(engine: Engine, images: ImageStore) -> None:
    drawing = draw(engine, images, seed=MAX_SEED, batch_size=2)
    assert [p.request.seed for p in drawing.pictures] == [MAX_SEED, 0]


def test_sizes_need_not_be_square(engine: Engine, images: ImageStore) -> None:
    picture = draw(engine, images, width=104, height=72, steps=2).pictures[0]
    assert pixels(picture).shape == (72, 104, 3)


# --- prompts


def test_a_prompt_of_five_thousand_words_is_encoded_in_chunks(engine: Engine) -> None:
    pipeline = engine.store.load(engine.catalog.find("tiny")).pipeline
    embedded = encode.encode(pipeline, STABLE_DIFFUSION.reading, "red " * 5000)
    assert embedded.pooled_prompt_embeds is None
    assert embedded.prompt_embeds.shape == (1, -(-5000 // 75) * 77, 16)


def test_a_chunk_is_encoded_as_the_pipeline_would(engine: Engine) -> None:
    pipeline = engine.store.load(engine.catalog.find("tiny")).pipeline
    ours = encode.encode(pipeline, STABLE_DIFFUSION.reading, "a red circle").prompt_embeds
    theirs = pipeline.encode_prompt("a red circle", "cpu", 1, False)[0]
    assert torch.equal(ours, theirs)


def test_chunks_are_framed_and_filled(engine: Engine) -> None:
    tokenizer = engine.store.load(engine.catalog.find("tiny")).pipeline.tokenizer
    bos, eos = tokenizer.bos_token_id, tokenizer.eos_token_id
    red = tokenizer("red", add_special_tokens=False).input_ids[0]
    assert encode.chunks(tokenizer, "") == [[bos, *[eos] * 76]]
    assert encode.chunks(tokenizer, "red " * 75) == [[bos, *[red] * 75, eos]]
    assert encode.chunks(tokenizer, "red " * 76)[1] == [bos, red, *[eos] * 75]


def test_clip_skip_reads_an_earlier_layer_through_the_last_norm(engine: Engine) -> None:
    pipeline = engine.store.load(engine.catalog.find("tiny")).pipeline
    given: dict[int, torch.Tensor] = {}
    layers = pipeline.text_encoder.encoder.layers
    handles = [
        layer.register_forward_hook(lambda _, __, out, i=i: given.__setitem__(i, out))
        for i, layer in enumerate(layers)
    ]
    skipped = encode.encode(pipeline, STABLE_DIFFUSION.reading, "a red circle", clip_skip=2).prompt_embeds
    for handle in handles:
        handle.remove()
    with torch.inference_mode():
        assert torch.equal(skipped, pipeline.text_encoder.final_layer_norm(given[len(layers) - 2]))


def test_a_long_prompt_and_a_short_negative_one_are_made_equal(engine: Engine, images: ImageStore) -> None:
    long = "a red circle on a blue background, " * 40
    assert draw(engine, images, prompt=long).pictures
    assert draw(engine, images, negative_prompt=long).pictures


def test_tags_are_cut_before_the_prompt_is_encoded(engine: Engine, images: ImageStore) -> None:
    tagged = draw(engine, images, prompt="a red circle<lora:cat:1>", negative_prompt="<hypernet:x:1>").pictures[0]
    assert difference(tagged, draw(engine, images).pictures[0]) == 0
    assert tagged.request.prompt == "a red circle<lora:cat:1>"


def test_embeddings_are_kept(engine: Engine, images: ImageStore) -> None:
    text_encoder = engine.store.load(engine.catalog.find("tiny")).pipeline.text_encoder
    draw(engine, images, prompt="two small pictures")
    calls: list[int] = []
    handle = text_encoder.register_forward_hook(lambda *_: calls.append(1))
    draw(engine, images, prompt="two small pictures", seed=9)
    handle.remove()
    assert not calls


def test_of_embeddings_no_more_is_kept_than_has_room() -> None:
    """Those of a large language model are four hundred times as large as those of a CLIP."""
    one = Embedded(torch.empty(1, 512, encode.KEPT // 5 // 512 // 4))
    read = list[str]()

    def reads(pipeline: Any, text: str, tokens: int, negative: bool) -> Embedded:
        read.append(text)
        return one

    embeddings = Embeddings(Reading(own=reads))
    for text in "abcadefgab":
        embeddings.alone(None, text)
    assert "".join(read) == "abcdefgb"


def test_a_clip_skip_deeper_than_the_encoder_is_said(engine: Engine, images: ImageStore) -> None:
    with pytest.raises(InvalidRequest, match="clip_skip: this model's text encoder has 3 layers"):
        draw(engine, images, clip_skip=12)


# --- image to image


@pytest.mark.parametrize(
    ("steps", "strength", "executed"),
    [(20, 0.75, 16), (20, 1.0, 20), (20, 0.5, 11), (20, 0.0, 1), (1, 0.3, 1), (4, 0.999, 4), (30, 0.1, 4)],
)
def test_image_to_image_runs_as_many_steps_as_in_a1111(
    engine: Engine, images: ImageStore, steps: int, strength: float, executed: int
) -> None:
    values: dict[str, Any] = {"init_image": put(images, photo()), "steps": steps, "denoising_strength": strength}
    assert steps_from_image(tiny_request(**values)) == executed
    told = [p for p in draw(engine, images, **values).told if p.stage == "sampling"]
    assert [(p.step, p.steps) for p in told] == [(i, executed) for i in range(executed + 1)]


def test_the_less_strength_the_more_of_the_image_stays(engine: Engine, images: ImageStore) -> None:
    ref = put(images, photo())
    vae = engine.store.load(engine.catalog.find("tiny")).pipeline.vae
    with torch.inference_mode():
        kept = np.asarray(latents.decode(vae, latents.encode(vae, photo(), SIZE, SIZE, ResizeMode.JUST_RESIZE)[0]))
    away = [
        float(
            np.abs(
                pixels(draw(engine, images, init_image=ref, denoising_strength=s, steps=10).pictures[0]) - kept
            ).mean()
        )
        for s in (0.0, 0.3, 1.0)
    ]
    assert away[0] < away[1] < away[2]


def test_image_to_image_begins_from_the_image_under_noise(engine: Engine, images: ImageStore) -> None:
    ref = put(images, photo())
    pipeline = engine.store.load(engine.catalog.find("tiny")).pipeline
    seen: list[torch.Tensor] = []
    handle = pipeline.unet.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0][:1].clone()))
    draw(engine, images, init_image=ref, sampler_name="Euler", steps=8, denoising_strength=0.5)
    handle.remove()
    sigma = pipeline.scheduler.sigmas[0]
    with torch.inference_mode():
        encoded = latents.encode(pipeline.vae, photo(), SIZE, SIZE, ResizeMode.JUST_RESIZE)
    noise = torch.randn(1, 4, SIZE // 8, SIZE // 8, generator=torch.Generator().manual_seed(7))
    torch.testing.assert_close(seen[0], (encoded + noise * sigma) / (sigma**2 + 1) ** 0.5)


def test_image_to_image_is_as_good_in_batches(engine: Engine, images: ImageStore) -> None:
    values: dict[str, Any] = {"init_image": put(images, photo()), "sampler_name": "Euler a"}
    together = draw(engine, images, batch_size=2, **values).pictures
    alone = draw(engine, images, seed=8, **values).pictures[0]
    assert difference(together[1], alone) <= 1


def test_what_is_transparent_counts_as_white(engine: Engine, images: ImageStore) -> None:
    clear, white = Image.new("RGBA", (SIZE, SIZE), (200, 0, 0, 0)), Image.new("RGB", (SIZE, SIZE), "white")
    a, b = (draw(engine, images, init_image=put(images, p)).pictures[0] for p in (clear, white))
    assert difference(a, b) == 0


@pytest.mark.parametrize("mode", list(ResizeMode))
@pytest.mark.parametrize("size", [(100, 50), (33, 70), (SIZE, SIZE), (1, 1)])
def test_an_image_of_any_size_is_brought_to_the_size_asked_for(
    engine: Engine, images: ImageStore, mode: ResizeMode, size: tuple[int, int]
) -> None:
    values: dict[str, Any] = {"init_image": put(images, photo(*size)), "resize_mode": mode, "steps": 1}
    assert pixels(draw(engine, images, width=72, height=64, **values).pictures[0]).shape == (64, 72, 3)


def halves() -> Image.Image:
    """100 x 50: red on the left, green on the right."""
    picture = Image.new("RGB", (100, 50), "red")
    picture.paste("lime", (50, 0, 100, 50))
    return picture


def colours(picture: Image.Image, *places: tuple[int, int]) -> list[tuple[int, ...]]:
    return [picture.getpixel(place) for place in places]  # type: ignore[misc]


RED, GREEN = (255, 0, 0), (0, 255, 0)


def test_just_resize_stretches() -> None:
    done = latents.resize(halves(), 80, 80, ResizeMode.JUST_RESIZE)
    assert colours(done, (10, 40), (70, 40)) == [RED, GREEN]


def test_crop_and_resize_cuts_what_is_too_wide_or_too_high() -> None:
    picture = halves()
    picture.paste("blue", (0, 0, 20, 50))
    picture.paste("blue", (80, 0, 100, 50))
    done = latents.resize(picture, 80, 80, ResizeMode.CROP_AND_RESIZE)
    assert done.size == (80, 80)
    assert colours(done, (12, 5), (68, 75)) == [RED, GREEN]
    high = latents.resize(halves().rotate(90, expand=True), 80, 80, ResizeMode.CROP_AND_RESIZE)
    assert colours(high, (40, 5), (40, 75)) == [GREEN, RED]


def test_resize_and_fill_stretches_the_border() -> None:
    done = latents.resize(halves(), 80, 80, ResizeMode.RESIZE_AND_FILL)
    assert colours(done, (5, 0), (75, 0), (5, 79), (75, 79)) == [RED, GREEN, RED, GREEN]
    high = latents.resize(halves().rotate(90, expand=True), 81, 80, ResizeMode.RESIZE_AND_FILL)
    assert high.size == (81, 80)
    assert colours(high, (0, 5), (80, 75)) == [GREEN, RED]


def test_an_image_that_is_not_there_is_said(engine: Engine, images: ImageStore) -> None:
    with pytest.raises(NotFound, match="there is no image"):
        draw(engine, images, init_image="0" * 64)


# --- progress, cancelling, skipping


def test_progress_is_told_stage_by_stage(engine: Engine, images: ImageStore) -> None:
    engine.store.free()
    told = draw(engine, images, steps=3, n_iter=2).told
    batches = [[(p.stage, p.step, p.steps) for p in told if p.batch == i and p.stage != "saving"] for i in (0, 1)]
    drawing = [("encoding", 0, 0), *(("sampling", i, 3) for i in range(4)), ("decoding", 3, 3)]
    assert batches == [[("loading", 0, 0), *drawing], drawing]
    assert [(p.batch, p.batches) for p in told if p.stage == "saving"] == [(1, 2), (2, 2)]
    assert [p.picture.index for p in told if p.picture] == [0, 1]


def test_the_first_and_the_last_step_are_shown(engine: Engine, images: ImageStore, monkeypatch: Any) -> None:
    monkeypatch.setattr(preview, "PAUSE", 1000.0)
    shown: list[torch.Tensor] = []
    original = preview.render

    def counted(show: Any, latents: torch.Tensor) -> bytes:
        shown.append(latents)
        return original(show, latents)

    monkeypatch.setattr(preview, "render", counted)
    previews = [p for p in draw(engine, images, steps=6).told if p.preview]
    assert len(shown) == len(previews) == 2
    assert previews[-1].stage == "decoding"
    for told in previews:
        assert told.preview
        picture = Image.open(io.BytesIO(told.preview))
        assert (picture.format, max(picture.size)) == ("WEBP", preview.LONGEST)


def test_the_preview_resembles_the_picture(engine: Engine, images: ImageStore) -> None:
    """On a VAE that keeps colours, which the tiny one does not; so: the map is the best one on its own chart."""
    vae = engine.store.load(engine.catalog.find("tiny")).pipeline.vae
    fitted = preview.fit(vae)
    grey = np.zeros_like(fitted)
    grey[-1] = 127.5
    chart = preview._chart(128)
    with torch.inference_mode():
        known = latents.encode(vae, chart, 128, 128, ResizeMode.JUST_RESIZE)[0].flatten(1).T.numpy()
    wanted = np.asarray(chart.reduce(8)).reshape(-1, 3)
    error = [
        np.square(np.column_stack([known, np.ones(len(known))]) @ map_ - wanted).mean() for map_ in (fitted, grey)
    ]
    assert error[0] < error[1]


def stopping(at: Callable[[Progress], bool], with_: type[Exception]) -> Drawing:
    class Stopping(Drawing):
        def __call__(self, progress: Progress) -> None:
            super().__call__(progress)
            if at(progress):
                raise with_

    return Stopping()


@pytest.mark.parametrize("stage", ["loading", "encoding", "sampling", "decoding"])
def test_a_cancelled_job_stops_at_once_and_leaves_nothing_behind(
    engine: Engine, images: ImageStore, stage: str
) -> None:
    before = draw(engine, images).pictures[0]
    if stage == "loading":
        engine.store.free()
    drawing = stopping(lambda p: p.stage == stage and (stage != "sampling" or p.step == 2), JobCancelled)
    with pytest.raises(JobCancelled):
        engine.generate(tiny_request(steps=50, sampler_name="Euler a"), images, drawing)
    assert drawing.told[-1].stage == stage
    assert drawing.told[-1].step <= 2 or stage == "decoding"
    scheduler = engine.store.load(engine.catalog.find("tiny")).pipeline.scheduler
    assert scheduler.denoised is None
    assert draw(engine, images).pictures[0].data == before.data


def test_what_was_finished_before_the_cancel_goes_out(engine: Engine, images: ImageStore) -> None:
    drawing = stopping(lambda p: p.batch == 1 and p.stage == "encoding", JobCancelled)
    with pytest.raises(JobCancelled):
        engine.generate(tiny_request(n_iter=3), images, drawing)
    assert [p.index for p in drawing.pictures] == [0]


@pytest.mark.parametrize("stage", ["loading", "sampling", "decoding"])
def test_a_skipped_batch_is_dropped_and_the_next_one_drawn(engine: Engine, images: ImageStore, stage: str) -> None:
    skipped = 0 if stage == "loading" else 1
    kept = [i for i in range(6) if i // 2 != skipped]
    engine.store.free()
    drawing = stopping(lambda p: (p.batch, p.stage, p.step > 1) == (skipped, stage, stage != "loading"), BatchSkipped)
    result = engine.generate(tiny_request(n_iter=3, batch_size=2), images, drawing)
    assert list(result.pictures) == [p.index for p in drawing.pictures] == kept
    expected = draw(engine, images, n_iter=3, batch_size=2).pictures
    assert [p.data for p in drawing.pictures] == [expected[i].data for i in kept]


def test_pictures_that_were_delivered_are_not_drawn_again(engine: Engine, images: ImageStore) -> None:
    drawing = draw(engine, images, done={0, 1, 2}, batch_size=2, n_iter=2)
    assert [p.index for p in drawing.pictures] == [3]
    assert drawing.result
    assert drawing.result.pictures == (0, 1, 2, 3)
    assert not [p for p in drawing.told if p.batch == 0 and p.stage == "sampling"]


# --- what goes wrong


def test_numbers_that_are_none_fail_the_job(engine: Engine, images: ImageStore) -> None:
    unet = engine.store.load(engine.catalog.find("tiny")).pipeline.unet
    handle = unet.conv_out.register_forward_hook(lambda _, __, out: out * float("nan"))
    try:
        with pytest.raises(AtelierError, match="NaN"):
            draw(engine, images)
    finally:
        handle.remove()


def test_a_vae_that_gives_none_fails_the_job(engine: Engine, images: ImageStore) -> None:
    vae = engine.store.load(engine.catalog.find("tiny")).pipeline.vae
    handle = vae.decoder.conv_out.register_forward_hook(lambda _, __, out: out * float("nan"))
    try:
        with pytest.raises(AtelierError, match=r"VAE .* \(NaN\)"):
            draw(engine, images)
    finally:
        handle.remove()


def test_an_unknown_model_is_said(engine: Engine, images: ImageStore) -> None:
    with pytest.raises(NotFound, match="'nonsense' is not a model here; there are tiny, tiny-v"):
        draw(engine, images, model="nonsense")


def test_a_model_known_to_be_broken_is_said(tmp_path: Path, images: ImageStore) -> None:
    (tmp_path / "checkpoints" / "half" / "unet").mkdir(parents=True)
    (tmp_path / "checkpoints" / "half" / "unet" / "config.json").write_text("{}")
    with pytest.raises(ModelBroken, match=r"the model half cannot be used: model_index.json is missing"):
        draw(Engine(Catalog(tmp_path), Registry(), "cpu"), images, model="half")


def test_too_little_memory_is_said_in_peoples_words(engine: Engine, images: ImageStore) -> None:
    def exhausted(*_: Any) -> None:
        torch.empty(1 << 60)

    unet = engine.store.load(engine.catalog.find("tiny")).pipeline.unet
    handle = unet.register_forward_pre_hook(exhausted)
    try:
        with pytest.raises(
            AtelierError, match="not enough memory for 2 x 64 x 64 pixels; try a smaller size or batch"
        ):
            draw(engine, images, batch_size=2)
    finally:
        handle.remove()


def test_the_request_as_used_names_the_model(engine: Engine, images: ImageStore) -> None:
    drawing = draw(engine, images, model="")
    assert drawing.result
    assert drawing.result.request.model == "tiny"
