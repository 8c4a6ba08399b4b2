"""The command line: `python app.py [command] [options]`; without a command it serves the page.

What is heavy is imported by the command that needs it, so that --help and a wrong option answer at once.
"""

import inspect
import json
import logging
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

from backend import __version__, bootstrap, extensions_cli, models_cli, training_cli
from backend.errors import AtelierError, Conflict, ImageRefused, InvalidRequest, Refused
from backend.hardware import told
from backend.params import PICTURED, Hints, Params, declared, nested
from backend.request import GenerationRequest

if TYPE_CHECKING:
    from rich.progress import Progress as Bar

    from backend.services import Services
    from backend.settings import Settings

FAILED = 1
BAD_INPUT = 2
PORT_TAKEN = 3
INTERRUPTED = 130
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
"""That the browser tests can drive."""

Host = Annotated[str | None, typer.Option(help="Where to serve; else 127.0.0.1.")]
Port = Annotated[int | None, typer.Option(help="Else 7860; 0 takes a free one.")]
DataDir = Annotated[Path | None, typer.Option(metavar="FOLDER", help="Database, uploads, secrets; else data.")]
ModelsDir = Annotated[Path | None, typer.Option(metavar="FOLDER", help="Your models; else models.")]
ModelRoots = Annotated[
    list[Path] | None, typer.Option("--model-root", metavar="FOLDER", help="A further folder of models; repeatable.")
]
A1111Dir = Annotated[Path | None, typer.Option("--a1111-dir", metavar="FOLDER", help="Use its models as they are.")]
ComfyUIDir = Annotated[
    Path | None, typer.Option("--comfyui-dir", metavar="FOLDER", help="Use its models as they are.")
]
OutputsDir = Annotated[Path | None, typer.Option(metavar="FOLDER", help="Your pictures; else outputs.")]
LogLevel = Annotated[str | None, typer.Option(metavar="LEVEL", help="debug, info, warning or error.")]
Attention = Annotated[str | None, typer.Option(metavar="KIND", help=told("attention"))]
Precision = Annotated[str | None, typer.Option(metavar="KIND", help=told("precision"))]
Offload = Annotated[str | None, typer.Option(metavar="KIND", help=told("offload"))]
RamBudget = Annotated[str | None, typer.Option(metavar="GB", help=told("ram_budget"))]
VramBudget = Annotated[str | None, typer.Option(metavar="GB", help=told("vram_budget"))]
Previews = Annotated[str | None, typer.Option(metavar="KIND", help=told("previews"))]

app = typer.Typer(
    help="Atelier, an image studio in your browser. Without a command it serves the page.",
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # an error is a line, not a box
)
bench = typer.Typer(help="Measure what Atelier costs on this machine.", rich_markup_mode=None)
app.add_typer(bench, name="bench")
app.add_typer(extensions_cli.app, name="extensions")
app.add_typer(models_cli.app, name="models")
app.command()(training_cli.train)


def main(arguments: Sequence[str] | None = None) -> None:
    given = list(sys.argv[1:] if arguments is None else arguments)
    if given == ["--version"]:
        print(f"Atelier {__version__}")
        return
    if not given or (given[0].startswith("-") and given[0] != "--help"):
        given = ["serve", *given]
    if given[0] == "generate":
        _with_parameters(generate, _extension_options())
    app(given, prog_name="python app.py")


@app.command()
def serve(
    host: Host = None,
    port: Port = None,
    listen: Annotated[bool, typer.Option("--listen", help="Let other machines in; needs --auth.")] = False,
    auth: Annotated[str | None, typer.Option(metavar="NAME:PASSWORD", help="Who may come in.")] = None,
    safe_mode: Annotated[bool, typer.Option("--safe-mode", help="Load only the built-in extensions.")] = False,
    data_dir: DataDir = None,
    models_dir: ModelsDir = None,
    model_roots: ModelRoots = None,
    a1111_dir: A1111Dir = None,
    comfyui_dir: ComfyUIDir = None,
    outputs_dir: OutputsDir = None,
    log_level: LogLevel = None,
    attention: Attention = None,
    precision: Precision = None,
    offload: Offload = None,
    ram_budget: RamBudget = None,
    vram_budget: VramBudget = None,
    previews: Previews = None,
) -> None:
    """Serve the page (the default)."""
    settings = _settings(
        host=host or ("0.0.0.0" if listen else None),  # noqa: S104 (asked for; refused without a password)
        port=port,
        auth=auth,
        safe_mode=safe_mode or None,
        data_dir=data_dir,
        models_dir=models_dir,
        model_roots=model_roots,
        a1111_dir=a1111_dir,
        comfyui_dir=comfyui_dir,
        outputs_dir=outputs_dir,
        log_level=log_level,
        attention=attention,
        precision=precision,
        offload=offload,
        ram_budget=ram_budget,
        vram_budget=vram_budget,
        previews=previews,
    )
    if not settings.is_local and settings.auth is None:
        asked = "--listen" if listen and not host else f"--host {settings.host}"
        _fail(f"{asked} needs --auth name:password, or anybody on the network could use this machine")
    services = _build(settings)
    from backend.api import server

    try:
        server.serve(services)
    except Conflict as error:
        _fail(str(error), PORT_TAKEN)
    except Refused as error:
        _fail(str(error))


@app.command()
def doctor(
    host: Host = None,
    port: Port = None,
    data_dir: DataDir = None,
    models_dir: ModelsDir = None,
    model_roots: ModelRoots = None,
    a1111_dir: A1111Dir = None,
    comfyui_dir: ComfyUIDir = None,
    outputs_dir: OutputsDir = None,
) -> None:
    """Say what this machine has, what is wrong with it and how to mend that."""
    settings = _settings(
        host=host,
        port=port,
        data_dir=data_dir,
        models_dir=models_dir,
        outputs_dir=outputs_dir,
        model_roots=model_roots,
        a1111_dir=a1111_dir,
        comfyui_dir=comfyui_dir,
    )
    from backend.doctor import report

    if not report(settings):
        raise typer.Exit(FAILED)


@app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []})
def test(context: typer.Context) -> None:
    """Run the test suite; everything behind `test` goes to pytest."""
    try:
        python = bootstrap.complete(bootstrap.ROOT, "requirements.txt", "requirements-dev.txt")
    except bootstrap.SetupFailed as error:
        _fail(str(error), FAILED)
    if "ATELIER_CHROMIUM" not in os.environ and not any(map(shutil.which, BROWSERS)):
        print("No Chromium is installed; asking Playwright for its own.", file=sys.stderr)
        # where it cannot be had either, the browser tests are skipped and say so
        subprocess.call([python, "-m", "playwright", "install", "chromium"])
    raise typer.Exit(subprocess.call([python, "-m", "pytest", *context.args], cwd=bootstrap.ROOT))


@bench.command()
def overhead(
    size: Annotated[str, typer.Option(help="starter, or full: random weights of Stable Diffusion 1.5.")] = "starter",
    pairs: Annotated[int, typer.Option(help="Pictures of each kind.", min=1)] = 7,
    steps: Annotated[int, typer.Option(min=1)] = 20,
    width: Annotated[int, typer.Option(help="Width and height; 0: what suits the model.")] = 0,
    threads: Annotated[int, typer.Option(help="0: as many as the engine takes.")] = 1,
) -> None:
    """Seconds per picture through our engine and through plain diffusers, in one process, in turn."""
    from benchmarks import overhead

    overhead.main(size, pairs, steps, width, threads)


@bench.command()
def controlnet(
    size: Annotated[str, typer.Option(help="starter, or full: random weights of Stable Diffusion 1.5.")] = "starter",
    pairs: Annotated[int, typer.Option(help="Pictures of each kind.", min=1)] = 7,
    steps: Annotated[int, typer.Option(min=2)] = 20,
    width: Annotated[int, typer.Option(help="Width and height; 0: what suits the model.")] = 0,
    threads: Annotated[int, typer.Option(help="0: as many as the engine takes.")] = 1,
) -> None:
    """Seconds per step with a ControlNet unit, and through diffusers' own ControlNet pipeline, in turn."""
    from benchmarks import controlnet

    controlnet.main(size, pairs, steps, width, threads)


@bench.command()
def models(
    size: Annotated[str, typer.Option(help="starter, or full: random weights of Stable Diffusion 1.5.")] = "full",
    repeat: Annotated[int, typer.Option(help="Loadings of each kind.", min=1)] = 3,
    pairs: Annotated[int, typer.Option(help="Pictures of each kind; 0: none.", min=0)] = 5,
    steps: Annotated[int, typer.Option(min=1)] = 4,
    width: Annotated[int, typer.Option(help="Width and height; 0: what suits the model.")] = 0,
    threads: Annotated[int, typer.Option(min=1)] = 1,
) -> None:
    """What loading a model costs, coming back to it and drawing with it, beside plain diffusers."""
    from benchmarks import models

    models.main(size, repeat, pairs, steps, width, threads)


@bench.command()
def startup(repeat: Annotated[int, typer.Option(help="Starts of each kind.", min=1)] = 3) -> None:
    """CPU seconds to the first page and to the first picture, and of `import gradio` alone."""
    from benchmarks import startup

    startup.main(repeat)


# ---------------------------------------------------------------- generate

METAVARS = dict.fromkeys(("number", "slider", "size", "seed"), "NUMBER") | dict.fromkeys(map(str, PICTURED), "FILE")
Options = dict[str, tuple[str, Hints]]
"""Label and hints of parameters, by their paths."""


def _flag(path: str) -> str:
    """How a parameter is spelled as an option; what only --set reaches, by its path."""
    options = _request_options() if path in GenerationRequest.model_fields else _extension_options()
    return next(iter(_spellings(path, options[path][1]))) if path in options else path


def _spellings(path: str, hints: Hints) -> dict[str, None]:
    """The short one first; one of the request's own is taken under its name too."""
    own = None if "." in path else "--" + path.replace("_", "-")
    return dict.fromkeys(filter(None, (hints.option, own)))


def _request_options() -> Options:
    return {name: (label, hints) for name, label, hints in declared(GenerationRequest) if name != "prompt"}


@cache
def _extension_options() -> Options:
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


def _with_parameters(command: Callable[..., None], further: Options | None = None) -> Callable[..., None]:
    """The command with an option for every parameter that the request declares, and for `further` ones."""
    vars(command).pop("__signature__", None)  # of a call with fewer
    own = [p for p in inspect.signature(command).parameters.values() if p.kind is not p.VAR_KEYWORD]
    prompt = Annotated[str, typer.Argument(help="What the picture shows.")]
    derived = [inspect.Parameter("prompt", inspect.Parameter.KEYWORD_ONLY, annotation=prompt)]
    options = {**_request_options(), **(further or {})}
    derived += [_option(path, label, hints) for path, (label, hints) in options.items()]
    setattr(command, "__signature__", inspect.Signature([*derived, *own]))  # noqa: B010 (what typer reads)
    return command


def _option(path: str, label: str, hints: Hints) -> inspect.Parameter:
    choices = "" if isinstance(hints.choices, str) else ", ".join(shown for _, shown in hints.choices or ())
    annotation = Annotated[
        str | None,  # as typed: the declaration checks it, as it checks what the page sends
        typer.Option(
            *_spellings(path, hints),
            help=" ".join(filter(None, (f"{label}.", hints.help, f"One of: {choices}." if choices else ""))),
            metavar=METAVARS.get(hints.widget, "TEXT"),
        ),
    ]
    return inspect.Parameter(_argument(path), inspect.Parameter.KEYWORD_ONLY, default=None, annotation=annotation)


def _argument(path: str) -> str:
    return path.replace(".", "__").replace("-", "_")


@app.command()
@_with_parameters
def generate(
    *,
    out: Annotated[Path | None, typer.Option(metavar="FILE.png", help="Copy it there; more get -2, -3 ...")] = None,
    assignments: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="NAME=VALUE", help="Any parameter by its path: <extension>.<name>=1.5"),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the request and the paths.")] = False,
    data_dir: DataDir = None,
    models_dir: ModelsDir = None,
    model_roots: ModelRoots = None,
    a1111_dir: A1111Dir = None,
    comfyui_dir: ComfyUIDir = None,
    outputs_dir: OutputsDir = None,
    log_level: LogLevel = None,
    attention: Attention = None,
    precision: Precision = None,
    offload: Offload = None,
    ram_budget: RamBudget = None,
    vram_budget: VramBudget = None,
    **fields: str | None,
) -> None:
    """Draw a picture, as the page would: the same request gives the same file."""
    settings = _settings(
        data_dir=data_dir,
        models_dir=models_dir,
        outputs_dir=outputs_dir,
        log_level=log_level,
        model_roots=model_roots,
        a1111_dir=a1111_dir,
        comfyui_dir=comfyui_dir,
        attention=attention,
        precision=precision,
        offload=offload,
        ram_budget=ram_budget,
        vram_budget=vram_budget,
    )
    logging.basicConfig(level=(log_level or "warning").upper(), format="%(levelname)s %(name)s: %(message)s")
    if out:
        _check_out(out)
    values = _values(fields, assignments or [])
    services = _build(settings)
    from backend.jobs.store import private_queue

    services.jobs.queue = private_queue()  # a server on the same data folder neither sees nor does this job
    try:
        values = _with_images(services, values)
        job = services.submit(values)
    except InvalidRequest as error:
        _fail("\n".join(f"{_flag(field)}: {message}" for field, message in error.problems))
    except AtelierError as error:
        _fail(str(error), FAILED)

    view = _finished(services, job.id)
    paths = {kind: _files(services, view[kind]) for kind in ("pictures", "maps")}
    if out:
        paths["pictures"] = [_copy(path, _numbered(out, n)) for n, path in enumerate(paths["pictures"])]
        paths["maps"] = [_copy(path, _numbered(_of_map(out), n)) for n, path in enumerate(paths["maps"])]
    if as_json:
        print(json.dumps({"request": view["request"], **paths}, indent=2, default=str))
    else:
        for path in (*paths["pictures"], *paths["maps"]):
            print(path)
    if view["state"] == "failed":
        _fail(view["error"], FAILED)
    if view["state"] == "cancelled":
        raise typer.Exit(INTERRUPTED)


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
            _fail(f"--set {assignment}: write it as name=value")
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
            _fail(f"--set {'.'.join(path)}: {part} has been given a value of its own")
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
        _fail(f"{flag} {given}: {error.strerror}")
    except ImageRefused as error:
        _fail(f"{flag}: {error}")


def _check_out(out: Path) -> None:
    if out.suffix.lower() != ".png":
        _fail(f"--out {out}: pictures are PNG files, give a name that ends in .png")
    if not out.absolute().parent.is_dir():
        _fail(f"--out {out}: there is no folder {out.absolute().parent}")


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
        _fail(f"{error}; the picture is at {path}", FAILED)
    return to


# ---------------------------------------------------------------- what all commands share


def _settings(**given: Any) -> "Settings":
    """From the options that were given; the rest from ATELIER_* variables and data/settings.toml."""
    from pydantic import ValidationError

    from backend.settings import Settings

    try:
        return Settings(**{name: value for name, value in given.items() if value is not None})
    except ValidationError as error:
        said = [(str(e["loc"][0]), e["msg"].removeprefix("Input ")) for e in error.errors()]
        _fail("\n".join(f"{name.replace('_', '-')}: {message}" for name, message in said))
    except ValueError as error:  # a variable or a settings.toml that cannot be read
        _fail(f"settings: {error}")


def _build(settings: "Settings") -> "Services":
    from backend import services

    try:
        return services.build(settings)
    except AtelierError as error:
        _fail(str(error), FAILED)
    except OSError as error:
        _fail(f"{error.filename}: {error.strerror}; make it writable, or name another folder with --data-dir", FAILED)


def _fail(message: str, code: int = BAD_INPUT) -> NoReturn:
    print(message, file=sys.stderr)
    raise typer.Exit(code)
