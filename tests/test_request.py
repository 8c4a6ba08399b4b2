"""Parameters and requests: declared once, validated with a name, the same after every round trip."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from backend import infotext, sampling
from backend.errors import InvalidRequest
from backend.params import Param, Params, declared
from backend.request import MAX_SEED, GenerationRequest, ResizeMode, Task, parse_request


class Grain(Params):
    amount: float = Param(0.1, "Grain", ge=0, le=1, infotext="Grain")
    kind: int = Param(0, "Kind", choices=((0, "Film"), (1, "Digital")), infotext="Grain kind")


EXTENSIONS = {"grain": Grain}
words = st.text(st.characters(codec="utf-8", exclude_categories=["Cs", "Cc"]), max_size=60)
requests = st.builds(
    GenerationRequest,
    prompt=words.map(str.strip),
    negative_prompt=words.map(str.strip),
    model=st.from_regex(r"[a-z][a-z0-9_-]{0,12}", fullmatch=True),
    width=st.integers(8, 64).map(lambda n: n * 8),
    height=st.integers(8, 64).map(lambda n: n * 8),
    sampler_name=st.sampled_from([s.name for s in sampling.SAMPLERS]),
    scheduler=st.sampled_from([s.label for s in sampling.SCHEDULES]),
    steps=st.integers(1, 150),
    cfg_scale=st.floats(0, 100).map(lambda x: round(x, 3)),
    seed=st.integers(0, MAX_SEED),
    clip_skip=st.integers(1, 12),
    decoder=st.sampled_from(["full", "tiny"]),
    extensions=st.one_of(
        st.just({}), st.builds(Grain, amount=st.floats(0, 1), kind=st.sampled_from([0, 1])).map(lambda g: {"grain": g})
    ),
)


@given(requests)
@settings(deadline=None)
def test_json_round_trip(request: GenerationRequest) -> None:
    assert parse_request(json.loads(request.model_dump_json()), EXTENSIONS) == request


@given(requests)
@settings(deadline=None)
def test_infotext_round_trip(request: GenerationRequest) -> None:
    if "Negative prompt:" in request.prompt + request.negative_prompt:
        return
    text = infotext.write(request, "ab" * 32)
    assert parse_request(infotext.read(text, EXTENSIONS).values, EXTENSIONS) == request


def test_image_to_image_round_trip() -> None:
    request = GenerationRequest(
        prompt="x", seed=1, init_image="0" * 64, denoising_strength=0.3, resize_mode=ResizeMode.RESIZE_AND_FILL
    )
    text = infotext.write(request)
    assert "Denoising strength: 0.3" in text
    assert parse_request(infotext.read(text).values) == request
    assert request.task is Task.IMAGE_TO_IMAGE


def test_off_means_absent() -> None:
    text = infotext.write(GenerationRequest(prompt="x", seed=1))
    assert "Denoising" not in text
    assert "Clip skip" not in text
    assert "Grain" not in text


@pytest.mark.parametrize(
    ("values", "field"),
    [
        ({"width": 0}, "width"),
        ({"width": 10**9}, "width"),
        ({"width": 65}, "width"),
        ({"steps": -1}, "steps"),
        ({"seed": "x"}, "seed"),
        ({"seed": float("nan")}, "seed"),
        ({"cfg_scale": float("nan")}, "cfg_scale"),
        ({"cfg_scale": float("inf")}, "cfg_scale"),
        ({"sampler_name": "Eulr"}, "sampler_name"),
        ({"sampler_name": 3}, "sampler_name"),
        ({"scheduler": "none such"}, "scheduler"),
        ({"prompt": "x" * 100_000}, "prompt"),
        ({"init_image": "../../etc/passwd"}, "init_image"),
        ({"stepz": 20}, "stepz"),
        ({"extensions": {"grain": {"amount": 3}}}, "extensions.grain.amount"),
        ({"extensions": {"nope": {}}}, "extensions.nope"),
        ({"extensions": {"grain": 3}}, "extensions.grain"),
        ({"extensions": []}, "extensions"),
    ],
)
def test_bad_parameter_says_where(values: dict[str, object], field: str) -> None:
    with pytest.raises(InvalidRequest) as error:
        parse_request(values, EXTENSIONS)
    assert field in [problem.field for problem in error.value.problems]
    assert len(str(error.value)) < 300


def test_every_bad_field_is_named_at_once() -> None:
    with pytest.raises(InvalidRequest) as error:
        parse_request({"steps": 0, "width": 1, "seed": "x"})
    assert {problem.field for problem in error.value.problems} == {"steps", "width", "seed"}


@pytest.mark.parametrize(
    ("name", "sampler", "schedule"),
    [
        ("DPM++ 2M Karras", "DPM++ 2M", "Karras"),
        ("k_euler_a", "Euler a", "Automatic"),
        ("euler A", "Euler a", "Automatic"),
        ("Euler SGM Uniform", "Euler", "SGM Uniform"),
        ("DDIM", "DDIM", "Automatic"),
    ],
)
def test_a1111_sampler_names(name: str, sampler: str, schedule: str) -> None:
    request = parse_request({"sampler_name": name})
    assert (request.sampler_name, request.scheduler) == (sampler, schedule)


def test_seed_is_drawn_once() -> None:
    drawn = GenerationRequest().with_seed_drawn()
    assert 0 <= drawn.seed < 4294967294
    assert drawn.with_seed_drawn() is drawn


def test_a_request_cannot_be_edited() -> None:
    with pytest.raises(Exception, match="frozen"):
        GenerationRequest().steps = 3  # type: ignore[misc]


def test_every_parameter_has_a_label_and_a_widget() -> None:
    names = {name for name, label, hints in declared(GenerationRequest) if label and hints.widget}
    assert names == set(GenerationRequest.model_fields) - {"extensions", "prompts", "negative_prompts"}


@pytest.mark.parametrize(("seed", "index", "expected"), [(7, 0, 7), (7, 3, 10), (MAX_SEED, 1, 0)])
def test_seeds_count_on_from_the_requests(seed: int, index: int, expected: int) -> None:
    assert GenerationRequest(seed=seed, batch_size=2, n_iter=2).seeds[index] == expected


def test_a_request_for_some_of_the_images_alone() -> None:
    given = {"prompt": "a", "negative_prompt": "n", "seed": 5, "batch_size": 2, "n_iter": 2}
    request = parse_request({**given, "prompts": ["a", "b", "b", "c"]})
    assert request.alone(1, 2) == GenerationRequest(prompt="b", negative_prompt="n", seed=6, batch_size=2)
    assert request.alone(3) == GenerationRequest(prompt="c", negative_prompt="n", seed=8)
    assert parse_request(request.model_dump()) == request


@pytest.mark.parametrize("prompts", [["a"], ["a"] * 3, ["a", "b" * 9000], "ab", [1, 2]])
def test_each_image_has_a_prompt_or_none_has(prompts: object) -> None:
    with pytest.raises(InvalidRequest, match=r"^prompts"):
        parse_request({"batch_size": 2, "prompts": prompts})


def test_reading_a_picture_of_a1111() -> None:
    text = (
        "girl, ((eyes)), (coquettish)\nNegative prompt: ugly, (((deformed))), [blurry]\nSteps: 20, Sampler: Euler a, "
        "CFG scale: 7, Seed: 965400086, Size: 512x512, Model hash: 45dee52b, "
        'Lora hashes: "a: 1, b: 2", Version: v1.10.1'
    )
    recall = infotext.read(text)
    assert recall.values == {
        "prompt": "girl, ((eyes)), (coquettish)",
        "negative_prompt": "ugly, (((deformed))), [blurry]",
        "steps": "20",
        "sampler_name": "Euler a",
        "cfg_scale": "7",
        "seed": "965400086",
        "width": "512",
        "height": "512",
    }
    assert recall.fields["Lora hashes"] == "a: 1, b: 2"
    assert parse_request(recall.values).seed == 965400086


@pytest.mark.parametrize("text", ["only a prompt, with: colons, and: commas, x: y", "p\nSteps: 20, Seed: 1", ""])
def test_text_without_parameters_is_prompt(text: str) -> None:
    assert infotext.read(text).values == {"prompt": text, "negative_prompt": ""}


@given(st.text(max_size=400))
@settings(deadline=None)
def test_any_text_can_be_read(text: str) -> None:
    infotext.read(text, EXTENSIONS)


class Film(Params):
    picture: str = Param(..., "Picture", infotext="Film picture")
    kind: str = Param("slow", "Kind", choices=(("slow", "Slow film"), ("fast", "Fast film")), infotext="Film kind")


def test_words_among_choices_are_written_as_people_read_them() -> None:
    text = infotext.write(GenerationRequest(seed=1, extensions={"film": Film(picture="a", kind="fast")}))
    assert "Film kind: Fast film" in text
    assert infotext.read(text, {"film": Film}).values["extensions"] == {"film": {"picture": "a", "kind": "fast"}}


@pytest.mark.parametrize("part", ["a", " ", "a b", "a-", "aa:", 'aa: "', 'aa: "\\"', "(", "\\"])
def test_a_text_as_long_as_any_is_read_at_once(part: str) -> None:
    """If a key were looked for at every letter, each of them would take hours."""
    long = part * (infotext.MAX_TEXT // len(part) - 99) + "a"
    for text in (long, f"a cat\nSteps: 20, Sampler: Euler, Seed: 1, {long}"):
        assert infotext.read(text).values["prompt"] in ("a cat", long.strip())


def test_a_text_without_what_is_required_does_not_call_an_extension() -> None:
    text = "x\nSteps: 20, Seed: 1, Sampler: Euler, Film kind: Fast film"
    assert "extensions" not in infotext.read(text, {"film": Film}).values


def test_what_is_missing_is_said() -> None:
    with pytest.raises(InvalidRequest, match=r"^extensions\.film\.picture: is missing$"):
        parse_request({"extensions": {"film": {}}}, {"film": Film})


def test_calling_an_extension_keeps_the_others() -> None:
    asked = GenerationRequest(extensions={"grain": Grain()}).calling("film", picture="a")
    checked = asked.checked({"film": Film, "grain": Grain})
    assert checked.extensions == {"grain": Grain(), "film": Film(picture="a")}
    with pytest.raises(InvalidRequest, match=r"^extensions\.film: there is no such extension here"):
        asked.checked({"grain": Grain})
