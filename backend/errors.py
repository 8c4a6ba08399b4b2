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
