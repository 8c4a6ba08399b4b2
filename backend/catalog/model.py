"""What is known of a model: a checkpoint, a LoRA, a VAE ..."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from backend.catalog.detect import Kind


@dataclass(frozen=True)
class Model:
    """A folder as diffusers saves it, or one file in the layout of its authors."""

    name: str
    path: Path
    title: str
    defaults: dict[str, Any] = field(default_factory=dict)
    """Request fields that suit it better than A1111's defaults (`atelier.json` beside its files)."""
    problem: str | None = None
    """Why it cannot be used."""
    examples: tuple[str, ...] = ()
    """Prompts to try first (`atelier.json`)."""
    family: str = ""
    """"sd1", "sd2", "sdxl" ...: which ControlNets, LoRAs and sizes suit it; empty: unknown."""
    variant: str = ""
    """"inpaint" or "edit", where the model is shown an image beside the latents; empty: a plain one."""
    prediction: str = ""
    """"epsilon", "v_prediction" or "flow_prediction", as far as its files tell; empty: they do not."""
    kind: Kind = "checkpoint"
    edition: str = ""
    """What the family does not say: "schnell", "3.5 large"; of a text encoder which one (`detect.Detected`)."""
    zero_snr: bool = False
    """Its noise schedule ends in pure noise."""
    parts: tuple[str, ...] = ()
    """What it holds, of a file (`detect.Detected`)."""
    channels: int = 0
    """Of its latents; 0: unknown."""
    precision: str = ""
    """"fp16", "bf16", "fp8", "Q4_K" ...: of most of its weights."""
    parameters: int = 0
    size: int = 0
    """Bytes on the disk."""
    sha256: str = ""
    """Of a file's bytes, hexadecimal; empty: not worked out yet."""
    metadata: Mapping[str, str] = field(default_factory=dict)
    """What the file says of itself: `modelspec.*`, `ss_*`."""
    beside: Mapping[str, Path] = field(default_factory=dict)
    """Files or folders of what its own file lacks, by the names of `parts`; "t5 tokenizer": a tokenizer.json."""
    consented: frozenset[str] = frozenset()
    """SHA-256 of files that may be read though they could carry a program (`backend.consents`)."""
