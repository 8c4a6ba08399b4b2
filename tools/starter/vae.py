"""The autoencoder: AutoencoderKL, 128x128 -> 4x16x16, started as a mean-colour-per-block autoencoder.

After training the latent normalisation is folded into `quant_conv` and `post_quant_conv`, so that scaled latents have
zero mean and about unit deviation while `scaling_factor` stays 0.18215, which much code hard-codes.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL

from . import store, world

SCALING_FACTOR = 0.18215
CHANNELS = (16, 32, 64, 64)
CROP = 64
# carries the scale of the picture through group norms, whose statistics it dominates
CONSTANT = 2.0


def new_vae(seed: int = 0) -> AutoencoderKL:
    """A VAE with the analytic start."""
    torch.manual_seed(seed)
    vae = AutoencoderKL(
        in_channels=3,
        out_channels=3,
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=CHANNELS,
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=4,
        sample_size=world.SIZE,
        scaling_factor=SCALING_FACTOR,
    )
    _analytic_start(vae)
    return vae


@torch.no_grad()
def _analytic_start(vae: AutoencoderKL) -> None:
    """Make the linear part of the network carry (+-colour, constant) through every layer.

    In the first 12 channels, four per colour: value, minus value, constant, free. silu(x) - silu(-x) = x passes the
    last activation, few groups keep flat colours, residual branches begin near zero.
    """
    plus, minus, constant = [0, 4, 8], [1, 5, 9], [2, 6, 10, 14]
    carried = plus + minus + constant

    def carry(conv: torch.nn.Conv2d, taps: list[tuple[int, int]], weight: float) -> None:
        for c in carried:
            conv.weight[c] = 0
            for y, x in taps:
                conv.weight[c, c, y, x] = weight
            conv.bias[c] = 0

    for module in vae.modules():
        name = type(module).__name__
        if name == "ResnetBlock2D":
            module.conv2.weight.mul_(0.1)
            module.conv2.bias.zero_()
            if module.conv_shortcut is not None:
                carry(module.conv_shortcut, [(0, 0)], 1.0)
        elif name == "Attention":
            module.to_out[0].weight.mul_(0.1)
        elif name == "Downsample2D":
            carry(module.conv, [(0, 0), (0, 1), (1, 0), (1, 1)], 0.25)
        elif name == "Upsample2D":
            carry(module.conv, [(1, 1)], 1.0)
    encoder, decoder = vae.encoder, vae.decoder
    for first, gain in ((encoder.conv_in, 1.0), (decoder.conv_in, 0.5)):
        first.weight[carried] = 0
        first.bias[carried] = 0
        first.bias[constant] = CONSTANT
        for c in range(3):
            first.weight[plus[c], c, 1, 1] = gain
            first.weight[minus[c], c, 1, 1] = -gain
    for last, gain in ((encoder.conv_out, 3.6), (decoder.conv_out, 1.6)):
        last.weight[:3].mul_(0.05)
        last.bias.zero_()
        for c in range(3):
            last.weight[c, plus[c], 1, 1] = gain
            last.weight[c, minus[c], 1, 1] = -gain
    encoder.conv_out.weight[4:] = 0
    encoder.conv_out.bias[4:] = -5.0
    for conv in (vae.quant_conv, vae.post_quant_conv):
        conv.bias.zero_()
        conv.weight.copy_(torch.eye(conv.weight.shape[0])[:, :, None, None])


def pictures(seeds: range, stage: str = "all") -> torch.Tensor:
    """Rendered scenes as (N, 3, H, W) uint8."""
    return (
        torch.from_numpy(np.stack([world.render(world.sample_scene(s, stage)).picture for s in seeds]))
        .permute(0, 3, 1, 2)
        .contiguous()
    )


def as_input(batch: torch.Tensor) -> torch.Tensor:
    """uint8 pictures as floats in -1..1."""
    return batch.float() / 127.5 - 1


def reconstruction_loss(out: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """L1 + MSE + L1 of the gradients, which asks for crisp edges."""
    difference = out - target
    edges = (difference[..., 1:] - difference[..., :-1]).abs().mean() + (
        difference[..., 1:, :] - difference[..., :-1, :]
    ).abs().mean()
    return difference.abs().mean() + 2 * difference.square().mean() + edges


def psnr(vae: AutoencoderKL, batch: torch.Tensor) -> float:
    """Decibels over uint8 pictures, through the mean latent."""
    with torch.no_grad():
        out = torch.cat([vae.decode(vae.encode(as_input(part)).latent_dist.mean).sample for part in batch.split(16)])
    error = (out.clamp(-1, 1) - as_input(batch)).square().mean() / 4
    return -10 * math.log10(float(error))


def train(
    work: Path = store.WORK_DIR, steps: int = 3000, lr: float = 2e-3, batch: int = 16, scenes: int = 6000
) -> AutoencoderKL:
    """Train encoder and decoder together on 64-px crops; resumes from the work dir. Returns the averaged VAE."""
    path = work / "vae.pt"
    vae = new_vae()
    parameters = list(vae.parameters())
    optimizer = torch.optim.AdamW(parameters, lr=lr, betas=(0.9, 0.99), weight_decay=0.0)
    average = store.Average(vae, 0.998)
    step = 0
    if path.exists():
        state = store.load(path)
        vae.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        average.values, step = state["average"], state["step"]
    data, held = pictures(range(scenes)), pictures(range(10**6, 10**6 + 64))
    start = saved = time.monotonic()
    while step < steps:
        generator = torch.Generator().manual_seed(step)
        progress = step / steps
        rate = (
            lr
            * min(1, (step + 1) / 30)
            * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * max(0.0, progress - 0.2) / 0.8)))
        )
        for group in optimizer.param_groups:
            group["lr"] = rate
        chosen = torch.randint(0, len(data), (batch,), generator=generator)
        y, x = torch.randint(0, world.SIZE - CROP + 1, (2, batch), generator=generator).tolist()
        crops = as_input(
            torch.stack(
                [data[i, :, b : b + CROP, a : a + CROP] for i, a, b in zip(chosen.tolist(), x, y, strict=True)]
            )
        )
        if torch.rand((), generator=generator) < 0.5:
            crops = crops.flip(-1)
        posterior = vae.encode(crops).latent_dist
        # a floor under the noise, so that the decoder forgives the small errors of a diffusion model
        noise = torch.randn(posterior.mean.shape, generator=generator)
        out = vae.decode(posterior.mean + (posterior.std + 0.04) * noise).sample
        loss = reconstruction_loss(out, crops) + 1e-4 * posterior.kl().mean() / 256
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        average.update(vae, step)
        step += 1
        if step % 100 == 0:
            print(f"vae step {step} loss {float(loss.detach()):.4f} {(time.monotonic() - start):.0f} s", flush=True)
        if step == steps or time.monotonic() - saved > 45:
            store.save(
                path,
                {
                    "model": vae.state_dict(),
                    "optimizer": optimizer.state_dict(),
                    "average": average.values,
                    "step": step,
                },
            )
            saved = time.monotonic()
    average.copy_to(vae)
    vae.eval()
    print(f"vae psnr {psnr(vae, held):.2f} dB", flush=True)
    return vae


@torch.no_grad()
def fold(vae: AutoencoderKL, batch: torch.Tensor) -> AutoencoderKL:
    """Move shift and scale of the latents into the 1x1 convolutions; scaled latents become zero mean, unit deviation.

    A channel that hardly varies is not blown up: its deviation counts at least half the median of the four.
    """
    moments = torch.cat([vae.encode(as_input(part)).latent_dist.mean for part in batch.split(32)])
    mean, sd = moments.mean((0, 2, 3)), moments.std((0, 2, 3))
    print(f"latent mean {mean.tolist()} sd {sd.tolist()}", flush=True)
    sd = sd.clamp(min=float(sd.median()) / 2)
    scale = 1 / (sd * SCALING_FACTOR)
    quant, post = vae.quant_conv, vae.post_quant_conv
    quant.weight[:4].mul_(scale[:, None, None, None])
    quant.bias[:4] = (quant.bias[:4] - mean) * scale
    quant.bias[4:] += 2 * scale.log()
    post.bias += post.weight[:, :, 0, 0] @ mean
    post.weight.div_(scale[None, :, None, None])
    return vae


def tune_decoder(
    autoencoder: AutoencoderKL,
    latents: torch.Tensor,
    pictures_of: Callable[[list[int]], torch.Tensor],
    minutes: float,
    noise: float = 0.1,
    lr: float = 1e-3,
    batch: int = 4,
) -> AutoencoderKL:
    """Train the decoder alone on scaled latents with a little noise, so that it forgives a diffusion model.

    The encoder does not change, so a UNet trained on its latents stays valid. Whole pictures, rate falling to zero.
    """
    for p in autoencoder.parameters():
        p.requires_grad_(False)
    parameters = [*autoencoder.decoder.parameters(), *autoencoder.post_quant_conv.parameters()]
    for p in parameters:
        p.requires_grad_(True)
    optimizer = torch.optim.AdamW(parameters, lr=lr, betas=(0.9, 0.99), weight_decay=0.0)
    average = store.Average(autoencoder, 0.995)
    start = logged = time.monotonic()
    step = 0
    while (elapsed := time.monotonic() - start) < minutes * 60:
        generator = torch.Generator().manual_seed(step)
        for group in optimizer.param_groups:
            group["lr"] = lr * min(1, (step + 1) / 50) * (1 - elapsed / (minutes * 60))
        chosen = torch.randint(0, len(latents), (batch,), generator=generator)
        clean = latents[chosen].float()
        amount = noise * torch.rand((batch, 1, 1, 1), generator=generator)
        out = autoencoder.decode(
            (clean + amount * torch.randn(clean.shape, generator=generator)) / SCALING_FACTOR
        ).sample
        loss = reconstruction_loss(out, as_input(pictures_of(chosen.tolist())))
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        average.update(autoencoder, step)
        step += 1
        if time.monotonic() - logged > 30:
            print(f"decoder step {step} loss {float(loss.detach()):.4f}", flush=True)
            logged = time.monotonic()
    average.copy_to(autoencoder)
    return autoencoder.requires_grad_(True).eval()
