"""A training on the disk: what it was told, how far it is, what it has drawn. No torch: the page reads it too.

<data>/training/<name>/training.json     name, folder of the pictures, parameters
                      /dataset.json      what it learns from, as it was read
                      /history.jsonl     a line for each step, and for each validation
                      /checkpoints/      to go on from
                      /weights/          the LoRA as it was at each checkpoint
                      /samples/          pictures drawn on the way; 000000 are the untrained model's
                      /loss.png, samples.png
"""

import json
import logging
import re
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from backend.errors import AtelierError, Conflict, InvalidRequest, NotFound, Problem
from backend.files import write_atomically
from backend.locks import held
from backend.params import validate
from backend.training.params import RATES, RESUMABLE, TrainParams, check_name

log = logging.getLogger(__name__)

FILE = "training.json"
HISTORY = "history.jsonl"
LOCK = "lock"
"""A file that is held while it runs."""


LORAS = "loras"
"""The folder of models that a finished LoRA goes to."""
DIFFUSERS = "pytorch_lora_weights.safetensors"
"""What diffusers calls the file of a LoRA."""


@dataclass(frozen=True)
class Training:
    folder: Path
    name: str
    data: Path
    params: TrainParams
    started: str
    """When, in ISO 8601."""
    steps: int = 0
    """In all, once that is known."""
    prompts: tuple[str, ...] = ()
    """Of the samples, once they are known."""
    remedy: Mapping[str, Any] = field(default_factory=dict)
    """Parameters with which it may go better, if it has failed."""

    def save(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        values = {
            "name": self.name,
            "data": str(self.data),
            "params": self.params.model_dump(mode="json"),
            "started": self.started,
            "steps": self.steps,
            "prompts": self.prompts,
            "remedy": self.remedy,
        }
        write_atomically(self.folder / FILE, json.dumps(values, indent=1).encode())

    @property
    def history(self) -> list[dict[str, float]]:
        """A row for each step, {step, loss, rate}, and for each validation, {step, validation}."""
        try:
            lines = (self.folder / HISTORY).read_text("utf-8").splitlines()
        except FileNotFoundError:
            return []
        return [json.loads(line) for line in lines if line.endswith("}")]  # the last may have been cut short

    @property
    def checkpoints(self) -> list[Path]:
        """To go on from, the newest last."""
        return sorted((self.folder / "checkpoints").glob("*.pt"), key=lambda path: int(path.stem))

    @property
    def is_done(self) -> bool:
        """Whether all its steps are made, and the LoRA lies where prompts find it: `diffusers` is written last."""
        return 0 < self.steps <= self.done and self.diffusers.is_file()

    @property
    def done(self) -> int:
        """Steps that a resumed training need not make again."""
        return int(self.checkpoints[-1].stem) if self.checkpoints else 0

    @property
    def dataset(self) -> Path:
        """What it learns from, as it was read when it began."""
        return self.folder / "dataset.json"

    def fixed(self, params: TrainParams) -> list[str]:
        """Names of those that it cannot go on with, once it has learnt: what they were has shaped the weights."""
        if not self.done:
            return []
        before, after = self.params.model_dump(), params.model_dump()
        switched = {name for name in RATES if bool(before[name]) != bool(after[name])}
        return sorted({name for name in before if before[name] != after[name]} - RESUMABLE | switched)

    def checkpoint(self, step: int) -> Path:
        return self.folder / "checkpoints" / f"{step:06}.pt"

    @property
    def kept_weights(self) -> list[int]:
        """Steps whose LoRA was kept, the last one at the end."""
        return sorted(int(path.stem.rpartition("-")[2]) for path in (self.folder / "weights").glob("*.safetensors"))

    def weights(self, step: int) -> Path:
        return self.folder / "weights" / f"{self.name}-{step:06}.safetensors"

    def card(self, step: int) -> Path:
        """What A1111 keeps beside those weights."""
        return self.weights(step).with_suffix(".json")

    @property
    def diffusers(self) -> Path:
        """The finished LoRA for diffusers and peft."""
        return self.folder / "diffusers" / DIFFUSERS

    def sample(self, step: int, number: int) -> Path:
        return self.folder / "samples" / f"{step:06}-{number + 1}.png"

    @property
    def samples(self) -> dict[int, dict[int, Path]]:
        """Pictures by step, then by the number of their prompt."""
        found: dict[int, dict[int, Path]] = {}
        for path in (self.folder / "samples").glob("*.png"):
            if match := re.fullmatch(r"(\d+)-(\d+)", path.stem):
                found.setdefault(int(match[1]), {})[int(match[2]) - 1] = path
        return {step: dict(sorted(pictures.items())) for step, pictures in sorted(found.items())}


def draft(root: Path, name: str, data: Path, params: TrainParams) -> Training:
    """A new one, not on the disk yet. Raises InvalidRequest for a name that cannot be a file's."""
    started = datetime.now(UTC).isoformat(timespec="seconds")
    return Training(_folder(root, name), name, data.absolute(), params, started)


def begin(root: Path, name: str, data: Path, params: TrainParams, overwrite: bool = False) -> Training:
    """A new one. Raises InvalidRequest for a name that cannot be a file's, Conflict if there is one already."""
    training = draft(root, name, data, params)
    if training.folder.exists():
        if not overwrite and (training.folder / FILE).exists():
            done = read(root, name).done
            raise Conflict(f"there is a training {name} already, at step {done}: resume it, overwrite it, or rename")
        with held(training.folder / LOCK) as lock:
            if lock is None:
                raise Conflict(f"the training {name} is running; stop it first")
        shutil.rmtree(training.folder)
    training.save()
    return training


def read(root: Path, name: str) -> Training:
    """Raises NotFound."""
    folder = _folder(root, name)
    try:
        values = json.loads((folder / FILE).read_text("utf-8"))
        params = validate(TrainParams, values["params"])
        further = {key: values[key] for key in ("started", "steps", "remedy") if key in values}
        prompts = tuple(values.get("prompts", ()))
        return Training(folder, values["name"], Path(values["data"]), params, prompts=prompts, **further)
    except FileNotFoundError:
        there = ", ".join(sorted(p.name for p in root.glob("*") if (p / FILE).is_file())[:10])
        raise NotFound(f"there is no training {name}; there are {there or 'none'}") from None
    except (ValueError, KeyError, TypeError, AtelierError) as error:
        raise NotFound(f"the training {name} cannot be read: {folder / FILE}: {error}") from None


def resume(root: Path, name: str, changes: Mapping[str, Any]) -> Training:
    """The one that was stopped, with what may change. Raises NotFound, InvalidRequest."""
    training = read(root, name)
    params = validate(TrainParams, {**training.params.model_dump(), **changes})
    if fixed := training.fixed(params):
        message = "cannot change so when a training goes on: it has shaped the weights already"
        raise InvalidRequest(*(Problem(field, message) for field in fixed))
    training = replace(training, params=params)
    training.diffusers.unlink(missing_ok=True)
    training.save()
    return training


def trainings(root: Path) -> Iterator[Training]:
    """All that can be read, those that began last first."""
    found = []
    for path in root.glob(f"*/{FILE}"):
        try:
            found.append(read(root, path.parent.name))
        except AtelierError as error:
            log.warning("%s", error)
    yield from sorted(found, key=lambda training: training.started, reverse=True)


def _folder(root: Path, name: str) -> Path:
    try:
        return root / check_name(name)
    except ValueError as error:
        raise InvalidRequest(Problem("name", str(error))) from None
