"""My thing on the embedded model: `python app.py test extensions/my_thing`."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from backend.testing import Studio


@pytest.fixture(scope="module")
def studio() -> Iterator[Studio]:
    with Studio(Path(__file__).parents[1]) as studio:
        yield studio


def test_it_changes_the_picture_and_leaves_no_trace(studio: Studio) -> None:
    before, during, after = studio.around({"amount": 0.5})
    assert before == after != during


def test_an_amount_of_0_changes_nothing(studio: Studio) -> None:
    before, during, _ = studio.around({"amount": 0})
    assert before == during


def test_the_picture_remembers_the_amount(studio: Studio) -> None:
    drawn = studio.draw(extensions={studio.id: {"amount": 0.5}})
    assert "My thing amount: 0.5" in drawn.text
    assert studio.read(drawn.text) == drawn.request
