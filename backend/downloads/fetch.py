"""One file, fetched to `<name>.part` and on from where it was broken off: whole and what it should be, or it fails."""

import errno
import hashlib
import http.client
import os
import re
import shutil
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from backend import weights
from backend.consents import is_pickle
from backend.downloads.network import Answer, Network, check_status, host_of
from backend.errors import DownloadFailed, StorageFull

BLOCK = 2**20
SPARE = 2**28
"""Bytes that are left free on the disk."""
LARGEST = 512 * 2**30
"""Bytes of a file."""
SLOWEST = 1024
"""Bytes a second, over as long as the network is patient, below which a server is given up."""
TRIES = 4
"""How often in a row a broken line is taken up that has brought less than GAIN."""
GAIN = 2**16
"""Bytes."""
TEXTS = (".json", ".txt", ".model")
"""What lies beside the weights in a folder."""
LARGEST_TEXT = 64 * 2**20
"""Bytes of one of these."""


@dataclass(frozen=True)
class File:
    """What is to be fetched."""

    name: str
    """Below the place that it is installed at, with `/`."""
    url: str
    size: int | None = None
    """Bytes, where the source says so."""
    sha256: str = ""

    @property
    def suffix(self) -> str:
        return Path(self.name).suffix.lower()


Told = Callable[[int, int], None]
"""Bytes that are here, and of how many; raises to stop."""


def fetch(network: Network, file: File, part: Path, told: Told, pause: Callable[[float], None] = time.sleep) -> None:
    """Bring `part` to be the whole file. Raises DownloadFailed, Refused, StorageFull, and what `told` raises.

    What is there stays for the next time, unless it has turned out to be wrong.
    """
    part.parent.mkdir(parents=True, exist_ok=True)
    left = TRIES
    while True:
        before = _size(part)
        try:
            digest = _continue(network, file, part, told)
            break
        except _BrokenOff as error:
            left = TRIES if _size(part) - before >= GAIN else left - 1
            if not left:
                raise DownloadFailed(f"{host_of(file.url)} breaks off: {error}; what has come is kept") from None
            pause(2.0 ** (TRIES - left))
    try:
        if file.sha256:
            check_digest(file.name, digest, file.sha256)
        check_content(part, file.name)
    except DownloadFailed:
        discard(part)
        raise
    _tag_of(part).unlink(missing_ok=True)


def discard(part: Path) -> None:
    part.unlink(missing_ok=True)
    _tag_of(part).unlink(missing_ok=True)


def check_digest(name: str, found: str, wanted: str) -> None:
    """Raises DownloadFailed."""
    if found != wanted.lower():
        raise DownloadFailed(f"{name} is not what it should be: its SHA-256 is {found[:16]}..., not {wanted[:16]}...")


def check_content(path: Path, name: str) -> None:
    """Whether a whole file is what its name says; nothing of it is run. Raises DownloadFailed."""
    suffix = Path(name).suffix.lower()
    with open(path, "rb") as stream:
        begin = stream.read(512)
    if suffix == ".safetensors":
        try:
            header = weights.read(path)
        except weights.BrokenFile as error:
            raise DownloadFailed(f"{name} {error}{_page(begin)}") from None
        if not header.entries or header.size != path.stat().st_size:
            raise DownloadFailed(f"{name} is no model: its size is not what its header says")
    elif suffix == ".gguf":
        if not begin.startswith(b"GGUF"):
            raise DownloadFailed(f"{name} is no GGUF file{_page(begin)}")
    elif is_pickle(Path(name)):
        if not begin.startswith((b"PK\x03\x04", b"\x80")):
            raise DownloadFailed(f"{name} is no model{_page(begin)}")
    elif suffix not in TEXTS:
        raise DownloadFailed(f"{name} is no model: files that end in {suffix or 'nothing'} are not taken")


class _BrokenOff(Exception):
    """The line broke; another try may go on."""


def _continue(network: Network, file: File, part: Path, told: Told) -> str:
    """Fetch what is lacking; the SHA-256 of the whole."""
    have, tag = _size(part), _read(_tag_of(part))
    if file.size is not None and have > file.size:
        discard(part)
        have = 0
    if have and have == file.size:
        with open(part, "rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()
    headers = {"Range": f"bytes={have}-"} | ({"If-Range": tag} if tag else {}) if have else {}
    with network.open(file.url, headers) as answer:
        if answer.status == 416:  # what is here is not a beginning of what is there now
            discard(part)
            raise _BrokenOff("it has something else now")
        check_status(answer)
        first = _first_byte(answer)
        if first != (have if answer.status == 206 else 0):
            raise DownloadFailed(f"{host_of(answer.url)} sends another part than the one that was asked for")
        total = _total(file, answer, first)
        _check_room(file, part, (total or 0) - first)
        _keep_tag(part, answer)
        try:
            with open(part, "r+b" if first else "w+b") as stream:
                return _pour(network, file, answer, stream, first, total, told)
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
                raise _full(file, part) from None
            slow = isinstance(error, TimeoutError)
            raise _BrokenOff("it sends nothing any more" if slow else error.strerror or str(error)) from None
        except http.client.HTTPException:
            raise _BrokenOff("not all came") from None


def _pour(
    network: Network, file: File, answer: Answer, stream: BinaryIO, first: int, total: int | None, told: Told
) -> str:
    host = host_of(answer.url)
    digest = hashlib.sha256()
    while first > stream.tell():
        digest.update(stream.read(min(BLOCK, first - stream.tell())))
    stream.truncate()
    done, is_known = first, file.suffix != ".safetensors"
    since, then = time.monotonic(), done
    try:
        while total is None or done < total:
            block = answer.body.read1(_amount(done, total))
            if not block:
                break
            stream.write(block)
            digest.update(block)
            done += len(block)
            if not is_known and (size := _announced(file, stream, total)):
                total, is_known = size, True
            if total is not None and done > total:
                raise _wrong(f"{host} sends more than it said; {file.name} is not kept", stream)
            told(done, total or 0)
            if (passed := time.monotonic() - since) > network.patience:
                if done - then < SLOWEST * passed:
                    raise _BrokenOff("it hardly sends anything any more")
                since, then = time.monotonic(), done
    finally:
        with suppress(OSError):  # what the disk refuses has been said
            stream.flush()
            os.fsync(stream.fileno())
    if total is not None and done < total:
        raise _BrokenOff(f"{done} of {total} bytes came")
    return digest.hexdigest()


def _amount(done: int, total: int | None) -> int:
    """One byte more than was promised would be noticed."""
    return BLOCK if total is None else min(BLOCK, total - done + 1)


def _announced(file: File, stream: BinaryIO, total: int | None) -> int:
    """How large a safetensors file is by its own header, once that has come; 0: it has not.

    Raises DownloadFailed as soon as it is clear that this is no model, or not as large as the server says.
    """
    have = stream.tell()
    try:
        stream.seek(0)
        begin = stream.read(weights.LENGTH)
        if have < weights.LENGTH or have < weights.LENGTH + weights.header_length(begin, total or LARGEST):
            return 0
        header = weights.parse(stream.read(int.from_bytes(begin, "little")), total or LARGEST)
    except weights.BrokenFile as error:
        stream.seek(0)
        raise _wrong(f"{file.name} {error}{_page(stream.read(512))}", stream) from None
    finally:
        stream.seek(have)
    if total is not None and header.size != total:
        raise _wrong(f"{file.name} is no model: its size is not what its header says", stream)
    return header.size


def _wrong(message: str, stream: BinaryIO) -> DownloadFailed:
    """The failure of a file of which nothing is worth keeping."""
    stream.truncate(0)
    return DownloadFailed(message)


def _total(file: File, answer: Answer, first: int) -> int | None:
    """Bytes of the whole file. Raises DownloadFailed where source and server disagree."""
    host = host_of(answer.url)
    length = answer.length
    if length is None:
        if file.size is None and file.suffix != ".safetensors":
            raise DownloadFailed(f"{host} does not say how large {file.name} is")
        return file.size
    total = first + length
    if file.size is not None and total != file.size:
        raise DownloadFailed(f"{host} has {total} bytes for {file.name}, where {file.size} were announced")
    if total > LARGEST or (file.suffix in TEXTS and total > LARGEST_TEXT):
        raise DownloadFailed(f"{file.name} would have {total >> 20} MB; that is too much")
    return total


def _first_byte(answer: Answer) -> int:
    if answer.status != 206:
        return 0
    match = re.match(r"bytes (\d{1,15})-", answer.headers.get("content-range", ""))
    return int(match[1]) if match else -1


def _check_room(file: File, part: Path, lacking: int) -> None:
    if shutil.disk_usage(part.parent).free < lacking + SPARE:
        raise _full(file, part, f"{lacking >> 20} MB are needed")


def _full(file: File, part: Path, why: str = "what has come is kept") -> StorageFull:
    return StorageFull(f"the disk has no room for {file.name}: {why}; make room in {part.parent}")


def _keep_tag(part: Path, answer: Answer) -> None:
    """By which the server knows whether it still has the same file."""
    tag = answer.headers.get("etag", "")
    if tag and not tag.startswith("W/"):
        _tag_of(part).write_text(tag[:300], "utf-8")


def _tag_of(part: Path) -> Path:
    return part.with_name(part.name + ".tag")


def _read(path: Path) -> str:
    return path.read_text("utf-8").strip() if path.exists() else ""


def _size(part: Path) -> int:
    return part.stat().st_size if part.exists() else 0


def _page(begin: bytes) -> str:
    return " (it is a web page)" if begin.lstrip().lower().startswith((b"<!doctype", b"<html")) else ""
