"""What is said of a request before it becomes a job."""

import io
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from backend import services
from backend.catalog import Model
from backend.errors import ExtensionFailed, InvalidRequest, Problem
from backend.extension import Extension, GenerationRequest, ImageStore
from backend.registry import Registry
from backend.settings import Settings
from tests.single_files import Listed


@pytest.fixture
def built(tmp_path: Path) -> services.Services:
    return services.build(Settings(data_dir=tmp_path / "data", outputs_dir=tmp_path / "outputs"))


def white(built: services.Services, width: int, height: int, colour: int = 255) -> str:
    file = io.BytesIO()
    Image.new("L", (width, height), colour).save(file, "PNG")
    return built.images.put(file.getvalue())


def test_every_image_of_a_request_must_be_here(built: services.Services) -> None:
    here, gone = white(built, 8, 8), "a" * 64
    asked = {"init_image": here, "extensions": {"inpaint": {"mask": here}}}
    assert built.complete(asked).init_image == here
    with pytest.raises(InvalidRequest) as error:
        built.complete({"init_image": gone, "extensions": {"inpaint": {"mask": gone}}})
    assert [problem.field for problem in error.value.problems] == ["init_image", "extensions.inpaint.mask"]


@pytest.mark.parametrize(
    ("extension", "given", "title"),
    [("inpaint", {"mask": "{here}"}, "Inpaint"), ("outpaint", {"left": 8}, "Outpaint")],
)
def test_what_works_on_an_image_needs_one(
    built: services.Services, extension: str, given: dict[str, object], title: str
) -> None:
    here = white(built, 8, 8)
    values = {name: here if value == "{here}" else value for name, value in given.items()}
    with pytest.raises(InvalidRequest, match=f"^init_image: {title} needs an image to start from$"):
        built.complete({"extensions": {extension: values}})


def test_a_model_that_edits_needs_an_image(built: services.Services) -> None:
    model = Model(
        name="edit", path=Path("edit.safetensors"), title="edit", kind="checkpoint", family="sd1", variant="edit"
    )
    editing = replace(built, catalog=Listed(model))
    with pytest.raises(InvalidRequest, match=r"^init_image: this model changes a picture as the prompt says: give it"):
        editing.complete({"model": "edit"})
    assert editing.complete({"model": "edit", "init_image": white(built, 8, 8)}).image_cfg_scale == 1.5


def test_a_model_that_guides_itself_takes_no_other_guidance(built: services.Services) -> None:
    model = Model(name="dev", path=Path("dev"), title="dev", kind="checkpoint", family="flux2", edition="dev")
    guided = replace(built, catalog=Listed(model))
    assert guided.complete({"model": "dev"}).cfg_scale == 1
    with pytest.raises(InvalidRequest, match=r"^cfg_scale: this model guides itself"):
        guided.complete({"model": "dev", "cfg_scale": 4})


@pytest.mark.parametrize(
    ("extensions", "field", "words"),
    [
        ({"inpaint": {"mask": "{black}"}}, "extensions.inpaint.mask", "the mask is empty"),
        ({"inpaint": {"mask": "{white}", "mode": "not_masked"}}, "extensions.inpaint.mask", "the mask is empty"),
        ({"inpaint": {"mask": "{wide}"}}, "extensions.inpaint.mask", "the mask has 16 x 8 pixels, the picture 8 x 8"),
        ({"outpaint": {}}, "extensions.outpaint.left", "say how far the picture is to grow"),
        ({"outpaint": {"ratio": "1:1"}}, "extensions.outpaint.ratio", "the picture has this ratio already"),
        ({"outpaint": {"left": 2048, "right": 2048}}, "extensions.outpaint.left", "the picture would have 4104 x 8"),
        ({"outpaint": {"left": 8}, "inpaint": {"mask": "{white}"}}, "extensions.outpaint", "do one after the other"),
    ],
    ids=str,
)
def test_what_cannot_be_drawn_is_refused_before_it_is_queued(
    built: services.Services, extensions: dict[str, Any], field: str, words: str
) -> None:
    images = {"{white}": white(built, 8, 8), "{black}": white(built, 8, 8, 0), "{wide}": white(built, 16, 8)}
    given = {id: {name: images.get(value, value) for name, value in p.items()} for id, p in extensions.items()}
    with pytest.raises(InvalidRequest) as error:
        built.submit({"init_image": images["{white}"], "extensions": given})
    (problem,) = error.value.problems
    assert problem.field == field
    assert problem.message.startswith(words)
    assert built.jobs.recent() == []


def test_a_tag_in_a_prompt_asks_its_extension(built: services.Services) -> None:
    with pytest.raises(InvalidRequest, match=r"^prompt: there is no LoRA 'nowhere'"):
        built.submit({"prompt": "a cat <lora:nowhere:1>"})
    with pytest.raises(InvalidRequest, match=r"^prompt: <lora:cat:much>: the weight 'much' is not a number"):
        built.submit({"prompt": "a cat", "prompts": ["a cat", "a <lora:cat:much>"], "n_iter": 2})
    assert built.jobs.recent() == []


@pytest.mark.parametrize(
    ("prompt", "params"),
    [
        ("a <lora:nowhere:1>", {"missing": "skip"}),
        ("a <lora:nowhere:1>", {"hashes": "nowhere: 0123456789ab"}),  # it may have another name here
        ("a <lora:__any__:1>, <lora:{cat|dog}:1>", {}),
    ],
)
def test_a_lora_that_may_be_found_later_is_not_refused(
    built: services.Services, prompt: str, params: dict[str, str]
) -> None:
    assert built.complete({"prompt": prompt, "extensions": {"lora": params}}).prompt == prompt


class Choosy(Extension):
    def __init__(self, id: str, error: Exception) -> None:
        self.id, self.title, self.error = id, id.title(), error  # type: ignore[misc]

    def check(self, request: GenerationRequest, params: Any, images: ImageStore) -> None:
        raise self.error


def choosing(built: services.Services, *extensions: Extension) -> services.Services:
    return replace(built, registry=Registry(extensions))


def test_every_extension_of_a_request_is_asked_and_no_other(built: services.Services) -> None:
    first, second, third = (
        Choosy(id, InvalidRequest(Problem(f"extensions.{id}", "not today"))) for id in ("ink", "oil", "tempera")
    )
    with pytest.raises(InvalidRequest) as error:
        choosing(built, first, second, third).complete({"extensions": {"ink": {}, "tempera": {}}})
    assert [problem.field for problem in error.value.problems] == ["extensions.ink", "extensions.tempera"]


def test_an_extension_that_cannot_check_is_named(built: services.Services) -> None:
    broken = choosing(built, Choosy("ink", ZeroDivisionError("division by zero")))
    with pytest.raises(ExtensionFailed, match=r"^Ink: ZeroDivisionError: division by zero; the log"):
        broken.complete({"extensions": {"ink": {}}})
