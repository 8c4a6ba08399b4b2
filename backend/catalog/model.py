"""What is known of a model: a checkpoint, a LoRA, a VAE ..."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from backend import families
from backend.catalog.detect import Detected


@dataclass(frozen=True, kw_only=True)
class Model(Detected):
    """A folder as diffusers saves it, or one file in the layout of its authors."""

    name: str
    path: Path
    title: str
    relative: str = ""
    """Its path below the folder of its kind, with slashes."""
    root: str = ""
    """What people call where it lies; empty: the models folder."""
    size: int = 0
    """Bytes on the disk."""
    changed: int = 0
    """When, in nanoseconds since 1970."""
    sha256: str = ""
    """Of a file's bytes, or of a folder's weights (`hashes.fingerprint`), hexadecimal; empty: not worked out yet."""
    claimed: str = ""
    """The SHA-256 that a file beside it says it ought to have."""
    consented: frozenset[str] = frozenset()
    """SHA-256 of files that may be read though they could carry a program (`backend.consents`)."""
    metadata: Mapping[str, str] = field(default_factory=dict)
    """What the file says of itself: `modelspec.*`, `ss_*`."""
    beside: Mapping[str, Path] = field(default_factory=dict)
    """Files or folders of what its own file lacks, by the names of `parts`; "qwen3 tokenizer": its tokenizer.json."""
    defaults: Mapping[str, Any] = field(default_factory=dict)
    """Request fields that suit it better than A1111's defaults (`atelier.json` beside its files)."""
    examples: tuple[str, ...] = ()
    """Prompts to try first (`atelier.json`)."""
    card_problem: str = ""
    """What is wrong with `atelier.json`, and not heeded."""
    description: str = ""
    notes: str = ""
    trigger: str = ""
    """Words that call it in a prompt."""
    vae: str = ""
    """The VAE that A1111's user prefers with it."""
    preview: Path | None = None
    """A picture beside it."""

    @property
    def usual(self) -> dict[str, Any]:
        """Request fields to start from: its own defaults, over those of its family."""
        return families.defaults(self.family, self.edition) | {**self.defaults}

    @property
    def may_edit(self) -> bool:
        """Whether no header tells if it changes a picture by instruction: a person may say so (`detect.as_said`)."""
        is_file = self.kind in ("checkpoint", "diffusion_model") and not self.path.is_dir()
        return is_file and self.family == "flux" and (not self.variant or self.edition == "kontext")

    @property
    def lacks_hash(self) -> bool:
        return not self.sha256 and self.kind != "annotator" and (not self.problem or self.size > 0)

    @property
    def shorthash(self) -> str:
        """As A1111 shows it behind a name."""
        return self.sha256[:10]

    @property
    def a1111_title(self) -> str:
        """`folder/name.safetensors [0123456789]`."""
        return f"{self.relative} [{self.shorthash}]" if self.sha256 else self.relative

    def summary(self) -> dict[str, Any]:
        """As JSON, without its path on this machine."""
        told = ("name", "title", "kind", "family", "variant", "prediction", "edition", "precision", "parameters")
        more = (
            "parts",
            "size",
            "sha256",
            "shorthash",
            "a1111_title",
            "relative",
            "root",
            "trigger",
            "problem",
            "card_problem",
        )
        return {name: getattr(self, name) for name in (*told, *more)}
