"""A training as pictures: the loss over the steps, and samples beside those of the untrained model; no torch."""

import io
from collections.abc import Mapping, Sequence
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from backend.files import write_atomically

INK, FAINT, PAPER = "#333333", "#dddddd", "#ffffff"
LOSS, SMOOTH, HELD_OUT = "#b8c8e8", "#2850d4", "#f9881c"
_FINE = 2
"""Drawn at this many times the size, then reduced: smooth lines."""
CELL = 192
"""Side of a sample in the grid, at most."""


def png_into(path: Path, picture: Image.Image) -> None:
    """Raises StorageFull."""
    written = io.BytesIO()
    picture.save(written, "PNG")
    write_atomically(path, written.getvalue())


def loss_plot(history: Sequence[Mapping[str, float]], width: int = 720, height: int = 320) -> Image.Image:
    """Loss of each step, its running average, and the loss on pictures held out."""
    losses = [(row["step"], row["loss"]) for row in history if "loss" in row]
    held_out = [(row["step"], row["validation"]) for row in history if "validation" in row]
    smooth = smoothed(losses)
    shown = sorted(value for _, value in losses + held_out) or [1.0]
    top = shown[int(len(shown) * 0.98)] * 1.1 if len(shown) > 1 else shown[0] * 1.1  # a few outliers may stick out
    last = max([step for step, _ in losses + held_out], default=1) or 1
    image = Image.new("RGB", (width * _FINE, height * _FINE), PAPER)
    pen = ImageDraw.Draw(image)
    font = ImageFont.load_default(12 * _FINE)
    left, right, upper, lower = 56, width - 16, 28, height - 28

    def at(point: tuple[float, float]) -> tuple[float, float]:
        x = left + (right - left) * point[0] / last
        return x * _FINE, (lower - (lower - upper) * min(point[1] / (top or 1), 1.04)) * _FINE

    for fifth in range(6):
        value = top * fifth / 5
        pen.line([at((0, value)), at((last, value))], FAINT, _FINE)
        pen.text((at((0, value))[0] - 8 * _FINE, at((0, value))[1]), f"{value:.3f}", INK, font, anchor="rm")
        step = last * fifth / 5
        pen.text((at((step, 0))[0], (lower + 6) * _FINE), f"{step:.0f}", INK, font, anchor="ma")
    for points, colour, thick in ((losses, LOSS, 1), (smooth, SMOOTH, 2), (held_out, HELD_OUT, 2)):
        if len(points) > 1:
            pen.line([at(p) for p in points], colour, thick * _FINE, joint="curve")
    for point in held_out:
        x, y = at(point)
        pen.ellipse([x - 3 * _FINE, y - 3 * _FINE, x + 3 * _FINE, y + 3 * _FINE], HELD_OUT)
    named = [("loss, running average", SMOOTH), *([("on pictures held out", HELD_OUT)] if held_out else [])]
    for number, (words, colour) in enumerate(named):
        pen.text(((left + 180 * number) * _FINE, 8 * _FINE), words, colour, font)
    return image.resize((width, height), Image.Resampling.LANCZOS)


def smoothed(points: Sequence[tuple[float, float]], weight: float = 0.95) -> list[tuple[float, float]]:
    """Running average, fair from the first point on."""
    found: list[tuple[float, float]] = []
    total, seen = 0.0, 0.0
    for step, value in points:
        total, seen = total * weight + value, seen * weight + 1
        found.append((step, total / seen))
    return found


def sample_grid(samples: Mapping[int, Mapping[int, Path]], prompts: Sequence[str]) -> Image.Image:
    """A row for each step, a column for each prompt; the row of step 0 is the untrained model's."""
    rows = sorted(samples)
    pictures = {(step, n): Image.open(path).convert("RGB") for step in rows for n, path in samples[step].items()}
    cell = min(CELL, max(max(picture.size) for picture in pictures.values()))
    font = ImageFont.load_default(12)
    label, head, gap = 84, 34, 4
    size = label + len(prompts) * (cell + gap), head + len(rows) * (cell + gap)
    grid = Image.new("RGB", size, PAPER)
    pen = ImageDraw.Draw(grid)
    for column, prompt in enumerate(prompts):
        pen.text((label + column * (cell + gap), 4), _wrapped(prompt, cell // 6), INK, font)
    for row, step in enumerate(rows):
        top = head + row * (cell + gap)
        pen.text((4, top + cell // 2), f"step {step}" if step else "without", INK, font, anchor="lm")
        for column in range(len(prompts)):
            if picture := pictures.get((step, column)):
                picture.thumbnail((cell, cell), Image.Resampling.LANCZOS)
                grid.paste(picture, (label + column * (cell + gap), top))
    return grid


def _wrapped(text: str, letters: int) -> str:
    words, lines = text.split(), [""]
    for word in words:
        if lines[-1] and len(lines[-1]) + len(word) >= letters:
            lines.append("")
        lines[-1] = f"{lines[-1]} {word}".strip()
    return "\n".join(line[:letters] for line in lines[:2])
