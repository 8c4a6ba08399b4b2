"""What the tensors of a model belong to: component, block, and the names that diffusers and LoRAs have for them."""

import re
from collections.abc import Callable, Collection, Mapping
from typing import NamedTuple

from backend.diffusion.reading import denoisers, layouts
from backend.diffusion.reading.layouts import Change, Layout
from backend.lora import keys
from backend.lora.blocks import BASE, block_of
from backend.lora.keys import Module
from backend.merging.tensors import Weights

EMA = ("model_ema.",)
PREFIXES = {
    "model.diffusion_model.": "unet",
    "first_stage_model.": "vae",
    "vae.": "vae",
    "cond_stage_model.transformer.": "text_encoder",
    "cond_stage_model.model.": "text_encoder",
    "conditioner.embedders.0.transformer.": "text_encoder",
    "conditioner.embedders.0.model.": "text_encoder_2",
    "conditioner.embedders.1.model.": "text_encoder_2",
    "text_encoders.clip_l.transformer.": "text_encoder",
    "text_encoders.clip_g.transformer.": "text_encoder_2",
    "text_encoders.t5xxl.transformer.": "text_encoder_3",
}
"""Of the tensors in one file, and the component that they are."""
FOLDERS = {"transformer": "unet"}
"""What LoRAs call a component that has another name as a folder."""


class Home(NamedTuple):
    component: str
    """"unet" (also a transformer), "vae", "text_encoder" ...; empty: none of these."""
    name: str
    """Of the tensor within it, as the file has it."""


def home(weights: Weights, name: str) -> Home:
    if weights.is_folder and "/" in name:
        folder, _, rest = name.partition("/")
        return Home(FOLDERS.get(folder, folder), rest)
    for prefix, component in PREFIXES.items():
        if name.startswith(prefix):
            return Home(component, name.removeprefix(prefix))
    is_denoiser = re.match(
        r"(input_blocks|output_blocks|middle_block|double_blocks|single_blocks|joint_blocks)\.", name
    )
    return Home("unet" if is_denoiser else "", name)


def blocks(weights: Weights) -> Mapping[str, str]:
    """The block of the UNet for each tensor that lies in one, BASE for the text encoders'; others are left out."""
    unet = {name: at.name for name in weights.places if (at := home(weights, name)).component == "unet"}
    ldm = keys.ldm_names({_module(own) for own in unet.values()}) if _is_of_diffusers(unet.values()) else {}
    found = {name: block_of(ldm.get(_module(own), own)) for name, own in unet.items()}
    text = {name: BASE for name in weights.places if home(weights, name).component.startswith("text_encoder")}
    return {name: block for name, block in {**found, **text}.items() if block}


class Part(NamedTuple):
    """Where the weight of a module lies: rows of a tensor, or all of it."""

    tensor: str
    rows: slice | None
    block: str
    turn: Change | None = None
    """Brings its numbers to where the LoRA means them, and back."""


def parts(weights: Weights) -> Mapping[Module, Part]:
    """The modules of a model by every name that LoRA files have for them."""
    found: dict[Module, Part] = {}
    in_block = blocks(weights)
    for component in ("unet", "text_encoder", "text_encoder_2", "text_encoder_3"):
        own = {at.name: name for name in weights.places if (at := home(weights, name)).component == component}
        if not own:
            continue
        layout = _layout(component, own)
        is_unet = component == "unet" and _is_of_diffusers(own)
        ldm = keys.ldm_names({_module(name) for name in own}) if is_unet else {}
        for name, full in own.items():
            if not name.endswith("weight"):  # `in_proj_weight` too
                continue
            names = layout.names(name) if layout else (name,)
            pieces = _rows(weights.shape(full), len(names))
            turn = layout.change(name) if layout else None
            for theirs, rows in zip(names, pieces, strict=True):
                part, module = Part(full, rows, in_block.get(full, ""), turn), _module(theirs)
                for spelling in keys.spellings(component, module, ldm.get(module, "")):
                    found[spelling] = part
            if layout and names:  # a LoRA that has it by its authors' name, of several all together
                found[component, _module(name).replace(".", "_")] = Part(full, None, in_block.get(full, ""))
    return found


def vae_names(names: Collection[str]) -> Mapping[str, str]:
    """What diffusers calls the tensors of a VAE, by their names here; without those that it has no use for."""
    is_new = any(name.startswith("decoder.up_blocks.") for name in names)
    layout = layouts.vae_of_early_diffusers(names) if is_new else layouts.vae_of_original(names)
    return {name: found[0] for name in names if (found := layout.names(name))}


def kohya(weights: Weights) -> Mapping[str, Part]:
    """The modules that a LoRA may change, by the names that kohya's trainer gives them.

    Of a denoiser those of its authors, which every program knows, but for Stable Diffusion 1 and 2 as a folder.
    """
    found: dict[str, Part] = {}
    homes = {name: home(weights, name) for name in weights.places}
    is_xl = any(at.component == "text_encoder_2" for at in homes.values())
    unet = {_module(at.name) for at in homes.values() if at.component == "unet"}
    ldm = keys.ldm_names(unet) if is_xl and any(name.startswith("down_blocks.") for name in unet) else {}
    text = {component: [at.name for at in homes.values() if at.component == component] for component in TEXT}
    for full, (component, name) in homes.items():
        if not name.endswith("weight") or len(weights.shape(full)) < 2:
            continue
        if component == "unet":
            module = _module(name)
            found[f"lora_unet_{ldm.get(module, module).replace('.', '_')}"] = Part(full, None, "")
        elif component in TEXT:
            layout = _layout(component, text[component])
            names = layout.names(name) if layout else (name,)
            front = f"lora_te{TEXT[component] if is_xl else ''}_text_model_"
            for theirs, rows in zip(names, _rows(weights.shape(full), len(names)), strict=True):
                short = _module(theirs).removeprefix("text_model.").replace(".", "_")
                found[front + short] = Part(full, rows, "")
    return found


TEXT = {"text_encoder": "1", "text_encoder_2": "2"}
"""The text encoders that LoRAs know, and kohya's numbers for them in a model that has both."""


def _layout(component: str, names: Collection[str]) -> Layout | None:
    """From the names in the file to diffusers'; None: these are diffusers'."""
    make: Callable[[Collection[str]], Layout] | None = None
    if component == "unet":
        marks = {
            "input_blocks.": layouts.unet_of_original,
            "single_stream_modulation.lin.": denoisers.flux2,
            "distilled_guidance_layer.": denoisers.chroma,
            "double_blocks.": denoisers.flux,
            "joint_blocks.": denoisers.sd3,
            "layers.0.attention.qkv.": denoisers.z_image,
        }
        make = next((made for mark, made in marks.items() if any(name.startswith(mark) for name in names)), None)
    elif any(name.startswith("transformer.resblocks.") for name in names):
        make = layouts.open_clip
    return make(names) if make else None


def _is_of_diffusers(names: Collection[str]) -> bool:
    return any(name.startswith("down_blocks.") for name in names)


def _rows(shape: tuple[int, ...], count: int) -> list[slice | None]:
    """Which rows each of `count` modules has of a tensor: queries, keys and values are alike, then the rest."""
    if count < 2:
        return [None] * count
    each = shape[0] // 3 if count == 3 else shape[-1]
    ends = [each * n for n in range(1, count)] + [shape[0]]
    return [slice(begin, end) for begin, end in zip([0, *ends], ends, strict=False)]


def _module(name: str) -> str:
    """`attn.in_proj_weight` is the weight of a module without a name of its own."""
    return re.sub(r"[._]weight$|\.bias$", "", name)
