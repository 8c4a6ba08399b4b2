"""The tag and its block lists, without a model."""

import contextlib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backend.lora import blocks
from extensions.lora import tags
from extensions.lora.tags import Moment, Use

USUAL = blocks.USUAL


def use(text: str, presets: blocks.Presets = USUAL) -> Use:
    (parts,) = tags.in_prompt(text)
    return tags.parse(parts, presets)


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("<lora:cat>", Use("cat")),
        ("<lora:cat:0.5>", Use("cat", 0.5, 0.5)),
        ("<lora:cat:0.5:1>", Use("cat", 0.5, 1)),
        ("<lora:cat:0.5:1:4>", Use("cat", 0.5, 1, 4)),
        ("<lora:cat:-0.5>", Use("cat", -0.5, -0.5)),
        ("<lora:cat:te=0.5:unet=1:dyn=4>", Use("cat", 0.5, 1, 4)),
        ("<lora:cat:te=0.5>", Use("cat", 0.5, 0.5)),
        ("<lora:cat: te=0.5 : unet = 1>", Use("cat", 0.5, 1)),
        ("<lora:cat:unet=0.5>", Use("cat", 1, 0.5)),
        ("<lora:cat:0.5:unet=1>", Use("cat", 0.5, 1)),
        ("<lora:a=b=c:1>", Use("a=b=c")),
        ("<lora:sub/foo bar (v2):1>", Use("sub/foo bar (v2)")),
        ('<LORA:"quoted name":.5>', Use("quoted name", 0.5, 0.5)),
        ("<lora:cat.safetensors:1>", Use("cat")),
        ("<lora:cat:1:start=5:stop=0.5>", Use("cat", start=Moment(5), stop=Moment(0.5, True))),
        ("<lora:cat:1:step=5-10>", Use("cat", start=Moment(5), stop=Moment(10))),
        ("<lora:cat:1:step=-10>", Use("cat", stop=Moment(10))),
    ],
)
def test_what_a_tag_says(text: str, wanted: Use) -> None:
    assert use(text) == wanted


def test_block_lists_come_by_number_by_name_and_in_the_old_place() -> None:
    listed = use(f"<lora:cat:1:lbw={USUAL['OUTD']}>")
    assert listed == use("<lora:cat:1:lbw=OUTD>") == use("<lora:cat:1:OUTD>") == use(f"<lora:cat:1:{USUAL['OUTD']}>")
    assert {block for block, factor in listed.blocks.items() if factor} == {"BASE", "OUT03", "OUT04", "OUT05", "OUT06"}


@pytest.mark.parametrize("count", [12, 17, 20, 26])
def test_a_list_names_its_blocks_and_the_others_get_nothing(count: int) -> None:
    factors = blocks.by_block(",".join(str(n + 1) for n in range(count)), {})
    assert sorted(f for f in factors.values() if f) == list(range(1, count + 1))
    assert factors["BASE"] == 1
    assert len(factors) == 26


def test_presets_of_ones_own(tmp_path: Path) -> None:
    (tmp_path / "lbwpresets.txt").write_text("# mine\nFACE:" + ",".join("1" * 26) + "\n\n", "utf-8")
    presets = blocks.presets(tmp_path)
    assert use("<lora:cat:1:lbw=FACE>", presets).blocks == dict.fromkeys(blocks.LISTS[26], 1)
    assert use("<lora:cat:1:lbw=ALL0.5>", presets).blocks["OUT03"] == 0.5
    assert blocks.presets(tmp_path / "nowhere") == USUAL
    (tmp_path / "folder" / "lbwpresets.txt").mkdir(parents=True)
    with pytest.raises(ValueError, match=r"^lbwpresets.txt cannot be read: [^/]+$"):  # and not where it lies
        blocks.presets(tmp_path / "folder")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("<lora:cat:one>", "the weight 'one' is not a number"),
        ("<lora:cat:1:2:3:4>", "one number too many"),
        ("<lora:cat:te=>", "the weight '' is not a number"),
        ("<lora:cat:inf>", "not between -100 and 100"),
        ("<lora:cat:1:1:0>", "rank '0' is not a whole number from 1"),
        ("<lora:cat:1:1:1.5>", "rank '1.5' is not a whole number from 1"),
        ("<lora:cat:1:lbw=>", "no preset '' for lbw; there are NONE, ALL"),
        ("<lora:cat:1:lbw=" + ",".join("R" * 17) + ">", "random ones are not taken"),
        ("<lora:cat:1:start=-1>", "neither a whole number"),
        ("<lora:cat:1:start=1.5>", "nor between 0.0 and 1.0"),
        ("<lora:cat:1:step=5>", "step=5-10"),
        ("<lora:cat:1:lbwe=x>", "lbwe= is not known"),
    ],
)
def test_what_is_wrong_is_said_with_the_tag(text: str, words: str) -> None:
    with pytest.raises(ValueError, match="<lora:cat:") as error:
        use(text)
    assert words in str(error.value)


def test_steps_are_counted_in_calls_of_the_model() -> None:
    def on(text: str, calls: int, order: int) -> str:
        return "".join("x" if use(text).is_on(call, calls, order) else "." for call in range(calls))

    assert on("<lora:cat:1:start=2:stop=4>", 6, 1) == "..xx.."
    assert on("<lora:cat:1:start=1:stop=2>", 5, 2) == "..xx."  # a sampler that asks the model twice a step
    assert on("<lora:cat:1:stop=0.5>", 6, 1) == "xxx..."
    assert on("<lora:cat:1:stop=0>", 3, 1) == "..."
    assert on("<lora:cat:1>", 3, 1) == "xxx"


def test_names_are_replaced_and_all_else_stays() -> None:
    prompt = "a <lora:cat:1:lbw=OUTD>, <b>, <lyco:dog> <lora:cat>"
    assert tags.renamed(prompt, lambda name: "sub/x" if name == "cat" else name) == (
        "a <lora:sub/x:1:lbw=OUTD>, <b>, <lyco:dog> <lora:sub/x>"
    )
    assert tags.renamed(prompt, lambda name: name) == prompt


@given(st.text(alphabet="lora:<>=,0.5-nabk ", max_size=60))
def test_any_text_gives_tags_or_a_sentence(text: str) -> None:
    for parts in tags.in_prompt(f"<lora:{text}>"):
        with contextlib.suppress(ValueError):
            assert abs(tags.parse(parts, USUAL).unet) <= tags.LARGEST
