"""Params -> what the browser needs to draw a panel of them -> values of a request.

`describe` turns a declaration into plain JSON; ui/static/js/panel.js draws it and knows no parameter by name.
The values come back as one dict per panel and are checked where every request is checked, in `Services.complete`.
"""

from collections.abc import Iterable, Mapping
from typing import Any

from backend.errors import InvalidRequest, Problem
from backend.params import Params, declared

Row = list[dict[str, Any]]
"""Fields that stand side by side."""


def describe(params: type[Params]) -> list[dict[str, Any]]:
    """One dict per declared parameter, in the order of declaration; whatever is None or empty is left out."""
    properties = params.model_json_schema()["properties"]
    fields = []
    for name, label, hints in declared(params):
        schema = properties[name]
        field = {
            "name": name,
            "label": label,
            "kind": hints.widget,
            "integer": schema.get("type") == "integer",
            "min": schema.get("minimum"),
            "max": schema.get("maximum"),
            "multiple": schema.get("multipleOf"),
            "maxLength": schema.get("maxLength"),
            "step": hints.step,
            "slider": hints.slider,
            "choices": hints.choices,
            "help": hints.help,
            "group": hints.group,
            "shownFor": hints.shown_for,
            "infotext": hints.infotext,
        }
        fields.append({key: value for key, value in field.items() if value or (value == 0 and value is not False)})
        fields[-1]["default"] = schema.get("default")
    return fields


def rows(fields: Iterable[dict[str, Any]], order: Iterable[tuple[str, ...]] = ()) -> list[Row]:
    """The fields as rows: those named by `order` first, the rest each on a row of its own."""
    left = {field["name"]: field for field in fields}
    ordered = [[left.pop(name) for name in names if name in left] for names in order]
    return [row for row in ordered if row] + [[field] for field in left.values()]


def panel(
    id: str, title: str, params: type[Params], order: Iterable[tuple[str, ...]] = (), **more: Any
) -> dict[str, Any]:
    """The JSON of one panel."""
    return {"id": id, "title": title, "rows": rows(describe(params), order), **more}


def collect(values: Any) -> dict[str, Any]:
    """The values of a request from what the page sends: the core's fields, and `extensions` by id where they are on.

    Anybody can send anything here; what is no dict is refused, all else is the request's to check.
    """
    if not isinstance(values, Mapping):
        raise InvalidRequest(Problem("", "the form came without values"))
    extensions = values.get("extensions") or {}
    if not isinstance(extensions, Mapping):
        raise InvalidRequest(Problem("extensions", "should be a table of extensions"))
    core = {str(key): value for key, value in values.items() if key != "extensions"}
    on = {str(id): given for id, given in extensions.items() if given is not None}
    return core | ({"extensions": on} if on else {})
