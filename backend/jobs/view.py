"""A job as JSON, for REST and the WebSocket alike. Addresses are relative: a reverse proxy may add a prefix."""

import base64
from collections.abc import Sequence
from datetime import datetime
from typing import Any

from backend.gallery.index import Saved
from backend.jobs.pace import Moment
from backend.jobs.store import Job

THUMB = 256


def view(
    job: Job,
    progress: Moment | None = None,
    pictures: Sequence[Saved] = (),
    position: int | None = None,
    notices: Sequence[str] = (),
) -> dict[str, Any]:
    """All that a page shows of a job; `progress` if it runs, `position` if it waits (1 = next)."""
    preview = progress.preview if progress else None
    return {
        "id": job.id,
        "kind": job.kind,
        "state": job.state.value,
        "owner": job.owner,
        "created": _time(job.created),
        "started": _time(job.started),
        "finished": _time(job.finished),
        "request": job.request.model_dump(mode="json"),
        "position": position,
        "attempts": job.attempts,
        "error": job.error,
        "notices": list(notices),
        "progress": _progress(progress) if progress else None,
        "preview": f"data:image/webp;base64,{base64.b64encode(preview).decode()}" if preview else None,
        "pictures": [picture_view(picture) for picture in pictures if picture.role == "picture"],
        "maps": [picture_view(picture) for picture in pictures if picture.role == "map"],
    }


def picture_view(picture: Saved) -> dict[str, Any]:
    return {
        "id": picture.id,
        "job": picture.job,
        "index": picture.index,
        "role": picture.role,
        "seed": picture.seed,
        "width": picture.width,
        "height": picture.height,
        "url": f"img/{picture.id}",
        "thumb": f"thumbs/{picture.id}?s={THUMB}",
        "created": _time(picture.created),
        "infotext": picture.infotext,
    }


def _progress(moment: Moment) -> dict[str, Any]:
    at = moment.progress
    return {
        "stage": at.stage,
        "step": at.step,
        "steps": at.steps,
        "batch": at.batch,
        "batches": at.batches,
        "region": at.region,
        "fraction": round(moment.fraction, 4),
        "elapsed": round(moment.elapsed, 2),
        "eta": None if moment.eta is None else round(moment.eta, 2),
    }


def _time(moment: datetime | None) -> str | None:
    return moment.isoformat(timespec="milliseconds") if moment else None
