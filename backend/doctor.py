"""`python app.py doctor`: what this machine has, what is wrong with it and how to mend that."""

import importlib.metadata
import os
import platform
import re
import shutil
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Literal, NamedTuple

import psutil
from rich.box import SIMPLE
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from backend import registry
from backend.catalog import Catalog
from backend.catalog.catalog import CHECKPOINTS
from backend.errors import Conflict, Refused
from backend.jobs.host import environment as worker_environment
from backend.settings import ROOT, Settings

State = Literal["good", "note", "bad"]
GB = 1e9
SHOWN = 20
"""Broken models."""
MARKS: dict[State, str] = {"good": "[green]ok[/]", "note": "[yellow]note[/]", "bad": "[red]wrong[/]"}
LIBRARIES = ("torch", "diffusers", "transformers", "gradio")


class Finding(NamedTuple):
    what: str
    found: str
    state: State = "good"
    mend: str = ""


def report(settings: Settings) -> bool:
    """Print the table; whether nothing in it is wrong."""
    findings = list(examine(settings))
    table = Table("", "What", "Found", box=SIMPLE)
    for finding in findings:
        found = escape(finding.found) + (f"\n[bold]-> {escape(finding.mend)}[/]" if finding.mend else "")
        table.add_row(MARKS[finding.state], escape(finding.what), found)
    console = Console()
    console.print(table)
    wrong = sum(finding.state == "bad" for finding in findings)
    console.print(f"[red]{wrong} wrong.[/]" if wrong else "[green]All is well.[/]")
    return not wrong


def examine(settings: Settings) -> Iterator[Finding]:
    yield Finding("Python", f"{platform.python_version()} at {sys.executable}")
    yield Finding("System", f"{platform.platform()}, {psutil.cpu_count(logical=False) or os.cpu_count()} cores")
    yield _libraries()
    yield from _engine()
    yield from _memory()
    yield from _models(settings)
    yield from _extensions(settings)
    for name, folder in _folders(settings).items():
        yield _folder(name, folder)
    yield _address(settings)


def _libraries() -> Finding:
    """Whether what is installed is what requirements.txt pins, as far as it applies to this machine."""
    pinned = dict(re.findall(r"^([\w.-]+)==([\w.]+)", (ROOT / "requirements.txt").read_text("utf-8"), re.MULTILINE))
    installed = {}
    for name in pinned:
        try:
            installed[name] = importlib.metadata.version(name).split("+")[0]  # torch 2.10.0+cu128
        except importlib.metadata.PackageNotFoundError:
            continue
    wrong = [f"{name} {version}, not {pinned[name]}" for name, version in installed.items() if version != pinned[name]]
    missing = [name for name in LIBRARIES if name not in installed]
    if wrong or missing:
        return Finding(
            "Packages", ", ".join([*wrong, *(f"no {m}" for m in missing)]), "bad", "delete .venv, start again"
        )
    return Finding("Packages", ", ".join(f"{name} {installed[name]}" for name in LIBRARIES))


def _engine() -> Iterator[Finding]:
    try:
        import torch  # here only: every other command starts without it
    except (ImportError, OSError) as error:  # OSError: a library of the driver does not load
        yield Finding("torch", str(error).splitlines()[0], "bad", "delete the folder .venv and start again")
        return
    if torch.cuda.is_available():
        free, total = torch.cuda.mem_get_info()
        low = free < 2 * GB
        yield Finding("Device", f"{torch.cuda.get_device_name()}, {'ROCm' if torch.version.hip else 'CUDA'}")
        yield Finding(
            "Video memory",
            f"{free / GB:.1f} of {total / GB:.1f} GB free",
            "note" if low else "good",
            "close other programs that use the graphics card" if low else "",
        )
    elif torch.backends.mps.is_available():
        yield Finding("Device", "Apple graphics (MPS)")
    else:
        yield Finding("Device", f"CPU, {torch.get_num_threads()} threads", *_unused_card())
    yield _attention(torch.cuda.is_available())
    yield _allocator()


def _unused_card() -> tuple[State, str]:
    if shutil.which("nvidia-smi") is None:
        return "good", ""
    return "note", "there is an NVIDIA card that torch does not see: update its driver"


def _attention(cuda: bool) -> Finding:
    try:
        version = importlib.metadata.version("xformers")
    except importlib.metadata.PackageNotFoundError:
        return Finding("Attention", "sdpa; no xformers for this platform")
    if not cuda:
        return Finding("Attention", f"sdpa; xformers {version} needs a CUDA card")
    try:
        import xformers.ops  # noqa: F401
    except (ImportError, OSError) as error:
        return Finding("Attention", f"sdpa; xformers does not load: {error}", "note", "sdpa is used; nothing to do")
    return Finding("Attention", f"sdpa, xformers {version}")


def _allocator() -> Finding:
    settings = {k: v for k, v in worker_environment(None).items() if k.startswith("MALLOC_")}
    return Finding("Allocator", ", ".join(f"{k}={v}" for k, v in settings.items()) or "the system's, as it is")


def _memory() -> Iterator[Finding]:
    memory = psutil.virtual_memory()
    low = memory.available < 2 * GB
    yield Finding(
        "Memory",
        f"{memory.available / GB:.1f} of {memory.total / GB:.1f} GB free",
        "note" if low else "good",
        "close other programs; a checkpoint of SD 1.5 needs 4 GB" if low else "",
    )


def _models(settings: Settings) -> Iterator[Finding]:
    for root in settings.roots.elsewhere:
        if not root.is_dir():
            yield Finding("Model folder", f"{root} is not there", "bad", "mount it, or take it out of the settings")
    catalog = Catalog(settings.roots, settings.default_model)
    models = catalog.models()
    usable = [model.name for model in models if not model.problem]
    if usable:
        yield Finding("Models", f"{len(usable)}: {', '.join(usable[:8])}{' ...' if len(usable) > 8 else ''}")
    else:
        mend = (
            f"put a checkpoint into {settings.models_dir / 'checkpoints'}; the embedded one is models/starter in git"
        )
        yield Finding("Models", f"none in {settings.models_dir}", "bad", mend)
    others = Counter(model.kind.replace("_", " ") for model in catalog.all() if model.kind not in CHECKPOINTS)
    if others:
        yield Finding("Beside them", ", ".join(f"{kind or 'unknown'}: {count}" for kind, count in others.items()))
    broken = [model for model in catalog.all() if model.problem]
    for model in broken[:SHOWN]:
        is_checkpoint = model.kind in CHECKPOINTS
        what = "Model" if is_checkpoint else (model.kind or "file").capitalize().replace("_", " ")
        state: State = "bad" if is_checkpoint else "note"
        yield Finding(f"{what} {model.name}", str(model.problem), state, f"mend or remove {model.path}")
    for model in [model for model in catalog.all() if model.card_problem][:SHOWN]:
        yield Finding(f"Card of {model.name}", model.card_problem, "note", f"mend it, beside {model.path}")
    if len(broken) > SHOWN:
        yield Finding("Model files", f"{len(broken) - SHOWN} more cannot be used", "note", "python app.py models list")


def _extensions(settings: Settings) -> Iterator[Finding]:
    found = registry.load(settings.extensions_dir)
    yield Finding("Extensions", ", ".join(m.id for m in found.manifests) or "none")
    for broken in found.broken:
        folder = settings.extensions_dir / broken.id
        yield Finding(f"Extension {broken.id}", broken.reason, "bad", f"mend or remove {folder}")


def _folders(settings: Settings) -> dict[str, Path]:
    return {"Data": settings.data_dir, "Outputs": settings.outputs_dir}


def _folder(name: str, folder: Path) -> Finding:
    """Whether the folder, or the nearest one above it that exists, takes files, and how much room is left."""
    existing = next(place for place in (folder, *folder.absolute().parents) if place.exists())
    what = f"{name} folder"
    try:
        with tempfile.TemporaryFile(dir=existing):
            free = shutil.disk_usage(existing).free
    except OSError as error:
        option = f"--{name.lower()}-dir"
        return Finding(what, f"{folder}: {error.strerror}", "bad", f"make it writable, or name another: {option}")
    if free < GB:
        return Finding(what, f"{folder}, {free / GB:.1f} GB free", "bad", "make room on that disk")
    return Finding(what, f"{folder}, {free / GB:.1f} GB free")


def _address(settings: Settings) -> Finding:
    from backend.api.server import address_of, listen

    address = address_of(settings.host, settings.port)
    try:
        listen(settings).close()
    except Conflict as error:
        return Finding("Address", f"{address}: {error}", "note")
    except Refused as error:
        return Finding("Address", f"{address}: {error}", "bad")
    return Finding("Address", f"{address} is free")
