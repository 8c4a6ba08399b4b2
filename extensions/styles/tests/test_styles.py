"""Styles on the embedded model: `python app.py test extensions/styles`."""

import csv
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from starlette.testclient import TestClient

from backend import infotext, registry
from backend.errors import ExtensionFailed, InvalidRequest, NotFound
from backend.params import Params
from backend.request import GenerationRequest, parse_request
from backend.testing import Drawn, Studio
from extensions.styles import StylesParams
from extensions.styles.table import MAX_STYLES, Style, Table, merged
from tests.web import PASSWORD, atelier, basic, visit

FOLDER = Path(__file__).parents[1]
OF_A1111 = (
    "\ufeffname,prompt,negative_prompt\r\n"
    'night,"{prompt}, at night",\r\n'
    'framed,"a picture of {prompt}, {prompt}","blurry, {prompt}"\r\n'
    "ink,ink drawing,photo\r\n"
    '"big, bold",LOUD,\r\n'
    ",nameless,\r\n"
)


@pytest.fixture(scope="module")
def studio() -> Iterator[Studio]:
    torch.set_num_threads(1)  # the same bits whoever else uses the processor
    with Studio(FOLDER) as studio:
        yield studio


@pytest.fixture
def draw(studio: Studio) -> Callable[..., Drawn]:
    studio.extension.data.mkdir(parents=True, exist_ok=True)
    (studio.extension.data / "styles.csv").write_text(OF_A1111, "utf-8", newline="")

    def draw(names: Any, prompt: str = "a red circle", **values: Any) -> Drawn:
        params = names if isinstance(names, dict) else {"names": names}
        return studio.draw(prompt, extensions={"styles": params}, **{"steps": 1, **values})

    return draw


@pytest.fixture
def table(tmp_path: Path) -> Table:
    return Table(tmp_path / "styles.csv")


# in pictures


def test_the_prompt_gets_the_words_of_each_style_in_turn(draw: Any) -> None:
    drawn = draw(["night", "framed", "ink"], negative_prompt="dull")
    assert drawn.request.prompt == (
        "a picture of a red circle, at night, a red circle, at night, ink drawing"  # as A1111 puts them
    )
    assert drawn.request.negative_prompt == "blurry, dull, photo"
    assert draw(["ink", "night"]).request.prompt == "a red circle, ink drawing, at night"


def test_the_picture_keeps_words_and_names_and_can_be_drawn_again(studio: Studio, draw: Any) -> None:
    drawn = draw(["night", "big, bold"])
    assert drawn.text.startswith("a red circle, at night, LOUD\n")
    assert 'Styles: "night, \\"big, bold\\""' in drawn.text
    again = studio.read(drawn.text)
    assert again == drawn.request
    redrawn = studio.draw(**again.model_dump())
    assert (redrawn.text, redrawn.picture.tobytes()) == (drawn.text, drawn.picture.tobytes())
    assert studio.draw(drawn.request.prompt, steps=1).picture.tobytes() == drawn.picture.tobytes()


def test_what_was_applied_before_is_added_to(draw: Any) -> None:
    drawn = draw({"names": "ink", "applied": "night"}, "a red circle, at night")
    assert drawn.request.prompt == "a red circle, at night, ink drawing"
    assert 'Styles: "night, ink"' in drawn.text


def test_prompts_of_single_images_get_them_too(draw: Any) -> None:
    drawn = draw(["ink"], batch_size=2, prompts=["a", "b"], negative_prompts=["c", "d"])
    assert [text.splitlines()[:2] for text in drawn.texts] == [
        [f"{prompt}, ink drawing", f"Negative prompt: {negative}, photo"] for prompt, negative in ("ac", "bd")
    ]


def test_off_means_absent(studio: Studio, draw: Any) -> None:
    draw([])
    before, during, after = studio.around({"names": ["ink"]}, steps=1)
    assert before == after != during
    assert studio.around({}, steps=1)[1] == before
    assert "Styles" not in draw([]).text


def test_a_style_that_is_not_there_fails_with_its_neighbours(studio: Studio, draw: Any) -> None:
    with pytest.raises(ExtensionFailed, match=r"^Styles: there is no style 'knight'; there are night$"):
        draw(["ink", "knight"])
    with pytest.raises(
        ExtensionFailed, match=r"^Styles: there is no style 'x'; there are night, framed, ink, big, bold$"
    ):
        draw(["x"])
    (studio.extension.data / "styles.csv").unlink()
    with pytest.raises(ExtensionFailed, match=r"^Styles: there is no style 'ink'$"):
        studio.draw(extensions={"styles": {"names": ["ink"]}})


def test_prompts_do_not_grow_without_end(studio: Studio, draw: Any) -> None:
    rows = "name,prompt\ntwice,{prompt}{prompt}\nlong," + "x" * 8000 + "\n"
    (studio.extension.data / "styles.csv").write_text(rows, "utf-8")
    for names in (["twice"] * 32, ["long"]):
        with pytest.raises(
            ExtensionFailed, match=r"^Styles: with its styles the prompt has more than 8000 characters$"
        ):
            draw(names)


@pytest.mark.parametrize(
    ("params", "field"),
    [
        ({"names": ["x" * 101]}, "names.0"),
        ({"names": [" "]}, "names.0"),
        ({"names": ["a\nb"]}, "names.0"),
        ({"names": ["a"] * 33}, "names"),
        ({"names": 3}, "names"),
        ({"name": "a"}, "name"),
    ],
)
def test_a_wrong_value_is_named(studio: Studio, params: dict[str, Any], field: str) -> None:
    with pytest.raises(InvalidRequest, match=rf"^extensions\.styles\.{field}: "):
        studio.request(extensions={"styles": params})


NAMES = st.text(st.characters(codec="utf-8", exclude_categories=["Cc", "Cs"]), min_size=1, max_size=20)


@given(st.lists(NAMES.map(str.strip).filter(bool), min_size=1, max_size=4))
def test_any_name_comes_back_from_a_picture(names: list[str]) -> None:
    known: dict[str, type[Params]] = {"styles": StylesParams}
    applied = StylesParams(applied=tuple(names))
    request = GenerationRequest(prompt="x", seed=1, model="m", extensions={"styles": applied})
    assert parse_request(infotext.read(infotext.write(request), known).values, known) == request


# the table


def test_a_table_of_a1111_is_read(table: Table, tmp_path: Path) -> None:
    assert table.read() == {}
    (tmp_path / "styles.csv").write_text(OF_A1111, "utf-8", newline="")
    assert list(table.read()) == ["night", "framed", "ink", "big, bold"]
    assert table.read()["ink"] == Style(name="ink", prompt="ink drawing", negative_prompt="photo")
    (tmp_path / "styles.csv").write_text("name,text\nold,words\nshort\n", "utf-8")
    assert table.read() == {"old": Style(name="old", prompt="words"), "short": Style(name="short")}
    (tmp_path / "styles.csv").write_bytes(b"")
    assert table.read() == {}


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"name,prompt\ncaf\xe9,x\n", "is not UTF-8 text"),
        (b"title,prompt\na,b\n", "has no column name in its first line"),
        (b"name,prompt\na," + b"x" * 8001, "the prompt 'xxxx.*: String should have at most 8000 characters"),
        (b"name,prompt\na," + b"x" * 200_000, "is not a table: field larger than field limit"),
        (b"name\n" + b"x" * 8 * 2**20, "is larger than 8 MB"),
    ],
)
def test_a_table_that_makes_no_sense_is_left_alone(table: Table, tmp_path: Path, data: bytes, reason: str) -> None:
    (tmp_path / "styles.csv").write_bytes(data)
    for act in (table.read, lambda: table.put(Style(name="a")), lambda: table.remove("a")):
        with pytest.raises(ValueError, match=reason):
            act()
    assert (tmp_path / "styles.csv").read_bytes() == data


def test_a_style_is_saved_replaced_and_deleted(table: Table, tmp_path: Path) -> None:
    style = Style(name='a, "b"', prompt="line\nline, {prompt}", negative_prompt="é")
    table.put(style)
    table.put(Style(name="z"))
    table.put(style.model_copy(update={"prompt": "new"}))
    assert table.read() == {style.name: style.model_copy(update={"prompt": "new"}), "z": Style(name="z")}
    with open(tmp_path / "styles.csv", encoding="utf-8-sig", newline="") as file:  # as A1111 reads it
        assert [row["name"] for row in csv.DictReader(file)] == [style.name, "z"]
    table.remove(style.name)
    assert list(table.read()) == ["z"]
    with pytest.raises(NotFound, match="there is no style 'nope'"):
        table.remove("nope")
    assert [path.name for path in tmp_path.iterdir()] == ["styles.csv"]


def test_there_is_an_end_to_styles(table: Table, tmp_path: Path) -> None:
    (tmp_path / "styles.csv").write_text("name\n" + "\n".join(f"s{i}" for i in range(MAX_STYLES)), "utf-8")
    with pytest.raises(ValueError, match="there are 2000 styles already"):
        table.put(Style(name="one more"))
    table.put(Style(name="s7", prompt="x"))
    assert len(table.read()) == MAX_STYLES


def test_merging() -> None:
    assert merged("b", "a") == "a, b"
    assert merged("b", " ") == "b"
    assert merged("", "a") == "a"
    assert merged("x {prompt} y {prompt}", "a") == "x a y a"


# over HTTP


@pytest.fixture
def browser(tmp_path: Path) -> Iterator[TestClient]:
    services = atelier(tmp_path, auth=f"ada:{PASSWORD}")
    extensions = registry.load(FOLDER.parent, only={"styles"}, kept=tmp_path / "kept")
    with visit(replace(services, registry=extensions)) as browser:
        browser.headers |= basic("ada", PASSWORD)
        yield browser


def test_styles_over_http(browser: TestClient) -> None:
    assert browser.get("/extensions/styles/").json() == []
    style = {"name": "ink / pen", "prompt": "ink", "negative_prompt": ""}
    answer = browser.post("/extensions/styles/", json={"name": " ink / pen ", "prompt": "ink"})
    assert (answer.status_code, answer.json()) == (201, style)
    assert browser.get("/extensions/styles/").json() == [style]
    assert browser.get("/api/choices").json()["extensions"] == {"styles": {"styles": [["ink / pen"] * 2]}}
    assert browser.delete("/extensions/styles/ink%20%2F%20pen").status_code == 204
    assert browser.get("/api/choices").json()["extensions"] == {"styles": {"styles": []}}
    answer = browser.delete("/extensions/styles/ink")
    assert (answer.status_code, answer.json()) == (404, {"detail": "there is no style 'ink'"})


@pytest.mark.parametrize(
    "body", [{}, {"name": ""}, {"name": "a", "prompt": "x" * 8001}, {"name": "a", "text": "x"}, {"name": 3}, [], "a"]
)
def test_a_wrong_style_is_refused(browser: TestClient, body: Any) -> None:
    assert browser.post("/extensions/styles/", json=body).status_code == 422
    assert browser.get("/extensions/styles/").json() == []


def test_a_body_without_end_is_refused(browser: TestClient) -> None:
    assert browser.post("/extensions/styles/", json={"name": "a", "prompt": "x" * 300_000}).status_code == 413


def test_a_broken_table_is_said_and_hides_nothing_else(browser: TestClient, tmp_path: Path) -> None:
    (tmp_path / "kept" / "styles").mkdir(parents=True)
    (tmp_path / "kept" / "styles" / "styles.csv").write_bytes(b"\xff\xff")
    for answer in (browser.get("/extensions/styles/"), browser.post("/extensions/styles/", json={"name": "a"})):
        assert answer.status_code == 422
        assert answer.json()["detail"] == "styles.csv is not UTF-8 text"
    assert browser.get("/api/choices").json()["extensions"] == {}


def test_only_who_has_signed_in_may(browser: TestClient) -> None:
    del browser.headers["Authorization"]
    for method, path in (("GET", ""), ("POST", ""), ("DELETE", "ink")):
        assert browser.request(method, f"/extensions/styles/{path}", json={"name": "a"}).status_code == 401
