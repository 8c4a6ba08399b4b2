"""A work dir from a landed model: its training goes on where nobody has the checkpoints that led to it.

What a landed model lacks is begun anew: the optimisers' numbers, and the label heads, which are fitted to the frozen
UNet. Weights come back in the half precision that they were landed in.
"""

from __future__ import annotations

import re
import time
from pathlib import Path

import torch

from . import control, dataset, export, store, unet


def adopt(model: Path, work: Path, minutes: float) -> None:
    """Fill an empty work dir from a model folder; the label heads are trained for so many minutes."""
    card = (model / "README.md").read_text("utf-8")
    parts = export.parts_of(model)
    export.save_frozen_parts(parts.tokens, parts.text_encoder, parts.vae, work)
    trainer = unet.Trainer(0.0)
    trainer.unet.load_state_dict(parts.unet.state_dict())
    trainer.average = store.Average(trainer.unet, trainer.average.decay)
    trainer.samples = _count(r"([\d,]+) samples on CPU", card)
    data = dataset.encoded(parts.vae, control.STAGE, control.SCENES, work)
    _fit(trainer, parts, data, minutes)
    store.save(work / "unet.pt", trainer.state())
    store.save(work / "exported.pt", {"name": "unet", "samples": trainer.samples})
    base, hints, _ = control.frozen_base(work)
    seen = {}
    for kind, net in control.nets_of(model).items():
        learner = control.Trainer(base, hints, (kind,))
        weights = net.state_dict()
        reader = {name: weights.pop(name) for name in list(weights) if name.startswith(control.READER)}
        learner.nets.trunk.load_state_dict(weights)
        learner.nets.readers[kind].load_state_dict({k.removeprefix(control.READER): v for k, v in reader.items()})
        learner.average = store.Average(learner.nets, learner.average.decay)
        learner.samples = seen[kind] = _count(rf"Samples behind each:.*?([\d,]+) \({kind}\)", card)
        store.save(control.checkpoint(kind, work), learner.state())
    store.save(work / "exported-control.pt", seen)


def _count(pattern: str, card: str) -> int:
    match = re.search(pattern, card)
    if match is None:
        raise ValueError(f"the model's card does not say {pattern!r}")
    return int(match[1].replace(",", ""))


def _fit(trainer: unet.Trainer, parts: export.evaluate.Components, data: dataset.Scenes, minutes: float) -> None:
    """Train the label heads alone."""
    optimizer = torch.optim.AdamW(trainer.hints.parameters(), lr=3e-3)
    started = logged = time.monotonic()
    step = 0
    while (elapsed := time.monotonic() - started) < minutes * 60:
        latents, labels, states, generator = unet.batch_of(parts, data, 32, step)
        t = torch.randint(0, 1000, (len(latents),), generator=generator)
        signal, sigma = trainer.signal[t][:, None, None, None], trainer.noise[t][:, None, None, None]
        with torch.no_grad():
            trainer.unet(signal * latents + sigma * torch.randn(latents.shape, generator=generator), t, states)
        loss = trainer.hints.loss(labels)
        optimizer.zero_grad(set_to_none=True)
        for group in optimizer.param_groups:
            group["lr"] = 3e-3 * (1 - elapsed / (minutes * 60))
        loss.backward()
        optimizer.step()
        step += 1
        if time.monotonic() - logged > 30:
            print(f"label heads step {step}: {float(loss.detach()):.4f}", flush=True)
            logged = time.monotonic()
