"""Training data of the UNet: rendered scenes as latents, with their label maps, resident in memory.

Captions are not stored: each step words its scenes anew.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL

from . import store, vae, world

PORTION = 64


@dataclass(frozen=True)
class Scenes:
    """`latents` (N, 4, 16, 16) scaled as the UNet sees them, `labels` (N, 9, 16, 16) shares of 255."""

    stage: str
    scenes: list[world.Scene]
    latents: torch.Tensor
    labels: torch.Tensor

    def __len__(self) -> int:
        return len(self.scenes)


@torch.no_grad()
def encoded(autoencoder: AutoencoderKL, stage: str, count: int, work: Path = store.WORK_DIR) -> Scenes:
    """`count` scenes of a stage, from the cache or encoded now (about two minutes for 10,000)."""
    path = work / f"latents-{stage}-{count}.pt"
    scenes = [world.sample_scene(seed, stage) for seed in range(count)]
    part = path.with_suffix(".part.pt")
    if not path.exists():
        latents, labels = store.load(part) if part.exists() else ([], [])
        saved = time.monotonic()
        for start in range(PORTION * len(latents), count, PORTION):
            drawings = [world.render(scene) for scene in scenes[start : start + PORTION]]
            pictures = torch.from_numpy(np.stack([d.picture for d in drawings])).permute(0, 3, 1, 2)
            mean = autoencoder.encode(vae.as_input(pictures)).latent_dist.mean
            latents.append((mean * vae.SCALING_FACTOR).half())
            shares = np.stack([world.label_fractions(d.labels) for d in drawings])
            labels.append(torch.from_numpy((shares * 255).round().astype(np.uint8)))
            if time.monotonic() - saved > 45:
                store.save(part, (latents, labels))
                saved = time.monotonic()
                print(f"encoded {start + PORTION} of {count} scenes", flush=True)
        store.save(path, {"latents": torch.cat(latents), "labels": torch.cat(labels)})
        part.unlink(missing_ok=True)
    state = store.load(path)
    return Scenes(stage, scenes, state["latents"], state["labels"])
