"""`python app.py models add|convert|merge`: getting and making models at the terminal."""

import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from backend.cli_options import BAD_INPUT, FAILED, INTERRUPTED, fail, read_settings
from backend.errors import AtelierError

if TYPE_CHECKING:
    from backend.catalog import Catalog
    from backend.downloads.network import Network
    from backend.downloads.sources import Hosts, Option
    from backend.merging.recipe import Model, Recipe
    from backend.settings import Settings

PACE = 0.2
"""Seconds between two looks at a download."""
PICKLE = "is a pickle, which can run code when it is opened"

Name = Annotated[str, typer.Option(help="What it will be called; else what it is called there.")]
Made = Annotated[str, typer.Option("--name", help="What the new one will be called.")]
Precision = Annotated[str, typer.Option(help="fp32, fp16, bf16 or fp8; else as it is.")]
Share = Annotated[float | None, typer.Option(help="Of B, of the difference or of the LoRA; else 0.5 or 1.")]
Blocks = Annotated[str, typer.Option(help="Shares by block: 26 numbers, or the name of a preset.")]
Report = Callable[[str, float], None]


def add(
    context: typer.Context,
    source: Annotated[str, typer.Argument(help="owner/name of Hugging Face, an https address, or a file here.")],
    file: Annotated[str | None, typer.Option(help="Which file of a repository; '' for all of it as a folder.")] = None,
    name: Name = "",
    kind: Annotated[str, typer.Option(help="checkpoint, lora, vae ...; else what names tell.")] = "",
    sha256: Annotated[str, typer.Option(help="What its SHA-256 has to be.")] = "",
    full: Annotated[bool, typer.Option("--full", help="Not half precision, where there are both.")] = False,
    pickle: Annotated[bool, typer.Option("--pickle", help=f"Keep it though it {PICKLE}.")] = False,
) -> None:
    """Bring a model here: from Hugging Face, Civitai, any https address, or a file. Ctrl+C pauses it."""
    with _said():
        settings = read_settings(**context.obj)
        if Path(source).expanduser().is_file():
            path = _copied(settings, Path(source).expanduser(), name, kind, sha256, pickle)
        else:
            path = _downloaded(settings, source, file, name, kind, sha256, not full, pickle)
    typer.echo(path)


def convert(
    context: typer.Context,
    model: Annotated[str, typer.Argument(help="Its name, or the path of a file or folder.")],
    name: Made = "",
    precision: Precision = "",
    layout: Annotated[str, typer.Option(help="file: one .safetensors; folder: as diffusers has it.")] = "",
    keep_ema: Annotated[bool, typer.Option("--keep-ema", help="Also what only training needs.")] = False,
    trust: Annotated[bool, typer.Option("--trust", help=f"Open a file that {PICKLE}: you know who made it.")] = False,
) -> None:
    """Make a model of another precision or layout, or a safetensors file of a pickle."""
    with _said():
        from backend.catalog import fingerprint
        from backend.consents import is_pickle
        from backend.errors import Refused
        from backend.merging.recipe import Convert

        settings = read_settings(**context.obj)
        source = _model(_catalog(settings), model)
        if is_pickle(source.path):
            if not trust:
                raise Refused(f"{source.name} {PICKLE}; if you know who made it, say --trust")
            source = source.model_copy(update={"sha256": fingerprint(source.path)})
        recipe = _recipe(Convert, a=source, precision=precision, layout=layout, prune=not keep_ema)
        words = [source.path.stem, precision, {"folder": "diffusers"}.get(layout, "")]
        _make(settings, recipe, name or "-".join(filter(None, words)))


def merge(
    context: typer.Context,
    a: Annotated[str, typer.Argument(help="The first model: its name or path.")],
    b: Annotated[str, typer.Argument(help="The second one; for --vae and --lora there is none.")] = "",
    name: Made = "",
    share: Share = None,
    c: Annotated[str, typer.Option("--c", help="What B was trained from: add the difference of B to it.")] = "",
    vae: Annotated[str, typer.Option(help="Put this VAE into it.")] = "",
    lora: Annotated[str, typer.Option(help="Work this LoRA into its weights.")] = "",
    rank: Annotated[int, typer.Option(help="Extract a LoRA of this rank that makes B of A.")] = 0,
    blocks: Blocks = "",
    precision: Precision = "",
) -> None:
    """Merge models: a weighted sum, an added difference, another VAE, a LoRA put in or taken out."""
    with _said():
        from backend.errors import InvalidRequest, Problem
        from backend.merging import recipe as recipes

        if not name:
            raise InvalidRequest(Problem("--name", "say what the new model will be called"))
        settings = read_settings(**context.obj)
        catalog = _catalog(settings)
        given: dict[str, Any] = {"a": _model(catalog, a), "precision": precision}
        given |= {"share": share} if share is not None else {}
        given |= {"blocks": blocks} if blocks else {}
        given |= {"b": _model(catalog, b)} if b else {}
        if lora:
            recipe = _recipe(recipes.AddLora, lora=_model(catalog, lora, "lora"), **given)
        elif vae:
            recipe = _recipe(recipes.BakeVae, vae=_model(catalog, vae, "vae"), **given)
        elif rank:
            recipe = _recipe(recipes.ExtractLora, rank=rank, **{**given, "precision": precision or "fp16"})
        elif c:
            recipe = _recipe(recipes.AddDifference, c=_model(catalog, c), **given)
        else:
            recipe = _recipe(recipes.WeightedSum, **given)
        _make(settings, recipe, name)


# --- getting


def network(settings: "Settings") -> "tuple[Network, Hosts]":
    """What is spoken to; tests put a server of their own in its place."""
    from backend.downloads import tokens
    from backend.downloads.network import Network
    from backend.downloads.sources import Hosts

    return Network(tokens.of(settings)), Hosts()


def _downloaded(
    settings: "Settings", source: str, key: str | None, name: str, kind: str, sha256: str, half: bool, pickle: bool
) -> Path:
    from backend.downloads import sources
    from backend.downloads.queue import Downloads

    out, hosts = network(settings)
    found = sources.look(source, out, hosts, half=half)
    option = found.option(key)
    typer.echo(_described(found, option), err=True)
    installed: list[Path] = []
    downloads = Downloads(settings.models_dir, lambda: out, installed.append)
    id = downloads.add(option, name=name, kind=kind, sha256=sha256, pickle=pickle)
    with _bar() as report:
        try:
            while True:
                (view,) = (view for view in downloads.view() if view["id"] == id)
                report(view["name"], view["done"] / view["total"] if view["total"] else 0.0)
                if view["state"] in ("done", "failed"):
                    break
                time.sleep(PACE)
        except KeyboardInterrupt:
            downloads.close()
            raise
    if view["state"] == "failed" and view["done"]:
        fail(f"{view['error']}; the same command goes on with it", FAILED)
    if view["state"] == "failed":
        downloads.cancel(id)  # else nothing of that name could be had from elsewhere
        fail(view["error"], FAILED)
    return installed[0]


def _described(found: Any, option: "Option") -> str:
    others = [o.key or "'' (the folder)" for o in found.options if o is not option]
    more = f"; also there, by --file: {', '.join(others[:8])}" if others else ""
    size = f", {option.size / 1e9:.2f} GB" if option.size else ""
    return f"{found.title}: {option.name}{size}, {found.licence or 'no licence named'}{more}"


def _copied(settings: "Settings", path: Path, name: str, kind: str, sha256: str, pickle: bool) -> Path:
    """A file of this machine, in the folder of its kind."""
    from backend.catalog import fingerprint
    from backend.catalog.catalog import kind_of
    from backend.consents import is_pickle
    from backend.downloads.fetch import check_content, check_digest
    from backend.downloads.sources import FOLDERS, SINGLE, safe_name
    from backend.errors import Conflict, Refused
    from backend.files import replacing

    suffix = path.suffix.lower()
    if suffix not in SINGLE:
        raise Refused(f"{path.name} is no model: its name ends in none of {', '.join(SINGLE)}")
    if is_pickle(path) and not pickle:
        raise Refused(f"{path.name} {PICKLE}; say --pickle to keep it all the same")
    check_content(path, path.name)
    if sha256:
        check_digest(path.name, fingerprint(path), sha256)
    kind = kind or kind_of(path, "") or "checkpoint"
    if kind not in FOLDERS:
        raise Refused(f"{kind[:40]!r} is no kind of model; there are {', '.join(FOLDERS)}")
    folder = settings.models_dir / FOLDERS[kind]
    target = folder / (safe_name(name.removesuffix(suffix) or path.stem) + suffix)
    if target.exists():
        raise Conflict(f"{target.name} is there already; give it another --name")
    folder.mkdir(parents=True, exist_ok=True)
    with open(path, "rb") as source, replacing(target) as file:
        shutil.copyfileobj(source, file, 1 << 20)
    return target


# --- making


def _catalog(settings: "Settings") -> "Catalog":
    from backend.catalog import Catalog

    return Catalog(settings.roots)


def _model(catalog: "Catalog", name: str, kind: str = "") -> "Model":
    """By its name, or a path on this machine."""
    from backend import weights
    from backend.catalog import detect
    from backend.errors import ModelBroken
    from backend.merging.recipe import Model
    from backend.weights import BrokenFile

    path = Path(name).expanduser()
    if path.exists():
        try:
            header = weights.read(path) if path.suffix.lower() == ".safetensors" else None
        except BrokenFile as error:
            raise ModelBroken(f"{path.name} {error}") from None
        family = detect(header, path.name).family if header else ""
        return Model(name=path.stem if path.is_file() else path.name, path=path.absolute(), family=family)
    found = catalog.find_file(kind, name) if kind else catalog.find(name)  # type: ignore[arg-type]
    return Model(name=found.name, path=found.path, sha256=found.sha256, family=found.family)


def _recipe(cls: "Callable[..., Recipe]", **values: Any) -> "Recipe":
    from pydantic import ValidationError

    from backend.errors import InvalidRequest, Problem

    try:
        return cls(**values)
    except ValidationError as error:
        said = ((".".join(map(str, e["loc"])) or "it", e["msg"].removeprefix("Input ")) for e in error.errors())
        raise InvalidRequest(*(Problem(name, message) for name, message in said)) from None


def _make(settings: "Settings", recipe: "Recipe", name: str) -> None:
    from backend.catalog.roots import FOLDERS
    from backend.downloads.sources import safe_name
    from backend.errors import Conflict
    from backend.merging import chores
    from backend.merging.recipe import is_folder

    kind = "lora" if recipe.what == "extract" else "checkpoint"
    stem = safe_name(name.removesuffix(".safetensors"))
    out = settings.models_dir / FOLDERS[kind][0] / (stem if is_folder(recipe) else f"{stem}.safetensors")  # type: ignore[index]
    if out.exists():
        raise Conflict(f"{out.name} is there already; give it another --name")
    failure = ""

    def heard(line: dict[str, Any]) -> None:
        nonlocal failure
        report(line.get("doing", recipe.what), line.get("at", 1.0))
        failure = line.get("error", failure)

    with _bar() as report:
        chores.run(recipe, out, heard)
    if failure or not out.exists():
        fail(failure or "its process ended; perhaps there was not enough memory", FAILED)
    typer.echo(out)


# --- what they share


@contextmanager
def _said() -> Iterator[None]:
    """What goes wrong, in a line."""
    try:
        yield
    except AtelierError as error:
        fail(str(error), BAD_INPUT if error.status == 422 else FAILED)
    except OSError as error:
        fail(str(error), FAILED)
    except KeyboardInterrupt:
        fail("stopped", INTERRUPTED)


@contextmanager
def _bar() -> Iterator[Report]:
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

    console = Console(stderr=True)  # standard output is for the paths
    text = TextColumn("{task.description}")
    columns = (text, BarColumn(), TextColumn("{task.percentage:>3.0f}%"), TimeElapsedColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("", total=1.0)
        yield lambda doing, at: bar.update(task, description=doing, completed=at)
