"""What commands share: options that are settings, each declared once, and what becomes of them."""

import inspect
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn, TypeVar

import typer

from backend.errors import AtelierError
from backend.hardware import told

if TYPE_CHECKING:
    from backend.catalog import Kind
    from backend.services import Services
    from backend.settings import Settings

Command = TypeVar("Command", bound=Callable[..., None])

FAILED = 1
BAD_INPUT = 2
PORT_TAKEN = 3
INTERRUPTED = 130


def _folder(flag: str, help: str) -> Any:
    return Annotated[Path | None, typer.Option(flag, metavar="FOLDER", help=help)]


def _of_engine(name: str, metavar: str) -> Any:
    return Annotated[str | None, typer.Option(metavar=metavar, help=told(name))]


Options = Mapping[str, Any]
"""Annotations, as typer reads them, by the names of settings."""
ADDRESS: Options = {
    "host": Annotated[str | None, typer.Option(help="Where to serve; else 127.0.0.1.")],
    "port": Annotated[int | None, typer.Option(help="Else 7860; 0 takes a free one.")],
}
DATA: Options = {"data_dir": _folder("--data-dir", "Database, uploads, secrets; else data.")}
FOLDERS: Mapping["Kind", tuple[str, ...]] = {
    "checkpoint": ("--ckpt-dir",),
    "vae": ("--vae-dir",),
    "lora": ("--lora-dir", "--lyco-dir-backcompat"),
    "embedding": ("--embeddings-dir",),
    "controlnet": ("--controlnet-dir",),
    "upscaler": tuple(
        f"--{kind}-models-path" for kind in ("esrgan", "realesrgan", "bsrgan", "dat", "ldsr", "scunet", "swinir")
    ),
}
"""As A1111's users know them; the setting is `model_folders`."""


def _folders(kind: str, flags: tuple[str, ...]) -> Any:
    told = typer.Option(*flags, metavar="FOLDER", help=f"A further folder of kind {kind}; repeatable.")
    return Annotated[list[Path] | None, told]


MODELS: Options = {
    "models_dir": _folder("--models-dir", "Your models; else models."),
    "model_roots": Annotated[
        list[Path] | None,
        typer.Option("--model-root", metavar="FOLDER", help="A further folder of models; repeatable."),
    ],
    "a1111_dir": _folder("--a1111-dir", "Use its models as they are."),
    "comfyui_dir": _folder("--comfyui-dir", "Use its models as they are."),
    **{f"{kind}_folders": _folders(kind, flags) for kind, flags in FOLDERS.items()},
}
OUTPUTS: Options = {"outputs_dir": _folder("--outputs-dir", "Your pictures; else outputs.")}
LOG: Options = {
    "log_level": Annotated[str | None, typer.Option(metavar="LEVEL", help="debug, info, warning or error.")]
}
ENGINE: Options = {
    **{name: _of_engine(name, "KIND") for name in ("attention", "precision", "offload")},
    **{name: _of_engine(name, "GB") for name in ("ram_budget", "vram_budget")},
}


def taking(options: Options) -> Callable[[Command], Command]:
    """The command with these options after its own, in place of its `**given`; None is what is not given."""

    def derive(command: Command) -> Command:
        vars(command).pop("__signature__", None)  # of an earlier call
        own = [p for p in inspect.signature(command).parameters.values() if p.kind is not p.VAR_KEYWORD]
        derived = [
            inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=annotation)
            for name, annotation in options.items()
        ]
        setattr(command, "__signature__", inspect.Signature([*own, *derived]))  # noqa: B010 (what typer reads)
        return command

    return derive


def read_settings(**given: Any) -> "Settings":
    """From the options that were given; the rest from ATELIER_* variables and data/settings.toml."""
    from pydantic import ValidationError

    from backend.settings import Settings

    folders = {kind: given.pop(f"{kind}_folders", None) for kind in FOLDERS}
    given["model_folders"] = {kind: paths for kind, paths in folders.items() if paths} or None
    try:
        return Settings(**{name: value for name, value in given.items() if value is not None})
    except ValidationError as error:
        said = [(str(e["loc"][0]), e["msg"].removeprefix("Input ")) for e in error.errors()]
        fail("\n".join(f"{name.replace('_', '-')}: {message}" for name, message in said))
    except ValueError as error:  # a variable or a settings.toml that cannot be read
        fail(f"settings: {error}")


def build(settings: "Settings") -> "Services":
    from backend import services

    try:
        return services.build(settings)
    except AtelierError as error:
        fail(str(error), FAILED)
    except OSError as error:
        fail(f"{error.filename}: {error.strerror}; make it writable, or name another folder with --data-dir", FAILED)


def fail(message: str, code: int = BAD_INPUT) -> NoReturn:
    typer.echo(message, err=True)
    raise typer.Exit(code)
