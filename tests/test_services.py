"""What is said of a request before it becomes a job."""

import io
from pathlib import Path

import pytest
from PIL import Image

from backend import services
from backend.errors import InvalidRequest
from backend.settings import Settings


@pytest.fixture
def built(tmp_path: Path) -> services.Services:
    return services.build(Settings(data_dir=tmp_path / "data", outputs_dir=tmp_path / "outputs"))


def test_every_image_of_a_request_must_be_here(built: services.Services) -> None:
    file = io.BytesIO()
    Image.new("RGB", (8, 8)).save(file, "PNG")
    here, gone = built.images.put(file.getvalue()), "a" * 64
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
    file = io.BytesIO()
    Image.new("RGB", (8, 8)).save(file, "PNG")
    here = built.images.put(file.getvalue())
    values = {name: here if value == "{here}" else value for name, value in given.items()}
    with pytest.raises(InvalidRequest, match=f"^init_image: {title} needs an image to start from$"):
        built.complete({"extensions": {extension: values}})
