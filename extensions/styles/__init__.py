"""Styles: phrases that are kept under a name and put into the prompt (A1111's styles.csv)."""

import csv
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property, partial, reduce
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import BeforeValidator

from backend.extension import Choice, Extension, GenerationRequest, ImageStore, InvalidRequest, Param, Params, Problem

from .table import Name, Style, Table, merged

if TYPE_CHECKING:
    from fastapi import APIRouter

MAX_REQUEST = 256 * 1024
"""Bytes of a style that is saved."""


def _split(given: Any) -> Any:
    """`a, "b, c"`, as the command line and a picture's text have names."""
    rows = csv.reader([given], skipinitialspace=True) if isinstance(given, str) else None
    return given if rows is None else [name for row in rows for name in row if name.strip()]


def _joined(names: Iterable[str]) -> str:
    return ", ".join('"{}"'.format(name.replace('"', '""')) if re.search('[,"]', name) else name for name in names)


Names = Annotated[tuple[Name, ...], BeforeValidator(_split)]


class StylesParams(Params):
    names: Names = Param(
        (), "Styles", choices="styles", widget="text", max_length=32, help="One after the other: ink, night."
    )
    applied: Names = Param(
        (),
        "In the prompt already",
        widget="text",
        max_length=1000,
        infotext="Styles",
        help="Those that a picture was drawn with; its prompt holds their words.",
    )

    def to_infotext(self) -> dict[str, str]:
        return {"Styles": _joined(self.applied)}


class Styles(Extension):
    Params = StylesParams
    order = 10  # what others do with the prompt, they do with all of it

    def prepare(self, request: GenerationRequest, params: StylesParams, images: ImageStore) -> GenerationRequest:
        styles = self._table.choose(params.names)
        put = partial(reduce, lambda text, style: merged(style.prompt, text), styles)
        put_negative = partial(reduce, lambda text, style: merged(style.negative_prompt, text), styles)
        return request.model_copy(
            update={
                "prompt": put(request.prompt),
                "prompts": tuple(map(put, request.prompts)),
                "negative_prompt": put_negative(request.negative_prompt),
                "negative_prompts": tuple(map(put_negative, request.negative_prompts)),
                "extensions": {**request.extensions, self.id: StylesParams(applied=params.applied + params.names)},
            }
        )

    def choices(self) -> Mapping[str, Sequence[Choice]]:
        return {"styles": [(name, name) for name in self._table.read()]}

    def routes(self, router: "APIRouter") -> None:
        @router.get("/")
        def styles() -> list[Style]:
            with _said():
                return list(self._table.read().values())

        @router.post("/", status_code=201, max_body_size=MAX_REQUEST)
        def save(style: Style) -> Style:
            with _said():
                self._table.put(style)
            return style

        @router.delete("/{name:path}", status_code=204)
        def delete(name: str) -> None:
            with _said():
                self._table.remove(name)

    @cached_property
    def _table(self) -> Table:
        return Table(self.data / "styles.csv")


@contextmanager
def _said() -> Iterator[None]:
    """What is wrong with the table is said to whoever asks."""
    try:
        yield
    except ValueError as error:
        raise InvalidRequest(Problem("", str(error))) from None
