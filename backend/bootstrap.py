"""A fresh machine made ready: .venv, the packages in it, and the program started again inside.

Standard library only and old syntax, so that even Python 3.6 gets as far as saying what is wrong with it.
.venv/installed-<requirements file> is a stamp: the hash of the file that was installed in full. While it fits, nothing
is done.
"""

import contextlib
import hashlib
import os
import queue
import re
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import IO, Iterator, List, NamedTuple, Optional, Tuple

SUPPORTED = ((3, 12), (3, 11))  # diffusers, transformers and numpy have left 3.10; torch 2.10 wheels end the list
LOCK = "setup.lock"
ROOT = Path(__file__).resolve().parent.parent
NAMES = " or ".join("{}.{}".format(*version) for version in sorted(SUPPORTED))
OLDEST_FOR_UV = (3, 8)
DISK_GB = 9  # what .venv with a CUDA build of torch takes, and its downloads


class SetupFailed(Exception):
    """What is wrong and what to do about it, in a sentence for the person at the terminal."""


class Interpreter(NamedTuple):
    executable: str
    prefix: str
    version: Tuple[int, int]


def enter() -> None:
    """Return inside a complete .venv. Anywhere else complete it and start this program again in there."""
    inside = is_inside(ROOT)
    try:
        python = complete(ROOT, "requirements.txt")
    except SetupFailed as error:
        sys.exit("Atelier cannot start. " + str(error))
    except KeyboardInterrupt:
        _say("Stopped. The next start goes on from here.")
        sys.exit(130)
    if not inside:
        _start_again([python, *sys.argv])


def complete(root: Path, *files: str) -> str:
    """The Python of `root`/.venv, once the last of `files` is installed, together with those before it."""
    python = _python_of(root / ".venv")
    if _is_complete(root, files[-1]):
        return python
    try:
        with _lock(root / ".venv"):
            if not _is_complete(root, files[-1]):  # another start may have done it meanwhile
                _install(root, files)
    except OSError as error:
        raise SetupFailed(_explain(str(error), root) or "{}.".format(error)) from error
    return python


def is_inside(root: Path) -> bool:
    """Whether this very process runs on the Python of `root`/.venv."""
    return _same(sys.prefix, root / ".venv")


def _is_complete(root: Path, file: str) -> bool:
    venv = root / ".venv"
    try:
        stamp = (venv / ("installed-" + file)).read_text()
    except OSError:
        return False
    version = sys.version_info[:2] if is_inside(root) else _version_of(venv)
    return version is not None and stamp == _fingerprint(root / file, version)


def _fingerprint(file: Path, version: Tuple[int, int]) -> str:
    # text, not bytes: git may have turned the line ends
    return "{} {}.{}\n".format(hashlib.sha256(file.read_text("utf-8").encode()).hexdigest(), *version)


def _install(root: Path, files: Tuple[str, ...]) -> None:
    started = time.time()
    venv = root / ".venv"
    python = _python_of(venv)
    known = _version_of(venv)
    version = known
    if version is None:
        if is_inside(root):  # a Python cannot pull away the floor it stands on
            raise SetupFailed("The .venv is damaged. Delete the folder .venv and start with the system's Python.")
        version = _make(root)
    uv = _find_uv(python, root)

    # a start that was killed in mid-install may have left packages with files missing
    interrupted = venv / "installing"
    again = interrupted.exists()
    interrupted.touch()
    stamp = venv / ("installed-" + files[-1])
    if stamp.exists():
        stamp.unlink()
    _say("[3/3] Installing {}{}".format(files[-1], "" if known else " (torch alone is some GB to fetch)"))
    wanted = [argument for file in files for argument in ("-r", str(root / file))]
    text = ""
    if uv:
        backend = ["--torch-backend", "auto"] if os.name == "nt" else []
        command = [python, "-m", "uv", "pip", "install", "--python", python, *backend]
        code, text = _run(command + (["--reinstall"] if again else []) + wanted)
    if not uv or (code != 0 and _explain(text, root) is None):
        if uv:
            _say("uv did not manage; trying pip.")
        code, text = _run(_pip(python) + (["--force-reinstall"] if again else []) + wanted)
    if code != 0:
        raise SetupFailed(_explain(text, root) or _unknown("{} could not be installed".format(files[-1])))
    stamp.write_text(_fingerprint(root / files[-1], version))
    interrupted.unlink()
    _say("Ready after {}.".format(_minutes(time.time() - started)))


def _find_uv(python: str, root: Path) -> bool:
    """Whether uv is to be had in .venv; installs it if need be, and pip before it."""
    if _succeeds([python, "-m", "uv", "--version"]):
        return True
    _say("[2/3] Installing uv, the installer")
    if not _succeeds([python, "-m", "pip", "--version"]):
        _do([python, "-m", "ensurepip", "--upgrade"], root, "pip could not be put into .venv")
    code, text = _run([*_pip(python), "--quiet", "uv"])
    why = _explain(text, root)
    if code != 0 and why:
        raise SetupFailed(why)
    return code == 0


def _pip(python: str) -> List[str]:
    return [python, "-m", "pip", "install", "--no-input", "--disable-pip-version-check"]


def _make(root: Path) -> Tuple[int, int]:
    """An empty .venv, on this Python or one that fits; which version it is."""
    venv = root / ".venv"
    here = Interpreter(sys.executable, sys.prefix, (sys.version_info[0], sys.version_info[1]))
    base = here if here.version in SUPPORTED else next(_other_pythons(), None)
    _clear(venv)
    if base is None:
        return _make_with_fetched_python(root, here)
    if base is not here:
        _say("This is Python {}.{}; Atelier needs {} and takes {}.".format(*here.version, NAMES, base.executable))
    if not _succeeds([base.executable, "-c", "import venv, ensurepip"]):
        raise SetupFailed(
            "The Python at {0} comes without its venv module. Install it (on Debian and Ubuntu:"
            " sudo apt install python{1}.{2}-venv) and start again.".format(base.executable, *base.version)
        )
    _say("[1/3] Making .venv with Python {}.{}".format(*base.version))
    _do([base.executable, "-m", "venv", str(venv)], root, "The folder .venv could not be made")
    return base.version


def _make_with_fetched_python(root: Path, here: Interpreter) -> Tuple[int, int]:
    """The same where no Python fits: uv, in a .venv of the one that there is, fetches another."""
    wrong = SetupFailed(
        "It needs Python {}, and this is Python {}.{} ({}). Install one of those (from python.org, or with your"
        " system's package manager) and start again with it: python3.12 app.py".format(
            NAMES, here.version[0], here.version[1], here.executable
        )
    )
    if here.version < OLDEST_FOR_UV or not _succeeds([here.executable, "-c", "import venv, ensurepip"]):
        raise wrong
    _say("[1/3] This is Python {}.{}; Atelier needs {}. Fetching one for it".format(*here.version, NAMES))
    venv, seed = root / ".venv", root / ".venv" / "seed"
    python = _python_of(seed)
    steps = (
        [here.executable, "-m", "venv", str(seed)],
        [*_pip(python), "--quiet", "uv"],
        [
            python,
            "-m",
            "uv",
            "venv",
            "--python",
            "{}.{}".format(*SUPPORTED[0]),
            "--seed",
            "--allow-existing",
            str(venv),
        ],
    )
    if any(_run(step)[0] != 0 for step in steps):
        raise wrong
    shutil.rmtree(str(seed))
    return SUPPORTED[0]


def _other_pythons() -> Iterator[Interpreter]:
    for version in SUPPORTED:
        names = ["python{}.{}".format(*version)], ["py", "-{}.{}".format(*version)]
        for name in names:
            program = shutil.which(name[0])
            found = _ask([program, *name[1:]]) if program else None  # pyenv's shims are there even if no Python is
            if found and found.version == version:
                yield found


def _version_of(venv: Path) -> Optional[Tuple[int, int]]:
    """The version of a .venv whose Python starts and sees itself as that .venv; None: absent, damaged or unfit."""
    found = _ask([_python_of(venv)])
    if found is None or found.version not in SUPPORTED or not _same(found.prefix, venv):
        return None
    # after an upgrade of the system, .venv/bin/python may be a newer Python that does not see the packages
    packages = venv / "Lib" if os.name == "nt" else venv / "lib" / "python{}.{}".format(*found.version)
    return found.version if packages.is_dir() else None


def _ask(python: List[str]) -> Optional[Interpreter]:
    question = "import sys; print(sys.executable, sys.prefix, *sys.version_info[:2], sep='\\n')"
    try:
        answer = subprocess.check_output([*python, "-I", "-c", question], stderr=subprocess.DEVNULL, timeout=60)
    except (OSError, subprocess.SubprocessError):
        return None
    executable, prefix, major, minor = answer.decode("utf-8", "replace").split("\n")[:4]
    return Interpreter(executable, prefix, (int(major), int(minor)))


def _python_of(venv: Path) -> str:
    return str(venv / "Scripts" / "python.exe") if os.name == "nt" else str(venv / "bin" / "python")


def _same(one: str, other: Path) -> bool:
    try:
        return os.path.samefile(one, str(other))
    except OSError:
        return False


def _clear(venv: Path) -> None:
    for entry in venv.iterdir():
        if entry.name == LOCK:
            continue
        if entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(str(entry))
        else:
            entry.unlink()


# ---------------------------------------------------------------- running and explaining


def _do(command: List[str], root: Path, failed: str) -> None:
    code, text = _run(command)
    if code != 0:
        raise SetupFailed(_explain(text, root) or _unknown(failed))


def _succeeds(command: List[str]) -> bool:
    return subprocess.call(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) == 0


def _run(command: List[str]) -> Tuple[int, str]:
    """Run it, showing its lines as they come and, when none comes, that it still works; its exit code and its text."""
    environment = dict(os.environ, PYTHONUNBUFFERED="1", UV_HTTP_TIMEOUT=os.environ.get("UV_HTTP_TIMEOUT", "120"))
    started = time.time()
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=environment)
    lines: "queue.Queue[Optional[str]]" = queue.Queue()
    threading.Thread(target=_read_lines, args=(process.stdout, lines), daemon=True).start()
    text: List[str] = []
    while True:
        try:
            line = lines.get(timeout=15)
        except queue.Empty:
            _say("      still at it, {}".format(_minutes(time.time() - started)))
            continue
        if line is None:
            return process.wait(), "\n".join(text)
        text.append(line)
        if line.strip() and not line.startswith((" + ", " ~ ")):  # uv's list of a hundred packages
            _say("      " + line)


def _read_lines(pipe: IO[bytes], lines: "queue.Queue[Optional[str]]") -> None:
    for line in pipe:
        lines.put(line.decode("utf-8", "replace").rstrip())
    lines.put(None)


def _explain(text: str, root: Path) -> Optional[str]:
    """The sentence for a failure whose cause the text of a program gives away; None if it does not."""
    for pattern, sentence in CAUSES:
        if re.search(pattern, text, re.IGNORECASE):
            free = shutil.disk_usage(str(root)).free / 1e9
            return sentence.format(folder=root / ".venv", free=free, needed=DISK_GB)
    return None


CAUSES = (
    (
        r"no space left|os error 28|errno 28|not enough space|os error 112|quota exceeded|file too large",
        "The disk is full: {free:.1f} GB are free for {folder}, about {needed} GB are needed."
        " Make room and start again; it goes on from there.",
    ),
    (
        r"dns error|name resolution|name or service not known|nodename nor servname|getaddrinfo|connection refused"
        r"|network is unreachable|no route to host|error sending request|tcp connect|timed out|connection reset"
        r"|newconnectionerror|connecttimeout|proxyerror|network connectivity is disabled",
        "The package index cannot be reached. The first start needs the network (behind a proxy, set HTTPS_PROXY):"
        " connect and start again; it goes on from there.",
    ),
    (
        r"permission denied|access is denied|read-only file system|errno 13|errno 30|winerror 5\b|winerror 32\b",
        "{folder} cannot be written to. Close other windows of Atelier, make sure that the folder is yours and not"
        " read-only, and start again.",
    ),
)


def _unknown(failed: str) -> str:
    return failed + "; the lines above say why. Start again to retry, or delete the folder .venv to begin afresh."


# ---------------------------------------------------------------- one at a time


@contextlib.contextmanager
def _lock(venv: Path) -> Iterator[None]:
    """Held by one process at a time; the second waits and says so. A killed holder lets go."""
    venv.mkdir(exist_ok=True)
    with open(str(venv / LOCK), "a") as file:
        told = False
        while not _try_lock(file.fileno()):
            if not told:
                _say("Another start is installing; waiting for it.")
                told = True
            time.sleep(0.2)
        yield


def _try_lock(handle: int) -> bool:
    """The operating system frees the lock when the file is closed."""
    try:
        if sys.platform == "win32":
            import msvcrt

            msvcrt.locking(handle, msvcrt.LK_NBLCK, 1)
        else:
            import fcntl

            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


# ---------------------------------------------------------------- small things


def _start_again(command: List[str]) -> None:
    sys.stdout.flush()
    sys.stderr.flush()
    if os.name != "nt":
        os.execv(command[0], command)
    process = subprocess.Popen(command)  # on Windows exec would return to the prompt at once
    while True:
        try:
            sys.exit(process.wait())
        except KeyboardInterrupt:
            continue  # the child got it too and ends in its own way


def _say(line: str) -> None:
    sys.stderr.write(line + "\n")
    sys.stderr.flush()


def _minutes(seconds: float) -> str:
    return "{} min {} s".format(*divmod(round(seconds), 60)) if seconds >= 60 else "{:.0f} s".format(seconds)
