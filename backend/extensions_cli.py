"""`python app.py extensions ...`: what the page's tab of extensions does, for the terminal."""

import json
import logging
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from backend.cli_options import FAILED

if TYPE_CHECKING:
    from backend.install import Place, Plan
    from backend.settings import Settings

TRUST = "An extension can do all that Atelier can do: it is not locked in. Take it only from people you trust."
RESTART = "It takes part from the next start of Atelier on."

app = typer.Typer(help="Install, make and manage extensions.", no_args_is_help=True, rich_markup_mode=None)

Id = Annotated[str, typer.Argument(metavar="ID", help="The name of its folder.")]
Yes = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")]
Ref = Annotated[str, typer.Option(help="Branch, tag or commit; else what the address shows first.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]


@app.callback()
def common(
    context: typer.Context,
    data_dir: Annotated[Path | None, typer.Option(metavar="FOLDER", help="Else data.")] = None,
    extensions_dir: Annotated[Path | None, typer.Option(metavar="FOLDER", help="Else extensions.")] = None,
) -> None:
    given = {"data_dir": data_dir, "extensions_dir": extensions_dir}
    context.obj = {name: path.absolute() for name, path in given.items() if path is not None}
    logging.basicConfig(level="ERROR", format="%(levelname)s %(name)s: %(message)s")


@app.command("list")
def show(context: typer.Context, as_json: Json = False) -> None:
    """Show every extension, where it is from and what is wrong with it."""
    from backend import install, registry

    with _place(context) as place:
        loaded = registry.load(place.extensions, place.data, safe_mode=_settings(context).safe_mode)
        entries = install.listing(place, loaded)
    if as_json:
        typer.echo(json.dumps([entry._asdict() for entry in entries], indent=2, ensure_ascii=False))
        return
    if loaded.notice:
        typer.echo(loaded.notice)
    if not entries:
        typer.echo(f"There are no extensions in {place.extensions}; `extensions new my-thing` makes one.")
        return
    columns = {"Id": "", "Version": "", "State": "", "From": "", "Problem": "red"}
    colours = {"on": "green", "off": "yellow", "broken": "red"}
    _table(columns, [(e.id, e.version, f"[{colours[e.state]}]{e.state}[/]", e.origin, e.problem) for e in entries], 2)


@app.command("install")
def add(
    context: typer.Context,
    source: Annotated[str, typer.Argument(help="A git address, a zip, a folder, or an id of the catalogue.")],
    ref: Ref = "",
    yes: Yes = False,
) -> None:
    """Install an extension: shows what it asks for first."""
    from backend import extension_index, install, sources
    from backend.manifest import ID

    with _place(context) as place:
        catalogue = _settings(context).extension_index
        if catalogue and re.fullmatch(ID, source) and not Path(source).exists():
            origin: sources.Source = extension_index.read_index(catalogue).find(source).source
        else:
            origin = sources.source_of(source, ref)
        with install.planned(place, origin) as plan:
            _explain(plan)
            typer.echo(TRUST)
            _agree("Install it?", yes)
            install.apply(plan)
    typer.echo(f"{plan.manifest.title} {plan.manifest.version} is installed. {RESTART}")


@app.command()
def update(
    context: typer.Context,
    id: Annotated[str, typer.Argument(metavar="[ID]", help="Else all that came from a git address.")] = "",
    source: Annotated[str, typer.Argument(help="Else where it came from.")] = "",
    ref: Ref = "",
    yes: Yes = False,
) -> None:
    """Bring a newer version: shows how its manifest changes first."""
    from backend import install, sources
    from backend.manifest import Record

    with _place(context) as place:
        origin = sources.source_of(source, ref) if source else None
        ids = [id] if id else [i for i, from_ in Record.read(place.data).installed.items() if from_.kind == "git"]
        if not ids:
            typer.echo("None of the extensions came from a git address.")
        for one in ids:
            with install.planned_update(place, one, origin) as plan:
                if not plan.is_news:
                    typer.echo(f"{one} {plan.manifest.version} is up to date.")
                    continue
                _explain(plan)
                _agree("Update it?", yes)
                install.apply(plan)
            back = f"`extensions rollback {one}` brings the version before back."
            typer.echo(f"{one} is {plan.manifest.version} now. {RESTART} {back}")


@app.command()
def rollback(context: typer.Context, id: Id) -> None:
    """Go back to the version before the last update."""
    from backend import install

    with _place(context) as place:
        manifest = install.roll_back(place, id)
    typer.echo(f"{id} is {manifest.version} again. {RESTART}")


@app.command()
def disable(context: typer.Context, id: Id) -> None:
    """Leave an extension out, but keep it."""
    from backend import install

    with _place(context) as place:
        install.disable(place, id)
    typer.echo(f"{id} is off from the next start of Atelier on.")


@app.command()
def enable(context: typer.Context, id: Id) -> None:
    """Use a disabled extension again."""
    from backend import install

    with _place(context) as place:
        install.enable(place, id)
    typer.echo(f"{id} is on. {RESTART}")


@app.command()
def remove(context: typer.Context, id: Id) -> None:
    """Take an extension away, into the trash of the data folder."""
    from backend import install

    with _place(context) as place:
        trash = install.remove(place, id)
    typer.echo(f"{id} is removed; its files are in {trash}.")


@app.command()
def new(
    context: typer.Context,
    id: Annotated[str, typer.Argument(metavar="ID", help="Small letters, digits, - and _: my-thing.")],
    title: Annotated[str, typer.Option(help="As people read it.")] = "",
) -> None:
    """Make a small working extension of your own, with a test."""
    from backend import scaffold

    with _place(context) as place:
        folder = scaffold.create(place.extensions, id, title)
    typer.echo(f"{folder} is an extension that works. Change it; docs/extensions.md says what it can do.")
    typer.echo(f"Test it with: python app.py test {_short(folder)}")


@app.command()
def search(context: typer.Context, words: Annotated[list[str] | None, typer.Argument()] = None) -> None:
    """Search the catalogue."""
    from backend import extension_index

    with _place(context):
        found = extension_index.read_index(_settings(context).extension_index).search(" ".join(words or ()))
    if not found:
        typer.echo("Nothing in the catalogue holds all of these words.")
        return
    _table(
        dict.fromkeys(("Id", "Title", "Version", "What it does"), ""),
        [(e.id, e.title, e.version, e.description) for e in found],
    )


# ---------------------------------------------------------------- what the commands share


def _settings(context: typer.Context) -> "Settings":
    from backend.settings import Settings

    return Settings(**context.obj)


@contextmanager
def _place(context: typer.Context) -> Iterator["Place"]:
    """Where the extensions are; what goes wrong inside is said in a line."""
    from backend.errors import AtelierError
    from backend.install import Place

    try:
        yield Place.of(_settings(context))
    except (AtelierError, ValueError) as error:
        typer.echo(str(error), err=True)
        raise typer.Exit(FAILED) from None
    except OSError as error:
        typer.echo(f"{error.filename}: {error.strerror}", err=True)
        raise typer.Exit(FAILED) from None


def _explain(plan: "Plan") -> None:
    manifest, origin = plan.manifest, plan.origin
    commit = f", commit {origin.commit}" if origin.commit else ""
    typer.echo(f"{manifest.title} ({manifest.id}) {manifest.version}\n  from {origin.source}{commit}")
    if manifest.description and not plan.before:
        typer.echo(f"  {manifest.description}")
    typer.echo(f"  {plan.files} files, {plan.size / 1024:.0f} KB, licence: {manifest.licence or 'not said'}")
    for claim in plan.asks:
        typer.echo(f"  - It {claim}.")
    for change in plan.changes:
        typer.echo(f"  {change.key}: {_plain(change.before)} -> {_plain(change.after)}")
    if plan.is_wider:
        typer.echo("  It asks for more than the version before.")
    if plan.is_edited:
        typer.echo("  Its files have been changed here; they stay in the version that a rollback brings back.")


def _plain(value: object) -> str:
    return ", ".join(map(str, value)) or "none" if isinstance(value, tuple) else str(value) or "nothing"


def _agree(question: str, yes: bool) -> None:
    if yes:
        return
    if not sys.stdin.isatty():
        typer.echo("Nothing was changed: there is nobody to ask; say --yes to agree.", err=True)
        raise typer.Exit(FAILED)
    if not typer.confirm(question):
        typer.echo("Nothing was changed.")
        raise typer.Exit(FAILED)


def _table(columns: dict[str, str], rows: list[tuple[str, ...]], styled: int | None = None) -> None:
    """A table of `rows`; only the column number `styled` has markup."""
    from rich.box import SIMPLE
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    table = Table(box=SIMPLE)
    for name, style in columns.items():
        table.add_column(name, style=style or None, overflow="fold")
    for row in rows:
        table.add_row(*(cell if number == styled else escape(cell) for number, cell in enumerate(row)))
    Console().print(table)


def _short(folder: Path) -> str:
    return str(folder.relative_to(Path.cwd()) if folder.is_relative_to(Path.cwd()) else folder)
