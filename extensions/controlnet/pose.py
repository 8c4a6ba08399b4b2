"""People as OpenPose writes them (JSON, COCO-18), and the picture of them that control models know.

A file is {"people": [{"pose_keypoints_2d": [x, y, confidence, ...18 times]}], "canvas_width": w, "canvas_height": h}.
A person may have `hand_left_keypoints_2d`, `hand_right_keypoints_2d` (21 points each) and `face_keypoints_2d` (70, or
68). Coordinates are pixels of the canvas, or parts of it if all are; a point with confidence 0 is not there.
"""

from __future__ import annotations

import colorsys
import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

from PIL import Image
from pydantic import BaseModel, ConfigDict, Field, ValidationError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Canvas = NDArray[np.uint8]

MOST_PEOPLE = 32
MOST_BYTES = 200_000
"""Of a file."""
LARGEST = 8192
"""Pixels of a canvas's side."""
FARTHEST = 8
"""Widths or heights of the canvas that a point may lie away from its corner."""
BODY, HAND, FACE = 18, 21, 70
"""How many points each has; a face may come without its two pupils."""
STICK = 4
"""Pixels: half the breadth of a limb and the radius of a joint, whatever the picture's size."""

LIMBS = (
    (1, 2),
    (1, 5),
    (2, 3),
    (3, 4),
    (5, 6),
    (6, 7),
    (1, 8),
    (8, 9),
    (9, 10),
    (1, 11),
    (11, 12),
    (12, 13),
    (1, 0),
    (0, 14),
    (14, 16),
    (0, 15),
    (15, 17),
)
"""Pairs of joints, which are: nose, neck, right arm, left arm, right leg, left leg, right and left eye, ear."""
_PARTS = ("l", "r", "f")
FINGERS = tuple((0 if n % 4 == 1 else n - 1, n) for n in range(1, HAND))


def _colour(hue: float) -> tuple[int, int, int]:
    red, green, blue = colorsys.hsv_to_rgb(hue, 1, 1)
    return round(red * 255), round(green * 255), round(blue * 255)


COLOURS = tuple(_colour(n / BODY) for n in range(BODY))
"""Of the joints; limb n has the colour of joint n, darker."""
_SHADE = 0.6
_FINGERTIP, _FACE_POINT = (0, 0, 255), (255, 255, 255)


class Point(NamedTuple):
    """In parts of the canvas's width and height; may lie outside of 0..1."""

    x: float
    y: float


Points = tuple[Point | None, ...]


@dataclass(frozen=True)
class Person:
    body: Points = (None,) * BODY
    left_hand: Points = ()
    right_hand: Points = ()
    face: Points = ()


@dataclass(frozen=True)
class Pose:
    people: tuple[Person, ...]
    width: int
    """Of the canvas, in pixels."""
    height: int


# reading and writing


_Number = Annotated[float, Field(allow_inf_nan=False)]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="ignore", strict=True)


class _Person(_Strict):
    pose_keypoints_2d: Annotated[list[_Number], Field(max_length=3 * BODY)]
    hand_left_keypoints_2d: Annotated[list[_Number], Field(max_length=3 * HAND)] | None = None
    hand_right_keypoints_2d: Annotated[list[_Number], Field(max_length=3 * HAND)] | None = None
    face_keypoints_2d: Annotated[list[_Number], Field(max_length=3 * FACE)] | None = None


class _File(_Strict):
    people: Annotated[list[_Person], Field(max_length=MOST_PEOPLE)]
    canvas_width: int = Field(ge=1, le=LARGEST)
    canvas_height: int = Field(ge=1, le=LARGEST)


def people(text: str) -> Pose:
    """What a file holds. Raises ValueError with a sentence."""
    if len(text) > MOST_BYTES:
        raise ValueError(f"a pose has at most {MOST_BYTES} characters; this one has {len(text)}")
    try:
        file = _File.model_validate_json(text)
    except ValidationError as error:
        found = error.errors()[0]
        place = ".".join(map(str, found["loc"]))
        said = "is not JSON" if found["type"] == "json_invalid" else f"{place or 'it'}: {found['msg']}"
        raise ValueError(f"that is not a pose as OpenPose writes it: {said}") from None
    size = file.canvas_width, file.canvas_height
    in_parts = all(map(_is_in_parts, file.people))
    return Pose(tuple(_person(person, n, size, in_parts) for n, person in enumerate(file.people)), *size)


def _is_in_parts(given: _Person) -> bool:
    """Whether coordinates are parts of the canvas: no figure has all of its points in its first pixel."""
    lists = (getattr(given, name) or () for name in _Person.model_fields)
    return all(abs(number) <= 1 for numbers in lists for n, number in enumerate(numbers) if n % 3 < 2)


def _person(given: _Person, number: int, size: tuple[int, int], in_parts: bool) -> Person:
    across, down = (1, 1) if in_parts else size

    def points(name: str, counts: Sequence[int]) -> Points:
        numbers: list[float] = getattr(given, name) or []
        if len(numbers) not in {3 * count for count in counts}:
            wanted = " or ".join(str(3 * count) for count in counts if count)
            raise ValueError(
                f"that is not a pose as OpenPose writes it: people.{number}.{name} has {len(numbers)} numbers, "
                f"not {wanted}"
            )
        found = tuple(
            Point(x / across, y / down) if confidence > 0 else None
            for x, y, confidence in zip(numbers[::3], numbers[1::3], numbers[2::3], strict=True)
        )
        if any(max(abs(point.x), abs(point.y)) > FARTHEST for point in found if point):
            raise ValueError(f"people.{number}.{name} has a point far outside the canvas of {size[0]} x {size[1]}")
        return found

    hands = points("hand_left_keypoints_2d", (0, HAND)), points("hand_right_keypoints_2d", (0, HAND))
    body = points("pose_keypoints_2d", (0, BODY)) or Person().body
    return Person(body, *hands, points("face_keypoints_2d", (0, FACE, FACE - 2)))


def written(pose: Pose) -> str:
    """The file; `people` reads it."""
    size = pose.width, pose.height
    return json.dumps(
        {
            "people": [
                {
                    "pose_keypoints_2d": _numbers(person.body, size),
                    "hand_left_keypoints_2d": _numbers(person.left_hand, size),
                    "hand_right_keypoints_2d": _numbers(person.right_hand, size),
                    "face_keypoints_2d": _numbers(person.face, size),
                }
                for person in pose.people
            ],
            "canvas_width": pose.width,
            "canvas_height": pose.height,
        }
    )


def brief(pose: Pose) -> str:
    """The same in a tenth of the letters, for a picture's text: `64x96 / 32~10.5 - ... l 3~4`, a person behind each /.

    Body, left hand (l), right hand (r) and face (f) as far as they are there; `-` is a point that is not.
    """
    size = pose.width, pose.height
    words = [f"{pose.width}x{pose.height}"]
    for person in pose.people:
        words += ["/", *_spelled(person.body, size)]
        for letter, points in zip(_PARTS, (person.left_hand, person.right_hand, person.face), strict=True):
            words += [letter, *_spelled(points, size)] if points else []
    return " ".join(words)


def from_brief(text: str) -> Pose:
    """What `brief` has written. Raises ValueError."""
    canvas, *persons = text.split("/")
    width, height = map(int, canvas.split("x"))
    people = []
    for words in persons:
        parts: dict[str, list[Point | None]] = {"": []}
        for word in words.split():
            if word in _PARTS:
                parts[word] = []
            else:
                x, dash, y = word.partition("~")
                parts[[*parts][-1]].append(Point(float(x) / width, float(y) / height) if dash else None)
        people.append(Person(tuple(parts.pop("")), *(tuple(parts.get(letter, ())) for letter in _PARTS)))
    return Pose(tuple(people), width, height)


def _spelled(points: Points, size: tuple[int, int]) -> list[str]:
    numbers = _numbers(points, size)
    pairs = zip(numbers[::3], numbers[1::3], numbers[2::3], strict=True)
    return ["~".join(str(n).removesuffix(".0") for n in (x, y)) if there else "-" for x, y, there in pairs]


def _numbers(points: Points, size: tuple[int, int]) -> list[float]:
    found: list[float] = []
    for point in points:
        found += [round(point.x * size[0], 2), round(point.y * size[1], 2), 1] if point else [0, 0, 0]
    return found


# drawing


def draw(pose: Pose, width: int = 0, height: int = 0, stick: float = STICK) -> Image.Image:
    """RGB on black, as large as the canvas unless a size is given: limbs as ellipses, joints as discs over them."""
    import numpy as np  # not at the top: the declaration checks poses, and need not wait for OpenCV

    canvas = np.zeros((height or pose.height, width or pose.width, 3), np.uint8)
    for person in pose.people:
        _draw_body(canvas, person.body, stick)
        for hand in (person.left_hand, person.right_hand):
            _draw_hand(canvas, hand)
        _discs(canvas, ((point, _FACE_POINT) for point in person.face), 3)
    return Image.fromarray(canvas)


def _draw_body(canvas: Canvas, points: Points, stick: float) -> None:
    import cv2

    for (start, end), colour in zip(LIMBS, COLOURS, strict=False):
        a, b = points[start], points[end]
        if a is None or b is None:
            continue
        (ax, ay), (bx, by) = _pixel(canvas, a), _pixel(canvas, b)
        middle, length = (int((ax + bx) / 2), int((ay + by) / 2)), math.hypot(ax - bx, ay - by)
        angle = math.degrees(math.atan2(ay - by, ax - bx))
        outline = cv2.ellipse2Poly(middle, (int(length / 2), max(1, round(stick))), int(angle), 0, 360, 1)
        cv2.fillConvexPoly(canvas, outline, [int(c * _SHADE) for c in colour])
    _discs(canvas, zip(points, COLOURS, strict=True), max(1, round(stick)))


def _draw_hand(canvas: Canvas, points: Points) -> None:
    import cv2

    if not points:
        return
    for n, (start, end) in enumerate(FINGERS):
        a, b = points[start], points[end]
        if a and b:
            cv2.line(canvas, _whole(canvas, a), _whole(canvas, b), _colour(n / len(FINGERS)), thickness=2)
    _discs(canvas, ((point, _FINGERTIP) for point in points), STICK)


def _discs(canvas: Canvas, points: Iterable[tuple[Point | None, Any]], radius: int) -> None:
    import cv2

    for point, colour in points:
        if point:
            cv2.circle(canvas, _whole(canvas, point), radius, colour, thickness=-1)


def _pixel(canvas: Canvas, point: Point) -> tuple[float, float]:
    return point.x * canvas.shape[1], point.y * canvas.shape[0]


def _whole(canvas: Canvas, point: Point) -> tuple[int, int]:
    x, y = _pixel(canvas, point)
    return int(x), int(y)
