"""Reads a picture by pixels: is there a black outline around a coloured thing? (The style of tests/data/outlines.)"""

import cv2
import numpy as np

from tools.starter import detect, world

INK = 110
"""No channel of ink is above it; of every colour of the world but black, one is."""
LINE = 5
"""Pixels from the edge of a thing, outline included, within which its outline lies."""
AROUND = 0.6
"""Share of the edge that has ink beside it, where there is an outline."""
COLOURED = 0.5
"""Share of what lies within the outline that is not ink: a black thing has less."""
BEYOND = range(7, 11)
"""Pixels from the edge at which the ground begins for certain; if a quarter of that is ink, no outline can be seen."""


def is_outlined(picture: np.ndarray) -> bool:
    """Of an RGB picture, (H, W, 3) uint8, of the starter model's size: its largest thing has ink all around it."""
    thing = detect.largest(picture)
    if thing is None:
        return False
    ink = _ink(picture)
    beyond = _grown(thing, BEYOND.stop) & ~_grown(thing, BEYOND.start)
    if ink[_within(thing)].mean() > 1 - COLOURED or ink[beyond].mean() > 0.25:
        return False
    edge = cv2.findContours(thing.astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)[0]
    longest = max(edge, key=len)[:, 0]
    near = _grown(ink, LINE - 1)
    return bool(near[longest[:, 1], longest[:, 0]].mean() >= AROUND)


def colour_within(picture: np.ndarray) -> str:
    """The colour that most of the largest thing has, its outline left out; empty if there is nothing."""
    thing = detect.largest(picture)
    if thing is None:
        return ""
    pixels = picture[_within(thing) & (picture.max(axis=2) >= INK)].astype(np.float32)
    palette = np.array(list(world.COLOURS.values()), np.float32)
    nearest = np.linalg.norm(pixels[:, None] - palette, axis=2).argmin(1)
    return list(world.COLOURS)[int(np.bincount(nearest, minlength=len(palette)).argmax())]


def _ink(picture: np.ndarray) -> np.ndarray:
    """Dark lines of three pixels at least: where red meets green, thinner ones come by themselves."""
    dark = (picture.max(axis=2) < INK).astype(np.uint8)
    return np.asarray(cv2.morphologyEx(dark, cv2.MORPH_OPEN, np.ones((3, 3), np.uint8)), bool)


def _grown(mask: np.ndarray, by: int) -> np.ndarray:
    return np.asarray(cv2.dilate(mask.astype(np.uint8), np.ones((2 * by + 1, 2 * by + 1), np.uint8)), bool)


def _within(thing: np.ndarray) -> np.ndarray:
    """The thing, filled, without a rim as wide as an outline; all of it if nothing would be left."""
    solid = thing.astype(np.uint8)
    edges, _ = cv2.findContours(solid, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    filled = np.asarray(cv2.drawContours(np.zeros_like(solid), edges, -1, 1, -1))
    inner = np.asarray(cv2.erode(filled, cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * LINE + 1,) * 2)), bool)
    return inner if inner.any() else np.asarray(filled, bool)
