"""Run the declaration module of an extension: in a process that may hang or die first, then in this one.

A thread that loops for ever can be neither stopped nor ignored (it takes turns with all the others), so a stranger's
module runs in a process of its own before it may run here. That is done once and again whenever its files change:
`probe` says which must not be imported, the registry remembers the answer under the folder's `stamp`.
"""

import contextlib
import importlib.util
import inspect
import json
import logging
import os
import queue
import re
import signal
import subprocess
import sys
import threading
import traceback
from collections.abc import Iterator, Sequence
from hashlib import sha256
from pathlib import Path
from typing import IO, NamedTuple

from backend import __version__, packages
from backend.extension import API_VERSION, Extension, Params, Task
from backend.manifest import PACKAGES, Manifest, ManifestError, read_manifest

log = logging.getLogger(__name__)

LIMIT = 10.0
"""Seconds that a declaration module may take; it only declares."""
_START_LIMIT = 120.0
"""Seconds that the process may take to start."""
_ROOT = Path(__file__).resolve().parent.parent
_STAGES = [name for name, value in vars(Extension).items() if inspect.isfunction(value)]


class Unfit(ValueError):
    """Why a folder holds no extension that can be used."""


def import_extension(folder: Path, manifest: Manifest) -> Extension:
    """The extension in `folder`; raises whatever its module raises, and Unfit if it holds no fit class."""
    name = f"extensions.{manifest.id}"
    spec = importlib.util.spec_from_file_location(
        name, folder / "__init__.py", submodule_search_locations=[str(folder)]
    )
    if spec is None or spec.loader is None or not (folder / "__init__.py").is_file():
        raise Unfit("there is no __init__.py")
    if lacking := packages.missing(folder, manifest):
        mend = f"`python app.py extensions update {manifest.id}` installs what is missing"
        raise Unfit(f"needs {', '.join(lacking)}; {mend}")
    module = importlib.util.module_from_spec(spec)
    own_packages = str(folder / PACKAGES)
    sys.modules[name] = module  # so that its own modules can import it
    if os.path.isdir(own_packages):
        sys.path.append(own_packages)  # last: what Atelier has comes first
    try:
        with _undisturbed():
            spec.loader.exec_module(module)
            classes = [c for c in vars(module).values() if isinstance(c, type) and issubclass(c, Extension)]
            found = [c for c in dict.fromkeys(classes) if c.__module__ == name]
            if len(found) != 1:
                raise Unfit(f"__init__.py must hold one subclass of Extension, it holds {len(found)}")
            _check(found[0], manifest)
            return found[0]()
    except BaseException:
        with contextlib.suppress(ValueError):
            sys.path.remove(own_packages)
        for own in [m for m in sys.modules if m == name or m.startswith(name + ".")]:
            del sys.modules[own]
        raise


def _check(cls: type[Extension], manifest: Manifest) -> None:
    for attribute in ("id", "title"):
        if not hasattr(cls, attribute):
            setattr(cls, attribute, getattr(manifest, attribute))
    if cls.id != manifest.id:
        raise Unfit(f"the class says id = {cls.id!r}, extension.toml {manifest.id!r}")
    if not (isinstance(cls.Params, type) and issubclass(cls.Params, Params)):
        raise Unfit("Params must be a subclass of backend.extension.Params")
    if not (isinstance(cls.order, int) and isinstance(cls.task, Task)):
        raise Unfit("order must be a whole number and task a Task")
    if cls.prompt_tag is not None and not re.fullmatch(r"[a-z0-9_]+", str(cls.prompt_tag)):
        raise Unfit(f"prompt_tag must be a word in small letters, not {cls.prompt_tag!r}")
    for stage in _STAGES:
        ours = inspect.signature(getattr(Extension, stage))
        try:
            inspect.signature(getattr(cls, stage)).bind(*ours.parameters)
        except TypeError:
            raise Unfit(f"{stage} must take ({', '.join(ours.parameters)})") from None


def reason(error: BaseException, folder: Path) -> str:
    """The last line of the traceback, and where in `folder` it happened."""
    if isinstance(error, Unfit | ManifestError):
        return str(error)
    text = traceback.format_exception_only(error)[-1].strip() or type(error).__name__
    places = [(f.filename, f.lineno) for f in traceback.extract_tb(error.__traceback__)]
    if isinstance(error, SyntaxError) and error.filename:
        places.append((error.filename, error.lineno))
    own = [(Path(file).relative_to(folder), line) for file, line in places if Path(file).is_relative_to(folder)]
    return f"{text} ({own[-1][0].as_posix()}, line {own[-1][1]})" if own else text


@contextlib.contextmanager
def _undisturbed() -> Iterator[None]:
    """Put back what a module may change for the whole process: handlers of signals and the working folder."""
    is_main = threading.current_thread() is threading.main_thread()
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)} if is_main else {}
    folder = os.getcwd()
    try:
        yield
    finally:
        for number, handler in handlers.items():
            if signal.getsignal(number) is not handler and handler is not None:
                signal.signal(number, handler)
        if os.getcwd() != folder:
            os.chdir(folder)


# ---------------------------------------------------------------- in a process of its own


def stamp(folder: Path) -> str:
    """Changes when a file of the extension does, or what it runs on."""
    digest = sha256(f"{__version__} {API_VERSION} {sys.version}".encode())
    for place, folders, files in os.walk(folder):
        folders[:] = sorted(f for f in folders if f not in ("__pycache__", PACKAGES) and not f.startswith(".git"))
        for name in sorted(files):
            status = os.stat(os.path.join(place, name), follow_symlinks=False)
            digest.update(f"{os.path.join(place, name)} {status.st_size} {status.st_mtime_ns}\n".encode())
    with contextlib.suppress(FileNotFoundError):
        digest.update(" ".join(sorted(os.listdir(folder / PACKAGES))).encode())
    return digest.hexdigest()


class Trial(NamedTuple):
    fatal: str = ""
    """Why it must not be imported in this process: it hangs or ends it."""
    error: str = ""
    """What it raised."""


def probe(folders: Sequence[Path], limit: float = LIMIT) -> dict[Path, Trial]:
    """What comes of importing the extension in each folder."""
    outcome: dict[Path, Trial] = {}
    while left := [f for f in folders if f not in outcome]:
        found = _probe_until_one_fails(left, limit)
        if not found:  # no process to be had: the guard of the registry still watches
            log.warning("extensions could not be tried in a process of their own")
            return outcome | dict.fromkeys(left, Trial())
        outcome |= found
    return outcome


def _probe_until_one_fails(folders: Sequence[Path], limit: float) -> dict[Path, Trial]:
    child = subprocess.Popen(
        [sys.executable, "-m", "backend.importing"],
        cwd=_ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        start_new_session=True,  # Ctrl-C is for us
    )
    assert child.stdin
    assert child.stdout
    outcome: dict[Path, Trial] = {}
    lines: queue.Queue[Trial | None] = queue.Queue()
    reader = threading.Thread(target=_read, args=(child.stdout, lines), daemon=True)
    reader.start()
    try:
        with contextlib.suppress(OSError):  # it died at once; the answer below says so
            child.stdin.write(json.dumps([str(f.absolute()) for f in folders]).encode())
            child.stdin.close()
        try:
            if lines.get(timeout=_START_LIMIT) is None:
                return {}
        except queue.Empty:
            return {}
        for folder in folders:
            answer = lines.get(timeout=limit)
            outcome[folder] = answer or Trial(fatal=f"its import ends the process{_ending(child)}")
            if answer is None:
                break
    except queue.Empty:
        hanging = next(f for f in folders if f not in outcome)
        outcome[hanging] = Trial(fatal=f"its import did not end within {limit:g} seconds")
    finally:
        _kill(child)
        reader.join(5)
    return outcome


def _read(pipe: IO[bytes], lines: "queue.Queue[Trial | None]") -> None:
    with pipe:
        for line in pipe:
            lines.put(Trial(*json.loads(line)))
    lines.put(None)


def _ending(child: "subprocess.Popen[bytes]") -> str:
    try:
        code = child.wait(5)
    except subprocess.TimeoutExpired:  # it only closed its files
        return ""
    if code < 0 and -code in set(signal.Signals):
        return f" with {signal.Signals(-code).name}"
    return f" with exit code {code}"


def _kill(child: "subprocess.Popen[bytes]") -> None:
    with contextlib.suppress(OSError):
        if sys.platform == "win32":
            child.kill()
        else:
            os.killpg(child.pid, signal.SIGKILL)  # and what it started
    child.wait()


def _main() -> None:
    """Import each folder of the list on standard input; a line of JSON says that it is over, and how."""
    out = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # what an extension prints is no answer
    folders = json.loads(sys.stdin.read())
    out.write("[]\n")  # ready
    for folder in map(Path, folders):
        trial = Trial()
        try:
            import_extension(folder, read_manifest(folder))
        except Exception as error:  # noqa: BLE001 (whatever a stranger's module raises)
            trial = Trial(error=reason(error, folder))
        except BaseException as error:  # noqa: BLE001 (in the application it would look like Ctrl-C)
            trial = Trial(fatal=f"its import raises {reason(error, folder)}")
        out.write(json.dumps(trial) + "\n")
    os._exit(0)  # whatever threads are left


if __name__ == "__main__":
    _main()
