"""Where an extension is installed from: a git address, a zip or a folder, each brought into a folder and checked.

Nothing of it runs: git neither checks anything out nor fetches submodules, and has no hooks; its commit is written as
a zip and unpacked by the same code as a zip that a person brings.
"""

import os
import re
import shutil
import stat
import subprocess
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from urllib.parse import urlsplit

from backend import archives
from backend.archives import Limits
from backend.errors import Refused
from backend.manifest import FILE, PACKAGES, ManifestError

LIMITS = Limits(files=2000, bytes=200 * 2**20)
GIT_SCHEMES: Collection[str] = ("https",)
GIT_LIMIT = 300.0
"""Seconds."""
_SKIPPED = {".git", "__pycache__", ".venv", ".pytest_cache", ".mypy_cache", ".ruff_cache", PACKAGES}
_REF = r"[0-9A-Za-z][0-9A-Za-z._/+-]{0,200}"


@dataclass(frozen=True)
class Git:
    url: str
    ref: str = ""
    """A branch, tag or commit; empty: what the address shows first."""


@dataclass(frozen=True)
class Zip:
    path: Path


@dataclass(frozen=True)
class Folder:
    path: Path


Source = Git | Zip | Folder


def source_of(text: str, ref: str = "") -> Source:
    """What a person typed: an address, or the path of a zip or folder. Raises Refused."""
    text = text.strip()
    if "://" in text or "::" in text or re.match(r"[\w.-]+@[\w.-]+:", text):
        return Git(checked_url(text), checked_ref(ref))
    path = Path(text).expanduser().absolute()
    if ref:
        raise Refused("only a git address has branches, tags and commits")
    if os.path.isdir(path):  # pathlib's raises where a name is too long
        return Folder(path)
    if os.path.isfile(path):
        return Zip(path)
    raise Refused(f"{text[:200]!r} is neither a git address (https://...) nor a zip or folder that is here")


def checked_url(url: str, schemes: Collection[str] = ()) -> str:
    """`url` if git may be given it; raises Refused. Other schemes run programs or read files of this machine."""
    scheme, separator, _ = url.partition("://")
    if not separator or scheme.lower() not in (schemes or GIT_SCHEMES):
        raise Refused(f"{url[:100]!r} is refused: only addresses that begin with https:// are taken")
    if re.search(r"[\s\x00-\x1f\x7f\"'`\\<>|;$]", url):
        raise Refused(f"{url[:100]!r} is not an address: it holds characters that do not belong there")
    try:
        parts = urlsplit(url)
        host = parts.hostname
    except ValueError as error:
        raise Refused(f"{url[:100]!r} is not an address: {error}") from None
    if parts.username is not None or parts.password is not None:
        raise Refused("an address with a name or password in it would be written down; leave that to git's own store")
    if scheme == "https" and (not host or host.startswith("-") or parts.query or parts.fragment):
        raise Refused(f"{url[:100]!r} is not the address of a git repository")
    return url


def checked_ref(ref: str) -> str:
    """A branch, tag or commit, and no option of git's; raises Refused."""
    if ref and (not re.fullmatch(_REF, ref) or ".." in ref or ref.endswith((".lock", "/", "."))):
        raise Refused(f"{ref[:100]!r} is not the name of a branch, tag or commit")
    return ref


def fetch(source: Source, into: Path) -> str:
    """Bring the files of `source` into the empty folder `into`; the commit, if there is one. Raises Refused."""
    match source:
        case Git():
            return _fetch_git(source, into)
        case Zip():
            archives.unpack(source.path, into, LIMITS, _SKIPPED)
        case Folder():
            _copy(source.path, into)
    return ""


def root_of(folder: Path) -> Path:
    """Where in the unpacked `folder` the manifest lies: at the top or in the only folder there."""
    if (folder / FILE).is_file():
        return folder
    inside = list(folder.iterdir())
    if len(inside) == 1 and (inside[0] / FILE).is_file():
        return inside[0]
    raise ManifestError(f"there is no {FILE} in it, so this is no extension for Atelier")


def fingerprint(folder: Path) -> str:
    """SHA-256 over the names and contents of an extension's own files, in hexadecimal."""
    digest = sha256()
    for path in sorted(_files(folder)):
        name = path.relative_to(folder).as_posix()
        digest.update(f"{len(name)} {name} {path.stat().st_size}\n".encode())
        digest.update(path.read_bytes())
    return digest.hexdigest()


def measure(folder: Path) -> tuple[int, int]:
    """Number and bytes of the files."""
    sizes = [path.stat().st_size for path in _files(folder)]
    return len(sizes), sum(sizes)


def _files(folder: Path) -> Iterator[Path]:
    for place, folders, files in os.walk(folder):
        folders[:] = [f for f in folders if f not in _SKIPPED]
        yield from (Path(place, f) for f in files)


# ---------------------------------------------------------------- git


def _fetch_git(source: Git, into: Path) -> str:
    url, ref = checked_url(source.url), checked_ref(source.ref)
    repository = into.with_name(into.name + ".git")
    archive = into.with_name(into.name + ".zip")
    try:
        _git(["init", "--quiet", "--bare", "--template=", "--", str(repository)], into)
        once = ["--quiet", "--depth=1", "--no-tags", "--no-recurse-submodules"]
        _git(["fetch", *once, "--", url, ref or "HEAD"], repository)
        commit = _git(["rev-parse", "--verify", "FETCH_HEAD^{commit}"], repository).strip()
        tree = _git(["ls-tree", "-r", commit], repository)
        if module := re.search(r"^160000 .*\t(.*)$", tree, re.MULTILINE):
            raise Refused(f"it contains another repository ({module[1][:80]}); submodules are not fetched")
        _git(["archive", "--format=zip", f"--output={archive}", commit], repository)
        archives.unpack(archive, into, LIMITS, _SKIPPED)
        return commit
    finally:
        shutil.rmtree(repository, ignore_errors=True)
        archive.unlink(missing_ok=True)


def _git(arguments: list[str], folder: Path) -> str:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    environment |= {
        "GIT_ALLOW_PROTOCOL": ":".join(GIT_SCHEMES),  # also where a server redirects to
        "GIT_TERMINAL_PROMPT": "0",
        "GIT_LFS_SKIP_SMUDGE": "1",
        "LC_ALL": "C",
    }
    safe = ["-c", f"core.hooksPath={os.devnull}", "-c", "core.fsmonitor=false", "-c", "submodule.recurse=false"]
    try:
        done = subprocess.run(
            ["git", *safe, *arguments],
            cwd=folder,
            env=environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=GIT_LIMIT,
            check=False,
        )
    except FileNotFoundError:
        raise Refused("git is not installed here; install it, or bring the extension as a zip") from None
    except subprocess.TimeoutExpired:
        raise Refused(f"git did not finish within {GIT_LIMIT:g} seconds") from None
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if line.strip() and not line.startswith("hint:")]
        raise Refused(
            "git could not fetch it: " + (lines[-1].removeprefix("fatal: ") if lines else "it does not say why")
        )
    return done.stdout


# ---------------------------------------------------------------- folder


def _copy(source: Path, into: Path) -> None:
    count = size = 0
    for place, folders, files in os.walk(source):
        folders[:] = [f for f in folders if f not in _SKIPPED]
        for name in (*folders, *files):
            path = Path(place, name)
            shown = path.relative_to(source).as_posix()
            status = path.lstat()
            if not (stat.S_ISREG(status.st_mode) or stat.S_ISDIR(status.st_mode)):
                raise Refused(f"the folder holds a link or a device: {shown}")
            count, size = count + 1, size + (status.st_size if name in files else 0)
            if count > LIMITS.files or size > LIMITS.bytes:
                raise Refused(f"the folder holds more than {LIMITS.files} files or {LIMITS.bytes >> 20} MB")
            target = into / path.relative_to(source)
            if stat.S_ISDIR(status.st_mode):
                target.mkdir()
            else:
                shutil.copyfile(path, target, follow_symlinks=False)
