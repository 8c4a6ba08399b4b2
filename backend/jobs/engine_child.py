"""The engine's process: one engine, one device; draws requests and runs errands (see `child`)."""

import importlib
import json
import logging
from pathlib import Path
from typing import Any

from backend import registry
from backend.catalog import Catalog
from backend.catalog.roots import Roots
from backend.errors import AtelierError, NotFound, blamed
from backend.hardware import Hardware
from backend.images import ImageStore
from backend.jobs import child, wire
from backend.jobs.child import Run
from backend.registry import Registry
from backend.request import parse_request
from backend.result import BatchSkipped, JobCancelled, Progress

log = logging.getLogger(__name__)


def main() -> None:
    child.serve("engine", _start)


def _start(setup: dict[str, Any]) -> tuple[str, child.Work]:
    images = ImageStore(Path(setup["inputs"]))
    folder, kept, roots = Path(setup["extensions"]), Path(setup["kept"]), Roots.of(setup["models"])
    extensions = registry.load(folder, only=setup["only"], models=roots, kept=kept)
    for extension in extensions.extensions:
        extension.images = images
    module, _, name = setup["engine"].partition(":")
    make = getattr(importlib.import_module(module), name)
    engine = make(Catalog(roots), extensions, setup["device"], hardware=Hardware(**setup["hardware"]))

    def work(run: Run) -> dict[str, Any]:
        if run.kind == "errand":
            asked = {name: run.values[name] for name in ("extension", "name", "values")}
            return {"answer": _run_errand(extensions, **asked)}
        return _draw(engine, extensions, images, run)

    return str(getattr(engine, "device", setup["device"] or "cpu")), work


def _draw(engine: Any, extensions: Registry, images: ImageStore, run: Run) -> dict[str, Any]:
    def report(progress: Progress) -> None:
        _tell(progress, run)
        if run.cancelled:
            raise JobCancelled
        while not run.asked.empty():
            asked = run.asked.get()
            if asked.kind == "skip" and asked.values["batch"] == progress.batch:
                raise BatchSkipped

    request = parse_request(run.values["request"], extensions.params)
    result = engine.generate(request, images, report, frozenset(run.values["done"]))
    return {"request": result.request.model_dump(mode="json"), "pictures": list(result.pictures)}


def _run_errand(extensions: Registry, extension: str, name: str, values: dict[str, Any]) -> dict[str, Any]:
    """What the extension gives, which must be JSON; what it raises bears its title."""
    asked = next((e for e in extensions.extensions if e.id == extension), None)
    if asked is None:
        raise NotFound(f"the engine has no extension {extension}; restart Atelier")
    try:
        answer = asked.errand(name, values)
        json.dumps(answer)
    except AtelierError:
        raise
    except Exception as error:
        failed = blamed(asked.title, error)
        log.exception("the errand %s failed: %s", name, failed)
        raise failed from error
    return answer


def _tell(progress: Progress, run: Run) -> None:
    at = {name: getattr(progress, name) for name in wire.AT} | {"notices": progress.notices}
    picture = progress.picture
    if picture is None:
        run.say(wire.PROGRESS, at, progress.preview or b"")
        return
    described = {name: getattr(picture, name) for name in ("index", "infotext", "width", "height", "models", "role")}
    request = picture.request.model_dump(mode="json")
    run.say(wire.PICTURE, {**at, "picture": {**described, "request": request}}, picture.data)
