"""The preprocessors without weights: what each makes of a picture."""

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from extensions.controlnet import weightless
from extensions.controlnet.preprocessors import TABLE
from extensions.controlnet.weightless import Sliders, finished, make, padded, resized
from tests.waiting import least_cpu

Pixels = NDArray[np.uint8]


def scene(width: int = 96, height: int = 64) -> Pixels:
    """A red square on a shaded ground, with a black line."""
    shade = np.linspace(120, 250, width)[None, :, None]
    picture = np.broadcast_to(shade, (height, width, 3)).astype(np.uint8).copy()
    picture[16:48, 32:64] = (200, 30, 30)
    picture[8, 8:90] = 0
    return picture


def made(name: str, picture: Pixels, resolution: int = 0, mask: Pixels | None = None, **sliders: float) -> Pixels:
    _, a, b = TABLE[name].resolved(-1, sliders.get("a", -1), sliders.get("b", -1))
    return make(name, picture, mask, resolution, Sliders(a, b))


WITHOUT_MASK = [m.name for m in TABLE.values() if m.is_weightless and not m.needs_mask]


@pytest.mark.parametrize("name", WITHOUT_MASK)
@pytest.mark.parametrize("shape", [(64, 96), (1, 1), (1, 200), (130, 67)])
def test_every_one_makes_a_map_of_any_picture(name: str, shape: tuple[int, int]) -> None:
    picture = np.random.default_rng(0).integers(0, 256, (*shape, 3), np.uint8)
    first, second = made(name, picture), made(name, picture)
    assert first.shape == (*shape, 3)
    assert first.dtype == np.uint8
    assert np.array_equal(first, second)


@pytest.mark.parametrize("name", WITHOUT_MASK)
def test_the_picture_itself_is_left_alone(name: str) -> None:
    picture = scene()
    picture.setflags(write=False)
    made(name, picture, 128)


def test_the_shorter_side_gets_the_resolution() -> None:
    assert resized(scene(96, 64), 128).shape == (128, 192, 3)
    assert resized(scene(64, 96), 32).shape == (48, 32, 3)
    assert resized(scene(96, 64), 64) is not None
    with pytest.raises(ValueError, match="20000 x 20 is too long for a map of 2048 pixels"):
        resized(np.zeros((20, 20000, 3), np.uint8), 2048)


def test_padding_repeats_the_edge() -> None:
    picture = scene(70, 64)
    whole = padded(picture)
    assert whole.shape == (64, 128, 3)
    assert np.array_equal(whole[:, :70], picture)
    assert (whole[:, 70:] == picture[:, 69:70]).all()


def test_none_and_the_tile_ones_hand_on_the_picture() -> None:
    for name in ("none", "tile_resample", "tile_colorfix", "tile_colorfix+sharp"):
        assert np.array_equal(made(name, scene()), scene())
    assert made("tile_resample", scene(96, 64), a=2).shape == (64 // 2, 96 // 2, 3)


def test_invert_is_its_own_inverse() -> None:
    assert np.array_equal(made("invert", made("invert", scene())), scene())
    assert made("invert", scene())[8, 20].tolist() == [255, 255, 255]


def test_canny_is_opencvs_and_obeys_its_thresholds() -> None:
    edges = made("canny", scene(), a=100, b=200)
    assert np.array_equal(edges[:, :, 0], cv2.Canny(scene(), 100, 200))
    assert set(np.unique(edges)) == {0, 255}
    assert edges[15:18, 40].any()  # the square's upper side
    assert not edges[30, 80:].any()  # the shade is no edge
    faint = np.full((64, 64, 3), 100, np.uint8)
    faint[:, 32:] = 130
    assert not made("canny", faint, a=100, b=200).any()
    assert made("canny", faint, a=10, b=20).any()


def test_canny_of_1024_pixels_is_quick() -> None:
    picture = np.random.default_rng(0).integers(0, 256, (128, 128, 3), np.uint8)
    picture = cv2.resize(picture, (1024, 1024), interpolation=cv2.INTER_CUBIC)
    assert least_cpu(lambda: made("canny", picture, 1024)) < 0.5


def test_threshold_is_black_and_white() -> None:
    found = made("threshold", scene(), a=127)
    assert set(np.unique(found)) == {0, 255}
    assert found[30, 90].tolist() == [255, 255, 255]
    assert found[8, 20].tolist() == [0, 0, 0]
    yellow = np.full((8, 8, 3), (255, 255, 90), np.uint8)
    assert not made("threshold", yellow, a=127).any()  # the darkest of its colours counts
    assert made("threshold", yellow, a=80).all()


def test_the_line_ones_find_dark_lines_whatever_the_light() -> None:
    for name in ("lineart_standard", "scribble_xdog"):
        lines = made(name, scene())
        on_line, beside = lines[8, 20:28].mean(), lines[56:, 4:28].mean()
        assert on_line > 80, name
        assert beside < 5, name


def test_a_strong_line_stays_white_in_a_scribble() -> None:
    """Twice the contrast does not fit into a byte."""
    picture = np.full((64, 64, 3), 255, np.uint8)
    picture[32] = 0
    assert made("scribble_xdog", picture)[32, 32].tolist() == [255, 255, 255]


def test_blur_takes_detail_and_keeps_the_mean() -> None:
    noise = np.random.default_rng(1).integers(0, 256, (64, 64, 3), np.uint8)
    soft = made("blur_gaussian", noise, a=9)
    assert soft.std() < noise.std() / 4
    assert abs(soft.mean() - noise.mean()) < 3


def test_shuffle_keeps_colours_and_moves_them() -> None:
    picture = scene(300, 300)
    shuffled = made("shuffle", picture)
    assert not np.array_equal(shuffled, picture)
    assert (np.abs(shuffled.astype(int) - (200, 30, 30)).sum(axis=2) < 30).any()
    other = picture.copy()
    other[0, 0] = 7
    assert not np.array_equal(made("shuffle", other)[1:], shuffled[1:])


def test_recolour_maps_are_grey_and_gamma_brightens() -> None:
    for name in ("recolor_luminance", "recolor_intensity"):
        grey = made(name, scene())
        assert (grey == grey[:, :, :1]).all()
        assert made(name, scene(), a=0.5).mean() > grey.mean()
    assert made("recolor_intensity", scene())[30, 40, 0] == 200  # the brightest of its three
    assert made("recolor_luminance", scene())[30, 40, 0] < 120


def test_the_colour_grid_has_cells_of_64_pixels() -> None:
    grid = made("color", scene(128, 128))
    assert len(np.unique(grid.reshape(-1, 3), axis=0)) <= 4
    assert (grid[:64, :64] == grid[0, 0]).all()


def test_inpaint_maps_are_transparent_under_the_mask() -> None:
    mask = np.zeros((64, 96), np.uint8)
    mask[:, 48:] = 255
    for name in ("inpaint", "inpaint_only"):
        found = made(name, scene(), mask=mask)
        assert found.shape == (64, 96, 4)
        assert np.array_equal(found[:, :, :3], scene())
        assert (found[:, :48, 3] == 255).all()
        assert (found[:, 48:, 3] == 0).all()
        assert (made(name, scene(), mask=mask[::2, ::2])[:, :46, 3] == 255).all()  # a mask of another size
        with pytest.raises(ValueError, match=f"{name} needs a mask"):
            made(name, scene())


# the finish


def test_inpaint_only_brings_the_original_back_beside_the_mask() -> None:
    drawn, original = np.full((200, 200, 3), 200, np.uint8), np.full((200, 200, 3), 50, np.uint8)
    mask = np.zeros((200, 200), np.uint8)
    mask[80:120, 80:120] = 255
    done = finished("inpaint_only", drawn, original, mask, Sliders(0, 0))
    assert (done[80:120, 80:120] == 200).all()
    assert (done[:74] == 50).all()  # the seam reaches six pixels beyond the mask
    seam = done[100, :100, 0].astype(int)
    assert (np.diff(seam) >= 0).all()
    assert np.array_equal(finished("inpaint_only", drawn, original, None, Sliders(0, 0)), drawn)


def test_recolour_keeps_the_originals_light() -> None:
    drawn, original = scene()[:, ::-1].copy(), scene()
    done = finished("recolor_luminance", drawn, original, None, Sliders(1, 0))
    before, after = (cv2.cvtColor(p, cv2.COLOR_RGB2LAB)[:, :, 0].astype(int) for p in (original, done))
    assert np.abs(before - after).mean() < 6  # what a colour cannot be that dark or bright is cut off
    done = finished("recolor_intensity", drawn, original, None, Sliders(1, 0))
    assert np.abs(done.max(axis=2).astype(int) - original.max(axis=2)).max() <= 1


def test_colour_fix_keeps_the_originals_colours_and_the_drawn_detail() -> None:
    noise = np.random.default_rng(2).normal(0, 20, (400, 400, 1))
    original = np.full((400, 400, 3), (180, 90, 60), np.uint8)
    drawn = (np.full((400, 400, 3), (60, 90, 180)) + noise).clip(0, 255).astype(np.uint8)
    done = finished("tile_colorfix", drawn, original, None, Sliders(8, 0))
    assert np.abs(done.mean(axis=(0, 1)) - (180, 90, 60)).max() < 2
    assert done.std(axis=(0, 1)).min() > 15
    sharp = finished("tile_colorfix+sharp", drawn, original, None, Sliders(8, 2))
    assert sharp.std() > done.std()
    plain = finished("tile_colorfix+sharp", drawn, original, None, Sliders(8, 0))
    assert np.array_equal(plain, done)


def test_the_ones_that_finish_are_marked() -> None:
    marked = {m.name for m in TABLE.values() if m.is_finishing}
    assert marked == {"inpaint_only", "recolor_luminance", "recolor_intensity", "tile_colorfix", "tile_colorfix+sharp"}
    assert weightless.BLOCK == 64
