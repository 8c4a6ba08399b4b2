"""The model folder: a StableDiffusionPipeline as diffusers writes it, half precision, put in place file by file."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import torch
from diffusers import AutoencoderKL, StableDiffusionPipeline, UNet2DConditionModel
from transformers import CLIPTextModel, CLIPTokenizer

from . import evaluate, store, tokenizer, unet


def frozen_parts(work: Path = store.WORK_DIR) -> evaluate.Components:
    """Tokenizer, text encoder and VAE as trained, with a UNet that is not trained yet."""
    folder = work / "parts"
    return evaluate.Components(
        CLIPTokenizer.from_pretrained(folder / "tokenizer"),
        CLIPTextModel.from_pretrained(folder / "text_encoder").eval(),
        AutoencoderKL.from_pretrained(folder / "vae").eval(),
        unet.new_unet().eval(),
    )


def save_frozen_parts(
    tokens: CLIPTokenizer, text_encoder: CLIPTextModel, vae: AutoencoderKL, work: Path = store.WORK_DIR
) -> None:
    """Keep the parts that the UNet is trained against; they must not change any more (the decoder may)."""
    folder = work / "parts"
    tokenizer.save(tokens, folder / "tokenizer")
    text_encoder.save_pretrained(folder / "text_encoder")
    vae.save_pretrained(folder / "vae")


def parts_of(folder: Path) -> evaluate.Components:
    """The components of an exported model folder, in float32."""
    return evaluate.Components(
        CLIPTokenizer.from_pretrained(folder / "tokenizer"),
        CLIPTextModel.from_pretrained(folder / "text_encoder", dtype=torch.float32).eval(),
        AutoencoderKL.from_pretrained(folder / "vae").float().eval(),
        UNet2DConditionModel.from_pretrained(folder / "unet").float().eval(),
    )


def write(parts: evaluate.Components, folder: Path) -> None:
    """Write the pipeline."""
    with torch.no_grad():
        pipeline = StableDiffusionPipeline(
            vae=parts.vae,
            text_encoder=parts.text_encoder,
            tokenizer=parts.tokens,
            unet=parts.unet,
            scheduler=evaluate.new_scheduler(),
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        )
        dtypes = [(module, module.dtype) for module in (parts.vae, parts.text_encoder, parts.unet)]
        pipeline.to(dtype=torch.float16)

        def save(new: Path) -> None:
            pipeline.save_pretrained(new)
            tokenizer.save(parts.tokens, new / "tokenizer")

        put_in_place(save, folder)
        for module, dtype in dtypes:
            module.to(dtype)


def put_in_place(save: Callable[[Path], None], folder: Path) -> None:
    """Let `save` fill a new folder, then replace file by file, so that a reader finds whole files only."""
    new = folder.with_name(folder.name + ".new")
    shutil.rmtree(new, ignore_errors=True)
    save(new)
    for path in new.rglob("config.json"):
        config = {k: v for k, v in json.loads(path.read_text()).items() if k != "_name_or_path"}
        path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
    for path in sorted(p for p in new.rglob("*") if p.is_file()):
        path.chmod(0o644)
        target = folder / path.relative_to(new)
        target.parent.mkdir(parents=True, exist_ok=True)
        os.replace(path, target)
    shutil.rmtree(new)
