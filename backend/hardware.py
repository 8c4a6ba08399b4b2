"""How the engine is to use this machine: memory, precision, attention. Nothing here is part of a request."""

from typing import Annotated, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

Attention = Literal["auto", "sdpa", "xformers", "flash", "sage"]
Precision = Literal["auto", "fp16", "bf16", "fp32", "fp8"]
Offload = Literal["auto", "none", "model", "group", "sequential"]
Previews = Literal["auto", "linear", "tiny"]
Gigabytes = Annotated[
    Annotated[float, Field(gt=0)] | None, BeforeValidator(lambda given: None if given == "auto" else given)
]
"""None: "auto"."""


class Hardware(BaseModel):
    """The defaults suit most machines: "auto" goes by what is measured."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    attention: Attention = Field("auto", description="How attention is worked out: auto, sdpa, xformers, flash, sage.")
    precision: Precision = Field("auto", description="What models are kept in: auto, fp16, bf16, fp32, fp8.")
    offload: Offload = Field(
        "auto", description="What lies in RAM while it is not used: auto, none, model, group, sequential."
    )
    ram_budget: Gigabytes = Field(None, description="Gigabytes of RAM that models may take; auto: by what is there.")
    vram_budget: Gigabytes = Field(None, description="The same of the graphics card's memory.")
    previews: Previews = Field("auto", description="Where previews come from: auto, linear, tiny (a tiny decoder).")


def told(name: str) -> str:
    """What an option means."""
    return Hardware.model_fields[name].description or ""
