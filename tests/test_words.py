"""The words of extensions among the page's own."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from backend import registry
from backend.manifest import BUILTIN, HOME
from backend.params import Params, declared, nested
from backend.training.params import TrainParams
from ui import words


@pytest.fixture
def thing(tmp_path: Path) -> Path:
    (tmp_path / "my-thing" / "languages").mkdir(parents=True)
    return tmp_path / "my-thing"


def test_an_extension_brings_words_under_its_name(thing: Path) -> None:
    brought = {"title": "Ding", "param.units.way.up": "hinauf", "button.map": "Karte", "close": "Weg damit", "odd": 3}
    (thing / "languages" / "de.json").write_text(json.dumps(brought), "utf-8")
    found = words.table("de", [thing])
    assert found
    assert found["extension.my-thing"] == "Ding"
    assert found["param.my-thing.units.way.up"] == "hinauf"
    assert found["button.my-thing.map"] == "Karte"
    assert found["my-thing.close"] == "Weg damit"
    assert found["close"] == "Schließen"  # ours stay ours
    assert "my-thing.odd" not in found
    assert "my-thing.close" not in (words.table("en", [thing]) or {})


@pytest.mark.parametrize("text", ["{", "[1]", '"x"'])
def test_a_broken_table_brings_nothing(thing: Path, text: str) -> None:
    (thing / "languages" / "de.json").write_text(text)
    assert words.table("de", [thing]) == words.table("de", [])


@pytest.mark.parametrize("code", ["xx", "../en", "", "en.json"])
def test_a_language_that_is_none(code: str) -> None:
    assert words.table(code, []) is None


def spoken(params: type[Params], prefix: str) -> Iterator[str]:
    """The keys of what a panel says of these parameters."""
    for name, _, hints in declared(params):
        if not hints.facets:  # else the words are those of the values that decide it
            yield f"{prefix}{name}"
        if hints.help:
            yield f"{prefix}{name}.help"
        inner, _ = nested(params.model_fields[name].annotation)
        if inner:
            yield from spoken(inner, f"{prefix}{name}.")


@pytest.mark.parametrize("id", sorted(id for id in BUILTIN if (HOME / id).is_dir()))
def test_our_own_extensions_speak_german(id: str) -> None:
    loaded = registry.load(HOME, only={id, "inpaint"})
    (params,) = (extension.Params for extension in loaded.extensions if extension.id == id)
    found = words.table("de", [HOME / id])
    assert found
    assert [key for key in (f"{id}.about", *spoken(params, f"param.{id}.")) if key not in found] == []


def test_the_parameters_of_a_training_speak_german() -> None:
    found = words.table("de", [])
    assert found
    assert [key for key in spoken(TrainParams, "param.train.") if key not in found] == []
