"""DWPose (Yang et al. 2023): a YOLOX network finds people, a second one the 133 points of COCO-WholeBody in each.

Both are read as their authors publish them, in ONNX, which holds no code. YOLOX gives, for each cell of three grids, a
box in steps of its cell, how sure it is that there is something, and for each class how sure it is of that. The second
one gives two profiles for each point, across and down (SimCC): the point lies where both are highest.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from .pose import BODY, Person, Point, Points, Pose
from .weightless import Pixels

Numbers = NDArray[np.float32]

STRIDES = (8, 16, 32)
"""Pixels of the cells of YOLOX's grids."""
PADDING = 114
"""The grey beside a picture of another shape."""
SURE, OVERLAP = 0.3, 0.45
"""The least that a person's score must be, and how much two boxes may share, of what they cover together."""
SEEN = 0.3
"""The least that a point's score must be."""
ROOM = 1.25
"""How much larger than the person is what the second network is shown."""
MEAN, SPREAD = np.float32([123.675, 116.28, 103.53]), np.float32([58.395, 57.12, 57.375])
POINTS = 133
SHOULDERS = (5, 6)
OPENPOSE = (0, -1, 6, 8, 10, 5, 7, 9, 12, 14, 16, 11, 13, 15, 2, 1, 4, 3)
"""Where OpenPose's 18 joints stand among the points; its neck (-1) lies between the shoulders."""
FACE, LEFT_HAND, RIGHT_HAND = slice(23, 91), slice(91, 112), slice(112, 133)
EYES = (2, 1)
"""OpenPose's faces end with the pupils."""


class Misfit(ValueError):
    """Why a file is not the network that it should be, in words that follow its name."""


class DWPose:
    """Raises Misfit, of the file that `name` names, and whatever onnxruntime raises over a damaged one."""

    def __init__(self, people: Path, points: Path, threads: int) -> None:
        self._people = _Network(people, threads)
        self._points = _Network(points, threads)

    def __call__(self, picture: Pixels) -> Pose:
        height, width = picture.shape[:2]
        shown, scale = letterboxed(picture[:, :, ::-1], self._people.size)  # YOLOX has learnt from BGR
        (found,) = self._people(shown)
        persons = []
        for box in boxes(found[0], self._people.size) / scale:
            crop, corner, step = cut_out(picture, box, self._points.size)
            across, down = self._points((crop - MEAN) / SPREAD)
            places, scores = peaks(across[0], down[0])
            persons.append(person(corner + places * step, scores, width, height))
        return Pose(tuple(persons), width, height)


class _Network:
    """An ONNX file that is shown pictures of one size."""

    def __init__(self, path: Path, threads: int) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        self._session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        (given, *others) = self._session.get_inputs()
        size = given.shape[2:]
        if others or given.shape[1] != 3 or len(size) != 2 or not all(isinstance(side, int) for side in size):
            raise Misfit(f"{path.name} is another network: it is shown {given.shape}")
        self.name = path.name
        self._input = given.name
        self.size: tuple[int, int] = size[1], size[0]
        """Width and height."""

    def __call__(self, picture: NDArray[Any]) -> Sequence[Numbers]:
        planes = np.ascontiguousarray(picture.transpose(2, 0, 1)[None], np.float32)
        found: Sequence[Numbers] = self._session.run(None, {self._input: planes})
        return found


# --- people


def letterboxed(picture: Pixels, size: tuple[int, int]) -> tuple[Pixels, float]:
    """The picture in the upper left of one of that size, and by what it was scaled."""
    height, width = picture.shape[:2]
    scale = min(size[0] / width, size[1] / height)
    within = max(1, int(width * scale)), max(1, int(height * scale))
    whole = np.full((size[1], size[0], 3), PADDING, np.uint8)
    whole[: within[1], : within[0]] = cv2.resize(picture, within, interpolation=cv2.INTER_LINEAR)
    return whole, scale


def boxes(found: Numbers, size: tuple[int, int]) -> Numbers:
    """(n, 4), left, top, right, bottom of people, the surest first, out of (cells, 5 + classes)."""
    cells = _cells(size)
    if found.shape[0] != len(cells) or found.shape[1] < 6:
        raise Misfit(f"the network of people gives {found.shape} where {len(cells)} cells should be")
    corners, step = cells[:, :2], cells[:, 2:]
    middle, half = (found[:, :2] + corners) * step, np.exp(found[:, 2:4]) * step / 2
    people = found[:, 4] * found[:, 5]
    is_one = (found[:, 5:].argmax(axis=1) == 0) & (people > SURE)
    places = np.concatenate([middle - half, middle + half], axis=1)[is_one]
    return places[_distinct(places, people[is_one])]


def _cells(size: tuple[int, int]) -> Numbers:
    """(cells, 3): place in its grid, and the cell's size."""
    grids = []
    for stride in STRIDES:
        down, across = np.mgrid[: size[1] // stride, : size[0] // stride]
        grids.append(np.stack([across, down, np.full_like(across, stride)], axis=-1).reshape(-1, 3))
    return np.concatenate(grids).astype(np.float32)


def _distinct(places: Numbers, scores: Numbers) -> list[int]:
    """Which boxes stay when of two that show the same the surer is kept."""
    order = list(np.argsort(-scores, kind="stable"))
    areas = np.prod(places[:, 2:] - places[:, :2], axis=1)
    kept: list[int] = []
    while order:
        first, *others = order
        kept.append(int(first))
        inner = np.minimum(places[first, 2:], places[others, 2:]) - np.maximum(places[first, :2], places[others, :2])
        shared = np.prod(np.clip(inner, 0, None), axis=1)
        order = [
            n for n, part in zip(others, shared, strict=True) if part <= OVERLAP * (areas[first] + areas[n] - part)
        ]
    return kept


# --- points


def cut_out(picture: Pixels, box: Numbers, size: tuple[int, int]) -> tuple[Numbers, Numbers, float]:
    """What the second network is shown of a person, where its corner lies, and how many pixels one of its own is."""
    middle, extent = (box[:2] + box[2:]) / 2, (box[2:] - box[:2]) * ROOM
    step = float(max(extent[0] / size[0], extent[1] / size[1]))
    corner = middle - np.float32(size) * step / 2
    way = np.float32([[1 / step, 0, -corner[0] / step], [0, 1 / step, -corner[1] / step]])
    return cv2.warpAffine(picture, way, size, flags=cv2.INTER_LINEAR).astype(np.float32), corner, step


def peaks(across: Numbers, down: Numbers) -> tuple[Numbers, Numbers]:
    """(133, 2) in pixels of what it was shown, and how sure it is of each. Profiles have two steps a pixel."""
    if across.shape[0] != POINTS or down.shape[0] != POINTS:
        raise Misfit(f"the network of points gives {across.shape[0]} of them, not {POINTS}")
    places = np.stack([across.argmax(axis=1), down.argmax(axis=1)], axis=1).astype(np.float32) / 2
    return places, np.minimum(across.max(axis=1), down.max(axis=1))


def person(places: Numbers, scores: Numbers, width: int, height: int) -> Person:
    """Out of pixels of the picture."""
    known = [
        Point(float(x) / width, float(y) / height) if score > SEEN else None
        for (x, y), score in zip(places, scores, strict=True)
    ]
    left, right = (known[n] for n in SHOULDERS)
    neck = Point((left.x + right.x) / 2, (left.y + right.y) / 2) if left and right else None
    body: Points = tuple(neck if n < 0 else known[n] for n in OPENPOSE)
    assert len(body) == BODY
    face = (*known[FACE], *(known[n] for n in EYES))
    return Person(body, *(_part(known[hand]) for hand in (LEFT_HAND, RIGHT_HAND)), _part(face))


def _part(points: Sequence[Point | None]) -> Points:
    return tuple(points) if any(points) else ()
