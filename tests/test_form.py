"""A declaration becomes widgets, and what the widgets hold becomes a request again."""

import json
import re
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import StringConstraints

from backend.errors import InvalidRequest, NotFound
from backend.extension import Extension, PanelForm
from backend.images import ImageRef
from backend.params import Facet, Param, Params, Widget, declared
from backend.request import GenerationRequest, parse_request
from ui import create, form
from ui.parts import STATIC, languages, surface

PANEL = (STATIC / "js" / "panel.js").read_text("utf-8")


def fields() -> dict[str, dict[str, Any]]:
    return {field["name"]: field for field in form.describe(GenerationRequest)}


def test_every_parameter_has_a_widget() -> None:
    assert list(fields()) == [name for name, _, _ in declared(GenerationRequest)]
    shown = [field["name"] for row in create.core_panel()["rows"] for field in row]
    assert sorted(shown) == sorted(fields())


def test_every_kind_of_widget_is_drawn() -> None:
    drawn = PANEL.split("const WIDGETS = {")[1]
    for kind in (*get_args(Widget), "many"):
        assert re.search(rf"^  {kind}\(", drawn, re.MULTILINE), kind


def test_hints_reach_the_browser() -> None:
    described = fields()
    properties = GenerationRequest.model_json_schema()["properties"]
    for name, label, hints in declared(GenerationRequest):
        field = described[name]
        assert (field["label"], field["kind"], field["default"]) == (label, hints.widget, properties[name]["default"])
        for key, hint in (
            ("min", properties[name].get("minimum")),
            ("max", properties[name].get("maximum")),
            ("multiple", properties[name].get("multipleOf")),
            ("step", hints.step),
            ("slider", hints.slider),
            ("shownFor", hints.shown_for),
            ("infotext", hints.infotext),
        ):
            assert field.get(key) == hint, (name, key)
        assert field.get("help", "") == hints.help
        assert field.get("group", "") == hints.group
    assert json.loads(json.dumps(described))  # all of it is JSON


def test_a_limit_of_zero_is_kept() -> None:
    assert fields()["denoising_strength"]["min"] == 0
    assert "maxLength" not in fields()["steps"]


def test_the_order_names_only_what_there_is() -> None:
    named = [name for row in create.ORDER for name in row] + list(create.IN_HEADER)
    assert set(named) <= set(fields())
    assert len(named) == len(set(named))


def test_what_the_order_does_not_name_comes_after() -> None:
    class Three(Params):
        one: int = Param(1, "One")
        two: bool = Param(False, "Two")
        three: str = Param("", "Three")

    rows = form.panel("three", "Three", Three, order=(("three", "one"),))["rows"]
    assert [[field["name"] for field in row] for row in rows] == [["three", "one"], ["two"]]


class Tuning(Params):
    rate: float = Param(0.5, "Rate", ge=0, le=1)
    unseen: int = 3


class Unit(Params):
    weight: float = Param(1.0, "Weight", ge=0, le=2)
    image: ImageRef | None = Param(None, "Image", widget="image")
    tuning: Tuning | None = Param(None, "Tuning")


class Kit(Params):
    units: tuple[Unit, ...] = Param((), "Units", max_length=3)
    more: list[Unit] = Param((), "More")
    tuning: Tuning = Param(Tuning(rate=0.2), "Tuning")
    guard: Annotated[Tuning | None, "said twice"] = Param(None, "Guard")
    names: tuple[str, ...] = Param((), "Names", choices="names", max_length=2)
    words: tuple[Annotated[str, StringConstraints(max_length=9)], ...] = Param(("ink",), "Words")
    way: Literal["up", "down"] = Param("up", "Way")
    limit: int | None = Param(None, "Limit", widget="number", ge=1, le=9)
    table: dict[str, int] = Param({}, "Table")
    pair: tuple[Unit, Tuning] | None = Param(None, "Pair")


def kit() -> dict[str, dict[str, Any]]:
    return {field["name"]: field for field in form.describe(Kit)}


def test_the_type_decides_what_a_field_looks_like() -> None:
    kinds = {name: field["kind"] for name, field in kit().items()}
    assert kinds == {
        "units": "units",
        "more": "units",
        "tuning": "params",
        "guard": "params",
        "names": "many",
        "words": "many",
        "way": "select",
        "limit": "number",
    }  # there is no widget for the others
    assert [list(choice) for choice in kit()["way"]["choices"]] == [["up", "up"], ["down", "down"]]
    assert kit()["limit"] | {"optional": True, "integer": True, "min": 1, "max": 9, "default": None} == kit()["limit"]
    assert "optional" not in kit()["tuning"]
    assert kit()["guard"]["optional"]
    assert json.loads(json.dumps(kit()))


def test_parameters_within_parameters_are_described() -> None:
    units = kit()["units"]
    inner = {field["name"]: field for row in units["rows"] for field in row}
    assert list(inner) == ["weight", "image", "tuning"]
    assert (inner["weight"]["min"], inner["weight"]["max"], inner["weight"]["default"]) == (0, 2, 1.0)
    assert inner["tuning"]["rows"][0][0]["name"] == "rate"  # as deep as they go; what has no Param is not shown
    assert (units["most"], units["default"]) == (3, [])
    assert kit()["more"]["default"] == []
    assert kit()["tuning"]["default"]["rate"] == 0.2
    assert kit()["names"]["most"] == 2
    assert kit()["words"]["default"] == ["ink"]


def test_facets_make_a_slider() -> None:
    class Faceted(Params):
        way: Literal["soft", "hard"] = Param("soft", "Way")
        edge: float = Param(-1, "Edge", decided_by="way", facets={"hard": Facet("Hardness", 100, 1, 255, 0.5)})

    edge = form.describe(Faceted)[1]
    assert (edge["kind"], edge["decidedBy"], edge["default"]) == ("slider", "way", -1)
    assert edge["facets"] == {"hard": {"label": "Hardness", "default": 100, "ge": 1, "le": 255, "step": 0.5}}
    assert "decidedBy" not in form.describe(Faceted)[0]


def test_what_the_widgets_hold_becomes_parameters_within_parameters() -> None:
    given = {"units": [{"weight": 0.5, "tuning": {"rate": 1}}, {}], "guard": None, "names": ["a"], "limit": None}
    sent = json.loads(json.dumps({"extensions": {"kit": given}}))
    params = parse_request(form.collect(sent), {"kit": Kit}).extensions["kit"]
    assert params == Kit(units=(Unit(weight=0.5, tuning=Tuning(rate=1)), Unit()), names=("a",))
    with pytest.raises(InvalidRequest) as caught:
        parse_request(form.collect({"extensions": {"kit": {"units": [{}, {"weight": 9}]}}}), {"kit": Kit})
    assert [problem.field for problem in caught.value.problems] == ["extensions.kit.units.1.weight"]


def test_buttons_of_a_panel() -> None:
    class Pressing(Extension):
        id = "pressing"
        title = "Pressing"

        def panel(self, form: PanelForm) -> None:
            form.button("Show the map", "maps/show", help="What the model sees.")

    class Failing(Pressing):
        def panel(self, form: PanelForm) -> None:
            form.button("Go elsewhere", "../../api/jobs")

    made = create.extension_panel(Pressing())
    assert made["buttons"] == [{"label": "Show the map", "route": "maps/show", "help": "What the model sees."}]
    assert create.extension_panel(Failing())["buttons"] == []  # and the page is there all the same


@given(
    steps=st.integers(1, 150),
    width=st.integers(8, 512).map(lambda n: n * 8),
    strength=st.floats(0, 1),
    prompt=st.text(max_size=50),
)
def test_values_come_back_as_a_request(steps: int, width: int, strength: float, prompt: str) -> None:
    defaults = {name: field["default"] for name, field in fields().items()}
    changed = {"steps": steps, "width": width, "denoising_strength": strength, "prompt": prompt}
    sent = json.loads(json.dumps({**defaults, **changed, "extensions": {}}))
    assert parse_request(form.collect(sent)) == GenerationRequest(**changed)


@pytest.mark.parametrize("values", [None, [], "x", 3, {"extensions": [1]}, {"extensions": "glow"}])
def test_a_form_that_is_none_is_refused(values: Any) -> None:
    with pytest.raises(InvalidRequest):
        parse_request(form.collect(values))


def test_an_extension_that_is_off_is_absent() -> None:
    assert form.collect({"steps": 3, "extensions": {"glow": None}}) == {"steps": 3}
    assert form.collect({"extensions": {"glow": {"amount": 1}}}) == {"extensions": {"glow": {"amount": 1}}}


def test_generate_answers_in_words() -> None:
    class Refusing:
        def submit(self, values: dict[str, Any], owner: str) -> None:
            if values.get("model"):
                raise NotFound("there is no such model")
            parse_request(values)

    assert create.enqueue(Refusing(), {"model": "x"}, "ada") == {"error": "there is no such model"}  # type: ignore[arg-type]
    answer = create.enqueue(Refusing(), {"steps": 0, "seed": "x"}, "ada")  # type: ignore[arg-type]
    assert {problem["field"] for problem in answer["problems"]} == {"steps", "seed"}


def test_every_language_is_whole() -> None:
    tables = languages()
    english = tables.pop("en")
    assert tables
    labels = {f"param.{name}" for name in fields()}
    helps = {f"param.{name}.help" for name, field in fields().items() if "help" in field}
    plural = re.compile(r"\.(zero|one|two|few|many|other)$")
    for code, words in tables.items():
        wanted = {key for key in english if not plural.search(key)} | labels | helps
        assert wanted - set(words) == set(), code
        for key in set(words) & set(english):
            assert set(re.findall(r"\{\w+\}", words[key])) == set(re.findall(r"\{\w+\}", english[key])), (code, key)


def loaded(script: Path) -> dict[Path, str]:
    """The scripts that `script` brings into the page, itself included, with their text."""
    found, left = {}, [script]
    while left:
        path = left.pop()
        if path not in found:
            found[path] = path.read_text("utf-8")
            left += [path.parent / name for name in re.findall(r'from "\./([\w-]+\.js)"', found[path])]
    return found


def test_every_word_that_the_page_looks_up_is_there() -> None:
    english = languages()["en"]
    scripts = loaded(STATIC / "js" / "ui.js")
    assert len(scripts) > 10
    for path, text in scripts.items():
        for key in re.findall(r'[^\w.]t\(\s*"([\w.]+)"', text):
            assert key in english or f"{key}.one" in english or key.startswith("param."), (path.name, key)


def test_no_script_writes_markup() -> None:
    for script in STATIC.rglob("*.js"):
        text = script.read_text("utf-8")
        for sink in ("innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval(", "new Function"):
            assert sink not in text, (script.name, sink)
        assert not re.search(r"https?://(?!www\.w3\.org/2000/svg)", text), script.name


def test_templates_are_constant() -> None:
    made = surface("stage", elem_id="x")
    assert made.html_template == '<div class="surface" data-surface="stage"></div>'
    with pytest.raises(ValueError, match="letters"):
        surface("stage'}); alert(1)//")
