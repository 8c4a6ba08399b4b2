"""Captions by BLIP or Florence-2, from a folder of one's own, never from the network."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from transformers import AutoProcessor, BlipForConditionalGeneration, Florence2ForConditionalGeneration

from backend import images
from backend.errors import ModelBroken, gist
from backend.training.captioners import Captioner

LONGEST = 200
"""Tokens of a caption."""
_TASK = "<DETAILED_CAPTION>"
"""What Florence-2 is asked for."""


def load(captioner: Captioner, device: torch.device) -> Callable[[Path], str]:
    """What gives the caption of a picture; raises ModelBroken, and that ImageRefused."""
    try:
        processor, model = _loaded(captioner)
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        raise ModelBroken(f"the captioner {captioner.name} cannot be loaded: {gist(error)}") from error
    model.to(device).eval()

    def caption(path: Path) -> str:
        picture = images.flatten(images.decode(path.read_bytes()))
        with torch.inference_mode():
            return _SAY[captioner.kind](processor, model, picture)

    return caption


def _loaded(captioner: Captioner) -> tuple[Any, Any]:
    kind = {"blip": BlipForConditionalGeneration, "florence2": Florence2ForConditionalGeneration}[captioner.kind]
    processor = AutoProcessor.from_pretrained(captioner.folder, local_files_only=True)
    return processor, kind.from_pretrained(captioner.folder, local_files_only=True, use_safetensors=True)


def _blip(processor: Any, model: Any, picture: Image.Image) -> str:
    given = processor(images=picture, return_tensors="pt").to(model.device)
    written = model.generate(**given, max_new_tokens=LONGEST)
    return str(processor.decode(written[0], skip_special_tokens=True)).strip()


def _florence(processor: Any, model: Any, picture: Image.Image) -> str:
    given = processor(text=_TASK, images=picture, return_tensors="pt").to(model.device)
    written = model.generate(**given, max_new_tokens=LONGEST, num_beams=3)
    text = processor.batch_decode(written, skip_special_tokens=False)[0]
    return str(processor.post_process_generation(text, task=_TASK, image_size=picture.size)[_TASK]).strip()


_SAY: dict[str, Callable[[Any, Any, Image.Image], str]] = {"blip": _blip, "florence2": _florence}
