"""A training from begin to end: reads the pictures, steps, draws samples, saves, and puts the LoRA where it is used.

Whoever runs it gives a `report`, which hears of every step, may ask for a save or a sample, and raises JobCancelled to
stop: what has been learnt is saved then, and `run` on the same folder goes on with the very next step.
"""

import json
import logging
import shutil
import statistics
import time
from collections import deque
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import diffusers
import torch
import transformers
from diffusers import StableDiffusionPipeline, StableDiffusionXLPipeline
from PIL import Image
from safetensors import SafetensorError
from safetensors.torch import save

from backend.catalog import Catalog, old_hash
from backend.errors import Conflict, InvalidRequest, Problem, StorageFull, TrainingFailed
from backend.files import replacing, storing, write_atomically
from backend.locks import held
from backend.result import JobCancelled
from backend.training import base as bases
from backend.training import card, dataset, file, kohya, pictures, preflight
from backend.training.device import best, is_short, memory
from backend.training.latents import Latents
from backend.training.lora import ADAPTER, Step, Trainer
from backend.training.params import RATES, Sample, TrainParams, relief
from backend.training.preflight import Preflight
from backend.training.records import DIFFUSERS, HISTORY, LOCK, Training

log = logging.getLogger(__name__)

Stage = Literal["loading", "encoding", "training", "validating", "sampling", "saving", "done"]
Wish = Literal["save", "sample"]
UNFINISHED = ".diffusers"
"""Folder of a training that diffusers writes into."""
PROMPTED = 4
"""Captions that are drawn if no sample prompt is given."""


@dataclass(frozen=True)
class Progress:
    """How far a training is; plain data."""

    stage: Stage
    step: int = 0
    steps: int = 0
    epoch: int = 0
    loss: float | None = None
    rate: float | None = None
    validation: float | None = None
    seconds_left: float | None = None
    memory: int = 0
    """Bytes."""
    part: int = 0
    parts: int = 0
    """Pictures encoded, or drawn, in this stage."""
    sample: Path | None = None
    """A picture that has just been drawn."""


Report = Callable[[Progress], Collection[Wish] | None]
"""Called at every step; may name what to do now, or raise JobCancelled."""


@dataclass(frozen=True)
class Result:
    files: dict[str, Path]
    """weights, preview, card; and diffusers, the same weights in its layout."""
    steps: int
    seconds: float


class Session:
    """One training on one device. `loras` is the folder where the LoRA goes, `cache` is shared by all trainings."""

    def __init__(self, training: Training, catalog: Catalog, loras: Path, cache: Path, device: str | None = None):
        self.training = training
        self.loras, self.cache = loras, cache
        self.model = catalog.find(training.params.model)
        self.device = torch.device(device) if device else best()
        diffusers.utils.logging.disable_progress_bar()
        transformers.utils.logging.disable_progress_bar()
        self._times: deque[float] = deque(maxlen=20)
        self._drawn: deque[float] = deque(maxlen=8)
        self._last = Progress("loading")
        self._trainer: Trainer | None = None

    @contextmanager
    def aside(self) -> Iterator[None]:
        """While somebody else computes: if the graphics card's memory is short, all of it waits in the machine's."""
        moved = self._trainer if self.device.type == "cuda" and is_short(self.device) else None
        if moved:
            moved.to(torch.device("cpu"))
        yield
        if moved:
            moved.to(self.device)

    def run(self, report: Report) -> Result:
        """Raises JobCancelled when the report does, TrainingFailed, StorageFull, InvalidRequest, Conflict."""
        started = time.monotonic()
        self.training.folder.mkdir(parents=True, exist_ok=True)
        with held(self.training.folder / LOCK) as lock, self._remedy_kept(), self._memory_named():
            if lock is None:
                raise Conflict(f"the training {self.training.name} is running already")
            trainer = self._ready(report)
            with self._saved_when_stopped(trainer):
                self._learn(trainer, report)
            self._tell(report, "saving", trainer)
            files = self._finish(trainer)
            self._tell(report, "done", trainer)
        return Result(files, trainer.done, time.monotonic() - started)

    def rehearse(self, report: Report) -> Preflight:
        """Make one step without consequences. Raises whatever the training would."""
        with self._memory_named():
            trainer = self._ready(report, kept=False)
            began = time.monotonic()
            loss = trainer.step().loss
            self._times.append(time.monotonic() - began)
            if self.training.params.sample_every:
                began = time.monotonic()
                trainer.base.draw(self.samples[0])
                self._drawn.append(time.monotonic() - began)
        trainer.done = 0
        seconds = self._seconds_left(trainer) or 0.0
        return Preflight(
            dataset.described(self.dataset, trainer.plan),
            tuple(preflight.warnings(self.dataset, trainer.plan)),
            seconds,
            memory(self.device),
            loss,
            preflight.disk(trainer),
        )

    # --- making ready

    def _ready(self, report: Report, kept: bool = True) -> Trainer:
        params = self.training.params
        self._say(report, Progress("loading"))
        self.dataset = self._begun_with() or dataset.scan(self.training.data, params)
        if kept:
            self._clear()
            write_atomically(self.training.dataset, dataset.dump(self.dataset))
        base = bases.load(self.model, self.device, precision(self.device, params), params.clip_skip)
        plan = dataset.plan(self.dataset, params, base.bucket_step)
        preflight.refuse(plan, base)
        latents = Latents(base, self.cache)
        everything = plan.everything() if kept else plan.batch(0)
        parts = len(everything)
        self._say(report, Progress("encoding", parts=parts))  # and so it waits for its turn
        latents.encode(everything, lambda n: self._say(report, Progress("encoding", part=n, parts=parts)))
        trainer = self._trainer = Trainer(base, plan, latents)
        preflight.refuse_without_room(trainer, self.training.folder)
        self.samples = params.samples() or self._usual_samples(plan)
        if kept:
            self._keep(steps=plan.steps, prompts=tuple(sample.prompt for sample in self.samples), remedy={})
        if kept and (checkpoints := self.training.checkpoints):
            trainer.load(torch.load(checkpoints[-1], map_location="cpu", weights_only=True))
            log.info("training %s goes on from step %d", self.training.name, trainer.done)
        if kept:
            self._forget_after(trainer.done)
        return trainer

    def _clear(self) -> None:
        """What a killed process had half written: a checkpoint may have gigabytes."""
        for folder in ("checkpoints", "weights"):
            for left in (self.training.folder / folder).glob(".*.tmp"):
                left.unlink()
        shutil.rmtree(self.training.folder / UNFINISHED, ignore_errors=True)

    def _begun_with(self) -> dataset.Dataset | None:
        """The set as it was: who changes it meanwhile does so for the next training. None if nothing is learnt yet."""
        return dataset.load(self.training.dataset.read_bytes()) if self.training.done else None

    def _keep(self, **changes: Any) -> None:
        """On the disk, where the page reads it."""
        self.training = replace(self.training, **changes)
        self.training.save()

    def _usual_samples(self, plan: dataset.Plan) -> list[Sample]:
        """Captions from all over the set."""
        captions = list(dict.fromkeys(dataset.caption_of(i, plan.params) for i in plan.items if not i.regular))
        chosen = captions[:: max(len(captions) // PROMPTED, 1)][:PROMPTED]
        blank = plan.params.model_copy(update={"sample_prompts": "x"}).samples()[0]
        return [replace(blank, prompt=caption) for caption in chosen]

    def _forget_after(self, step: int) -> None:
        """Rows that a training stopped at once had written beyond its last checkpoint."""
        rows = [row for row in self.training.history if step and row["step"] <= step]
        text = "".join(json.dumps(row) + "\n" for row in rows)
        write_atomically(self.training.folder / HISTORY, text.encode())

    # --- learning

    def _learn(self, trainer: Trainer, report: Report) -> None:
        params = self.training.params
        if trainer.done == 0:
            self._validate(trainer, report)
            self._draw(trainer, report)
        elif trainer.done >= trainer.steps and trainer.done not in self.training.samples:
            self._draw(trainer, report)  # it was stopped before
        while trainer.done < trainer.steps:
            began = time.monotonic()
            step = trainer.step()
            self._times.append(time.monotonic() - began)
            self._note({"step": step.number, "loss": step.loss, "rate": step.rate})
            wishes = self._tell(report, "training", trainer, step)
            last = trainer.done == trainer.steps
            if last or trainer.done % params.validate_every == 0:
                self._validate(trainer, report)
            if last or _due(trainer.done, params.sample_every) or "sample" in wishes:
                self._draw(trainer, report)
            if last or _due(trainer.done, params.save_every) or "save" in wishes:
                self._save(trainer, report)

    def _note(self, row: dict[str, float]) -> None:
        """Raises StorageFull."""
        with storing(), open(self.training.folder / HISTORY, "ab") as history:
            history.write(json.dumps(row).encode() + b"\n")

    def _validate(self, trainer: Trainer, report: Report) -> None:
        if not trainer.plan.held_out:
            return
        self._tell(report, "validating", trainer)
        loss = trainer.validate(partial(self._tell, report, "validating", trainer))
        self._last = replace(self._last, validation=loss)
        self._note({"step": trainer.done, "validation": loss})

    def _draw(self, trainer: Trainer, report: Report) -> None:
        if not self.training.params.sample_every:
            return
        parts = len(self.samples)
        for number, sample in enumerate(self.samples):
            path = self.training.sample(trainer.done, number)
            path.parent.mkdir(exist_ok=True)
            tell = partial(self._tell, report, "sampling", trainer, part=number, parts=parts)
            tell()
            began = time.monotonic()
            with trainer.resting():
                picture = trainer.base.draw(sample, tell)
            self._drawn.append(time.monotonic() - began)
            pictures.png_into(path, picture)
            self._tell(report, "sampling", trainer, part=number + 1, parts=parts, sample=path)
        self._plot()

    def _save(self, trainer: Trainer, report: Report | None = None) -> None:
        """All that is needed to go on, and the LoRA as it is now."""
        if report:
            self._tell(report, "saving", trainer)
        for folder in ("checkpoints", "weights"):
            (self.training.folder / folder).mkdir(exist_ok=True)
        write_atomically(self.training.weights(trainer.done), self._file(trainer))
        write_atomically(self.training.card(trainer.done), card.sidecar(self._made(trainer)))
        with replacing(self.training.checkpoint(trainer.done)) as whole:
            torch.save(trainer.state(), whole)
        for old in self.training.checkpoints[: -self.training.params.keep]:
            old.unlink()
        self._plot()

    @contextmanager
    def _saved_when_stopped(self, trainer: Trainer) -> Iterator[None]:
        try:
            yield
        except JobCancelled:
            if trainer.done > self.training.done:
                self._save(trainer)
            raise
        except TrainingFailed as error:
            rates = {name: getattr(self.training.params, name) for name in RATES}
            slower = {name: rate / 2 for name, rate in rates.items() if rate}
            raise TrainingFailed(f"{error}; {self._where_to_go_on()}", slower) from error

    def _where_to_go_on(self) -> str:
        done = self.training.done
        kept = f"the last good checkpoint is of step {done}" if done else "nothing had been saved yet"
        rate = self.training.params.learning_rate or self.training.params.text_encoder_lr
        return f"{kept}. A lower learning rate (now {rate:g}) or the precision fp32 usually helps"

    @contextmanager
    def _remedy_kept(self) -> Iterator[None]:
        try:
            yield
        except TrainingFailed as error:
            self._keep(remedy=error.changes)
            raise

    @contextmanager
    def _memory_named(self) -> Iterator[None]:
        try:
            yield
        except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
            if isinstance(error, RuntimeError) and not _lacks_memory(error):
                raise
            changes = relief(self.training.params)
            raise TrainingFailed(f"out of memory on {self.device}: {self._advice(changes)}", changes) from error

    def _advice(self, changes: Mapping[str, Any]) -> str:
        if not changes:
            return "everything that lowers it is set already; this model needs more memory"
        said = (f"{name}={str(value).lower() if value is True else value}" for name, value in changes.items())
        mended = self.training.params.model_copy(update=dict(changes))
        on = "begin anew" if self.training.fixed(mended) else "it can go on"
        return f"set {' and '.join(said)}; {on} with that"

    # --- what comes out

    def _finish(self, trainer: Trainer) -> dict[str, Path]:
        """Put the LoRA where it is used, with preview and card."""
        self.loras.mkdir(parents=True, exist_ok=True)
        files = card.files(self.loras, self.training.name)
        preview = self.training.samples.get(trainer.done, {}).get(0)
        write_atomically(files["weights"], self._file(trainer))
        write_atomically(files["card"], card.sidecar(self._made(trainer)))
        if preview:
            write_atomically(files["preview"], preview.read_bytes())
        else:
            del files["preview"]
        return {**files, "diffusers": self._for_diffusers(trainer)}

    def _file(self, trainer: Trainer) -> bytes:
        base, params = trainer.base, self.training.params
        half = {  # which is all that anybody computes with
            part: {key: tensor.half() for key, tensor in tensors.items()} for part, tensors in trainer.learnt().items()
        }
        tensors = kohya.kohya(half, params.alpha, base.is_xl, base.layers_per_block)
        drawn = self.training.samples.get(trainer.done, {}).get(0)
        preview = Image.open(drawn) if drawn else None
        metadata = file.texts(card.metadata(self._made(trainer), preview))
        return file.with_hashes(lambda values: bytes(save(dict(tensors), values)), metadata)

    def _for_diffusers(self, trainer: Trainer) -> Path:
        """The same as diffusers and peft save it, with peft's config in the metadata."""
        kind: Any = StableDiffusionXLPipeline if trainer.base.is_xl else StableDiffusionPipeline
        layers, config = {}, {}
        for part, tensors in trainer.learnt().items():
            layers[f"{part}_lora_layers"] = tensors
            config[f"{part}_lora_adapter_metadata"] = trainer.learners[part].peft_config[ADAPTER].to_dict()
        unfinished = self.training.folder / UNFINISHED
        try:
            kind.save_lora_weights(unfinished, **layers, **config)
            self.training.diffusers.parent.mkdir(exist_ok=True)
            write_atomically(self.training.diffusers, (unfinished / DIFFUSERS).read_bytes())
        except SafetensorError as error:
            raise StorageFull(f"the LoRA for diffusers was not saved: {error}") from error
        finally:
            shutil.rmtree(unfinished, ignore_errors=True)
        return self.training.diffusers

    def _made(self, trainer: Trainer) -> card.Made:
        base = trainer.base
        return card.Made(
            self.training,
            self.dataset,
            trainer.plan,
            trainer.done,
            self.model.name,
            self.model.family,
            base.fingerprint,
            old_hash(self.model.path) if self.model.path.is_file() else "",
            base.predicts_velocity,
            bool(base.noise.config.rescale_betas_zero_snr),
            {torch.float32: "no", torch.bfloat16: "bf16", torch.float16: "fp16"}[base.dtype],
        )

    def _plot(self) -> None:
        folder = self.training.folder
        pictures.png_into(folder / "loss.png", pictures.loss_plot(self.training.history))
        if self.training.samples:
            prompts = [sample.prompt for sample in self.samples]
            pictures.png_into(folder / "samples.png", pictures.sample_grid(self.training.samples, prompts))

    # --- what is told

    def _tell(
        self, report: Report, stage: Stage, trainer: Trainer, step: Step | None = None, **further: Any
    ) -> Collection[Wish]:
        self._last = replace(
            self._last,
            stage=stage,
            step=trainer.done,
            steps=trainer.steps,
            epoch=int(trainer.plan.epochs(trainer.done)),
            loss=step.loss if step else self._last.loss,
            rate=step.rate if step else self._last.rate,
            seconds_left=self._seconds_left(trainer),
            memory=memory(self.device),
        )
        return self._say(report, replace(self._last, **further))

    def _say(self, report: Report, progress: Progress) -> Collection[Wish]:
        return report(progress) or ()

    def _seconds_left(self, trainer: Trainer) -> float | None:
        if not self._times:
            return None
        left = trainer.steps - trainer.done
        every = self.training.params.sample_every
        drawings = left / every if every else 0
        drawn = statistics.median(self._drawn) if self._drawn else 0
        return left * statistics.median(self._times) + drawings * len(self.samples) * drawn


def precision(device: torch.device, params: TrainParams) -> torch.dtype:
    """What the base model's weights are held in; the LoRA's own are always float32. Raises InvalidRequest."""
    asked = params.precision
    if asked == "auto":
        if device.type != "cuda":
            return torch.float32
        return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float16
    if asked == "fp16" and device.type == "cpu":
        raise InvalidRequest(Problem("precision", "fp16 cannot be trained on the processor; bf16 and fp32 can"))
    return {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[asked]


def _lacks_memory(error: RuntimeError) -> bool:
    said = str(error).lower()
    return "out of memory" in said or "can't allocate memory" in said or "alloc_cpu" in said


def _due(step: int, every: int) -> bool:
    return every > 0 and step % every == 0
