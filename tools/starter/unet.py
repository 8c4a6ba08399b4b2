"""The UNet: v-prediction on cached latents with an auxiliary loss from the known label map; trains without end.

Constant learning rate and an average of the weights; `anneal` branches off a copy whose rate falls to zero.
"""

from __future__ import annotations

import math
import os
import random
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from diffusers import UNet2DConditionModel
from torch.nn import functional

from . import dataset, evaluate, muon, store, text_encoder, tokenizer, world

CHANNELS = (64, 96, 128)
EMPTY_CAPTIONS = 0.1
AUXILIARY_WEIGHT = 0.1
WARM_UP = 100


def new_unet(seed: int = 0) -> UNet2DConditionModel:
    """An untrained UNet; no attention at the outermost level, where it costs most."""
    torch.manual_seed(seed)
    return UNet2DConditionModel(
        sample_size=16,
        in_channels=4,
        out_channels=4,
        block_out_channels=CHANNELS,
        layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=text_encoder.WIDTH,
        attention_head_dim=4,
        norm_num_groups=8,
    )


class Hints(torch.nn.Module):
    """Heads that guess the clean label map from the mid block and from the last features; not part of the model."""

    def __init__(self, unet: UNet2DConditionModel) -> None:
        super().__init__()
        self.classes = len(world.SHAPES) + 1
        self.seen: dict[str, torch.Tensor] = {}
        self.mid = torch.nn.Conv2d(CHANNELS[-1], self.classes * 16, 1)
        self.last = torch.nn.Conv2d(CHANNELS[0], self.classes, 1)
        unet.mid_block.register_forward_hook(lambda _m, _i, out: self.seen.__setitem__("mid", out))
        unet.up_blocks[-1].register_forward_hook(lambda _m, _i, out: self.seen.__setitem__("last", out))

    def loss(self, truth: torch.Tensor) -> torch.Tensor:
        """Mean cross entropy to the class shares (B, classes, 16, 16)."""
        guesses = (functional.pixel_shuffle(self.mid(self.seen["mid"]), 4), self.last(self.seen["last"]))
        return torch.stack([functional.cross_entropy(guess, truth) for guess in guesses]).sum()


class Trainer:
    """UNet, heads, optimisers and their average, with the step they are at."""

    def __init__(self, lr: float) -> None:
        self.unet = new_unet()
        self.hints = Hints(self.unet)
        inner = [
            p
            for name, p in self.unet.named_parameters()
            if p.ndim >= 2 and name.split(".")[0] in ("down_blocks", "mid_block", "up_blocks")
        ]
        known = {id(p) for p in inner}
        outer = [p for p in [*self.unet.parameters(), *self.hints.parameters()] if id(p) not in known]
        self.optimizers: list[torch.optim.Optimizer] = [
            torch.optim.AdamW(outer, lr=lr, betas=(0.9, 0.99), weight_decay=0.0),
            muon.Muon(inner, lr=lr),
        ]
        self.average = store.Average(self.unet, 0.999)
        self.step = self.samples = self.counted = 0
        self.seconds = 0.0
        acp = torch.cumprod(1 - torch.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2, 0)
        self.signal, self.noise = acp.sqrt(), (1 - acp).sqrt()

    def state(self) -> dict[str, Any]:
        return {
            "unet": self.unet.state_dict(),
            "hints": self.hints.state_dict(),
            "optimizers": [o.state_dict() for o in self.optimizers],
            "average": self.average.values,
            "step": self.step,
            "samples": self.samples,
            "seconds": self.seconds,
        }

    def load(self, state: dict[str, Any]) -> None:
        self.unet.load_state_dict(state["unet"])
        self.hints.load_state_dict(state["hints"])
        for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        self.average.values = state["average"]
        self.step, self.samples, self.seconds = state["step"], state["samples"], state["seconds"]

    def train_step(
        self,
        latents: torch.Tensor,
        labels: torch.Tensor,
        states: torch.Tensor,
        generator: torch.Generator,
        lr: float,
        average: bool = True,
    ) -> dict[str, float]:
        """One step on clean latents, label shares and text states; returns the losses."""
        count = len(latents)
        # stratified over the batch, more of high noise, where the text decides colour and shape
        u = (torch.rand((), generator=generator) + torch.arange(count) / count) % 1
        t = (1000 * (1 - u**1.5)).long().clamp(0, 999)
        signal, sigma = self.signal[t][:, None, None, None], self.noise[t][:, None, None, None]
        noise = torch.randn(latents.shape, generator=generator)
        out = self.unet(signal * latents + sigma * noise, t, states).sample
        error = functional.mse_loss(out, signal * noise - sigma * latents)
        hint = self.hints.loss(labels)
        for optimizer in self.optimizers:
            optimizer.zero_grad(set_to_none=True)
            for group in optimizer.param_groups:
                group["lr"] = lr
        (error + AUXILIARY_WEIGHT * hint).backward()
        torch.nn.utils.clip_grad_norm_(self.unet.parameters(), 1.0)
        for optimizer in self.optimizers:
            optimizer.step()
        if average:
            self.average.update(self.unet, self.step)
        self.step += 1
        return {"loss": float(error.detach()), "hint": float(hint.detach())}

    def averaged_unet(self) -> UNet2DConditionModel:
        """A copy with the averaged weights."""
        unet = new_unet()
        self.average.copy_to(unet)
        return unet.eval()


def batch_of(
    parts: evaluate.Components, data: dataset.Scenes, size: int, seed: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Generator]:
    """Latents, label shares and text states of a random batch, and the generator that drew it; the same for a seed."""
    generator = torch.Generator().manual_seed(seed)
    rng = random.Random(seed)
    chosen = torch.randint(0, len(data), (size,), generator=generator)
    texts = ["" if rng.random() < EMPTY_CAPTIONS else world.caption(data.scenes[k], rng) for k in chosen.tolist()]
    with torch.no_grad():
        states = parts.text_encoder(tokenizer.token_ids(parts.tokens, texts)).last_hidden_state
    return data.latents[chosen].float(), data.labels[chosen].float() / 255, states, generator


def train(
    parts: evaluate.Components,
    data: dataset.Scenes,
    minutes: float,
    name: str = "unet",
    work: Path = store.WORK_DIR,
    lr: float = 2e-3,
    batch: int = 32,
    workers: int = 1,
    anneal: bool = False,
    every: int = 30_000,
    milestone: Callable[[Trainer], None] | None = None,
) -> Trainer:
    """Train for so many minutes, from the checkpoint if there is one.

    `milestone` is called about every `every` samples. With `anneal` the rate falls linearly to zero over the minutes
    and only the final state is kept, under its own name. Further `workers` are processes that update the same weights
    in shared memory without locks (Hogwild); one worker alone is reproducible, several are not.
    """
    trainer = Trainer(lr)
    path = work / f"{name}.pt"
    if path.exists():
        trainer.load(store.load(path))
    start = saved = logged = time.monotonic()
    before, first = trainer.seconds, trainer.samples
    due = trainer.samples + every
    helpers, counts, rate_now = _start_workers(trainer, workers - 1, data, batch, work)
    sums = {"loss": 0.0, "hint": 0.0}
    steps = 0
    while (elapsed := time.monotonic() - start) < minutes * 60:
        rate = lr * (1 - elapsed / (minutes * 60)) if anneal else lr
        rate_now.fill_(rate * min(1.0, (trainer.step + 1) / WARM_UP))
        losses = trainer.train_step(*batch_of(parts, data, batch, trainer.step * workers), float(rate_now))
        steps += 1
        trainer.samples += batch + int(counts.sum()) - trainer.counted
        trainer.counted = int(counts.sum())
        trainer.seconds = before + time.monotonic() - start
        for key, value in losses.items():
            sums[key] += value
            if not math.isfinite(value):
                raise FloatingPointError(
                    f"{key} is {value} at step {trainer.step}; resume from {path} with a lower rate"
                )
        if time.monotonic() - logged > 30:
            print(
                f"{name} step {trainer.step} samples {trainer.samples} "
                + " ".join(f"{k} {v / steps:.4f}" for k, v in sums.items())
                + f" {(trainer.samples - first) / (time.monotonic() - start):.0f}/s",
                flush=True,
            )
            sums, steps, logged = dict.fromkeys(sums, 0.0), 0, time.monotonic()
        if not anneal and time.monotonic() - saved > 50:
            store.save(path, trainer.state())
            saved = time.monotonic()
        if milestone and trainer.samples >= due:
            milestone(trainer)
            due += every
    for helper in helpers:
        helper.terminate()
        helper.join()
    store.save(work / f"{name}-annealed.pt" if anneal else path, trainer.state())
    return trainer


def _start_workers(
    trainer: Trainer, count: int, data: dataset.Scenes, batch: int, work: Path
) -> tuple[list[Any], torch.Tensor, torch.Tensor]:
    """Processes that train the same weights; a tensor of their sample counts and one that tells them the rate."""
    counts, rate = torch.zeros(max(count, 1), dtype=torch.int64).share_memory_(), torch.zeros(()).share_memory_()
    trainer.unet.share_memory()
    trainer.hints.share_memory()
    shared = [*trainer.unet.parameters(), *trainer.hints.parameters()]
    context = torch.multiprocessing.get_context("spawn")
    helpers = [
        context.Process(
            target=_work_along,
            args=(
                k,
                count + 1,
                [p.data for p in shared],
                counts,
                rate,
                data.stage,
                len(data),
                batch,
                trainer.step,
                work,
            ),
            daemon=True,
        )
        for k in range(count)
    ]
    for helper in helpers:
        helper.start()
    return helpers, counts, rate


def _work_along(
    rank: int,
    workers: int,
    shared: list[torch.Tensor],
    counts: torch.Tensor,
    rate: torch.Tensor,
    stage: str,
    scenes: int,
    batch: int,
    step: int,
    work: Path,
) -> None:
    from . import export  # builds a UNet, so it imports this module

    torch.set_num_threads(1)
    parent = os.getppid()
    parts = export.frozen_parts(work)
    data = dataset.encoded(parts.vae, stage, scenes, work)
    trainer = Trainer(1e-3)
    for p, values in zip([*trainer.unet.parameters(), *trainer.hints.parameters()], shared, strict=True):
        p.data = values
    # the parent may die by kill -9
    while os.getppid() == parent:
        warm = min(1.0, (trainer.step + 1) / WARM_UP)
        trainer.train_step(
            *batch_of(parts, data, batch, (step + trainer.step) * workers + rank + 1),
            float(rate) * warm,
            average=False,
        )
        counts[rank] += batch
