"""What is known of an extension without running its code: its manifest, where it came from, whether it is wanted."""

import difflib
import json
import re
import tomllib
from datetime import datetime
from pathlib import Path
from typing import Annotated, Literal, TypeVar

from packaging.requirements import InvalidRequirement, Requirement
from packaging.specifiers import InvalidSpecifier, SpecifierSet
from packaging.version import InvalidVersion, Version
from pydantic import AfterValidator, Field, ValidationError

from backend import __version__
from backend.extension import API_VERSION
from backend.files import write_atomically
from backend.params import Params

FILE = "extension.toml"
RECORD = "extensions.json"
PACKAGES = ".packages"
"""Folder inside an extension: the packages that it needs and Atelier does not have."""
HOME = Path(__file__).resolve().parent.parent / "extensions"
BUILTIN = frozenset({"controlnet", "hires", "inpaint", "lora", "outpaint", "styles", "wildcards"})
"""Ids that belong to Atelier. In HOME they are its own extensions; nobody can install an extension of that name."""
CAPABILITIES = {
    "network": "reaches the network",
    "files": "reads or writes files beyond the pictures it is given",
    "engine": "changes the model while a picture is drawn",
    "ui": "adds scripts or styles to the page",
}
OWN_ROUTES = frozenset(
    {"/api", "/assets", "/docs", "/extensions", "/file", "/gradio_api", "/health", "/img", "/internal", "/login"}
    | {"/logout", "/queue", "/sdapi", "/static", "/thumbs", "/ui", "/ws"}
)
MAX_BYTES = 64 * 1024
ID = r"[a-z][a-z0-9_-]{0,63}"
V = TypeVar("V")
_SEMVER = r"\d+\.\d+\.\d+(-[0-9A-Za-z.-]+)?(\+[0-9A-Za-z.-]+)?"


class ManifestError(ValueError):
    """What is wrong with an extension.toml, in a sentence."""


def _id(text: str) -> str:
    if not re.fullmatch(ID, text):
        raise ValueError(f"{text[:70]!r} is not an id: small letters, digits, - and _, a letter first")
    return text


def _version(text: str) -> str:
    try:
        Version(text)
    except InvalidVersion:
        if not re.fullmatch(_SEMVER, text):
            raise ValueError(f"{text[:70]!r} is not a version such as 1.2 or 1.2.3") from None
    return text


def _range(text: str) -> str:
    try:
        SpecifierSet(text)
    except InvalidSpecifier:
        raise ValueError(f"{text[:70]!r} is not a range of versions such as '>=0.1,<1'") from None
    return text


def _requirement(text: str) -> str:
    try:
        requirement = Requirement(text)
    except InvalidRequirement:
        raise ValueError(f"{text[:70]!r} does not name a package, as in 'numpy>=2'") from None
    if requirement.url:
        raise ValueError(f"{requirement.name} comes from an address of its own; only packages of the index are taken")
    return text


def _routes(text: str) -> str:
    if text and (not re.fullmatch(r"/[a-z][a-z0-9_-]*", text) or text in OWN_ROUTES):
        raise ValueError(f"{text[:70]!r} is not free: one new word after a slash, as in '/controlnet'")
    return text


Id = Annotated[str, AfterValidator(_id)]


class Manifest(Params):
    """`extension.toml`."""

    id: Id
    """The name of the folder."""
    version: Annotated[str, AfterValidator(_version)]
    """Of the extension, as PEP 440 or semver has it."""
    title: Annotated[str, Field(min_length=1, max_length=80)]
    description: Annotated[str, Field(max_length=2000)] = ""
    api: int = 1
    """The extension API that it was written for."""
    atelier: Annotated[str, AfterValidator(_range)] = ""
    """The versions of Atelier that it works with, as PEP 440 writes a range; empty: all."""
    requires: tuple[Annotated[str, AfterValidator(_requirement)], ...] = ()
    """Packages, as PEP 508 writes them."""
    depends: tuple[Id, ...] = ()
    """Extensions that must be there too; they come first."""
    after: tuple[Id, ...] = ()
    """Extensions that come first if they are there."""
    capabilities: tuple[Literal["network", "files", "engine", "ui"], ...] = ()
    """What it does that a person may want to know; shown, not enforced."""
    routes: Annotated[str, AfterValidator(_routes)] = ""
    """A public prefix for its routes beside /extensions/<id>."""
    licence: str = ""
    homepage: Annotated[str, Field(pattern=r"^(https?://[^\s<>\"']*)?$")] = ""

    @property
    def unfit(self) -> str:
        """Why this Atelier cannot run it; empty if it can."""
        if self.api != API_VERSION:
            mend = "update Atelier" if self.api > API_VERSION else "ask its author for an update"
            return f"written for extension API {self.api}, this Atelier has {API_VERSION}: {mend}"
        if not SpecifierSet(self.atelier).contains(__version__, prereleases=True):
            return f"made for Atelier {self.atelier}, this is {__version__}"
        return ""


def read_manifest(folder: Path, *, named: bool = True) -> Manifest:
    """The `extension.toml` in `folder`, whose name must be the id unless `named` is off. Raises ManifestError."""
    path = folder / FILE
    try:
        if path.stat().st_size > MAX_BYTES:
            raise ManifestError(f"{FILE} is larger than {MAX_BYTES // 1024} KB")
        manifest = parse_manifest(path.read_text("utf-8"))
    except FileNotFoundError:
        raise ManifestError(f"there is no {FILE}") from None
    except UnicodeDecodeError:
        raise ManifestError(f"{FILE} is not UTF-8 text") from None
    except OSError as error:
        raise ManifestError(f"{FILE} cannot be read: {error.strerror}") from None
    if named and manifest.id != folder.name:
        taken = f" ({manifest.id} is another extension here)" if (folder.parent / manifest.id).is_dir() else ""
        raise ManifestError(f"{FILE} says id = {manifest.id!r}, but the folder is {folder.name!r}{taken}")
    return manifest


def parse_manifest(text: str) -> Manifest:
    """Raises ManifestError, which names every key that is wrong."""
    try:
        return Manifest.model_validate(tomllib.loads(text))
    except tomllib.TOMLDecodeError as error:
        raise ManifestError(f"{FILE} is not TOML: {error}") from None
    except ValidationError as error:
        wrong = "; ".join(_explain(e["type"], [str(p) for p in e["loc"]], e["msg"]) for e in error.errors())
        raise ManifestError(f"{FILE}: {wrong}") from None


def is_builtin(folder: Path) -> bool:
    """Whether the extension in `folder` is one of Atelier's own. Its manifest has no say in this."""
    return folder.name in BUILTIN and folder.parent.resolve() == HOME


def _explain(kind: str, where: list[str], message: str) -> str:
    name = where[0]
    if kind == "missing":
        return f"{name} is missing"
    if kind == "extra_forbidden":
        near = difflib.get_close_matches(name, Manifest.model_fields, 1)
        return f"{name} is not a key of it" + (f"; did you mean {near[0]}?" if near else "")
    return f"{name}: {message.removeprefix('Value error, ').removeprefix('Input ')}"


class Origin(Params):
    """Where an installed extension came from."""

    kind: Literal["git", "zip", "folder"]
    source: str
    """An address, or the path of a file or folder."""
    ref: str = ""
    """The branch, tag or commit that was asked for."""
    commit: str = ""
    sha256: str
    """Over the names and contents of its files."""
    when: datetime

    def __str__(self) -> str:
        """As people read it; without the folders of this machine."""
        return f"{self.source} @ {self.commit[:10]}" if self.kind == "git" else Path(self.source).name


class Record(Params):
    """`extensions.json` in the data folder: what this instance has decided about its extensions."""

    disabled: dict[str, str] = {}
    """Why, by id; empty: somebody disabled it."""
    installed: dict[str, Origin] = {}
    previous: dict[str, Origin | None] = {}
    """Where the version came from that a rollback would bring back."""

    @classmethod
    def read(cls, data: Path) -> "Record":
        """Raises ValueError if the file is there and makes no sense."""
        try:
            return cls.model_validate_json((data / RECORD).read_bytes())
        except FileNotFoundError:
            return cls()
        except ValidationError as error:
            problem = error.errors()[0]
            where = ".".join(map(str, problem["loc"]))
            raise ValueError(f"{data / RECORD} is damaged ({where or 'all of it'}: {problem['msg']})") from None

    def write(self, data: Path) -> None:
        data.mkdir(parents=True, exist_ok=True)
        text = json.dumps(self.model_dump(mode="json", exclude_defaults=True), indent=1, ensure_ascii=False)
        write_atomically(data / RECORD, text.encode())

    def with_disabled(self, id: str, why: str = "") -> "Record":
        return self.model_copy(update={"disabled": {**self.disabled, id: why}})

    def with_enabled(self, id: str) -> "Record":
        return self.model_copy(update={"disabled": _without(self.disabled, id)})

    def with_origin(self, id: str, origin: Origin | None) -> "Record":
        """`id` comes from `origin` now; None: nobody knows."""
        installed = _without(self.installed, id) | ({id: origin} if origin else {})
        previous = {**self.previous, id: self.installed.get(id)}
        return self.model_copy(update={"installed": installed, "previous": previous})

    def without(self, id: str) -> "Record":
        return Record(
            disabled=_without(self.disabled, id),
            installed=_without(self.installed, id),
            previous=_without(self.previous, id),
        )


def _without(table: dict[str, V], id: str) -> dict[str, V]:
    return {key: value for key, value in table.items() if key != id}
