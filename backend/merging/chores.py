"""Merges and conversions, one after the other, each in a process of its own that can be stopped; no torch here."""

import contextlib
import glob
import json
import logging
import secrets
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

from backend.errors import Conflict, NotFound
from backend.jobs.host import environment
from backend.merging.recipe import Recipe

log = logging.getLogger(__name__)

ROOT = Path(__file__).resolve().parent.parent.parent
MAX_OPEN = 20
KEPT = 50
"""Of those that have ended."""
State = Literal["waiting", "running", "done", "failed", "stopped"]
FINAL = ("done", "failed", "stopped")


@dataclass
class Chore:
    id: str
    recipe: Recipe
    out: Path
    state: State = "waiting"
    doing: str = ""
    at: float = 0.0
    """How much of it is done, 0 to 1."""
    error: str = ""
    process: "subprocess.Popen[str] | None" = None

    def view(self) -> dict[str, Any]:
        return {
            "id": self.id,
            "what": self.recipe.what,
            "models": [model.name for model in self.recipe.models()],
            "name": self.out.name,
            "state": self.state,
            "doing": self.doing,
            "at": round(self.at, 3),
            "error": self.error,
        }


class Chores:
    """`made` is told of each new file or folder."""

    def __init__(self, made: Callable[[Path], None] = lambda path: None) -> None:
        self._made = made
        self._lock = threading.Lock()
        self._chores: dict[str, Chore] = {}
        self._is_busy = False

    def view(self) -> list[dict[str, Any]]:
        with self._lock:
            return [chore.view() for chore in self._chores.values()]

    def add(self, recipe: Recipe, out: Path) -> str:
        """Queue it; its id. Raises Conflict."""
        with self._lock:
            open_ones = [chore for chore in self._chores.values() if chore.state not in FINAL]
            if out.exists() or any(chore.out == out for chore in open_ones):
                raise Conflict(f"{out.name} is there already; choose another name")
            if len(open_ones) >= MAX_OPEN:
                raise Conflict(f"{MAX_OPEN} merges and conversions are waiting already")
            chore = Chore(secrets.token_hex(8), recipe, out)
            self._chores[chore.id] = chore
            for old in [c.id for c in self._chores.values() if c.state in FINAL][:-KEPT]:
                del self._chores[old]
            if not self._is_busy:
                self._is_busy = True
                threading.Thread(target=self._run_all, name="chores", daemon=True).start()
            return chore.id

    def stop(self, id: str) -> None:
        """Stop it, or take it from the list if it has ended. Raises NotFound."""
        with self._lock:
            chore = self._chores.get(id)
            if chore is None:
                raise NotFound("this is not on the list any more")
            if chore.state in FINAL:
                del self._chores[id]
                return
            chore.state = "stopped"
            if chore.process:
                chore.process.terminate()

    def close(self) -> None:
        with self._lock:
            open_ones = [chore.id for chore in self._chores.values() if chore.state not in FINAL]
        for id in open_ones:
            self.stop(id)

    def _run_all(self) -> None:
        while chore := self._next():
            try:
                run(chore.recipe, chore.out, partial(self._heard, chore), partial(self._started, chore))
            except Exception as error:  # whatever stops one must not stop the others
                log.exception("making %s failed", chore.out.name)
                self._heard(chore, {"error": f"it could not be done ({type(error).__name__})"})
            with self._lock:
                chore.process = None
                if chore.state == "running":
                    chore.state, chore.error = "failed", "its process ended; perhaps there was not enough memory"
            if chore.state == "done":
                log.info("made %s (%s)", chore.out.name, chore.recipe.what)
                self._made(chore.out)

    def _next(self) -> Chore | None:
        with self._lock:
            chore = next((chore for chore in self._chores.values() if chore.state == "waiting"), None)
            if chore is None:
                self._is_busy = False
            else:
                chore.state = "running"
            return chore

    def _started(self, chore: Chore, process: "subprocess.Popen[str]") -> None:
        with self._lock:
            chore.process = process
            if chore.state == "stopped":
                process.terminate()

    def _heard(self, chore: Chore, line: dict[str, Any]) -> None:
        with self._lock:
            if chore.state != "running":
                return
            chore.doing, chore.at = line.get("doing", chore.doing), line.get("at", chore.at)
            if "error" in line:
                chore.state, chore.error = "failed", line["error"]
            elif line.get("done"):
                chore.state, chore.at = "done", 1.0


def run(
    recipe: Recipe,
    out: Path,
    heard: Callable[[dict[str, Any]], None],
    started: "Callable[[subprocess.Popen[str]], None]" = lambda process: None,
) -> None:
    """Do it in another process and wait; `heard` gets what that says: {"doing", "at"}, {"error"} or {"done"}."""
    with subprocess.Popen(
        [sys.executable, "-m", "backend.merging"],
        cwd=ROOT,
        env=environment("none"),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        encoding="utf-8",
    ) as process:
        started(process)
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            try:
                process.stdin.write(json.dumps({"recipe": recipe.model_dump(mode="json"), "out": str(out)}) + "\n")
                process.stdin.flush()
            except BrokenPipeError:  # it was stopped at once
                with contextlib.suppress(BrokenPipeError):  # which closing would say again
                    process.stdin.close()
            for line in process.stdout:
                heard(json.loads(line))
        except BaseException:
            process.terminate()
            raise
        finally:
            process.wait()
            _clear_up(out)


def _clear_up(out: Path) -> None:
    """What a process that was killed has left: the others do so themselves."""
    for left in out.parent.glob(f".{glob.escape(out.name)}.*.tmp"):
        if left.is_dir():
            shutil.rmtree(left, ignore_errors=True)
        else:
            left.unlink(missing_ok=True)
