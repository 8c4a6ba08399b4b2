"""What is known of files that were read before: what their headers say, and their hashes. It may be deleted.

A SQLite file of its own, since the page's process and the engine's both write to it. A row holds as long as the file
has the size and the time that it had.
"""

import json
import logging
import os
import sqlite3
import threading
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import pydantic_core

log = logging.getLogger(__name__)
T = TypeVar("T")

VERSION = 6
"""Of what headers are taken to say: another one, and they are read again. Hashes stay."""
PATIENCE = 15
"""Seconds to wait for another process that writes."""
FORGETS = 20_000
"""Rows of files that are gone, from which on they are dropped."""
_TABLES = """
CREATE TABLE IF NOT EXISTS headers (path BLOB PRIMARY KEY, stamp TEXT NOT NULL, facts TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS hashes (path BLOB PRIMARY KEY, stamp TEXT NOT NULL, sha256 TEXT NOT NULL) WITHOUT ROWID;
"""


class Row(NamedTuple):
    stamp: str
    facts: str
    """JSON."""

    def read(self) -> dict[str, Any]:
        facts: dict[str, Any] = pydantic_core.from_json(self.facts)
        return facts


class Index:
    def __init__(self, path: Path | None = None, version: int = VERSION) -> None:
        """Without a path it is kept in memory only."""
        self._path = path
        self._version = version
        self._lock = threading.RLock()
        self._connection: sqlite3.Connection | None = None

    def headers(self) -> dict[str, Row]:
        rows = self._run(lambda connection: connection.execute("SELECT path, stamp, facts FROM headers").fetchall())
        return {os.fsdecode(path): Row(stamp, facts) for path, stamp, facts in rows}

    def keep_headers(self, rows: Mapping[str, tuple[str, Any]], gone: Iterable[str] = ()) -> None:
        """Stamp and facts by path; forget those that are `gone`."""
        written = [(os.fsencode(path), stamp, json.dumps(facts)) for path, (stamp, facts) in rows.items()]
        forgotten = [(os.fsencode(path),) for path in gone]

        def keep(connection: sqlite3.Connection) -> None:
            connection.executemany("INSERT OR REPLACE INTO headers VALUES (?, ?, ?)", written)
            connection.executemany("DELETE FROM headers WHERE path = ?", forgotten)

        self._write(keep)

    def hashes(self) -> dict[str, tuple[str, str]]:
        """Stamp and SHA-256 by path."""
        rows = self._run(lambda connection: connection.execute("SELECT path, stamp, sha256 FROM hashes").fetchall())
        return {os.fsdecode(path): (stamp, sha256) for path, stamp, sha256 in rows}

    def hash_of(self, path: str, stamp: str) -> str:
        """Empty: not known."""
        query = "SELECT sha256 FROM hashes WHERE path = ? AND stamp = ?"
        row = self._run(lambda connection: connection.execute(query, (os.fsencode(path), stamp)).fetchone())
        return str(row[0]) if row else ""

    def keep_hash(self, path: str, stamp: str, sha256: str) -> None:
        row = os.fsencode(path), stamp, sha256
        self._write(lambda connection: connection.execute("INSERT OR REPLACE INTO hashes VALUES (?, ?, ?)", row))

    def _write(self, work: Callable[[sqlite3.Connection], object]) -> None:
        try:
            self._run(work)
        except sqlite3.OperationalError as error:  # the disk is full, or another process takes long
            log.warning("what was read of models is not kept: %s", error)

    def _run(self, work: Callable[[sqlite3.Connection], T]) -> T:
        """In a transaction. A damaged file is begun anew."""
        with self._lock:
            try:
                with self._connected() as connection:
                    return work(connection)
            except sqlite3.OperationalError:
                raise
            except sqlite3.DatabaseError as error:
                if self._connection:
                    self._connection.close()
                    self._connection = None
                self._discard(error)
                with self._connected() as connection:
                    return work(connection)

    def _connected(self) -> sqlite3.Connection:
        if self._connection is None:
            try:
                self._connection = _connect(self._path, self._version)
            except (OSError, sqlite3.OperationalError) as error:
                log.warning("what is read of models is not kept in %s: %s", self._path, error)
                self._connection = _connect(None, self._version)
        return self._connection

    def _discard(self, error: Exception) -> None:
        assert self._path
        log.warning("%s is damaged (%s) and is begun anew", self._path, error)
        for ending in ("", "-wal", "-shm"):
            self._path.with_name(self._path.name + ending).unlink(missing_ok=True)


def _connect(path: Path | None, version: int) -> sqlite3.Connection:
    if path:
        path.parent.mkdir(parents=True, exist_ok=True)
    connection = sqlite3.connect(path or ":memory:", timeout=PATIENCE, check_same_thread=False)
    try:
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = NORMAL")
        with connection:
            if connection.execute("PRAGMA user_version").fetchone()[0] != version:
                connection.execute("DROP TABLE IF EXISTS headers")
                connection.execute(f"PRAGMA user_version = {version}")
            connection.executescript(_TABLES)
    except BaseException:
        connection.close()
        raise
    return connection
