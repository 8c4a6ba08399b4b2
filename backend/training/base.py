"""The model that a LoRA is trained for: its parts, what they make of pictures and captions, and how it draws."""

from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import diffusers
import torch
from diffusers import DDPMScheduler, DPMSolverMultistepScheduler
from PIL import Image
from torch import Tensor

from backend import catalog
from backend.catalog import Model
from backend.diffusion import encode, latents, masked, reading
from backend.diffusion.families import STABLE_DIFFUSION, STABLE_DIFFUSION_XL, Family
from backend.errors import AtelierError, InvalidRequest, Problem
from backend.request import ResizeMode
from backend.training.params import Sample

CHUNKS = 3
"""Of 75 tokens, that a caption may have; the rest is not read."""
TRAINED = (STABLE_DIFFUSION, STABLE_DIFFUSION_XL)
"""Families that a LoRA can be trained for."""
KEPT = 1 << 30
"""Bytes of encoded captions that are kept."""


@dataclass
class Base:
    """Its weights never change; only what is added to them learns."""

    model: Model
    family: Family
    parts: dict[str, Any]
    noise: Any
    """The schedule of the noise levels that it was trained with."""
    device: torch.device
    dtype: torch.dtype
    clip_skip: int = 1
    _texts: "OrderedDict[str, Text]" = field(default_factory=OrderedDict)

    @property
    def unet(self) -> Any:
        return self.parts["unet"]

    @property
    def vae(self) -> Any:
        return self.parts["vae"]

    @property
    def is_xl(self) -> bool:
        return bool(self.family.reading.pooled)

    @property
    def predicts_velocity(self) -> bool:
        return bool(self.noise.config.prediction_type == "v_prediction")

    @property
    def text_encoders(self) -> dict[str, Any]:
        return {name: self.parts[name] for name in self.family.reading.encoders}

    @property
    def layers_per_block(self) -> int:
        layers: int | list[int] = self.unet.config.layers_per_block
        return layers if isinstance(layers, int) else layers[0]

    @property
    def bucket_step(self) -> int:
        """Pixels that the sides of a picture are a multiple of, so that the UNet halves them without a rest."""
        return latents.factor(self.vae) * int(2 ** (len(self.unet.config.block_out_channels) - 1))

    @cached_property
    def fingerprint(self) -> str:
        return self.model.sha256 or catalog.fingerprint(self.model.path)

    @cached_property
    def vae_fingerprint(self) -> str:
        return catalog.fingerprint(self.model.path / "vae" if self.model.path.is_dir() else self.model.path)

    # --- pictures and captions as the UNet sees them

    def latents_of(self, picture: Image.Image) -> Tensor:
        """Scaled, (C, H/8, W/8), float32, on the CPU."""
        self.vae.to(self.device)
        with torch.inference_mode():
            found: Tensor = latents.encode(self.vae, picture, *picture.size, ResizeMode.JUST_RESIZE)[0]
        if not torch.isfinite(found).all():
            raise AtelierError("the VAE makes numbers that are none (NaN) of a picture; fp32 may help (precision)")
        return found.cpu().clone()  # a tensor made under inference_mode takes part in no gradient

    def text(self, captions: Sequence[str], learning: bool = False) -> "Text":
        """What the UNet is told of each, all of one length; kept, unless the text encoders learn."""
        if learning:
            return self._encoded(captions)
        found = [self._kept(caption) for caption in captions]
        length = max(text.states.shape[1] for text in found)
        if any(text.states.shape[1] < length for text in found):
            empty = self._kept("").states
            found = [text.filled(empty, length) for text in found]
        pooled = [text.pooled for text in found if text.pooled is not None]
        return Text(torch.cat([text.states for text in found]), torch.cat(pooled) if pooled else None).to(self.device)

    def _kept(self, caption: str) -> "Text":
        if caption not in self._texts:
            with torch.no_grad():
                self._texts[caption] = self._encoded([caption]).to(torch.device("cpu"))
        self._texts.move_to_end(caption)
        kept = self._texts[caption]
        while len(self._texts) * kept.states.nbytes > KEPT:
            self._texts.popitem(last=False)
        return kept

    def park(self, *names: str) -> None:
        """Out of the graphics card's memory, until they are used again."""
        for name in names:
            self.parts[name].to("cpu")
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def _encoded(self, captions: Sequence[str]) -> "Text":
        shown, pooled = [], None
        for name, tokenizer in self.family.reading.encoders.items():
            encoder = self.parts[name].to(self.device)
            rows = [self._rows(tokenizer, encoder, caption) for caption in captions]
            most = max(len(r) for r in rows)
            blank = encode.chunks(self.parts[tokenizer], "", encoder.config.max_position_embeddings)
            ids = torch.tensor([row for r in rows for row in r + blank * (most - len(r))], device=self.device)
            given = encoder(ids, output_hidden_states=True)
            states = self._shown(encoder, given)
            shown.append(states.reshape(len(captions), -1, states.shape[-1]))
            if self.family.reading.pooled and (found := given.get("text_embeds")) is not None:
                pooled = found[::most]  # of the first chunk
        return Text(torch.cat(shown, dim=-1), pooled)

    def _rows(self, tokenizer: str, encoder: Any, caption: str) -> list[list[int]]:
        return encode.chunks(self.parts[tokenizer], caption, encoder.config.max_position_embeddings)[:CHUNKS]

    def _shown(self, encoder: Any, given: Any) -> Tensor:
        if self.family.reading.layer:
            bare: Tensor = given.hidden_states[-self.family.reading.layer]
            return bare
        if self.clip_skip == 1:
            last: Tensor = given.last_hidden_state
            return last
        if self.clip_skip > len(given.hidden_states):
            count = len(given.hidden_states) - 1
            raise InvalidRequest(Problem("clip_skip", f"the text encoder of {self.model.name} has {count} layers"))
        inner = getattr(encoder, "text_model", encoder)
        skipped: Tensor = inner.final_layer_norm(given.hidden_states[-self.clip_skip])
        return skipped

    # --- pictures drawn by it as it stands

    def draw(self, sample: Sample, each: Callable[[], object] = lambda: None) -> Image.Image:
        """By DPM++ 2M, `each` called after every step.

        The same sample gives the same picture while nothing has been learnt.
        """

        def stepped(pipeline: Any, number: int, level: Any, given: dict[str, Any]) -> dict[str, Any]:
            each()
            return given

        with self._drawing() as pipeline, torch.inference_mode():
            told = {
                **self._told(sample.prompt, ""),
                **(self._told(sample.negative, "negative_") if sample.cfg != 1 else {}),
            }
            drawn: Tensor = pipeline(
                **told,
                width=sample.width,
                height=sample.height,
                num_inference_steps=sample.steps,
                guidance_scale=sample.cfg,
                generator=torch.Generator("cpu").manual_seed(sample.seed),
                output_type="latent",
                callback_on_step_end=stepped,
            ).images[0]
            return latents.decode(self.vae, drawn)

    def _told(self, text: str, prefix: str) -> dict[str, Tensor]:
        """One chunk of it, so that prompt and negative prompt are of one length."""
        read = self._encoded([text])
        states = read.states[:, : next(iter(self.text_encoders.values())).config.max_position_embeddings]
        told = {f"{prefix}prompt_embeds": states}
        if read.pooled is not None:
            told[f"{prefix}pooled_prompt_embeds"] = read.pooled
        if prefix and not text and self.family.reading.empty_negative_is_zero:
            return {name: torch.zeros_like(tensor) for name, tensor in told.items()}
        return told

    @contextmanager
    def _drawing(self) -> Iterator[Any]:
        modules = [part for part in self.parts.values() if isinstance(part, torch.nn.Module)]
        learning = [module for module in modules if module.training]
        kind = getattr(diffusers, self.family.pipelines[False, False])
        optional = {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
        scheduler = DPMSolverMultistepScheduler.from_config(self.noise.config)
        pipeline = kind(**self.parts, scheduler=scheduler, **({} if self.is_xl else optional))
        pipeline.set_progress_bar_config(disable=True)
        self.vae.to(self.device)
        for module in modules:
            module.eval()
        try:
            yield pipeline
        finally:
            for module in learning:
                module.train()


@dataclass(frozen=True)
class Text:
    """What the UNet is told."""

    states: Tensor
    """(B, 77 n, width)"""
    pooled: Tensor | None = None
    """(B, width of the projection), SDXL only."""

    def to(self, device: torch.device) -> "Text":
        return Text(self.states.to(device), None if self.pooled is None else self.pooled.to(device))

    def filled(self, empty: Tensor, length: int) -> "Text":
        """With as many empty chunks behind it."""
        lacking = (length - self.states.shape[1]) // empty.shape[1]
        return Text(torch.cat([self.states, *[empty] * lacking], dim=1), self.pooled)


def load(model: Model, device: torch.device, dtype: torch.dtype, clip_skip: int = 1) -> Base:
    """Raises ModelBroken, and InvalidRequest for a model that no LoRA can be trained for."""
    if model.problem:
        raise InvalidRequest(Problem("model", f"{model.name} cannot be used: {model.problem}"))
    family = reading.family_of(model)
    if family not in TRAINED:
        known = " ".join((catalog.FAMILIES.get(model.family, "transformer"), *filter(None, [model.variant])))
        message = f"{model.name} is a {known} model; LoRAs can be trained for Stable Diffusion 1.x, 2.x and SDXL"
        raise InvalidRequest(Problem("model", message))
    parts = reading.parts(model, family, reading.dtypes(model, family, dtype))
    reading.scheduler(model)  # says what is wrong with it
    if masked.inpaints(parts["unet"], parts["vae"]):
        raise InvalidRequest(
            Problem("model", f"{model.name} is an inpainting model; train on the one it was made from")
        )
    noise = DDPMScheduler.from_config(reading.schedule(model))
    if noise.config.prediction_type not in ("epsilon", "v_prediction"):
        what = noise.config.prediction_type
        raise InvalidRequest(
            Problem("model", f"{model.name} predicts {what}; epsilon and v_prediction can be trained")
        )
    for part in parts.values():
        if isinstance(part, torch.nn.Module):
            part.requires_grad_(False)
            part.to(device)
    return Base(model, family, parts, noise, device, dtype, clip_skip)
