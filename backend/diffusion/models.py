"""Models in memory: read when they are asked for, kept as long as there is room, the latest used last to go."""

import inspect
import logging
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache, partial
from pathlib import Path
from typing import Any, NamedTuple, TypeVar, cast

import diffusers
import torch

from backend.catalog import Model, fingerprint
from backend.diffusion import attention, masked, memory, placement, preview, reading
from backend.diffusion.encode import Embeddings
from backend.diffusion.families import Family
from backend.diffusion.memory import Budget, Held
from backend.diffusion.placement import Placed
from backend.errors import AtelierError, ModelBroken, gist
from backend.hardware import Hardware
from backend.request import Task

log = logging.getLogger(__name__)

M = TypeVar("M", bound=torch.nn.Module)


@dataclass(frozen=True)
class Loaded:
    """A model in memory."""

    model: Model
    pipeline: Any
    sizes: Mapping[str, int]
    """Bytes of the weights of each part."""
    stamp: object
    """Differs when its files do."""
    family: Family
    fingerprint: "Future[str]"
    """SHA-256 of its weights, worked out in the background."""
    embeddings: Embeddings
    dtype: torch.dtype
    """What it computes in."""
    vae_dtype: torch.dtype
    """What its VAE was read in; it may have turned out that it needs more."""
    notes: Mapping[str, str]
    """What its pictures' texts say of how it is run."""
    placed: Placed
    packed: bool
    """Whether what is quantised in its files is so in memory."""

    @property
    def size(self) -> int:
        return sum(self.sizes.values())

    def with_vae(self, vae: Any) -> "Loaded":
        """The same with another VAE; no weights are copied."""
        components = {**self.pipeline.components, "vae": vae}
        pipeline = _assemble(self.family.pipelines[False, False], components, self.family.unguided)
        return replace(self, pipeline=pipeline, vae_dtype=self.dtype)

    @cached_property
    def colours(self) -> preview.Colours:
        """What previews are made by; fitted when the first one is due."""
        return preview.fit(self.pipeline.vae)

    @property
    def denoiser(self) -> Any:
        """The part that is called at every step."""
        return getattr(self.pipeline, self.family.denoiser)

    def pipeline_for(self, task: Task, components: Mapping[str, Any]) -> Any:
        """The pipeline for a task, with further or other components; no weights are copied."""
        inpaints = task is Task.INPAINT
        if not components and not inpaints:
            return self.pipeline
        name = self.family.pipelines.get((inpaints, "controlnet" in components))
        if name is None:
            raise AtelierError(f"{self.model.name}: its family has no pipeline for what an extension asks of it")
        return _assemble(name, {**self.pipeline.components, **components}, self.family.unguided)


class _Kept(NamedTuple):
    """A model beside the checkpoints."""

    module: torch.nn.Module
    stamp: object
    size: int


class ModelStore:
    """Models in memory, within `budget`; the one in use is kept whatever it takes."""

    def __init__(
        self,
        device: torch.device,
        budget: Budget | None = None,
        hardware: Hardware | None = None,
        digest: Callable[[Path], str] | None = None,
    ) -> None:
        """`digest` is one that remembers (`Catalog.fingerprint`)."""
        self._device = device
        self._digest = digest
        self._hardware = hardware or Hardware()
        self._budget = budget or memory.budget(device, self._hardware)
        self._loaded: OrderedDict[str, Loaded] = OrderedDict()
        self._beside: OrderedDict[str, _Kept] = OrderedDict()
        self._used: set[str] = set()
        """What has been asked for since the latest loading of a checkpoint: whoever draws with it may hold it."""
        self._warm: set[str] = set()
        """What has left the graphics card and waits in RAM."""
        self._lowered: dict[str, Placed] = {}
        """Models that did not fit as they were placed at first."""
        self._packed: set[str] = set()
        """Models that did not fit with their quantised weights made whole."""
        self._ways: dict[torch.dtype, tuple[str, ...]] = {}
        self._dressed: tuple[Loaded, Loaded] | None = None
        """The model that last had another VAE, without and with it."""
        self._fingerprints: dict[object, Future[str]] = {}
        self._told: dict[object, Model] = {}
        """Pickles, which are hashed before they are opened."""
        self._hasher = ThreadPoolExecutor(1, "fingerprint")

    def told(self, model: Model) -> Model:
        """The same; of a pickle that somebody has consented to, also what its tensors tell. Raises ModelBroken."""
        if model.family or not model.consented:
            return model
        key = model.path, _stamp(model.path)
        if key not in self._told:
            self._told[key] = reading.told(model)
        return self._told[key]

    def load(self, model: Model, vae: Model | None = None) -> Loaded:
        """The model, read from its files unless it is here already, with another VAE if one is named.

        Raises ModelBroken.
        """
        if model.problem:
            raise ModelBroken(f"the model {model.name} cannot be used: {model.problem}")
        self._used.clear()
        stamp = model.variant, *(_stamp(path) for path in (model.path, *model.beside.values()))
        kept = self._loaded.get(model.name)
        if kept and (kept.stamp != stamp or _has_failed(kept.fingerprint)):
            self.free(model.name)
            kept = None
        if kept is None:
            kept = self._loaded[model.name] = self._read(model, stamp)
        elif model.name in self._warm:
            started = time.perf_counter()
            needed = self._takes(kept.sizes, kept.placed)._replace(ram=0)
            self._make_room(needed, _working(model), stays=model.name)
            placement.come_back(kept.pipeline, kept.placed, self._device)
            self._warm.discard(model.name)
            log.info("model %s is back on the card after %.1f s", model.name, time.perf_counter() - started)
        self._loaded.move_to_end(model.name)
        if vae is None:
            return kept
        module = self.keep(vae.path, partial(reading.vae, model), model.family)  # families scale latents their own way
        if not self._dressed or (self._dressed[0] is not kept or self._dressed[1].pipeline.vae is not module):
            self._dressed = kept, kept.with_vae(module)
        return self._dressed[1]

    def keep(
        self,
        path: Path,
        read: Callable[[Path], M],
        variant: str = "",
        *,
        beside: Sequence[Path] = (),
        dtype: torch.dtype | None = None,
    ) -> M:
        """The module at `path`, read unless it is here already; see `Run.keep`.

        `variant` tells apart what `read` makes of one file.
        """
        stamp = tuple(file for each in (path, *beside) for file in _stamp(each))
        name = " ".join(filter(None, (*map(str, (path, *beside)), variant)))
        self._used.add(name)
        kept = self._beside.get(name)
        if kept is None or kept.stamp != stamp:
            self._beside.pop(name, None)
            self._make_room(self._takes({name: sum(size for _, _, size in stamp)}), stays=self._latest)
            module = read(path).eval()
            torch.nn.Module.to(module, self._device, dtype or self._dtype)  # diffusers' own warns of nothing
            on_disk = sum(size for _, _, size in stamp)
            kept = self._beside[name] = _Kept(module, stamp, _bytes(module) or on_disk)  # not all are torch's
        elif name in self._warm:
            self._make_room(self._takes({name: kept.size})._replace(ram=0), stays=self._latest)
            torch.nn.Module.to(kept.module, self._device)
        self._warm.discard(name)
        self._beside.move_to_end(name)
        return cast(M, kept.module)

    def fingerprint(self, path: Path) -> "Future[str]":
        """SHA-256 of a file or of all the weights in a folder, or ModelBroken; worked out in the background."""
        key = path, _stamp(path)
        if key not in self._fingerprints or _has_failed(self._fingerprints[key]):
            self._fingerprints[key] = self._hasher.submit(self._hash, path)
        return self._fingerprints[key]

    def rest(self, model: Model) -> None:
        """Its parts, whatever VAE it is used with, go back to where they wait while they are not used."""
        if kept := self._loaded.get(model.name):
            placement.rest(kept.pipeline, kept.placed)

    def is_loaded(self, model: Model) -> bool:
        """Whether it needs no more than a moment to be used."""
        return model.name in self._loaded

    def free(self, *names: str) -> None:
        """Let go of these models; of all if none is named."""
        self._dressed = None
        for name in names or (*self._loaded, *self._beside):
            self._loaded.pop(name, None)
            self._beside.pop(name, None)
            self._warm.discard(name)
        memory.release(self._device)

    def free_others(self, model: Model | None) -> None:
        """Let go of all but this one."""
        for name in [name for name in (*self._loaded, *self._beside) if model is None or name != model.name]:
            self.free(name)
        memory.release(self._device)

    def lower(self, model: Model) -> str | None:
        """Have less of the model in memory from its next loading on, and say what; None: there can be no less."""
        kept = self._loaded.get(model.name)
        if self._is_made_whole(model, kept):
            self._packed.add(model.name)
            self.free(model.name)
            return "the weights of the model stay quantised"
        placed = kept.placed if kept else self._lowered.get(model.name, "none")
        lower = placement.LOWER.get(placed) if self._device.type == "cuda" else None
        if lower is None:
            return None
        self._lowered[model.name] = lower
        self.free(model.name)
        return f"less of the model lies on the graphics card (offload: {lower})"

    def _is_made_whole(self, model: Model, kept: Loaded | None) -> bool:
        """Whether it is larger in memory than its files are, for these are quantised."""
        if model.name in self._packed or (kept and kept.packed):
            return False
        family, dtypes = self._kinds(model)
        whole, packed = (reading.sizes(model, family, dtypes, stays) for stays in (False, True))
        return sum(packed.values()) < (kept.size if kept else sum(whole.values()))

    def _kinds(self, model: Model) -> tuple[Family, dict[str, torch.dtype]]:
        """Its family, and what its parts are read as."""
        family = reading.family_of(model)
        dtype = placement.compute_dtype(self._device, self._hardware.precision, family.flow is not None)
        return family, reading.dtypes(model, family, dtype)

    def _read(self, model: Model, stamp: object) -> Loaded:
        started = time.perf_counter()
        family, dtypes = self._kinds(model)
        scheduler, dtype = reading.scheduler(model), dtypes[family.denoiser]
        sizes = reading.sizes(model, family, dtypes)
        if packed := model.name in self._packed or not self._fits(model, sizes):
            sizes = reading.sizes(model, family, dtypes, packed)
        placed = self._placed(model, sizes)
        self._make_room(self._takes(sizes, placed), _working(model))
        parts = reading.parts(model, family, dtypes, packed)
        scheduler.model_dtype, scheduler.flow = dtypes[family.denoiser], family.flow
        pipeline = _assemble(family.pipelines[False, False], {**parts, "scheduler": scheduler}, family.unguided)
        notes = {}
        if self._hardware.precision == "fp8":
            placement.in_eight_bits(pipeline, dtype)
            notes["FP8 weight"] = "Enable"  # A1111's words
        placement.put(pipeline, placed, self._device)
        if masked.inpaints(parts[family.denoiser], parts["vae"]):
            masked.show_blanks(parts[family.denoiser], parts["vae"])
        if family.before:
            parts[family.denoiser].register_forward_pre_hook(family.before, with_kwargs=True)
        way = attention.apply(pipeline, self._ways_of(dtype), chosen=self._hardware.attention != "auto")
        if way != attention.DEFAULT:
            notes["Attention"] = way
        sizes = {name: _bytes(parts[name]) for name in dtypes if parts[name] is not None}
        size = sum(sizes.values()) >> 20
        log.info(
            "model %s loaded in %.1f s, %d MB, offload %s", model.name, time.perf_counter() - started, size, placed
        )
        hashed, embeddings = self.fingerprint(model.path), Embeddings(family.reading)
        return Loaded(
            *(model, pipeline, sizes, stamp, family, hashed, embeddings),
            *(dtype, dtypes["vae"], notes, placed, packed),
        )

    def _hash(self, path: Path) -> str:
        try:
            return (self._digest or fingerprint)(path)
        except OSError as error:
            raise ModelBroken(f"the model in {path.name} cannot be read any more ({gist(error)})") from error

    def _ways_of(self, dtype: torch.dtype) -> tuple[str, ...]:
        if dtype not in self._ways:
            self._ways[dtype] = attention.ways(self._hardware.attention, self._device, dtype)
        return self._ways[dtype]

    def _fits(self, model: Model, sizes: Mapping[str, int]) -> bool:
        """Whether all of it could lie where it is used, once others have left: then nothing of it stays quantised."""
        needed, there = self._takes(sizes), memory.within(self._budget, self._all_held(), self._device)
        working = _working(model) if self._device.type == "cuda" else 0
        return needed.ram <= there.ram and needed.vram + working <= there.vram

    def _placed(self, model: Model, sizes: Mapping[str, int]) -> Placed:
        if self._device.type != "cuda":
            return "none"
        if model.name in self._lowered:
            return self._lowered[model.name]
        return placement.place(sizes, _working(model), self._budget.vram, self._hardware.offload)

    @property
    def _dtype(self) -> torch.dtype:
        """That of the checkpoint in use."""
        if self._loaded:
            return self._loaded[self._latest].dtype
        return placement.compute_dtype(self._device, self._hardware.precision, flow=False)

    @property
    def _latest(self) -> str:
        """The checkpoint in use, if there is one."""
        return next(reversed(self._loaded), "")

    def _takes(self, sizes: Mapping[str, int], placed: Placed = "none", warm: bool = False) -> Budget:
        """Where a model with parts of these sizes lies."""
        if self._device.type != "cuda" or warm:
            return Budget(sum(sizes.values()))
        return Budget(0 if placed == "none" else sum(sizes.values()), placement.resident(sizes, placed))

    def _make_room(self, needed: Budget, working: int = 0, stays: str = "") -> None:
        """Have others leave, those used longest ago first, and before them what lies beside the checkpoints.

        `working` is what drawing takes of a card beside the weights.
        """
        held = self._all_held(stays)
        if self._device.type == "cuda":
            needed = needed._replace(vram=needed.vram + working)
        for name, to_ram in memory.room(held, needed, memory.within(self._budget, held, self._device)):
            to_ram = to_ram and name not in self._used  # else it would be in RAM in the middle of a picture
            log.info("model %s %s", name, "waits in RAM" if to_ram else "makes room")
            if to_ram:
                self._to_ram(name)
            else:
                self.free(name)

    def _all_held(self, stays: str = "") -> list[Held]:
        held = [self._held(name, {name: kept.size}) for name, kept in self._beside.items()]
        return held + [self._held(name, loaded.sizes, loaded.placed, stays) for name, loaded in self._loaded.items()]

    def _held(self, name: str, sizes: Mapping[str, int], placed: Placed = "none", stays: str = "") -> Held:
        ram, vram = self._takes(sizes, placed, name in self._warm)
        return Held(name, sum(sizes.values()), vram, ram, name == stays)

    def _to_ram(self, name: str) -> None:
        self._warm.add(name)
        if name in self._beside:
            torch.nn.Module.to(self._beside[name].module, "cpu")
        else:
            placement.leave(self._loaded[name].pipeline, self._loaded[name].placed)
        memory.release(self._device)


def best_device() -> torch.device:
    """The graphics card if there is one that torch can use, else the processor."""
    if torch.cuda.is_available():
        return torch.device("cuda")
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")


def _has_failed(hashed: "Future[str]") -> bool:
    return hashed.done() and hashed.exception() is not None


def _working(model: Model) -> int:
    """Bytes that its pictures take while they are drawn, at the size that suits it."""
    width, height = (side if isinstance(side := model.usual.get(name), int) else 512 for name in ("width", "height"))
    return placement.working(width, height)


def _bytes(module: torch.nn.Module) -> int:
    return sum(p.nbytes for p in module.parameters())


def _stamp(path: Path) -> tuple[tuple[str, int, int], ...]:
    """Name, time and size of a file, or of each file in a model's folder: its own and those of its parts."""
    files = [path] if path.is_file() else [f for f in sorted([*path.glob("*"), *path.glob("*/*")]) if f.is_file()]
    return tuple((str(file), (stat := file.stat()).st_mtime_ns, stat.st_size) for file in files)


# --- assembling


def _assemble(name: str, components: Mapping[str, Any], unguided: float) -> Any:
    kind = _guided(name, unguided)
    nothing = dict.fromkeys(("safety_checker", "feature_extractor", "tokenizer", "text_encoder"))
    optional = {**nothing, "requires_safety_checker": False, "add_watermarker": False}
    taken = inspect.signature(kind.__init__).parameters
    pipeline = kind(**{key: value for key, value in {**optional, **components}.items() if key in taken})
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@lru_cache
def _guided(name: str, unguided: float) -> Any:
    """diffusers' pipeline, but guided below 1 too, where diffusers ignores the negative prompt and A1111 does not."""

    def guides(self: Any) -> bool:
        knows = "unet" in self.components and self.unet.config.time_cond_proj_dim is not None
        by_image = getattr(self, "image_guidance_scale", 1) != 1
        return bool((self.guidance_scale != unguided or by_image) and not knows)

    return type(name, (getattr(diffusers, name),), {"do_classifier_free_guidance": property(guides)})
