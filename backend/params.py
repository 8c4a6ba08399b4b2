"""How a parameter is declared: once, as a field of a frozen pydantic class.

The form, the REST API and its schema, the job row, the command line and the text inside the picture
are all derived from the declaration; `Param` is a `Field` that also carries what those need to know.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from enum import IntEnum
from types import UnionType
from typing import Annotated, Any, Literal, NamedTuple, TypeVar, Union, get_args, get_origin

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic_core import PydanticUndefined

from backend.errors import InvalidRequest, Problem

Simple = Literal["text", "prompt", "number", "slider", "select", "segmented", "checkbox", "seed", "size", "image"]
Painted = Literal["mask", "frame", "region"]
"""On the page's canvas. `frame` is a side of its frame and named so: left, top, right or bottom; `region` is the part
of the picture that is worked on, "512x384+64+0", which an extension may find in `prepare`."""
Widget = Literal[Simple, Painted]
PICTURED: tuple[Widget, ...] = ("image", "mask")
"""Widgets whose value is the name of an image."""
P = TypeVar("P", bound="Params")
Choice = tuple[Any, str]
"""A value and the label that people read."""


class Facet(NamedTuple):
    """What a number means for one value of the parameter that decides it."""

    label: str
    default: float
    ge: float
    le: float
    step: float = 1


@dataclass(frozen=True)
class Hints:
    """What a declaration says beyond type, default and limits."""

    widget: Widget
    infotext: str | None = None
    """Key in the picture's text, as A1111 writes it; None: not written."""
    choices: Sequence[Choice] | str | None = None
    """The values, or the name of a list that the server knows at run time: `models`."""
    step: float | None = None
    slider: tuple[float, float] | None = None
    """What the slider spans, where the limits allow more."""
    help: str = ""
    group: str = ""
    """Heading under which the form puts it; `advanced` is closed at first."""
    shown_for: str | None = None
    """Name of a field without which this one means nothing: the form hides it, the text omits it."""
    option: str | None = None
    """A spelling of its own on the command line: `--mask`."""
    decided_by: str | None = None
    """Name of the field whose value decides what this one means, by `facets`."""
    facets: Mapping[str, Facet] | None = None
    """By the values of that field; for any other the form hides this one. Its default stands for that of the facet."""

    def text_of(self, value: Any) -> str:
        """How a picture's text writes a value: words among choices as people read them."""
        if isinstance(value, str) and not isinstance(self.choices, str):
            for known, label in self.choices or ():
                if known == value:
                    return label
        return as_text(value)

    def value_of(self, text: str) -> Any:
        """A value read from a picture's text: labels of choices become values, the rest is left to validation."""
        if not isinstance(self.choices, str):
            for value, label in self.choices or ():
                if label == text:
                    return value
        return text


class Params(BaseModel):
    """Base of every set of parameters: frozen; a name that is not declared, or a number that is none, is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)  # JSON has no such numbers

    def to_infotext(self) -> dict[str, str]:
        """Key and value of every declared parameter that has a key; override for a text of your own."""
        return {
            hints.infotext: hints.text_of(getattr(self, name))
            for name, _, hints in declared(type(self))
            if hints.infotext and (hints.shown_for is None or getattr(self, hints.shown_for))
        }

    @classmethod
    def from_infotext(cls, fields: Mapping[str, str]) -> dict[str, Any]:
        """The values that a picture's text holds for these parameters; the inverse of `to_infotext`.

        None, if what is required is not among them: others write keys of these names too.
        """
        found = {
            name: hints.value_of(fields[hints.infotext])
            for name, _, hints in declared(cls)
            if hints.infotext and hints.infotext in fields
        }
        required = {name for name, field in cls.model_fields.items() if field.is_required()}
        return found if required <= found.keys() else {}


def Param(  # noqa: N802 (a field specifier, like pydantic's Field)
    default: Any,
    label: str,
    *,
    widget: Widget | None = None,
    infotext: str | None = None,
    choices: Sequence[Choice] | str | None = None,
    ge: float | None = None,
    le: float | None = None,
    step: float | None = None,
    slider: tuple[float, float] | None = None,
    multiple_of: float | None = None,
    max_length: int | None = None,
    help: str = "",
    group: str = "",
    shown_for: str | None = None,
    option: str | None = None,
    decided_by: str | None = None,
    facets: Mapping[str, Facet] | None = None,
) -> Any:
    """Declare a parameter. `default=...` makes it required; `widget` follows from the rest if not given."""
    if widget is None:
        widget = _usual_widget(default, choices, ge, le)
    hints = Hints(
        widget, infotext, choices, step or multiple_of, slider, help, group, shown_for, option, decided_by, facets
    )
    return Field(
        PydanticUndefined if default is ... else default,
        title=label,
        description=help or None,
        ge=ge,
        le=le,
        multiple_of=multiple_of,
        max_length=max_length,
        json_schema_extra={"atelier": {f.name: getattr(hints, f.name) for f in fields(hints)}},
    )


def declared(params: type[Params]) -> Iterator[tuple[str, str, Hints]]:
    """Name, label and hints of each parameter, in the order of declaration."""
    for name, field in params.model_fields.items():
        extra = field.json_schema_extra
        if isinstance(extra, dict) and "atelier" in extra:
            yield name, field.title or name, Hints(**extra["atelier"])  # type: ignore[arg-type]


def nested(annotation: Any) -> tuple[type[Params] | None, bool]:
    """The class of parameters within parameters, and whether they are repeated."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if isinstance(annotation, type) and not origin:
        return (annotation, False) if issubclass(annotation, Params) else (None, False)
    if origin is Annotated:
        return nested(arguments[0])
    if origin in (tuple, list):
        inner, repeated = nested(arguments[0])
        return (None, False) if repeated or arguments[1:] not in ((), (...,)) else (inner, inner is not None)
    if origin in (Union, UnionType):
        kinds = [each for each in arguments if each is not type(None)]
        return nested(kinds[0]) if len(kinds) == 1 else (None, False)
    return None, False


def as_text(value: Any) -> str:
    """How a picture's text writes a value: 7.0 as "7"."""
    if isinstance(value, float):
        return repr(value).removesuffix(".0")
    return str(int(value) if isinstance(value, IntEnum) else value)


def validate(cls: type[P], values: Any) -> P:
    """`cls` from untrusted values; `InvalidRequest` names every field that is wrong."""
    try:
        return cls.model_validate(values)
    except ValidationError as error:
        raise InvalidRequest(*(_problem(e) for e in error.errors(include_url=False))) from None


def _problem(error: Any) -> Problem:
    field = ".".join(str(part) for part in error["loc"])
    if error["type"] == "extra_forbidden":
        return Problem(field, "is not a parameter")
    if error["type"] == "missing":
        return Problem(field, "is missing")
    if error["type"] == "too_long":  # pydantic says of a tuple what it is
        return Problem(field, "should have at most {max_length} items, not {actual_length}".format(**error["ctx"]))
    message = error["msg"].removeprefix("Value error, ").removeprefix("Input ")
    given = error.get("input")
    if isinstance(given, int | float | str) and len(str(given)) <= 40 and repr(given) not in message:
        message = f"{message}, not {given!r}"
    return Problem(field, message)


def _usual_widget(default: Any, choices: Any, ge: float | None, le: float | None) -> Widget:
    if choices is not None:
        return "select"
    if isinstance(default, bool):
        return "checkbox"
    if isinstance(default, int | float):
        return "slider" if ge is not None and le is not None else "number"
    return "text"
