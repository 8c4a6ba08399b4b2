"""Load models from their folders, keep as many as the memory allows, let go of the one that was used longest ago."""

import gc
import inspect
import json
import logging
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeVar, cast

import diffusers
import psutil
import torch
from diffusers import AutoencoderKL, StableDiffusionPipeline, UNet2DConditionModel
from PIL import Image
from safetensors import SafetensorError, safe_open
from transformers import CLIPTextModel, CLIPTokenizer

from backend.catalog import Model, fingerprint
from backend.diffusion import latents, preview, samplers
from backend.diffusion.encode import Embeddings
from backend.errors import ModelBroken
from backend.request import ResizeMode, Task

log = logging.getLogger(__name__)

Attention = Literal["sdpa", "xformers"]
M = TypeVar("M", bound=torch.nn.Module)


class Part(NamedTuple):
    """A component that is read from a folder of its own."""

    kind: Any
    weights: str = ""
    """The stem of their file; empty: it has none."""

    @property
    def name(self) -> list[str]:
        """How model_index.json calls it."""
        return [self.kind.__module__.partition(".")[0], self.kind.__name__]


class Family(NamedTuple):
    parts: Mapping[str, Part]
    pipelines: Mapping[tuple[bool, bool], str]
    """The name of diffusers' class, by whether it inpaints and whether it has a ControlNet; imported when needed."""


FAMILIES: Mapping[str, Family] = {
    StableDiffusionPipeline.__name__: Family(
        parts={
            "tokenizer": Part(CLIPTokenizer),
            "text_encoder": Part(CLIPTextModel, "model"),
            "vae": Part(AutoencoderKL, "diffusion_pytorch_model"),
            "unet": Part(UNet2DConditionModel, "diffusion_pytorch_model"),
        },
        pipelines={
            (False, False): "StableDiffusionPipeline",
            (False, True): "StableDiffusionControlNetPipeline",
            (True, False): "StableDiffusionInpaintPipeline",
            (True, True): "StableDiffusionControlNetInpaintPipeline",
        },
    ),
}
"""What may be loaded, and nothing else: a folder never brings code of its own."""


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
    embeddings: Embeddings = field(default_factory=Embeddings)

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
            module = read(path).to(self._device, _dtype(self._device)).eval()
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
        dtype = _dtype(self._device)
        family = _family(model)
        files = {name: _weights(model, name, part) for name, part in family.parts.items() if part.weights}
        self._make_room(sum(_numbers(model, file) for group in files.values() for file in group) * dtype.itemsize)
        parts = {name: _part(model, name, part, dtype) for name, part in family.parts.items()}
        _fit_together(model, parts)
        try:
            scheduler = samplers.from_config(_json(model, model.path / "scheduler" / "scheduler_config.json"))
        except ValueError as error:
            raise _broken(model, "scheduler/scheduler_config.json", str(error)) from error
        scheduler.model_dtype = dtype
        pipeline = _assemble(family.pipelines[False, False], {**parts, "scheduler": scheduler})
        pipeline.to(self._device)
        if _inpaints(parts["unet"].config, parts["vae"].config):
            _take_blanks(pipeline)
        if self._attention == "xformers" and self._device.type == "cuda":
            _use_xformers(pipeline)
        size = sum(_bytes(parts[name]) for name in files)
        colours = preview.fit(pipeline.vae)
        log.info("model %s loaded in %.1f s, %d MB", model.name, time.perf_counter() - started, size >> 20)
        return Loaded(model, pipeline, colours, size, stamp, family, self.fingerprint(model.path))

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
    """Name, time and size of a file, or of each file in a folder."""
    files = [path] if path.is_file() else [file for file in sorted(path.rglob("*")) if file.is_file()]
    return tuple((str(file), (stat := file.stat()).st_mtime_ns, stat.st_size) for file in files)


# --- reading, with one clear sentence for whatever is wrong


def _broken(model: Model, file: str, reason: str) -> ModelBroken:
    return ModelBroken(f"the model {model.name} cannot be loaded: {file} {reason}")


def _family(model: Model) -> Family:
    index = _json(model, model.path / "model_index.json")
    name = index.get("_class_name")
    if not isinstance(name, str) or name not in FAMILIES:
        raise _broken(model, "model_index.json", f"asks for {name!r}; what can be run is {', '.join(FAMILIES)}")
    for component, part in FAMILIES[name].parts.items():
        given = index.get(component)
        if given != part.name:
            raise _broken(model, "model_index.json", f"asks for {given!r} as {component}, not {part.kind.__name__}")
    return FAMILIES[name]


def _json(model: Model, file: Path) -> dict[str, Any]:
    name = file.relative_to(model.path).as_posix()
    try:
        content = json.loads(file.read_text("utf-8"))
    except FileNotFoundError:
        raise _broken(model, name, "is missing") from None
    except (OSError, ValueError) as error:
        raise _broken(model, name, f"cannot be read ({error})") from error
    if not isinstance(content, dict):
        raise _broken(model, name, "is no JSON object")
    return content


def _weights(model: Model, component: str, part: Part) -> list[Path]:
    """The files that from_pretrained would read."""
    whole = model.path / component / f"{part.weights}.safetensors"
    shards = sorted(whole.parent.glob(f"{part.weights}-*.safetensors"))
    if whole.is_file():
        return [whole]
    if not shards:
        raise _broken(model, f"{component}/{whole.name}", "is missing")
    return shards


def _numbers(model: Model, file: Path) -> int:
    """How many numbers a safetensors file holds, by its header."""
    try:
        with safe_open(file, "pt") as tensors:
            return sum(_product(tensors.get_slice(key).get_shape()) for key in tensors.keys())  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        name = file.relative_to(model.path).as_posix()
        raise _broken(model, name, f"is damaged or cut short ({error})") from error


def _part(model: Model, name: str, part: Part, dtype: torch.dtype) -> Any:
    folder = model.path / name
    if not folder.is_dir():
        raise _broken(model, name, "is missing")
    if (folder / "adapter_config.json").exists():  # transformers would fetch the base model that it names
        raise _broken(model, f"{name}/adapter_config.json", "does not belong there")
    try:
        if not part.weights:
            return part.kind.from_pretrained(folder, local_files_only=True)
        _json(model, folder / "config.json")
        loaded, report = part.kind.from_pretrained(
            folder, local_files_only=True, use_safetensors=True, torch_dtype=dtype, output_loading_info=True
        )
    except (MemoryError, torch.OutOfMemoryError, ModelBroken):
        raise
    except Exception as error:  # whatever the libraries raise on a broken folder
        raise _broken(model, name, f"cannot be read ({_first_line(error)})") from error
    if wrong := [*report["missing_keys"], *report["mismatched_keys"], *report["error_msgs"]]:
        raise _broken(model, name, f"lacks weights or has wrong ones: {wrong[0]} and {len(wrong) - 1} more")
    return loaded.eval()


def _fit_together(model: Model, parts: Mapping[str, Any]) -> None:
    unet, vae, text = parts["unet"].config, parts["vae"].config, parts["text_encoder"].config
    if unet.cross_attention_dim != text.hidden_size:
        wants = f"wants text of width {unet.cross_attention_dim}, the text encoder gives {text.hidden_size}"
        raise _broken(model, "unet", wants)
    if unet.in_channels != vae.latent_channels and not _inpaints(unet, vae):
        wants = f"wants latents of {unet.in_channels} channels, the VAE gives {vae.latent_channels}"
        raise _broken(model, "unet", wants)
    if len(parts["tokenizer"]) > text.vocab_size:
        knows = f"knows {len(parts['tokenizer'])} tokens, the text encoder {text.vocab_size}"
        raise _broken(model, "tokenizer", knows)


def _first_line(error: Exception) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)[:200]


def _product(shape: list[int]) -> int:
    product = 1
    for side in shape:
        product *= side
    return product


# --- inpainting checkpoints


HIDDEN = "#7f7f7f"
"""What such a checkpoint is shown where a picture is masked."""


def _inpaints(unet: Any, vae: Any) -> bool:
    """Whether the UNet is shown a mask and what it leaves of a picture beside the latents: 4 + 1 + 4 channels."""
    return bool(unet.in_channels == 2 * vae.latent_channels + 1)


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
    optional = {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
    taken = inspect.signature(kind.__init__).parameters
    pipeline = kind(**{key: value for key, value in {**optional, **components}.items() if key in taken})
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def _use_xformers(pipeline: Any) -> None:
    try:
        pipeline.enable_xformers_memory_efficient_attention()
    except (ImportError, ValueError, NotImplementedError, RuntimeError) as error:
        log.warning("xformers cannot be used here (%s); torch's own attention is", _first_line(error))


@lru_cache
def _guided(name: str) -> Any:
    """diffusers' pipeline, but guided below 1 too, where diffusers ignores the negative prompt and A1111 does not."""

    def guides(self: Any) -> bool:
        return bool(self.guidance_scale != 1 and self.unet.config.time_cond_proj_dim is None)

    return type(name, (getattr(diffusers, name),), {"do_classifier_free_guidance": property(guides)})
