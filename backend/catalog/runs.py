"""Which of the models that are recognised can be run, and why the others cannot."""

import json
import re
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from backend import families
from backend.catalog.detect import FAMILIES

_OF_IMAGES = ("StableDiffusion", "StableDiffusionXL", "StableDiffusion3", "Flux", "Chroma", "ZImage", "QwenImage")
PIPELINES = frozenset(
    {
        *(f"{name}{kind}Pipeline" for name in _OF_IMAGES for kind in ("", "Img2Img", "Inpaint")),
        *("StableDiffusionInstructPix2PixPipeline", "FluxFillPipeline"),
        *("FluxKontextPipeline", "FluxKontextInpaintPipeline"),
        *("Flux2Pipeline", "Flux2KleinPipeline", "Flux2KleinInpaintPipeline"),
        *("PixArtAlphaPipeline", "PixArtSigmaPipeline", "SanaPipeline"),
    }
)
"""Of folders: the keys of `backend.diffusion.families.FAMILIES`, where nothing imports torch."""
FILES: Mapping[str, Collection[str]] = {
    file.stem: json.loads(file.read_text("utf-8")).get("folders_only", ())
    for file in (Path(__file__).parents[1] / "diffusion" / "configs").glob("*.json")
}
"""Families that are read from one file, and their editions that are not."""
_REASONS = (
    (r"Prior|\bprior\b", "it makes embeddings for another model, and no pictures"),
    (r"Kandinsky3|\bkandinsky 3", "its UNet, its text encoder and its VAE are of kinds that no other model has"),
    (r"Kandinsky(?!\d)|\bkandinsky$", "it draws from embeddings, which another model, the prior, makes of the prompt"),
    (r"UnCLIP|\bunclip\b", "it draws from the embedding of a picture, which CLIP or another model, the prior, makes"),
    (r"Cascade|Wuerstchen|\bcascade\b", "it is three models that draw one after the other"),
    (r"FluxControl(?!Net)|\bflux control\b", "it is shown a map at every step; use Flux dev with a ControlNet"),
    (r"Depth2Img|\bdepth\b", "it is shown a depth map at every step; use a ControlNet"),
    (r"Upscale|\bupscaler\b", "it enlarges pictures; use Hires or an upscaler"),
    (r"InstructPix2Pix|Edit|Kontext|\bedit\b", "of models that edit, those of SD 1.x and Flux Kontext are"),
    (r"Video|I2V|T2V|Wan|LTX|Cosmos|\b(wan|ltx-video|hunyuan-video|cosmos)\b", "it makes films"),
    (r"\bedm\b", "its noise schedule, EDM, is one that no sampler here follows"),
)
"""By what is in the name of the pipeline, or the family and what else is known of a file."""
_UNREAD = ("unclip", "depth", "upscaler", "control", "sprint", "2.1")
"""Editions of which the family is read, but not they."""


def why_no_folder(pipeline: str, family: str) -> str | None:
    """In a sentence, why a folder's pipeline cannot be run; None: it can."""
    if pipeline in PIPELINES:
        return None
    why = f"is recognised, but not run: {_reason(pipeline)}" if family else "is not known here"
    return f"model_index.json asks for {pipeline[:80]!r}, which {why}"


def why_no_file(told: Mapping[str, Any]) -> str | None:
    """The same, behind its name, of a checkpoint or denoiser in one file; fields of `Detected`."""
    family, edition, variant = (told.get(name, "") for name in ("family", "edition", "variant"))
    is_edm = told.get("prediction") == "edm"
    is_read = edition not in FILES.get(family, (edition,))
    edits = variant == "edit" and "edit" not in families.traits(family).from_images
    if not family or (is_read and not edits and edition not in _UNREAD and not is_edm):
        return None
    known = " ".join((family, edition, variant, "edm" if is_edm else "")).strip()
    reason = "only a diffusers folder of it is" if family in families.FAMILIES and not is_read else _reason(known)
    return f"is {f'{FAMILIES[family]} {edition}'.strip()}, which is recognised, but not run: {reason}"


def _reason(known: str) -> str:
    return next((reason for words, reason in _REASONS if re.search(words, known)), "there is no pipeline for it here")
