"""ControlNets for the starter: canny, depth and openpose, trained on freely arranged scenes of the world.

The base UNet is frozen. Half of the captions say nothing or colours only, so that the map must give shape and place.
"""

from __future__ import annotations

import copy
import math
import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import ControlNetModel, UNet2DConditionModel
from torch.nn import functional

from . import dataset, evaluate, export, muon, store, tokenizer, unet, world

KINDS = ("canny", "depth", "openpose")
STAGE, SCENES = "control", 10_000
EMBEDDING = (8, 16, 32, 64)
EMPTY_CAPTIONS, COLOUR_CAPTIONS = 0.15, 0.45
WARM_UP = 50
SAVE_SECONDS = 50
STICKS = (1.0, 1.0, 1.5, 2.0, 3.0, 4.0)
READER = "controlnet_cond_embedding."
"""Of the names of what reads the map."""


def map_of(kind: str, drawing: world.Drawing, rng: random.Random | None = None) -> np.ndarray:
    """The control map of a drawing, (H, W, 3); with `rng` as various as preprocessors and editors make it."""
    if kind == "canny":
        low = rng.randint(40, 110) if rng else 60
        return world.canny_map(drawing, low, 2 * low if rng else 140)
    if kind == "depth":
        return world.depth_map(drawing)
    return world.pose_map(drawing, rng.choice(STICKS) if rng else 1.0)


@dataclass(frozen=True)
class Maps:
    """`chosen` are the scenes a kind is trained on, `pictures` (len(chosen), 3, H, W) or (.., 1, H, W) their maps."""

    chosen: torch.Tensor
    pictures: torch.Tensor


def maps(kind: str, work: Path = store.WORK_DIR) -> Maps:
    """The maps of all scenes, or for openpose of those with people and a few without, from the cache or drawn now."""
    path = work / f"maps-{kind}-{STAGE}-{SCENES}.pt"
    if not path.exists():
        scenes = {k: world.sample_scene(k, STAGE) for k in range(SCENES)}
        if kind == "openpose":
            scenes = {k: s for k, s in scenes.items() if k % 20 == 0 or any(i.shape == "person" for i in s.items)}
        drawn = [map_of(kind, world.render(scene), random.Random(f"map/{k}")) for k, scene in scenes.items()]
        pictures = torch.from_numpy(np.stack(drawn)).permute(0, 3, 1, 2)
        alike = bool((pictures[:, :1] == pictures).all())
        kept = (pictures[:, :1] if alike else pictures).contiguous()
        store.save(path, {"chosen": torch.tensor(list(scenes)), "pictures": kept})
    return Maps(**store.load(path))


def as_condition(pictures: torch.Tensor) -> torch.Tensor:
    """Maps (N, 1 or 3, H, W) uint8 as a ControlNet takes them: three channels, 0..1."""
    return (pictures.float() / 255).expand(-1, 3, -1, -1)


def words(scene: world.Scene, rng: random.Random) -> str:
    """Nothing, the colours, or colours and shapes: never a size or a position, which a free scene has no words for."""
    u = rng.random()
    if u < EMPTY_CAPTIONS:
        return ""
    if u < EMPTY_CAPTIONS + COLOUR_CAPTIONS:
        return world.colour_caption(scene, rng)
    return world.caption(scene, rng)


def new_net(base: UNet2DConditionModel) -> ControlNetModel:
    """A copy of the base's encoder, with less of a mid block for size; its outputs are still zero."""
    whole = ControlNetModel.from_unet(base, conditioning_embedding_out_channels=EMBEDDING)
    net = ControlNetModel.from_config({**whole.config, "mid_block_type": "UNetMidBlock2D"})
    kept = net.state_dict().keys()
    net.load_state_dict({name: values for name, values in whole.state_dict().items() if name in kept})
    return net


@torch.no_grad()
def settle(reader: torch.nn.Module, condition: torch.Tensor) -> None:
    """Scale the layers that read a map so that features of real maps have deviation 1.

    Untouched, the default initialisation fades a sparse map to nothing over eight layers; and diffusers' zero output
    layer is not needed, since the ControlNet's own outputs start at zero.
    """
    torch.nn.init.kaiming_normal_(reader.conv_out.weight)
    features = condition
    for layer in (reader.conv_in, *reader.blocks, reader.conv_out):
        layer.weight.div_(layer(features).std())
        layer.bias.zero_()
        features = functional.silu(layer(features))


def frozen_base(work: Path = store.WORK_DIR, name: str = "unet") -> tuple[UNet2DConditionModel, unet.Hints, int]:
    """The newest averaged UNet, its label head and the samples it has seen; neither takes gradients."""
    state = store.load(work / f"{name}.pt")
    base = unet.new_unet()
    hints = unet.Hints(base)
    hints.load_state_dict(state["hints"])
    base.load_state_dict(base.state_dict() | state["average"])
    return base.eval().requires_grad_(False), hints.requires_grad_(False), state["samples"]


class Nets(torch.nn.Module):
    """ControlNets for several kinds of maps that share all but the layers that read the map."""

    def __init__(self, base: UNet2DConditionModel, kinds: tuple[str, ...]) -> None:
        super().__init__()
        net = new_net(base)
        self.readers = torch.nn.ModuleDict({kind: new_net(base).controlnet_cond_embedding for kind in kinds})
        net.controlnet_cond_embedding = torch.nn.Identity()
        self.trunk = net

    def forward(
        self, kind: str, noisy: torch.Tensor, t: torch.Tensor, states: torch.Tensor, condition: torch.Tensor
    ) -> tuple[list[torch.Tensor], torch.Tensor]:
        """The residuals for the base's skip connections and for its middle."""
        return self.trunk(noisy, t, states, controlnet_cond=self.readers[kind](condition), return_dict=False)

    def single(self, kind: str, base: UNet2DConditionModel) -> ControlNetModel:
        """A copy of one kind's net as diffusers knows it."""
        net = new_net(base)
        reader = {READER + name: p for name, p in self.readers[kind].state_dict().items()}
        net.load_state_dict(self.trunk.state_dict() | reader)
        return net.eval()


class Trainer:
    """ControlNets on a frozen base, their optimisers and average, with the step they are at."""

    def __init__(self, base: UNet2DConditionModel, hints: unet.Hints, kinds: tuple[str, ...]) -> None:
        self.base, self.hints, self.kinds = base, hints, kinds
        self.nets = Nets(base, kinds).train()
        inner = [p for name, p in self.nets.named_parameters() if p.ndim >= 2 and "_block" in name]
        known = {id(p) for p in inner}
        outer = [p for p in self.nets.parameters() if id(p) not in known]
        self.optimizers: list[torch.optim.Optimizer] = [
            torch.optim.AdamW(outer, betas=(0.9, 0.99), weight_decay=0.0),
            muon.Muon(inner),
        ]
        self.average = store.Average(self.nets, 0.998)
        self.step = self.samples = 0
        self.seconds = 0.0
        acp = torch.cumprod(1 - torch.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2, 0)
        self.signal, self.noise = acp.sqrt(), (1 - acp).sqrt()

    def state(self) -> dict[str, Any]:
        return {
            "nets": self.nets.state_dict(),
            "optimizers": [o.state_dict() for o in self.optimizers],
            "average": self.average.values,
            "step": self.step,
            "samples": self.samples,
            "seconds": self.seconds,
        }

    def load(self, state: dict[str, Any]) -> None:
        self.nets.load_state_dict(state["nets"])
        for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        self.average.values = state["average"]
        self.step, self.samples, self.seconds = state["step"], state["samples"], state["seconds"]

    def train_step(
        self,
        kind: str,
        latents: torch.Tensor,
        labels: torch.Tensor,
        states: torch.Tensor,
        condition: torch.Tensor,
        generator: torch.Generator,
        lr: float,
    ) -> float:
        """One step; returns the error.

        Gradients flow through the base's decoder only, since its encoder does not see the residuals.
        """
        count = len(latents)
        u = (torch.rand((), generator=generator) + torch.arange(count) / count) % 1
        t = (1000 * (1 - u**1.5)).long().clamp(0, 999)
        signal, sigma = self.signal[t][:, None, None, None], self.noise[t][:, None, None, None]
        noise = torch.randn(latents.shape, generator=generator)
        noisy = signal * latents + sigma * noise
        down, mid = self.nets(kind, noisy, t, states, condition)
        out = self.base(
            noisy, t, states, down_block_additional_residuals=down, mid_block_additional_residual=mid
        ).sample
        error = functional.mse_loss(out, signal * noise - sigma * latents)
        hint = functional.cross_entropy(self.hints.last(self.hints.seen["last"]), labels)
        for optimizer in self.optimizers:
            optimizer.zero_grad(set_to_none=True)
            for group in optimizer.param_groups:
                group["lr"] = lr
        (error + unet.AUXILIARY_WEIGHT * hint).backward()
        torch.nn.utils.clip_grad_norm_(self.nets.parameters(), 1.0)
        for optimizer in self.optimizers:
            optimizer.step()
        self.average.update(self.nets, self.step)
        self.step += 1
        self.samples += count
        return float(error.detach())

    def averaged_net(self, kind: str) -> ControlNetModel:
        """A copy of one kind's net with the averaged weights."""
        nets = Nets(self.base, self.kinds)
        self.average.copy_to(nets)
        return nets.single(kind, self.base)


def kinds_of(name: str) -> tuple[str, ...]:
    """The kinds a training's name stands for: `all`, one kind, or several joined by `+`."""
    return KINDS if name == "all" else tuple(name.split("+"))


def checkpoint(name: str, work: Path) -> Path:
    """Where a training keeps its state."""
    return work / f"control-{name}.pt"


def new_trainer(name: str, base: UNet2DConditionModel, hints: unet.Hints, work: Path) -> Trainer:
    """The trainer of the kinds, at its checkpoint; a new one of fewer kinds starts from the average of `all`."""
    trainer = Trainer(base, hints, kinds_of(name))
    if checkpoint(name, work).exists():
        trainer.load(store.load(checkpoint(name, work)))
        return trainer
    for kind, reader in trainer.nets.readers.items():
        settle(reader, as_condition(maps(kind, work).pictures[:64]))
    if checkpoint("all", work).exists():
        common = store.load(checkpoint("all", work))
        trainer.nets.load_state_dict({key: common["average"][key] for key in trainer.nets.state_dict()})
        trainer.samples, trainer.seconds = common["samples"], common["seconds"]
    trainer.average = store.Average(trainer.nets, trainer.average.decay)
    return trainer


def newest_trainer(kind: str, base: UNet2DConditionModel, hints: unet.Hints, work: Path) -> Trainer:
    """The training that has gone on last of those with the kind in them."""
    names = [path.stem.removeprefix("control-") for path in work.glob("control-*.pt")]
    known = [name for name in names if kind in kinds_of(name)]
    return new_trainer(max(known, key=lambda name: checkpoint(name, work).stat().st_mtime), base, hints, work)


def train(
    name: str,
    parts: evaluate.Components,
    minutes: float,
    work: Path = store.WORK_DIR,
    lr: float = 2e-3,
    batch: int = 32,
    anneal: bool = False,
    every: int = 8_000,
    milestone: Callable[[Trainer], None] | None = None,
    base_name: str = "unet",
) -> Trainer:
    """Train the kinds of `name` in turn for so many minutes on the UNet of that name as it is now.

    With `anneal` the rate falls linearly to zero over the minutes; the result replaces the checkpoint.
    """
    base, hints, seen = frozen_base(work, base_name)
    trainer = new_trainer(name, base, hints, work)
    path = checkpoint(name, work)
    data = dataset.encoded(parts.vae, STAGE, SCENES, work)
    views = {kind: maps(kind, work) for kind in trainer.kinds}
    print(f"{name}: base of {seen} samples, from step {trainer.step}", flush=True)
    start = saved = logged = time.monotonic()
    before, first = trainer.seconds, trainer.samples
    due = trainer.samples + every
    sums, steps = dict.fromkeys(trainer.kinds, 0.0), dict.fromkeys(trainer.kinds, 1e-9)
    while (elapsed := time.monotonic() - start) < minutes * 60:
        rate = lr * (1 - elapsed / (minutes * 60)) if anneal else lr
        rate *= min(1.0, (trainer.step + 1) / WARM_UP)
        kind = trainer.kinds[trainer.step % len(trainer.kinds)]
        loss = trainer.train_step(kind, *batch_of(parts, data, views[kind], batch, trainer.step), rate)
        trainer.seconds = before + time.monotonic() - start
        if not math.isfinite(loss):
            raise FloatingPointError(f"loss is {loss} at step {trainer.step}; resume {path} with a lower rate")
        sums[kind] += loss
        steps[kind] += 1
        if time.monotonic() - logged > 60:
            means = " ".join(f"{key} {value / steps[key]:.4f}" for key, value in sums.items())
            speed = (trainer.samples - first) / (time.monotonic() - start)
            print(f"{name} step {trainer.step} samples {trainer.samples}: {means} {speed:.0f}/s", flush=True)
            sums, steps = dict.fromkeys(trainer.kinds, 0.0), dict.fromkeys(trainer.kinds, 1e-9)
            logged = time.monotonic()
        if time.monotonic() - saved > SAVE_SECONDS:
            store.save(path, trainer.state())
            saved = time.monotonic()
        if milestone and trainer.samples >= due:
            milestone(trainer)
            due += every
    store.save(path, trainer.state())
    return trainer


def batch_of(
    parts: evaluate.Components, data: dataset.Scenes, views: Maps, size: int, seed: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Generator]:
    """Latents, label shares, text states and maps of a random batch, and the generator that drew it."""
    generator = torch.Generator().manual_seed(seed)
    rng = random.Random(seed)
    picked = torch.randint(0, len(views.chosen), (size,), generator=generator)
    chosen = views.chosen[picked]
    texts = [words(data.scenes[k], rng) for k in chosen.tolist()]
    with torch.no_grad():
        states = parts.text_encoder(tokenizer.token_ids(parts.tokens, texts)).last_hidden_state
    labels = data.labels[chosen].float() / 255
    return data.latents[chosen].float(), labels, states, as_condition(views.pictures[picked]), generator


def write(net: ControlNetModel, folder: Path) -> None:
    """Write a net as diffusers does, in half precision; each file replaces its predecessor at once."""
    half = copy.deepcopy(net).half()
    export.put_in_place(half.save_pretrained, folder)


def nets_of(model: Path) -> dict[str, ControlNetModel]:
    """The nets beside an exported model, in float32."""
    return {kind: ControlNetModel.from_pretrained(model / "controlnet" / kind).float().eval() for kind in KINDS}
