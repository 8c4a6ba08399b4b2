"""Params -> what the browser needs to draw a panel of them -> values of a request.

`describe` turns a declaration into plain JSON; ui/static/js/panel.js draws it and knows no parameter by name.
The values come back as one dict per panel and are checked where every request is checked, in `Services.complete`.
"""

from collections.abc import Iterable, Mapping
from typing import Any

from backend.errors import InvalidRequest, Problem
from backend.params import Params, declared, nested

Row = list[dict[str, Any]]
"""Fields that stand side by side."""
WRITTEN = ("text", "prompt")
"""Widgets that hold text, and nothing else."""


def describe(params: type[Params]) -> list[dict[str, Any]]:
    """One dict per declared parameter, in the order of declaration; whatever is None or empty is left out.

    What no widget can hold, such as a table, is left out as well: it keeps its default.
    """
    whole = params.model_json_schema()
    fields = []
    for name, label, hints in declared(params):
        schema, optional = _resolved(whole["properties"][name], whole.get("$defs", {}))
        inner, repeated = nested(params.model_fields[name].annotation)
        choices = hints.choices or tuple((value, str(value)) for value in schema.get("enum", ()))
        inner_rows = rows(describe(inner)) if inner else []
        kind: str = hints.widget
        if inner:
            kind = "units" if repeated else "params"
        elif schema.get("type") == "array" and schema.get("items", {}).get("type") == "string":
            kind = "many"
        elif hints.facets:
            kind = "slider"
        elif kind in WRITTEN and choices:
            kind = "select"
        elif kind in WRITTEN and schema.get("type") not in (None, "string"):
            kind = {"boolean": "checkbox", "integer": "number", "number": "number"}.get(schema["type"], "")
        if not kind:
            continue
        field: dict[str, Any] = {
            "name": name,
            "label": label,
            "kind": kind,
            "integer": schema.get("type") == "integer",
            "optional": optional,
            "min": schema.get("minimum"),
            "max": schema.get("maximum"),
            "multiple": schema.get("multipleOf"),
            "maxLength": schema.get("maxLength"),
            "fewest": schema.get("minItems"),
            "most": schema.get("maxItems"),
            "step": hints.step,
            "slider": hints.slider,
            "choices": choices,
            "help": hints.help,
            "group": hints.group,
            "shownFor": hints.shown_for,
            "decidedBy": hints.decided_by,
            "facets": {value: facet._asdict() for value, facet in (hints.facets or {}).items()},
            "infotext": hints.infotext,
            "rows": inner_rows,
        }
        fields.append({key: value for key, value in field.items() if value or (value == 0 and value is not False)})
        fields[-1]["default"] = whole["properties"][name].get("default", [] if repeated else None)
        if inner and not repeated and not optional and fields[-1]["default"] is None:
            fields[-1]["default"] = {each["name"]: each["default"] for row in inner_rows for each in row}
    return fields


def _resolved(schema: Mapping[str, Any], known: Mapping[str, Any]) -> tuple[dict[str, Any], bool]:
    """A field's schema with what it refers to, and whether it may be null."""
    if "$ref" in schema:
        return {**known[schema["$ref"].rsplit("/", 1)[-1]], **schema}, False
    kinds = [kind for kind in schema.get("anyOf", ()) if kind.get("type") != "null"]
    if len(kinds) != 1:
        return dict(schema), False
    return {**_resolved(kinds[0], known)[0], **schema}, True


def is_painted(params: type[Params]) -> bool:
    """Whether one of the parameters is painted on the canvas."""
    return any(hints.widget == "mask" for _, _, hints in declared(params))


def rows(fields: Iterable[dict[str, Any]], order: Iterable[tuple[str, ...]] = ()) -> list[Row]:
    """The fields as rows: those named by `order` first, the sides of a frame in one, the rest each in its own."""
    left = {field["name"]: field for field in fields}
    ordered = [[left.pop(name) for name in names if name in left] for names in order]
    frame = [field for field in left.values() if field["kind"] == "frame"]
    rest = [[field] for field in left.values() if field["kind"] != "frame"]
    return [row for row in (*ordered, frame, *rest) if row]


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
