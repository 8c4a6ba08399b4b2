"""LoRA: `<lora:name:0.8>` in the prompt merges a small file into the model while a picture is drawn."""

import re
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal

from backend.extension import (
    Contribution,
    Extension,
    GenerationRequest,
    ImageStore,
    InvalidRequest,
    Param,
    Params,
    Problem,
    declared,
)
from backend.lora import blocks
from backend.weights import BrokenFile

from . import tags
from .shelf import FOLDER, File, Look, Shelf, Unknown
from .tags import Use

if TYPE_CHECKING:
    from fastapi import APIRouter

MAX_HASHES = 8000
_CHOSEN_LATER = re.compile(r"[{}]|__")
"""What wildcards put in the place of."""


class LoraParams(Params):
    missing: Literal["stop", "skip"] = Param(
        "stop",
        "If a LoRA is not there",
        choices=(("stop", "Draw nothing and say so"), ("skip", "Draw without it")),
        widget="segmented",
        infotext="Lora if missing",
    )
    hashes: str = Param(
        "",
        "Hashes",
        max_length=MAX_HASHES,
        infotext="Lora hashes",
        group="advanced",
        help="Of the LoRAs that a picture was drawn with: by these they are found if their files have other names.",
    )

    def to_infotext(self) -> dict[str, str]:
        return {**({"Lora if missing": "skip"} if self.missing == "skip" else {}), "Lora hashes": self.hashes}

    @classmethod
    def from_infotext(cls, fields: Mapping[str, str]) -> dict[str, Any]:
        found = {"hashes": fields["Lora hashes"][:MAX_HASHES]} if fields.get("Lora hashes") else {}
        return found | ({"missing": "skip"} if fields.get("Lora if missing") == "skip" else {})


class Lora(Extension):
    Params = LoraParams
    prompt_tag = "lora"
    order = 1100  # when all others have had their say about the prompt

    def check(self, request: GenerationRequest, params: LoraParams, images: ImageStore) -> None:
        """What is known to be wrong, but names that a hash may find: for that, files are read."""
        look, known = self.shelf.look(), dict(_hashes(params.hashes))
        for text in dict.fromkeys((request.prompt, *request.prompts)):
            for parts in tags.in_prompt(text):
                if not _CHOSEN_LATER.search(":".join(parts)) and _mention(tags.named(parts[0])) not in known:
                    self._use(parts, look, params)

    def prepare(self, request: GenerationRequest, params: LoraParams, images: ImageStore) -> GenerationRequest:
        """Names that are not here any more become those of the files with the same hash; all hashes are noted."""
        known = dict(_hashes(params.hashes))
        look = self.shelf.look()
        found: dict[str, str] = {}

        def name(mentioned: str) -> str:
            file = self._file(mentioned, look)
            new = mentioned if file else ""
            if file is None and _mention(mentioned) in known:
                file = self.shelf.with_hash(known[_mention(mentioned)])
                new = file.name if file else ""
            if file:
                found[_mention(new)] = self._hash(file)[:12]
            return new or mentioned

        texts = {text: tags.renamed(text, name) for text in (request.prompt, *request.prompts)}
        for text in texts.values():
            for parts in tags.in_prompt(text):
                self._use(parts, look, params)
        extensions = dict(request.extensions)
        for id, field, text in _prompts_of_others(request):  # they draw with it later
            extensions[id] = extensions[id].model_copy(update={field: tags.renamed(text, name)})
        hashes = ", ".join(f"{mention}: {hash}" for mention, hash in found.items())
        extensions[self.id] = params.model_copy(update={"hashes": hashes[:MAX_HASHES]})
        return request.model_copy(
            update={
                "prompt": texts[request.prompt],
                "prompts": tuple(texts[text] for text in request.prompts),
                "extensions": extensions,
            }
        )

    def patch(self, run: Any, params: LoraParams) -> AbstractContextManager[object]:
        from .batch import Batch

        batch: Batch = run.once((self.id, run.indices), lambda: Batch(run, self._taking_part(run, params)))
        return batch.patched()

    def contribute(self, run: Any, params: LoraParams) -> Contribution:
        there = {f"{FOLDER}/{file.name}": file.path for _, file in self._taking_part(run, params)}
        names = dict.fromkeys(tags.named(parts[0]) for parts in _tags(run))
        lost = [name for name in names if not self._file(name, self._seen(run))]
        return Contribution(models=there, notes={"Lora missing": ", ".join(lost)} if lost else {})

    def step(self, run: Any, params: LoraParams, step: Any) -> None:
        run.once((self.id, run.indices), lambda: None).passed(step.index + 1, step.steps)

    def routes(self, router: "APIRouter") -> None:
        from . import routes

        routes.add(router, self.shelf, self.data, self.images)

    @cached_property
    def shelf(self) -> Shelf:
        return Shelf(self.roots, self.data)

    @property
    def presets(self) -> blocks.Presets:
        return blocks.presets(self.models / FOLDER)

    def _seen(self, run: Any) -> Look:
        look: Look = run.once((self.id, "look"), self.shelf.look)
        return look

    def _taking_part(self, run: Any, params: LoraParams) -> list[tuple[Use, File]]:
        """The tags of this batch and their files, but those whose weights are 0, in the order of the prompt."""
        given = [self._use(parts, self._seen(run), params) for parts in _tags(run)]
        return [(use, file) for use, file in given if file and (use.te or use.unet)]

    def _use(self, parts: tuple[str, ...], look: Look, params: LoraParams) -> tuple[Use, File | None]:
        """What a tag says, and its file; None if it is not there and may be left out. Raises InvalidRequest."""
        try:
            use = tags.parse(parts, self.presets)
            file = self._file(use.name, look) if params.missing == "skip" else look.find(use.name)
            if file and file.facts.problem:
                raise ValueError(f"{file.filename} {file.facts.problem}")
        except ValueError as error:
            raise InvalidRequest(Problem("prompt", str(error))) from None
        return use, file

    def _file(self, name: str, look: Look) -> File | None:
        try:
            return look.find(name)
        except Unknown:
            return None

    def _hash(self, file: File) -> str:
        try:
            return self.shelf.hash_of(file)
        except BrokenFile as error:
            raise InvalidRequest(Problem("prompt", f"{file.filename} {error}")) from None


def _prompts_of_others(request: GenerationRequest) -> Iterator[tuple[str, str, str]]:
    """Of other extensions, such as that of the second pass: whose, in which field, and the text."""
    for id, params in request.extensions.items():
        for field, _, hints in declared(type(params)):
            if hints.widget == "prompt":
                yield id, field, getattr(params, field)


def _tags(run: Any) -> Iterator[tuple[str, ...]]:
    return (tag.arguments for tag in run.tags if tag.kind == "lora")


def _mention(name: str) -> str:
    """How `Lora hashes` writes a name (A1111)."""
    return re.sub("[:,]", "", name)


def _hashes(text: str) -> Iterator[tuple[str, str]]:
    """Names and hashes: `cat: 0123456789ab, dog: ...`."""
    for pair in text.split(","):
        name, colon, hash = pair.rpartition(":")
        if colon and re.fullmatch(r"[0-9a-fA-F]{8,64}", hash.strip()):
            yield name.strip(), hash.strip().lower()
