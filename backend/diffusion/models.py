"""Load models from their folders, keep as many as the memory allows, let go of the one that was used longest ago."""

import gc
import inspect
import logging
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeVar, cast

import diffusers
import psutil
import torch
from PIL import Image

from backend.catalog import Model, fingerprint
from backend.diffusion import latents, preview, reading
from backend.diffusion.encode import Embeddings
from backend.diffusion.families import Family
from backend.errors import ModelBroken
from backend.request import ResizeMode, Task

log = logging.getLogger(__name__)

Attention = Literal["sdpa", "xformers"]
M = TypeVar("M", bound=torch.nn.Module)


@dataclass(frozen=True)
class Loaded:
    """A model in memory."""

    model: Model
    pipeline: Any
    colours: preview.Colours
    size: int
    """Bytes of its weights."""
    stamp: object
    """Differs when its files do."""
    family: Family
    fingerprint: "Future[str]"
    """SHA-256 of its weights, worked out in the background."""
    embeddings: Embeddings

    def pipeline_for(self, task: Task, components: Mapping[str, Any]) -> Any:
        """The pipeline for a task, with further or other components; no weights are copied."""
        inpaints = task is Task.INPAINT
        if not components and not inpaints:
            return self.pipeline
        name = self.family.pipelines[inpaints, "controlnet" in components]
        return _assemble(name, {**self.pipeline.components, **components})


class _Kept(NamedTuple):
    """A model beside the checkpoints."""

    module: torch.nn.Module
    stamp: object
    size: int


class ModelStore:
    """`budget` is in bytes of weights; one model is kept whatever it takes."""

    def __init__(self, device: torch.device, budget: int | None = None, attention: Attention = "sdpa") -> None:
        self._device = device
        self._budget = _default_budget(device) if budget is None else budget
        self._attention = attention
        self._loaded: OrderedDict[str, Loaded] = OrderedDict()
        self._beside: OrderedDict[str, _Kept] = OrderedDict()
        self._fingerprints: dict[object, Future[str]] = {}
        self._hasher = ThreadPoolExecutor(1, "fingerprint")

    def load(self, model: Model) -> Loaded:
        """The model, read from its files unless it is here already. Raises ModelBroken."""
        if model.problem:
            raise ModelBroken(f"the model {model.name} cannot be used: {model.problem}")
        stamp = _stamp(model.path)
        kept = self._loaded.get(model.name)
        if kept and kept.stamp != stamp:
            self.free(model.name)
            kept = None
        if kept is None:
            kept = self._loaded[model.name] = self._read(model, stamp)
        self._loaded.move_to_end(model.name)
        return kept

    def keep(self, path: Path, read: Callable[[Path], M]) -> M:
        """The module at `path`, read unless it is here already; see `Run.keep`."""
        stamp = _stamp(path)
        name = str(path)
        kept = self._beside.get(name)
        if kept is None or kept.stamp != stamp:
            self._beside.pop(name, None)
            self._make_room(sum(size for _, _, size in stamp), spared=1)  # the one in use
            module = read(path).eval()
            torch.nn.Module.to(module, self._device, _dtype(self._device))  # diffusers' own warns of nothing
            kept = self._beside[name] = _Kept(module, stamp, _bytes(module))
        self._beside.move_to_end(name)
        return cast(M, kept.module)

    def fingerprint(self, path: Path) -> "Future[str]":
        """SHA-256 of a model's file, or of all the weights in a folder, worked out in the background."""
        key = path, _stamp(path)
        if key not in self._fingerprints:
            self._fingerprints[key] = self._hasher.submit(fingerprint, path)
        return self._fingerprints[key]

    def is_loaded(self, model: Model) -> bool:
        return model.name in self._loaded

    def free(self, *names: str) -> None:
        """Let go of these models; of all if none is named."""
        for name in names or (*self._loaded, *self._beside):
            self._loaded.pop(name, None)
            self._beside.pop(name, None)
        gc.collect()
        if self._device.type == "cuda":
            torch.cuda.empty_cache()

    def _read(self, model: Model, stamp: object) -> Loaded:
        started = time.perf_counter()
        family = reading.family_of(model)
        dtypes = reading.dtypes(model, family, _dtype(self._device))
        self._make_room(reading.size(model, family, dtypes))
        parts = reading.parts(model, family, dtypes)
        scheduler = reading.scheduler(model)
        scheduler.model_dtype = dtypes["unet"]
        pipeline = _assemble(family.pipelines[False, False], {**parts, "scheduler": scheduler})
        pipeline.to(self._device)
        if reading.inpaints(parts["unet"].config, parts["vae"].config):
            _take_blanks(pipeline)
        if self._attention == "xformers" and self._device.type == "cuda":
            _use_xformers(pipeline)
        size = sum(_bytes(parts[name]) for name in dtypes)
        colours = preview.fit(pipeline.vae)
        log.info("model %s loaded in %.1f s, %d MB", model.name, time.perf_counter() - started, size >> 20)
        hashed, embeddings = self.fingerprint(model.path), Embeddings(family.reading)
        return Loaded(model, pipeline, colours, size, stamp, family, hashed, embeddings)

    def _make_room(self, size: int, spared: int = 0) -> None:
        """Let go of what was used longest ago, first of what lies beside the checkpoints: it is read in less time.

        `spared` of the checkpoints stay, those used last.
        """
        while self._taken() + size > self._budget and (self._beside or len(self._loaded) > spared):
            oldest = next(iter(self._beside or self._loaded))
            log.info("model %s makes room", oldest)
            self.free(oldest)

    def _taken(self) -> int:
        return sum(m.size for m in self._loaded.values()) + sum(m.size for m in self._beside.values())


def best_device() -> torch.device:
    """The graphics card if there is one that torch can use, else the processor."""
    if torch.cuda.is_available():
        return torch.device("cuda")
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")


def _default_budget(device: torch.device) -> int:
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).total_memory) * 7 // 10
    return int(psutil.virtual_memory().total) // 2


def _dtype(device: torch.device) -> torch.dtype:
    return torch.float16 if device.type == "cuda" else torch.float32


def _bytes(module: torch.nn.Module) -> int:
    return sum(p.nbytes for p in module.parameters())


def _stamp(path: Path) -> tuple[tuple[str, int, int], ...]:
    """Name, time and size of a file, or of each file in a model's folder: its own and those of its parts."""
    files = [path] if path.is_file() else [f for f in sorted([*path.glob("*"), *path.glob("*/*")]) if f.is_file()]
    return tuple((str(file), (stat := file.stat()).st_mtime_ns, stat.st_size) for file in files)


# --- inpainting checkpoints


HIDDEN = "#7f7f7f"
"""What such a checkpoint is shown where a picture is masked."""


def _take_blanks(pipeline: Any) -> None:
    """Show the UNet a mask over everything wherever nobody gives it one, as A1111 does: it draws from nothing then."""
    unet, vae = pipeline.unet, pipeline.vae

    @lru_cache(maxsize=4)
    def blank(height: int, width: int) -> torch.Tensor:
        size = width * latents.factor(vae), height * latents.factor(vae)
        with torch.inference_mode():
            hidden = latents.encode(vae, Image.new("RGB", size, HIDDEN), *size, ResizeMode.JUST_RESIZE)
        return torch.cat([torch.ones_like(hidden[:, :1]), hidden], dim=1)

    def complete(_: Any, arguments: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...] | None:
        sample, *others = arguments
        if sample.shape[1] == unet.config.in_channels:
            return None
        beside = blank(*sample.shape[-2:]).to(sample).expand(len(sample), -1, -1, -1)
        return torch.cat([sample, beside], dim=1), *others

    unet.register_forward_pre_hook(complete)


# --- assembling


def _assemble(name: str, components: Mapping[str, Any]) -> Any:
    kind = _guided(name)
    nothing = dict.fromkeys(("safety_checker", "feature_extractor"))
    optional = {**nothing, "requires_safety_checker": False, "add_watermarker": False}
    taken = inspect.signature(kind.__init__).parameters
    pipeline = kind(**{key: value for key, value in {**optional, **components}.items() if key in taken})
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def _use_xformers(pipeline: Any) -> None:
    try:
        pipeline.enable_xformers_memory_efficient_attention()
    except (ImportError, ValueError, NotImplementedError, RuntimeError) as error:
        log.warning("xformers cannot be used here (%s); torch's own attention is", reading.first_line(error))


@lru_cache
def _guided(name: str) -> Any:
    """diffusers' pipeline, but guided below 1 too, where diffusers ignores the negative prompt and A1111 does not."""

    def guides(self: Any) -> bool:
        return bool(self.guidance_scale != 1 and self.unet.config.time_cond_proj_dim is None)

    return type(name, (getattr(diffusers, name),), {"do_classifier_free_guidance": property(guides)})
