"""Errors that carry a message for the user.

AtelierError
├── InvalidRequest      a parameter is wrong; `problems` says which and why
├── NotFound            a model, picture, image or job that is not there
├── ModelBroken         a model that is there but cannot be loaded
├── ImageRefused        an upload that is no picture, or too large a one
├── StorageFull         the disk refuses to take more
├── ExtensionFailed     a stage of an extension raised
├── DownloadFailed      another server does not give what was asked of it, or something else
├── TrainingFailed      a training that cannot go on: no numbers any more, or out of memory
├── EngineFailed        the engine raised what nobody foresaw, or could not start
├── WorkerDied          the engine's process ended in the middle of a job
├── Busy                the engine has no time for it now
├── Conflict            two extensions want the same argument, a port or folder is taken
└── Refused             not allowed to this caller
    └── ArchiveRefused  a zip that is none, too large, or leads out of its folder
"""

import re
import secrets
from collections.abc import Mapping
from typing import Any, NamedTuple


class AtelierError(Exception):
    """Something went wrong that the message explains to the person at the page."""

    status = 500


class Problem(NamedTuple):
    field: str
    """Dotted path: `steps`, `extensions.controlnet.units.0.weight`."""
    message: str


class InvalidRequest(AtelierError):
    status = 422

    def __init__(self, *problems: Problem) -> None:
        self.problems = problems
        super().__init__("; ".join(f"{field}: {message}" if field else message for field, message in problems))


class NotFound(AtelierError):
    status = 404


class ModelBroken(AtelierError):
    status = 422


class ImageRefused(AtelierError):
    status = 422


class StorageFull(AtelierError):
    status = 507


class ExtensionFailed(AtelierError):
    status = 500


class DownloadFailed(AtelierError):
    status = 502


class TrainingFailed(AtelierError):
    status = 500

    def __init__(self, message: str, changes: Mapping[str, Any] | None = None) -> None:
        self.changes = dict(changes or {})
        """Parameters with which it may go better."""
        super().__init__(message)


class EngineFailed(AtelierError):
    status = 500


class WorkerDied(AtelierError):
    status = 500

    def __init__(self, reason: str) -> None:
        self.reason = reason
        super().__init__(f"the engine process ended ({reason})")


class Busy(AtelierError):
    status = 503


class Conflict(AtelierError):
    status = 409


class Refused(AtelierError):
    status = 403


class ArchiveRefused(Refused):
    status = 422


def gist(error: BaseException) -> str:
    """What an error of a library says, in a line that names no place on this machine."""
    said = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    line = next(iter(said.strip().splitlines()), "")
    for place in _PLACES:
        line = place.sub("...", line)
    return line[:200] or type(error).__name__


_PLACES = (
    re.compile(r"""(?<=['"])(?:[A-Za-z]:)?[\\/].*?(?=['"])"""),
    # a name may have spaces: the rest of the line goes too
    re.compile(r"(?<![\w.:/<])(?:file:/*|(?:[A-Za-z]:)?[\\/]{1,2})[\w.~].*"),
)


def unforeseen(error: BaseException) -> str:
    """What is told of an error that nobody foresaw; logged with these words, its number finds all of it there."""
    said, kind = gist(error), type(error).__name__
    return f"{kind if said == kind else f'{kind}: {said}'}; the log says more at error {secrets.token_hex(4)}"


def blamed(extension: str, error: Exception) -> ExtensionFailed:
    """What the code of an extension with that title has raised: a ValueError is a sentence for people."""
    return ExtensionFailed(f"{extension}: {gist(error) if isinstance(error, ValueError) else unforeseen(error)}")
