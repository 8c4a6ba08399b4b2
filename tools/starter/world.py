"""The drawn world the starter model learns: scene -> picture, caption and every map that training or scoring needs.

A scene is a frozen value. Whatever a caption does not say has a default, so that a caption nearly determines its
picture: one large object in the centre, white paper, people stand, a pair is named from left to right. Only small
jitter in place, size, angle and shade is left to chance. This is what lets a tiny model learn shapes.
"""

from __future__ import annotations

import hashlib
import math
import random
from dataclasses import dataclass

import cv2
import numpy as np

SIZE = 128
SUPERSAMPLING = 4

SHAPES = ("circle", "square", "triangle", "star", "heart", "house", "tree", "person")
COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (220, 38, 38),
    "orange": (249, 136, 28),
    "yellow": (252, 220, 48),
    "green": (52, 160, 72),
    "cyan": (64, 212, 220),
    "blue": (40, 80, 212),
    "purple": (132, 56, 172),
    "pink": (250, 140, 190),
    "white": (246, 246, 244),
    "black": (22, 20, 22),
}
PLACES = ("day", "night", "sunset", "sea", "mountains")
BACKGROUNDS = tuple(COLOURS) + PLACES
SIZES = {"small": 0.14, "medium": 0.21, "large": 0.34}
POSITIONS = {
    "centre": (0.5, 0.5),
    "left": (0.26, 0.5),
    "right": (0.74, 0.5),
    "top": (0.5, 0.26),
    "bottom": (0.5, 0.74),
}
RELATIONS = {
    "left of": ("left", "right"),
    "right of": ("right", "left"),
    "above": ("top", "bottom"),
    "below": ("bottom", "top"),
}
POSES = ("standing", "waving", "cheering", "walking", "t-pose")
DEFAULT_COLOUR = {
    "circle": "red",
    "square": "blue",
    "triangle": "yellow",
    "star": "yellow",
    "heart": "red",
    "house": "red",
    "tree": "green",
    "person": "blue",
}

# where an object stands when nothing is said, by place: on the ground, not in the sky
LARGE_IN_PLACE = 0.54
# where the ground meets the sky, as a share of the height
HORIZON = {"day": 0.66, "night": 0.66, "sunset": 0.66, "sea": 0.60, "mountains": 0.68}
GROUND = {"day": 0.60, "night": 0.60, "sunset": 0.60, "sea": 0.58, "mountains": 0.60}

KEYPOINTS = (
    "nose",
    "neck",
    "r_shoulder",
    "r_elbow",
    "r_wrist",
    "l_shoulder",
    "l_elbow",
    "l_wrist",
    "r_hip",
    "r_knee",
    "r_ankle",
    "l_hip",
    "l_knee",
    "l_ankle",
    "r_eye",
    "l_eye",
    "r_ear",
    "l_ear",
)
# OpenPose COCO-18 limbs and colours, as controlnet_aux draws them
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
LIMB_COLOURS = (
    (255, 0, 0),
    (255, 85, 0),
    (255, 170, 0),
    (255, 255, 0),
    (170, 255, 0),
    (85, 255, 0),
    (0, 255, 0),
    (0, 255, 85),
    (0, 255, 170),
    (0, 255, 255),
    (0, 170, 255),
    (0, 85, 255),
    (0, 0, 255),
    (85, 0, 255),
    (170, 0, 255),
    (255, 0, 255),
    (255, 0, 170),
    (255, 0, 85),
)


@dataclass(frozen=True)
class Item:
    """One object; `size` and `position` are words, the floats are the jitter around what the words mean.

    `limbs`, if any, are elbows and wrists, knees and ankles, ordered as in `_ARMS` and `_LEGS`, instead of the pose's.
    `depth` is 0..255, 255 = near; the nearer object covers the farther one.
    """

    shape: str
    colour: str
    size: str = "large"
    position: str = "centre"
    pose: str = "standing"
    dx: float = 0.0
    dy: float = 0.0
    scale: float = 1.0
    angle: float = 0.0
    shade: tuple[int, int, int] = (0, 0, 0)
    limbs: tuple[tuple[float, float], ...] = ()
    depth: int = 235


@dataclass(frozen=True)
class Scene:
    """A background (colour word or place) and one or two objects; with two, `relation` says where the first is."""

    background: str
    items: tuple[Item, ...]
    relation: str = ""
    shade: tuple[int, int, int] = (0, 0, 0)
    horizon: float = 0.0


@dataclass(frozen=True)
class Drawing:
    """A rendered scene: `picture` (H, W, 3) RGB, `labels` (H, W) 0 = background and 1.. = SHAPES, `depth` (H, W),
    255 = near, `keypoints` one (18, 2) array of pixel coordinates per person."""

    picture: np.ndarray
    labels: np.ndarray
    depth: np.ndarray
    keypoints: tuple[np.ndarray, ...]


def held_out(shape: str, colour: str, background: str) -> bool:
    """Whether this combination is kept out of all training (one in eight, by md5)."""
    return hashlib.md5(f"{shape}/{colour}/{background}".encode()).digest()[0] % 8 == 0


def is_held_out(scene: Scene) -> bool:
    """Whether any object of the scene, on its background, is a held-out combination."""
    return any(held_out(item.shape, item.colour, scene.background) for item in scene.items)


# --- scenes ---------------------------------------------------------------------------------------------------------

# share of each kind of scene in a stage of the curriculum
STAGES: dict[str, dict[str, float]] = {
    "simple": {"plain": 1.0},
    "sizes": {"plain": 0.65, "placed": 0.35},
    "all": {"plain": 0.30, "placed": 0.25, "place": 0.20, "pair": 0.25},
    "control": {"free": 1.0},
}


def sample_scene(seed: int, stage: str = "all") -> Scene:
    """A random scene that is not held out, the same for the same seed and stage."""
    rng = random.Random(f"{stage}/{seed}")
    kinds = STAGES[stage]
    while True:
        kind = rng.choices(list(kinds), weights=list(kinds.values()))[0]
        scene = _draw_kind(rng, kind)
        if not is_held_out(scene):
            return scene


def _draw_kind(rng: random.Random, kind: str) -> Scene:
    if kind == "free":
        return free_scene(rng)
    background = (
        rng.choice(PLACES)
        if kind == "place" or (kind == "pair" and rng.random() < 0.25)
        else rng.choice(list(COLOURS))
    )
    if kind == "pair":
        relation = rng.choice(list(RELATIONS)) if background not in PLACES else rng.choice(("left of", "right of"))
        first, second = RELATIONS[relation]
        return jittered(
            Scene(
                background,
                (_item(rng, background, "medium", first), _item(rng, background, "medium", second)),
                relation,
            ),
            rng,
        )
    size, position = "large", "centre"
    if kind == "placed":
        position = rng.choice(list(POSITIONS))
        size = rng.choice(("small", "medium"))
    elif kind == "place" and rng.random() < 0.4:
        position = rng.choice(("centre", "left", "right"))
        size = rng.choice(("small", "medium"))
    return jittered(Scene(background, (_item(rng, background, size, position),)), rng)


def _item(rng: random.Random, background: str, size: str, position: str) -> Item:
    shape = rng.choice(SHAPES)
    colours = [c for c in COLOURS if c != background]
    colour = DEFAULT_COLOUR[shape] if rng.random() < 0.1 and DEFAULT_COLOUR[shape] in colours else rng.choice(colours)
    pose = rng.choice(POSES) if shape == "person" and rng.random() < 0.6 else "standing"
    return Item(shape, colour, size, position, pose)


def free_scene(rng: random.Random) -> Scene:
    """One or two objects of any size anywhere, turned, in any pose, on any horizon: what a control map may ask for."""
    background = rng.choice(PLACES if rng.random() < 0.35 else list(COLOURS))
    pair = rng.random() < 0.4
    count = 1 + pair
    colours = rng.sample([c for c in COLOURS if c != background], count)
    sizes = [rng.uniform(0.14, 0.25) if pair else rng.uniform(0.13, 0.36) for _ in range(count)]
    overlap = pair and rng.random() < 0.4
    middles = _middles(rng, sizes, (0.5, 0.9) if overlap else (1.0, 9.0))
    depths = rng.sample((235, 150), count) if pair else [235]
    items = tuple(_free_item(rng, background, *values) for values in zip(colours, sizes, middles, depths, strict=True))
    return Scene(background, items, "left of" if pair else "", _free_shade(rng), rng.uniform(-30, 12))


def _middles(rng: random.Random, sizes: list[float], gap: tuple[float, float]) -> list[tuple[float, float]]:
    """Middles inside the picture, in its shares, from left to right; two are `gap` apart, where 1 = touching."""
    while True:
        spots = [(rng.uniform(size + 0.03, 0.97 - size), rng.uniform(size + 0.03, 0.97 - size)) for size in sizes]
        if len(spots) == 1:
            return spots
        if spots[0][0] < spots[1][0] and gap[0] <= math.dist(*spots) / sum(sizes) <= gap[1]:
            return spots


def _free_item(
    rng: random.Random, background: str, colour: str, size: float, middle: tuple[float, float], depth: int
) -> Item:
    shape = "person" if rng.random() < 0.35 else rng.choice([s for s in SHAPES if s != "person"])
    upright = shape in ("house", "tree", "person")
    usual = POSITIONS["centre"] if background not in PLACES else (0.5, LARGE_IN_PLACE)
    return Item(
        shape,
        colour,
        "large",
        "centre",
        rng.choice(POSES),
        (middle[0] - usual[0]) * SIZE,
        (middle[1] - usual[1]) * SIZE,
        size / SIZES["large"],
        rng.uniform(-4, 4) if upright else rng.uniform(-20, 20),
        _free_shade(rng),
        _free_limbs(rng) if shape == "person" and rng.random() < 0.6 else (),
        depth + rng.randint(-15, 15),
    )


def _free_shade(rng: random.Random) -> tuple[int, int, int]:
    return rng.randint(-8, 8), rng.randint(-8, 8), rng.randint(-8, 8)


def _free_limbs(rng: random.Random) -> tuple[tuple[float, float], ...]:
    """Elbow, wrist of the right and the left arm, knee, ankle of the legs, at random angles, lengths as in `_ARMS`."""
    out: list[tuple[float, float]] = []
    for x, y, upper, lower, swing, bend in (
        (0.26, -0.34, 0.36, 0.33, (-10.0, 165.0), (-30.0, 60.0)),
        (0.16, 0.22, 0.36, 0.34, (0.0, 50.0), (-30.0, 15.0)),
    ):
        for side in (-1, 1):
            first = math.radians(rng.uniform(*swing))
            second = first + math.radians(rng.uniform(*bend))
            joint = (side * (x + upper * math.sin(first)), y + upper * math.cos(first))
            out += [joint, (joint[0] + side * lower * math.sin(second), joint[1] + lower * math.cos(second))]
    return tuple(out)


def jittered(scene: Scene, rng: random.Random) -> Scene:
    """The scene with small random deviations in place, size, angle and shade."""

    def shade() -> tuple[int, int, int]:
        return rng.randint(-8, 8), rng.randint(-8, 8), rng.randint(-8, 8)

    items = tuple(
        Item(
            i.shape,
            i.colour,
            i.size,
            i.position,
            i.pose,
            rng.uniform(-2, 2),
            rng.uniform(-2, 2),
            rng.uniform(0.95, 1.05),
            rng.uniform(-4, 4) if i.shape not in ("house", "tree", "person") else rng.uniform(-1, 1),
            shade(),
        )
        for i in scene.items
    )
    return Scene(scene.background, items, scene.relation, shade(), rng.uniform(-2, 2))


# --- captions -------------------------------------------------------------------------------------------------------

SHAPE_WORDS = {
    "circle": ("circle", "circle", "circle", "disc", "ball", "dot"),
    "square": ("square", "square", "square", "box", "block"),
    "triangle": ("triangle",),
    "star": ("star",),
    "heart": ("heart",),
    "house": ("house", "house", "house", "home", "cottage", "hut"),
    "tree": ("tree",),
    "person": ("person", "person", "man", "figure", "human", "woman"),
}
COLOUR_WORDS = {c: (c,) for c in COLOURS} | {
    "red": ("red", "red", "red", "crimson"),
    "cyan": ("cyan", "cyan", "turquoise"),
    "purple": ("purple", "purple", "violet"),
    "yellow": ("yellow", "yellow", "yellow", "golden"),
}
SIZE_WORDS = {
    "small": ("small", "little", "tiny"),
    "medium": ("medium", "medium-sized", "mid-sized"),
    "large": ("large", "big", "huge"),
}
POSITION_WORDS = {
    "centre": ("in the centre", "in the center", "in the middle"),
    "left": ("on the left", "on the left side", "at the left"),
    "right": ("on the right", "on the right side", "at the right"),
    "top": ("at the top", "on top", "in the upper half"),
    "bottom": ("at the bottom", "in the lower half"),
}
PLACE_WORDS = {
    "day": (
        "on a sunny day",
        "in the daytime",
        "by day",
        "on a meadow",
        "under a blue sky",
        "in the sunshine",
        "on grass",
    ),
    "night": ("at night", "at night", "under the stars", "under the moon", "in the dark night"),
    "sunset": ("at sunset", "at sunset", "at dusk", "in the evening"),
    "sea": ("by the sea", "at the sea", "at the ocean", "in front of the sea", "at the beach"),
    "mountains": ("in the mountains", "in front of mountains", "in the hills"),
}
PLACE_NOUNS = {
    "day": ("sunny day", "meadow"),
    "night": ("night", "night sky"),
    "sunset": ("sunset", "evening"),
    "sea": ("sea", "ocean"),
    "mountains": ("mountains", "mountain landscape"),
}
POSE_WORDS = {
    "standing": ("standing",),
    "waving": ("waving", "waving a hand"),
    "cheering": ("cheering", "with raised arms", "with arms up"),
    "walking": ("walking", "running"),
    "t-pose": ("with arms spread", "with outstretched arms", "in a t-pose"),
}
RELATION_WORDS = {
    "left of": ("to the left of", "left of"),
    "right of": ("to the right of", "right of"),
    "above": ("above", "over"),
    "below": ("below", "under"),
}
PREFIXES = (
    "a picture of",
    "a drawing of",
    "an image of",
    "an illustration of",
    "a simple drawing of",
    "picture of",
    "drawing of",
)
SUFFIXES = (
    "simple",
    "flat colours",
    "high quality",
    "masterpiece",
    "best quality",
    "clean",
    "illustration",
    "minimalist",
    "beautiful",
    "detailed",
)


def caption(scene: Scene, rng: random.Random) -> str:
    """A random wording of all that is not a default: long or terse, with or without articles, any case of order."""
    articles = rng.random() < 0.7
    things = _things(scene, rng, articles)
    text = _with_background(scene.background, things, rng, articles)
    if rng.random() < 0.12:
        text = f"{rng.choice(PREFIXES)} {text}"
    if rng.random() < 0.12:
        text = ", ".join([text, *rng.sample(SUFFIXES, rng.randint(1, 2))])
    if rng.random() < 0.1:
        text = text[0].upper() + text[1:]
    return text + ("." if rng.random() < 0.08 else "")


def colour_caption(scene: Scene, rng: random.Random | None = None) -> str:
    """The colours of a scene and the words of its place, but no shape, size or position; canonical without `rng`."""

    def one_of(words: tuple[str, ...]) -> str:
        return rng.choice(words) if rng else words[0]

    things = " and ".join(one_of(COLOUR_WORDS[item.colour]) for item in scene.items)
    if scene.background in PLACES:
        return f"{things} {one_of(PLACE_WORDS[scene.background])}"
    word = one_of(COLOUR_WORDS[scene.background])
    return one_of((f"{things} on {word}", f"{things}, {word} background", f"{things} on {_a(word)} background"))


def plain_caption(scene: Scene) -> str:
    """The canonical wording, for evaluation and the model card."""

    def noun(item: Item) -> str:
        size = f"{item.size} " if len(scene.items) == 1 and item.size != "large" else ""
        pose = f" {POSE_WORDS[item.pose][0]}" if item.shape == "person" and item.pose != "standing" else ""
        return _a(f"{size}{item.colour} {item.shape}{pose}")

    things = noun(scene.items[0])
    if len(scene.items) == 2:
        things += f" {RELATION_WORDS[scene.relation][0]} {noun(scene.items[1])}"
    elif scene.items[0].position != "centre":
        things += f" {POSITION_WORDS[scene.items[0].position][0]}"
    if scene.background in PLACES:
        return f"{things} {PLACE_WORDS[scene.background][0]}"
    return f"{things} on {_a(scene.background)} background"


def _a(noun: str) -> str:
    return f"{'an' if noun[0] in 'aeiou' else 'a'} {noun}"


def _things(scene: Scene, rng: random.Random, articles: bool) -> str:
    first = scene.items[0]
    if len(scene.items) == 1:
        nouns = _noun(first, scene, rng, articles)
        if first.position != "centre":
            return f"{nouns} {rng.choice(POSITION_WORDS[first.position])}"
        return f"{nouns} {rng.choice(POSITION_WORDS['centre'])}" if rng.random() < 0.06 else nouns
    one, other = (_noun(item, scene, rng, articles) for item in scene.items)
    if scene.relation == "left of" and rng.random() < 0.6:
        return f"{one} {rng.choice(('and', 'and', 'next to', 'beside'))} {other}"
    return f"{one} {rng.choice(RELATION_WORDS[scene.relation])} {other}"


def _noun(item: Item, scene: Scene, rng: random.Random, articles: bool) -> str:
    words = []
    single = len(scene.items) == 1
    if (single and item.size != "large") or rng.random() < 0.06:
        words.append(rng.choice(SIZE_WORDS[item.size]))
    if not (item.colour == DEFAULT_COLOUR[item.shape] and rng.random() < 0.35):
        words.append(rng.choice(COLOUR_WORDS[item.colour]))
    words.append(rng.choice(SHAPE_WORDS[item.shape]))
    text = _a(" ".join(words)) if articles else " ".join(words)
    if item.shape == "person" and (item.pose != "standing" or rng.random() < 0.1):
        text += f" {rng.choice(POSE_WORDS[item.pose])}"
    return text


def _with_background(background: str, things: str, rng: random.Random, articles: bool) -> str:
    if background in PLACES:
        if rng.random() < 0.75:
            return f"{things}{rng.choice((' ', ' ', ', '))}{rng.choice(PLACE_WORDS[background])}"
        noun = rng.choice(PLACE_NOUNS[background])
        return rng.choice((f"{things}, {noun}", f"{noun}, {things}", f"{noun} with {things}"))
    if background == "white" and rng.random() < 0.35:
        return things
    word = rng.choice(COLOUR_WORDS[background])
    ground = f"{word} {rng.choice(('background', 'background', 'background', 'backdrop'))}"
    noun = _a(ground) if articles else ground
    return rng.choice(
        (
            f"{things} on {noun}",
            f"{things} on {noun}",
            f"{things} on {word}",
            f"{things}, {ground}",
            f"{things} against {noun}",
            f"{things} in front of {noun}",
            f"{noun} with {things}",
            f"{ground}, {things}",
            f"{things} with {noun}",
        )
    )


# --- drawing --------------------------------------------------------------------------------------------------------


class Canvas:
    """Picture, label and depth layers drawn together at `SUPERSAMPLING` times the size; coordinates in pixels."""

    def __init__(self, colour: tuple[int, ...]) -> None:
        side = SIZE * SUPERSAMPLING
        self.picture = np.full((side, side, 3), colour, np.uint8)
        self.labels = np.zeros((side, side), np.uint8)
        self.depth = np.zeros((side, side), np.uint8)

    def polygon(self, points: np.ndarray, colour: tuple[int, ...], label: int, depth: int | None) -> None:
        fixed = [np.round(np.asarray(points) * SUPERSAMPLING * 16).astype(np.int32)]
        cv2.fillPoly(self.picture, fixed, colour, shift=4)
        if depth is not None:
            cv2.fillPoly(self.labels, fixed, label, shift=4)
            cv2.fillPoly(self.depth, fixed, depth, shift=4)

    def disc(self, x: float, y: float, radius: float, colour: tuple[int, ...], label: int, depth: int | None) -> None:
        turn = np.linspace(0, 2 * math.pi, 48, endpoint=False)
        self.polygon(np.stack([x + radius * np.cos(turn), y + radius * np.sin(turn)], 1), colour, label, depth)

    def limb(
        self, a: np.ndarray, b: np.ndarray, width: float, colour: tuple[int, ...], label: int, depth: int | None
    ) -> None:
        along = (b - a) / max(float(np.linalg.norm(b - a)), 1e-6)
        across = np.array([-along[1], along[0]]) * width / 2
        self.polygon(np.stack([a + across, b + across, b - across, a - across]), colour, label, depth)
        for end in (a, b):
            self.disc(end[0], end[1], width / 2, colour, label, depth)


def render(scene: Scene) -> Drawing:
    """Draw the scene; the same scene gives the same pixels."""
    canvas = _background(scene)
    keypoints = []
    for item in sorted(scene.items, key=lambda item: item.depth):
        points = _draw_item(canvas, item, scene.background)
        if points is not None:
            keypoints.append(points)
    picture = cv2.resize(canvas.picture, (SIZE, SIZE), interpolation=cv2.INTER_AREA)
    depth = cv2.resize(canvas.depth, (SIZE, SIZE), interpolation=cv2.INTER_AREA)
    half = SUPERSAMPLING // 2
    return Drawing(picture, canvas.labels[half::SUPERSAMPLING, half::SUPERSAMPLING].copy(), depth, tuple(keypoints))


def pose_map(drawing: Drawing, stick: float = 1.0) -> np.ndarray:
    """The OpenPose skeletons on black, (H, W, 3) RGB; `stick` is half the breadth of a limb in pixels."""
    big = np.zeros((SIZE * SUPERSAMPLING, SIZE * SUPERSAMPLING, 3), np.uint8)
    for points in drawing.keypoints:
        fixed = np.round(points * SUPERSAMPLING).astype(int)
        for (a, b), colour in zip(LIMBS, LIMB_COLOURS, strict=False):
            cv2.line(
                big,
                fixed[a].tolist(),
                fixed[b].tolist(),
                [int(c * 0.6) for c in colour],
                round(2 * stick * SUPERSAMPLING),
            )
        for point, colour in zip(fixed, LIMB_COLOURS, strict=True):
            cv2.circle(big, point.tolist(), round((0.5 + stick) * SUPERSAMPLING), colour, -1)
    return cv2.resize(big, (SIZE, SIZE), interpolation=cv2.INTER_AREA)


def canny_map(drawing: Drawing, low: int = 60, high: int = 140) -> np.ndarray:
    """White edges on black, (H, W, 3), by the same `cv2.Canny` a preprocessor uses."""
    return np.repeat(cv2.Canny(drawing.picture, low, high)[..., None], 3, axis=2)


def depth_map(drawing: Drawing) -> np.ndarray:
    """Depth as a picture, white = near, (H, W, 3)."""
    return np.repeat(drawing.depth[..., None], 3, axis=2)


def outline(drawing: Drawing) -> np.ndarray:
    """The scene as a black line drawing on white, (H, W, 3): a style to train a LoRA on."""
    edges = cv2.dilate(cv2.Canny(drawing.picture, 60, 140), np.ones((2, 2), np.uint8))
    return np.repeat(255 - edges[..., None], 3, axis=2)


def label_fractions(labels: np.ndarray, cells: int = 16) -> np.ndarray:
    """How much of each cell each class covers, (classes, cells, cells) in 0..1; class 0 is the background."""
    masks = np.stack([labels == index for index in range(len(SHAPES) + 1)], axis=-1).astype(np.float32)
    return np.moveaxis(cv2.resize(masks, (cells, cells), interpolation=cv2.INTER_AREA), -1, 0)


def _shaded(colour: tuple[int, int, int], shade: tuple[int, int, int], factor: float = 1.0) -> tuple[int, ...]:
    return tuple(int(np.clip(c * factor + s, 0, 255)) for c, s in zip(colour, shade, strict=True))


def _background(scene: Scene) -> Canvas:
    if scene.background in COLOURS:
        canvas = Canvas(_shaded(COLOURS[scene.background], scene.shade))
        canvas.depth[:] = np.linspace(8, 60, canvas.depth.shape[0], dtype=np.uint8)[:, None]
        return canvas
    return _PLACE_PAINTERS[scene.background](scene)


def _landscape(
    scene: Scene,
    sky: tuple[tuple[int, ...], tuple[int, ...]],
    ground: tuple[tuple[int, ...], tuple[int, ...]],
    horizon: float,
) -> Canvas:
    canvas = Canvas((0, 0, 0))
    side = canvas.depth.shape[0]
    line = round((horizon * SIZE + scene.horizon) * SUPERSAMPLING)
    for (top, bottom), (low, high) in ((sky, (0, line)), (ground, (line, side))):
        ramp = np.linspace(0, 1, high - low)[:, None]
        canvas.picture[low:high] = np.clip(
            np.array(top) * (1 - ramp) + np.array(bottom) * ramp + np.array(scene.shade), 0, 255
        )[:, None]
    canvas.depth[line:] = np.linspace(60, 200, side - line, dtype=np.uint8)[:, None]
    return canvas


def _day(scene: Scene) -> Canvas:
    canvas = _landscape(scene, ((96, 170, 245), (190, 224, 250)), ((120, 190, 96), (70, 140, 58)), HORIZON["day"])
    canvas.disc(18, 18, 10, (255, 232, 110), 0, None)
    return canvas


def _night(scene: Scene) -> Canvas:
    canvas = _landscape(scene, ((12, 12, 36), (38, 34, 82)), ((20, 44, 36), (12, 26, 22)), HORIZON["night"])
    canvas.disc(20, 20, 10, (250, 240, 190), 0, None)
    canvas.disc(25, 17, 9, (16, 16, 42), 0, None)
    for x, y in ((48, 12), (70, 24), (92, 10), (112, 30), (40, 40), (104, 52), (14, 56), (82, 44), (120, 70), (60, 8)):
        canvas.disc(x, y, 1.1, (255, 255, 240), 0, None)
    return canvas


def _sunset(scene: Scene) -> Canvas:
    canvas = _landscape(scene, ((92, 60, 130), (252, 150, 84)), ((70, 46, 50), (44, 30, 38)), HORIZON["sunset"])
    line = round(HORIZON["sunset"] * SIZE + scene.horizon)
    turn = np.linspace(math.pi, 2 * math.pi, 32)
    canvas.polygon(np.stack([100 + 14 * np.cos(turn), line + 14 * np.sin(turn)], 1), (255, 226, 120), 0, None)
    return canvas


def _sea(scene: Scene) -> Canvas:
    canvas = _landscape(scene, ((110, 180, 246), (214, 236, 250)), ((36, 110, 180), (24, 76, 144)), HORIZON["sea"])
    for row in range(5):
        for column in range(5):
            x, y = 6 + column * 27 + (row % 2) * 12, 86 + row * 9
            canvas.polygon(np.array([[x, y], [x + 13, y], [x + 13, y + 1.6], [x, y + 1.6]]), (130, 190, 230), 0, None)
    return canvas


def _mountains(scene: Scene) -> Canvas:
    canvas = _landscape(
        scene, ((130, 180, 232), (206, 226, 244)), ((122, 164, 96), (84, 128, 66)), HORIZON["mountains"]
    )
    line = HORIZON["mountains"] * SIZE + scene.horizon
    for x, top, half in ((26, 34, 40), (102, 30, 44), (64, 48, 34)):
        canvas.polygon(np.array([[x - half, line], [x, top], [x + half, line]]), (124, 118, 134), 0, None)
        cap = 0.25
        canvas.polygon(
            np.array(
                [[x - half * cap, top + (line - top) * cap], [x, top], [x + half * cap, top + (line - top) * cap]]
            ),
            (240, 244, 250),
            0,
            None,
        )
    return canvas


_PLACE_PAINTERS = {"day": _day, "night": _night, "sunset": _sunset, "sea": _sea, "mountains": _mountains}


def _placed(item: Item, background: str) -> tuple[float, float, float]:
    x, y = POSITIONS[item.position]
    if background in PLACES and item.position in ("centre", "left", "right"):
        y = GROUND[background]
    if item.size == "large" and background in PLACES:
        y = LARGE_IN_PLACE
    return x * SIZE + item.dx, y * SIZE + item.dy, SIZES[item.size] * SIZE * item.scale


def _draw_item(canvas: Canvas, item: Item, background: str) -> np.ndarray | None:
    x, y, radius = _placed(item, background)
    label, depth = SHAPES.index(item.shape) + 1, item.depth
    fill = _shaded(COLOURS[item.colour], item.shade)
    turn = math.radians(item.angle)
    matrix = np.array([[math.cos(turn), -math.sin(turn)], [math.sin(turn), math.cos(turn)]])

    def at(points: object) -> np.ndarray:
        return np.asarray(points, float) * radius @ matrix.T + (x, y)

    if item.shape == "circle":
        canvas.disc(x, y, radius * 0.98, fill, label, depth)
    elif item.shape in OUTLINES:
        canvas.polygon(at(OUTLINES[item.shape]), fill, label, depth)
    elif item.shape == "house":
        canvas.polygon(at([[-0.8, -0.12], [0.8, -0.12], [0.8, 0.95], [-0.8, 0.95]]), fill, label, depth)
        roof = _shaded(COLOURS[item.colour], item.shade, 0.62) if item.colour != "black" else (78, 74, 80)
        canvas.polygon(at([[-1.02, -0.12], [0, -0.95], [1.02, -0.12]]), roof, label, depth)
        canvas.polygon(at([[-0.18, 0.36], [0.18, 0.36], [0.18, 0.95], [-0.18, 0.95]]), (96, 62, 44), label, depth)
        for side in (-0.5, 0.5):
            canvas.polygon(
                at(np.array([[-0.16, 0.1], [0.16, 0.1], [0.16, 0.42], [-0.16, 0.42]]) + (side, 0)),
                (170, 214, 245),
                label,
                depth,
            )
    elif item.shape == "tree":
        canvas.polygon(at([[-0.16, 0.3], [0.16, 0.3], [0.16, 0.98], [-0.16, 0.98]]), (112, 74, 46), label, depth)
        for dx, dy, size in ((-0.44, 0.0, 0.44), (0.44, 0.0, 0.44), (0.0, -0.44, 0.5), (0.0, 0.02, 0.46)):
            cx, cy = at([[dx, dy]])[0]
            canvas.disc(cx, cy, size * radius, fill, label, depth)
    else:
        return _draw_person(
            canvas, at, radius, item.limbs or (*_ARMS[item.pose], *_LEGS[item.pose]), fill, label, depth
        )
    return None


def _star() -> list[list[float]]:
    angles = [math.pi * (k / 5 - 0.5) for k in range(10)]
    return [
        [(1.06 if k % 2 == 0 else 0.44) * math.cos(a), (1.06 if k % 2 == 0 else 0.44) * math.sin(a) + 0.06]
        for k, a in enumerate(angles)
    ]


def _heart() -> list[list[float]]:
    turn = np.linspace(0, 2 * math.pi, 64, endpoint=False)
    x = 16 * np.sin(turn) ** 3
    y = 13 * np.cos(turn) - 5 * np.cos(2 * turn) - 2 * np.cos(3 * turn) - np.cos(4 * turn)
    return np.stack([x / 16.5, -(y + 2.5) / 15.5], 1).tolist()


# unit outlines: the object fills about -1..1, y down
OUTLINES: dict[str, list[list[float]]] = {
    "square": [[-0.86, -0.86], [0.86, -0.86], [0.86, 0.86], [-0.86, 0.86]],
    "triangle": [[0.0, -0.95], [1.0, 0.8], [-1.0, 0.8]],
    "star": _star(),
    "heart": _heart(),
}

# elbows and wrists, knees and ankles by pose; x > 0 is the right of the picture, where the person's left side is
_ARMS = {
    "standing": ((-0.42, 0.02), (-0.46, 0.34), (0.42, 0.02), (0.46, 0.34)),
    "waving": ((-0.42, 0.02), (-0.46, 0.34), (0.56, -0.42), (0.62, -0.86)),
    "cheering": ((-0.52, -0.50), (-0.62, -0.92), (0.52, -0.50), (0.62, -0.92)),
    "walking": ((-0.46, -0.02), (-0.62, 0.22), (0.40, 0.02), (0.66, 0.02)),
    "t-pose": ((-0.56, -0.34), (-0.94, -0.34), (0.56, -0.34), (0.94, -0.34)),
}
_LEGS = dict.fromkeys(POSES, ((-0.2, 0.58), (-0.22, 0.92), (0.2, 0.58), (0.22, 0.92))) | {
    "walking": ((-0.30, 0.56), (-0.56, 0.90), (0.34, 0.54), (0.52, 0.90)),
}


def _draw_person(
    canvas: Canvas,
    at: object,
    radius: float,
    limbs: tuple[tuple[float, float], ...],
    fill: tuple[int, ...],
    label: int,
    depth: int,
) -> np.ndarray:
    re, rw, le, lw, rk, ra, lk, la = limbs
    unit = [
        (0.0, -0.70),
        (0.0, -0.40),
        (-0.26, -0.34),
        re,
        rw,
        (0.26, -0.34),
        le,
        lw,
        (-0.16, 0.22),
        rk,
        ra,
        (0.16, 0.22),
        lk,
        la,
        (-0.07, -0.76),
        (0.07, -0.76),
        (-0.15, -0.73),
        (0.15, -0.73),
    ]
    points = at(unit)  # type: ignore[operator]
    head = at([[0.0, -0.72]])[0]  # type: ignore[operator]
    canvas.disc(head[0], head[1], 0.24 * radius, fill, label, depth)
    canvas.polygon(points[[2, 5, 11, 8]], fill, label, depth)
    for a, b, width in (
        (0, 1, 0.16),
        (2, 5, 0.22),
        (8, 11, 0.22),
        (2, 8, 0.2),
        (5, 11, 0.2),
        (2, 3, 0.2),
        (3, 4, 0.18),
        (5, 6, 0.2),
        (6, 7, 0.18),
        (8, 9, 0.24),
        (9, 10, 0.21),
        (11, 12, 0.24),
        (12, 13, 0.21),
    ):
        canvas.limb(points[a], points[b], width * radius, fill, label, depth)
    return points
