"""The rows that find pictures: by number, by job, newest first."""

from collections.abc import Collection, Iterable
from dataclasses import dataclass, fields
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path
from typing import Any, Protocol

import sqlalchemy as sa
from sqlalchemy import Connection, Engine

from backend import lineage
from backend.database import picture_sources, pictures, writing
from backend.errors import NotFound
from backend.gallery.save import save, tidy
from backend.gallery.thumbs import Thumbs
from backend.lineage import Source
from backend.request import GenerationRequest
from backend.result import Picture, PictureRole


class Origin(Protocol):
    """The job that a picture comes from."""

    @property
    def id(self) -> int: ...
    @property
    def owner(self) -> str: ...
    @property
    def created(self) -> datetime: ...
    @property
    def request(self) -> GenerationRequest: ...


@dataclass(frozen=True)
class Saved:
    """A picture in the gallery."""

    id: int
    job: int
    index: int
    role: PictureRole
    owner: str
    path: str
    """Below the outputs folder."""
    sha256: str
    """Of the file; the name that an ImageStore gives it."""
    bytes: int
    seed: int
    width: int
    height: int
    infotext: str
    request: dict[str, Any]
    """That recreates this one picture."""
    parent: int | None
    """The picture it was made from."""
    created: datetime


class Gallery:
    def __init__(self, engine: Engine, outputs: Path, thumbs: Path) -> None:
        self.outputs = outputs
        self._engine = engine
        self._thumbs = Thumbs(thumbs)

    def add(self, job: Origin, picture: Picture) -> Saved:
        """Keep a finished picture: first the file, then the row. The same one a second time changes nothing.

        Raises StorageFull with neither kept.
        """
        if saved := self._find(job.id, picture.index):
            return saved
        path = save(self.outputs, job.id, job.created, picture)
        try:
            with writing(self._engine) as connection:
                return self._insert(connection, job, picture, path)
        except BaseException as error:
            saved = self._find(job.id, picture.index) if isinstance(error, sa.exc.IntegrityError) else None
            if saved:  # another process was quicker
                return saved
            (self.outputs / path).unlink(missing_ok=True)
            raise

    def tidy(self, job: Origin) -> None:
        """Remove the half-written files that a killed attempt at the job has left."""
        tidy(self.outputs, job.id, job.created)

    def get(self, picture_id: int) -> Saved:
        found = self._select(pictures.c.id == picture_id)
        if not found:
            raise NotFound(f"there is no picture {picture_id}")
        return found[0]

    def of(self, job_id: int) -> list[Saved]:
        """The pictures of a job, by index."""
        return self._select(pictures.c.job == job_id, order=pictures.c.index)

    def of_all(self, job_ids: Iterable[int]) -> dict[int, list[Saved]]:
        """The pictures of several jobs, each by index; every job has a list."""
        ids = list(job_ids)
        found: dict[int, list[Saved]] = {job_id: [] for job_id in ids}
        for saved in self._select(pictures.c.job.in_(ids), order=pictures.c.index):
            found[saved.job].append(saved)
        return found

    def recent(self, owner: str | None = None, before: int | None = None, limit: int = 60) -> list[Saved]:
        """Newest first; the next page begins `before` the last one's id."""
        conditions = []
        if owner is not None:
            conditions.append(pictures.c.owner == owner)
        if before is not None:
            conditions.append(pictures.c.id < before)
        return self._select(*conditions, order=pictures.c.id.desc(), limit=limit)

    def sources(self, picture_id: int) -> list[Source]:
        """The images and models that the picture was made from."""
        columns = (picture_sources.c.role, picture_sources.c.name, picture_sources.c.sha256)
        query = sa.select(*columns).where(picture_sources.c.picture == picture_id).order_by(*columns)
        with self._engine.connect() as connection:
            return [Source(*row) for row in connection.execute(query)]

    def path(self, saved: Saved) -> Path:
        """Its file; raises NotFound if somebody has moved it."""
        path = self.outputs / saved.path
        if not path.is_file():
            raise NotFound(f"the file of picture {saved.id} is gone: {saved.path}")
        return path

    def thumb(self, saved: Saved, size: int) -> bytes:
        """A WebP of at most `size` pixels a side, one of `thumbs.SIZES`."""
        return self._thumbs.of(self.path(saved), saved.sha256, size)

    def _find(self, job_id: int, index: int) -> Saved | None:
        found = self._select(pictures.c.job == job_id, pictures.c.index == index)
        return found[0] if found else None

    def _select(
        self, *conditions: sa.ColumnElement[bool], order: Any = pictures.c.id, limit: int | None = None
    ) -> list[Saved]:
        query = sa.select(pictures).where(*conditions).order_by(order).limit(limit)
        with self._engine.connect() as connection:
            return [_saved(row) for row in connection.execute(query)]

    def _insert(self, connection: Connection, job: Origin, picture: Picture, path: Path) -> Saved:
        sources = lineage.sources(picture)
        begun = {s.sha256 for s in sources if s.role == "init_image"} | {job.request.init_image or ""}
        parent = self._made_here(connection, begun)  # what it was drawn from may be made of what was asked for
        row = connection.execute(
            sa.insert(pictures)
            .values(
                {
                    "job": job.id,
                    "index": picture.index,
                    "role": picture.role,
                    "owner": job.owner,
                    "path": path.as_posix(),
                    "sha256": sha256(picture.data).hexdigest(),
                    "bytes": len(picture.data),
                    "seed": picture.request.seed,
                    "width": picture.width,
                    "height": picture.height,
                    "infotext": picture.infotext,
                    "request": picture.request.model_dump(mode="json"),
                    "parent": parent.id if parent else None,
                    "created": datetime.now(UTC),
                }
            )
            .returning(pictures)
        ).one()
        if parent:
            sources.append(Source("parent", parent.path, parent.sha256))
        if sources:
            connection.execute(sa.insert(picture_sources), [{"picture": row.id, **s._asdict()} for s in sources])
        return _saved(row)

    def _made_here(self, connection: Connection, hashes: Collection[str]) -> sa.Row[Any] | None:
        """The picture whose file is one of these input images."""
        query = sa.select(pictures).where(pictures.c.sha256.in_(hashes)).order_by(pictures.c.id.desc()).limit(1)
        return connection.execute(query).one_or_none()


def _saved(row: sa.Row[Any]) -> Saved:
    return Saved(**{field.name: row._mapping[field.name] for field in fields(Saved)})
