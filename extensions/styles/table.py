"""A1111's styles.csv: a name, a prompt and a negative prompt in each row."""

import csv
import difflib
import io
import threading
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated

from pydantic import StringConstraints, ValidationError

from backend.extension import MAX_PROMPT, NotFound, Params, write_atomically

MAX_STYLES = 2000
MAX_BYTES = 8 * 2**20
Name = Annotated[
    str, StringConstraints(strip_whitespace=True, min_length=1, max_length=100, pattern=r"^[^\x00-\x1f]*$")
]
Text = Annotated[str, StringConstraints(max_length=MAX_PROMPT)]
PLACE = "{prompt}"
_COLUMNS = ("name", "prompt", "negative_prompt")


class Style(Params):
    name: Name
    prompt: Text = ""
    negative_prompt: Text = ""


def merged(style: str, prompt: str) -> str:
    """`style` with the prompt in its placeholder; without one, behind the prompt."""
    places = style.count(PLACE)
    more = places * (len(prompt) - len(PLACE)) if places else len(prompt) + 2
    if len(style) + more > MAX_PROMPT:
        raise ValueError(f"with its styles the prompt has more than {MAX_PROMPT} characters")
    if places:
        return style.replace(PLACE, prompt)
    return ", ".join(part for part in (prompt.strip(), style.strip()) if part)


class Table:
    """The styles in one file, by name."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = threading.Lock()

    def read(self) -> dict[str, Style]:
        """Raises ValueError if the file makes no sense; without a file there are no styles."""
        try:
            if self._path.stat().st_size > MAX_BYTES:
                raise ValueError(f"{self._path.name} is larger than {MAX_BYTES // 2**20} MB")
            text = self._path.read_text("utf-8-sig")
        except FileNotFoundError:
            return {}
        except UnicodeDecodeError:
            raise ValueError(f"{self._path.name} is not UTF-8 text") from None
        except OSError as error:
            raise ValueError(f"{self._path.name} cannot be read: {error.strerror}") from None
        try:
            rows = csv.DictReader(io.StringIO(text, newline=""))
            if rows.fieldnames and "name" not in rows.fieldnames:
                raise ValueError(f"{self._path.name} has no column name in its first line")
            styles = [_style(row) for row in rows if (row["name"] or "").strip()]
        except csv.Error as error:
            raise ValueError(f"{self._path.name} is not a table: {error}") from None
        except ValidationError as error:
            wrong = error.errors()[0]
            value = str(wrong["input"])[:40]
            raise ValueError(f"{self._path.name}: the {wrong['loc'][0]} {value!r}: {wrong['msg']}") from None
        return {style.name: style for style in styles}

    def choose(self, names: Iterable[str]) -> list[Style]:
        """Raises ValueError, with names that are near, if one is not there."""
        styles = self.read()
        for name in names:
            if name not in styles:
                near = difflib.get_close_matches(name, styles, 5, 0.5) or list(styles)[:10]
                raise ValueError(f"there is no style {name!r}" + (f"; there are {', '.join(near)}" if near else ""))
        return [styles[name] for name in names]

    def put(self, style: Style) -> None:
        with self._lock:
            styles = self.read()
            if len(styles) >= MAX_STYLES and style.name not in styles:
                raise ValueError(f"there are {MAX_STYLES} styles already; delete one first")
            self._write({**styles, style.name: style})

    def remove(self, name: str) -> None:
        with self._lock:
            styles = self.read()
            if name not in styles:
                raise NotFound(f"there is no style {name[:100]!r}")
            self._write({key: style for key, style in styles.items() if key != name})

    def _write(self, styles: dict[str, Style]) -> None:
        text = io.StringIO()
        rows = csv.DictWriter(text, _COLUMNS)
        rows.writeheader()
        rows.writerows(style.model_dump() for style in styles.values())
        self._path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(self._path, text.getvalue().encode("utf-8-sig"))


def _style(row: dict[str, str | None]) -> Style:
    """A row; old files call the prompt text."""
    texts = {"prompt": row.get("prompt") or row.get("text"), "negative_prompt": row.get("negative_prompt")}
    return Style(name=row["name"] or "", **{key: text for key, text in texts.items() if text})
