"""What a merge or a conversion is to do. A recipe is checked here and done by work.py, maybe in another process."""

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, TypeAdapter, field_validator
from pydantic_core import PydanticCustomError

Share = Annotated[float, Field(ge=-2, le=3, allow_inf_nan=False)]
Blocks = Annotated[str, StringConstraints(strip_whitespace=True, max_length=400)]
Precision = Literal["", "fp32", "fp16", "bf16", "fp8"]
"""Empty: as the first model has it."""


class Model(BaseModel):
    """A file, or a folder as diffusers saves it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    """What people and messages call it."""
    path: Path
    sha256: str = ""
    """Of the file, where it is known; of a pickle, the one that there is consent for."""
    family: str = ""


class _Recipe(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    precision: Precision = ""

    def models(self) -> Iterator[Model]:
        """Those that go in, the first first."""
        for name in type(self).model_fields:
            if isinstance(value := getattr(self, name), Model):
                yield value


class WeightedSum(_Recipe):
    """A (1 - share) + B share"""

    what: Literal["sum"] = "sum"
    a: Model
    b: Model
    share: Share = 0.5
    blocks: Blocks = ""
    """Shares by block of the UNet, as for LoRAs: 26, 20, 17 or 12 numbers, the first for the text encoder."""


class AddDifference(_Recipe):
    """A + (B - C) share"""

    what: Literal["difference"] = "difference"
    a: Model
    b: Model
    c: Model
    share: Share = 1.0
    blocks: Blocks = ""


class BakeVae(_Recipe):
    """A with another VAE in it"""

    what: Literal["vae"] = "vae"
    a: Model
    vae: Model


class AddLora(_Recipe):
    """A with a LoRA worked into its weights"""

    what: Literal["lora"] = "lora"
    a: Model
    lora: Model
    share: Share = 1.0
    blocks: Blocks = ""


class ExtractLora(_Recipe):
    """The LoRA that makes B of A, as far as its rank goes"""

    what: Literal["extract"] = "extract"
    a: Model
    b: Model
    rank: Annotated[int, Field(ge=1, le=512)] = 64
    precision: Precision = "fp16"

    @field_validator("precision")
    @classmethod
    def _is_precise(cls, precision: Precision) -> Precision:
        if precision == "fp8":
            raise PydanticCustomError("precision", "eight bits hold no LoRA; take fp16")
        return precision


class Convert(_Recipe):
    """A in another precision or layout"""

    what: Literal["convert"] = "convert"
    a: Model
    layout: Literal["", "file", "folder"] = ""
    """Empty: as it is."""
    prune: bool = True
    """Leave out what only training needs: averaged weights (EMA)."""


Recipe = WeightedSum | AddDifference | BakeVae | AddLora | ExtractLora | Convert
RECIPES: TypeAdapter[Recipe] = TypeAdapter(Annotated[Recipe, Field(discriminator="what")])


def is_folder(recipe: Recipe) -> bool:
    """Whether a folder comes out, and not a file."""
    match recipe:
        case ExtractLora():
            return False
        case Convert(layout="file" | "folder"):
            return recipe.layout == "folder"
        case _:
            return recipe.a.path.is_dir()
