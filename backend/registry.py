"""Find, check, load and order extensions; a broken one is listed and the application starts.

Built-in is an extension whose id stands in `manifest.BUILTIN` and whose folder lies in the repository's extensions/.
All others are the community's: their modules run in a process of their own before they run here, and while one is
being imported its id stands in a file, so that a start that dies there is followed by one in safe mode.
"""

import graphlib
import json
import logging
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from backend import importing, locks
from backend.catalog.roots import Roots, roots_of
from backend.errors import AtelierError
from backend.extension import Extension
from backend.files import write_atomically
from backend.manifest import HOME, Manifest, ManifestError, Record, is_builtin, read_manifest
from backend.params import Choice, Params
from backend.prompt import parse
from backend.request import GenerationRequest

log = logging.getLogger(__name__)

GUARD = "extensions.loading"
"""In the data folder: the community extension that is being imported right now."""
TRIED = "extensions-tried.json"
"""In the data folder: what came of trying each community extension, by id; may be deleted."""
KEPT = "extensions"
"""In the data folder: a folder for each extension that keeps something."""


@dataclass(frozen=True)
class Broken:
    """An extension that cannot be used, and why."""

    id: str
    reason: str


@dataclass(frozen=True)
class Registry:
    extensions: tuple[Extension, ...] = ()
    """In the order in which their stages run."""
    manifests: tuple[Manifest, ...] = ()
    """Of `extensions`, in the same order."""
    broken: tuple[Broken, ...] = ()
    idle: tuple[Manifest, ...] = ()
    """Of those that were left out: disabled, or not loaded in safe mode."""
    notice: str = ""
    """Why this is safe mode; empty: it is not."""

    @property
    def params(self) -> Mapping[str, type[Params]]:
        return {e.id: e.Params for e in self.extensions}

    def choices(self) -> Mapping[str, Mapping[str, Sequence[Choice]]]:
        """The lists of choices that extensions offer at this moment, by id and name."""
        offered: dict[str, Mapping[str, Sequence[Choice]]] = {}
        for extension in self.extensions:
            try:
                lists = {name: [(value, label) for value, label in rows] for name, rows in extension.choices().items()}
            except Exception:  # whatever a stranger's method raises
                log.exception("extension %s cannot say what there is to choose from", extension.id)
            else:
                offered |= {extension.id: lists} if lists else {}
        return offered

    @property
    def ids(self) -> frozenset[str]:
        return frozenset(e.id for e in self.extensions)


def load(
    folder: Path,
    data: Path | None = None,
    *,
    safe_mode: bool = False,
    only: Collection[str] | None = None,
    limit: float = importing.LIMIT,
    models: Path | Roots | None = None,
    kept: Path | None = None,
) -> Registry:
    """The extensions in `folder`; runs their declaration modules.

    `data` is where this instance keeps what it has decided about them and learned of them; without it nothing is
    disabled and nothing is tried first: for a process that loads again, as `only`, what another one has loaded.
    Extensions find models in `models`, and in `kept` each has a folder of its own; unless given they are where an
    instance has them that was told nothing.
    """
    started = time.perf_counter()
    found, problems = _discover(folder)
    if only is not None:  # whoever loaded them first has told of the others
        found = {id: manifest for id, manifest in found.items() if id in only}
        problems = {id: problem for id, problem in problems.items() if id in only}
    loaded: dict[str, Extension] = {}
    with _guard(data) as guard:
        record, notice = _decisions(data, guard, safe_mode)
        strangers = {id for id in found if not is_builtin(folder / id)}
        off = set(record.disabled) | (strangers if notice else set())
        wanted = {id: manifest for id, manifest in found.items() if id not in off}
        problems |= _unresolved(wanted, found)
        if data:
            problems |= _vet([folder / id for id in sorted(strangers & set(wanted) - set(problems))], data, limit)
        for id in _sorted({id: manifest for id, manifest in wanted.items() if id not in problems}):
            problem = _conflict(wanted[id], loaded, wanted)
            if not problem:
                with guard.watching(id if id in strangers else ""):
                    problem = _import(folder / id, wanted[id], loaded)
            if problem:
                problems[id] = problem
    roots = roots_of(models or HOME.parent / "models")
    for id, own in loaded.items():
        own.roots, own.models = roots, roots.models
        own.data = (kept or (data or HOME.parent / "data") / KEPT) / id
    order = _sorted({id: wanted[id] for id in loaded}, lambda id: (loaded[id].order, id))
    broken = tuple(Broken(id, problems[id]) for id in sorted(problems))
    for extension in broken:
        log.warning("extension %s is broken: %s", extension.id, extension.reason)
    log.info("%d extensions loaded in %.2f s", len(order), time.perf_counter() - started)
    return Registry(
        extensions=tuple(loaded[id] for id in order),
        manifests=tuple(found[id] for id in order),
        broken=broken,
        idle=tuple(found[id] for id in sorted(off & set(found))),
        notice=notice,
    )


def called(extension: Extension, request: GenerationRequest, prompts: Iterable[str]) -> Params | None:
    """Its parameters if the request wants it; a tag alone, in any of `prompts`, calls it with its defaults."""
    if extension.id in request.extensions:
        return request.extensions[extension.id]
    tag = extension.prompt_tag
    if tag and any(tag == kind for text in prompts for kind, _ in parse(text).tags):
        return extension.Params()
    return None


def _discover(folder: Path) -> tuple[dict[str, Manifest], dict[str, str]]:
    """Every manifest by id, and why other folders hold none; runs no code."""
    found: dict[str, Manifest] = {}
    problems: dict[str, str] = {}
    for path in sorted(folder.iterdir()) if folder.is_dir() else ():
        if path.name.startswith((".", "_")) or not path.is_dir():
            continue
        try:
            found[path.name] = read_manifest(path)
        except ManifestError as error:
            if not _is_left_over(path):
                problems[path.name] = str(error)
    return found, problems


def _is_left_over(folder: Path) -> bool:
    """Whether git has taken everything away but what Python had put there."""
    try:
        return {p.name for p in folder.iterdir()} <= {"__pycache__"}
    except OSError:
        return False


def _decisions(data: Path | None, guard: "_Guard", safe_mode: bool) -> tuple[Record, str]:
    """What was decided about the extensions, and why this is safe mode."""
    if data is None:
        record, notice = Record(), ""
    else:
        try:
            record, notice = Record.read(data), ""
        except (OSError, ValueError) as error:
            record, notice = Record(), f"Safe mode: {error}. Mend it, or delete it to enable every extension."
    if data and guard.culprit and not notice:
        id = guard.culprit
        record = record.with_disabled(id, "the start that loaded it did not survive")
        with suppress(AtelierError):  # then it is safe mode again next time
            record.write(data)
            guard.forget()
        notice = (
            f"Safe mode: the last start ended while the extension {id} was being loaded. It is disabled now;"
            f" `python app.py extensions enable {id}` tries it again."
        )
    if safe_mode and not notice:
        notice = "Safe mode, as asked for."
    if notice:
        log.warning("%s Only the built-in extensions are loaded.", notice)
    return record, notice


# ---------------------------------------------------------------- what can be used, in which order


def _unresolved(wanted: Mapping[str, Manifest], found: Mapping[str, Manifest]) -> dict[str, str]:
    """Why each of `wanted` cannot be used, as far as the manifests tell."""
    reasons = {id: manifest.unfit for id, manifest in wanted.items() if manifest.unfit}
    graph = {id: [need for need in manifest.depends if need in wanted] for id, manifest in wanted.items()}
    while cycle := _cycle(graph):
        reasons |= dict.fromkeys(cycle, f"depends on itself: {' -> '.join(cycle)}")
        graph = {id: needs for id, needs in graph.items() if id not in cycle}
    while True:
        usable = {id: manifest for id, manifest in wanted.items() if id not in reasons}
        lacking = [(id, need) for id, manifest in usable.items() for need in manifest.depends if need not in usable]
        if not lacking:
            return reasons
        for id, need in lacking:
            state = "is broken" if need in wanted else "is off" if need in found else "is not installed"
            reasons.setdefault(id, f"needs the extension {need}, which {state}")


def _cycle(graph: Mapping[str, list[str]]) -> list[str]:
    try:
        graphlib.TopologicalSorter(graph).prepare()
    except graphlib.CycleError as error:
        return list(reversed(error.args[1]))
    return []


def _sorted(manifests: Mapping[str, Manifest], key: Callable[[str], Any] | None = None) -> list[str]:
    """By `key`, or by id, but behind what they depend on, and what they want to come after unless that is a circle."""
    left, done = sorted(manifests, key=key), []
    while left:
        behind = set(left)
        free = [id for id in left if behind.isdisjoint(manifests[id].depends)]
        first = next((id for id in free if behind.isdisjoint(manifests[id].after)), free[0])
        left.remove(first)
        done.append(first)
    return done


def _conflict(manifest: Manifest, loaded: Mapping[str, Extension], manifests: Mapping[str, Manifest]) -> str:
    for need in manifest.depends:
        if need not in loaded:
            return f"needs the extension {need}, which is broken"
    for id in loaded:
        if manifest.routes and manifests[id].routes == manifest.routes:
            return f"wants the routes {manifest.routes}, which {id} has"
    return ""


def _import(folder: Path, manifest: Manifest, loaded: dict[str, Extension]) -> str:
    """Add the extension in `folder` to `loaded`, or say why not."""
    try:
        extension = importing.import_extension(folder, manifest)
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # noqa: BLE001 (whatever a stranger's module raises, SystemExit too)
        return importing.reason(error, folder)
    for other in loaded.values():
        if extension.prompt_tag and extension.prompt_tag == other.prompt_tag:
            return f"wants the tag <{extension.prompt_tag}:...>, which {other.id} has"
    loaded[manifest.id] = extension
    return ""


# ---------------------------------------------------------------- strangers


def _vet(folders: Collection[Path], data: Path, limit: float) -> dict[str, str]:
    """Why each must not be imported here, by id; only what is new or changed is tried."""
    known = _tried(data)
    stamps = {folder: importing.stamp(folder) for folder in folders}
    fresh = [folder for folder in folders if known.get(folder.name, ("", ""))[0] != stamps[folder]]
    if fresh:
        outcome = importing.probe(fresh, limit)
        known |= {folder.name: (stamps[folder], outcome[folder].fatal) for folder in fresh}
        with suppress(AtelierError):  # then they are tried again next time
            write_atomically(data / TRIED, json.dumps(known, indent=1).encode())
    return {folder.name: known[folder.name][1] for folder in folders if known[folder.name][1]}


def _tried(data: Path) -> dict[str, tuple[str, str]]:
    try:
        return {id: (stamp, problem) for id, (stamp, problem) in json.loads((data / TRIED).read_bytes()).items()}
    except (OSError, ValueError, AttributeError, TypeError):
        return {}


def forget(data: Path, id: str) -> None:
    """Try `id` again at the next start."""
    if id in (known := _tried(data)):
        del known[id]
        write_atomically(data / TRIED, json.dumps(known, indent=1).encode())


class _Guard:
    """Writes down which community extension is being imported; `culprit` is what a process that died left there."""

    def __init__(self, file: BinaryIO | None) -> None:
        self._file = file
        self.culprit = file.read(100).decode("ascii", "replace").strip() if file else ""

    @contextmanager
    def watching(self, id: str) -> Iterator[None]:
        """While `id` is imported; empty: one of ours."""
        if id:
            self._write(id)
        yield
        if id:
            self._write("")  # not after Ctrl-C: somebody may have waited long enough

    def forget(self) -> None:
        self._write("")

    def _write(self, id: str) -> None:
        if self._file:
            self._file.seek(0)
            self._file.truncate()
            self._file.write(id.encode())


@contextmanager
def _guard(data: Path | None) -> Iterator[_Guard]:
    if data is None:
        yield _Guard(None)
        return
    with locks.held(data / GUARD) as file:  # None: another process is loading, and watches over its own
        yield _Guard(file)
