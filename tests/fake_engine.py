"""An engine without torch that does what the prompt says: `slow:0.05`, `wait:0`, `die:3`, `hang:2`, `raise` ..."""

import io
import os
import random
import signal
import sys
import time
from dataclasses import replace

from PIL import Image
from PIL.PngImagePlugin import PngInfo

from backend import infotext
from backend.catalog import Catalog
from backend.errors import ModelBroken
from backend.hardware import Hardware
from backend.images import ImageStore
from backend.registry import Registry
from backend.request import GenerationRequest
from backend.result import BatchSkipped, Picture, Progress, Report, Result

MODEL = {"fake": "f" * 64}


class FakeEngine:
    device = "fake"

    def __init__(
        self, catalog: Catalog, registry: Registry, device: str | None = None, hardware: Hardware | None = None
    ) -> None:
        self.hardware = hardware
        if device == "broken":
            raise RuntimeError("no torch here\nand a second line")
        if device == "fatal":
            os._exit(7)

    def generate(
        self, request: GenerationRequest, images: ImageStore, report: Report, done: frozenset[int] = frozenset()
    ) -> Result:
        does = dict(word.partition(":")[::2] for word in request.prompt.split())
        if "hardware" in does:
            raise ModelBroken(str(self.hardware))
        _misbehave(does)
        finished = []
        for batch in range(request.n_iter):
            indices = range(batch * request.batch_size, (batch + 1) * request.batch_size)
            if done.issuperset(indices):
                continue
            notices = (does["notice"],) if "notice" in does else ()
            at = Progress("encoding", 0, request.steps, batch, request.n_iter, notices=notices)
            try:
                report(at)
                for step in range(1, request.steps + 1):
                    time.sleep(float(does.get("slow", 0)))
                    if str(step) == does.get("die"):
                        os.kill(os.getpid(), signal.SIGKILL)
                    if str(step) == does.get("hang"):
                        time.sleep(1000)
                    told = replace(at, stage="sampling", step=step, preview=b"preview")
                    report(told)
                    while str(batch) == does.get("wait"):  # in this batch, until it is skipped or stopped
                        time.sleep(0.02)
                        report(told)
            except BatchSkipped:
                continue
            for index in indices:
                report(replace(at, stage="saving", step=request.steps, picture=picture(request, index)))
                finished.append(index)
        return Result(request, tuple(finished))


def picture(request: GenerationRequest, index: int) -> Picture:
    """The same bytes for the same request and index."""
    alone = request.model_copy(update={"seed": request.seed + index, "batch_size": 1, "n_iter": 1})
    text = infotext.write(alone)
    noise = random.Random(alone.seed).randbytes(3 * alone.width * alone.height)
    chunk, out = PngInfo(), io.BytesIO()
    chunk.add_text("parameters", text)
    Image.frombytes("RGB", (alone.width, alone.height), noise).save(out, "PNG", pnginfo=chunk, compress_level=1)
    return Picture(index, out.getvalue(), alone, text, alone.width, alone.height, MODEL)


def _misbehave(does: dict[str, str]) -> None:
    if "print" in does:
        sys.stdout.write("noise on standard output\n")
        sys.stdout.flush()
        os.write(1, b"\0\0\0\0\0\0\0\0more of it")
    if "raise" in does:
        raise ZeroDivisionError("division by\nzero")
    if "refuse" in does:
        raise ModelBroken("the model is cut short")
    if "exit" in does:
        sys.exit("an extension said so")
    if "ruin" in does:
        raise RuntimeError("CUDA error: an illegal memory access was encountered")
    if "environment" in does:
        raise ModelBroken(" ".join(f"{name}={os.environ.get(name)}" for name in does["environment"].split(",")))
    if "modules" in does:
        raise ModelBroken(" ".join(name for name in sys.modules if name.startswith(("backend.", "ui", "torch"))))
