"""Whether pictures follow their control maps: edges, joints, order of depth and ground line, read by pixels alone."""

from __future__ import annotations

import random
from dataclasses import dataclass
from functools import cache

import cv2
import numpy as np
import torch
from diffusers import ControlNetModel

from . import control, detect, evaluate, world

# what is tried, and the net that is tried by it
TRIED = {"canny": "canny", "depth": "depth", "openpose": "openpose", "free pose": "openpose"}
TOLERANCE = 2
RIGHT_JOINT = 0.1
RIGHT_LINE = 3
# mountains hide where sky and ground meet
LINED = ("day", "night", "sunset", "sea")
SOLID = (*world.OUTLINES, "circle", "person")


@dataclass(frozen=True)
class Trial:
    """A prompt that says less than the map, the scene that the map is of, its drawing and the map (H, W, 3)."""

    prompt: str
    scene: world.Scene
    drawing: world.Drawing
    map: np.ndarray


def trials(kind: str, count: int) -> list[Trial]:
    """Scenes with combinations never trained on, arranged freely.

    canny: plain grounds, so that the prompt names nothing but colours. openpose: one person in a pose of the world's,
    so that a template can find the joints; free pose: in any other. depth: two objects on a horizon, two in five of
    them one before the other; its prompts name the objects, so that they have colours of their own to be known by.
    """
    rng = random.Random(f"control/{kind}")
    out: list[Trial] = []
    while len(out) < count:
        scene = world.free_scene(rng)
        if _fits(kind, scene) and world.is_held_out(scene):
            drawing = world.render(scene)
            prompt = world.plain_caption(scene) if kind == "depth" else world.colour_caption(scene)
            out.append(Trial(prompt, scene, drawing, control.map_of(TRIED[kind], drawing)))
    return out


def _fits(kind: str, scene: world.Scene) -> bool:
    visible = all(evaluate.visible(item.colour, scene.background) for item in scene.items)
    if kind == "depth":
        return visible and scene.background in LINED and len(scene.items) == 2 and _are(scene, SOLID)
    if TRIED[kind] == "openpose":
        person = len(scene.items) == 1 and _are(scene, ("person",))
        freely = person and bool(scene.items[0].limbs) == (kind == "free pose")
        return visible and scene.background in world.COLOURS and freely
    return visible and scene.background in world.COLOURS


def _are(scene: world.Scene, shapes: tuple[str, ...]) -> bool:
    return all(item.shape in shapes for item in scene.items)


# --- canny ----------------------------------------------------------------------------------------------------------


def edge_recall(picture: np.ndarray, edges: np.ndarray) -> float:
    """The share of the map's edge pixels that have an edge of the picture within `TOLERANCE` pixels."""
    side = 2 * TOLERANCE + 1
    found = cv2.dilate(cv2.Canny(picture, 60, 140), np.ones((side, side), np.uint8)) > 0
    wanted = edges[..., 0] > 0
    return float(found[wanted].mean())


# --- openpose -------------------------------------------------------------------------------------------------------


@cache
def _figures() -> list[tuple[np.ndarray, np.ndarray]]:
    """Mask and joints of a person in each of the world's poses."""
    label = world.SHAPES.index("person") + 1
    drawings = [world.render(world.Scene("white", (world.Item("person", "red", pose=pose),))) for pose in world.POSES]
    return [((drawing.labels == label).astype(np.float32), drawing.keypoints[0]) for drawing in drawings]


def joints(picture: np.ndarray) -> np.ndarray | None:
    """The joints (18, 2) of the world's figure that covers the largest object best; None without any object."""
    mask = detect.largest(picture)
    if mask is None:
        return None
    best, found = -1.0, None
    x, y, width, height = cv2.boundingRect(mask.astype(np.uint8))
    for figure, points in _figures():
        left, top, wide, high = cv2.boundingRect((figure > 0.5).astype(np.uint8))
        for scale in {
            round(base * factor, 3) for base in (height / high, width / wide) for factor in (0.95, 1.0, 1.05)
        }:
            shift = np.array([x + width / 2, y + height / 2]) - scale * np.array([left + wide / 2, top + high / 2])
            for dx in (-2, 0, 2):
                for dy in (-2, 0, 2):
                    move = shift + (dx, dy)
                    matrix = np.array([[scale, 0, move[0]], [0, scale, move[1]]])
                    fit = detect.overlap(cv2.warpAffine(figure, matrix, mask.shape[::-1]) > 0.5, mask)
                    if fit > best:
                        best, found = fit, points * scale + move
    return found


def joint_errors(picture: np.ndarray, drawing: world.Drawing) -> np.ndarray:
    """Distance of each joint from the skeleton's (18), in figure heights; 1 for every joint if nothing is found."""
    found = joints(picture)
    if found is None:
        return np.ones(len(world.KEYPOINTS))
    _, _, _, height = cv2.boundingRect((drawing.labels > 0).astype(np.uint8))
    return np.minimum(np.linalg.norm(found - drawing.keypoints[0], axis=1) / height, 1.0)


def figure_overlap(picture: np.ndarray, drawing: world.Drawing) -> float:
    """Intersection over union of the largest object with the drawn figure."""
    mask = detect.largest(picture)
    return 0.0 if mask is None else detect.overlap(mask, drawing.labels > 0)


# --- depth ----------------------------------------------------------------------------------------------------------


def order_is_right(picture: np.ndarray, trial: Trial) -> bool:
    """Whether near and far object have a colour of their own each in 75 % of the pixels where the map shows them."""
    palette = np.array(list(world.COLOURS.values()), np.float32)
    nearest = np.linalg.norm(picture[..., None, :].astype(np.float32) - palette, axis=3).argmin(2)
    colours = []
    for region in _regions(trial.drawing):
        counts = np.bincount(nearest[region], minlength=len(palette))
        if counts.max() < 0.75 * counts.sum():
            return False
        colours.append(int(counts.argmax()))
    return colours[0] != colours[1]


def _regions(drawing: world.Drawing) -> list[np.ndarray]:
    """The visible pixels of the near and of the far object, without their borders."""
    on_object = drawing.labels > 0
    near = on_object & (drawing.depth > 195)
    return [cv2.erode(mask.astype(np.uint8), np.ones((3, 3))) > 0 for mask in (near, on_object & ~near)]


def ground_line(picture: np.ndarray, free: np.ndarray) -> int:
    """The row where the picture changes most from above to below, over the pixels that are `free` of objects."""
    lines = zip(picture, free, strict=True)
    rows = np.stack([np.median(line[seen if seen.any() else ~seen], axis=0) for line, seen in lines])
    change = np.linalg.norm(rows[3:].astype(np.float32) - rows[:-3], axis=1)
    return int(change.argmax()) + 2


def line_of(scene: world.Scene) -> float:
    """The row of the scene's horizon."""
    return world.HORIZON[scene.background] * world.SIZE + scene.horizon


# --- all ------------------------------------------------------------------------------------------------------------


def scores(kind: str, pictures: np.ndarray, given: list[Trial]) -> dict[str, float]:
    """How well pictures follow the maps of their trials."""
    pairs = list(zip(pictures, given, strict=True))
    if kind == "canny":
        return {"edge recall": float(np.mean([edge_recall(picture, trial.map) for picture, trial in pairs]))}
    if kind == "free pose":
        return {"figure overlap": float(np.mean([figure_overlap(picture, trial.drawing) for picture, trial in pairs]))}
    if kind == "openpose":
        errors = np.stack([joint_errors(picture, trial.drawing) for picture, trial in pairs])
        return {"joint error": float(errors.mean()), "joints right": float((errors < RIGHT_JOINT).mean())}
    gaps = [
        abs(ground_line(picture, trial.drawing.labels == 0) - line_of(trial.scene)) / world.SIZE
        for picture, trial in pairs
    ]
    return {
        "order right": float(np.mean([order_is_right(picture, trial) for picture, trial in pairs])),
        "line error": float(np.mean(gaps)),
        "line right": float(np.mean([gap <= RIGHT_LINE / world.SIZE for gap in gaps])),
    }


@dataclass(frozen=True)
class Result:
    """Scores by condition (`drawn`: the true drawings, `with`, `without`), and the pictures behind them."""

    kind: str
    trials: list[Trial]
    pictures: dict[str, np.ndarray]
    scores: dict[str, dict[str, float]]

    @property
    def summary(self) -> str:
        return "; ".join(
            f"{condition}: " + ", ".join(f"{name} {value:.3f}" for name, value in values.items())
            for condition, values in self.scores.items()
        )

    def rows(self, count: int) -> np.ndarray:
        """Maps, pictures with and pictures without the map of the first trials, (3 * count, H, W, 3)."""
        shown = [np.stack([trial.map for trial in self.trials[:count]])]
        return np.concatenate([*shown, self.pictures["with"][:count], self.pictures["without"][:count]])


def measured(kind: str, parts: evaluate.Components, net: ControlNetModel, count: int) -> Result:
    """`count` trials, seeds 0.. of the noise, with and without the ControlNet."""
    given = trials(kind, count)
    prompts = [trial.prompt for trial in given]
    condition = control.as_condition(torch.from_numpy(np.stack([trial.map for trial in given])).permute(0, 3, 1, 2))
    pictures = {
        "drawn": np.stack([trial.drawing.picture for trial in given]),
        "with": evaluate.sample(parts, prompts, net=net, condition=condition),
        "without": evaluate.sample(parts, prompts),
    }
    return Result(kind, given, pictures, {name: scores(kind, shown, given) for name, shown in pictures.items()})
