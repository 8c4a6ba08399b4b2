"""Captions by a model in models/captioners: a BLIP of random weights writes, what is missing is said."""

from pathlib import Path

import pytest
import torch
from PIL import Image
from transformers import (
    BertTokenizerFast,
    BlipConfig,
    BlipForConditionalGeneration,
    BlipImageProcessor,
    BlipProcessor,
    BlipTextConfig,
    BlipVisionConfig,
)

from backend.errors import ImageRefused, ModelBroken, NotFound
from backend.training import captioners
from backend.training.captioning import load

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "[DEC]", "a", "red", "circle", "on", "blue"]


def tiny_blip(folder: Path) -> None:
    """Of random weights, in a folder as Hugging Face has it."""
    folder.mkdir(parents=True)
    (folder / "vocab.txt").write_text("\n".join(WORDS))
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    marks = {"bos_token_id": 5, "eos_token_id": 3, "pad_token_id": 0, "sep_token_id": 3}
    text = BlipTextConfig(vocab_size=len(WORDS), encoder_hidden_size=16, max_position_embeddings=32, **sizes, **marks)
    vision = BlipVisionConfig(image_size=32, patch_size=16, **sizes)
    torch.manual_seed(1)
    model = BlipForConditionalGeneration(
        BlipConfig(text_config=text.to_dict(), vision_config=vision.to_dict(), projection_dim=16)
    )
    model.generation_config.max_length = 16
    model.save_pretrained(folder)
    pictures = BlipImageProcessor(size={"height": 32, "width": 32})
    BlipProcessor(pictures, BertTokenizerFast(str(folder / "vocab.txt"))).save_pretrained(folder)


def test_every_picture_gets_its_caption(tmp_path: Path) -> None:
    tiny_blip(tmp_path / captioners.FOLDER / "blip")
    paths = []
    for number, colour in enumerate(("red", "blue")):
        paths.append(tmp_path / f"{number}.png")
        Image.new("RGB", (40, 30), colour).save(paths[-1])
    caption = load(captioners.find(tmp_path), torch.device("cpu"))
    assert all(set(caption(path).split()) <= {*WORDS} for path in paths)
    paths[0].write_bytes(b"none")
    with pytest.raises(ImageRefused):
        caption(paths[0])


def test_what_is_missing_is_said(tmp_path: Path) -> None:
    with pytest.raises(
        NotFound, match=r"no captioner is here: put the folder of BLIP or Florence-2, .* into models/captioners$"
    ):
        captioners.find(tmp_path)
    other = tmp_path / captioners.FOLDER / "other"
    other.mkdir(parents=True)
    (other / "config.json").write_text('{"model_type": "llava"}')
    assert captioners.captioners(tmp_path) == []
    (other / "config.json").write_text('{"model_type": "blip"}')
    with pytest.raises(NotFound, match="'x' is not a captioner here; there are other"):
        captioners.find(tmp_path, "x")
    with pytest.raises(ModelBroken, match="the captioner other cannot be loaded"):
        load(captioners.find(tmp_path, "other"), torch.device("cpu"))
