"""A process that works out the hashes of all models, when nobody else wants the processor or the disk.

Not a thread: one that waits for the processor while it holds Python's lock would hold up all others. It is given
`Roots` as JSON, writes into their index, and ends when it is done, or when its parent does.
"""

import json
import logging
import os
import subprocess
import sys
import threading
from pathlib import Path

import psutil

from backend.catalog.catalog import Catalog
from backend.catalog.roots import Roots

log = logging.getLogger(__name__)

ROOT = Path(__file__).resolve().parents[2]


def start(roots: Roots) -> "subprocess.Popen[bytes]":
    """It lives as long as its standard input is open."""
    described = json.dumps(roots.described())
    command = [sys.executable, "-m", "backend.catalog.hashing", described]
    return subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL)


def stop(process: "subprocess.Popen[bytes]") -> None:
    assert process.stdin
    process.stdin.close()
    process.wait()


def main() -> None:
    logging.basicConfig(level="INFO", format="%(asctime)s %(levelname)s %(name)s [hashes] %(message)s")
    threading.Thread(target=_end_with_parent, daemon=True).start()
    _give_way()
    catalog = Catalog(Roots.of(json.loads(sys.argv[1])))
    for model in catalog.all():
        if model.lacks_hash:
            try:
                catalog.fingerprint(model.path)
            except OSError as error:
                log.info("%s cannot be hashed: %s", model.relative, error.strerror)


def _end_with_parent() -> None:
    while os.read(0, 1):  # not sys.stdin: an interpreter that ends cannot close it while somebody reads
        pass
    os._exit(0)  # in the middle of a file, which is begun again the next time


def _give_way() -> None:
    process = psutil.Process()
    process.nice(psutil.IDLE_PRIORITY_CLASS if sys.platform == "win32" else 19)
    if sys.platform == "linux":
        process.ionice(psutil.IOPRIO_CLASS_IDLE)


if __name__ == "__main__":
    main()
