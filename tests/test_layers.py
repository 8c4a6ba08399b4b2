"""The arrows of docs/architecture.md, read off the imports."""

import ast
import graphlib
import importlib.metadata
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parent.parent
ENGINE_SIDE = ("torch", "torchvision", "diffusers", "transformers", "accelerate", "peft", "xformers", "safetensors")
MAY_USE_TORCH = ("backend.diffusion", "backend.training", "backend.doctor", "backend.lora.network")
MAY_USE_TORCH += ("backend.merging", "backend.packed")
SHARED = tuple(
    f"backend.{name}"
    for name in (
        *("catalog.detect", "catalog.hashes", "catalog.index", "catalog.scan", "catalog.sidecars"),
        *("lora", "packed", "weights"),
    )
)
"""Pure, and used by the core and by the extensions that come with it."""
PLAIN = tuple(
    f"backend.{name}"
    for name in (
        *(
            "params",
            "request",
            "images",
            "result",
            "prompt",
            "infotext",
            "extension",
            "registry",
            "install",
            "catalog",
        ),
        *("settings", "errors", "sampling", "files", "weights", "lora", "downloads"),
    )
)
FORBIDDEN = {
    PLAIN: ("backend.jobs", "backend.gallery", "backend.api", "backend.diffusion", "backend.services"),
    ("backend.diffusion",): ("backend.jobs", "backend.gallery", "backend.api", "backend.services", "backend.settings"),
    ("backend.gallery",): ("backend.jobs", "backend.api", "backend.diffusion", "backend.services"),
    ("backend.jobs",): ("backend.api", "backend.diffusion", "backend.services"),
    ("backend.api",): ("backend.diffusion", "backend.cli"),
    ("backend",): ("ui",),
    ("ui",): ("backend.diffusion", "backend.cli"),
}
LATE = {  # what one function may import, or what is there for type checkers
    ("backend.jobs.worker", "backend.diffusion"),  # in the worker's process
    ("backend.extension", "backend.diffusion"),  # the types Run and Step
    ("backend.api.server", "ui"),  # the one place where the server knows the page
}


class Import(NamedTuple):
    module: str
    """Who imports."""
    name: str
    """What, dotted."""
    late: bool
    """In a function, or for type checkers only: not when the module is loaded."""

    def __str__(self) -> str:
        return f"{self.module} imports {self.name}"


def of(name: str, package: str) -> bool:
    return name == package or name.startswith(package + ".")


@pytest.fixture(scope="module")
def imports() -> list[Import]:
    return [found for path in ours() for found in imports_of(path)]


def ours() -> list[Path]:
    folders = ("backend", "ui", "extensions")
    return [ROOT / "app.py", *(p for f in folders for p in (ROOT / f).rglob("*.py") if "tests" not in p.parts)]


def imports_of(path: Path) -> Iterator[Import]:
    parts = path.relative_to(ROOT).with_suffix("").parts
    package = parts[:-1]
    module = ".".join(parts if parts[-1] != "__init__" else package)
    tree = ast.parse(path.read_text("utf-8"))
    late = {id(node) for holder in ast.walk(tree) if _is_late(holder) for node in ast.walk(holder)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (Import(module, alias.name, id(node) in late) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = ".".join([*package[: len(package) - node.level + 1]] if node.level else [])
            name = ".".join(filter(None, (base, node.module)))
            for alias in node.names:  # `from backend import sampling` names a module, not a class
                file = ROOT.joinpath(*name.split("."), alias.name)
                is_module = file.with_suffix(".py").exists() or file.is_dir()
                yield Import(module, f"{name}.{alias.name}" if is_module else name, id(node) in late)


def _is_late(node: ast.AST) -> bool:
    if isinstance(node, ast.If):
        return "TYPE_CHECKING" in ast.unparse(node.test)
    return isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)


def test_torch_lives_in_the_engine_only(imports: list[Import]) -> None:
    def engine_side(module: str) -> bool:
        in_extension = of(module, "extensions") and module.count(".") > 1  # not the declaration, extensions.<id>
        return in_extension or any(of(module, place) for place in MAY_USE_TORCH)

    heavy = [i for i in imports if any(of(i.name, package) for package in ENGINE_SIDE)]
    assert [str(i) for i in heavy if not engine_side(i.module)] == []


def test_nobody_imports_an_extension(imports: list[Import]) -> None:
    def own(i: Import) -> bool:
        return of(i.module, ".".join(i.name.split(".")[:2]))

    assert [str(i) for i in imports if of(i.name, "extensions") and not own(i)] == []


def test_extensions_see_only_the_extension_api(imports: list[Import]) -> None:
    api = {"backend.extension"} | {
        i.name for i in imports if i.module == "backend.extension" and of(i.name, "backend")
    }
    used = [i for i in imports if of(i.module, "extensions") and (of(i.name, "backend") or of(i.name, "ui"))]
    assert [str(i) for i in used if i.name not in api and not any(of(i.name, each) for each in SHARED)] == []


def test_bootstrap_needs_only_the_standard_library(imports: list[Import]) -> None:
    used = {i.name.split(".")[0] for i in imports if i.module == "backend.bootstrap"}
    assert used <= sys.stdlib_module_names


@pytest.mark.parametrize("who", FORBIDDEN, ids=lambda who: who[0] if len(who) == 1 else "plain")
def test_imports_follow_the_arrows(imports: list[Import], who: tuple[str, ...]) -> None:
    def allowed(i: Import) -> bool:
        return i.late and any(of(i.module, module) and of(i.name, package) for module, package in LATE)

    ours = [i for i in imports if any(of(i.module, place) for place in who)]
    assert [str(i) for i in ours if any(of(i.name, what) for what in FORBIDDEN[who]) and not allowed(i)] == []


def test_no_import_cycle(imports: list[Import]) -> None:
    graph: dict[str, set[str]] = {}
    for i in imports:
        if not i.late and i.module != i.name:
            graph.setdefault(i.module, set()).add(i.name)
    graphlib.TopologicalSorter(graph).prepare()  # raises CycleError, which names the cycle


def test_what_is_imported_is_required(imports: list[Import]) -> None:
    own = {"app", "backend", "ui", "extensions", "benchmarks"}
    used = {i.name.split(".")[0] for i in imports} - sys.stdlib_module_names - own
    pinned = {_canonical(name) for name in re.findall(r"(?m)^([\w.-]+)==", (ROOT / "requirements.txt").read_text())}
    providers = importlib.metadata.packages_distributions()
    assert [name for name in used if not pinned & {_canonical(p) for p in providers.get(name, [name])}] == []


def _canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def test_web_process_imports_no_torch() -> None:
    heavy = ("torch", "diffusers", "transformers")
    code = (
        "import backend.request, backend.jobs.store, backend.api.server, ui.layout, backend.cli, sys;"
        f"print([m for m in {heavy} if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.strip() == "[]", done.stderr
