"""What `extensions new` makes. The template beside this file is an extension that works as it stands."""

import keyword
import os
import re
import shutil
import tempfile
from pathlib import Path

from backend.errors import Conflict, InvalidRequest, Problem, Refused
from backend.manifest import BUILTIN, ID

TEMPLATE = Path(__file__).parent / "my_thing"
_TAKEN = {"Any", "Extension", "Image", "Param", "Params"}
"""Names that the template imports."""


def create(extensions: Path, id: str, title: str = "") -> Path:
    """Make the extension `id` in the folder `extensions`; its folder. Raises InvalidRequest, Refused or Conflict."""
    if not re.fullmatch(ID, id):
        message = f"{id[:70]!r} is not an id: small letters, digits, - and _, a letter first"
        raise InvalidRequest(Problem("", message))
    if id in BUILTIN:
        raise Refused(f"{id} is the name of one of Atelier's own extensions")
    if (extensions / id).exists():
        raise Conflict(f"there is a folder {id} in {extensions} already")
    words = re.split(r"[-_]+", id.strip("-_"))
    title = " ".join(re.sub(r'["\\]', "", title or " ".join(words)).split())[:80]
    names = {"MyThing": _class("".join(w.capitalize() for w in words)), "My thing": title[:1].upper() + title[1:]}
    extensions.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".staging-", dir=extensions) as staging:
        new = Path(staging, id)
        shutil.copytree(TEMPLATE, new, ignore=shutil.ignore_patterns("__pycache__", ".*"))
        for path in [p for p in new.rglob("*") if p.is_file()]:
            text = path.read_text("utf-8")
            for old, name in {**names, "my_thing": id}.items():
                text = text.replace(old, name)
            path.write_text(text, "utf-8")
            path.rename(path.with_name(path.name.replace("my_thing", id.replace("-", "_"))))
        os.replace(new, extensions / id)
    return extensions / id


def _class(name: str) -> str:
    return f"My{name}" if name in _TAKEN or keyword.iskeyword(name) else name
