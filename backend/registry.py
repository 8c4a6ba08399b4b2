"""Find, check, load and order extensions; a broken one is listed and the application starts."""

import importlib.util
import logging
import sys
import traceback
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

from pydantic import ConfigDict, ValidationError

from backend.extension import API_VERSION, Extension
from backend.params import Params

log = logging.getLogger(__name__)


class Manifest(Params):
    """`extension.toml`."""

    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True)

    id: str
    version: str
    title: str
    description: str = ""
    api: int = API_VERSION
    licence: str = ""
    homepage: str = ""


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
    broken: tuple[Broken, ...] = ()

    @property
    def params(self) -> Mapping[str, type[Params]]:
        return {e.id: e.Params for e in self.extensions}


def load(folder: Path) -> Registry:
    """Every extension in `folder`; runs their declaration modules."""
    loaded: list[tuple[Extension, Manifest]] = []
    broken: list[Broken] = []
    for path in sorted(p.parent for p in folder.glob("*/extension.toml")):
        try:
            manifest = read_manifest(path)
            loaded.append((_load(path, manifest), manifest))
        except Exception as error:  # noqa: BLE001 (whatever a stranger's module raises)
            reason = "".join(traceback.format_exception_only(error)).strip()
            log.warning("extension %s is broken: %s", path.name, reason)
            broken.append(Broken(path.name, reason))
    loaded.sort(key=lambda pair: (pair[0].order, pair[0].id))
    return Registry(tuple(e for e, _ in loaded), tuple(m for _, m in loaded), tuple(broken))


def read_manifest(path: Path) -> Manifest:
    """The checked `extension.toml` of the folder `path`; raises ValueError."""
    try:
        manifest = Manifest.model_validate(tomllib.loads((path / "extension.toml").read_text("utf-8")))
    except ValidationError as error:
        wrong = "; ".join(f"{e['loc'][0]}: {e['msg']}" for e in error.errors())
        raise ValueError(f"extension.toml: {wrong}") from None
    if manifest.id != path.name:
        raise ValueError(f"extension.toml says id = {manifest.id!r}, but the folder is {path.name!r}")
    if manifest.api != API_VERSION:
        raise ValueError(f"written for extension API {manifest.api}; this Atelier has {API_VERSION}")
    return manifest


def _load(path: Path, manifest: Manifest) -> Extension:
    name = f"extensions.{manifest.id}"
    spec = importlib.util.spec_from_file_location(name, path / "__init__.py", submodule_search_locations=[str(path)])
    if spec is None or spec.loader is None:
        raise ValueError("there is no __init__.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # so that its own modules can import it
    try:
        spec.loader.exec_module(module)
        classes = [c for c in vars(module).values() if isinstance(c, type) and issubclass(c, Extension)]
        found = [c for c in classes if c.__module__ == name]
        if len(found) != 1:
            raise ValueError(f"__init__.py must hold one subclass of Extension, it holds {len(found)}")
        extension = found[0]()
        if extension.id != manifest.id:
            raise ValueError(f"the class says id = {extension.id!r}, extension.toml {manifest.id!r}")
        return extension
    except BaseException:
        del sys.modules[name]
        raise
