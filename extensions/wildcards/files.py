"""The files of wildcards: one alternative per line, `#` before a comment, `2::red` for one that is twice as likely."""

import difflib
import os
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

MAX_FILES = 20_000
MAX_BYTES = 8 * 2**20


class Files:
    """The `.txt` files in some folders and the folders in them; of two with one name, that of the first folder."""

    def __init__(self, folders: Sequence[Path]) -> None:
        self._folders = folders
        self._lines: dict[str, list[str]] = {}

    @cached_property
    def names(self) -> dict[str, Path]:
        """Each file by its path in its folder, without the ending: `colour`, `clothes/hats`."""
        found: dict[str, Path] = {}
        for folder in self._folders:
            for place, folders, files in os.walk(folder):
                folders[:] = sorted(name for name in folders if not name.startswith("."))
                for file in sorted(files):
                    path = Path(place, file)
                    if path.suffix == ".txt" and not file.startswith("."):
                        found.setdefault(path.relative_to(folder).with_suffix("").as_posix(), path)
                if len(found) > MAX_FILES:
                    raise ValueError(f"there are more than {MAX_FILES} files of wildcards in {folder.name}")
        return found

    def lines(self, name: str) -> list[str]:
        """What `name` stands for: a path, in which each `*` is any number of characters.

        Raises ValueError if there is no such file, or nothing in it.
        """
        if name not in self._lines:
            matching = [known for known in self.names if _matches(name, known)] if "*" in name else [name]
            if not matching or matching[0] not in self.names:
                raise ValueError(f"there is no wildcard __{name}__{self._hint(name)}")
            lines = [line for known in matching for line in _read(self.names[known])]
            if not lines:
                raise ValueError(f"there is nothing in the wildcard __{name}__")
            self._lines[name] = lines
        return self._lines[name]

    def _hint(self, name: str) -> str:
        near = difflib.get_close_matches(name, list(self.names)[:5000], 5, 0.5) or sorted(self.names)[:10]
        return f"; there are {', '.join(f'__{known}__' for known in near)}" if near else ""


def _matches(pattern: str, name: str) -> bool:
    """Linear, however many stars there are."""
    first, *middle, last = pattern.split("*")
    if len(name) < len(first) + len(last) or not (name.startswith(first) and name.endswith(last)):
        return False
    at, end = len(first), len(name) - len(last)
    for part in middle:
        found = name.find(part, at, end)
        if found < 0:
            return False
        at = found + len(part)
    return True


def _read(path: Path) -> list[str]:
    try:
        if path.stat().st_size > MAX_BYTES:
            raise ValueError(f"{path.name} is larger than {MAX_BYTES // 2**20} MB")
        text = path.read_text("utf-8-sig")
    except UnicodeDecodeError:
        raise ValueError(f"{path.name} is not UTF-8 text") from None
    except OSError as error:
        raise ValueError(f"{path.name} cannot be read: {error.strerror}") from None
    lines = (line.strip() for line in text.split("\n"))
    return [line for line in lines if line and not line.startswith("#")]
