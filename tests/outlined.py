"""Reads a picture by pixels: is a near-white shape inside a black outline? (The style of tests/data/outlines.)"""

import cv2
import numpy as np

LIGHT, DARK = 205, 110
"""Each channel of paper is above the one, of ink below the other."""
LEAST = 150
"""Pixels that a shape has."""
NEEDED = 0.4
"""How much more of the ring around it is dark than of the ground beyond."""


def is_outlined(picture: np.ndarray) -> bool:
    """Of an RGB picture, (H, W, 3) uint8, of the starter model's size."""
    paper = (picture.min(axis=2) > LIGHT).astype(np.uint8)
    ink = picture.max(axis=2) < DARK
    count, labels, stats, _ = cv2.connectedComponentsWithStats(paper, connectivity=4)
    return any(
        _outline((labels == k).astype(np.uint8), ink) > NEEDED for k in range(1, count) if _inside(stats[k], ink)
    )


def _inside(box: np.ndarray, ink: np.ndarray) -> bool:
    """Whether it is large enough, and does not touch the edge of the picture, where the ground does."""
    x, y, width, height, area = (int(n) for n in box)
    return area >= LEAST and x > 0 and y > 0 and x + width < ink.shape[1] and y + height < ink.shape[0]


def _outline(shape: np.ndarray, ink: np.ndarray) -> float:
    closed = cv2.morphologyEx(shape, cv2.MORPH_CLOSE, np.ones((3, 3), np.uint8))

    def grown(by: int) -> np.ndarray:
        return np.asarray(cv2.dilate(closed, np.ones((2 * by + 1, 2 * by + 1), np.uint8)), bool)

    ring, beyond = grown(4) & ~grown(1), grown(12) & ~grown(8)
    return float(ink[ring].mean() - ink[beyond].mean()) if beyond.any() else 0.0
