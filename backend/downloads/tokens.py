"""The tokens that tell Hugging Face and Civitai who asks: in the settings, or in files that only this user can read.

Nothing here ever gives one to the page or the log; `Network` sends each to its own host alone.
"""

import os
import re
import secrets
from collections.abc import Mapping
from pathlib import Path

from pydantic import SecretStr

from backend.downloads.network import Tokens
from backend.errors import NotFound, Refused
from backend.settings import Settings

HOSTS = {"huggingface": "huggingface.co", "civitai": "civitai.com"}
"""By the names that settings and files have for them."""


def known(settings: Settings) -> Mapping[str, bool]:
    """Which there are."""
    return {name: _read(settings, name) is not None for name in HOSTS}


def of(settings: Settings) -> Tokens:
    found = {host: _read(settings, name) for name, host in HOSTS.items()}
    return {host: token for host, token in found.items() if token}


def save(settings: Settings, name: str, token: SecretStr) -> None:
    """Keep it, or forget it if it is empty. Raises NotFound or Refused."""
    if name not in HOSTS:
        raise NotFound(f"{name[:40]!r} has no tokens; {' and '.join(HOSTS)} have")
    path = _path(settings, name)
    text = token.get_secret_value().strip()
    if not text:
        path.unlink(missing_ok=True)
        return
    if not re.fullmatch(r"[\x21-\x7e]{8,512}", text):
        raise Refused("this is no token: it has 8 to 512 letters and digits, and no spaces")
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    with open(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="ascii") as file:
        file.write(text)
    os.replace(temporary, path)


def _read(settings: Settings, name: str) -> SecretStr | None:
    given: SecretStr | None = getattr(settings, f"{name}_token")
    if given and given.get_secret_value():
        return given
    try:
        text = _path(settings, name).read_text("ascii").strip()
    except (FileNotFoundError, UnicodeDecodeError):
        return None
    return SecretStr(text) if text else None


def _path(settings: Settings, name: str) -> Path:
    return settings.data_dir / "secrets" / f"{name}.token"
