"""Where models lie: the models folder, further folders, and installations of A1111 and ComfyUI, used as they are.

All of them sort models into folders by kind, under names of their own; a folder of any of these names is taken for
what it is in all of them. A root that has none of them may hold anything: then each file says what it is.
"""

import logging
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from backend.catalog.detect import Kind

log = logging.getLogger(__name__)

FOLDERS: Mapping[Kind, tuple[str, ...]] = {
    "checkpoint": ("checkpoints", "diffusers", "Stable-diffusion"),
    "diffusion_model": ("diffusion_models", "unet"),
    "vae": ("vae",),
    "tiny_vae": ("vae_approx", "VAE-approx"),
    "text_encoder": ("text_encoders", "text_encoder", "clip"),
    "image_encoder": ("clip_vision",),
    "lora": ("loras", "Lora", "LyCORIS"),
    "controlnet": ("controlnet", "t2i_adapter", "ipadapter"),
    "embedding": ("embeddings",),
    "upscaler": (
        *("upscalers", "upscale_models", "ESRGAN", "RealESRGAN", "BSRGAN", "DAT", "HAT", "SwinIR", "ScuNET"),
        *("LDSR", "latent_upscale_models"),
    ),
    "annotator": ("annotators", "ControlNetPreprocessor"),
}
"""Names of folders, in any case; the first one is ours."""
_KINDS = {name.lower(): kind for kind, names in FOLDERS.items() for name in names}
_BESIDE_A1111: tuple[tuple[Kind, str], ...] = (
    ("embedding", "embeddings"),
    ("controlnet", "extensions/sd-webui-controlnet/models"),
    ("annotator", "extensions/sd-webui-controlnet/annotator/downloads"),
)
"""What does not lie in its folder `models`."""
STARTER = "starter"
"""The folder of the embedded model in the models folder, and what people call it."""
_ONE = ("a1111", "comfyui", "index")


class Place(NamedTuple):
    """A folder of models."""

    kind: Kind
    """Empty: each file says what it is."""
    folder: Path
    root: str
    """What people call where it lies; empty: in the models folder."""


@dataclass(frozen=True)
class Roots:
    models: Path
    """The models folder: what is downloaded, trained or converted is put here."""
    further: tuple[Path, ...] = ()
    a1111: Path | None = None
    """The folder of an installation of A1111's web UI, or of one of its forks."""
    comfyui: Path | None = None
    folders: tuple[tuple[Kind, Path], ...] = ()
    """Further folders of one kind each."""
    index: Path | None = None
    """The file that keeps what was read of them; without it each process reads all again."""

    @property
    def elsewhere(self) -> list[Path]:
        """Folders that were named besides the models folder, whether or not they are there."""
        return [*self.further, *(folder for _, folder in self.folders), *filter(None, (self.a1111, self.comfyui))]

    def places(self, kind: Kind | None = None) -> list[Place]:
        """Folders that are there now, and ours whether or not they are; none twice. Of one kind, if it is given."""
        found: dict[str, Place] = {}
        for place in self._places():
            if kind in (None, place.kind):
                found.setdefault(os.path.realpath(place.folder), place)
        return list(found.values())

    def described(self) -> dict[str, Any]:
        """As JSON, for another process; see `of`."""
        one = {name: str(path.absolute()) for name in _ONE if (path := getattr(self, name))}
        return {
            "models": str(self.models.absolute()),
            "further": [str(path.absolute()) for path in self.further],
            "folders": [(kind, str(path.absolute())) for kind, path in self.folders],
            **one,
        }

    @staticmethod
    def of(described: Mapping[str, Any]) -> "Roots":
        one = {name: Path(described[name]) for name in _ONE if name in described}
        folders = tuple((kind, Path(path)) for kind, path in described["folders"])
        return Roots(Path(described["models"]), tuple(map(Path, described["further"])), folders=folders, **one)

    def _places(self) -> Iterator[Place]:
        yield from (Place(kind, self.models / names[0], "") for kind, names in FOLDERS.items())
        yield from _by_kind(self.models, "")
        for root in self.further:
            yield from _by_kind(root, _name(root))
            yield Place("", root, _name(root))
        for kind, folder in self.folders:
            if folder.is_dir():
                yield Place(kind, folder, _name(folder))
            else:
                _warn(f"the models in {folder} are not seen: it is no folder")
        if self.a1111:
            yield from _by_kind(self.a1111 / "models", "A1111")
            for kind, name in _BESIDE_A1111:
                if (self.a1111 / name).is_dir():
                    yield Place(kind, self.a1111 / name, "A1111")
        if self.comfyui:
            yield from _by_kind(self.comfyui / "models", "ComfyUI")
            yield from _further_of_comfyui(self.comfyui / "extra_model_paths.yaml")
        if (own := self.models / STARTER / "controlnet").is_dir():
            yield Place("controlnet", own, STARTER)


def is_folder(entry: "os.DirEntry[str]") -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False


def roots_of(models: Path | Roots) -> Roots:
    return models if isinstance(models, Roots) else Roots(models)


def _name(folder: Path) -> str:
    """Never empty, as that of a whole drive would be: its models would be taken for ours."""
    return folder.name or str(folder)


def _by_kind(folder: Path, root: str) -> Iterator[Place]:
    try:
        with os.scandir(folder) as entries:
            names = sorted(entry.name for entry in entries if entry.name.lower() in _KINDS and is_folder(entry))
    except OSError as error:
        if root:
            _warn(f"the models in {folder} are not seen: {error.strerror}")
        return
    yield from (Place(_KINDS[name.lower()], folder / name, root) for name in names)


def _further_of_comfyui(file: Path) -> Iterator[Place]:
    """Its file of further folders: {"name": {"base_path": "...", "loras": "models/loras", "vae": "a\\nb"}}."""
    try:
        content = _yaml(file.read_text("utf-8-sig"))
    except FileNotFoundError:
        return
    except (OSError, ValueError) as error:
        _warn(f"{file} is not used: {str(error).splitlines()[0]}")
        return
    for name, group in content.items() if isinstance(content, dict) else ():
        if not isinstance(group, dict):
            continue
        base = file.parent / os.path.expandvars(os.path.expanduser(str(group.get("base_path") or "")))
        for key, lines in group.items():
            kind = _KINDS.get(str(key).lower())
            for line in str(lines or "").splitlines() if kind else ():
                if line.strip() and (base / line.strip()).is_dir():
                    yield Place(kind or "", base / line.strip(), str(name) or "ComfyUI")


@cache
def _warn(message: str) -> None:
    """Once: the folders are looked at again and again."""
    log.warning(message)


def _yaml(text: str) -> Any:
    import yaml  # who has no such file does not wait for it

    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ValueError(str(error)) from None
