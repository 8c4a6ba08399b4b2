"""What a made model says of its making: `modelspec.*`, and `sd_merge_recipe`, `sd_merge_models` as A1111 has them."""

import json
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from backend import __version__, catalog, weights
from backend.merging.recipe import AddDifference, BakeVae, ExtractLora, Model, Recipe, WeightedSum

METHODS = {"sum": "Weighted sum", "difference": "Add difference"}
"""A1111's words."""


def of(recipe: Recipe, title: str, base: Mapping[str, str]) -> dict[str, str]:
    """The metadata; `base` are those of the first model. Reads every model once if its hash is not known."""
    models = [*recipe.models()]
    hashes = {model.path: model.sha256 or catalog.fingerprint(model.path) for model in models}
    kept = {key: base[key] for key in ("modelspec.architecture", "modelspec.license") if key in base}
    return {
        **kept,
        "modelspec.sai_model_spec": "1.0.0",
        "modelspec.title": title,
        "modelspec.date": datetime.now(UTC).strftime("%Y-%m-%d"),
        "modelspec.merged_from": ", ".join(model.name for model in models),
        "modelspec.implementation": f"Atelier {__version__}",
        "sd_merge_recipe": json.dumps(_recipe(recipe, title, hashes)),
        "sd_merge_models": json.dumps(_models(models, hashes)),
    }


def _recipe(recipe: Recipe, title: str, hashes: Mapping[Any, str]) -> dict[str, Any]:
    merged = isinstance(recipe, WeightedSum | AddDifference)
    second = recipe.b if isinstance(recipe, WeightedSum | AddDifference | ExtractLora) else None
    third = recipe.c if isinstance(recipe, AddDifference) else None
    own = recipe.model_dump(mode="json", include={"share", "blocks", "rank", "precision", "layout", "prune"})
    return {
        "type": "webui" if merged and not own.get("blocks") else "atelier",
        "primary_model_hash": hashes[recipe.a.path],
        "secondary_model_hash": hashes[second.path] if second else None,
        "tertiary_model_hash": hashes[third.path] if third else None,
        "interp_method": METHODS.get(recipe.what, recipe.what),
        "multiplier": own.get("share"),
        "save_as_half": recipe.precision == "fp16",
        "custom_name": title,
        "bake_in_vae": recipe.vae.name if isinstance(recipe, BakeVae) else None,
        **{key: value for key, value in own.items() if key in ("blocks", "rank") and value},
    }


def _models(models: list[Model], hashes: Mapping[Any, str]) -> dict[str, Any]:
    """What went in, and what had gone into that."""
    found: dict[str, Any] = {}
    for model in models:
        said = _metadata(model)
        found[hashes[model.path]] = {
            "name": model.name,
            "legacy_hash": catalog.old_hash(model.path) if model.path.is_file() else "",
            "sd_merge_recipe": _table(said.get("sd_merge_recipe")) or None,
        }
        found |= {key: value for key, value in _table(said.get("sd_merge_models")).items() if key not in found}
    return found


def _metadata(model: Model) -> Mapping[str, str]:
    try:
        return weights.read(model.path).metadata if model.path.suffix == ".safetensors" else {}
    except weights.BrokenFile:
        return {}  # reading its tensors says what is wrong


def _table(text: str | None) -> dict[str, Any]:
    try:
        said = json.loads(text or "{}")
    except (ValueError, RecursionError):
        return {}
    return said if isinstance(said, dict) else {}
