"""A checkpoint of a training becomes a LoRA that prompts can name, with card and preview; no torch."""

from pathlib import Path

from backend.errors import Conflict, InvalidRequest, NotFound, Problem
from backend.files import write_atomically
from backend.training import card, file
from backend.training.params import check_name
from backend.training.records import Training


def promote(training: Training, step: int, name: str, loras: Path, overwrite: bool = False) -> dict[str, Path]:
    """The files it is then. Raises NotFound, InvalidRequest, Conflict if there is a LoRA of that name, StorageFull."""
    try:
        found = card.files(loras, check_name(name))
    except ValueError as error:
        raise InvalidRequest(Problem("name", str(error))) from None
    weights = training.weights(step)
    if not weights.is_file():
        there = ", ".join(map(str, training.kept_weights)) or "none"
        raise NotFound(f"the training {training.name} has kept no weights at step {step}; there are {there}")
    if found["weights"].exists() and not overwrite:
        raise Conflict(f"there is a LoRA {name} already; overwrite it, or choose another name")
    loras.mkdir(parents=True, exist_ok=True)
    write_atomically(found["weights"], file.renamed(weights.read_bytes(), name))
    write_atomically(found["card"], training.card(step).read_bytes())
    drawn = [pictures[0] for at, pictures in training.samples.items() if 0 < at <= step and 0 in pictures]
    if drawn:
        write_atomically(found["preview"], drawn[-1].read_bytes())
    else:
        found["preview"].unlink(missing_ok=True)  # it showed another
        del found["preview"]
    return found
