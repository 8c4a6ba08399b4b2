"""Install, update, disable, remove and roll back extensions; what is done here takes effect at the next start.

A `Plan` comes first: the files are fetched beside the others, checked, and their packages settled, and what it would
mean can be read before any of it runs. `apply` then moves the folder into place in one step; the version before it
stays in `.previous`. Whatever fails leaves extensions/ and the record as they were.
"""

import contextlib
import logging
import os
import secrets
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, NamedTuple

from backend import importing, locks, packages, registry, sources
from backend.errors import Conflict, NotFound, Refused, StorageFull
from backend.manifest import (
    BUILTIN,
    CAPABILITIES,
    PACKAGES,
    Manifest,
    ManifestError,
    Origin,
    Record,
    is_builtin,
    read_manifest,
)
from backend.registry import Registry
from backend.settings import Settings
from backend.sources import Folder, Git, Source, Zip

log = logging.getLogger(__name__)

LOCK = "extensions.lock"
PREVIOUS = ".previous"
_STAGING = ".staging-"
_LEFT_OVER = 24 * 3600
"""Seconds after which a folder that was being staged is nobody's."""


@dataclass(frozen=True)
class Place:
    """Where an instance has its extensions."""

    extensions: Path
    data: Path

    @classmethod
    def of(cls, settings: Settings) -> "Place":
        return cls(settings.extensions_dir, settings.data_dir)

    def folder(self, id: str) -> Path:
        return self.extensions / id

    def previous(self, id: str) -> Path:
        return self.extensions / PREVIOUS / id


class Change(NamedTuple):
    """A key of the manifest that an update changes; the values are as the file would have them."""

    key: str
    before: Any
    after: Any


@dataclass(frozen=True)
class Plan:
    """What would be installed, read and checked; nothing of it has run."""

    place: Place
    manifest: Manifest
    origin: Origin
    packages: tuple[str, ...]
    """To be put into the extension's folder, as `name==version`."""
    packages_before: tuple[str, ...]
    files: int
    size: int
    """Bytes."""
    staged: Path
    before: Manifest | None = None
    """Of the version that it replaces; None: a new extension."""
    replaces: str = ""
    """Fingerprint of that version."""
    is_edited: bool = False
    """Whether that version has been changed here since it was installed."""
    is_by_hand: bool = False
    """Whether it was put here by hand: its files stay as they are, only its packages are brought."""

    @property
    def is_news(self) -> bool:
        """Whether it would change anything."""
        return self.origin.sha256 != self.replaces or set(self.packages) != set(self.packages_before)

    @property
    def changes(self) -> tuple[Change, ...]:
        old = self.before.model_dump() if self.before else {}
        new = self.manifest.model_dump()
        return tuple(Change(key, old[key], new[key]) for key in old if old[key] != new[key])

    @property
    def asks(self) -> tuple[str, ...]:
        """What a person should know before agreeing, one sentence each."""
        claims = [CAPABILITIES[name] for name in self.manifest.capabilities]
        routes = [f"answers at {self.manifest.routes}"] if self.manifest.routes else []
        needs = [f"brings the packages {', '.join(self.packages)}"] if self.packages else []
        return (*claims, *routes, *needs)

    @property
    def is_wider(self) -> bool:
        """Whether it asks for more than the version before."""
        old = self.before or self.manifest
        return not set(self.manifest.capabilities) <= set(old.capabilities) or self.manifest.routes != old.routes


def permit(settings: Settings, is_admin: bool, is_here: bool = True) -> None:
    """Raise Refused unless this caller, who comes over HTTP, may change extensions of this instance.

    `is_here`: from this very machine, not handed on by a proxy.
    """
    if not is_admin:
        raise Refused("only an administrator may install extensions: an extension can do all that Atelier can")
    if not (settings.is_local and is_here) and not settings.allow_extension_install:
        raise Refused(
            "this server can be reached from other machines, so extensions are not installed from the page; use the"
            " command line, or set allow_extension_install = true in settings.toml in the data folder"
        )


@contextlib.contextmanager
def planned(place: Place, source: Source, *, update: str = "") -> Iterator[Plan]:
    """What installing from `source` means, or updating the extension `update`; raises Refused, Conflict or NotFound.

    The staged files are gone when the context ends; `apply` the plan before that.
    """
    _sweep(place)
    with _staging(place) as folder:
        fetched = folder / "fetched"
        fetched.mkdir()
        commit = sources.fetch(source, fetched)
        yield _plan(place, source, fetched, commit, update)


def planned_update(place: Place, id: str, source: Source | None = None) -> contextlib.AbstractContextManager[Plan]:
    """What updating `id` means, from where it came unless `source` says otherwise."""
    _check_theirs(place, id)
    return planned(place, source or _source(place, id), update=id)


def apply(plan: Plan) -> None:
    """Bring its packages, see that it can be imported, move it into place. Raises Refused or Conflict."""
    id, folder, previous = plan.manifest.id, plan.place.folder(plan.manifest.id), plan.place.previous(plan.manifest.id)
    packages.install(plan.packages, plan.staged)
    trial = importing.probe([plan.staged])[plan.staged]
    if trial.fatal or trial.error:
        raise Refused(f"{id} {plan.manifest.version} does not work here: {trial.fatal or trial.error}")
    outdated = plan.staged.with_name("outdated")
    with _change(plan.place) as change:
        if _fingerprint(folder) != plan.replaces:
            raise Conflict(f"{id} has changed in the meantime; look once more at what it asks for")
        if plan.is_by_hand:
            _move((folder / PACKAGES, outdated), (plan.staged / PACKAGES, folder / PACKAGES))
            return
        if plan.before:
            previous.parent.mkdir(exist_ok=True)
            change.undo = _move((previous, outdated), (folder, previous), (plan.staged, folder))
        else:
            change.undo = _move((plan.staged, folder))
        change.record = change.record.with_origin(id, plan.origin)
    log.info("extension %s %s installed from %s", id, plan.manifest.version, plan.origin.source)


def roll_back(place: Place, id: str) -> Manifest:
    """Bring back the version before the last update; done again, it undoes itself."""
    _check_theirs(place, id, must_be_there=False)
    folder, previous = place.folder(id), place.previous(id)
    if not previous.is_dir():
        raise NotFound(f"there is no earlier version of {id} to go back to")
    with _staging(place) as staging, _change(place) as change:
        change.undo = _move((folder, staging / id), (previous, folder), (staging / id, previous))
        change.record = change.record.with_origin(id, change.record.previous.get(id))
    log.info("extension %s rolled back", id)
    return read_manifest(folder)


def remove(place: Place, id: str) -> Path:
    """Take an extension away, with its earlier version; the folder in the trash of the data folder where it is now."""
    _check_theirs(place, id)
    if needed := [m.id for m in _manifests(place) if id in m.depends]:
        raise Conflict(f"{', '.join(needed)} cannot work without {id}; remove what depends on it first")
    trash = place.data / "trash" / f"{id}-{time.strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(2)}"
    aside = place.extensions / f"{_STAGING}{secrets.token_hex(4)}"
    with _change(place) as change:
        change.undo = _move((place.folder(id), aside))  # one step; the way to the trash may be a copy
        change.record = change.record.without(id)
    with _explained():
        trash.parent.mkdir(parents=True, exist_ok=True)
        shutil.move(aside, trash)
        registry.forget(place.data, id)
    shutil.rmtree(place.previous(id), ignore_errors=True)
    log.info("extension %s removed; it lies in %s", id, trash)
    return trash


def disable(place: Place, id: str) -> None:
    _check_there(place, id)
    with _change(place) as change:
        change.record = change.record.with_disabled(id)


def enable(place: Place, id: str) -> None:
    """Also tries one again that was found to hang or to end the process."""
    _check_there(place, id)
    with _change(place) as change:
        change.record = change.record.with_enabled(id)
    registry.forget(place.data, id)


State = Literal["on", "off", "broken"]


class Entry(NamedTuple):
    """A line of the list of extensions."""

    id: str
    title: str
    version: str
    state: State
    origin: str
    """Where it is from, as people read it."""
    problem: str
    """Why it is broken or off."""
    can_roll_back: bool


def listing(place: Place, loaded: Registry) -> list[Entry]:
    """Every extension of an instance, by id."""
    try:
        record = Record.read(place.data)
    except ValueError:
        record = Record()  # `loaded.notice` says so
    broken = {b.id: b.reason for b in loaded.broken}
    known = {m.id: m for m in (*loaded.manifests, *loaded.idle)}
    on = {e.id for e in loaded.extensions}
    entries = []
    for id in sorted({*known, *broken}):
        manifest = known.get(id) or manifest_of(place.folder(id))
        state: State = "on" if id in on else "broken" if id in broken else "off"
        off = record.disabled.get(id) or ("" if id in record.disabled else "not loaded in safe mode")
        entries.append(
            Entry(
                id,
                manifest.title if manifest else id,
                manifest.version if manifest else "",
                state,
                _from(place, id, record),
                broken.get(id, off if state == "off" else ""),
                place.previous(id).is_dir(),
            )
        )
    return entries


def manifest_of(folder: Path) -> Manifest | None:
    """None if it is missing or makes no sense: `registry` says what is wrong with it."""
    try:
        return read_manifest(folder)
    except ManifestError:
        return None


# ---------------------------------------------------------------- planning


def _plan(place: Place, source: Source, fetched: Path, commit: str, update: str) -> Plan:
    try:
        root = sources.root_of(fetched)
        manifest = read_manifest(root, named=False)
        if manifest.unfit:
            raise ManifestError(manifest.unfit)
        if not (root / "__init__.py").is_file():
            raise ManifestError("there is no __init__.py in it")
    except ManifestError as error:
        raise Refused(str(error)) from None
    id = manifest.id
    if id in BUILTIN:
        raise Refused(f"{id} is the name of one of Atelier's own extensions")
    if update and id != update:
        raise Refused(f"what lies there is the extension {id}, not {update}")
    if not update and place.folder(id).exists():
        raise Conflict(f"{id} is installed already; `python app.py extensions update {id}` brings a newer version")
    if lacking := [need for need in manifest.depends if not place.folder(need).is_dir()]:
        raise Conflict(f"{id} needs the extension {' and '.join(lacking)}; install that first")
    staged = fetched.parent / id
    os.replace(root, staged)
    now = _fingerprint(place.folder(id))
    known = _record(place).installed.get(id)
    number, size = sources.measure(staged)
    return Plan(
        place,
        manifest,
        _origin(source, commit, sources.fingerprint(staged)),
        packages.resolve(manifest, packages.pins(place.extensions, but=id)),
        packages.brought(place.folder(id)),
        number,
        size,
        staged,
        before=manifest_of(place.folder(id)) if update else None,
        replaces=now,
        is_edited=bool(known and known.sha256 != now),
        is_by_hand=source == Folder(place.folder(id)),
    )


def _origin(source: Source, commit: str, sha256: str) -> Origin:
    now = datetime.now(UTC).replace(microsecond=0)
    match source:
        case Git(url, ref):
            return Origin(kind="git", source=url, ref=ref, commit=commit, sha256=sha256, when=now)
        case Zip(path):
            return Origin(kind="zip", source=str(path), sha256=sha256, when=now)
        case Folder(path):
            return Origin(kind="folder", source=str(path), sha256=sha256, when=now)


def _source(place: Place, id: str) -> Source:
    origin = _record(place).installed.get(id)
    if origin is None:
        return Folder(place.folder(id))
    if origin.kind == "git":
        return Git(origin.source, origin.ref)
    path = Path(origin.source)
    if not path.exists():
        raise NotFound(f"{id} came from {path}, which is not there any more; say where the newer version is")
    return Zip(path) if origin.kind == "zip" else Folder(path)


# ---------------------------------------------------------------- applying


@dataclass
class _Change:
    record: Record
    undo: Callable[[], None] = lambda: None
    """Puts the folders back."""


@contextlib.contextmanager
def _change(place: Place) -> Iterator[_Change]:
    """The record, for one process at a time to change; if it cannot be written, the folders are put back."""
    with _explained(), locks.held(place.data / LOCK) as lock:
        if lock is None:
            raise Conflict("another installation is going on; try again when it is done")
        change = _Change(_record(place))
        yield change
        try:
            change.record.write(place.data)
        except BaseException:
            change.undo()
            raise


def _move(*pairs: tuple[Path, Path]) -> Callable[[], None]:
    """Rename each first that is there to its second, in turn, all or none; what is returned undoes it."""
    done: list[tuple[Path, Path]] = []

    def undo() -> None:
        while done:
            before, after = done.pop()
            os.replace(after, before)

    try:
        for before, after in pairs:
            if before.exists():
                os.replace(before, after)
                done.append((before, after))
    except BaseException:
        undo()
        raise
    return undo


@contextlib.contextmanager
def _staging(place: Place) -> Iterator[Path]:
    """A folder beside the extensions, so that moving out of it is one step; gone afterwards."""
    with _explained():
        place.extensions.mkdir(parents=True, exist_ok=True)
        folder = Path(tempfile.mkdtemp(prefix=_STAGING, dir=place.extensions))
    try:
        with _explained():
            yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def _explained() -> Iterator[None]:
    """A full or read-only disk, said plainly."""
    try:
        yield
    except OSError as error:
        where = f" ({error.filename})" if error.filename else ""
        raise StorageFull(f"the disk does not take it: {error.strerror}{where}") from error


def _sweep(place: Place) -> None:
    """Delete what a plan that was killed has left."""
    for folder in place.extensions.glob(f"{_STAGING}*"):
        with contextlib.suppress(OSError):
            if time.time() - folder.stat().st_mtime > _LEFT_OVER:
                shutil.rmtree(folder)


# ---------------------------------------------------------------- what is there


def _check_there(place: Place, id: str) -> None:
    there = sorted(p.name for p in place.extensions.glob("*") if p.is_dir() and not p.name.startswith((".", "_")))
    if id not in there:
        raise NotFound(f"there is no extension {id[:80]!r} here; there are {', '.join(there) or 'none'}")


def _check_theirs(place: Place, id: str, *, must_be_there: bool = True) -> None:
    if must_be_there:
        _check_there(place, id)
    elif id.startswith(".") or "/" in id or "\\" in id:
        raise NotFound(f"{id[:80]!r} is not the id of an extension")
    if is_builtin(place.folder(id)):
        raise Refused(f"{id} belongs to Atelier: it is updated with it, and can be disabled but not removed")


def _manifests(place: Place) -> list[Manifest]:
    found = (manifest_of(p) for p in sorted(place.extensions.glob("*")) if not p.name.startswith("."))
    return [manifest for manifest in found if manifest]


def _record(place: Place) -> Record:
    try:
        return Record.read(place.data)
    except ValueError as error:
        raise Conflict(f"{error}; mend or delete it first") from None


def _fingerprint(folder: Path) -> str:
    return sources.fingerprint(folder) if folder.is_dir() else ""


def _from(place: Place, id: str, record: Record) -> str:
    if is_builtin(place.folder(id)):
        return "built in"
    return str(record.installed.get(id, "put here by hand"))
