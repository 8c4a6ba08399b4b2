"""The database: its tables, connections and migrations. SQLite in the data folder, another by its URL."""

import logging
import sqlite3
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy import Column, Connection, Dialect, Engine, ForeignKey, Index, Integer, Table, Text, UniqueConstraint
from sqlalchemy.engine import make_url

from backend.errors import Conflict, StorageFull

log = logging.getLogger(__name__)

MIGRATIONS = Path(__file__).with_name("migrations")
HEAD = "0002"
"""The newest migration."""
BUSY_SECONDS = 15
_WRITES = "atelier_writes"


class UtcTime(sa.types.TypeDecorator[datetime]):
    """A moment with its time zone, kept as UTC; SQLite has no type for it and keeps text that sorts by time."""

    impl = sa.DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        if value is None:
            return None
        value = value.astimezone(UTC)
        return value.replace(tzinfo=None) if dialect.name == "sqlite" else value

    def process_result_value(self, value: Any, dialect: Dialect) -> datetime | None:
        if isinstance(value, datetime):
            return value if value.tzinfo else value.replace(tzinfo=UTC)
        return None


metadata = sa.MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "fk": "fk_%(table_name)s_%(column_0_name)s",
        "pk": "pk_%(table_name)s",
    }
)

jobs = Table(
    "jobs",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("kind", Text, nullable=False),
    Column("queue", Text, nullable=False),
    Column("state", Text, nullable=False),
    Column("owner", Text, nullable=False),
    Column("priority", Integer, nullable=False),
    Column("request", sa.JSON, nullable=False),
    Column("parent", ForeignKey("jobs.id", ondelete="SET NULL")),
    Column("worker", Text),  # who holds the lease
    Column("lease", UtcTime),  # until when
    Column("stop", sa.Boolean, nullable=False),  # asked for while it runs
    Column("attempts", Integer, nullable=False),  # how often it was started
    Column("fruitless", Integer, nullable=False),  # of these, since it last delivered a picture
    Column("crashes", Integer, nullable=False),  # how often it ended its worker
    Column("error", Text),
    Column("created", UtcTime, nullable=False),
    Column("started", UtcTime),
    Column("finished", UtcTime),
    Index(None, "state", "queue", "priority", "id"),
    Index(None, "owner", "id"),
    sqlite_autoincrement=True,  # a number is never given twice: files are named after it
)

job_inputs = Table(
    "job_inputs",
    metadata,
    Column("job", ForeignKey("jobs.id", ondelete="CASCADE"), primary_key=True),
    Column("name", Text, primary_key=True),  # the request's field, dotted
    Column("sha256", Text, nullable=False),
    Index(None, "sha256"),
)

pictures = Table(
    "pictures",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("job", ForeignKey("jobs.id", ondelete="RESTRICT"), nullable=False),
    Column("index", Integer, nullable=False),
    Column("owner", Text, nullable=False),
    Column("path", Text, nullable=False),  # below the outputs folder, with /
    Column("sha256", Text, nullable=False),
    Column("bytes", Integer, nullable=False),
    Column("seed", sa.BigInteger, nullable=False),
    Column("width", Integer, nullable=False),
    Column("height", Integer, nullable=False),
    Column("infotext", Text, nullable=False),
    Column("request", sa.JSON, nullable=False),
    Column("parent", ForeignKey("pictures.id", ondelete="SET NULL")),  # the picture it was made from
    Column("created", UtcTime, nullable=False),
    Column("role", Text, nullable=False, server_default="picture"),  # backend.result.PictureRole
    UniqueConstraint("job", "index"),
    Index(None, "owner", "id"),
    Index(None, "sha256"),
    sqlite_autoincrement=True,
)

picture_sources = Table(
    "picture_sources",
    metadata,
    Column("picture", ForeignKey("pictures.id", ondelete="CASCADE"), primary_key=True),
    Column("role", Text, primary_key=True),  # backend.lineage.Role
    Column("name", Text, primary_key=True),
    Column("sha256", Text, nullable=False),
    Index(None, "sha256"),
)


def connect(url: str) -> Engine:
    """An engine for `url`; nothing is opened yet."""
    engine = sa.create_engine(url)
    if make_url(url).get_backend_name() == "sqlite":
        if sqlite3.sqlite_version_info < (3, 35):
            raise Conflict(f"this Python brings SQLite {sqlite3.sqlite_version}; 3.35 or newer is needed")
        sa.event.listen(engine, "connect", _set_up_sqlite)
        sa.event.listen(engine, "begin", _begin_sqlite)
    return engine


@contextmanager
def writing(engine: Engine) -> Iterator[Connection]:
    """A transaction that holds the write lock from its start: what it reads stays true until it ends.

    Raises StorageFull if the database cannot take it; nothing of it is kept then.
    """
    try:
        with engine.connect().execution_options(**{_WRITES: True}) as connection, connection.begin():
            yield connection
    except sa.exc.OperationalError as error:
        raise _explained(error) from error


def migrate(engine: Engine) -> None:
    """Bring the tables up to date; several processes may do so at once."""
    try:
        with engine.connect() as connection:
            if _revision(connection) == HEAD:  # spares the import of Alembic
                return
    except sa.exc.DatabaseError as error:
        raise _explained(error) from error
    logging.getLogger("alembic").setLevel(logging.WARNING)  # we say it in one line
    from alembic import command
    from alembic.config import Config
    from alembic.util import CommandError

    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS).replace("%", "%%"))
    try:
        with writing(engine) as connection:
            before = _revision(connection)
            config.attributes["connection"] = connection
            command.upgrade(config, "head")
    except CommandError as error:
        raise Conflict(
            f"the database was made by a newer Atelier (its tables are at {before}, this one knows {HEAD}); "
            "update Atelier, or start it with another --data-dir"
        ) from error
    log.info("database tables are at %s", HEAD)


def _revision(connection: Connection) -> str | None:
    if not sa.inspect(connection).has_table("alembic_version"):
        return None
    revision: str | None = connection.scalar(sa.text("SELECT version_num FROM alembic_version"))
    return revision


def _set_up_sqlite(connection: sqlite3.Connection, _: object) -> None:
    connection.isolation_level = None  # we begin transactions ourselves, so that they also hold DDL
    connection.execute(f"PRAGMA busy_timeout = {BUSY_SECONDS * 1000}")
    give_up = time.monotonic() + BUSY_SECONDS
    while True:
        try:
            connection.execute("PRAGMA journal_mode = WAL")
            break
        except sqlite3.OperationalError as error:  # does not wait for its turn by itself
            if "locked" not in str(error) or time.monotonic() > give_up:
                raise
            time.sleep(0.02)
    connection.execute("PRAGMA synchronous = FULL")  # NORMAL may lose the last commits when the power fails
    connection.execute("PRAGMA foreign_keys = ON")


def _begin_sqlite(connection: Connection) -> None:
    writes = connection.get_execution_options().get(_WRITES)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")


def _explained(error: sa.exc.DatabaseError) -> Exception:
    """The error in words where the disk is at fault."""
    text = str(error.orig)
    if "is locked" in text:
        return Conflict(f"the database has been busy for {BUSY_SECONDS} seconds: another program holds it")
    if "not a database" in text or "malformed" in text:
        return Conflict(f"the database is damaged ({text}); restore a copy of it, or move the file away")
    if any(sign in text for sign in ("full", "disk I/O", "readonly", "unable to open")):
        return StorageFull(f"the database could not be written ({text}); make room on its disk, or make it writable")
    return error
