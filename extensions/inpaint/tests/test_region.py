"""Which part of a picture is worked on, and at what size."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from extensions.inpaint.region import Box, around, working_size

sides = st.integers(1, 4096)


@st.composite
def masked_pictures(draw: st.DrawFn) -> tuple[Box, tuple[int, int]]:
    width, height = draw(sides), draw(sides)
    left, top = draw(st.integers(0, width - 1)), draw(st.integers(0, height - 1))
    right, bottom = draw(st.integers(left + 1, width)), draw(st.integers(top + 1, height))
    return Box(left, top, right, bottom), (width, height)


@given(masked_pictures(), st.integers(0, 256), st.tuples(st.integers(64, 4096), st.integers(64, 4096)))
def test_the_region_holds_the_mask_and_its_padding_and_stays_in_the_picture(
    given: tuple[Box, tuple[int, int]], padding: int, ratio: tuple[int, int]
) -> None:
    masked, size = given
    box = around(masked, padding, ratio, size)
    padded = Box(
        max(masked.left - padding, 0),
        max(masked.top - padding, 0),
        min(masked.right + padding, size[0]),
        min(masked.bottom + padding, size[1]),
    )
    assert box.holds(padded)
    assert Box(0, 0, *size).holds(box)


@pytest.mark.parametrize(
    ("masked", "padding", "ratio", "size", "found"),
    [
        ((100, 100, 120, 120), 0, (1, 1), (512, 512), "20x20+100+100"),
        ((100, 100, 120, 120), 32, (1, 1), (512, 512), "84x84+68+68"),
        ((100, 100, 140, 120), 0, (1, 1), (512, 512), "40x40+100+90"),
        ((100, 100, 120, 120), 0, (2, 1), (512, 512), "40x20+90+100"),
        ((0, 0, 20, 40), 0, (1, 1), (512, 512), "40x40+0+0"),  # pushed back into the picture
        ((500, 100, 512, 112), 8, (1, 1), (512, 512), "28x28+484+92"),  # the padding ends at its edge
        ((112, 0, 192, 128), 32, (1, 1), (192, 128), "128x128+64+0"),
        ((0, 0, 300, 10), 0, (1, 1), (300, 100), "300x100+0+0"),  # as far as it goes
    ],
)
def test_the_region_grows_to_the_shape_that_was_asked_for(
    masked: tuple[int, int, int, int], padding: int, ratio: tuple[int, int], size: tuple[int, int], found: str
) -> None:
    assert str(around(Box(*masked), padding, ratio, size)) == found
    assert str(Box.read(found)) == found


@given(sides, sides, st.integers(8, 512).map(lambda n: 8 * n), st.integers(8, 512).map(lambda n: 8 * n))
def test_the_working_size_is_one_that_can_be_drawn(width: int, height: int, across: int, down: int) -> None:
    for side in working_size(Box(0, 0, width, height), (across, down)):
        assert side % 8 == 0
        assert 64 <= side <= 4096


@pytest.mark.parametrize(
    ("box", "budget", "size"),
    [
        ((128, 128), (128, 128), (128, 128)),
        ((192, 128), (128, 128), (192, 128)),  # near enough to be left as it is
        ((1024, 768), (512, 512), (592, 440)),
        ((100, 100), (512, 512), (512, 512)),
        ((2048, 64), (128, 128), (2048, 64)),  # no side below 64
        ((4096, 8), (512, 512), (4096, 64)),
    ],
)
def test_the_working_size_has_the_shape_of_the_region_and_as_many_pixels_as_were_asked_for(
    box: tuple[int, int], budget: tuple[int, int], size: tuple[int, int]
) -> None:
    assert working_size(Box(0, 0, *box), budget) == size


@pytest.mark.parametrize("text", ["", "64", "64x64", "64x64+0", "0x64+0+0", "-64x64+0+0", "64x64+0+0+0", "64X64+0+0"])
def test_what_is_no_region_is_said(text: str) -> None:
    with pytest.raises(ValueError, match=r"512x384\+64\+0"):
        Box.read(text)
