"""What an extension sees while a batch is drawn."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from PIL import Image

from backend.images import ImageStore
from backend.prompt import Prompt, Tag
from backend.request import GenerationRequest, Task


@dataclass(frozen=True)
class Run:
    """One batch of a request."""

    request: GenerationRequest
    """As it came out of `prepare`; its seed is that of the whole request's first image."""
    task: Task
    """Image-to-image starts the text-to-image pipeline in mid-schedule: argument names are those of text-to-image."""
    pipeline: Any
    """The model's own pipeline. Patch its parts; what goes into its call is contributed."""
    images: ImageStore
    prompt: Prompt
    negative_prompt: Prompt
    indices: tuple[int, ...]
    """Which of the request's images these are."""
    seeds: tuple[int, ...]
    """One for each image of the batch."""
    generators: tuple[torch.Generator, ...]
    """One for each image of the batch, on the CPU; the sampler draws from them too."""
    device: torch.device
    generate: Callable[[GenerationRequest], list[Image.Image]] = field(repr=False)
    """A further pass with all the stages of that request's extensions: leave yourself out of it."""

    @property
    def tags(self) -> tuple[Tag, ...]:
        """The prompt's; those of the negative prompt are cut out and not heeded."""
        return self.prompt.tags


@dataclass
class Step:
    """A model call that is just done."""

    index: int
    """0 .. steps - 1"""
    steps: int
    """Model calls in all."""
    timestep: float
    """The model was called at."""
    sigma: float
    """Noise level of `latents`, which are picture + sigma * noise; 0 after the last step."""
    latents: torch.Tensor
    """(B, C, H/8, W/8), float32. Assign to change them."""
    denoised: torch.Tensor
    """The picture that the model saw in them; do not change."""
