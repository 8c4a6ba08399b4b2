"""The map that a unit would have, for the page: at once where it needs no weights, else in the engine's process."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import Any

from PIL import Image
from pydantic import TypeAdapter

from backend.extension import ImageStore, InvalidRequest, Problem

from . import maps, pose
from .maps import MapValues
from .preprocessors import Annotators


@dataclass(frozen=True)
class Wish:
    """A map that somebody wants to see; travels to the engine's process as JSON."""

    image: str
    mask: str | None = None
    values: MapValues = field(default_factory=MapValues)

    def written(self) -> dict[str, Any]:
        return asdict(self)


def wish(values: dict[str, Any]) -> Wish:
    return TypeAdapter(Wish).validate_python(values)


def made(wish: Wish, images: ImageStore, annotators: Annotators, cache: maps.Cache) -> dict[str, Any]:
    """{"image": the map's name} and, from a module that finds people, {"pose": them, as OpenPose writes them}.

    Raises InvalidRequest, which names the field `module`, and NotFound.
    """
    with _named("module"):
        return _answer(maps.detect(*_given(wish, images), wish.values, annotators, cache), images)


def known(wish: Wish, images: ImageStore, annotators: Annotators, cache: maps.Cache) -> dict[str, Any] | None:
    """What `made` gives, if the map has been made before. Raises as that does."""
    with _named("module"):
        found = maps.known(*_given(wish, images), wish.values, annotators, cache)
        return found and _answer(found, images)


def drawn(text: str, images: ImageStore) -> dict[str, Any]:
    """The map of a pose. Raises InvalidRequest, which names the field `pose`."""
    with _named("pose"):
        found = pose.people(text)
    return _answer(maps.Made(pose.draw(found), found), images)


def png(picture: Image.Image) -> bytes:
    file = io.BytesIO()
    picture.save(file, "PNG", compress_level=1)
    return file.getvalue()


def _given(wish: Wish, images: ImageStore) -> tuple[Image.Image, Image.Image | None]:
    return images.get(wish.image), images.get(wish.mask) if wish.mask else None


def _answer(made: maps.Made, images: ImageStore) -> dict[str, Any]:
    people = json.loads(pose.written(made.pose)) if made.pose else None
    return {"image": images.put(png(made.picture)), "pose": people}


@contextmanager
def _named(field: str) -> Iterator[None]:
    """A ValueError inside is said of this field."""
    try:
        yield
    except ValueError as error:
        raise InvalidRequest(Problem(field, str(error))) from error
