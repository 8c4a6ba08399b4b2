"""How a map comes to the size that is drawn."""

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFilter

from extensions.controlnet import fit, maps

MODES = ("Just Resize", "Crop and Resize", "Resize and Fill")


def lines(width: int, height: int, breadth: int = 1) -> Image.Image:
    picture = Image.new("RGB", (width, height))
    draw = ImageDraw.Draw(picture)
    draw.rectangle((width // 4, height // 4, width * 3 // 4, height * 3 // 4), outline="white", width=breadth)
    draw.line((0, 0, width, height), fill="white", width=breadth)
    return picture


def ramp(width: int, height: int) -> Image.Image:
    rows, columns = np.mgrid[0:height, 0:width]
    return Image.fromarray(np.stack([columns * 255 // width, rows * 255 // height, rows * 0], 2).astype(np.uint8))


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("size", [(64, 64), (96, 64), (64, 200), (8, 8)])
@pytest.mark.parametrize("given", [(64, 64), (100, 37), (1, 1), (3, 200)])
def test_it_is_of_the_size_asked_for(mode: str, size: tuple[int, int], given: tuple[int, int]) -> None:
    for kind in ("RGB", "RGBA"):
        fitted = fit.fitted(ramp(*given).convert(kind), size, mode)
        assert (fitted.size, fitted.mode) == (size, kind)


@pytest.mark.parametrize("mode", MODES)
def test_what_has_the_size_is_left_as_it_is(mode: str) -> None:
    picture = ramp(64, 48)
    assert fit.fitted(picture, (64, 48), mode).tobytes() == picture.tobytes()


def test_just_resize_stretches() -> None:
    picture = Image.new("RGB", (40, 20))
    picture.paste("red", (20, 0, 40, 20))
    fitted = np.asarray(fit.fitted(picture, (40, 40), "Just Resize"))
    assert (fitted[:, 22:] == (255, 0, 0)).all()
    assert (fitted[:, :18] == 0).all()


def test_crop_and_resize_cuts_both_sides_alike() -> None:
    picture = Image.new("RGB", (60, 20), "red")
    picture.paste("blue", (20, 0, 40, 20))
    fitted = np.asarray(fit.fitted(picture, (20, 20), "Crop and Resize"))
    assert (fitted == (0, 0, 255)).all()


@pytest.mark.parametrize("across", [True, False])
def test_of_a_strip_just_its_middle_is_enlarged(across: bool) -> None:
    """All of it at that scale would be 300 GB."""
    picture = Image.new("RGB", (100_000, 2), "red")
    picture.paste("blue", (49_998, 0, 50_002, 2))
    picture = picture if across else picture.transpose(Image.Transpose.TRANSPOSE)
    fitted = np.asarray(fit.fitted(picture, (1024, 1024), "Crop and Resize"))
    assert (fitted == (0, 0, 255)).all()


def test_resize_and_fill_fills_with_the_usual_colour_of_the_border() -> None:
    picture = Image.new("RGB", (60, 20), (10, 20, 30))
    picture.paste("white", (10, 5, 50, 15))
    picture.putpixel((0, 0), (255, 0, 0))
    fitted = np.asarray(fit.fitted(picture, (60, 60), "Resize and Fill"))
    assert (fitted[:20] == (10, 20, 30)).all()
    assert (fitted[40:] == (10, 20, 30)).all()
    assert fitted[20:40].tobytes() == picture.tobytes()


def test_what_lies_beside_a_masked_picture_is_to_be_drawn() -> None:
    picture = Image.new("RGBA", (60, 20), (10, 20, 30, 255))
    fitted = np.asarray(fit.fitted(picture, (60, 60), "Resize and Fill"))
    assert (fitted[:20, :, 3] == 0).all()
    assert (fitted[20:40, :, 3] == 255).all()


def test_transparency_stays_all_or_nothing() -> None:
    picture = Image.new("RGBA", (30, 30), (10, 20, 30, 255))
    picture.paste((90, 90, 90, 0), (7, 7, 22, 22))
    for size in ((100, 100), (17, 17)):
        assert set(np.asarray(fit.fitted(picture, size, "Just Resize"))[:, :, 3].ravel().tolist()) == {0, 255}


def test_few_colours_stay_those_colours() -> None:
    """Of a segmentation, of a pose: a mixture of two means something else."""
    picture = Image.new("RGB", (64, 64), (0, 0, 0))
    draw = ImageDraw.Draw(picture)
    for n, colour in enumerate([(255, 0, 0), (0, 128, 255), (9, 250, 7), (120, 120, 80)]):
        draw.ellipse((n * 14, 10, n * 14 + 20, 50), fill=colour)
    before = {tuple(c) for c in np.asarray(picture).reshape(-1, 3).tolist()}
    for size in ((200, 128), (40, 40)):
        after = {tuple(c) for c in np.asarray(fit.fitted(picture, size, "Just Resize")).reshape(-1, 3).tolist()}
        assert after <= before
        assert len(after) == len(before)


def test_a_photograph_is_smooth() -> None:
    large = np.asarray(fit.fitted(ramp(256, 256), (64, 64), "Just Resize")).astype(int)
    assert np.abs(np.diff(large[:, :, 0], axis=1)).max() <= 6


@pytest.mark.parametrize("size", [(512, 512), (200, 150), (96, 96)])
def test_thin_lines_stay_one_pixel_wide(size: tuple[int, int]) -> None:
    fitted = np.asarray(fit.fitted(lines(128, 128), size, "Just Resize"))
    assert set(fitted.ravel().tolist()) == {0, 255}
    grey = fitted[:, :, 0]
    assert fit._is_of_lines(grey)
    row = grey[size[1] // 3]  # crosses the frame twice and the diagonal once
    runs = np.flatnonzero(np.diff(np.concatenate([[0], (row > 0).astype(int)])) == 1)
    assert len(runs) == 3
    assert np.count_nonzero(row) <= 5
    assert grey[:, size[0] // 2].max() == 255


def test_lines_stay_where_they_are() -> None:
    small = np.asarray(lines(128, 128))[:, :, 0] > 0
    large = np.asarray(fit.fitted(lines(128, 128), (512, 512), "Just Resize"))[:, :, 0] > 0
    back = large.reshape(128, 4, 128, 4).any(axis=(1, 3))
    grown = np.asarray(lines(128, 128).filter(ImageFilter.MaxFilter(3)))[:, :, 0] > 0
    assert (back <= grown).all()
    assert (back & small).sum() > 0.9 * small.sum()


def test_thick_strokes_stay_binary_and_thick() -> None:
    fitted = np.asarray(fit.fitted(lines(128, 128, 9), (384, 384), "Just Resize"))
    assert set(fitted.ravel().tolist()) == {0, 255}
    share = (np.asarray(lines(128, 128, 9)) > 0).mean()
    assert (fitted > 0).mean() == pytest.approx(share, rel=0.05)


def test_a_picture_of_one_colour_is_fitted() -> None:
    for colour in ("black", "white", (12, 200, 7)):
        for mode in MODES:
            fitted = fit.fitted(Image.new("RGB", (30, 20), colour), (64, 64), mode)
            assert np.asarray(fitted).std(axis=(0, 1)).max() == 0


@pytest.mark.parametrize(
    ("mode", "perfect"), [("Resize and Fill", 50), ("Crop and Resize", 100), ("Just Resize", 100)]
)
def test_pixel_perfect_is_upstreams(mode: str, perfect: int) -> None:
    """100 x 100 drawn at 50 wide and 100 high."""
    assert maps.perfect((100, 100), (50, 100), mode) == perfect
