"""`python app.py train`: teach a model something new from a folder of pictures, at the terminal."""

import json
import os
import shutil
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from backend.cli_options import DATA, FAILED, INTERRUPTED, MODELS, fail, read_settings, taking
from backend.errors import AtelierError, InvalidRequest

if TYPE_CHECKING:
    from backend.catalog import Model
    from backend.training.preflight import Preflight
    from backend.training.records import Training
    from backend.training.session import Progress, Session

Out = Annotated[str, typer.Option(help="The LoRA's name: <lora:NAME:1> in prompts.")]
Data = Annotated[Path | None, typer.Option(metavar="FOLDER", help="Pictures, with a .txt caption beside each.")]
Preset = Annotated[str, typer.Option(help="What to learn: character, style, object or concept.")]
ModelName = Annotated[str, typer.Option("--model", help="A checkpoint; else the default.")]
Assignments = Annotated[
    list[str] | None, typer.Option("--set", metavar="NAME=VALUE", help="Any parameter: --set rank=8 --set steps=800.")
]
Resume = Annotated[bool, typer.Option("--resume", help="Go on with a training that was stopped.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Begin anew where there is one of that name.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Make one step and say what it all will take.")]


@taking({**DATA, **MODELS})
def train(
    out: Out,
    data: Data = None,
    preset: Preset = "",
    model: ModelName = "",
    assignments: Assignments = None,
    resume: Resume = False,
    overwrite: Overwrite = False,
    dry_run: DryRun = False,
    **given: Any,
) -> None:
    """Train a LoRA from pictures: a character, a style, an object or a concept. Ctrl+C saves and stops."""
    _with_a_patient_allocator()
    with _said_in_a_line():
        session = _session(given, out, data, preset, model, _changes(assignments or []), resume, overwrite, dry_run)
        with _stopping() as stopped, _bar(stopped) as report:
            if dry_run:
                found = session.rehearse(report)
            else:
                with _nothing_left(session.training, resume):
                    result = session.run(report)
    if dry_run:
        _print_preflight(found)
        return
    for name, path in result.files.items():
        typer.echo(f"{name + ':':10} {path}")
    typer.echo(f"{'plots:':10} {session.training.folder}")


def _session(
    given: dict[str, Any],
    name: str,
    data: Path | None,
    preset: str,
    model: str,
    changes: dict[str, Any],
    resume: bool,
    overwrite: bool,
    dry_run: bool,
) -> "Session":
    from backend.catalog import Catalog
    from backend.params import validate
    from backend.training import records
    from backend.training.params import TrainParams
    from backend.training.session import Session

    settings = read_settings(**given)
    catalog = Catalog(settings.roots, settings.default_model)
    root = settings.data_dir / "training"
    if resume:
        if data or preset or model:
            fail("--resume takes pictures, preset and model as they were; leave them out")
        training = records.resume(root, name, changes)
    else:
        if data is None:
            fail("--data is missing: the folder with the pictures to learn from")
        if not data.is_dir():
            fail(f"--data {data}: there is no such folder")
        found = catalog.find(model)
        params = validate(TrainParams, {**_preset(preset, found), **changes, "model": found.name})
        _refuse_a_taken_name(root, settings.models_dir / "loras", name, overwrite, dry_run)
        training = (
            records.draft(root, name, data, params) if dry_run else records.begin(root, name, data, params, overwrite)
        )
    return Session(training, catalog, settings.models_dir / "loras", root / ".latents")


def _refuse_a_taken_name(root: Path, loras: Path, name: str, overwrite: bool, dry_run: bool) -> None:
    """A LoRA that no training here has made is not replaced by accident."""
    file = loras / f"{name}.safetensors"
    if file.exists() and not (root / name).exists() and not (overwrite or dry_run):
        fail(f"--out {name}: there is a LoRA of that name already; --overwrite replaces it")


def _preset(goal: str, model: "Model") -> dict[str, Any]:
    from backend.training import presets

    family = presets.family_of(model)
    if not goal:
        return dict(presets.FAMILIES[family])
    from backend.training import device

    return dict(presets.find(goal, family, device.graphics_memory()).values)


def _changes(assignments: list[str]) -> dict[str, Any]:
    changes: dict[str, Any] = {}
    for assignment in assignments:
        name, equals, text = assignment.partition("=")
        if not equals or not name:
            fail(f"--set {assignment}: write it as name=value")
        try:
            changes[name] = json.loads(text)
        except ValueError:
            changes[name] = text
    return changes


# --- what is shown meanwhile


@contextmanager
def _bar(stopped: Callable[[], bool]) -> Iterator[Callable[["Progress"], None]]:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
    from rich.progress import Progress as Bar

    from backend.result import JobCancelled

    columns = (
        TextColumn("{task.description:>10}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.fields[said]}"),
    )
    console = Console(stderr=True)  # standard output is for what has come out
    with Bar(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("loading", total=None, said="")

        def report(at: "Progress") -> None:
            counted = at.stage in ("encoding", "sampling")
            done, total = (at.part, at.parts) if counted else (at.step, at.steps)
            bar.update(task, description=at.stage, completed=done, total=total or None, said=_said(at))
            if stopped():
                raise JobCancelled

        yield report


def _said(at: "Progress") -> str:
    parts = [
        "" if at.loss is None else f"loss {at.loss:.4f}",
        "" if at.validation is None else f"held out {at.validation:.4f}",
        "" if at.rate is None else f"rate {at.rate:.2e}",
        "" if at.seconds_left is None else f"{_time(at.seconds_left)} left",
        f"{at.memory / 2**30:.1f} GB" if at.memory else "",
    ]
    return "  ".join(filter(None, parts))


def _print_preflight(found: "Preflight") -> None:
    numbers = found.numbers
    shapes = ", ".join(f"{count} of {shape}" for shape, count in numbers["buckets"].items())
    typer.echo(f"{numbers['images']} pictures, {numbers['held_out']} of them held out; {shapes}")
    typer.echo(f"{numbers['steps']} steps, {numbers['epochs']} epochs")
    typer.echo(
        f"about {_time(found.seconds)}, {found.memory / 2**30:.1f} GB of memory, {found.disk / 2**20:.0f} MB of disk"
    )
    for warning in found.warnings:
        typer.echo(f"note: {warning}")
    for flag in numbers["flags"]:
        typer.echo(f"  {flag['file']} {flag['message']}")


def _time(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


# --- stopping, failing


@contextmanager
def _nothing_left(training: "Training", resumed: bool) -> Iterator[None]:
    """A training that is refused has not begun: the same command may be given again, put right."""
    try:
        yield
    except InvalidRequest:
        if not resumed:
            shutil.rmtree(training.folder)
        raise


@contextmanager
def _stopping() -> Iterator[Callable[[], bool]]:
    """Whether Ctrl+C was pressed: the step in hand is finished and saved. A second one stops at once."""
    pressed = False

    def on_signal(number: int, frame: object) -> None:
        nonlocal pressed
        if pressed:
            raise KeyboardInterrupt
        pressed = True
        typer.echo("\nsaving; press Ctrl+C again to stop without it", err=True)

    before = {number: signal.signal(number, on_signal) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield lambda: pressed
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def _said_in_a_line() -> Iterator[None]:
    from backend.result import JobCancelled

    try:
        yield
    except JobCancelled:
        typer.echo("stopped; --resume goes on", err=True)
        raise typer.Exit(INTERRUPTED) from None
    except InvalidRequest as error:
        fail("\n".join(f"{_flag(field)}: {message}" if field else message for field, message in error.problems))
    except AtelierError as error:
        fail(str(error), FAILED)


def _flag(field: str) -> str:
    return {"name": "--out", "data": "--data", "model": "--model"}.get(field, f"--set {field}")


def _with_a_patient_allocator() -> None:
    """On Linux malloc reads its settings when a process starts, and its usual ones make convolutions twice as slow."""
    from backend.jobs.host import environment

    wanted = {**environment(None), **os.environ}
    if Path(sys.argv[0]).name == "app.py" and sys.platform == "linux" and wanted != dict(os.environ):
        os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], wanted)
