"""All models there are, by name, each with what its files tell."""

import difflib
import logging
import os
import re
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import replace
from pathlib import Path
from typing import Any

from backend import gguf, weights
from backend.catalog import defaults, folders, hashes, runs, scan, sidecars
from backend.catalog.detect import Kind, as_said, detect
from backend.catalog.hashes import Fingerprints
from backend.catalog.index import FORGETS, Index, Row
from backend.catalog.model import Model
from backend.catalog.roots import FOLDERS, STARTER, Roots, roots_of
from backend.catalog.scan import Found, shown
from backend.consents import PICKLES, Consents, is_pickle
from backend.errors import NotFound
from backend.weights import BrokenFile

log = logging.getLogger(__name__)

CHECKPOINTS: tuple[Kind, ...] = ("checkpoint", "diffusion_model")
"""What a picture can be drawn with; the second kind lacks parts, which lie beside it."""
TRUSTED: tuple[Kind, ...] = ("annotator", "upscaler")
"""Kinds that exist as pickles only; whoever reads them takes plain tensors and nothing else."""
QUICK = 0.1
"""Seconds that a look may take for each request, also if a watch would tell of changes."""
PICKLE = "is a pickle, which can run code when it is read: convert it to .safetensors"
FLEETING = ("is not there", "cannot be read")
"""Problems that may be gone although the file has not changed."""
KEPT = re.compile(r"modelspec\.|ss_|sshs_|general\.|sd version$")
"""Metadata that are kept."""
MAX_METADATA = 1000
"""Characters of each: a picture or a list of captions is passed over."""
_ALIKE: tuple[frozenset[Kind], ...] = (
    frozenset({"checkpoint", "diffusion_model"}),
    frozenset({"vae", "tiny_vae"}),
    frozenset({"text_encoder", "image_encoder"}),
)
"""Kinds that may lie in each other's folders."""
_NAMES: Mapping[Kind, str] = {
    "checkpoint": "a checkpoint",
    "diffusion_model": "a diffusion model",
    "vae": "a VAE",
    "tiny_vae": "a tiny VAE",
    "text_encoder": "a text encoder",
    "image_encoder": "an image encoder",
    "lora": "a LoRA",
    "controlnet": "a ControlNet",
    "embedding": "an embedding",
    "upscaler": "an upscaler",
}


class Catalog:
    def __init__(self, models: Path | Roots, default: str = "") -> None:
        self.roots = roots_of(models)
        self.folder = self.roots.models
        self._default = default
        self._index = Index(self.roots.index)
        self._fingerprints = Fingerprints(self._index)
        self._consents = Consents(self.roots.index.with_name("consents.json")) if self.roots.index else None
        self._lock = threading.Lock()
        self._headers: dict[str, Row] | None = None
        self._seen: tuple[Model, ...] = ()
        self._takes = 0.0
        """Seconds of the latest look."""
        self._is_watched = False

    def all(self) -> Sequence[Model]:
        """Models of all kinds, the broken ones too, in the order of their places."""
        with self._lock:
            if not (self._is_watched and self._takes > QUICK):
                self._look_again()
            return self._seen

    def consented(self, models: Iterable[Model]) -> Iterator[Model]:
        """The same; of pickles those that an administrator has consented to can be used."""
        consents = self._consents
        if consents is None or not (given := consents.given()):
            yield from models
            return
        for model in models:
            is_given = model.problem == PICKLE and consents.is_given(model.path, self.fingerprint)
            yield replace(model, problem=None, consented=given) if is_given else model

    def known(self) -> Sequence[Model]:
        """What the latest look has found."""
        return self._seen

    def files(self, kind: Kind) -> list[Model]:
        """Of one kind, by name."""
        found = self.consented(model for model in self.all() if model.kind == kind)
        return sorted(found, key=lambda model: model.name.lower())

    def models(self) -> list[Model]:
        """Every checkpoint, the broken ones too; the embedded starter model comes last."""
        found = self.consented(model for model in self.all() if model.kind in CHECKPOINTS)
        return sorted(found, key=lambda model: (model.name == STARTER, model.name.lower()))

    def find(self, name: str = "") -> Model:
        """The checkpoint of that name, the default one if it is empty. Raises NotFound, which says what is near.

        A name may be whatever A1111 takes for one: a title with or without its hash, a path, a file's name or stem,
        ten digits or all of the SHA-256, the eight digits of old.
        """
        wanted = name or self._default
        if wanted and (known := _named(wanted, _of(CHECKPOINTS, self._seen))) and (still := self._still(known)):
            return next(self.consented([still]))
        if wanted and (found := self._meant(wanted, self.models)):
            return found
        models = self.models()
        if not wanted and (usable := next((model for model in models if not model.problem), None)):
            return usable
        if not models:
            raise NotFound(f"there is no model in {self.folder}; the embedded one belongs into its folder starter")
        raise NotFound(
            f"{wanted[:80]!r} is not a model here{_near(wanted, models)}" if wanted else "no model is usable"
        )

    @property
    def default(self) -> str:
        """The name that is taken where none is given; empty: the first that can be used."""
        return self._default

    def prefer(self, name: str) -> None:
        """Take this one from now on, where none is given."""
        self._default = name

    def find_file(self, kind: Kind, name: str) -> Model:
        """The same for another kind."""
        if found := self._meant(name, lambda: self.files(kind)):
            return found
        files = self.files(kind)
        where = f"; put it into {self.folder / FOLDERS[kind][0]}" if kind and not files else _near(name, files)
        raise NotFound(f"there is no {kind.replace('_', ' ')} {name[:80]!r}{where}")

    def fingerprint(self, path: Path, go_on: Callable[[], None] = lambda: None) -> str:
        """SHA-256 of a file or of a folder's weights (`hashes.fingerprint`), read only if it is not known."""
        return self._fingerprints.of(path, go_on)

    def refresh(self) -> None:
        """Look again."""
        with self._lock:
            self._look_again()

    def trust(self, watched: bool) -> None:
        """While somebody watches the folders and calls `refresh`, a look that takes time is not had before."""
        with self._lock:
            self._is_watched, self._takes = watched, 0.0

    def _meant(self, wanted: str, models: Callable[[], list[Model]]) -> Model | None:
        """What the latest look has not found may have come since."""
        found = _named(wanted, models())
        if found is None and self._is_watched:
            self.refresh()
            found = _named(wanted, models())
        return found

    # --- looking

    def _look_again(self) -> None:
        started = time.perf_counter()
        self._seen = tuple(self._look())
        self._takes = time.perf_counter() - started

    def _look(self) -> Iterator[Model]:
        if self._headers is None:
            self._headers = self._index.headers()
        known, read = self._headers, dict[str, tuple[str, Any]]()
        found = [*scan.walk(self.roots.places()), *scan.starter(self.folder / STARTER)]
        facts = {each.path: self._facts(each, known, read) for each in found}
        self._remember(read, facts.keys())
        hashed = self._index.hashes()
        names: set[tuple[Kind, str]] = set()
        for each in sorted(found, key=_rank):
            told, relative = facts[each.path], shown(each.relative)
            kind = told["kind"]
            for name in _possible_names(each, relative):
                if (kind, name.lower()) not in names:
                    # what A1111 calls it is not another one's name either
                    names |= {(kind, name.lower()), (kind, relative.lower())}
                    yield _model(each, name, told, hashed.get(each.path))
                    break

    def _facts(self, found: Found, known: Mapping[str, Row], read: dict[str, tuple[str, Any]]) -> Mapping[str, Any]:
        """Fields of `Model`, by what its files say."""
        if found.problem:
            return {"kind": found.place.kind, "problem": found.problem}
        if found.is_folder:
            return _suited({"kind": found.place.kind, **folders.read(Path(found.path))})
        stamp = f"{found.size} {found.time} {found.place.kind} {sorted(found.beside.items())}"
        row = known.get(found.path)
        if row and row.stamp == stamp:
            return row.read()
        facts = _suited(_read(found))
        if not (facts.get("problem") or "").startswith(FLEETING):
            read[found.path] = stamp, facts
        return facts

    def _remember(self, read: Mapping[str, tuple[str, Any]], there: Set[str]) -> None:
        assert self._headers is not None
        gone = self._headers.keys() - there
        gone = gone if len(gone) > FORGETS else set()
        if read or gone:
            self._index.keep_headers(read, gone)
            self._headers = self._index.headers()

    def _still(self, model: Model) -> Model | None:
        """The model if it is as it was; None if only a look at everything can tell."""
        try:
            stat = os.stat(model.path)
        except OSError:
            return None
        is_same = not model.path.is_dir() and (stat.st_size, stat.st_mtime_ns) == (model.size, model.changed)
        if is_same or (self._is_watched and self._takes > QUICK):
            return model
        return None


def kind_of(path: Path, lies_in: Kind) -> Kind:
    """In whose folder a file belongs: `lies_in`, unless its header says that it is of another kind."""
    try:
        is_of = detect(gguf.read(path) if path.suffix.lower() == ".gguf" else weights.read(path), path.name).kind
    except BrokenFile:
        return lies_in
    return lies_in if not is_of or _is_alike(is_of, lies_in) else is_of


def _suited(facts: dict[str, Any]) -> dict[str, Any]:
    """The same without the defaults that cannot be."""
    if not facts.get("defaults"):
        return facts
    right, wrong = defaults.heeded(facts["defaults"], facts.get("family", ""))
    problem = f"its card has defaults that are not heeded: {wrong}" if wrong else ""
    return {**facts, "defaults": right, "card_problem": problem}


def _read(found: Found) -> dict[str, Any]:
    """Fields of `Model`, by the file's header and what lies beside it."""
    path = Path(found.path)
    said = sidecars.read({ending: path.with_name(found.stem + ending) for ending in found.beside})
    variant = said.pop("variant", "")
    kind = found.place.kind
    if kind == "annotator":
        return {"kind": kind, **said}
    if is_pickle(path):
        return {**said, **_pickle(path, kind)}
    try:
        header = gguf.read(path) if path.suffix.lower() == ".gguf" else weights.read(path)
    except BrokenFile as error:
        return {**said, "kind": kind, "problem": str(error)}
    detected = as_said(detect(header, path.name), variant)
    metadata = {k: v for k, v in header.metadata.items() if KEPT.match(k) and len(v) <= MAX_METADATA}
    is_of, problem = _placed(detected.kind, kind, detected.problem)
    told = {**vars(detected), "kind": is_of, "problem": problem, "metadata": metadata}
    return {**{name: value for name, value in told.items() if value}, "kind": is_of, **said}


def _pickle(path: Path, kind: Kind) -> dict[str, Any]:
    is_vae = kind == "checkpoint" and re.search(r"\.vae\.\w+$", path.name)
    return {"kind": "vae" if is_vae else kind or "checkpoint", "problem": None if kind in TRUSTED else PICKLE}


def _placed(is_of: Kind, lies_in: Kind, unknown: str | None) -> tuple[Kind, str | None]:
    """The kind that it is listed under, and what is wrong with that."""
    if not lies_in:
        return is_of, unknown
    if not is_of:
        return lies_in, unknown if lies_in not in TRUSTED else None
    if _is_alike(is_of, lies_in):
        return is_of, None
    if is_of == "vae" and lies_in == "checkpoint":  # as A1111's users keep them
        return is_of, None
    return lies_in, f"is {_NAMES[is_of]}, not {_NAMES[lies_in]}: it belongs into the folder {FOLDERS[is_of][0]}"


def _is_alike(one: Kind, other: Kind) -> bool:
    """Whether they may lie in each other's folders."""
    return one == other or any(one in alike and other in alike for alike in _ALIKE)


def _model(found: Found, name: str, facts: Mapping[str, Any], hashed: tuple[str, str] | None) -> Model:
    path = Path(found.path)
    picture = next((ending for ending in scan.PICTURES if ending in found.beside), None)
    told = {
        **facts,
        "title": facts.get("title") or name,
        "parts": tuple(facts.get("parts", ())),  # of JSON it is a list
        "examples": tuple(facts.get("examples", ())),
    }
    if not found.is_folder and facts.get("kind") in CHECKPOINTS and not facts.get("problem"):
        told["problem"] = runs.why_no_file(facts)  # now: facts may be of an older version, which runs less
    if shown(found.path) != found.path:
        told["problem"] = "has a name that is not UTF-8: rename it"
    return Model(
        **told,
        name=name,
        path=path,
        relative=shown(found.relative),
        root=found.place.root,
        size=found.size,
        changed=found.time,
        sha256=hashed[1] if hashed and hashed[0] == _stamp(found) else "",
        preview=path.with_name(found.stem + picture) if picture else None,
    )


def _stamp(found: Found) -> str:
    """Of what was hashed; empty: it goes just now, or leads nowhere."""
    try:
        return hashes.stamp(Path(found.path)) if found.is_folder else f"{found.size} {found.time}"
    except OSError:
        return ""


# --- names


def _rank(found: Found) -> tuple[bool, int, bool]:
    """Who keeps the plain name where several have it: what does not lie deep, and a .safetensors."""
    return bool(found.place.root), found.relative.count("/"), found.path.lower().endswith(_LATER)


_LATER = (*PICKLES, ".gguf")


def _possible_names(found: Found, relative: str) -> Iterator[str]:
    yield shown(found.stem)
    yield relative if found.is_folder else scan.without_ending(relative)
    where = found.place.root or found.place.folder.name
    yield from (relative, f"{where}/{scan.without_ending(relative)}", f"{where}/{relative}", shown(found.path))


def _of(kinds: Iterable[Kind], models: Iterable[Model]) -> list[Model]:
    return [model for model in models if model.kind in kinds]


def _named(wanted: str, models: Sequence[Model]) -> Model | None:
    """The model that is meant; of several, one that can be used, then the first."""
    for same in (
        [model for model in models if model.name == wanted],
        [model for model in models if model.title == wanted],
        _by_alias(wanted, models),
    ):
        if same:
            return next((model for model in same if not model.problem), same[0])
    return None


def _by_alias(wanted: str, models: Sequence[Model]) -> list[Model]:
    low = wanted.strip().lower().replace("\\", "/")
    if hashes.is_hash(low):
        if found := [model for model in models if model.sha256.startswith(low)]:
            return found
        if len(low) == 8 and (found := [model for model in models if _old_hash(model) == low]):
            return found
    title = re.fullmatch(r"(.*?)\s*\[([0-9a-f]{8,64})\]", low)
    if title and (found := [model for model in models if model.sha256.startswith(title[2])]):
        return found
    name = title[1] if title else low
    found = [model for model in models if name in {alias.lower() for alias in _aliases(model)}]
    return [model for model in found if wanted in _aliases(model)] or found  # there may be cat and Cat


def _aliases(model: Model) -> set[str]:
    stem = model.relative if model.path.is_dir() else scan.without_ending(model.relative)
    names = model.relative, stem, stem.replace("/", "_"), *(n.rpartition("/")[2] for n in (model.relative, stem))
    return {model.name, model.title, *names}


def _old_hash(model: Model) -> str:
    try:
        return hashes.old_hash(model.path) if model.path.is_file() else ""
    except OSError:
        return ""


def _near(wanted: str, models: Sequence[Model]) -> str:
    if not models:
        return ""
    names = {model.name.lower(): model.name for model in models}
    low = wanted.lower().rpartition("/")[2]
    near = difflib.get_close_matches(low, names, 5, 0.5)
    near += [name for name in names if low and low in name and name not in near]
    if near:
        return "; near to it: " + ", ".join(names[name] for name in near[:5])
    return "; there are " + ", ".join([*names.values()][:10])
