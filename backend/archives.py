"""A zip that somebody brings, unpacked so that nothing leads out of its folder and nothing grows without measure."""

import lzma
import re
import stat
import zipfile
import zlib
from collections.abc import Collection
from pathlib import Path, PurePosixPath
from typing import IO, NamedTuple

from backend.errors import ArchiveRefused

_RESERVED = r"(?i)(con|prn|aux|nul|com\d|lpt\d)(\..*)?"


LISTED = 4
"""Times as many files as are taken may be in a zip's list, for those that are skipped: the list is read as a whole."""
_ENTRY = b"PK\x01\x02"


class Limits(NamedTuple):
    """What a zip may hold at most."""

    files: int
    bytes: int
    ratio: int = 200
    """How much larger than the zip its content may be."""


def unpack(archive: Path, into: Path, limits: Limits, skipped: Collection[str] = ()) -> None:
    """Every file of a zip but those below a name in `skipped`, once its whole list has been found harmless.

    Raises ArchiveRefused.
    """
    if (listed := _listed(archive)) > LISTED * limits.files:
        raise ArchiveRefused(f"the zip lists {listed} files; at most {limits.files} are taken")
    try:
        with zipfile.ZipFile(archive) as zipped:
            members = [m for m in zipped.infolist() if not {*skipped} & {*PurePosixPath(m.filename).parts}]
            _check_members(members, archive.stat().st_size, limits)
            for member in members:
                target = into.joinpath(*PurePosixPath(member.filename).parts)
                if member.is_dir():
                    target.mkdir(parents=True, exist_ok=True)
                    continue
                target.parent.mkdir(parents=True, exist_ok=True)
                with zipped.open(member) as stream, open(target, "xb") as file:
                    _pour(stream, file, member)
    except (zipfile.BadZipFile, NotImplementedError, RuntimeError, EOFError, UnicodeError) as error:
        raise ArchiveRefused(f"{archive.name} is not a zip that can be read ({error})") from None
    except (FileExistsError, NotADirectoryError, IsADirectoryError) as error:
        raise ArchiveRefused(f"the zip holds two things of one name ({Path(str(error.filename)).name})") from None


def _listed(archive: Path) -> int:
    """How many entries a zip's list has, by their signatures: the list of a large one takes ten times its memory."""
    count, end = 0, b""
    with open(archive, "rb") as file:
        while block := file.read(1 << 20):
            count += (end + block).count(_ENTRY)
            end = block[-len(_ENTRY) + 1 :]
    return count


def _check_members(members: list[zipfile.ZipInfo], packed: int, limits: Limits) -> None:
    if len(members) > limits.files:
        raise ArchiveRefused(f"the zip holds {len(members)} files; at most {limits.files} are taken")
    size = sum(m.file_size for m in members)
    if size > limits.bytes or size > max(packed, 2**16) * limits.ratio:
        raise ArchiveRefused(f"unpacked the zip would have {size / 2**20:.0f} MB; that is too much")
    seen: set[str] = set()
    for member in members:
        name = check_name(member.filename)
        kind = stat.S_IFMT(member.external_attr >> 16)
        if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
            raise ArchiveRefused(f"the zip holds a link or a device: {name}")
        if member.flag_bits & 1:
            raise ArchiveRefused("the zip is encrypted")
        if name.rstrip("/").casefold() in seen:
            raise ArchiveRefused(f"the zip holds {name} twice")
        seen.add(name.rstrip("/").casefold())


def check_name(name: str) -> str:
    """`name` if it stays inside the folder that it is unpacked into, on every system; raises ArchiveRefused."""
    parts = name.removesuffix("/").split("/")
    harmless = all(p not in ("", ".", "..") and not p.endswith((" ", ".")) for p in parts)
    if not harmless or re.search(r'[\\:*?"<>|\x00-\x1f\x7f]', name) or len(name) > 240:
        raise ArchiveRefused(f"the zip holds a file with a bad name: {name[:100]!r}")
    if any(re.fullmatch(_RESERVED, p) for p in parts):
        raise ArchiveRefused(f"the zip holds a name that Windows keeps for itself: {name[:100]!r}")
    return name


def _pour(stream: IO[bytes], file: IO[bytes], member: zipfile.ZipInfo) -> None:
    left = member.file_size  # what it promised; more is a lie
    while block := _read(stream):
        left -= len(block)
        if left < 0:
            raise ArchiveRefused(f"the zip says {member.file_size} bytes for {member.filename}, and holds more")
        file.write(block)


def _read(stream: IO[bytes]) -> bytes:
    try:
        return stream.read(1 << 20)
    except (zlib.error, lzma.LZMAError, OSError) as error:  # the last is bzip2's
        raise zipfile.BadZipFile(str(error)) from None
