"""The process that works on a recipe: it reads that from its input, and says in lines of JSON how far it is."""

import json
import logging
import os
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Any, NoReturn

from backend.errors import AtelierError
from backend.merging.recipe import RECIPES

log = logging.getLogger(__name__)

PACE = 0.2
"""Seconds between two lines."""


def main() -> None:
    # what libraries print must not get between our lines
    answers = os.fdopen(os.dup(1), "w", buffering=1, encoding="utf-8")
    os.dup2(2, 1)
    signal.signal(signal.SIGTERM, _stop)
    line = sys.stdin.readline()
    if not line:
        return
    over = threading.Event()
    threading.Thread(target=_end_with_parent, args=(over,), daemon=True).start()
    told = json.loads(line)
    said = 0.0

    def report(doing: str, at: float) -> None:
        nonlocal said
        if time.monotonic() - said > PACE:
            said = time.monotonic()
            _say(answers, doing=doing, at=at)

    from backend.diffusion import memory
    from backend.merging import work  # torch

    try:
        work.run(RECIPES.validate_python(told["recipe"]), Path(told["out"]), report)
    except AtelierError as error:
        _say(answers, error=str(error))
    except Exception as error:
        log.exception("making %s failed", told["out"])
        why = f"it could not be done ({type(error).__name__}); the server's log says more"
        _say(answers, error="there is not enough memory for it" if memory.is_exhausted(error) else why)
    else:
        _say(answers, done=True)
    over.set()


def _say(answers: Any, **values: object) -> None:
    answers.write(json.dumps(values) + "\n")


def _stop(*_: object) -> NoReturn:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    raise SystemExit(1)  # clears up on the way out


def _end_with_parent(over: threading.Event) -> None:
    """The pipe ends with the parent, also after a kill -9."""
    while os.read(0, 1):  # not sys.stdin: an interpreter that ends cannot close it while somebody reads
        pass
    if not over.is_set():
        os.kill(os.getpid(), signal.SIGTERM)


if __name__ == "__main__":
    main()
