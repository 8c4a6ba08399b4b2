"""The command line: `python app.py [command] [options]`; without a command it serves the page.

What is heavy is imported by the command that needs it, so that --help and a wrong option answer at once.
"""

import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from typing import Annotated, Any

import typer

from backend import __version__, bootstrap, extensions_cli, models_cli, training_cli
from backend.cli_options import (
    ADDRESS,
    DATA,
    ENGINE,
    FAILED,
    LOG,
    MODELS,
    OUTPUTS,
    PORT_TAKEN,
    build,
    fail,
    read_settings,
    taking,
)
from backend.errors import Conflict, Refused
from backend.hardware import told

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
"""That the browser tests can drive."""
PREVIEWS = {"previews": Annotated[str | None, typer.Option(metavar="KIND", help=told("previews"))]}

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
    if given[0] not in _OTHERS:
        from backend import generating_cli

        command = generating_cli.with_extensions() if given[0] == "generate" else generating_cli.generate
        app.command("generate")(command)
    app(given, prog_name="python app.py")


_OTHERS = ("serve", "doctor", "test", "bench", "train", "extensions", "models")
"""Commands that do not wait until all is imported and derived that a request is made of."""


@app.command()
@taking({**ADDRESS, **DATA, **MODELS, **OUTPUTS, **LOG, **ENGINE, **PREVIEWS})
def serve(
    listen: Annotated[bool, typer.Option("--listen", help="Let other machines in; needs --auth.")] = False,
    auth: Annotated[str | None, typer.Option(metavar="NAME:PASSWORD", help="Who may come in.")] = None,
    safe_mode: Annotated[bool, typer.Option("--safe-mode", help="Load only the built-in extensions.")] = False,
    **given: Any,
) -> None:
    """Serve the page (the default)."""
    everywhere = listen and not given["host"]
    if everywhere:
        given["host"] = "0.0.0.0"  # noqa: S104 (asked for; refused without a password)
    settings = read_settings(auth=auth, safe_mode=safe_mode or None, **given)
    if not settings.is_local and settings.auth is None:
        asked = "--listen" if everywhere else f"--host {settings.host}"
        fail(f"{asked} needs --auth name:password, or anybody on the network could use this machine")
    services = build(settings)
    from backend.api import server

    try:
        server.serve(services)
    except Conflict as error:
        fail(str(error), PORT_TAKEN)
    except Refused as error:
        fail(str(error))


@app.command()
@taking({**ADDRESS, **DATA, **MODELS, **OUTPUTS})
def doctor(**given: Any) -> None:
    """Say what this machine has, what is wrong with it and how to mend that."""
    settings = read_settings(**given)
    from backend.doctor import report

    if not report(settings):
        raise typer.Exit(FAILED)


@app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []})
def test(context: typer.Context) -> None:
    """Run the test suite; everything behind `test` goes to pytest."""
    try:
        python = bootstrap.complete(bootstrap.ROOT, "requirements.txt", "requirements-dev.txt")
    except bootstrap.SetupFailed as error:
        fail(str(error), FAILED)
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
