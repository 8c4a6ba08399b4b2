"""Wildcards on the embedded model: `python app.py test extensions/wildcards`."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from backend.errors import ExtensionFailed, InvalidRequest
from backend.result import Progress
from backend.testing import ROOT, Drawn, Studio

FOLDER = Path(__file__).parents[1]
TEMPLATE = "a __colour__ __figure__ on a {blue|white} background"


@pytest.fixture(scope="module")
def studio(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Studio]:
    torch.set_num_threads(1)  # the same bits whoever else uses the processor
    models = tmp_path_factory.mktemp("models")
    (models / "starter").symlink_to(ROOT / "models" / "starter")
    (models / "wildcards").mkdir()
    (models / "wildcards" / "figure.txt").write_text("circle\nsquare\nstar\n")
    with Studio(FOLDER, models=models) as studio:
        yield studio


@pytest.fixture
def draw(studio: Studio) -> Callable[..., Drawn]:
    def draw(prompt: str = TEMPLATE, params: dict[str, Any] | None = None, **values: Any) -> Drawn:
        return studio.draw(prompt, extensions={"wildcards": params or {}}, **{"steps": 2, **values})

    return draw


def prompts(drawn: Drawn) -> list[str]:
    return [text.splitlines()[0] for text in drawn.texts]


def test_each_picture_has_words_of_its_own(draw: Any) -> None:
    drawn = draw(batch_size=3, n_iter=2)
    assert len(set(prompts(drawn))) > 3
    assert not any(mark in "".join(prompts(drawn)) for mark in "{|}_")
    for index in (1, 5):
        alone = draw(seed=1 + index)
        assert alone.picture.tobytes() == drawn.pictures[index].tobytes()
        assert alone.texts == drawn.texts[index : index + 1]


def test_the_picture_keeps_the_words_and_the_template(studio: Studio, draw: Any) -> None:
    drawn = draw(negative_prompt="{green|cyan}, blurry")
    assert drawn.request.prompt == prompts(drawn)[0] != TEMPLATE
    assert f"Wildcard prompt: {TEMPLATE}," in drawn.text
    assert 'Wildcard negative prompt: "{green|cyan}, blurry"' in drawn.text
    again = studio.read(drawn.text)
    assert again == drawn.request
    redrawn = studio.draw(**again.model_dump())
    assert redrawn.texts == drawn.texts
    assert redrawn.picture.tobytes() == drawn.picture.tobytes()


def test_the_template_can_be_drawn_from_again(studio: Studio, draw: Any) -> None:
    first = draw(negative_prompt="{green|cyan}")
    values = studio.read(first.text).model_dump()
    values["extensions"]["wildcards"]["again"] = True
    others = {studio.draw(**{**values, "seed": seed}).text for seed in (1, 5, 6, 7)}
    assert first.text in others
    assert len(others) == 4
    assert all(f"Wildcard prompt: {TEMPLATE}," in text for text in others)


def test_it_leaves_prompts_without_choices_alone(studio: Studio, draw: Any) -> None:
    before, during, after = studio.around({}, "a red circle", steps=2)
    assert before == during == after
    assert "Wildcard" not in draw("a red circle").text
    assert studio.draw("a {red|blue} circle", steps=2).request.prompt == "a {red|blue} circle"


def test_equal_words_are_drawn_at_once(draw: Any) -> None:
    told: list[Progress] = []
    draw("a {red} circle", batch_size=2, report=told.append)
    assert {p.batches for p in told} == {1}


def test_prompts_that_differ_already_are_kept_apart(studio: Studio, draw: Any) -> None:
    drawn = draw("{a|b}", prompts=["a {red} circle", "a {blue} circle"], batch_size=2)
    assert prompts(drawn) == ["a red circle", "a blue circle"]


def test_a_wildcard_that_is_not_there_fails_with_its_neighbours(draw: Any) -> None:
    with pytest.raises(ExtensionFailed, match=r"^Wildcards: there is no wildcard __figures__; there are __figure__$"):
        draw("a __figures__")


@pytest.mark.parametrize("params", [{"template": "x" * 8001}, {"again": "perhaps"}, {"seed": 1}])
def test_a_wrong_value_is_named(studio: Studio, params: dict[str, Any]) -> None:
    with pytest.raises(InvalidRequest, match=rf"^extensions\.wildcards\.{next(iter(params))}: "):
        studio.request(extensions={"wildcards": params})


def test_the_page_can_offer_the_names(studio: Studio) -> None:
    names = [name for name, _ in studio.registry.choices()["wildcards"]["wildcards"]]
    assert names == ["colour", "figure", "place", "shape"]
