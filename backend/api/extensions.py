"""Extensions over HTTP: the list, the catalogue, installing in two steps, and what they bring to the page."""

import contextlib
import re
import secrets
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import anyio.to_thread
from fastapi import APIRouter, Query, Request, Response
from fastapi.responses import FileResponse, JSONResponse
from pydantic import BaseModel, ConfigDict, Field

from backend import extension_index, importing, install, sources
from backend.api.auth import Caller
from backend.api.gate import HERE
from backend.errors import AtelierError, Conflict, InvalidRequest, NotFound, Problem, Refused
from backend.extension_index import Index
from backend.files import storing
from backend.install import Entry, Place, Plan
from backend.manifest import ID, Record, is_builtin
from backend.registry import Registry
from backend.services import Services
from backend.settings import Settings

KEPT = 15 * 60.0
"""Seconds for which somebody may think about a plan."""
AT_ONCE = 4
"""Plans that wait for an answer; each has its files on the disk."""
SHOWN = 50
"""Entries of the catalogue in one answer."""
INDEX_KEPT = 300.0
"""Seconds for which the catalogue is not read again."""
MAX_QUESTION = 64 * 1024
"""Bytes of a request, other than a zip."""
WEB_FILE = r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,100}\.(js|css)"
TYPES = {".js": "text/javascript; charset=utf-8", ".css": "text/css; charset=utf-8"}


class Wish(BaseModel):
    """What somebody wants to install or update."""

    model_config = ConfigDict(extra="forbid")

    source: Annotated[str, Field(max_length=2000)] = ""
    """A git address, or a path on this machine; empty: where the extension to update came from."""
    ref: Annotated[str, Field(max_length=200)] = ""
    catalogue: Annotated[str, Field(max_length=64)] = ""
    """An id in the catalogue, instead of `source`."""
    update: Annotated[str, Field(max_length=64)] = ""


class Plans:
    """Plans that somebody is looking at, by a token; their staged files go when they do."""

    def __init__(self, kept: float = KEPT) -> None:
        self._kept = kept
        self._lock = threading.Lock()
        self._making = threading.Lock()
        self._open: dict[str, _Open] = {}

    def make(self, planned: contextlib.AbstractContextManager[Plan]) -> tuple[str, Plan]:
        """Fetch and check, which takes a while; one at a time. Raises Conflict and what `planned` raises."""
        if not self._making.acquire(blocking=False):
            raise Conflict("another extension is being looked at; try again when that is done")
        try:
            with contextlib.ExitStack() as stack:
                plan = stack.enter_context(planned)
                token = secrets.token_urlsafe(12)
                timer = threading.Timer(self._kept, self.drop, [token])
                timer.daemon = True
                with self._lock:
                    self._open[token] = _Open(plan, stack.pop_all(), timer)
                    superfluous = list(self._open)[:-AT_ONCE]
                timer.start()
        finally:
            self._making.release()
        for old in superfluous:
            self.drop(old)
        return token, plan

    @contextlib.contextmanager
    def taken(self, token: str) -> Iterator[Plan]:
        """The plan, for the last time. Raises NotFound."""
        with self._lock:
            found = self._open.pop(token, None)
        if found is None:
            raise NotFound("this plan is not there any more; look once more at what the extension asks for")
        found.timer.cancel()
        with found.files:
            yield found.plan

    def drop(self, token: str) -> None:
        with contextlib.suppress(NotFound), self.taken(token):
            pass

    def close(self) -> None:
        for token in list(self._open):
            self.drop(token)


@dataclass(frozen=True)
class _Open:
    plan: Plan
    files: contextlib.ExitStack
    timer: threading.Timer


def router(services: Services, plans: Plans) -> APIRouter:
    routes = APIRouter()
    settings, place = services.settings, Place.of(services.settings)
    overview = Overview(services)
    catalogue = _Catalogue(settings.extension_index)

    def may(request: Request) -> None:
        # an instance has one account; whoever has signed in to it is its administrator
        install.permit(settings, is_admin=True, is_here=request.scope[HERE])

    def propose(wish: Wish, is_here: bool) -> dict[str, Any]:
        source = _source(wish, catalogue, paths=settings.is_local and is_here)
        if wish.update:
            planned = install.planned_update(place, wish.update, source)
        elif source:
            planned = install.planned(place, source)
        else:
            raise Refused("say what to install: an address, a zip or a folder")
        return plan_view(*plans.make(planned))

    @routes.get("/api/extensions")
    def listing(caller: Caller, request: Request) -> Response:
        return JSONResponse(overview.view(request.scope[HERE]))

    @routes.get("/api/extensions/catalogue")
    def search(caller: Caller, q: Annotated[str, Query(max_length=200)] = "") -> Response:
        here = overview.ids()
        found = catalogue.read().search(q)
        entries = [
            {**e.model_dump(mode="json", exclude={"url", "ref"}), "installed": e.id in here} for e in found[:SHOWN]
        ]
        return JSONResponse({"extensions": entries, "total": len(found)})

    @routes.post("/api/extensions/plan", status_code=201, max_body_size=MAX_QUESTION)
    def plan(caller: Caller, request: Request, wish: Wish) -> Response:
        may(request)
        with _judged():
            return JSONResponse(propose(wish, request.scope[HERE]), 201)

    @routes.post("/api/extensions/plan/zip", status_code=201)
    async def plan_zip(caller: Caller, request: Request, name: str = "", update: str = "") -> Response:
        """The body is the zip."""
        may(request)
        with _judged(), storing(), tempfile.TemporaryDirectory(prefix="atelier-zip-") as folder:
            path = Path(folder, _file_name(name))
            with open(path, "wb") as file:
                async for block in request.stream():
                    file.write(block)
            planned = (
                install.planned_update(place, update, sources.Zip(path))
                if update
                else install.planned(place, sources.Zip(path))
            )
            token, made = await anyio.to_thread.run_sync(plans.make, planned)
        return JSONResponse(plan_view(token, made), 201)

    @routes.post("/api/extensions/plans/{token}/apply")
    def apply(caller: Caller, request: Request, token: str) -> Response:
        may(request)
        with _judged(), plans.taken(token) as taken:
            install.apply(taken)
        return JSONResponse(overview.view(request.scope[HERE]))

    @routes.post("/api/extensions/plans/{token}/cancel")
    def cancel(caller: Caller, request: Request, token: str) -> Response:
        may(request)
        plans.drop(token)
        return JSONResponse({})

    def change(verb: str, run: Callable[[Place, str], object]) -> None:
        @routes.post(f"/api/extensions/{{id}}/{verb}", name=f"{verb} extension")
        def changed(caller: Caller, request: Request, id: str) -> Response:
            may(request)
            with _judged():
                run(place, id)
            return JSONResponse(overview.view(request.scope[HERE]))

    for verb, run in CHANGES.items():
        change(verb, run)

    @routes.get("/extensions/{id}/web/{file}")
    def web(caller: Caller, id: str, file: str) -> Response:
        path = _web_file(settings.extensions_dir, services.registry, id, file)
        return FileResponse(path, media_type=TYPES[path.suffix], headers={"Cache-Control": "no-cache"})

    return routes


CHANGES: Mapping[str, Callable[[Place, str], object]] = {
    "enable": install.enable,
    "disable": install.disable,
    "remove": install.remove,
    "rollback": install.roll_back,
}


class Overview:
    """What runs since the start, beside what lies on the disk now."""

    def __init__(self, services: Services) -> None:
        self._settings, self._loaded = services.settings, services.registry
        self._place = Place.of(services.settings)
        known = (*self._loaded.manifests, *self._loaded.idle)
        self._started = {m.id: self._stamp(m.id) for m in known if not is_builtin(self._place.folder(m.id))}

    def view(self, is_here: bool) -> dict[str, Any]:
        """What the page shows to somebody who may change something only `is_here`, unless the settings allow it."""
        try:
            record = Record.read(self._place.data)
        except ValueError:
            record = Record()  # the notice says so
        entries = {entry.id: entry for entry in install.listing(self._place, self._loaded)}
        here = self.ids()
        rows = [self._row(id, entries.get(id), record) for id in sorted({*entries, *here})]
        refusal = _refusal(self._settings, is_here)
        return {
            "extensions": rows,
            "notice": self._loaded.notice,
            "refusal": refusal,
            "paths": not refusal and self._settings.is_local and is_here,
            "catalogue": bool(self._settings.extension_index),
            "restart": any(row["pending"] for row in rows),
        }

    def ids(self) -> set[str]:
        """Of the folders that hold an extension now."""
        folders = self._place.extensions.glob("*/extension.toml")
        return {path.parent.name for path in folders if not path.parent.name.startswith((".", "_"))}

    def _row(self, id: str, entry: Entry | None, record: Record) -> dict[str, Any]:
        folder, origin = self._place.folder(id), record.installed.get(id)
        manifest = install.manifest_of(folder)
        wanted = id not in record.disabled
        return {
            "id": id,
            "title": manifest.title if manifest else entry.title if entry else id,
            "description": manifest.description if manifest else "",
            "version": manifest.version if manifest else entry.version if entry else "",
            "homepage": manifest.homepage if manifest else "",
            "capabilities": manifest.capabilities if manifest else (),
            "builtin": is_builtin(folder),
            "kind": origin.kind if origin else "",
            "from": entry.origin if entry else str(origin or ""),
            "state": entry.state if entry else "off",
            "problem": entry.problem if entry else "",
            "enabled": wanted,
            "pending": self._pending(id, entry, wanted),
            "can_roll_back": self._place.previous(id).is_dir(),
        }

    def _pending(self, id: str, entry: Entry | None, wanted: bool) -> str:
        """What the next start will change; empty: nothing."""
        if entry is None:
            return "install"
        if not self._place.folder(id).is_dir():
            return "remove"
        if entry.state == "off" and wanted and not self._settings.safe_mode:
            return "enable"
        if entry.state != "off" and not wanted:
            return "disable"
        return "update" if id in self._started and self._started[id] != self._stamp(id) else ""

    def _stamp(self, id: str) -> str:
        try:
            return importing.stamp(self._place.folder(id))
        except OSError:  # a file went while we looked
            return ""


class _Catalogue:
    """The catalogue of the settings, read now and then."""

    def __init__(self, where: str) -> None:
        self._where = where
        self._read: tuple[float, Index] | None = None

    def read(self) -> Index:
        """Raises Refused or NotFound."""
        if self._read is None or time.monotonic() - self._read[0] > INDEX_KEPT:
            self._read = time.monotonic(), extension_index.read_index(self._where)
        return self._read[1]


def plan_view(token: str, plan: Plan) -> dict[str, Any]:
    manifest, before = plan.manifest, plan.before
    return {
        "token": token,
        "extension": manifest.model_dump(mode="json"),
        "before": before.version if before else None,
        "from": str(plan.origin) if plan.origin.kind == "zip" else plan.origin.source,
        "commit": plan.origin.commit,
        "files": plan.files,
        "size": plan.size,
        "packages": plan.packages,
        "changes": [{"key": c.key, "before": _plain(c.before), "after": _plain(c.after)} for c in plan.changes],
        "wider": plan.is_wider,
        "edited": plan.is_edited,
        "news": plan.is_news,
    }


def web_files(settings: Settings, registry: Registry) -> list[dict[str, Any]]:
    """The scripts and styles that the loaded extensions bring, as addresses below the server's root."""
    found = []
    for extension in registry.extensions:
        folder = settings.extensions_dir / extension.id
        urls = [
            f"extensions/{extension.id}/web/{path.name}"
            for path in sorted(folder.glob("web/*"))
            if _is_web_file(folder, path.name)
        ]
        if urls:
            found.append(
                {
                    "id": extension.id,
                    "title": extension.title,
                    "scripts": [url for url in urls if url.endswith(".js")],
                    "styles": [url for url in urls if url.endswith(".css")],
                }
            )
    return found


def _web_file(extensions: Path, registry: Registry, id: str, name: str) -> Path:
    """Raises NotFound for all but a script or style of an extension that is loaded."""
    if id not in registry.ids or not _is_web_file(extensions / id, name):
        raise NotFound("there is nothing here")
    return extensions / id / "web" / name


def _is_web_file(folder: Path, name: str) -> bool:
    path = folder / "web" / name
    is_one = bool(re.fullmatch(WEB_FILE, name)) and path.is_file()
    return is_one and path.resolve() == folder.resolve() / "web" / name  # no link leads out


def _source(wish: Wish, catalogue: _Catalogue, *, paths: bool) -> sources.Source | None:
    """Where from; `paths` of this machine too, or only addresses."""
    if wish.catalogue:
        if not re.fullmatch(ID, wish.catalogue):
            raise NotFound(f"{wish.catalogue!r} is not the id of an extension")
        return catalogue.read().find(wish.catalogue).source
    if not wish.source.strip():
        return None
    if paths:
        return sources.source_of(wish.source, wish.ref)
    # from afar nobody learns what lies on this machine
    return sources.Git(sources.checked_url(wish.source.strip()), sources.checked_ref(wish.ref))


def _refusal(settings: Settings, is_here: bool) -> str:
    """Why extensions are not changed from the page; empty: they may be."""
    try:
        install.permit(settings, is_admin=True, is_here=is_here)
    except AtelierError as error:
        return str(error)
    return ""


@contextlib.contextmanager
def _judged() -> Iterator[None]:
    """What is wrong with an extension has nothing to do with who asks: 422, not 403."""
    try:
        yield
    except Refused as error:
        raise InvalidRequest(Problem("", str(error))) from None


def _file_name(given: str) -> str:
    """What the list shows as the origin: the upload's own name, as far as it is harmless."""
    name = re.sub(r"[^\w.-]+", "-", given.replace("\\", "/").rsplit("/", 1)[-1])[-80:].lstrip(".-")
    return name if name.endswith(".zip") and len(name) > len(".zip") else "upload.zip"


def _plain(value: object) -> str:
    return ", ".join(map(str, value)) if isinstance(value, tuple) else str(value)
