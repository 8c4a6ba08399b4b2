"""A catalogue of extensions that can be installed: a JSON file, here or at an https address.

{"extensions": [{"id": "film-grain", "title": "Film grain", "url": "https://...", "ref": "v1.2"}]}
"""

import difflib
import urllib.error
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal, NoReturn

from pydantic import AfterValidator, ConfigDict, Field, ValidationError

from backend.errors import AtelierError, NotFound, Refused
from backend.manifest import Id
from backend.params import Params
from backend.sources import Git, checked_ref, checked_url

MAX_BYTES = 4 * 2**20
LIMIT = 20.0
"""Seconds that the server may take to answer."""


def _url(text: str) -> str:
    try:
        return checked_url(text)
    except AtelierError as error:
        raise ValueError(str(error)) from None


def _ref(text: str) -> str:
    try:
        return checked_ref(text)
    except AtelierError as error:
        raise ValueError(str(error)) from None


class Entry(Params):
    """One extension; keys that a later catalogue may have are passed over."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    id: Id
    title: Annotated[str, Field(max_length=80)]
    url: Annotated[str, AfterValidator(_url)]
    """Of its git repository."""
    ref: Annotated[str, AfterValidator(_ref)] = ""
    description: Annotated[str, Field(max_length=2000)] = ""
    version: Annotated[str, Field(max_length=40)] = ""
    author: Annotated[str, Field(max_length=80)] = ""
    tags: tuple[Annotated[str, Field(max_length=40)], ...] = ()
    capabilities: tuple[Literal["network", "files", "engine", "ui"], ...] = ()

    @property
    def source(self) -> Git:
        return Git(self.url, self.ref)


class Index(Params):
    model_config = ConfigDict(frozen=True, extra="ignore")

    extensions: Annotated[tuple[Entry, ...], Field(max_length=10_000)]

    def search(self, text: str = "") -> Sequence[Entry]:
        """The entries that hold every word of `text`, those with a word in id or title first."""
        words = text.casefold().split()
        hits = [e for e in self.extensions if all(word in _text(e) for word in words)]
        return sorted(hits, key=lambda e: (not any(w in f"{e.id} {e.title}".casefold() for w in words), e.id))

    def find(self, id: str) -> Entry:
        """Raises NotFound."""
        for entry in self.extensions:
            if entry.id == id:
                return entry
        near = difflib.get_close_matches(id, [e.id for e in self.extensions], 1)
        raise NotFound(f"{id[:80]!r} is not in the catalogue" + (f"; did you mean {near[0]}?" if near else ""))


def read_index(where: str) -> Index:
    """The catalogue at a path or https address. Raises Refused or NotFound."""
    if not where:
        raise NotFound("no catalogue is set; give one as extension_index in settings.toml, or install from an address")
    data = _download(where) if "://" in where else _read(Path(where))
    if len(data) > MAX_BYTES:
        raise Refused(f"the catalogue is larger than {MAX_BYTES >> 20} MB")
    try:
        return Index.model_validate_json(data)
    except ValidationError as error:
        problem = error.errors()[0]
        place = ".".join(str(part) for part in problem["loc"])
        raise Refused(f"the catalogue is damaged: {place + ': ' if place else ''}{problem['msg']}") from None


def _text(entry: Entry) -> str:
    return " ".join((entry.id, entry.title, entry.description, entry.author, *entry.tags)).casefold()


def _read(path: Path) -> bytes:
    try:
        with open(path.expanduser(), "rb") as file:
            return file.read(MAX_BYTES + 1)
    except OSError as error:
        raise NotFound(f"the catalogue {path} cannot be read: {error.strerror}") from None


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *arguments: object) -> NoReturn:
        raise urllib.error.URLError("it redirects elsewhere; give the address where it is")


def _download(url: str) -> bytes:
    if not url.lower().startswith("https://"):
        raise Refused("a catalogue is a file here or at an address that begins with https://")
    try:
        with urllib.request.build_opener(_NoRedirect).open(url, timeout=LIMIT) as answer:
            data: bytes = answer.read(MAX_BYTES + 1)
            return data
    except (OSError, ValueError) as error:
        raise NotFound(f"the catalogue at {url[:200]} does not answer: {error}") from None
