"""What a denoiser alone is put together with."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from backend.catalog import Kind, Model
from backend.catalog.companions import complete, fits

FLUX = Model(name="dev", path=Path("dev.safetensors"), title="dev", family="flux", parts=("transformer",))


def shelved(folder: Path, *files: Model) -> Any:
    def listed(kind: Kind) -> list[Model]:
        return [replace(file, path=folder / file.path) for file in files if file.kind == kind]

    return listed


def file(name: str, kind: Kind, **told: Any) -> Model:
    return Model(name=name, path=Path(f"{name}.safetensors"), title=name, kind=kind, **told)


@pytest.fixture
def flux(tmp_path: Path) -> Model:
    model = replace(FLUX, path=tmp_path / "dev.safetensors")
    model.path.touch()
    return model


def test_text_encoders_and_vae_are_found_by_what_they_are(flux: Model, tmp_path: Path) -> None:
    files = shelved(
        tmp_path,
        file("some", "text_encoder", parts=("clip_l",)),
        file("t5xxl_fp8", "text_encoder", parts=("t5",), size=5),
        file("t5xxl_fp16", "text_encoder", parts=("t5",), size=10),
        file("sdxl_vae", "vae", channels=4),
        file("an_sd3_vae", "vae", channels=16),
        file("ae", "vae", channels=16),
    )
    (tmp_path / "t5.tokenizer.json").touch()
    expected = {"clip_l": "some", "t5": "t5xxl_fp16", "vae": "ae", "t5 tokenizer": "t5.tokenizer"}
    assert {part: path.stem for part, path in complete(flux, files).beside.items()} == expected


def test_a_card_names_others(flux: Model, tmp_path: Path) -> None:
    card = {"parts": {"t5": "t5xxl_fp8", "vae": "mine.safetensors"}}
    flux.path.with_name("dev.atelier.json").write_text(json.dumps(card))
    files = shelved(
        tmp_path,
        file("t5xxl_fp8", "text_encoder", parts=("t5",), size=5),
        file("t5xxl_fp16", "text_encoder", parts=("t5",), size=10),
        file("ae", "vae", channels=16),
        file("mine", "vae", channels=16),
    )
    assert {part: path.stem for part, path in complete(flux, files).beside.items()} == {
        "t5": "t5xxl_fp8",
        "vae": "mine",
    }


def test_what_the_file_holds_itself_is_not_looked_for(flux: Model, tmp_path: Path) -> None:
    whole = replace(flux, parts=("transformer", "clip_l", "t5", "vae"))
    files = shelved(tmp_path, file("ae", "vae", channels=16), file("t5xxl", "text_encoder", parts=("t5",)))
    assert complete(whole, files).beside == {}


def test_a_vocabulary_is_taken_from_comfyui(flux: Model, tmp_path: Path) -> None:
    theirs = tmp_path / "ComfyUI" / "comfy" / "text_encoders" / "t5_tokenizer" / "tokenizer.json"
    theirs.parent.mkdir(parents=True)
    theirs.touch()
    listed = shelved(tmp_path / "ComfyUI" / "models" / "text_encoders", file("t5xxl", "text_encoder", parts=("t5",)))
    assert complete(flux, listed).beside["t5 tokenizer"] == theirs


def test_of_several_sizes_of_an_encoder_it_is_the_one_that_fits(tmp_path: Path) -> None:
    model = Model(
        name="z", path=tmp_path / "z.safetensors", title="z", family="z-image", parts=("transformer",), width=2560
    )
    model.path.touch()
    small, large = (
        file(name, "text_encoder", parts=("qwen3",), width=width, size=width)
        for name, width in (("qwen_3_4b", 2560), ("qwen_3_8b", 4096))
    )
    assert complete(model, shelved(tmp_path, large, small)).beside == {"qwen3": tmp_path / "qwen_3_4b.safetensors"}
    assert complete(model, shelved(tmp_path, large)).beside == {}


def test_a_vae_of_a_kind_of_its_own_fits_its_family_alone() -> None:
    own = file("flux2-vae", "vae", family="flux2", channels=32)
    klein = replace(FLUX, family="flux2")
    assert fits(own, klein)
    assert not fits(replace(own, family=""), klein)
    assert not fits(own, replace(FLUX, family="sana"))


def test_a_vae_of_other_channels_does_not_fit() -> None:
    assert fits(file("ae", "vae", channels=16), FLUX)
    assert not fits(file("sdxl", "vae", channels=4), FLUX)
