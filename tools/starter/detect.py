"""The scorer: reads background, colours, shapes and places off a picture by pixels alone, without any learnt part."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import cv2
import numpy as np

from . import world

RING = 6
THRESHOLD = 48.0
LEAST_AREA = 70
TEMPLATE = 48


@dataclass(frozen=True)
class Found:
    """An object: `x`, `y` its middle and `height` its extent, as shares of the picture; `fit` the best IoU."""

    shape: str
    colour: str
    x: float
    y: float
    height: float
    fit: float


@dataclass(frozen=True)
class Reading:
    """What a picture shows; objects by size, largest first."""

    background: str
    items: tuple[Found, ...]


@dataclass(frozen=True)
class Score:
    """Whether a picture shows what its scene asks for; `position` covers place and order of the objects."""

    background: bool
    colour: bool
    shape: bool
    position: bool

    @property
    def all(self) -> bool:
        return self.background and self.colour and self.shape and self.position


def read(picture: np.ndarray) -> Reading:
    """Detect background and objects of an RGB uint8 picture of the world's size."""
    background, masks = _objects(picture)
    return Reading(background, tuple(_found(picture, mask) for mask in masks))


def largest(picture: np.ndarray) -> np.ndarray | None:
    """The mask of the largest object, if there is any."""
    _, masks = _objects(picture)
    return masks[0] if masks else None


def _objects(picture: np.ndarray) -> tuple[str, list[np.ndarray]]:
    """The background and the masks of the objects, largest first."""
    background, paper = _background(picture.astype(np.float32))
    different = np.linalg.norm(picture.astype(np.float32) - paper, axis=2) > THRESHOLD
    # opening removes what jitter leaves of the horizon, waves and stars
    mask = cv2.morphologyEx(different.astype(np.uint8), cv2.MORPH_OPEN, np.ones((3, 3), np.uint8))
    count, labels, stats, _ = cv2.connectedComponentsWithStats(mask, connectivity=8)
    order = sorted(range(1, count), key=lambda k: -int(stats[k, cv2.CC_STAT_AREA]))
    return background, [labels == k for k in order if stats[k, cv2.CC_STAT_AREA] >= LEAST_AREA]


def score(picture: np.ndarray, scene: world.Scene) -> Score:
    """Compare a picture with the scene its prompt describes."""
    reading = read(picture)
    count = len(scene.items)
    items = list(reading.items[:count])
    if len(items) < count:
        return Score(reading.background == scene.background, False, False, False)
    if count == 2:
        axis = "x" if scene.relation in ("left of", "right of") else "y"
        items.sort(key=lambda found: getattr(found, axis), reverse=scene.relation in ("right of", "below"))
    pairs = list(zip(items, scene.items, strict=True))
    # things stand on the ground of a place, so only left, middle, right counts there
    axes = 1 if scene.background in world.PLACES else 2
    return Score(
        background=reading.background == scene.background,
        colour=all(found.colour == item.colour for found, item in pairs),
        shape=all(found.shape == item.shape for found, item in pairs),
        position=all(_place(found)[:axes] == _place_of(item)[:axes] for found, item in pairs),
    )


def _place(found: Found) -> tuple[int, int]:
    def third(value: float) -> int:
        return 0 if value < 0.39 else 2 if value > 0.61 else 1

    return third(found.x), third(found.y)


def _place_of(item: world.Item) -> tuple[int, int]:
    return {"centre": (1, 1), "left": (0, 1), "right": (2, 1), "top": (1, 0), "bottom": (1, 2)}[item.position]


@cache
def _papers() -> dict[str, np.ndarray]:
    return {name: world.render(world.Scene(name, ())).picture.astype(np.float32) for name in world.BACKGROUNDS}


def _ring(picture: np.ndarray) -> np.ndarray:
    return np.concatenate(
        [
            picture[:RING].reshape(-1, 3),
            picture[-RING:].reshape(-1, 3),
            picture[RING:-RING, :RING].reshape(-1, 3),
            picture[RING:-RING, -RING:].reshape(-1, 3),
        ]
    )


def _background(picture: np.ndarray) -> tuple[str, np.ndarray]:
    """The background whose border is nearest, and the picture of it to subtract."""
    ring = _ring(picture)

    def distance(name: str) -> float:
        gaps = np.sort(np.linalg.norm(ring - _ring(_papers()[name]), axis=1))
        return float(gaps[: int(len(gaps) * 0.75)].mean())

    best = min(world.BACKGROUNDS, key=distance)
    if best in world.COLOURS:
        return best, np.broadcast_to(np.median(ring, axis=0), picture.shape)
    return best, _papers()[best]


def _found(picture: np.ndarray, mask: np.ndarray) -> Found:
    solid = mask.astype(np.uint8)
    core = cv2.erode(solid, np.ones((3, 3), np.uint8)).astype(bool)
    pixels = picture[core if core.any() else mask].astype(np.float32)
    palette = np.array(list(world.COLOURS.values()), np.float32)
    nearest = np.linalg.norm(pixels[:, None] - palette, axis=2).argmin(1)
    colour = list(world.COLOURS)[int(np.bincount(nearest, minlength=len(palette)).argmax())]
    own = _normalised(solid)
    fits = {name: max(overlap(own, template) for template in templates) for name, templates in _templates().items()}
    shape = max(fits, key=fits.__getitem__)
    x, y, width, height = cv2.boundingRect(solid)
    return Found(
        shape, colour, (x + width / 2) / world.SIZE, (y + height / 2) / world.SIZE, height / world.SIZE, fits[shape]
    )


def _normalised(mask: np.ndarray) -> np.ndarray:
    """The outer contour, filled, its bounding box fitted into a square."""
    contours, _ = cv2.findContours(mask, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    filled = cv2.drawContours(np.zeros_like(mask), contours, -1, 1, -1)
    x, y, width, height = cv2.boundingRect(filled)
    scale = TEMPLATE / max(width, height)
    small = cv2.resize(
        filled[y : y + height, x : x + width].astype(np.float32),
        (max(1, round(width * scale)), max(1, round(height * scale))),
    )
    out = np.zeros((TEMPLATE, TEMPLATE), bool)
    top, left = (TEMPLATE - small.shape[0]) // 2, (TEMPLATE - small.shape[1]) // 2
    out[top : top + small.shape[0], left : left + small.shape[1]] = small > 0.5
    return out


def overlap(a: np.ndarray, b: np.ndarray) -> float:
    """Intersection over union of two masks."""
    return float((a & b).sum() / max((a | b).sum(), 1))


@cache
def _templates() -> dict[str, list[np.ndarray]]:
    templates: dict[str, list[np.ndarray]] = {}
    for index, shape in enumerate(world.SHAPES):
        poses = world.POSES if shape == "person" else ("standing",)
        angles = (-4.0, 0.0, 4.0) if shape in world.OUTLINES else (0.0,)
        templates[shape] = [
            _normalised(
                (
                    world.render(
                        world.Scene("white", (world.Item(shape, "red", size, "centre", pose, angle=angle),))
                    ).labels
                    == index + 1
                ).astype(np.uint8)
            )
            for size in world.SIZES
            for pose in poses
            for angle in angles
        ]
    return templates
