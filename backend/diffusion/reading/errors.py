"""How a model that cannot be loaded says so."""

from backend.catalog import Model
from backend.errors import ModelBroken


class Unreadable(Exception):
    """What is wrong with a file, as the end of a sentence that begins with its name."""


def broken(model: Model, what: str, reason: str) -> ModelBroken:
    """`what`: the file, folder or component that is to blame."""
    return ModelBroken(f"the model {model.name} cannot be loaded: {what} {reason}")
