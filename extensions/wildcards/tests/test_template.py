"""Templates and files, without a model."""

import contextlib
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from extensions.wildcards.files import Files
from extensions.wildcards.template import MAX_CHOICES, Choices
from tests.waiting import least_cpu


@pytest.fixture
def choices(tmp_path: Path) -> Choices:
    """Of files in two folders; the first has a say before the second."""
    for path, text in {
        "own/colour.txt": "red\n\n  blue  \n# a comment\r\n",
        "own/clothes/hat.txt": "\ufeff__colour__ {cap|hat}\n",
        "own/clothes/winter/shoe.txt": "boot",
        "own/many.txt": "\n".join(str(i) for i in range(9)),
        "own/.hidden.txt": "x",
        "own/notes.md": "x",
        "own/weighted.txt": "9::often\nseldom\n0::never\n",
        "own/round.txt": "a __trip__",
        "own/trip.txt": "__round__",
        "own/empty.txt": "# nothing\n\n",
        "own/split.txt": "_\n",
        "shipped/colour.txt": "grey",
        "shipped/animal.txt": "cat",
    }.items():
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(text, "utf-8", newline="")
    (tmp_path / "own" / "latin.txt").write_bytes("caf\xe9".encode("latin-1"))
    return Choices(Files([tmp_path / "own", tmp_path / "shipped", tmp_path / "nowhere"]))


@pytest.fixture
def outcomes(choices: Choices) -> Callable[[str], set[str]]:
    return lambda template: {choices.made(template, str(seed)) for seed in range(150)}


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        ("a cat", {"a cat"}),
        ("a {red|blue} cat", {"a red cat", "a blue cat"}),
        ("a{ big|} cat", {"a big cat", "a cat"}),
        ("{a}{}", {"a"}),
        ("{a|{b|c} d}", {"a", "b d", "c d"}),
        ("{a|b}{c|d}", {"ac", "ad", "bc", "bd"}),
        ("{0::a|b}", {"b"}),
        ("{2$$a|b}", {"a, b", "b, a"}),
        ("{2$$ and $$a|b}", {"a and b", "b and a"}),
        ("{3$$a|b}", {"a, b", "b, a"}),
        ("{1-2$$a|b}", {"a", "b", "a, b", "b, a"}),
        ("{-1$$a|b}", {"a", "b"}),
        ("{2-$$a|b|0::c}", {"a, b", "b, a"}),
        ("{0$$a|b}c", {"c"}),
        ("{1$$2::a|b}", {"a", "b"}),
        ("[a|b] (c:1.2) <lora:{x|y}:1>", {f"[a|b] (c:1.2) <lora:{x}:1>" for x in "xy"}),
        (r"\{a|b\} {c\|d}", {r"\{a|b\} c\|d"}),
        ("costs 5$$ or a::b", {"costs 5$$ or a::b"}),
        ("snake_case __ init__", {"snake_case __ init__"}),
        ("a __colour__ one", {"a red one", "a blue one"}),
        ("__clothes/hat__", {f"{c} {h}" for c in ("red", "blue") for h in ("cap", "hat")}),
        ("__clothes/*shoe__", {"boot"}),
        ("__c*r__ __*mal__", {"red cat", "blue cat"}),
        ("{2$$__colour__}", {"red, blue", "blue, red"}),
        ("{2$$ & $$ __colour__ }", {"red & blue", "blue & red"}),
        ("{2$$__colour__|x}", {"red, x", "blue, x", "x, red", "x, blue"}),
        (r"\__colour__", {r"\__colour__"}),
        ("{a|b\nc}", {"a", "b\nc"}),
    ],
)
def test_what_comes_of_a_template(outcomes: Callable[[str], set[str]], template: str, expected: set[str]) -> None:
    assert outcomes(template) == expected


def test_weights_are_how_often(choices: Choices) -> None:
    for template, often in (("{3::a|b}", "a"), ("__weighted__", "often")):
        count = Counter(choices.made(template, str(seed)) for seed in range(2000))
        assert len(count) == 2
        assert count[often] / 2000 == pytest.approx(0.9 if often == "often" else 0.75, abs=0.04)


def test_a_choice_stays_what_it_is(choices: Choices) -> None:
    """Were this to change, no old template could be drawn again."""
    made = [choices.made("{a|b|c|d} {2$$x|y|z} __many__", str(seed)) for seed in range(4)]
    assert made == ["b z, x 0", "b z, y 2", "c z, x 2", "d y, x 2"]


def test_different_ones_are_chosen(choices: Choices) -> None:
    for seed in range(20):
        numbers = choices.made("{9$$ $$__many__}", str(seed)).split()
        assert sorted(numbers) == [str(i) for i in range(9)]


@pytest.mark.parametrize(
    ("template", "reason"),
    [
        ("__colou__", r"^there is no wildcard __colou__; there are __colour__$"),
        (
            "__nothing/like/it*__",
            r"^there is no wildcard __nothing/like/it\*__; there are __animal__, __clothes",
        ),
        ("__../own/colour__", r"^there is no wildcard __\.\./own/colour__"),
        ("__/etc/hostname__", r"^there is no wildcard"),
        ("__.hidden__", r"^there is no wildcard"),
        ("__notes__", r"^there is no wildcard"),
        ("__empty__", r"^there is nothing in the wildcard __empty__$"),
        ("__latin__", r"^latin\.txt is not UTF-8 text$"),
        ("__round__", r"more than 30 choices inside one another, as in .*__round__ -> __trip__"),
        ("{0::a}", r"^there is nothing to choose from where every weight is 0$"),
        ("a {b|c", r"^a brace is never closed: 'a {b\|c'$"),
        ("a b} c", r"^a brace is closed that was never opened: 'a b} c'$"),
        ("{" * 31 + "}" * 31, r"^there are more than 30 braces"),
        ("{a|b}" * (MAX_CHOICES + 1), r"^there are more than 2000 choices to make$"),
        ("{" + "x" * 8001 + "}", r"^what comes of it has more than 8000 characters$"),
        ("${x=a}", r"^variables, \$\{\.\.\.\}, are not known here$"),
        ("{_}__split__colour__", r"^there are still choices in what was chosen: '__colour__'$"),
    ],
)
def test_what_cannot_be_chosen_is_said(choices: Choices, template: str, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        choices.made(template, "1")


def test_a_file_that_is_too_large_is_refused(tmp_path: Path) -> None:
    with open(tmp_path / "big.txt", "wb") as file:
        file.truncate(2**24)
    with pytest.raises(ValueError, match=r"^big\.txt is larger than 8 MB$"):
        Choices(Files([tmp_path])).made("__big__", "1")


def test_the_names_are_those_of_the_files(choices: Choices) -> None:
    assert set(choices._files.names) >= {"colour", "clothes/hat", "clothes/winter/shoe", "animal"}
    assert not {".hidden", "notes"} & set(choices._files.names)


PIECES = st.sampled_from([*"{}|_$:\\-2a *\n", "__", "$$", "::", "__colour__", "{a|b}"])
TEMPLATES = st.lists(PIECES, max_size=30).map("".join)


@settings(max_examples=400, deadline=None)
@given(TEMPLATES, st.integers(0, 3))
def test_what_comes_out_holds_no_more_choices(template: str, seed: int) -> None:
    choices = Choices(Files([Path(__file__).parents[1] / "lists"]))
    try:
        made = choices.made(template, str(seed))
    except ValueError:
        return
    assert choices.made(made, "another") == made


@pytest.mark.parametrize(
    "template",
    [
        *("{" * 8000, "}" * 8000, "_" * 8000, "\\" * 7999, "$" * 8000, "__a" * 2600, "__" + "*a" * 3900, "|" * 8000),
        *("{a|b}" * 1600, "{" + "|" * 7998 + "}", "{99$$" + "a|" * 3990 + "}", "{" * 30 + "a|" * 3960 + "}" * 30),
        *("{" * 30 + "a" * 7940, "1" * 4000 + "::" + "1" * 3990, "{" + "-2$$" * 1990 + "}", "__" + "*" * 90 + "a__"),
    ],
)
def test_it_takes_no_time(choices: Choices, template: str) -> None:
    def make() -> None:
        with contextlib.suppress(ValueError):
            choices.made(template, "1")

    assert least_cpu(make) < 0.1
