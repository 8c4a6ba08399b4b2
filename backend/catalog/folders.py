"""What a model is that lies in a folder as diffusers saves it: told by its small JSON files."""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from backend.catalog import runs, sidecars
from backend.catalog.detect import Kind

PIPELINES = (
    ("StableDiffusionXL", "sdxl"),
    ("StableDiffusion3", "sd3"),
    ("StableDiffusion|StableUnCLIP|LatentConsistencyModel", "sd1"),
    ("UnCLIP", "unclip"),
    ("Flux2", "flux2"),
    ("Flux3", "flux3"),
    ("Flux", "flux"),
    ("ZImage", "z-image"),
    ("QwenImage", "qwen-image"),
    ("Chroma", "chroma"),
    ("Kandinsky", "kandinsky"),
    ("PixArt", "pixart"),
    ("Sana", "sana"),
    ("AuraFlow", "auraflow"),
    ("Lumina2", "lumina2"),
    ("HiDream", "hidream"),
    ("Krea2", "krea2"),
    ("StableCascade|Wuerstchen", "cascade"),
    ("Wan", "wan"),
    ("LTX", "ltx-video"),
    ("HunyuanVideo", "hunyuan-video"),
    ("Cosmos", "cosmos"),
)
"""By the beginning of the name of the pipeline's class; Stable Diffusion 2 has the classes of 1 and wider text."""
_EDITIONS = {
    "FluxFillPipeline": "fill",
    "FluxKontextPipeline": "kontext",
    "Flux2Pipeline": "dev",
    "PixArtAlphaPipeline": "alpha",
    "PixArtSigmaPipeline": "sigma",
}
_WIDTHS = {1024: "sd2", 1280: "sdxl-refiner"}
PARTS: tuple[tuple[str, Kind], ...] = (
    ("ControlNet|T2IAdapter", "controlnet"),
    ("AutoencoderTiny", "tiny_vae"),
    ("Autoencoder|AsymmetricAutoencoder|VQModel", "vae"),
    (r"UNet|\w+Transformer\w*Model", "diffusion_model"),
    ("CLIPVision|Siglip", "image_encoder"),
    (r"CLIPText|T5|UMT5|\w*Gemma|\w*Qwen|\w*Llama|\w*Mistral|ChatGLM", "text_encoder"),
)
"""Kinds of a single component, by its class."""
_CLASSES = {
    "AutoencoderKLFlux2": "flux2",
    "AutoencoderKLQwenImage": "qwen-image",
    "AutoencoderDC": "sana",
    "FluxControlNetModel": "flux",
    "SD3ControlNetModel": "sd3",
    "QwenImageControlNetModel": "qwen-image",
}
"""Families by the class of their VAEs and control models, of which no others have the like."""
_CONTROLLED = {768: "sd1", 1024: "sd2", 2048: "sdxl"}
"""Families by the width of the text that their control models read."""
_TEXT_ENCODERS = (
    ("T5", "t5"),
    ("Qwen3(Model|ForCausalLM)", "qwen3"),
    ("Qwen2_5_VL", "qwen2.5-vl"),
    ("Gemma2", "gemma2"),
)
"""What they are called (`detect.Detected`), by their class."""


def read(path: Path) -> dict[str, Any]:
    """Fields of `Model`, with its problem if there is one."""
    try:
        card = sidecars.told(path / "atelier.json")
        if not (path / "model_index.json").exists() and (config := _config(path)):
            return {**card, **_part(config)}
        return {**card, **_pipeline(path)}
    except FileNotFoundError:
        return {"problem": "model_index.json is missing"}
    except RecursionError:
        return {"problem": "cannot be read: its JSON is nested too deeply"}
    except OSError as error:
        return {"problem": f"cannot be read: {error.strerror}"}
    except ValueError as error:
        return {"problem": f"cannot be read: {error}"}


def _pipeline(path: Path) -> dict[str, Any]:
    index = json.loads((path / "model_index.json").read_text("utf-8"))
    if not isinstance(index, dict) or "_class_name" not in index:
        return {"problem": "model_index.json does not name a pipeline"}
    pipeline = str(index["_class_name"])
    parts = tuple(name for name, of in index.items() if isinstance(of, list) and of and of[0])
    denoiser = _config(path / "unet") or _config(path / "transformer")
    channels = denoiser.get("in_channels")
    family = _family(pipeline, denoiser)
    return {
        **_trained(_config(path / "scheduler", "scheduler_config.json")),
        "family": family,
        "variant": _variant(pipeline, channels),
        "edition": _edition(pipeline, index, denoiser),
        "parts": parts,
        "channels": channels if isinstance(channels, int) else 0,
        "problem": runs.why_no_folder(pipeline, family) or _unfollowed(path),
    }


def _unfollowed(path: Path) -> str | None:
    named = str(_config(path / "scheduler", "scheduler_config.json").get("_class_name"))
    where = "scheduler/scheduler_config.json"
    return f"{where} asks for {named}: models trained with it cannot be run" if named.startswith("EDM") else None


def _family(pipeline: str, denoiser: Mapping[str, Any]) -> str:
    family = next((family for names, family in PIPELINES if re.match(names, pipeline)), "")
    width = denoiser.get("cross_attention_dim")
    if family == "sd1":
        return (_WIDTHS.get(width, family) if isinstance(width, int) else "") if denoiser else ""
    return "sdxl-refiner" if family == "sdxl" and width == 1280 else family


def _variant(pipeline: str, channels: object) -> str:
    if "FluxFill" in pipeline or channels == 9:  # with others it is the pipeline only that inpaints
        return "inpaint"
    is_edit = re.search("InstructPix2Pix|Kontext|ImageEdit", pipeline) or channels == 8
    return "edit" if is_edit else ""


def _edition(pipeline: str, index: Mapping[str, Any], denoiser: Mapping[str, Any]) -> str:
    pipeline = re.sub("(Img2Img|Inpaint)(?=Pipeline$)", "", pipeline)
    if pipeline == "FluxPipeline":
        return "dev" if denoiser.get("guidance_embeds") else "schnell"
    if pipeline in _EDITIONS:
        return _EDITIONS[pipeline]
    return "base" if pipeline == "Flux2KleinPipeline" and not index.get("is_distilled") else ""


def _trained(scheduler: Mapping[str, Any]) -> dict[str, Any]:
    said = scheduler.get("prediction_type")
    if "FlowMatch" in str(scheduler.get("_class_name", "")):
        said = "flow_prediction"
    elif scheduler and said is None:
        said = "epsilon"  # what all of diffusers' schedulers take it for
    return {
        "prediction": said if isinstance(said, str) else "",
        "zero_snr": scheduler.get("rescale_betas_zero_snr") is True,
    }


def _part(config: Mapping[str, Any]) -> dict[str, Any]:
    named = config.get("_class_name") or config.get("architectures") or ""
    named = named[0] if isinstance(named, list) else named
    kind = next((kind for names, kind in PARTS if re.match(names, str(named))), "")
    label = next((label for names, label in _TEXT_ENCODERS if re.match(names, str(named))), "")
    text = config.get("text_config")
    text = text if isinstance(text, dict) else config
    width = text.get("hidden_size", text.get("d_model"))
    told = config.get("cross_attention_dim")
    controlled = _CONTROLLED.get(told, "") if isinstance(told, int) else ""
    return {
        "kind": kind,
        "family": _CLASSES.get(str(named), controlled if kind == "controlnet" else ""),
        "edition": str(named),
        "parts": (label,) if label else (),
        "width": width if kind == "text_encoder" and isinstance(width, int) else 0,
        "problem": None if kind else f"is a {named or 'model'} as such",
    }


def _config(folder: Path, name: str = "config.json") -> dict[str, Any]:
    """Empty if it cannot be read: what loads the model says what is wrong with it."""
    try:
        config = json.loads((folder / name).read_text("utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return config if isinstance(config, dict) else {}
