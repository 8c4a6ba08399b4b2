"""Sampling and scoring: held-out prompts through the UNet, read by the detector; learning curve and contact sheet."""

from __future__ import annotations

import csv
import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from diffusers import AutoencoderKL, ControlNetModel, DPMSolverMultistepScheduler, SchedulerMixin, UNet2DConditionModel
from transformers import CLIPTextModel, CLIPTokenizer

from . import detect, tokenizer, world

SCHEDULER = {
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "num_train_timesteps": 1000,
    "prediction_type": "v_prediction",
    "timestep_spacing": "trailing",
    "steps_offset": 1,
    "solver_order": 2,
    "algorithm_type": "dpmsolver++",
    "use_karras_sigmas": False,
}
GUIDANCE = 3.0
FIELDS = ("background", "colour", "shape", "position", "all")


@dataclass
class Components:
    """The parts of a Stable Diffusion, as the trainings hand them on."""

    tokens: CLIPTokenizer
    text_encoder: CLIPTextModel
    vae: AutoencoderKL
    unet: UNet2DConditionModel


@dataclass(frozen=True)
class Trial:
    """A prompt and the scene it asks for."""

    prompt: str
    scene: world.Scene


def new_scheduler() -> SchedulerMixin:
    """The noise schedule of the starter model."""
    return DPMSolverMultistepScheduler(**SCHEDULER)


def visible(colour: str, background: str) -> bool:
    """Whether an object of the colour stands out from the background."""
    unreadable = {
        ("black", "night"),
        ("blue", "night"),
        ("blue", "sea"),
        ("white", "day"),
        ("white", "sea"),
        ("white", "mountains"),
        ("cyan", "day"),
        ("cyan", "mountains"),
        ("cyan", "sea"),
        ("green", "day"),
        ("green", "mountains"),
        ("orange", "sunset"),
        ("yellow", "sunset"),
        ("black", "sunset"),
        ("green", "night"),
        ("purple", "sunset"),
        ("purple", "night"),
    }
    return colour != background and (colour, background) not in unreadable


def held_out_trials(kind: str, count: int) -> list[Trial]:
    """Fixed prompts of combinations never trained on; kinds: plain, placed, place, pair.

    Each combination comes in its canonical wording first, then, as often as needed, in a random one. `placed`
    names a size and a position; `place` stands in a landscape; `pair` has two objects, neither seen on its background.
    """
    rng = random.Random(f"trials/{kind}")
    grounds = world.PLACES if kind == "place" else tuple(world.COLOURS)
    triples = [
        (s, c, b)
        for s in world.SHAPES
        for c in world.COLOURS
        for b in grounds
        if visible(c, b) and world.held_out(s, c, b)
    ]
    rng.shuffle(triples)
    trials: list[Trial] = []
    while len(trials) < count:
        shape, colour, background = triples[len(trials) % len(triples)]
        if kind == "pair":
            other = rng.choice([t for t in triples if t[2] == background])
            relation = rng.choice(list(world.RELATIONS))
            first, second = world.RELATIONS[relation]
            scene = world.Scene(
                background,
                (world.Item(shape, colour, "medium", first), world.Item(other[0], other[1], "medium", second)),
                relation,
            )
        elif kind == "placed":
            position = rng.choice([p for p in world.POSITIONS if p != "centre"])
            scene = world.Scene(background, (world.Item(shape, colour, rng.choice(("small", "medium")), position),))
        else:
            scene = world.Scene(background, (world.Item(shape, colour),))
        prompt = world.plain_caption(scene) if len(trials) < len(triples) else world.caption(scene, rng)
        trials.append(Trial(prompt, scene))
    return trials


@torch.no_grad()
def embedded(parts: Components, texts: list[str]) -> torch.Tensor:
    """Text states (N, 77, width)."""
    return parts.text_encoder(tokenizer.token_ids(parts.tokens, texts)).last_hidden_state


@torch.no_grad()
def sample(
    parts: Components,
    prompts: list[str],
    steps: int = 20,
    guidance: float = GUIDANCE,
    seed: int = 0,
    batch: int = 25,
    net: ControlNetModel | None = None,
    condition: torch.Tensor | None = None,
) -> np.ndarray:
    """Pictures (N, H, W, 3) uint8; picture k starts from the noise of seed + k.

    `net` is a ControlNet that reads `condition` (N, 3, H, W) in 0..1, in both halves of the batch.
    """
    out = []
    for start in range(0, len(prompts), batch):
        part = prompts[start : start + batch]
        states = embedded(parts, [""] * len(part) + part)
        latents = torch.cat(
            [
                torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(seed + start + k))
                for k in range(len(part))
            ]
        )
        scheduler = new_scheduler()
        scheduler.set_timesteps(steps)
        latents = latents * scheduler.init_noise_sigma
        for t in scheduler.timesteps:
            twice = scheduler.scale_model_input(torch.cat([latents, latents]), t)
            led_by = {} if net is None else _residuals(net, twice, t, states, condition[start : start + len(part)])
            free, led = parts.unet(twice, t, states, **led_by).sample.chunk(2)
            latents = scheduler.step(free + guidance * (led - free), t, latents).prev_sample
        pictures = parts.vae.decode(latents / parts.vae.config.scaling_factor).sample
        out.append(((pictures.clamp(-1, 1) + 1) * 127.5).round().byte().permute(0, 2, 3, 1).numpy())
    return np.concatenate(out)


def _residuals(
    net: ControlNetModel, latents: torch.Tensor, t: torch.Tensor, states: torch.Tensor, condition: torch.Tensor
) -> dict[str, Any]:
    down, mid = net(latents, t, states, controlnet_cond=condition.repeat(2, 1, 1, 1), return_dict=False)
    return {"down_block_additional_residuals": down, "mid_block_additional_residual": mid}


def scores(pictures: np.ndarray, trials: list[Trial]) -> dict[str, float]:
    """The share of pictures that are right, by field."""
    results = [detect.score(picture, trial.scene) for picture, trial in zip(pictures, trials, strict=True)]
    return {field: float(np.mean([getattr(r, field) for r in results])) for field in FIELDS}


def append_scores(path: Path, name: str, samples: int, kind: str, values: dict[str, float]) -> None:
    """One line of the learning curve."""
    row = {"name": name, "samples": samples, "kind": kind} | {field: round(values[field], 3) for field in FIELDS}
    new = not path.exists()
    with path.open("a", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=list(row))
        if new:
            writer.writeheader()
        writer.writerow(row)


def sheet(pictures: np.ndarray, columns: int = 10, gap: int = 2) -> np.ndarray:
    """Pictures in rows, RGB."""
    side = pictures.shape[1] + gap
    rows = -(-len(pictures) // columns)
    out = np.full((rows * side - gap, columns * side - gap, 3), 128, np.uint8)
    for k, picture in enumerate(pictures):
        y, x = divmod(k, columns)
        out[y * side : y * side + picture.shape[0], x * side : x * side + picture.shape[1]] = picture
    return out


def write_picture(path: Path, picture: np.ndarray) -> None:
    """Write an RGB picture as PNG."""
    path.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(path), cv2.cvtColor(picture, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_PNG_COMPRESSION, 9])


# --- learning curve -------------------------------------------------------------------------------------------------

KIND_COLOURS = {"plain": (40, 80, 212), "placed": (249, 136, 28), "place": (52, 160, 72), "pair": (220, 38, 38)}


def curve(rows: list[dict[str, str]], width: int = 720, height: int = 360) -> np.ndarray:
    """The share of held-out prompts whose shapes are right against samples seen, by kind of prompt, RGB."""
    out = np.full((height, width, 3), 255, np.uint8)
    left, top, right, bottom = 48, 34, width - 120, height - 36
    most = max([float(row["samples"]) for row in rows], default=1.0)

    def at(samples: float, value: float) -> tuple[int, int]:
        return int(left + (right - left) * samples / most), int(bottom - (bottom - top) * value)

    def write(text: str, where: tuple[int, int], colour: tuple[int, int, int] = (60, 60, 60)) -> None:
        cv2.putText(out, text, where, cv2.FONT_HERSHEY_SIMPLEX, 0.42, colour, 1, cv2.LINE_AA)

    write("shape right, held-out combinations (samples seen)", (left, 20))
    for fifth in range(6):
        y = at(0, fifth / 5)[1]
        cv2.line(out, (left, y), (right, y), (225, 225, 225), 1)
        write(f"{fifth / 5:.1f}", (12, y + 4))
    for quarter in range(5):
        write(f"{most * quarter / 4000:.0f} k", (at(most * quarter / 4, 0)[0] - 14, bottom + 18))
    for k, (kind, colour) in enumerate(KIND_COLOURS.items()):
        points = [at(float(row["samples"]), float(row["shape"])) for row in rows if row["kind"] == kind]
        cv2.polylines(out, [np.array(points, np.int32).reshape(-1, 1, 2)], False, colour, 2, cv2.LINE_AA)
        for point in points:
            cv2.circle(out, point, 4, colour, -1, cv2.LINE_AA)
        write(kind, (right + 14, top + 12 + 20 * k), colour)
    return out


def read_rows(path: Path) -> list[dict[str, str]]:
    """The learning curve so far."""
    if not path.exists():
        return []
    with path.open(newline="") as file:
        return list(csv.DictReader(file))
