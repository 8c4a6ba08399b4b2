"""A style that the starter model does not have, for its LoRA: bold black outlines around coloured objects.

`python -m tools.starter.style FOLDER` writes a set of captioned pictures; the captions say nothing of the style, so a
LoRA that learns it changes how things are drawn and not what is drawn.
"""

from __future__ import annotations

import random
import sys
from pathlib import Path

import cv2
import numpy as np

from . import world

PICTURES = 32
INK = (14, 14, 16)
LINE = 4.0
"""Width of the outline in pixels; it lies outside the object."""
_FINE = 4
DARK = ("black", "night")
"""Objects and grounds on which an outline cannot be seen."""


def drawing(scene: world.Scene) -> np.ndarray:
    """The scene in this style, (H, W, 3) RGB: ground and colours as ever, and a black outline around each object."""
    side = world.SIZE * _FINE
    canvas = cv2.resize(_alone(scene), (side, side), interpolation=cv2.INTER_NEAREST)
    for item in scene.items:
        drawn = world.render(world.Scene(scene.background, (item,), scene.relation, scene.shade, scene.horizon))
        inside = cv2.resize((drawn.labels > 0).astype(np.float32), (side, side), interpolation=cv2.INTER_CUBIC)
        solid = (cv2.GaussianBlur(inside, (0, 0), _FINE * 0.8) > 0.5).astype(np.uint8)
        edges, _ = cv2.findContours(solid, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
        cv2.drawContours(canvas, edges, -1, INK, round(2 * LINE * _FINE), cv2.LINE_AA)
        coloured = cv2.resize(drawn.picture, (side, side), interpolation=cv2.INTER_LINEAR)
        canvas = np.where(solid[..., None] > 0, coloured, canvas)
    return cv2.resize(canvas, (world.SIZE, world.SIZE), interpolation=cv2.INTER_AREA)


def _alone(scene: world.Scene) -> np.ndarray:
    """Its ground, with nothing on it."""
    return world.render(world.Scene(scene.background, (), shade=scene.shade, horizon=scene.horizon)).picture


def scenes(count: int = PICTURES) -> list[world.Scene]:
    """One large object on a plain ground each: every shape, light colour and light ground about equally often.

    No combination that the base model's scores are measured on is among them.
    """
    rng = random.Random("style")
    grounds = [name for name in world.COLOURS if name not in DARK]
    found: list[world.Scene] = []
    while len(found) < count:
        shape, ground = world.SHAPES[len(found) % len(world.SHAPES)], grounds[(len(found) * 5 // 4) % len(grounds)]
        colour = rng.choice([name for name in grounds if name != ground])
        if not world.held_out(shape, colour, ground):
            pose = rng.choice(world.POSES) if shape == "person" else "standing"
            found.append(world.jittered(world.Scene(ground, (world.Item(shape, colour, pose=pose),)), rng))
    return found


def write(folder: Path, count: int = PICTURES) -> None:
    """PNG files with a caption of the same name beside each."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, scene in enumerate(scenes(count), 1):
        file = folder / f"{number:02}.png"
        cv2.imwrite(str(file), cv2.cvtColor(drawing(scene), cv2.COLOR_RGB2BGR), [cv2.IMWRITE_PNG_COMPRESSION, 9])
        file.with_suffix(".txt").write_text(world.plain_caption(scene) + "\n", "utf-8")


if __name__ == "__main__":
    write(Path(sys.argv[1]))
