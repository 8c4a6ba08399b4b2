"""The packages that an extension needs: settled against what Atelier runs on, and put into the extension's own folder.

Atelier's environment is never changed. Its pins, its installed packages and what other extensions have brought along
are the constraints under which uv resolves; what is missing goes to `extensions/<id>/.packages`, from wheels only: no
package's code runs while it is installed.
"""

import importlib.metadata
import re
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

from packaging.requirements import InvalidRequirement, Requirement
from packaging.version import Version

from backend.errors import Conflict, Refused
from backend.manifest import PACKAGES, Manifest

ROOT = Path(__file__).resolve().parent.parent
LIMIT = 600.0
"""Seconds that uv may take."""
OURS = "Atelier"
_UNREACHABLE = r"error sending request|dns error|tcp connect|timed out|network (was|connectivity is) disabled"


class Pin(NamedTuple):
    version: str
    owner: str
    """Who has it at this version: Atelier, or the id of an extension."""


def missing(folder: Path, manifest: Manifest) -> list[str]:
    """The manifest's requirements that neither Atelier's packages nor those in `folder` fulfil."""
    if not manifest.requires:
        return []
    own = _versions(folder / PACKAGES)
    return [text for text in manifest.requires if not _is_met(Requirement(text), own)]


def pins(extensions: Path, but: str = "", requirements: Path = ROOT / "requirements.txt") -> dict[str, Pin]:
    """What must stay as it is, by normal name; the packages of the extension `but` may change."""
    found: dict[str, Pin] = {}
    for folder in sorted(extensions.glob(f"*/{PACKAGES}")):
        if folder.parent.name != but and not folder.parent.name.startswith("."):
            found |= {name: Pin(version, folder.parent.name) for name, version in _versions(folder).items()}
    found |= {name: Pin(_public(version), OURS) for name, version in _versions().items()}
    return found | {r.name: Pin(version, OURS) for r, version in _pinned(requirements)}


def resolve(manifest: Manifest, pins: Mapping[str, Pin]) -> tuple[str, ...]:
    """The packages to install for an extension, each as `name==version`.

    Raises Conflict, with the packages and both owners, and Refused if a package cannot be had.
    """
    wanted = [r for r in map(Requirement, manifest.requires) if _applies(r)]
    clashes = [r for r in wanted if (pin := pins.get(normal(r.name))) and not r.specifier.contains(pin.version, True)]
    if clashes:
        raise Conflict("; ".join(_clash(manifest.id, str(r), r.name, pins[normal(r.name)]) for r in clashes))
    ours = _versions()
    if all(normal(r.name) in ours and not r.extras for r in wanted):
        return ()
    with tempfile.TemporaryDirectory() as folder:
        constraints = Path(folder, "constraints.txt")
        constraints.write_text("".join(f"{name}=={pin.version}\n" for name, pin in pins.items()), "utf-8")
        for name, version in ours.items():
            _write_stub(Path(folder), name, version)
        asked = "\n".join([f"--find-links {folder}", *map(str, wanted)])  # a line: beside what UV_FIND_LINKS says
        compile = ["compile", "--no-header", "--no-annotate", "--constraint", str(constraints), "-"]
        code, output, errors = _uv(compile, asked)
    if code:
        raise _explain(errors, manifest, pins)
    resolved = re.findall(r"^([\w.-]+)(?:\[.*?\])?==([^\s;]+)", output, re.MULTILINE)
    return tuple(f"{normal(name)}=={version}" for name, version in sorted(resolved) if normal(name) not in ours)


def brought(folder: Path) -> tuple[str, ...]:
    """The packages in `folder`/.packages, as `resolve` would name them."""
    return tuple(f"{name}=={version}" for name, version in sorted(_versions(folder / PACKAGES).items()))


def install(packages: tuple[str, ...], folder: Path) -> None:
    """Put `packages`, as `resolve` gives them, into `folder`/.packages. Raises Refused."""
    if not packages:
        return
    code, _, errors = _uv(["install", "--no-deps", "--target", str(folder / PACKAGES), *packages])
    if code:
        raise Refused(f"its packages could not be installed: {_last(errors)}")


def normal(name: str) -> str:
    """A package's name as PEP 503 compares it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def _write_stub(folder: Path, name: str, version: str) -> None:
    """A wheel that says that the package is there; an index may lack it, as torch 2.10.0+cu128 or without network."""
    stem = f"{name.replace('-', '_')}-{version}"
    with zipfile.ZipFile(folder / f"{stem}-py3-none-any.whl", "w") as wheel:
        wheel.writestr(f"{stem}.dist-info/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
        wheel.writestr(f"{stem}.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr(f"{stem}.dist-info/RECORD", "")


def _versions(folder: Path | None = None) -> dict[str, str]:
    """What is installed in `folder`, or in Atelier's environment, by normal name."""
    path = [str(folder)] if folder else [p for p in sys.path if not p.endswith(PACKAGES)]
    found = importlib.metadata.distributions(path=path)
    return {normal(d.name): d.version for d in found if isinstance(d.name, str)}  # None: torn metadata


def _is_met(requirement: Requirement, own: Mapping[str, str]) -> bool:
    try:
        version = importlib.metadata.version(requirement.name)
    except importlib.metadata.PackageNotFoundError:
        version = own.get(normal(requirement.name), "")
    return not _applies(requirement) or (bool(version) and requirement.specifier.contains(version, prereleases=True))


def _applies(requirement: Requirement) -> bool:
    return requirement.marker is None or requirement.marker.evaluate()


def _pinned(requirements: Path) -> Iterator[tuple[Requirement, str]]:
    for line in requirements.read_text("utf-8").splitlines():
        try:
            requirement = Requirement(line.partition("#")[0].strip())
        except InvalidRequirement:  # a comment, an option
            continue
        for specifier in requirement.specifier:
            if specifier.operator == "==":
                requirement.name = normal(requirement.name)
                yield requirement, specifier.version


def _public(version: str) -> str:
    return Version(version).public  # torch 2.10.0+cu128 is 2.10.0 to the index


def _clash(id: str, needed: str, name: str, pin: Pin) -> str:
    whose = pin.owner if pin.owner == OURS else f"the extension {pin.owner}"
    return f"{id} needs {needed}, {whose} has {name} {pin.version}"


def _explain(errors: str, manifest: Manifest, pins: Mapping[str, Pin]) -> Conflict | Refused:
    why = " ".join(errors.partition("cause:")[2].partition("\nhint:")[0].split()) or _last(errors)
    if re.search(_UNREACHABLE, errors, re.IGNORECASE):
        return Refused(f"the packages of {manifest.id} cannot be looked up, the package index does not answer: {why}")
    named = {normal(name) for name in re.findall(r"([\w.-]+)==", why)} & set(pins)
    if not named:
        return Refused(f"the packages of {manifest.id} cannot be had: {why}")
    clashes = "; ".join(_clash(manifest.id, f"another {name}", name, pins[name]) for name in sorted(named))
    return Conflict(f"{clashes} ({why})")


def _last(errors: str) -> str:
    lines = [line.strip() for line in errors.splitlines() if line.strip() and not line.startswith("hint:")]
    return lines[-1].removeprefix("error: ") if lines else "uv does not say why"


def _uv(arguments: list[str], text: str = "") -> tuple[int, str, str]:
    # in our folder: uv reads a uv.toml where it stands, and an extension may bring one
    command = [sys.executable, "-m", "uv", "pip", arguments[0], "--quiet", "--python", sys.executable]
    try:
        done = subprocess.run(
            [*command, "--only-binary", ":all:", *arguments[1:]],
            cwd=ROOT,
            input=text,
            capture_output=True,
            text=True,
            encoding="utf-8",
            errors="replace",
            timeout=LIMIT,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise Refused(f"the packages were not there within {LIMIT / 60:.0f} minutes") from None
    return done.returncode, done.stdout, done.stderr
