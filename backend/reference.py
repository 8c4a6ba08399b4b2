"""docs/parameters.md, written from the declarations: `python -m backend.reference` brings it up to date."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from backend import registry
from backend.manifest import HOME, is_builtin
from backend.params import PICTURED, Hints, Params, as_text, declared, nested
from backend.request import GenerationRequest
from backend.training.params import TrainParams

FILE = Path(__file__).resolve().parent.parent / "docs" / "parameters.md"
_HEAD = """\
# Parameters

Every parameter of a request: the same name on the page, in the API and on the command line, and the key under which
the picture's text keeps it. `python -m backend.reference` writes this page from the declarations; do not edit it.
"""
_TRAINING = "Of a LoRA, `python app.py train --set NAME=VALUE`; see [training.md](training.md)."
_COLUMNS = "| Name | Label | Value | Default | In the picture | What it does |\n|---|---|---|---|---|---|"


def parameters() -> str:
    """The page: the request's own parameters, those of each built-in extension, then those of a training."""
    folders = [p for p in sorted(HOME.glob("*")) if is_builtin(p)]
    extensions = registry.load(HOME, only={p.name for p in folders}).extensions
    parts = [_HEAD, "## The request", "\n".join(_table(GenerationRequest, ""))]
    for extension in sorted(extensions, key=lambda e: e.id):
        parts += [f"## {extension.title}", "\n".join(_table(extension.Params, f"extensions.{extension.id}."))]
    parts += ["## Training", _TRAINING, "\n".join(_table(TrainParams, ""))]
    return "\n\n".join(part.strip() for part in parts) + "\n"


def _table(params: type[Params], prefix: str) -> Iterator[str]:
    rows = list(_rows(params, prefix))
    yield from (_COLUMNS, *rows) if rows else ("It has no parameters of its own.",)


def _rows(params: type[Params], prefix: str) -> Iterator[str]:
    schema = params.model_json_schema()
    for name, label, hints in declared(params):
        field = params.model_fields[name]
        inner, repeated = nested(field.annotation)
        default = "" if field.is_required() or inner else _default(field.get_default(call_default_factory=True))
        cells = (
            f"`{prefix}{name}`",
            label,
            ("a list" if repeated else "an object") if inner else _value(schema["properties"][name], hints),
            default,
            f"`{hints.infotext}`" if hints.infotext else "",
            hints.help,
        )
        yield "| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in cells) + " |"
        if inner:
            yield from _rows(inner, f"{prefix}{name}.0." if repeated else f"{prefix}{name}.")


def _default(value: Any) -> str:
    if value in (None, "", ()):
        return "none"
    return f"`{int(value) if isinstance(value, int) and not isinstance(value, bool) else value}`"


def _value(schema: dict[str, Any], hints: Hints) -> str:
    """Type, limits and choices in words."""
    if isinstance(hints.choices, str):
        return f"{'some' if schema.get('type') == 'array' else 'one'} of the {hints.choices}"
    if hints.choices:
        said = [f"`{v}`" if str(v) == shown else f"`{v}` {shown}" if v != "" else shown for v, shown in hints.choices]
        return ", ".join(said)
    if hints.widget in PICTURED:
        return "an image"
    words = {"integer": "whole number", "number": "number", "boolean": "yes or no", "string": "text"}
    text = words.get(schema.get("type", ""), "")
    low, high = (as_text(float(schema[key])) if key in schema else "" for key in ("minimum", "maximum"))
    limits = f"{low} to {high}" if low and high else f"at least {low}" if low else f"at most {high}" if high else ""
    multiple = f"in steps of {schema['multipleOf']}" if "multipleOf" in schema else ""
    length = f"at most {schema['maxLength']} characters" if "maxLength" in schema else ""
    return ", ".join(filter(None, (text, limits, multiple, length)))


if __name__ == "__main__":
    FILE.write_text(parameters(), "utf-8")
