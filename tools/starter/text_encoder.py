"""The text encoder: a tiny CLIPTextModel, taught by supervised heads to state what a caption says, then frozen.

The heads read the end-of-text state and one random padding state after it, so that every padding position carries a
summary of the caption: it is what most of the 77 states are that the UNet attends to.
"""

from __future__ import annotations

import math
import random
import time
from pathlib import Path

import torch
from torch.nn import functional
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from . import store, tokenizer, world

WIDTH = 128

ATTRIBUTES: dict[str, tuple[str, ...]] = {
    "background": world.BACKGROUNDS,
    "shape": world.SHAPES,
    "colour": tuple(world.COLOURS),
    "size": tuple(world.SIZES),
    "pose": world.POSES,
    "position": tuple(world.POSITIONS),
    "second shape": ("", *world.SHAPES),
    "second colour": ("", *world.COLOURS),
    "second pose": world.POSES,
    "relation": ("", *world.RELATIONS),
}


def attributes(scene: world.Scene) -> list[int]:
    """The answers to ATTRIBUTES for a scene, as indices."""
    first = scene.items[0]
    second = scene.items[1] if len(scene.items) == 2 else None
    words = (
        scene.background,
        first.shape,
        first.colour,
        first.size,
        first.pose,
        first.position,
        second.shape if second else "",
        second.colour if second else "",
        second.pose if second else "standing",
        scene.relation,
    )
    return [choices.index(word) for choices, word in zip(ATTRIBUTES.values(), words, strict=True)]


def new_text_encoder(tokens: CLIPTokenizer, seed: int = 0) -> CLIPTextModel:
    """An untrained text encoder for this tokenizer."""
    torch.manual_seed(seed)
    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokens),
            hidden_size=WIDTH,
            intermediate_size=4 * WIDTH,
            num_hidden_layers=3,
            num_attention_heads=4,
            max_position_embeddings=tokenizer.LENGTH,
            hidden_act="quick_gelu",
            projection_dim=WIDTH,
            bos_token_id=tokens.bos_token_id,
            eos_token_id=tokens.eos_token_id,
            pad_token_id=tokens.pad_token_id,
        )
    )


def train(
    work: Path = store.WORK_DIR, steps: int = 1500, lr: float = 2e-3, batch: int = 64
) -> tuple[CLIPTokenizer, CLIPTextModel]:
    """Train on captions of scenes that are not held out; resumes from the work dir."""
    path = work / "text.pt"
    # the vocabulary follows the captions, so what a UNet was trained with must not be learnt anew
    kept = work / "parts" / "tokenizer"
    tokens = CLIPTokenizer.from_pretrained(kept) if kept.exists() else tokenizer.new_tokenizer()
    model = new_text_encoder(tokens)
    heads = torch.nn.ModuleList(torch.nn.Linear(WIDTH, len(choices)) for choices in ATTRIBUTES.values())
    parameters = [*model.parameters(), *heads.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=lr, betas=(0.9, 0.99), weight_decay=0.01)
    step = 0
    if path.exists():
        state = store.load(path)
        model.load_state_dict(state["model"])
        heads.load_state_dict(state["heads"])
        optimizer.load_state_dict(state["optimizer"])
        step = state["step"]
    end = tokens.eos_token_id
    saved = time.monotonic()
    while step < steps:
        for group in optimizer.param_groups:
            group["lr"] = lr * min(1, (step + 1) / 50) * (0.02 + 0.49 * (1 + math.cos(math.pi * step / steps)))
        rng = random.Random(step)
        scenes = [world.sample_scene(step * batch + k, "all") for k in range(batch)]
        ids = tokenizer.token_ids(tokens, [world.caption(scene, rng) for scene in scenes])
        # short most of the time: padding states beyond it are learnt in the rest
        length = tokenizer.LENGTH if step % 4 == 0 else min(tokenizer.LENGTH, int((ids != end).sum(1).max()) + 8)
        states = model(ids[:, :length]).last_hidden_state
        first = (ids == end).int().argmax(1)
        later = torch.tensor([rng.randint(int(f), length - 1) for f in first])
        truth = torch.tensor([attributes(scene) for scene in scenes])
        rows = torch.arange(batch)
        losses, right = [], []
        for k, head in enumerate(heads):
            for where in (first, later):
                logits = head(states[rows, where])
                losses.append(functional.cross_entropy(logits, truth[:, k]))
            right.append(float((logits.argmax(1) == truth[:, k]).float().mean()))
        loss = torch.stack(losses).sum() / 2
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        step += 1
        if step % 50 == 0:
            print(
                f"text step {step} loss {float(loss.detach()):.3f} right {[round(r, 2) for r in right]}",
                flush=True,
            )
        if step == steps or time.monotonic() - saved > 45:
            store.save(
                path,
                {
                    "model": model.state_dict(),
                    "heads": heads.state_dict(),
                    "optimizer": optimizer.state_dict(),
                    "step": step,
                },
            )
            saved = time.monotonic()
    return tokens, model.eval()
