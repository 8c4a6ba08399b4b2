"""What an extension sees while a batch is drawn."""

from collections.abc import Callable, Hashable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, TypeVar

import torch
from PIL import Image

from backend import families
from backend.diffusion import latents as vae_latents
from backend.diffusion import masked
from backend.images import ImageStore, flatten
from backend.prompt import Prompt, Tag
from backend.request import GenerationRequest, ResizeMode, Task

T = TypeVar("T")
M = TypeVar("M", bound=torch.nn.Module)


class Generate(Protocol):
    def __call__(
        self, request: GenerationRequest, *, start: torch.Tensor | None = None, finish: bool = True
    ) -> list[Image.Image]:
        """A further pass with all the stages of that request's extensions: leave yourself out of it.

        From `start`, latents of all its images, exactly as many steps are run as the request says.
        `finish=False` leaves that stage out, where the pictures come back to the same extensions anyway.
        """
        ...


class Once(Protocol):
    def __call__(self, key: Hashable, make: Callable[[], T]) -> T:
        """What `make()` gave the first time that this request asked for `key`: all its batches and stages share it."""
        ...


class Keep(Protocol):
    def __call__(
        self,
        path: Path,
        read: Callable[[Path], M],
        *,
        beside: Sequence[Path] = (),
        dtype: torch.dtype | None = None,
    ) -> M:
        """The module that `read(path)` gives, on the CPU, on the model's device and in its precision, or as `dtype`.

        It is read once, and again when the file or one of those `beside` has changed; it lies with the checkpoints
        under one budget of memory and may be let go once the job is over. Who changes it puts it back.
        """
        ...


@dataclass(frozen=True)
class Run:
    """One batch of a request."""

    request: GenerationRequest
    """As it came out of `prepare`; its seed is that of the whole request's first image."""
    task: Task
    """Image-to-image starts the text-to-image pipeline in mid-schedule: argument names are those of text-to-image."""
    pipeline: Any
    """The model's own pipeline. Patch its parts; what goes into its call is contributed."""
    denoiser: Any
    """The part of it that is called at every step: a UNet or a transformer."""
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
    family: str
    """Of the model: "sd1", "sd2", "sdxl", "sd3", "flux" ... (`backend.families`)."""
    variant: str
    """Of the model: "inpaint" or "edit", where it is shown an image beside the latents; empty: a plain one."""
    generate: Generate = field(repr=False)
    once: Once = field(repr=False)
    keep: Keep = field(repr=False)
    """`run.keep(path, read)`: a model beside the checkpoint."""
    further: bool = False
    """Whether this is a pass that an extension has asked for with `generate`."""
    latents: torch.Tensor | None = field(default=None, repr=False)
    """In the stage `finish`: what the pictures were decoded from, (B, C, H/8, W/8), as the VAE scales them."""

    @property
    def step_of_size(self) -> int:
        """Width and height of what the model draws are multiples of it."""
        return families.traits(self.family).step

    @property
    def batch(self) -> GenerationRequest:
        """The request for the images of this batch and no others: what a further pass is made from."""
        return self.request.alone(self.indices[0], len(self.indices))

    def encode(self, picture: Image.Image) -> torch.Tensor:
        """The latents of a picture with sides of `step_of_size` times n, (1, C, H/8, W/8), as the VAE scales them."""
        with torch.inference_mode():
            return vae_latents.encode(self.pipeline.vae, picture, *picture.size, ResizeMode.JUST_RESIZE)

    def beside(self, picture: Image.Image, mask: Image.Image) -> torch.Tensor | None:
        """What a model that inpaints is shown of a picture and a mask, L, of that size; None: it is none."""
        if not masked.inpaints(self.denoiser, self.pipeline.vae):
            return None
        with torch.inference_mode():
            return masked.beside(self.denoiser, self.pipeline.vae, picture, mask)

    def showing(self, beside: torch.Tensor | None) -> AbstractContextManager[None]:
        """While it lasts, the model is shown what `beside` gave."""
        return nullcontext() if beside is None else masked.showing(self.denoiser, beside)

    def resized(self, picture: Image.Image) -> Image.Image:
        """A picture at the size asked for, RGB, as the request's resize mode brings it there."""
        mode = self.request.resize_mode
        plain = ResizeMode.JUST_RESIZE if mode is ResizeMode.LATENT_UPSCALE else mode
        return vae_latents.resize(flatten(picture), self.request.width, self.request.height, plain)

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
