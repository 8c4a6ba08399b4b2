"""`python app.py models ...`: what models there are, and whether they are whole."""

import json
import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any, get_args

import typer

from backend import making_cli
from backend.cli_options import DATA, FAILED, MODELS, fail, read_settings, taking

if TYPE_CHECKING:
    from backend.catalog import Catalog, Model


app = typer.Typer(help="List, check, get, convert and merge models.", no_args_is_help=True, rich_markup_mode=None)
app.command()(making_cli.add)
app.command()(making_cli.convert)
app.command()(making_cli.merge)

Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Names = Annotated[list[str] | None, typer.Argument(metavar="[NAME]...", help="Names, titles or hashes; else all.")]


@app.callback()
@taking({**DATA, **MODELS})
def common(context: typer.Context, **given: Any) -> None:
    context.obj = given
    logging.basicConfig(level="WARNING", format="%(levelname)s %(name)s: %(message)s")


@app.command("list")
def show(
    context: typer.Context,
    kind: Annotated[str, typer.Option(help="checkpoint, lora, vae, controlnet ...; else all.")] = "",
    family: Annotated[str, typer.Option(help="sd1, sdxl, flux ...; else all.")] = "",
    as_json: Json = False,
) -> None:
    """Show the models there are, with what is wrong with them."""
    from backend.catalog import Kind
    from backend.catalog.detect import FAMILIES

    _one_of("--kind", kind, get_args(Kind))
    _one_of("--family", family, [*FAMILIES, ""])
    found = [m for m in _catalog(context).all() if kind in ("", m.kind) and family in ("", m.family)]
    found.sort(key=lambda model: (model.kind, model.name.lower()))
    if as_json:
        typer.echo(json.dumps([{**model.summary(), "path": str(model.path)} for model in found]))
        return
    _table(
        ("Kind", "Name", "Family", "Weights", "Size", "Problem"),
        [
            (m.kind, m.name, FAMILIES.get(m.family, ""), m.precision, _size(m.size), m.problem or m.card_problem)
            for m in found
        ],
    )


@app.command()
def verify(
    context: typer.Context,
    names: Names = None,
    numbers: Annotated[bool, typer.Option("--numbers", help="Look for weights that are no numbers, too.")] = False,
    as_json: Json = False,
) -> None:
    """Read models from begin to end: is each whole, and is it the file that it is said to be?"""
    from backend.catalog.verify import verify

    catalog = _catalog(context)
    broken = 0
    report: list[dict[str, Any]] = []
    for model in _chosen(catalog, names or []):
        try:
            problems = list(verify(model, catalog.fingerprint, numbers=numbers))
            sha256 = "" if model.problem or model.path.is_dir() else catalog.fingerprint(model.path)
        except OSError as error:
            problems, sha256 = [f"cannot be read: {error.strerror}"], ""
        broken += bool(problems)
        report.append({"name": model.name, "kind": model.kind, "sha256": sha256, "problems": problems})
        if not as_json:
            typer.echo(f"{model.name}: {'; '.join(problems) if problems else f'good {sha256[:10]}'.strip()}")
    if as_json:
        typer.echo(json.dumps(report))
    if broken:
        typer.echo(f"{broken} of {len(report)} are not as they should be", err=True)
        raise typer.Exit(FAILED)


def _chosen(catalog: "Catalog", names: Sequence[str]) -> "list[Model]":
    if not names:
        return list(catalog.all())
    kinds = {model.kind for model in catalog.all()}
    return [_found(catalog, name, kinds) for name in names]


def _found(catalog: "Catalog", name: str, kinds: set[Any]) -> "Model":
    """Of whatever kind; a checkpoint first."""
    from backend.errors import NotFound

    try:
        return catalog.find(name)
    except NotFound as error:
        for kind in sorted(kinds):
            try:
                return catalog.find_file(kind, name)
            except NotFound:
                continue
        fail(str(error))


def _catalog(context: typer.Context) -> "Catalog":
    from backend.catalog import Catalog

    settings = read_settings(**context.obj)
    return Catalog(settings.roots, settings.default_model)


def _one_of(option: str, value: str, choices: Sequence[str]) -> None:
    if value not in choices:
        fail(f"{option} {value}: is none of {', '.join(filter(None, choices))}")


def _size(size: int) -> str:
    return f"{size / 1e9:.2f} GB" if size > 5e8 else f"{size / 1e6:.1f} MB" if size else ""


def _table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    from rich.box import SIMPLE
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(*columns, box=SIMPLE)
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))  # a name is no markup
    Console().print(table if rows else "There are no such models.")
