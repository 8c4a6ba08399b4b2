"""`python app.py generate`: a picture, drawn by the job queue of this process."""

import json
import logging
import re
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from backend.cli_options import (
    DATA,
    ENGINE,
    FAILED,
    INTERRUPTED,
    LOG,
    MODELS,
    OUTPUTS,
    Options,
    build,
    fail,
    read_settings,
    taking,
)
from backend.errors import AtelierError, ImageRefused, InvalidRequest
from backend.params import PICTURED, Hints, Params, declared, nested
from backend.request import GenerationRequest

if TYPE_CHECKING:
    from rich.progress import Progress as Bar

    from backend.services import Services

SETTINGS: Options = {**DATA, **MODELS, **OUTPUTS, **LOG, **ENGINE}
METAVARS = dict.fromkeys(("number", "slider", "size", "seed"), "NUMBER") | dict.fromkeys(map(str, PICTURED), "FILE")
Declared = dict[str, tuple[str, Hints]]
"""Label and hints of parameters, by their paths."""


def _flag(path: str) -> str:
    """How a parameter is spelled as an option; what only --set reaches, by its path."""
    options = _request_options() if path in GenerationRequest.model_fields else _extension_options()
    return next(iter(_spellings(path, options[path][1]))) if path in options else path


def _spellings(path: str, hints: Hints) -> dict[str, None]:
    """The short one first; one of the request's own is taken under its name too."""
    own = None if "." in path else "--" + path.replace("_", "-")
    return dict.fromkeys(filter(None, (hints.option, own)))


def _request_options() -> Declared:
    return {name: (label, hints) for name, label, hints in declared(GenerationRequest) if name != "prompt"}


@cache
def _extension_options() -> Declared:
    """What Atelier's own extensions declare as an option; a stranger's is not run to read a command line."""
    from backend import registry
    from backend.manifest import HOME, is_builtin

    extensions = registry.load(HOME, only={p.name for p in HOME.glob("*") if is_builtin(p)}).extensions
    return {
        f"extensions.{extension.id}.{name}": (label, hints)
        for extension in extensions
        for name, label, hints in declared(extension.Params)
        if hints.option
    }


def _options(declarations: Declared) -> Options:
    return {_argument(path): _option(path, label, hints) for path, (label, hints) in declarations.items()}


def _option(path: str, label: str, hints: Hints) -> Any:
    choices = "" if isinstance(hints.choices, str) else ", ".join(shown for _, shown in hints.choices or ())
    return Annotated[
        str | None,  # as typed: the declaration checks it, as it checks what the page sends
        typer.Option(
            *_spellings(path, hints),
            help=" ".join(filter(None, (f"{label}.", hints.help, f"One of: {choices}." if choices else ""))),
            metavar=METAVARS.get(hints.widget, "TEXT"),
        ),
    ]


def _argument(path: str) -> str:
    return path.replace(".", "__").replace("-", "_")


@taking({**_options(_request_options()), **SETTINGS})
def generate(
    prompt: Annotated[str, typer.Argument(help="What the picture shows.")],
    *,
    out: Annotated[Path | None, typer.Option(metavar="FILE.png", help="Copy it there; more get -2, -3 ...")] = None,
    assignments: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="NAME=VALUE", help="Any parameter by its path: <extension>.<name>=1.5"),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the request and the paths.")] = False,
    **given: Any,
) -> None:
    """Draw a picture, as the page would: the same request gives the same file."""
    level = given["log_level"] or "warning"
    settings = read_settings(**{name: given.pop(name) for name in SETTINGS})
    logging.basicConfig(level=level.upper(), format="%(levelname)s %(name)s: %(message)s")
    if out:
        _check_out(out)
    values = _values({"prompt": prompt, **given}, assignments or [])
    services = build(settings)
    from backend.jobs.store import private_queue

    services.jobs.queue = private_queue()  # a server on the same data folder neither sees nor does this job
    try:
        values = _with_images(services, values)
        job = services.submit(values)
    except InvalidRequest as error:
        fail("\n".join(f"{_flag(field)}: {message}" for field, message in error.problems))
    except AtelierError as error:
        fail(str(error), FAILED)

    view = _finished(services, job.id)
    paths = {kind: _files(services, view[kind]) for kind in ("pictures", "maps")}
    if out:
        paths["pictures"] = [_copy(path, _numbered(out, n)) for n, path in enumerate(paths["pictures"])]
        paths["maps"] = [_copy(path, _numbered(_of_map(out), n)) for n, path in enumerate(paths["maps"])]
    if as_json:
        typer.echo(json.dumps({"request": view["request"], **paths}, indent=2, default=str))
    else:
        for path in (*paths["pictures"], *paths["maps"]):
            typer.echo(str(path))
    if view["state"] == "failed":
        fail(view["error"], FAILED)
    if view["state"] == "cancelled":
        raise typer.Exit(INTERRUPTED)


def with_extensions() -> Callable[..., None]:
    """The command with what Atelier's own extensions declare as an option, too: they are loaded for that."""
    return taking({**_options({**_request_options(), **_extension_options()}), **SETTINGS})(generate)


def _finished(services: "Services", job_id: int) -> dict[str, Any]:
    """The final view of the job, drawn by a worker of our own; Ctrl+C cancels it."""
    view: dict[str, Any] = {}
    services.runner.start()
    try:
        with _bar() as bar:
            task = bar.add_task("waiting", total=1.0, left="")
            try:
                for view in services.hub.follow(job_id):
                    _show(bar, task, view)
            except KeyboardInterrupt:
                services.runner.cancel(job_id)
                bar.update(task, description="stopping")
                view = list(services.hub.follow(job_id))[-1]
    finally:
        services.runner.stop()
    return view


def _bar() -> "Bar":
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    console = Console(stderr=True)  # standard output is for the paths
    columns = (
        TextColumn("{task.description:>8}"),
        BarColumn(),
        TextColumn("{task.percentage:>3.0f}%"),
        TimeElapsedColumn(),
        TextColumn("{task.fields[left]}"),
    )
    return Progress(*columns, console=console, transient=True, disable=not console.is_terminal)


def _show(bar: "Bar", task: Any, view: dict[str, Any]) -> None:
    at = view["progress"]
    if at is None:
        return
    left = "" if at["eta"] is None else f"{at['eta']:.0f} s left"
    bar.update(task, description=at["stage"], completed=at["fraction"], left=left)


def _values(fields: dict[str, str | None], assignments: list[str]) -> dict[str, Any]:
    """The request's values as typed, unchecked: text, that its declaration turns into numbers."""
    values: dict[str, Any] = {name: value for name, value in fields.items() if value is not None}
    for path in _extension_options():
        if (given := values.pop(_argument(path), None)) is not None:
            _put(values, path.split("."), given)
    for name, _, hints in declared(GenerationRequest):
        labels = {label: value for value, label in hints.choices or ()} if not isinstance(hints.choices, str) else {}
        if values.get(name) in labels:  # "Crop and resize" as well as 1
            values[name] = labels[values[name]]
    for assignment in assignments:
        path, equals, text = assignment.partition("=")
        if not equals or not path:
            fail(f"--set {assignment}: write it as name=value")
        try:
            value = json.loads(text)
        except ValueError:
            value = text
        first, *others = path.split(".")
        in_extension = others and first not in GenerationRequest.model_fields  # `inpaint.blur` will do
        _put(values, ["extensions", first, *others] if in_extension else [first, *others], value)
    return {name: _with_lists(value) for name, value in values.items()}


def _put(values: dict[str, Any], path: list[str], value: Any) -> None:
    for part in path[:-1]:
        inner = values.setdefault(part, {})
        if not isinstance(inner, dict):
            fail(f"--set {'.'.join(path)}: {part} has been given a value of its own")
        values = inner
    values[path[-1]] = value


def _with_lists(value: Any) -> Any:
    """`units.0.weight` was put under the key "0"."""
    if not isinstance(value, dict):
        return value
    inner = {key: _with_lists(held) for key, held in value.items()}
    return [inner[key] for key in sorted(inner, key=int)] if inner and all(key.isdigit() for key in inner) else inner


def _with_images(services: "Services", values: dict[str, Any]) -> dict[str, Any]:
    """The values with every image file in the store, under the name that it has there."""
    core: dict[str, Any] = _stored(services, GenerationRequest, values, "")
    given = core.get("extensions")
    if not isinstance(given, dict):
        return core
    known = services.registry.params
    stored = {
        id: _stored(services, known[id], v, f"extensions.{id}.") if id in known else v for id, v in given.items()
    }
    return {**core, "extensions": stored}


def _stored(services: "Services", params: type[Params], given: Any, path: str) -> Any:
    if isinstance(given, list):
        return [_stored(services, params, each, f"{path}{i}.") for i, each in enumerate(given)]
    if not isinstance(given, dict):
        return given
    values = dict(given)
    for name in given.keys() & params.model_fields.keys():
        inner, _ = nested(params.model_fields[name].annotation)
        if inner:
            values[name] = _stored(services, inner, values[name], f"{path}{name}.")
    for name, _, hints in declared(params):
        if hints.widget in PICTURED and isinstance(values.get(name), str):
            values[name] = _image(services, values[name], _flag(path + name))
    return values


def _image(services: "Services", given: str, flag: str) -> str:
    """What the store calls a file, or an image that it holds already."""
    if re.fullmatch("[0-9a-f]{64}", given) and given in services.images:
        return given
    try:
        return services.images.put(Path(given).read_bytes())
    except OSError as error:
        fail(f"{flag} {given}: {error.strerror}")
    except ImageRefused as error:
        fail(f"{flag}: {error}")


def _check_out(out: Path) -> None:
    if out.suffix.lower() != ".png":
        fail(f"--out {out}: pictures are PNG files, give a name that ends in .png")
    if not out.absolute().parent.is_dir():
        fail(f"--out {out}: there is no folder {out.absolute().parent}")


def _files(services: "Services", pictures: list[dict[str, Any]]) -> list[Path]:
    return [services.gallery.path(services.gallery.get(picture["id"])) for picture in pictures]


def _of_map(out: Path) -> Path:
    return out.with_stem(f"{out.stem}-map")


def _numbered(out: Path, number: int) -> Path:
    return out.with_stem(f"{out.stem}-{number + 1}") if number else out


def _copy(path: Path, to: Path) -> Path:
    from backend.files import write_atomically

    try:
        write_atomically(to, path.read_bytes())
    except AtelierError as error:
        fail(f"{error}; the picture is at {path}", FAILED)
    return to
