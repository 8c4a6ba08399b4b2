"""Training a LoRA, from top to bottom: adapters, optimizer, one step, what is needed to go on after a break.

All that is random in a step follows from the seed and the number of the step: noise, noise levels, captions, order.
So a training that goes on from a checkpoint makes the very numbers that it would have made without the break.
"""

import contextlib
import hashlib
import importlib
import io
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from diffusers.models.downsampling import Downsample2D
from diffusers.models.resnet import ResnetBlock2D
from diffusers.models.transformers.transformer_2d import Transformer2DModel
from diffusers.models.upsampling import Upsample2D
from diffusers.optimization import get_scheduler
from diffusers.training_utils import EMAModel, compute_snr
from peft import LoraConfig, get_peft_model_state_dict
from torch import Generator, Tensor
from torch.amp.grad_scaler import GradScaler

from backend.errors import InvalidRequest, Problem, TrainingFailed
from backend.training.base import Base, Text
from backend.training.dataset import Example, Plan
from backend.training.latents import Latents
from backend.training.params import TrainParams

ADAPTER = "default"
TEXT_TARGETS = ("q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2")
VALIDATED_AT = (0.1, 0.35, 0.6, 0.85)
"""Noise levels of the validation loss, as shares of the schedule."""


@dataclass(frozen=True)
class Step:
    """What one step came to."""

    number: int
    loss: float
    rate: float
    """Learning rate of the UNet, as Prodigy has found it too."""


class Trainer:
    """Knows no files: `session.py` saves, draws and reports."""

    def __init__(self, base: Base, plan: Plan, latents: Latents) -> None:
        self.base, self.plan, self.params, self.latents = base, plan, plan.params, latents
        self.done = 0
        params = self.params
        torch.manual_seed(params.seed)
        self.learners = add_adapters(base, params)
        if params.gradient_checkpointing:
            base.unet.enable_gradient_checkpointing()
            for encoder in base.text_encoders.values() if self.reads else ():
                encoder.activation_checkpointing_enable()
        self.groups = _groups(self.learners, params)
        self.optimizer = _optimizer(self.groups, params)
        self.rates = get_scheduler(
            params.schedule if params.schedule != "constant" else "constant_with_warmup",
            self.optimizer,
            num_warmup_steps=round(params.warmup * plan.steps),
            num_training_steps=plan.steps,
            num_cycles=params.restarts,
        )
        self.scaler = GradScaler(base.device.type, enabled=base.dtype is torch.float16)
        self.average = EMAModel(self.weights, decay=params.ema) if params.ema else None
        for module in self.learners.values():
            module.train()

    @property
    def steps(self) -> int:
        return self.plan.steps

    @property
    def weights(self) -> list[torch.nn.Parameter]:
        return [weight for group in self.groups for weight in group["params"]]

    @property
    def reads(self) -> bool:
        """Whether text encoders learn too."""
        return self.params.text_encoder_lr > 0

    # --- a step

    def step(self) -> Step:
        """Learn from the next batches. Raises TrainingFailed when the loss is no number; nothing has changed then."""
        number, batches = self.done + 1, self.params.accumulation
        torch.manual_seed(_seed(self.params.seed, "dropout", number))
        total = 0.0
        self.optimizer.zero_grad(set_to_none=True)
        for index in range(batches):
            batch = self.done * batches + index
            noise = Generator("cpu").manual_seed(_seed(self.params.seed, "noise", batch))
            loss = self._loss(self.plan.batch(batch), noise).mean()
            self.scaler.scale(loss / batches).backward()  # type: ignore[no-untyped-call]
            total += loss.item() / batches
        self.scaler.unscale_(self.optimizer)
        norm = torch.nn.utils.clip_grad_norm_(self.weights, self.params.max_grad_norm or math.inf)
        overflows = self.scaler.is_enabled() and math.isfinite(total)  # then the scaler passes the step over
        if not math.isfinite(total) or not (torch.isfinite(norm) or overflows):
            raise TrainingFailed(f"the loss is no number any more (NaN) at step {number}")
        rate = self.optimizer.param_groups[0]["lr"] * self.optimizer.param_groups[0].get("d", 1.0)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.rates.step()
        if self.average:
            self.average.step(self.weights)
        self.done = number
        return Step(number, total, float(rate))

    def validate(self, each: Callable[[], object] = lambda: None) -> float:
        """The loss on pictures held out, with the same noise each time; `each` is called before each of them.

        Raises TrainingFailed when it is no number.
        """
        losses = []
        levels = self.base.noise.config.num_train_timesteps
        with torch.no_grad(), self.resting():
            for number, example in enumerate(self.plan.validation()):
                each()
                for share in VALIDATED_AT:
                    noise = Generator("cpu").manual_seed(_seed(self.params.seed, "validation", number))
                    losses.append(self._loss([example], noise, torch.tensor([int(share * levels)])).item())
        found = sum(losses) / len(losses)
        if not math.isfinite(found):
            raise TrainingFailed(f"the loss on pictures held out is no number any more (NaN) at step {self.done}")
        return found

    def _loss(self, examples: list[Example], generator: Generator, levels: Tensor | None = None) -> Tensor:
        """Of each example, (B,): the squared error of the noise, or of the velocity, that the model reads from it."""
        base, params = self.base, self.params
        device, scheduler = base.device, base.noise
        clean = torch.stack([self.latents.of(example) for example in examples]).to(device)
        noise = torch.randn(clean.shape, generator=generator)
        if params.noise_offset:
            noise = noise + params.noise_offset * torch.randn(*clean.shape[:2], 1, 1, generator=generator)
        if levels is None:  # one in each part of the schedule: the loss is steadier than with all at random
            count = len(examples)
            spread = (torch.arange(count) + torch.rand(count, generator=generator)) / count
            levels = (spread * scheduler.config.num_train_timesteps).long()
        noise, levels = noise.to(device), levels.to(device)
        noisy = scheduler.add_noise(clean, noise, levels)
        with torch.autocast(device.type, base.dtype, enabled=base.dtype is not torch.float32):
            text = base.text([example.caption for example in examples], learning=self.reads)
            further = {"added_cond_kwargs": _sizes(text, examples)} if base.is_xl else {}
            read = base.unet(noisy.to(base.dtype), levels, text.states.to(base.dtype), **further).sample
        aim = scheduler.get_velocity(clean, noise, levels) if base.predicts_velocity else noise
        losses = (read.float() - aim).square().mean(dim=(1, 2, 3))
        if params.min_snr_gamma:
            ratio = compute_snr(scheduler, levels)
            losses = losses * ratio.clamp(max=params.min_snr_gamma) / (ratio + base.predicts_velocity)
        weight = torch.tensor([params.prior_weight if e.item.regular else 1.0 for e in examples], device=device)
        weighted: Tensor = losses * weight
        return weighted

    # --- what it has learnt, and what it needs to go on

    def learnt(self) -> dict[str, dict[str, Tensor]]:
        """The adapters' weights by peft's own keys, float32 on the CPU, of each part of the model that learns."""
        with self.resting():
            return {
                name: {key: value.detach().float().cpu().clone() for key, value in _adapter(module).items()}
                for name, module in self.learners.items()
            }

    def state(self) -> dict[str, Any]:
        """Plain data and tensors: nothing else is needed to go on just so."""
        return {
            "step": self.done,
            "weights": {name: dict(_adapter(module)) for name, module in self.learners.items()},
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "average": self.average.state_dict() if self.average else None,
        }

    def load(self, state: Mapping[str, Any]) -> None:
        """Go on from there, with the same parts of the model."""
        for name, module in self.learners.items():
            own = _adapter(module)
            for key, value in state["weights"][name].items():
                own[key].data.copy_(value)
        self.optimizer.load_state_dict(state["optimizer"])
        self.scaler.load_state_dict(state["scaler"])
        if self.average:
            self.average.load_state_dict(state["average"])
            self.average.to(self.base.device)
        self.done = self.rates.last_epoch = state["step"]
        self.rates.base_lrs = list(_rates(self.learners, self.params))  # they may have been changed meanwhile
        for group, rate, share in zip(
            self.optimizer.param_groups, self.rates.base_lrs, self.rates.lr_lambdas, strict=True
        ):
            group["initial_lr"], group["lr"] = rate, rate * share(self.done)

    def to(self, device: torch.device) -> None:
        """All of it, the very numbers, to the memory of another device; nothing is computed there."""
        for part in self.base.parts.values():
            if isinstance(part, torch.nn.Module):
                part.to(device)
        self.optimizer.load_state_dict(self.optimizer.state_dict())  # follows its weights
        if self.average:
            self.average.to(device)
        if device.type == "cpu":
            torch.cuda.empty_cache()

    @contextlib.contextmanager
    def resting(self) -> Iterator[None]:
        """With the weights that would be kept now: to draw by them, to save them."""
        modules = [module for module in self.learners.values() if module.training]
        if self.average:
            self.average.store(self.weights)
            self.average.copy_to(self.weights)
        for module in modules:
            module.eval()
        try:
            yield
        finally:
            for module in modules:
                module.train()
            if self.average:
                self.average.restore(self.weights)


def targets(unet: Any, modules: str) -> list[str]:
    """Names of the layers that learn, as kohya's trainer chooses them.

    In attention blocks every linear layer and 1x1 convolution; with convolutions, those of the residual blocks and of
    the changes of size too.
    """
    kinds: tuple[type, ...] = (Transformer2DModel,)
    if modules == "attention_convs":
        kinds = (Transformer2DModel, ResnetBlock2D, Downsample2D, Upsample2D)
    return sorted(
        {
            f"{outer}.{inner}"
            for outer, block in unet.named_modules()
            if isinstance(block, kinds)
            for inner, layer in block.named_modules()  # type: ignore[attr-defined]
            if isinstance(layer, torch.nn.Linear | torch.nn.Conv2d)
        }
    )


def add_adapters(base: Base, params: TrainParams) -> dict[str, Any]:
    """The parts that learn, by name, each with an adapter that does nothing yet."""

    def config(names: list[str]) -> LoraConfig:
        return LoraConfig(r=params.rank, lora_alpha=params.alpha, target_modules=names, lora_dropout=params.dropout)

    learners = {}
    if params.learning_rate:
        base.unet.add_adapter(config(targets(base.unet, params.modules)), adapter_name=ADAPTER)
        learners["unet"] = base.unet
    if params.text_encoder_lr:
        for name, encoder in base.text_encoders.items():
            encoder.add_adapter(config(list(TEXT_TARGETS)), adapter_name=ADAPTER)
            learners[name] = encoder
    for module in learners.values():
        for weight in module.parameters():
            if weight.requires_grad:
                weight.data = weight.data.float()  # half precision loses small steps
    return learners


def _groups(learners: Mapping[str, Any], params: TrainParams) -> list[dict[str, Any]]:
    weights = [[w for w in module.parameters() if w.requires_grad] for module in learners.values()]
    return [{"params": each, "lr": rate} for each, rate in zip(weights, _rates(learners, params), strict=True)]


def _rates(learners: Mapping[str, Any], params: TrainParams) -> Iterator[float]:
    return (params.learning_rate if name == "unet" else params.text_encoder_lr for name in learners)


def _optimizer(groups: list[dict[str, Any]], params: TrainParams) -> Any:
    decay = params.weight_decay
    match params.optimizer:
        case "AdamW":
            return torch.optim.AdamW(groups, weight_decay=decay)
        case "AdamW8bit":
            try:
                found = importlib.import_module("bitsandbytes.optim")  # not among what Atelier installs
            except ImportError:
                reason = "the 8-bit AdamW needs the package bitsandbytes; AdamW and Adafactor do without"
                raise InvalidRequest(Problem("optimizer", reason)) from None
            return found.AdamW8bit(groups, weight_decay=decay)
        case "Adafactor":
            from transformers.optimization import Adafactor

            fixed = {"scale_parameter": False, "relative_step": False, "warmup_init": False}
            return Adafactor(groups, lr=1e-3, weight_decay=decay, **fixed)  # each group has its own; polynomial asks
        case "Prodigy":
            from prodigyopt import Prodigy

            with contextlib.redirect_stdout(io.StringIO()):  # it prints that it was asked for weight decay
                return Prodigy(groups, weight_decay=decay, use_bias_correction=True, safeguard_warmup=True)


def _adapter(module: Any) -> dict[str, Tensor]:
    state: dict[str, Tensor] = get_peft_model_state_dict(module, adapter_name=ADAPTER)
    return state


def _sizes(text: Text, examples: list[Example]) -> dict[str, Tensor]:
    """What SDXL is told besides: summary, size of the original, place of the crop, size asked for."""
    rows = [(e.item.height, e.item.width, e.crop.top, e.crop.left, e.crop.height, e.crop.width) for e in examples]
    assert text.pooled is not None
    sizes = torch.tensor(rows, device=text.pooled.device, dtype=torch.float32)
    return {"text_embeds": text.pooled, "time_ids": sizes}


def _seed(seed: int, what: str, number: int) -> int:
    """A seed for one use, unlike those of its neighbours."""
    return int.from_bytes(hashlib.sha256(f"{seed}/{what}/{number}".encode()).digest()[:6], "big")
