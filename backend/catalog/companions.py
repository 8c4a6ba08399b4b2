"""What a model that is no whole one is put together with: text encoders and a VAE from files of their own."""

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from pathlib import Path

from backend.catalog import Catalog, Kind, Model, sidecars
from backend.errors import InvalidRequest, NotFound, Problem

Files = Callable[[Kind], Iterable[Model]]

PARTS: Mapping[str, tuple[str, ...]] = {
    "sd1": ("clip_l", "vae"),
    "sd2": ("clip_h", "vae"),
    "sdxl": ("clip_l", "clip_g", "vae"),
    "sdxl-refiner": ("clip_g", "vae"),
    "sd3": ("clip_l", "clip_g", "t5", "vae"),
    "flux": ("clip_l", "t5", "vae"),
    "chroma": ("t5", "vae"),
    "flux2": ("qwen3", "vae"),
    "qwen-image": ("qwen2.5-vl", "vae"),
    "pixart": ("t5", "vae"),
    "sana": ("gemma2", "vae"),
    "z-image": ("qwen3", "vae"),
}
"""What a denoiser needs beside itself, by family."""
WORDED = ("t5", "qwen3", "qwen2.5-vl", "gemma2")
"""Text encoders whose vocabulary is in a file of its own, `<name>.tokenizer.json`."""
_OF_COMFYUI = {
    "t5": "t5_tokenizer/tokenizer.json",
    **dict.fromkeys(("qwen3", "qwen2.5-vl"), "qwen25_tokenizer"),  # with the words that only the former knows
}
"""What ComfyUI's code brings along."""
OWN = "none"
"""Instead of a VAE's name: the one that the model's file holds."""
VAES: Mapping[str, tuple[str, ...]] = {
    "sd1": ("vae-ft-mse", "sd1", "sd15"),
    "sd2": ("sd2", "sd21", "vae-ft-mse"),
    "sdxl": ("sdxl", "xl"),
    "sdxl-refiner": ("sdxl", "xl"),
    "sd3": ("sd3",),
    "flux": ("ae", "flux"),
    **dict.fromkeys(("chroma", "z-image"), ("ae", "flux")),
    "pixart": ("sdxl", "xl"),
    "pixart-alpha": ("vae-ft", "sd1", "sd15"),
}
"""What is in the names of VAEs that suit a family, or an edition, whose shapes do not tell; the first is the best."""
CHANNELS: Mapping[str, int] = {
    **dict.fromkeys(("sd1", "sd2", "sdxl", "sdxl-refiner", "pixart"), 4),
    **dict.fromkeys(("sd3", "flux", "chroma", "qwen-image", "z-image"), 16),
    **dict.fromkeys(("flux2", "sana"), 32),
}
"""Of latents."""
_OWN_VAES = ("flux2", "qwen-image", "sana")
"""Families whose VAEs are of a kind of their own, which their files tell."""


def complete(model: Model, files: Files) -> Model:
    """The model with the files of what its own lacks (`Model.beside`), as far as there are any.

    The card beside it, `<stem>.atelier.json`, may name them: `{"parts": {"t5": "t5xxl_fp8", "vae": "ae"}}`.
    """
    if not model.path.is_file():
        return model
    named = _named(model.path)
    beside = {}
    for part in PARTS.get(model.family, ()):
        if part not in model.parts or part in named:
            fitting = _fitting(model, part, files("vae" if part == "vae" else "text_encoder"), named.get(part))
            if fitting:
                beside[part] = fitting[0].path
    for part in set(PARTS.get(model.family, ())) & set(WORDED):
        if words := _tokenizer(model, beside.get(part), part, files):
            beside[f"{part} tokenizer"] = words
    return replace(model, beside={**beside, **model.beside})


def vae_of(model: Model, wanted: str, catalog: Catalog) -> Model | None:
    """The VAE that is used in place of the model's own: the one of that name, or by A1111's rule; None: its own.

    That rule takes the one that is named as the model is, `cat.vae.safetensors` for `cat.safetensors`, beside it or
    among the VAEs. Raises InvalidRequest.
    """
    if wanted == OWN or (not wanted and model.path.is_dir()):
        return None
    if not wanted:
        begin = f"{model.path.stem}.vae.".lower()
        alike = (vae for vae in catalog.files("vae") if vae.path.name.lower().startswith(begin))
        return next((vae for vae in alike if not vae.problem and fits(vae, model)), None)
    try:
        vae = catalog.find_file("vae", wanted)
    except NotFound as error:
        raise InvalidRequest(Problem("vae", str(error))) from None
    if vae.problem:
        raise InvalidRequest(Problem("vae", f"{vae.name} cannot be used: {vae.problem}"))
    if not fits(vae, model):
        expected = CHANNELS.get(model.family)
        reason = f"{vae.name} gives latents of {vae.channels} channels, {model.name} works on {expected}"
        if expected in (None, vae.channels):
            reason = f"{vae.name} gives latents of another kind than {model.name} works on"
        raise InvalidRequest(Problem("vae", reason))
    return vae


def fits(vae: Model, model: Model) -> bool:
    """Whether a VAE's latents are such as a model works on, as far as their kind and channels tell."""
    if (vae.family in _OWN_VAES or model.family in _OWN_VAES) and vae.family != model.family:
        return False
    expected = CHANNELS.get(model.family, 0)
    return not expected or not vae.channels or vae.channels == expected


def _fitting(model: Model, part: str, files: Iterable[Model], named: str | None) -> list[Model]:
    """Those that can be the part, the best first."""
    if named is not None:
        return [file for file in files if named in (file.name, file.path.name, file.path.stem)]
    if part == "vae":
        words = VAES.get(f"{model.family}-{model.edition}", VAES.get(model.family, ()))
        ranked = ((_rank(file, words), file.name, file) for file in files if not file.problem and fits(file, model))
        return [file for *_, file in sorted(ranked, key=lambda ranking: ranking[:2])]
    able = [file for file in files if not file.problem and (part in file.parts or part in file.path.stem.lower())]
    able = [file for file in able if not (file.width and model.width) or file.width == model.width]
    return sorted(able, key=lambda file: -file.size)  # of several precisions the highest


def _rank(vae: Model, words: tuple[str, ...]) -> int:
    stem = vae.path.stem.lower()
    begins = (number for number, word in enumerate(words) if re.search(rf"(?<![a-z0-9]){word}", stem))
    return next(begins, len(words))


def _named(file: Path) -> Mapping[str, str]:
    try:
        parts = sidecars.card(sidecars.card_of(file)).get("parts")
    except ValueError:  # the catalogue says what is wrong with a card
        return {}
    return {k: v for k, v in parts.items() if isinstance(v, str)} if isinstance(parts, dict) else {}


def _tokenizer(model: Model, encoder: Path | None, of: str, files: Files) -> Path | None:
    """The tokenizer of a text encoder: its tokenizer.json beside it under its name or its kind's, or in its folder.

    An installation of ComfyUI in whose models it lies has some too.
    """
    places = []
    for file in (encoder, model.path):
        if file and file.is_dir():
            places += [file / "tokenizer.json", file.parent / "tokenizer" / "tokenizer.json"]
        elif file:
            places += [file.with_name(f"{file.stem}.tokenizer.json"), file.with_name(f"{of}.tokenizer.json")]
    folders = {file.path.parent for file in files("text_encoder")}
    places += [folder / f"{of}.tokenizer.json" for folder in folders]
    if of in _OF_COMFYUI:
        places += [up / "comfy" / "text_encoders" / _OF_COMFYUI[of] for folder in folders for up in folder.parents[:3]]
    return next((place for place in places if place.exists()), None)
