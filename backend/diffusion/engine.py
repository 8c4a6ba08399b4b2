"""Request -> one ordinary pipeline call per batch -> pictures; the only loop over extensions."""

import inspect
import io
from collections import deque
from collections.abc import Callable, Collection, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from functools import cached_property, partial
from typing import Any, NamedTuple

import diffusers
import torch
import transformers
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from backend import infotext, prompt, sampling
from backend.catalog import Catalog
from backend.diffusion import latents as vae_latents
from backend.diffusion import noise
from backend.diffusion.models import Attention, Loaded, ModelStore, best_device
from backend.diffusion.preview import Previews
from backend.diffusion.run import Run, Step
from backend.errors import AtelierError, Conflict, ExtensionFailed
from backend.extension import Contribution, Extension
from backend.images import ImageStore
from backend.params import Params
from backend.registry import Registry
from backend.request import GenerationRequest, Task
from backend.result import BatchSkipped, JobCancelled, Picture, Progress, Report, Result, Stage

PNG_LEVEL = 4
Active = tuple[Extension, Params]
Tell = Callable[..., None]
"""A Report of stage, step, steps and preview: where in the job they belong is filled in."""


class Engine:
    """One device, one job at a time."""

    def __init__(
        self, catalog: Catalog, registry: Registry, device: str | None = None, *, attention: Attention = "sdpa"
    ) -> None:
        self.catalog = catalog
        self.registry = registry
        self.device = torch.device(device) if device else best_device()
        self.store = ModelStore(self.device, attention=attention)
        self.pool = ThreadPoolExecutor(2, "pictures")
        diffusers.utils.logging.disable_progress_bar()
        transformers.utils.logging.disable_progress_bar()

    def generate(
        self, request: GenerationRequest, images: ImageStore, report: Report, done: Collection[int] = frozenset()
    ) -> Result:
        """Draw what `request` asks for; each picture goes out in a Progress as soon as it is encoded.

        Batches whose pictures are all in `done` are left out. Whatever is raised, what is finished goes out, and
        nothing stays behind in the model.
        """
        delivery = _Delivery(self.pool, report, done)
        try:
            job = _Pass(self, request.with_seed_drawn(), images)
            for number in range(job.request.n_iter):
                if not delivery.finished.issuperset(job.indices(number)):
                    with suppress(BatchSkipped):
                        drawn = job.draw(number, partial(delivery.tell, number, job.request.n_iter))
                        delivery.put(job, number, drawn)
        except BaseException:
            delivery.flush(BatchSkipped, JobCancelled)
            raise
        delivery.flush(BatchSkipped)
        return Result(job.request, tuple(sorted(delivery.finished)))

    def close(self) -> None:
        self.store.free()
        self.pool.shutdown()


class Drawn(NamedTuple):
    """A finished batch."""

    pictures: list[Image.Image]
    fingerprint: "Future[str]"
    """The model's."""
    notes: Mapping[str, str]


class _Pass:
    """One request on its way through the stages."""

    def __init__(self, engine: Engine, request: GenerationRequest, images: ImageStore) -> None:
        self._engine = engine
        self._images = images
        request = self._prepared(request)
        self._model = engine.catalog.find(request.model)
        self.request = request.model_copy(update={"model": self._model.name})
        self._prompts = prompt.parse(request.prompt), prompt.parse(request.negative_prompt)
        called = ((e, _called(e, request)) for e in engine.registry.extensions)
        self._active = [(e, params) for e, params in called if params is not None]
        self._task = max([request.task, *(e.task for e, _ in self._active)])
        self._drawing = False
        self._image: torch.Tensor | None = None

    def indices(self, number: int) -> tuple[int, ...]:
        """Which of the request's images are in the batch `number`."""
        size = self.request.batch_size
        return tuple(range(number * size, (number + 1) * size))

    def draw(self, number: int, tell: Tell) -> Drawn:
        """The batch `number`, through all stages from `patch` on."""
        if not self._engine.store.is_loaded(self._model):
            tell("loading")
        loaded = self._engine.store.load(self._model)
        run = self._run(number, loaded, tell)
        scheduler = run.pipeline.scheduler
        self._drawing = True
        try:
            with ExitStack() as patches, _memory_named(self.request):
                for extension, params in self._active:
                    patches.enter_context(self._patched(extension, run, params))
                with torch.inference_mode():
                    tell("encoding")
                    previews = Previews(loaded.colours, self._engine.pool)
                    core = _Core(self, loaded, _AfterStep(run, self._active, previews, tell))
                    given = self._contributions(run, core)
                    pipeline = loaded.pipeline_for(self._task, _merged(given, "components"))
                    _check_taken(given, pipeline)
                    steps = len(scheduler.timesteps)
                    tell("sampling", 0, steps)
                    latents = pipeline(**_merged(given, "arguments"))[0]
                    pictures = []
                    for picture in latents:
                        tell("decoding", steps, steps, previews.take())
                        pictures.append(vae_latents.decode(pipeline.vae, picture))
        finally:
            self._drawing = False
            scheduler.rest()
        return Drawn(self._finished(run, pictures), loaded.fingerprint, _merged(given, "notes"))

    def _prepared(self, request: GenerationRequest) -> GenerationRequest:
        for extension in self._engine.registry.extensions:
            params = _called(extension, request)
            if params is not None:
                with _blamed(extension):
                    request = extension.prepare(request, params, self._images)
        return request

    def _run(self, number: int, loaded: Loaded, tell: Tell) -> Run:
        seeds = tuple(noise.seed_of(self.request.seed, i) for i in self.indices(number))
        return Run(
            request=self.request,
            task=self._task,
            pipeline=loaded.pipeline,
            images=self._images,
            prompt=self._prompts[0],
            negative_prompt=self._prompts[1],
            indices=self.indices(number),
            seeds=seeds,
            generators=tuple(noise.generators(seeds)),
            device=self._engine.device,
            generate=partial(self._generate, tell),
        )

    def _generate(self, tell: Tell, request: GenerationRequest) -> list[Image.Image]:
        if self._drawing:
            raise RuntimeError("run.generate is for the stage `finish`; before that the model is in use")
        further = _Pass(self._engine, request.with_seed_drawn(), self._images)
        return [picture for number in range(request.n_iter) for picture in further.draw(number, tell).pictures]

    @contextmanager
    def _patched(self, extension: Extension, run: Run, params: Params) -> Iterator[None]:
        """Inside the extension's patch; it hears what is raised in there, but cannot hold it back."""
        with self._unpatched_on_failure(), _blamed(extension):
            patch = extension.patch(run, params)
            patch.__enter__()
        try:
            yield
        except BaseException as error:
            with self._unpatched_on_failure(), _blamed(extension):
                patch.__exit__(type(error), error, error.__traceback__)
            raise
        with self._unpatched_on_failure(), _blamed(extension):
            patch.__exit__(None, None, None)

    @contextmanager
    def _unpatched_on_failure(self) -> Iterator[None]:
        try:
            yield
        except Exception:
            self._engine.store.free(self._model.name)  # half patched: the next job reads it anew
            raise

    def _contributions(self, run: Run, core: Extension) -> list[tuple[Extension, Contribution]]:
        """What everybody adds to the pipeline call, the core first."""
        given: list[tuple[Extension, Contribution]] = [(core, core.contribute(run, Params()))]
        for extension, params in self._active:
            with _blamed(extension):
                given.append((extension, extension.contribute(run, params)))
        return given

    def _finished(self, run: Run, pictures: list[Image.Image]) -> list[Image.Image]:
        for extension, params in self._active:
            with _blamed(extension):
                finished = extension.finish(run, params, pictures)
                if len(finished) != len(pictures):
                    raise ValueError(f"it made {len(finished)} pictures out of {len(pictures)}")
                pictures = finished
        return pictures

    @cached_property
    def variant(self) -> str:
        """What tells apart the text encoder as this request's patches leave it."""
        patches = [(e.id, params) for e, params in self._active if type(e).patch is not Extension.patch]
        return repr((patches, self._prompts[0].tags)) if patches else ""

    def image(self, vae: Any) -> torch.Tensor:
        """The latents of the image to start from, (1, C, H/8, W/8); the same for all batches."""
        if self._image is None:
            request = self.request
            assert request.init_image
            picture = self._images.get(request.init_image)
            self._image = vae_latents.encode(vae, picture, request.width, request.height, request.resize_mode)
        return self._image


class _Core(Extension):
    """What the request's own parameters add to the call: a contribution like everybody's."""

    id, title = "core", "Atelier"

    def __init__(self, job: _Pass, loaded: Loaded, after_step: "_AfterStep") -> None:
        self._job = job
        self._embeddings = loaded.embeddings
        self._after_step = after_step

    def contribute(self, run: Run, params: Params) -> Contribution:
        request, pictures = run.request, len(run.seeds)
        prompts = [run.prompt, run.negative_prompt] if request.cfg_scale != 1 else [run.prompt]
        embedded = [
            e.expand(pictures, -1, -1)
            for e in self._embeddings.of(run.pipeline, prompts, request.clip_skip, self._job.variant)
        ]
        arguments: dict[str, Any] = {
            "prompt_embeds": embedded[0],
            "negative_prompt_embeds": embedded[1] if len(embedded) > 1 else None,
            "guidance_scale": request.cfg_scale,
            "num_inference_steps": request.steps,
            "width": request.width,
            "height": request.height,
            "latents": self._latents(run),
            "generator": list(run.generators),
            "output_type": "latent",
            "return_dict": False,
            "callback_on_step_end": self._after_step,
        }
        if run.task is Task.INPAINT:
            arguments["strength"] = 1.0  # where to start is in the scheduler's plan
        return Contribution(arguments=arguments)

    def _latents(self, run: Run) -> torch.Tensor:
        """What the denoising starts from, before the pipeline multiplies it by the first sigma."""
        request, pipeline, scheduler = run.request, run.pipeline, run.pipeline.scheduler
        schedule = sampling.schedule_of(request.sampler_name, request.scheduler)
        scheduler.plan(request.sampler_name, schedule, steps_from_image(request) if request.init_image else None)
        scheduler.set_timesteps(request.steps, run.device)
        factor = vae_latents.factor(pipeline.vae)
        shape = len(run.seeds), pipeline.vae.config.latent_channels, request.height // factor, request.width // factor
        start = noise.draw(list(run.generators), shape, run.device)
        if request.init_image:
            start = start + self._job.image(pipeline.vae) / scheduler.init_noise_sigma
        return start


def steps_from_image(request: GenerationRequest) -> int:
    """How many of its steps image-to-image runs, by A1111's count."""
    return int(min(request.denoising_strength, 0.999) * request.steps) + 1


class _AfterStep:
    """diffusers' `callback_on_step_end`: the extensions' turn, then the report."""

    def __init__(self, run: Run, active: list[Active], previews: Previews, tell: Tell) -> None:
        self._run = run
        self._active = [(e, params) for e, params in active if type(e).step is not Extension.step]
        self._previews = previews
        self._tell = tell

    def __call__(self, pipeline: Any, index: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        scheduler = pipeline.scheduler
        steps = len(scheduler.times)
        if self._active:
            step = Step(index, steps, scheduler.times[index], scheduler.sigma, tensors["latents"], scheduler.denoised)
            for extension, params in self._active:
                with _blamed(extension):
                    extension.step(self._run, params, step)
            tensors["latents"] = step.latents
        preview = self._previews.offer(scheduler.denoised, last=index + 1 == steps)
        self._tell("sampling", index + 1, steps, preview)
        return tensors


class _Delivery:
    """Encodes finished pictures beside the denoising and reports them from its thread, in order."""

    def __init__(self, pool: ThreadPoolExecutor, report: Report, done: Collection[int]) -> None:
        self.finished = set(done)
        self._pool = pool
        self._report = report
        self._pending: deque[tuple[int, int, Future[Picture]]] = deque()

    def tell(
        self, batch: int, batches: int, stage: Stage, step: int = 0, steps: int = 0, preview: bytes | None = None
    ) -> None:
        while self._pending and self._pending[0][2].done():
            self._hand_over()
        self._report(Progress(stage, step, steps, batch, batches, preview))

    def put(self, job: _Pass, number: int, drawn: Drawn) -> None:
        for index, picture in zip(job.indices(number), drawn.pictures, strict=True):
            if index in self.finished:
                continue
            alone = {"seed": noise.seed_of(job.request.seed, index), "batch_size": 1, "n_iter": 1}
            request = job.request.model_copy(update=alone)
            encoding = self._pool.submit(_encode, index, picture, request, drawn.fingerprint, drawn.notes)
            self._pending.append((number + 1, job.request.n_iter, encoding))

    def flush(self, *ignored: type[Exception]) -> None:
        """Hand over all that is finished, though the report raise one of `ignored`."""
        while self._pending:
            with suppress(*ignored):
                self._hand_over()

    def _hand_over(self) -> None:
        batch, batches, encoding = self._pending.popleft()
        picture = encoding.result()
        self.finished.add(picture.index)
        self._report(Progress("saving", batch=batch, batches=batches, picture=picture))


def _encode(
    index: int, picture: Image.Image, request: GenerationRequest, fingerprint: "Future[str]", notes: Mapping[str, str]
) -> Picture:
    sha256 = fingerprint.result()
    text = infotext.write(request, sha256, notes)
    chunks = PngInfo()
    chunks.add_text("parameters", text)
    file = io.BytesIO()
    picture.save(file, "PNG", compress_level=PNG_LEVEL, pnginfo=chunks)
    return Picture(index, file.getvalue(), request, text, picture.width, picture.height, {request.model: sha256})


# --- extensions


def _called(extension: Extension, request: GenerationRequest) -> Params | None:
    """Its parameters if the request wants it; a tag alone calls it with its defaults."""
    if extension.id in request.extensions:
        return request.extensions[extension.id]
    tag = extension.prompt_tag
    if tag and any(tag == kind for kind, _ in prompt.parse(request.prompt).tags):
        with _blamed(extension):
            return extension.Params()
    return None


@contextmanager
def _blamed(extension: Extension) -> Iterator[None]:
    """What goes wrong inside is the extension's doing; what already has a message for people keeps it."""
    try:
        yield
    except (AtelierError, JobCancelled, BatchSkipped, MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        raise ExtensionFailed(f"{extension.title}: {str(error) or type(error).__name__}") from error


def _merged(given: list[tuple[Extension, Contribution]], kind: str) -> dict[str, Any]:
    """The `kind` of all contributions; a name that two of them give is a Conflict."""
    givers: dict[str, Extension] = {}
    for extension, contribution in given:
        for name in getattr(contribution, kind):
            first = givers.setdefault(name, extension)
            if first is not extension:
                raise Conflict(f"{first.title} and {extension.title} cannot be used together: both set {name}")
    return {name: value for _, contribution in given for name, value in getattr(contribution, kind).items()}


def _check_taken(given: list[tuple[Extension, Contribution]], pipeline: Any) -> None:
    """A pipeline swallows names that it does not know; here they are an error."""
    arguments, components = set(inspect.signature(pipeline.__call__).parameters), set(pipeline.components)
    for extension, contribution in given:
        unknown = contribution.arguments.keys() - arguments | contribution.components.keys() - components
        if unknown:
            names = ", ".join(sorted(unknown))
            raise ExtensionFailed(f"{extension.title}: {type(pipeline).__name__} takes no {names}")


@contextmanager
def _memory_named(request: GenerationRequest) -> Iterator[None]:
    """Say in people's words that the memory ran out."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:  # torch.OutOfMemoryError is a RuntimeError
        exhausted = isinstance(error, MemoryError | torch.OutOfMemoryError) or "DefaultCPUAllocator" in str(error)
        if not exhausted:
            raise
        size = f"{request.batch_size} x {request.width} x {request.height} pixels"
        raise AtelierError(f"there is not enough memory for {size}; try a smaller size or batch") from None
