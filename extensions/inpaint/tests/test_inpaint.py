"""Inpainting on a tiny model of random weights: what it keeps, to the byte, and that it leaves no trace."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter, ImageOps

from backend.errors import InvalidRequest
from backend.params import validate
from backend.request import ResizeMode
from backend.result import JobCancelled, Progress
from backend.testing import Drawn, Studio
from tests.tiny import tiny_model

pytest_plugins = ["tests.tiny"]
SIZE = 64
CORE = {"width", "height", "steps", "seed", "batch_size", "n_iter", "sampler_name", "denoising_strength"}
CORE |= {"resize_mode", "report"}
CONTENTS = ("fill", "original", "latent_noise", "latent_nothing")
Pixels = NDArray[np.uint8]


@pytest.fixture(scope="module")
def studio(tiny_models: Path) -> Iterator[Studio]:
    with Studio(Path(__file__).parents[1], models=tiny_models, model="tiny") as studio:
        yield studio


def photo(width: int = SIZE, height: int = SIZE) -> Image.Image:
    """No two pixels alike, so that none can be told from another by chance."""
    rows, columns = np.mgrid[0:height, 0:width]
    pixels = np.stack([columns * 255 / width, rows * 255 / height, (columns * 7 + rows * 13) % 256], axis=2)
    return Image.fromarray(pixels.astype(np.uint8))


def mask(box: tuple[int, int, int, int], width: int = SIZE, height: int = SIZE) -> Image.Image:
    """White in the box, up to and without its right and lower edge."""
    picture = Image.new("L", (width, height))
    ImageDraw.Draw(picture).rectangle((box[0], box[1], box[2] - 1, box[3] - 1), fill=255)
    return picture


BOX = (16, 16, 40, 48)


def paint(studio: Studio, picture: Image.Image, over: Image.Image, **values: Any) -> Drawn:
    core = {name: values.pop(name) for name in list(values) if name in CORE}
    given = {"mask": studio.image(over), "blur": 0, **values}
    return studio.draw(init_image=studio.image(picture), extensions={"inpaint": given}, **core)


def pixels(picture: Image.Image) -> Pixels:
    return np.asarray(picture.convert("RGB"))


def changed(before: Image.Image, after: Image.Image) -> NDArray[np.bool_]:
    """Which pixels differ."""
    different: NDArray[np.bool_] = np.any(pixels(before) != pixels(after), axis=2)
    return different


def is_white(over: Image.Image) -> NDArray[np.bool_]:
    return np.asarray(np.asarray(over) == 255, np.bool_)


# --- beside the mask


@pytest.mark.parametrize("content", CONTENTS)
@pytest.mark.parametrize("area", ["whole", "only_masked"])
def test_beside_the_mask_every_pixel_is_the_originals(studio: Studio, content: str, area: str) -> None:
    drawn = paint(studio, photo(), mask(BOX), content=content, area=area, padding=8)
    different = changed(photo(), drawn.picture)
    assert not different[~is_white(mask(BOX))].any()
    assert different[is_white(mask(BOX))].mean() > 0.9


@pytest.mark.parametrize("sampler", ["Euler a", "Euler", "DPM++ 2M", "DDIM", "LCM"])
def test_that_holds_with_every_sampler(studio: Studio, sampler: str) -> None:
    drawn = paint(studio, photo(), mask(BOX), sampler_name=sampler, denoising_strength=1.0)
    assert not changed(photo(), drawn.picture)[~is_white(mask(BOX))].any()


@pytest.mark.parametrize("size", [(100, 80), (200, 150), (64, 200), (37, 53), (300, 64)])
@pytest.mark.parametrize("area", ["whole", "only_masked"])
def test_a_picture_of_any_size_comes_back_at_its_own(studio: Studio, size: tuple[int, int], area: str) -> None:
    box = (size[0] // 3, size[1] // 3, size[0] // 2, size[1] // 2)
    drawn = paint(studio, photo(*size), mask(box, *size), area=area, padding=8)
    assert drawn.picture.size == size
    different = changed(photo(*size), drawn.picture)
    white = is_white(mask(box, *size))
    assert not different[~white].any()
    assert different[white].mean() > 0.5
    assert drawn.request.width % 8 == drawn.request.height % 8 == 0
    assert drawn.request.width * drawn.request.height < 8 * SIZE * SIZE


def test_a_blurred_mask_blends_and_ends_where_it_ends(studio: Studio) -> None:
    drawn = paint(studio, photo(), mask(BOX), blur=4)
    soft = np.asarray(mask(BOX).filter(ImageFilter.GaussianBlur(4)))
    different = changed(photo(), drawn.picture)
    assert not different[soft == 0].any()
    assert different[(soft > 40) & (soft < 200)].any()


def test_latents_beside_the_mask_are_the_pictures_to_the_end(studio: Studio) -> None:
    scheduler = studio.engine.store.load(studio.engine.catalog.find("tiny")).pipeline.scheduler
    seen: list[torch.Tensor] = []

    def report(progress: Progress) -> None:
        if progress.step:
            seen.append(scheduler.denoised)

    paint(studio, photo(), mask((32, 0, 64, 64)), denoising_strength=1.0, report=report)
    assert all(torch.equal(one[..., :4], seen[0][..., :4]) for one in seen)
    assert not torch.equal(seen[0][..., 4:], seen[1][..., 4:])


# --- the mask


def test_not_masked_is_the_mask_turned_round(studio: Studio) -> None:
    a = paint(studio, photo(), mask(BOX), mode="not_masked")
    b = paint(studio, photo(), ImageOps.invert(mask(BOX)))
    assert a.picture.tobytes() == b.picture.tobytes()
    assert not changed(photo(), a.picture)[is_white(mask(BOX))].any()


def test_alpha_is_the_mask_if_there_is_any(studio: Studio) -> None:
    painted = Image.new("RGBA", (SIZE, SIZE), (255, 255, 255, 0))
    painted.paste((0, 200, 255, 255), BOX)
    opaque = mask(BOX).convert("RGBA")
    pictures = [paint(studio, photo(), over).picture.tobytes() for over in (mask(BOX), painted, opaque)]
    assert pictures[0] == pictures[1] == pictures[2]


def test_a_smaller_mask_of_the_same_shape_is_enlarged(studio: Studio) -> None:
    small = paint(studio, photo(), mask((4, 4, 10, 12), 16, 16))
    different = changed(photo(), small.picture)
    assert different[20:40, 20:36].mean() > 0.9
    assert not different[:12].any()


@pytest.mark.parametrize("size", [(64, 32), (128, 64), (64, 60)])
def test_a_mask_of_another_shape_is_refused(studio: Studio, size: tuple[int, int]) -> None:
    with pytest.raises(InvalidRequest) as error:
        paint(studio, photo(), mask((0, 0, 8, 8), *size))
    words = f"the mask has {size[0]} x {size[1]} pixels, the picture 64 x 64: they must be of one shape"
    assert error.value.problems == (("extensions.inpaint.mask", words),)


@pytest.mark.parametrize(
    ("over", "values"),
    [
        (Image.new("L", (SIZE, SIZE)), {}),
        (Image.new("RGBA", (SIZE, SIZE), (255, 255, 255, 0)), {"blur": 4}),
        (Image.new("L", (SIZE, SIZE), 255), {"mode": "not_masked"}),
        (Image.new("L", (SIZE, SIZE)), {"resolution": "exact", "area": "only_masked"}),
    ],
    ids=["black", "transparent", "all white turned round", "black, exact"],
)
def test_an_empty_mask_is_refused(studio: Studio, over: Image.Image, values: dict[str, Any]) -> None:
    with pytest.raises(InvalidRequest, match=r"^extensions\.inpaint\.mask: the mask is empty: paint over"):
        paint(studio, photo(), over, **values)


@pytest.mark.parametrize("content", CONTENTS)
@pytest.mark.parametrize("area", ["whole", "only_masked"])
def test_a_mask_over_everything_draws_everything_anew(studio: Studio, content: str, area: str) -> None:
    drawn = paint(studio, photo(), Image.new("L", (SIZE, SIZE), 255), content=content, area=area, blur=4)
    assert changed(photo(), drawn.picture).mean() > 0.9


def test_a_thin_stroke_is_drawn_anew(studio: Studio) -> None:
    drawn = paint(studio, photo(), mask((0, 30, SIZE, 32)), denoising_strength=1.0)
    assert changed(photo(), drawn.picture)[30:32].mean() > 0.9


def test_without_a_picture_or_a_mask_it_says_what_is_missing(studio: Studio) -> None:
    with pytest.raises(InvalidRequest, match="init_image: Inpaint needs an image to start from"):
        studio.draw(extensions={"inpaint": {"mask": studio.image(mask(BOX))}})
    with pytest.raises(InvalidRequest, match=r"extensions\.inpaint\.mask: is missing"):
        studio.draw(init_image=studio.image(photo()), extensions={"inpaint": {}})


# --- what it starts from


def test_content_is_what_it_starts_from(studio: Studio) -> None:
    drawn = {paint(studio, photo(), mask(BOX), content=c, sampler_name="Euler").picture.tobytes() for c in CONTENTS}
    assert len(drawn) == len(CONTENTS)


def test_fill_has_nothing_of_what_it_covers() -> None:
    from extensions.inpaint.work import fill

    picture = photo()
    other = picture.copy()
    other.paste("red", BOX)
    assert fill(picture, mask(BOX)).tobytes() == fill(other, mask(BOX)).tobytes()
    filled = pixels(fill(picture, mask(BOX))).astype(int)
    assert np.abs(filled - pixels(picture))[~is_white(mask(BOX))].max() == 0
    assert np.abs(filled[30, 28] - pixels(picture)[30, 28])[:2].max() < 40  # between what is around it


@pytest.mark.parametrize("size", [(1, 1), (3, 1), (5, 7), (64, 64)])
def test_fill_works_without_anything_to_fill_from(size: tuple[int, int]) -> None:
    from extensions.inpaint.work import fill

    filled = fill(Image.new("RGB", size, "red"), Image.new("L", size, 255))
    assert filled.size == size
    assert set(np.asarray(filled).ravel().tolist()) == {128}


def test_denoising_runs_as_many_steps_as_image_to_image(studio: Studio) -> None:
    told: list[Progress] = []
    paint(studio, photo(), mask(BOX), steps=10, denoising_strength=0.35, report=told.append)
    assert {p.steps for p in told if p.stage == "sampling"} == {4}


def test_less_denoising_changes_less(studio: Studio) -> None:
    def away(strength: float) -> float:
        drawn = paint(studio, photo(), mask(BOX), denoising_strength=strength, steps=10)
        return float(np.abs(pixels(drawn.picture).astype(int) - pixels(kept.picture)).mean())

    kept = paint(studio, photo(), mask(BOX), denoising_strength=0.0, steps=10)
    assert 0 < away(0.2) < away(0.9)


# --- the region


def test_the_region_is_recorded_and_found_anew_for_another_mask(studio: Studio) -> None:
    picture = photo(200, 200)
    drawn = paint(studio, picture, mask((100, 100, 110, 110), 200, 200), area="only_masked", padding=10)
    params: Any = drawn.request.extensions["inpaint"]
    assert params.region == "30x30+90+90"
    assert "Inpaint region: 30x30+90+90" in drawn.text
    elsewhere = paint(
        studio, picture, mask((10, 10, 20, 20), 200, 200), area="only_masked", padding=10, region=params.region
    )
    found: Any = elsewhere.request.extensions["inpaint"]
    assert found.region == "30x30+0+0"


def test_a_region_that_was_asked_for_is_worked_on_at_just_the_size_asked_for(studio: Studio) -> None:
    drawn = paint(studio, photo(200, 200), mask(BOX, 200, 200), region="100x50+0+0", width=96, height=64)
    assert (drawn.request.width, drawn.request.height, drawn.picture.size) == (96, 64, (200, 200))


@pytest.mark.parametrize("mode", list(ResizeMode))
def test_just_width_x_height_is_what_a1111_does(studio: Studio, mode: ResizeMode) -> None:
    picture = photo(100, 50)
    drawn = paint(studio, picture, mask((0, 0, 50, 50), 100, 50), resolution="exact", resize_mode=int(mode), width=72)
    assert drawn.picture.size == (72, SIZE)
    region: Any = drawn.request.extensions["inpaint"]
    assert region.region == ""
    if mode is ResizeMode.JUST_RESIZE:
        assert not changed(picture.resize((72, SIZE), Image.Resampling.LANCZOS), drawn.picture)[:, 40:].any()


def test_only_masked_at_just_width_x_height_comes_back_in_the_whole_picture(studio: Studio) -> None:
    drawn = paint(studio, photo(100, 50), mask((40, 20, 50, 30), 100, 50), resolution="exact", area="only_masked")
    assert (drawn.request.width, drawn.request.height, drawn.picture.size) == (SIZE, SIZE, (100, 50))


# --- with the rest


@pytest.mark.parametrize(
    "values",
    [
        {},
        {"area": "only_masked", "padding": 12, "blur": 2},
        {"resolution": "exact", "content": "latent_noise"},
        {"mode": "not_masked", "content": "latent_nothing"},
        {"soft": {"schedule_bias": 0.5, "mask_influence": 0.25}, "blur": 16},
    ],
    ids=str,
)
def test_a_picture_is_drawn_again_from_its_own_text(studio: Studio, values: dict[str, Any]) -> None:
    picture = photo(90, 70)
    drawn = paint(studio, picture, mask((30, 30, 50, 50), 90, 70), batch_size=2, **values)
    again = studio.read(drawn.texts[1])
    assert again == drawn.request.model_copy(update={"seed": 2})
    alone = studio.draw(**again.model_dump())
    assert np.abs(pixels(alone.picture).astype(int) - pixels(drawn.pictures[1])).max() <= 1
    assert alone.texts[0] == drawn.texts[1]


def test_the_words_in_the_text_are_a1111s(studio: Studio) -> None:
    text = paint(studio, photo(), mask(BOX), mode="not_masked", area="only_masked", content="latent_noise").text
    for words in (
        *("Mask mode: Inpaint not masked", "Mask blur: 0", "Inpaint area: Only masked"),
        *("Masked area padding: 32", "Masked content: latent noise", "Denoising strength: 0.75"),
    ):
        assert words in text
    theirs = "a cat\nSteps: 20, Sampler: Euler, Seed: 1, Size: 64x64, Denoising strength: 0.75, Mask blur: 4"
    assert studio.read(theirs).extensions == {}  # their mask is nowhere to be had


def test_batches_share_the_work(studio: Studio) -> None:
    vae = studio.engine.store.load(studio.engine.catalog.find("tiny")).pipeline.vae
    calls: list[int] = []
    handle = vae.encoder.register_forward_hook(lambda *_: calls.append(1))
    drawn = paint(studio, photo(), mask(BOX), n_iter=3)
    handle.remove()
    assert len(calls) == 1
    assert len({p.tobytes() for p in drawn.pictures}) == 3


@pytest.mark.parametrize("content", CONTENTS)
def test_a_picture_does_not_depend_on_its_batch(studio: Studio, content: str) -> None:
    together = paint(studio, photo(), mask(BOX), batch_size=3, content=content, sampler_name="Euler a").pictures
    alone = paint(studio, photo(), mask(BOX), seed=3, content=content, sampler_name="Euler a").picture
    assert np.abs(pixels(together[2]).astype(int) - pixels(alone)).max() <= 1


def test_the_same_seed_gives_the_same_picture_before_and_after(studio: Studio) -> None:
    values = {"mask": studio.image(mask(BOX))}
    before, during, after = studio.around(values, init_image=studio.image(photo()))
    assert before == after != during
    assert leftovers(studio) == ([], 0)


def test_cancelling_leaves_nothing_behind(studio: Studio) -> None:
    before = studio.draw().picture.tobytes()

    def report(progress: Progress) -> None:
        if progress.step == 2:
            raise JobCancelled

    with pytest.raises(JobCancelled):
        paint(studio, photo(), mask(BOX), report=report)
    assert leftovers(studio) == ([], 0)
    assert studio.draw().picture.tobytes() == before


def leftovers(studio: Studio, model: str = "tiny") -> tuple[list[object], int]:
    pipeline = studio.engine.store.load(studio.engine.catalog.find(model)).pipeline
    return pipeline.scheduler._revisions, len(pipeline.unet._forward_pre_hooks)


# --- inpainting checkpoints


@pytest.fixture(scope="module")
def nine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Studio]:
    folder = tmp_path_factory.mktemp("models")
    tiny_model(folder / "checkpoints" / "nine", in_channels=9)
    with Studio(Path(__file__).parents[1], models=folder, model="nine") as studio:
        yield studio


def shown(studio: Studio, draw: Any) -> torch.Tensor:
    """What the UNet is shown first."""
    unet = studio.engine.store.load(studio.engine.catalog.find("nine")).pipeline.unet
    seen: list[torch.Tensor] = []
    handle = unet.conv_in.register_forward_pre_hook(lambda _, arguments: seen.append(arguments[0].clone()))
    try:
        draw()
    finally:
        handle.remove()
    return seen[0]


def test_an_inpainting_checkpoint_is_shown_the_mask_and_what_is_left_of_the_picture(nine: Studio) -> None:
    vae = nine.engine.store.load(nine.engine.catalog.find("nine")).pipeline.vae
    over = mask((32, 0, 64, 64))
    seen = shown(nine, lambda: paint(nine, photo(), over, content="fill"))
    assert seen.shape == (2, 9, 8, 8)
    assert torch.equal(seen[:, 4, :, 4:], torch.ones(2, 8, 4))
    assert torch.equal(seen[:, 4, :, :4], torch.zeros(2, 8, 4))
    with torch.inference_mode():
        tensor = torch.from_numpy(pixels(photo()).copy()).permute(2, 0, 1)[None] / 127.5 - 1
        tensor[:, :, :, 32:] = 0
        encoded = vae.encode(tensor).latent_dist.mode() * vae.config.scaling_factor
    torch.testing.assert_close(seen[0, 5:], encoded[0])
    assert torch.equal(seen[0, 5:], seen[1, 5:])


def test_with_an_inpainting_checkpoint_the_rest_stays_too(nine: Studio) -> None:
    drawn = paint(nine, photo(), mask(BOX), batch_size=2)
    for picture in drawn.pictures:
        assert not changed(photo(), picture)[~is_white(mask(BOX))].any()
    values = {"mask": nine.image(mask(BOX))}
    before, during, after = nine.around(values, init_image=nine.image(photo()))
    assert before == after != during
    assert leftovers(nine, "nine") == ([], 1)  # what it is shown if nobody masks anything


def test_an_inpainting_checkpoint_draws_from_nothing_too(nine: Studio) -> None:
    seen = shown(nine, lambda: nine.draw(cfg_scale=1))
    assert seen.shape == (1, 9, 8, 8)
    assert torch.equal(seen[:, 4], torch.ones(1, 8, 8))


# --- soft inpainting


def test_soft_inpainting_keeps_what_lies_beside_the_mask(studio: Studio) -> None:
    soft = np.asarray(mask(BOX).filter(ImageFilter.GaussianBlur(8)))
    drawn = paint(studio, photo(), mask(BOX), blur=8, soft={}, denoising_strength=1.0)
    assert not changed(photo(), drawn.picture)[soft == 0].any()
    assert changed(photo(), drawn.picture).any()


def soft_params(**values: Any) -> Any:
    from extensions.inpaint import SoftInpainting

    return validate(SoftInpainting, values)


def test_soft_mixing_is_hard_at_the_ends_of_the_mask() -> None:
    from extensions.inpaint import soft

    old, new = torch.randn(1, 4, 2, 1), torch.randn(2, 4, 2, 1)
    covered = torch.tensor([0.0, 1.0]).view(1, 1, 2, 1)
    mixed = soft.mixed(soft_params(), old, new, covered, 3.0)
    torch.testing.assert_close(mixed[:, :, 0], old.expand(2, -1, -1, -1)[:, :, 0])
    torch.testing.assert_close(mixed[:, :, 1], new[:, :, 1])


@pytest.mark.parametrize("contrast", [1, 4, 32])
def test_soft_mixing_keeps_the_length_of_vectors(contrast: float) -> None:
    from extensions.inpaint import soft

    old = torch.tensor([3.0, 0, 0, 0]).view(1, 4, 1, 1)
    new = torch.tensor([0, 1.0, 0, 0]).view(1, 4, 1, 1)
    length = soft.mixed(soft_params(transition_contrast=contrast), old, new, torch.full((1, 1, 1, 1), 0.5), 1.0).norm()
    part = 0.5**0.5  # the mask to the power of sigma x preservation
    assert float(length) == pytest.approx(((1 - part) * 3**contrast + part) ** (1 / contrast), rel=1e-4)


def test_more_noise_keeps_more_of_the_old() -> None:
    from extensions.inpaint import soft

    old, new = torch.zeros(1, 4, 1, 1) + 1, torch.zeros(1, 4, 1, 1) + 2
    mixed = [float(soft.mixed(soft_params(), old, new, torch.full((1, 1, 1, 1), 0.5), s).mean()) for s in (0.1, 2, 14)]
    assert mixed[0] > mixed[1] > mixed[2]


def test_only_what_has_changed_is_taken() -> None:
    from extensions.inpaint import soft

    away = np.zeros((8, 8), np.float32)
    covered = np.ones((8, 8), np.float32)
    assert np.asarray(soft.taken(soft_params(), away, covered, (64, 64))).max() == 0
    away[:, 5:] = 10
    taken = np.asarray(soft.taken(soft_params(), away, covered, (64, 64)))
    assert taken[:, :8].max() < 10
    assert taken[:, 56:].min() > 240
    less = np.asarray(soft.taken(soft_params(difference_threshold=8), away, covered, (64, 64)))
    assert less.sum() < taken.sum()
    zero = np.asarray(soft.taken(soft_params(difference_threshold=0, difference_contrast=0), away, covered, (64, 64)))
    assert np.isfinite(zero).all()
