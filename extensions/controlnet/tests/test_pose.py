"""People as OpenPose writes them: read strictly, written as they were, drawn in its colours."""

import json
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from extensions.controlnet import pose
from extensions.controlnet.pose import BODY, COLOURS, HAND, LIMBS, Person, Point, Pose, draw, people, written

OPENPOSE = (
    *((255, 0, 0), (255, 85, 0), (255, 170, 0), (255, 255, 0), (170, 255, 0), (85, 255, 0), (0, 255, 0), (0, 255, 85)),
    *((0, 255, 170), (0, 255, 255), (0, 170, 255), (0, 85, 255), (0, 0, 255), (85, 0, 255), (170, 0, 255)),
    *((255, 0, 255), (255, 0, 170), (255, 0, 85)),
)


def spread(count: int = BODY) -> list[float]:
    """Points apart from one another, (x, y, confidence) each, on a canvas of 400 x 300."""
    return [n for i in range(count) for n in (30 + 60 * (i % 6), 30 + 50 * (i // 6), 1)]


def file(**changes: Any) -> str:
    person = {"pose_keypoints_2d": spread()} | changes.pop("person", {})
    return json.dumps({"people": [person], "canvas_width": 400, "canvas_height": 300} | changes)


def test_the_colours_are_openposes() -> None:
    assert COLOURS == OPENPOSE
    assert len(LIMBS) == 17


def test_joints_and_limbs_are_drawn_where_they_are() -> None:
    picture = np.asarray(draw(people(file())))
    assert picture.shape == (300, 400, 3)
    for joint, colour in enumerate(COLOURS):
        x, y = 30 + 60 * (joint % 6), 30 + 50 * (joint // 6)
        assert tuple(picture[y, x].tolist()) == colour
        assert tuple(picture[y, x - 4].tolist()) == colour  # a disc of 4 pixels


def test_a_limb_needs_both_joints() -> None:
    two = [0.0] * 3 * BODY
    two[3:6] = [100, 100, 1]
    alone = np.asarray(draw(people(file(person={"pose_keypoints_2d": two}))))
    assert (alone.any(axis=2).sum()) == pytest.approx(math.pi * 4**2, rel=0.1)
    two[6:9] = [200, 100, 0.3]
    both = np.asarray(draw(people(file(person={"pose_keypoints_2d": two}))))
    assert both[100, 150].tolist() == [int(c * 0.6) for c in COLOURS[0]]  # neck to right shoulder is the first limb
    assert both[97:104, 150].any(axis=1).all()
    assert not both[94, 150].any()


def test_another_size_moves_every_joint_with_it() -> None:
    twice = np.asarray(draw(people(file()), 800, 600))
    assert twice.shape == (600, 800, 3)
    assert tuple(twice[60, 60].tolist()) == COLOURS[0]


def test_hands_and_faces_are_kept_and_drawn() -> None:
    hand, face = spread(HAND), spread(70)
    text = file(person={"hand_left_keypoints_2d": hand, "hand_right_keypoints_2d": None, "face_keypoints_2d": face})
    (person,) = people(text).people
    assert (len(person.left_hand), len(person.right_hand), len(person.face)) == (21, 0, 70)
    only = Pose((Person(face=person.face),), 400, 300)
    assert np.asarray(draw(only)).max(axis=(0, 1)).tolist() == [255, 255, 255]
    only = Pose((Person(left_hand=person.left_hand),), 400, 300)
    assert np.asarray(draw(only))[30, 30].tolist() == [0, 0, 255]
    assert people(written(people(text))) == people(text)


def test_parts_of_the_canvas_are_taken_as_such() -> None:
    """Some editors write them; one coordinate of one person tells that they are pixels."""
    in_parts = [part for n in range(BODY) for part in (n / 20, 0.75, 0.9)]
    hand = [0.5] * 3 * HAND
    (person,) = people(file(person={"pose_keypoints_2d": in_parts, "hand_left_keypoints_2d": hand})).people
    assert person.body[10] == Point(0.5, 0.75)
    assert person.left_hand[0] == Point(0.5, 0.5)
    pixels = [{"pose_keypoints_2d": in_parts}, {"pose_keypoints_2d": spread()}]
    assert people(file(people=pixels)).people[0].body[10] == Point(0.5 / 400, 0.75 / 300)


def test_what_other_programs_write_beside_it_is_passed_over() -> None:
    text = file(version=1.3, person={"person_id": [-1], "pose_keypoints_3d": [], "hand_left_keypoints_2d": []})
    assert len(people(text).people) == 1
    nobody = people(file(people=[]))
    assert not np.asarray(draw(nobody)).any()
    assert people(file(person={"pose_keypoints_2d": []})).people == (Person(),)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "is not JSON"),
        ("[]", "it: Input should be an object"),
        ("{}", "people: Field required"),
        (file(people={}), "people: Input should be a valid array"),
        (file(canvas_width=0), "canvas_width: Input should be greater than or equal to 1"),
        (file(canvas_width=99999), "canvas_width: Input should be less than or equal to 8192"),
        (file(canvas_width="400"), "canvas_width: Input should be a valid integer"),
        (file(people=[{}]), r"people\.0\.pose_keypoints_2d: Field required"),
        (file(people=[{"pose_keypoints_2d": []}] * 33), "people: List should have at most 32 items"),
        (file(person={"pose_keypoints_2d": [1.0] * 53}), r"people\.0\.pose_keypoints_2d has 53 numbers, not 54"),
        (file(person={"pose_keypoints_2d": [1.0] * 75}), "at most 54 items"),
        (file(person={"pose_keypoints_2d": ["1"] * 54}), "valid number"),
        (file(person={"pose_keypoints_2d": [math.nan] * 54}), "finite number|not JSON"),
        (file(person={"pose_keypoints_2d": [1e300] * 54}), "far outside the canvas of 400 x 300"),
        (file(person={"pose_keypoints_2d": [-1e7] * 53 + [1]}), "far outside the canvas"),
        (file(person={"hand_left_keypoints_2d": [1.0] * 60}), "has 60 numbers, not 63"),
        (file(person={"face_keypoints_2d": [1.0] * 3}), "has 3 numbers, not 210 or 204"),
        (" " * 200_001, "at most 200000 characters"),
        ("[" * 100_000, "is not JSON"),
    ],
)
def test_what_is_no_pose_is_refused_in_one_sentence(text: str, said: str) -> None:
    with pytest.raises(ValueError, match=said) as refused:
        people(text)
    assert "\n" not in str(refused.value)


coordinate = st.floats(-pose.FARTHEST, pose.FARTHEST, allow_nan=False)
points = st.tuples(*[st.none() | st.builds(Point, coordinate, coordinate)] * BODY)
poses = st.builds(
    Pose, st.lists(st.builds(Person, points), max_size=3).map(tuple), st.integers(1, 600), st.integers(1, 600)
)


@settings(max_examples=60, deadline=None)
@given(poses)
def test_whatever_is_read_can_be_drawn_and_written(given_pose: Pose) -> None:
    picture = draw(given_pose)
    assert picture.size == (given_pose.width, given_pose.height)
    again = people(written(given_pose).replace("8.01", "8.0"))
    reach = [(abs(p.x), abs(p.y)) for person in given_pose.people for p in person.body if p]
    if not any(x * given_pose.width > 1 or y * given_pose.height > 1 for x, y in reach):
        return  # within its first pixel: these would be parts of the canvas
    for one, other in zip(given_pose.people, again.people, strict=True):
        for a, b in zip(one.body, other.body, strict=True):
            assert (a is None) == (b is None)
            if a and b:
                assert (b.x, b.y) == pytest.approx((a.x, a.y), abs=0.01)


@settings(max_examples=100, deadline=None)
@given(st.text() | st.binary().map(lambda data: data.decode("latin-1")))
def test_no_text_does_more_than_be_refused(text: str) -> None:
    try:
        found = people(text)
    except ValueError:
        return
    assert isinstance(draw(found), Image.Image)
