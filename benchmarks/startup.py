"""What a start costs: CPU seconds to the first page and to the first picture, `import gradio` alone beside them.

The server's process tree is counted; the engine's process, which starts beside the page, is shown by itself as well.
"""

import json
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from typing import Any, NamedTuple

import psutil

from benchmarks.draw import ROOT, Drawer, Setup
from benchmarks.timing import machine, tree_cpu, warn_if_busy

PATIENCE = 300
PROMPT = "a red circle on a blue background"
STEPS, SIZE = 20, 128


class Start(NamedTuple):
    """Seconds since the command; CPU seconds of the web process alone, and of it and the engine's."""

    page_wall: float
    page_web: float
    page_tree: float
    picture_wall: float
    picture_tree: float


def main(repeat: int) -> None:
    warn_if_busy()
    for name, value in machine("gradio", "torch").items():
        print(f"  {name}: {value}")
    starts: list[Start] = []
    gradio: list[float] = []
    raw: list[float] = []
    for _ in range(repeat):
        gradio.append(_import_gradio())
        starts.append(_start())
        raw.append(_raw())
    page = statistics.median(s.page_web for s in starts)
    alone = statistics.median(gradio)
    rows = {
        "import gradio, alone": alone,
        "first page: the web process": page,
        "first page: with what the engine has begun": statistics.median(s.page_tree for s in starts),
        "first picture: all processes": statistics.median(s.picture_tree for s in starts),
        "first picture by plain diffusers: import, load, draw": statistics.median(raw),
    }
    print(f"\nmedian of {repeat}{'CPU s':>50}")
    for name, seconds in rows.items():
        print(f"{name:52}{seconds:7.2f}")
    print(f"{'first page, wall':52}{statistics.median(s.page_wall for s in starts):7.2f}")
    print(f"{'first picture, wall':52}{statistics.median(s.picture_wall for s in starts):7.2f}")
    print(f"first page: import gradio {page - alone:+.2f} CPU s")


def _start() -> Start:
    port = _free_port()
    address = f"http://127.0.0.1:{port}"
    with tempfile.TemporaryDirectory() as folder:
        began = time.perf_counter()
        command = [sys.executable, "app.py", "serve", "--port", str(port), "--log-level", "warning"]
        command += ["--data-dir", f"{folder}/data", "--outputs-dir", f"{folder}/outputs"]
        server = subprocess.Popen(command, cwd=ROOT, stdin=subprocess.DEVNULL)
        process = psutil.Process(server.pid)
        try:
            _until_there(address, server)
            page_wall = time.perf_counter() - began
            page_tree, page_web = tree_cpu(process), sum(process.cpu_times()[:2])
            values = {"prompt": PROMPT, "seed": 1, "steps": STEPS, "width": SIZE, "height": SIZE}
            job = _ask(f"{address}/api/jobs", values)
            while job["state"] in ("queued", "running"):
                time.sleep(0.05)
                job = _ask(f"{address}/api/jobs/{job['id']}")
            if job["state"] != "done":
                raise SystemExit(f"the picture was not drawn: {job['error']}")
            return Start(page_wall, page_web, page_tree, time.perf_counter() - began, tree_cpu(process))
        finally:
            server.terminate()
            server.wait()


def _import_gradio() -> float:
    code = "import gradio, time; print(time.process_time())"
    return float(subprocess.check_output([sys.executable, "-c", code], cwd=ROOT))


def _raw() -> float:
    drawer = Drawer(Setup(str(ROOT / "models"), "starter", STEPS, SIZE, ("raw",)), psutil.Process().environ())
    try:
        drawer.draw("raw", PROMPT, 1)
        return drawer.total.cpu
    finally:
        drawer.close()


def _until_there(address: str, server: "subprocess.Popen[bytes]") -> None:
    until = time.monotonic() + PATIENCE
    while time.monotonic() < until:
        if server.poll() is not None:
            raise SystemExit(f"the server ended with exit code {server.returncode}")
        try:
            with urllib.request.urlopen(address, timeout=PATIENCE) as answer:
                answer.read()
                return
        except (urllib.error.URLError, ConnectionError):
            time.sleep(0.02)
    raise SystemExit(f"the server did not answer within {PATIENCE} s")


def _ask(url: str, values: dict[str, Any] | None = None) -> Any:
    body = json.dumps(values).encode() if values else None
    request = urllib.request.Request(url, body, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=PATIENCE) as answer:
        return json.loads(answer.read())


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
