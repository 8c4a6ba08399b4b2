"""The pictures a LoRA learns from: folders as others lay them out, what is wrong in them, exact crops, their order.

Three layouts are read: folders `10_name` as kohya's trainer has them (ten repeats; perhaps below `img`), pictures with
a .txt or .caption file each, and a metadata.jsonl; for the first two regularisation images may lie in `reg`. No torch.
"""

import hashlib
import json
import math
import os
import random
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
from PIL import Image

from backend import images
from backend.errors import ImageRefused, InvalidRequest, NotFound, Problem
from backend.training.params import TrainParams

SUFFIXES = {".png", ".jpg", ".jpeg", ".webp"}
UNREAD = {".avif", ".bmp", ".gif", ".heic", ".heif", ".jfif", ".jxl", ".tif", ".tiff"}
"""Pictures that have to be converted first."""
CAPTIONS = (".txt", ".caption")
ENLARGED = 1.25
"""A picture that has to be enlarged more than this is flagged as too small."""
BLURRED = 60.0
"""Variance of the Laplacian of 256 levels below which a picture is flagged as blurred (Pech-Pacheco et al. 2000)."""
USUAL_STEP = 64
"""That divides the sides of buckets, where the model is not known."""
ALIKE = 3
"""Bits of 64 in which the hashes of near-duplicates differ at most."""
LISTING = "metadata.jsonl"
NOTE = "dataset.json"
"""Beside the pictures: {"source": ..., "licence": ..., "consent": ...}."""
LONGEST = {"caption": 2**16, LISTING: 2**26, NOTE: 2**16}
"""Bytes of a text file that are read: a small zip can hold gigabytes of text."""
REGULAR = "reg"
"""The folder of regularisation images."""

Kind = Literal["corrupt", "small", "blurred", "duplicate", "caption", "ignored"]


@dataclass(frozen=True)
class Flag:
    """Something to look at; what is `corrupt` or `ignored` is left out."""

    file: str
    kind: Kind
    message: str


@dataclass(frozen=True)
class Measured:
    """What a picture file says by itself."""

    width: int
    height: int
    sha256: str
    look: int
    """A hash of what it shows, 64 bits."""
    sharpness: float
    """Variance of its edges; see `sharpness`."""


@dataclass(frozen=True)
class Item(Measured):
    """A picture, with a caption that needs nothing further than `caption_of`."""

    path: Path
    name: str
    """Its path within the set."""
    caption: str
    repeats: int = 1
    regular: bool = False
    """A regularisation image: what the model should go on drawing as it does."""


@dataclass(frozen=True)
class Dataset:
    folder: Path
    items: tuple[Item, ...]
    flags: tuple[Flag, ...]
    note: Mapping[str, str] = field(default_factory=dict)

    @property
    def training(self) -> list[Item]:
        return [item for item in self.items if not item.regular]

    @property
    def tags(self) -> dict[str, dict[str, int]]:
        """How often each tag stands in the captions, by folder, as `ss_tag_frequency` has it."""
        found: dict[str, Counter[str]] = defaultdict(Counter)
        for item in self.training:
            folder = Path(item.name).parent.name or self.folder.name
            found[folder].update(tag.strip() for tag in item.caption.split(",") if tag.strip())
        return {folder: dict(tags.most_common()) for folder, tags in found.items()}


def dump(found: Dataset) -> bytes:
    """All that `load` needs, but not the pictures."""
    return json.dumps(asdict(found), default=str).encode()


def load(dumped: bytes) -> Dataset:
    said = json.loads(dumped)
    items = tuple(Item(**{**row, "path": Path(row["path"])}) for row in said["items"])
    return Dataset(Path(said["folder"]), items, tuple(Flag(**row) for row in said["flags"]), said["note"])


# --- finding them


def scan(folder: Path, params: TrainParams | None = None) -> Dataset:
    """As `read`, for a training: raises InvalidRequest where there is nothing to learn from."""
    found = read(folder, params)
    if not found.training:
        lacking = f", and {found.flags[0].file} {found.flags[0].message}" if found.flags else ""
        raise InvalidRequest(Problem("data", f"there is no picture to learn from in {folder.name}{lacking}"))
    return found


def measure(path: Path) -> Measured:
    """Raises ImageRefused for what is no whole picture."""
    images.refuse_large(path.stat().st_size)
    data = path.read_bytes()
    picture = images.flatten(images.decode(data))
    return Measured(*picture.size, hashlib.sha256(data).hexdigest(), look(picture), sharpness(picture))


def read(folder: Path, params: TrainParams | None = None, measure: Callable[[Path], Measured] = measure) -> Dataset:
    """Every picture in the folder, and what is wrong. Raises NotFound without a folder.

    `measure` may remember the files that it has seen.
    """
    params = params or TrainParams()
    if not os.path.isdir(folder):  # pathlib's raises where a name is too long
        raise NotFound(f"there is no folder {folder}")
    flags: list[Flag] = []
    items = [item for found in _found(folder, params, flags) if (item := _read(found, flags, measure))]
    if params.regularisation:
        beside = Path(params.regularisation)
        if not os.path.isdir(beside):
            raise InvalidRequest(Problem("regularisation", f"there is no folder {beside}"))
        given = [replace(found, regular=True) for found in _found(beside, params, flags)]
        items += [item for found in given if (item := _read(found, flags, measure))]
    flags += _alike(items)
    flags += [flag for item in items if not item.regular for flag in _looked_at(item, params)]
    note = _note(folder, flags)
    return Dataset(folder, tuple(items), tuple(flags), note)


@dataclass(frozen=True)
class _Found:
    path: Path
    root: Path
    repeats: int = 1
    words: str = ""
    """What a folder's name says of pictures without a caption."""
    caption: str | None = None
    regular: bool = False


def _found(folder: Path, params: TrainParams, flags: list[Flag]) -> Iterator[_Found]:
    if (folder / LISTING).is_file():
        yield from _listed(folder, params, flags)
        return
    beside = folder / "img"
    if beside.is_dir() and (others := [*_pictures(folder, folder, flags)]):
        flags.append(Flag(others[0].name, "ignored", f"is left out, as all pictures beside {beside.name}"))
    yield from _laid_out(beside if beside.is_dir() else folder, folder, params, flags)
    if (folder / REGULAR).is_dir() and not params.regularisation:
        regular = _laid_out(folder / REGULAR, folder, params, flags)
        yield from (replace(found, regular=True) for found in regular)


def _laid_out(folder: Path, root: Path, params: TrainParams, flags: list[Flag]) -> Iterator[_Found]:
    """What lies in folders whose names begin with a number, and beside them."""
    folders = sorted(p for p in folder.iterdir() if p.is_dir() and p.name != REGULAR and not p.name.startswith("."))
    yield from _numbered(folders, root, flags)
    yield from (_Found(path, root, params.repeats) for path in _pictures(folder, root, flags))


def _numbered(folders: Iterable[Path], root: Path, flags: list[Flag]) -> Iterator[_Found]:
    for path in folders:
        match = _repeats(path)
        if match is None and not any(path.iterdir()):
            continue
        if match is None:
            message = "is left out: the name of a folder begins with its repeats, as 10_name"
            flags.append(Flag(path.relative_to(root).as_posix(), "ignored", message))
            continue
        yield from (_Found(p, root, int(match[1]), match[2].strip()) for p in _pictures(path, root, flags))


def _repeats(folder: Path) -> re.Match[str] | None:
    return re.fullmatch(r"(0*[1-9]\d{0,3})_(.*)", folder.name)


def _pictures(folder: Path, root: Path, flags: list[Flag]) -> Iterator[Path]:
    for path in sorted(p for p in folder.iterdir() if p.is_file()):
        if path.suffix.lower() in SUFFIXES:
            yield path
        elif path.suffix.lower() in UNREAD:
            message = "is left out: PNG, JPEG and WebP are read"
            flags.append(Flag(path.relative_to(root).as_posix(), "ignored", message))


def _listed(folder: Path, params: TrainParams, flags: list[Flag]) -> Iterator[_Found]:
    seen: set[Path] = set()
    try:
        lines = _text(folder / LISTING).splitlines()
    except ValueError as error:
        flags.append(Flag(LISTING, "ignored", f"is left out: it {error}"))
        return
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        where = f"{LISTING}, line {number}"
        try:
            row = json.loads(line)
            name = row["file_name"]
            caption = next((row[key] for key in ("text", "caption", "prompt") if key in row), "")
            if not isinstance(name, str) or not isinstance(caption, str):
                raise TypeError
            caption.encode()  # half a character, which JSON can hold, can be written nowhere
            path = folder / name
            there = path.resolve()
            is_file = there.is_file()
        except (ValueError, KeyError, TypeError, OSError, RecursionError):
            flags.append(Flag(where, "ignored", 'is left out: it should be {"file_name": "1.png", "text": "..."}'))
            continue
        if not there.is_relative_to(folder.resolve()):
            flags.append(Flag(where, "ignored", f"is left out: {name[:80]} is outside the folder"))
        elif not is_file:
            flags.append(Flag(where, "ignored", f"is left out: there is no file {name[:80]}"))
        elif there in seen:
            flags.append(Flag(where, "ignored", f"is left out: {name[:80]} stands in it twice"))
        else:
            seen.add(there)
            yield _Found(path, folder, params.repeats, caption=caption)


def _read(found: _Found, flags: list[Flag], measure: Callable[[Path], Measured]) -> Item | None:
    name = found.path.relative_to(found.root).as_posix()
    try:
        seen = measure(found.path)
    except ImageRefused as error:
        flags.append(Flag(name, "corrupt", f"is left out: {error}"))
        return None
    caption = _caption(found, name, flags)
    return Item(
        **asdict(seen), path=found.path, name=name, caption=caption, repeats=found.repeats, regular=found.regular
    )


def _caption(found: _Found, name: str, flags: list[Flag]) -> str:
    files = [found.path.with_suffix(suffix) for suffix in CAPTIONS]
    file = next((f for f in files if f.is_file()), None) if found.caption is None else None
    caption = found.words if found.caption is None else found.caption
    if file:
        try:
            caption = _text(file, "caption").decode("utf-8-sig")
        except ValueError as error:
            reason = "is not UTF-8 text" if isinstance(error, UnicodeDecodeError) else str(error)
            beside = file.relative_to(found.root).as_posix()
            flags.append(Flag(beside, "ignored", f"is left out: it {reason}"))
    caption = " ".join(caption.split())
    if not caption and not found.regular:
        flags.append(Flag(name, "caption", "has no caption"))
    return caption


def _note(folder: Path, flags: list[Flag]) -> dict[str, str]:
    try:
        note = json.loads(_text(folder / NOTE))
        said = {key: str(note[key]) for key in ("source", "licence", "consent") if note.get(key)}
        "".join(said.values()).encode()  # half a character, which JSON can hold, can be written nowhere
    except FileNotFoundError:
        return {}
    except (ValueError, AttributeError, RecursionError) as error:
        flags.append(Flag(NOTE, "ignored", f"is left out: it cannot be read ({error})"))
        return {}
    return said


def _text(path: Path, what: str = "") -> bytes:
    """What stands in a file. Raises ValueError for one that is too large."""
    most = LONGEST[what or path.name]
    if (size := path.stat().st_size) > most:
        raise ValueError(f"has {size >> 10} KB; at most {most >> 10} are read")
    return path.read_bytes()


# --- looking at them


def _looked_at(item: Item, params: TrainParams) -> Iterator[Flag]:
    crop = crop_of(item.width, item.height, params, params.bucket_step or USUAL_STEP)
    enlarged = crop.scaled[0] / item.width
    if enlarged > ENLARGED:
        size = f"{item.width} x {item.height} pixels"
        yield Flag(item.name, "small", f"has {size}: it is enlarged {enlarged:.1f} times")
    if item.sharpness < BLURRED:
        yield Flag(item.name, "blurred", f"is blurred or empty (variance of its edges {item.sharpness:.0f})")


def _alike(items: Sequence[Item]) -> Iterator[Flag]:
    """Each that looks like one before it; those of few colours look alike soon, so this is a hint."""
    looks = np.array([item.look for item in items], np.uint64)
    for index, item in enumerate(items[1:], 1):
        apart = np.bitwise_count(looks[:index] ^ looks[index])
        nearest = int(apart.argmin())
        if items[nearest].sha256 == item.sha256:
            yield Flag(item.name, "duplicate", f"is the same as {items[nearest].name}")
        elif apart[nearest] <= ALIKE:
            yield Flag(item.name, "duplicate", f"looks like {items[nearest].name}")


def sharpness(picture: Image.Image) -> float:
    """Variance of the Laplacian of the grey picture, at 512 pixels at most."""
    grey = picture.convert("L")
    grey.thumbnail((512, 512), Image.Resampling.BOX)
    g = np.asarray(grey, np.float32)
    edges = g[:-2, 1:-1] + g[2:, 1:-1] + g[1:-1, :-2] + g[1:-1, 2:] - 4 * g[1:-1, 1:-1]
    return float(edges.var()) if edges.size else 0.0


def look(picture: Image.Image) -> int:
    """Which of 8 x 8 pixels are brighter than their left neighbour: a difference hash."""
    small = np.asarray(picture.convert("L").resize((9, 8), Image.Resampling.LANCZOS), np.int16)
    return int.from_bytes(np.packbits(small[:, 1:] > small[:, :-1]).tobytes(), "big")


# --- what the trainer sees


@dataclass(frozen=True)
class Crop:
    """How a picture comes to the size of its bucket: scaled, then cut at its middle."""

    width: int
    height: int
    scaled: tuple[int, int]
    left: int
    top: int


def crop_of(width: int, height: int, params: TrainParams, step: int) -> Crop:
    """The bucket whose shape is nearest, and the cut; `step` divides its sides."""
    across, down = min(
        shapes(params.resolution, step, params.largest_aspect if params.buckets else 1.0),
        key=lambda shape: abs(math.log(shape[0] / shape[1] * height / width)),
    )
    scale = max(across / width, down / height)
    scaled = max(round(width * scale), across), max(round(height * scale), down)
    return Crop(across, down, scaled, (scaled[0] - across) // 2, (scaled[1] - down) // 2)


def shapes(resolution: int, step: int, largest_aspect: float) -> list[tuple[int, int]]:
    """Sizes of at most `resolution` squared pixels whose sides are multiples of `step`, the square first."""
    side = max(resolution // step, 1) * step
    found = {(side, side)}
    for width in range(step, int(side * largest_aspect) + 1, step):
        height = side * side // width // step * step
        if height and 1 / largest_aspect <= width / height <= largest_aspect:
            found |= {(width, height), (height, width)}
    return sorted(found, key=lambda shape: (shape != (side, side), shape))


def picture_of(item: Item) -> Image.Image:
    """The whole picture, RGB. Raises NotFound if it is another one now, or gone."""
    data = item.path.read_bytes() if item.path.is_file() else b""
    if hashlib.sha256(data).hexdigest() != item.sha256:
        raise NotFound(f"{item.name} is not the picture any more that it was when the set was read")
    return images.flatten(images.decode(data))


def cropped(picture: Image.Image, crop: Crop, flipped: bool = False) -> Image.Image:
    """Just what the trainer sees."""
    x, y = picture.width / crop.scaled[0], picture.height / crop.scaled[1]
    box = (crop.left * x, crop.top * y, (crop.left + crop.width) * x, (crop.top + crop.height) * y)
    picture = picture.resize((crop.width, crop.height), Image.Resampling.LANCZOS, box)
    return picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if flipped else picture


@dataclass(frozen=True)
class Example:
    """A picture as it comes in one batch."""

    item: Item
    crop: Crop
    caption: str
    flipped: bool = False


@dataclass(frozen=True)
class Plan:
    """Which pictures come when. Everything follows from the seed and the number of the batch, so that a training that
    goes on after a break sees what it would have seen."""

    items: tuple[Item, ...]
    held_out: tuple[Item, ...]
    params: TrainParams
    step: int
    """That divides the sides of the buckets."""

    @cached_property
    def crops(self) -> dict[str, Crop]:
        """By the picture's hash."""
        return {i.sha256: crop_of(i.width, i.height, self.params, self.step) for i in (*self.items, *self.held_out)}

    @cached_property
    def buckets(self) -> dict[tuple[int, int], list[Item]]:
        """An epoch's pictures by the size that they come to; each as often as it is repeated."""
        learnt = [item for item in self.items if not item.regular for _ in range(item.repeats)]
        kept = [item for item in self.items if item.regular for _ in range(item.repeats)]
        beside = [kept[n % len(kept)] for n in range(len(learnt))] if kept else []  # one for each, as kohya has it
        buckets: dict[tuple[int, int], list[Item]] = defaultdict(list)
        for item in learnt + beside:
            crop = self.crops[item.sha256]
            buckets[crop.width, crop.height].append(item)
        return {size: buckets[size] for size in sorted(buckets)}

    @cached_property
    def batches_per_epoch(self) -> int:
        return sum(math.ceil(len(bucket) / self.params.batch_size) for bucket in self.buckets.values())

    @cached_property
    def steps(self) -> int:
        epochs, batches = self.params.epochs, self.batches_per_epoch
        return math.ceil(epochs * batches / self.params.accumulation) or self.params.steps

    def epochs(self, step: int) -> float:
        """How often each picture has come in so many steps. A step may take its batches from two epochs."""
        return step * self.params.accumulation / self.batches_per_epoch

    def batch(self, number: int) -> list[Example]:
        """Pictures of one size."""
        epoch, place = divmod(number, self.batches_per_epoch)
        items = self._epoch(epoch)[place]
        rng = self._random("batch", number)
        return [self._example(item, rng) for item in items]

    def validation(self) -> list[Example]:
        return [Example(item, self.crops[item.sha256], caption_of(item, self.params)) for item in self.held_out]

    def everything(self) -> list[Example]:
        """Each picture as it may come, to be encoded beforehand."""
        flips = (False, True) if self.params.flip else (False,)
        return [
            *(Example(i, self.crops[i.sha256], caption_of(i, self.params), f) for i in self.items for f in flips),
            *self.validation(),
        ]

    @cached_property
    def _drawn(self) -> dict[int, list[list[Item]]]:
        """The epoch in hand."""
        return {}

    def _epoch(self, epoch: int) -> list[list[Item]]:
        if epoch not in self._drawn:
            self._drawn.clear()
            self._drawn[epoch] = self._shuffled(self._random("epoch", epoch))
        return self._drawn[epoch]

    def _shuffled(self, rng: random.Random) -> list[list[Item]]:
        batches = []
        for bucket in self.buckets.values():
            order = rng.sample(bucket, len(bucket))
            size = self.params.batch_size
            batches += [order[n : n + size] for n in range(0, len(order), size)]
        rng.shuffle(batches)
        return batches

    def _example(self, item: Item, rng: random.Random) -> Example:
        caption = caption_of(item, self.params, rng)
        dropped = rng.random() < self.params.caption_dropout
        flipped = rng.random() < 0.5 and self.params.flip
        return Example(item, self.crops[item.sha256], "" if dropped else caption, flipped)

    def _random(self, what: str, number: int) -> random.Random:
        return random.Random(f"{self.params.seed}/{what}/{number}")


def plan(dataset: Dataset, params: TrainParams, step: int) -> Plan:
    """Some pictures held out, the rest to learn from; the same ones for the same set and seed."""
    training = dataset.training
    count = max(round(params.validation * len(training)), 1) if params.validation and len(training) > 1 else 0
    drawn = random.Random(f"{params.seed}/validation").sample(sorted(training, key=lambda i: i.sha256), count)
    chosen = {item.sha256 for item in drawn}  # with its copies
    if all(item.sha256 in chosen for item in training):
        raise InvalidRequest(Problem("validation", "every picture would be held out, and none left to learn from"))
    items = tuple(item for item in dataset.items if item.sha256 not in chosen)
    return Plan(items, tuple(drawn), params, params.bucket_step or step)


def caption_of(item: Item, params: TrainParams, rng: random.Random | None = None) -> str:
    """The caption as it is learnt: trigger, prefix, suffix, and its tags shuffled if `rng` is given and asked to."""
    caption = item.caption
    if item.regular:
        return caption
    if "[trigger]" in caption:
        caption = caption.replace("[trigger]", params.trigger)
    elif params.trigger and not re.match(rf"{re.escape(params.trigger)}(?!\w)", caption):
        caption = ", ".join(filter(None, (params.trigger, caption)))
    caption = f"{params.prefix}{caption}{params.suffix}"
    if not (params.shuffle and rng):
        return caption
    tags = [tag.strip() for tag in caption.split(",")]
    kept, moved = tags[: params.keep_tokens], tags[params.keep_tokens :]
    return ", ".join([*kept, *rng.sample(moved, len(moved))])


def described(dataset: Dataset, plan: Plan) -> dict[str, Any]:
    """The set in numbers, for people."""
    return {
        "images": len(dataset.training),
        "regularisation": len(dataset.items) - len(dataset.training),
        "held_out": len(plan.held_out),
        "repeated": sum(len(bucket) for bucket in plan.buckets.values()),
        "buckets": {f"{w}x{h}": len(bucket) for (w, h), bucket in plan.buckets.items()},
        "epochs": math.ceil(plan.epochs(plan.steps)),
        "steps": plan.steps,
        "flags": [flag.__dict__ for flag in dataset.flags],
    }
