"""Reading one file in the layout of a model's authors, and what it lacks from files or folders beside it.

What each family's components are called and how they are built stands in `configs/<family>.json`: where in the file
they lie (`at`), and what the shapes of their weights cannot tell (`config`).
"""

import json
from collections.abc import Mapping
from dataclasses import replace
from functools import cached_property
from math import prod
from pathlib import Path
from typing import Any

import torch

from backend.catalog import FAMILIES as NAMES
from backend.catalog import Model, detect
from backend.consents import is_pickle
from backend.diffusion.families import FAMILIES, Family, Part
from backend.diffusion.memory import is_exhausted
from backend.diffusion.reading import tokenizers, weights
from backend.diffusion.reading.errors import Unreadable, broken
from backend.diffusion.reading.folder import from_folder, weights_in
from backend.diffusion.reading.sources import Gguf, Source, source
from backend.diffusion.reading.weights import KINDS, Component
from backend.errors import ModelBroken, gist
from backend.weights import Entry, Header

CONFIGS = Path(__file__).parent.parent / "configs"
_TOLD = ("family", "variant", "edition", "prediction", "zero_snr", "parts", "channels", "width")


def vae(model: Model, path: Path, part: Part, dtype: torch.dtype) -> Any:
    """The VAE in a file or a folder, as the model's family wants it. Raises ModelBroken."""
    return SingleFile(replace(model, path=path, beside={"vae": path})).part("vae", part, dtype)


class SingleFile:
    def __init__(self, model: Model) -> None:
        self._model = model

    def family(self) -> Family:
        told = self.told
        if told.edition in self._config.get("folders_only", ()):
            raise self._broken(f"is a {NAMES[told.family]}, {told.edition}: such ones are read from folders only")
        others = self._config.get("pipeline_of", {})
        name = next(
            (others[word] for word in (told.variant, told.edition) if word in others), self._config["pipeline"]
        )
        if name not in FAMILIES:
            raise self._broken(f"is a model for {name}; what can be run is {', '.join(FAMILIES)}")
        return FAMILIES[name]

    def upcasts(self, component: str) -> bool:
        return bool(self._config[component]["config"].get("force_upcast", True))

    def size(self, component: str, part: Part, dtype: torch.dtype, packed: bool) -> int:
        """Bytes of its weights, by the header of their file."""
        found = self._find(component, part)
        if isinstance(found, Path):
            files = [self._open(file) for file in weights_in(found, part)[1]]
            return sum(prod(shape) for file in files for shape in file.shapes.values()) * dtype.itemsize
        return found.size(dtype, packed) if found else 0

    def scheduler(self) -> dict[str, Any]:
        config = dict(self._config["scheduler"])
        if "scheduler_unguided" in self._config and not any("guidance_in." in name for name in self._own.shapes):
            config |= self._config["scheduler_unguided"]
        if self.told.prediction in ("epsilon", "v_prediction"):
            config["prediction_type"] = self.told.prediction
        if self.told.zero_snr:
            config["rescale_betas_zero_snr"] = True
        return config

    def part(self, name: str, part: Part, dtype: torch.dtype | None, packed: bool = False) -> Any:
        """A component; None if it is not there and may be missing."""
        if not part.weights:
            return self._tokenizer(name, part)
        found = self._find(name, part)
        if found is None:
            return None
        assert dtype
        file = found if isinstance(found, Path) else found.source.file
        try:
            if isinstance(found, Path):
                return from_folder(found, part, dtype)
            identity = self._config[name].get("identity")
            return weights.load(found, part.kind, self._built(name, found), dtype, identity, packed)
        except Unreadable as error:
            raise self._broken(f"cannot be used as {name}: it {error}", file) from error
        except Exception as error:  # whatever the libraries raise on numbers that make no sense
            if isinstance(error, ModelBroken) or is_exhausted(error):
                raise
            raise self._broken(f"cannot be used as {name} ({gist(error)})", file) from error

    def _built(self, name: str, found: Component) -> dict[str, Any]:
        """How a component is built: what is known of its family, and what the shapes tell."""
        given = self._config[name]
        config = _merged(given["config"], found.config())
        if "layers_at_most" in given:
            config["num_hidden_layers"] = min(config["num_hidden_layers"], given["layers_at_most"])
        if "sizes_told" in given:
            rest = config["projection_class_embeddings_input_dim"] - self._summary_width()
            config["addition_time_embed_dim"] = rest // given["sizes_told"]
        return config

    def _summary_width(self) -> int:
        """How many numbers the last text encoder sums a prompt up in."""
        found = self._find("text_encoder_2", self.family().parts["text_encoder_2"])
        if isinstance(found, Component):
            return int(found.config()["projection_dim"])
        assert found
        return int(json.loads((found / "config.json").read_text("utf-8"))["projection_dim"])

    def _find(self, name: str, part: Part) -> Component | Path | None:
        """Where a component is: in the model's file, in one beside it, or in a folder; None if it may be missing."""
        kind, given = KINDS[part.kind.__name__], self._config[name]
        if given.get("optional") and not self._has_tokenizer(given["is"]):
            return None
        if not self._model.path.is_dir() and (own := weights.find(self._own, kind, given["at"])):
            return own
        label = given.get("is")
        beside = self._model.beside.get(label)
        if beside and beside.is_dir():
            return beside
        if beside:
            found = weights.find(self._open(beside), kind)
            if found is None:
                raise self._broken(f"holds no {label}: there is none of {', '.join(kind.layouts)}", beside)
            return found
        if given.get("optional"):
            return None
        marks = ", ".join(given["at"][0] + mark for mark in kind.layouts)
        raise self._broken(
            f"has no {name.replace('_', ' ')}: there is none of {marks}" + _where(label, self._model.width)
        )

    def _tokenizer(self, name: str, part: Part) -> Any:
        given = dict(self._config[name])
        of = given.pop("of", None)
        if of is None:
            return tokenizers.clip(**given)
        if not self._has_tokenizer(of):
            if any(config.get("is") == of and config.get("optional") for config in self._components):
                return None
            raise self._broken(
                f"needs the tokenizer of {of}: put its tokenizer.json into models/text_encoders as {of}.tokenizer.json"
            )
        beside = self._model.beside
        try:
            if f"{of} tokenizer" in beside:
                return tokenizers.from_file(part.kind, beside[f"{of} tokenizer"], **given)
            if beside[of].is_file():
                return tokenizers.from_gguf(part.kind, beside[of], **given)
            return part.kind.from_pretrained(beside[of], local_files_only=True)
        except Exception as error:  # whatever the libraries raise on a file that is none
            file = beside.get(f"{of} tokenizer", beside.get(of))
            raise self._broken(f"is no tokenizer of {of} ({gist(error)})", file) from error

    def _has_tokenizer(self, of: str) -> bool:
        beside = self._model.beside
        if f"{of} tokenizer" in beside or of not in beside:
            return f"{of} tokenizer" in beside
        file = beside[of]
        if file.is_dir():
            return (file / "tokenizer.json").is_file()
        opened = self._open(file) if file.suffix.lower() == ".gguf" else None
        return isinstance(opened, Gguf) and tokenizers.are_said(opened.metadata)

    @property
    def _components(self) -> list[dict[str, Any]]:
        return [given for given in self._config.values() if isinstance(given, dict)]

    @cached_property
    def _own(self) -> Source:
        return self._open(self._model.path)

    def _open(self, file: Path) -> Source:
        try:
            return source(file, self._model.consented)
        except Unreadable as error:
            raise self._broken(str(error), file) from error

    @cached_property
    def told(self) -> Model:
        """The model, with what its tensors tell if the catalogue has not opened its file."""
        if self._model.family or not is_pickle(self._model.path):
            return self._model
        entries = {name: Entry("F32", shape, 0, 0) for name, shape in self._own.shapes.items()}
        found = detect(Header(entries, {}, 0), self._model.path.name)
        return replace(self._model, **{name: getattr(found, name) for name in _TOLD})

    @cached_property
    def _config(self) -> dict[str, Any]:
        family = self.told.family
        files = (CONFIGS / f"{family}-{self.told.edition}.json", CONFIGS / f"{family}.json")
        file = next((file for file in files if file.is_file()), files[-1])
        if not family or not file.is_file():
            known = ", ".join(sorted(f.stem for f in CONFIGS.glob("*.json")))
            raise self._broken(f"is of {family or 'an unknown family'}; what can be read is {known}")
        config: dict[str, Any] = json.loads(file.read_text("utf-8"))
        return config

    def _broken(self, reason: str, file: Path | None = None) -> ModelBroken:
        return broken(self._model, (file or self._model.path).name, reason)


def _merged(known: Mapping[str, Any], told: Mapping[str, Any]) -> dict[str, Any]:
    inner = {name for name in known.keys() & told.keys() if isinstance(known[name], dict)}
    return {**known, **told, **{name: _merged(known[name], told[name]) for name in inner}}


def _where(label: str | None, width: int) -> str:
    """Where what is missing would be found."""
    if not label or label == "vae":
        return "; a file of it belongs into models/vae" if label else ""
    which = f"{label} of width {width}" if width else label
    return f"; a file of it ({which}) belongs into models/text_encoders"
