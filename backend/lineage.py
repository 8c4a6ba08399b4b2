"""What a request and a picture are made from: images and models, by their hashes."""

from collections.abc import Iterator, Mapping
from typing import Literal, NamedTuple

from backend.params import PICTURED, Params, declared
from backend.result import Picture

Role = Literal["init_image", "mask", "control", "model", "lora", "parent"]


class Input(NamedTuple):
    """An image that a request names."""

    name: str
    """Its field, dotted: `extensions.controlnet.units.0.image`."""
    sha256: str


class Source(NamedTuple):
    role: Role
    name: str
    sha256: str


def inputs(request: Params) -> list[Input]:
    """Every image of a request and of its extensions: the fields declared with the widget `image`."""
    return [Input(name, ref) for name, ref in _images(request, "") if ref]


def sources(picture: Picture) -> list[Source]:
    """The images and models that took part in a picture."""
    images = [Source(_role(image.name), image.name, image.sha256) for image in inputs(picture.request)]
    return images + [Source("model", name, sha256) for name, sha256 in picture.models.items()]


def _images(value: object, name: str) -> Iterator[tuple[str, str]]:
    if isinstance(value, Params):
        pictured = {field for field, _, hints in declared(type(value)) if hints.widget in PICTURED}
        for field in type(value).model_fields:
            inner = getattr(value, field)
            path = f"{name}.{field}".removeprefix(".")
            if field in pictured and isinstance(inner, str):
                yield path, inner
            else:
                yield from _images(inner, path)
    elif isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _images(inner, f"{name}.{key}")
    elif isinstance(value, list | tuple):
        for i, inner in enumerate(value):
            yield from _images(inner, f"{name}.{i}")


def _role(field: str) -> Role:
    if field == "init_image":
        return "init_image"
    return "mask" if "mask" in field.rsplit(".", 1)[-1] else "control"
