"""A folder as diffusers saves it, as one file in the layout of the model's authors: the inverse of reading one."""

import json
from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from backend.diffusion.reading import autoencoders, denoisers, layouts
from backend.diffusion.reading.layouts import Layout, Rule
from backend.diffusion.reading.single_file import CONFIGS


def _clip(names: Collection[str]) -> Layout:
    """The authors of CLIP files keep `text_model.` in front of all but the projection."""
    return Layout(
        Rule(name if name.startswith("text_projection") else f"text_model.{name}", (name,)) for name in names
    )


def _qwen25_vl(names: Collection[str]) -> Layout:
    """transformers saves it by the names of its authors."""
    return layouts.same(names) if any(name.startswith("visual.") for name in names) else layouts.qwen25_vl(names)


LAYOUTS: Mapping[str, Callable[[Collection[str]], Layout]] = {
    "UNet2DConditionModel": layouts.unet_of_diffusers,
    "AutoencoderKL": layouts.vae_of_diffusers,
    "AutoencoderKLFlux2": layouts.flux2_vae,
    "AutoencoderDC": autoencoders.dc,
    "AutoencoderKLQwenImage": autoencoders.wan,
    "CLIPTextModel": _clip,
    "CLIPTextModelWithProjection": _clip,
    "T5EncoderModel": layouts.t5,
    "Gemma2Model": layouts.language_model,
    "Qwen2_5_VLForConditionalGeneration": _qwen25_vl,
    "Qwen3ForCausalLM": layouts.language_model,
    "Qwen3Model": layouts.language_model,
    "SD3Transformer2DModel": denoisers.sd3,
    "FluxTransformer2DModel": denoisers.flux,
    "ChromaTransformer2DModel": denoisers.chroma,
    "Flux2Transformer2DModel": denoisers.flux2,
    **dict.fromkeys(("PixArtTransformer2DModel", "Transformer2DModel"), denoisers.pixart),
    "QwenImageTransformer2DModel": layouts.same,
    "SanaTransformer2DModel": denoisers.sana,
    "ZImageTransformer2DModel": denoisers.z_image,
}
"""By the class that model_index.json names."""


def single_file(folder: Path, family: str, file: Path) -> None:
    """Write the weights of a diffusers folder into one safetensors file.

    Raises ValueError if the folder holds what has no such layout, OSError and SafetensorError if it cannot be read.
    """
    save_file({name: t.contiguous() for name, t in tensors(folder, family)}, file, {"format": "pt"})


def tensors(folder: Path, family: str) -> Iterator[tuple[str, Tensor]]:
    """Name and numbers of everything in such a file."""
    config: dict[str, Any] = json.loads((CONFIGS / f"{family}.json").read_text("utf-8"))
    index: dict[str, Any] = json.loads((folder / "model_index.json").read_text("utf-8"))
    for component, given in config.items():
        if isinstance(given, dict) and "at" in given and index.get(component, [None])[0]:
            kind = index[component][1]
            if kind not in LAYOUTS:
                raise ValueError(f"{component} is a {kind}, which has no layout in one file")
            openly = kind.startswith("CLIP") and given["at"][0].endswith(".model.")
            layout = layouts.open_clip if openly else LAYOUTS[kind]
            for name, tensor in _component(folder / component, layout):
                yield given["at"][0] + name, tensor


def _component(folder: Path, layout: Callable[[Collection[str]], Layout]) -> Iterator[tuple[str, Tensor]]:
    held: dict[str, Any] = {}
    for file in sorted(folder.glob("*.safetensors")):
        part = safe_open(file, "pt")
        held |= {name.removeprefix("text_model."): (part, name) for name in part.keys()}  # type: ignore[no-untyped-call]  # noqa: SIM118

    def tensor(name: str) -> Any:
        part, full = held[name]
        return part.get_tensor(full)

    yield from layout(held).to_original(held, tensor)
