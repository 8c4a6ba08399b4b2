"""Request -> one ordinary pipeline call per batch -> pictures; the only loop over extensions."""

import inspect
import logging
from collections.abc import Callable, Collection, Hashable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeVar

import diffusers
import torch
import transformers
from PIL import Image

from backend import families, prompt, sampling, tiny_decoders
from backend.catalog import Catalog, Model, companions
from backend.diffusion import codecs, memory, noise, placement, preview, tiny
from backend.diffusion import latents as vae_latents
from backend.diffusion.delivery import Delivery, Drawn, Meter, Tell, together
from backend.diffusion.families import Family
from backend.diffusion.models import Loaded, ModelStore, best_device
from backend.diffusion.preview import Previews
from backend.diffusion.run import Run, Step
from backend.diffusion.thrift import Thrift, exhausted
from backend.errors import AtelierError, Conflict, ExtensionFailed, InvalidRequest, Problem, blamed
from backend.extension import Contribution, Extension
from backend.hardware import Hardware
from backend.images import ImageStore
from backend.params import Params
from backend.prompt import Prompt
from backend.registry import Registry, called
from backend.request import GenerationRequest, Task
from backend.result import BatchSkipped, JobCancelled, Report, Result

log = logging.getLogger(__name__)

FLOWS = "Uniform"
"""What the schedule "Automatic" means for a rectified flow, whatever the sampler: its own shift does the rest."""
Active = tuple[Extension, Params]
T = TypeVar("T")


class Engine:
    """One device, one job at a time."""

    def __init__(
        self, catalog: Catalog, registry: Registry, device: str | None = None, hardware: Hardware | None = None
    ) -> None:
        self.catalog = catalog
        self.registry = registry
        self.device = torch.device(device) if device else best_device()
        self.hardware = hardware or Hardware()
        self.store = ModelStore(self.device, hardware=self.hardware, digest=catalog.fingerprint)
        for extension in registry.extensions:
            extension.keep = self.store.keep
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
        thrift = Thrift(self.store)
        delivery = Delivery(self.pool, report, done, thrift.notices)
        try:
            job = self._begun(request.with_seed_drawn(), images, thrift)
            for number, batch in enumerate(job.batches):
                if not delivery.finished.issuperset(batch.indices):
                    tell = partial(delivery.tell, number, len(job.batches), job.request.region)
                    with suppress(BatchSkipped):
                        drawn = job.draw(batch, Meter(tell))
                        delivery.put(job.request, number, len(job.batches), drawn)
        except BaseException:
            delivery.flush(BatchSkipped, JobCancelled)
            raise
        delivery.flush(BatchSkipped)
        return Result(job.request, tuple(sorted(i for i in delivery.finished if i < job.request.images)))

    def close(self) -> None:
        self.store.free()
        self.pool.shutdown()

    def _begun(self, request: GenerationRequest, images: ImageStore, thrift: Thrift) -> "_Pass":
        while True:
            try:
                return _Pass(self, request, images, thrift)
            except Exception as error:
                if not memory.is_exhausted(error):
                    raise
            # out here, where the error no longer holds what the attempt has made
            if not thrift.lower("preparing", request):
                raise exhausted(request)


class _Batch(NamedTuple):
    """Images that are drawn at once: they share their prompts."""

    indices: tuple[int, ...]
    prompt: Prompt
    negative_prompt: Prompt
    active: list[Active]
    task: Task

    @property
    def variant(self) -> str:
        """What tells apart the text encoder as this batch's patches leave it."""
        patches = [(e.id, params) for e, params in self.active if type(e).patch is not Extension.patch]
        return repr((patches, self.prompt.tags)) if patches else ""

    def divided(self) -> "list[_Batch]":
        """The same images one by one."""
        return [self._replace(indices=(index,)) for index in self.indices]


class _Pass:
    """One request on its way through the stages; from `start`, if it is a further one that has it."""

    def __init__(
        self,
        engine: Engine,
        request: GenerationRequest,
        images: ImageStore,
        thrift: Thrift,
        start: torch.Tensor | None = None,
        finishes: bool = True,
        further: bool = False,
    ) -> None:
        self._engine = engine
        self._thrift = thrift
        self._further = further
        self._images = images
        self.start = start
        self._finishes = finishes
        self._image: torch.Tensor | None = None
        self._made: dict[Hashable, Any] = {}
        request = self._prepared(request)
        catalog = engine.catalog
        self._model = companions.complete(engine.store.told(catalog.find(request.model)), catalog.files)
        self._vae = companions.vae_of(self._model, request.vae, catalog)
        self.request = _fitted(request, self._model)
        if self._vae:
            self.request = self.request.model_copy(update={"vae": self._vae.name})
        self.batches = [self._batch(indices) for indices in _drawn_at_once(self.request)]
        self._drawing = False
        self._tiny = tiny_decoders.find(engine.catalog.roots, self._model.family)

    def draw(self, batch: _Batch, tell: Meter) -> Drawn:
        """A batch, through all stages from `patch` on; again, with less memory, where there was not enough."""
        waiting, drawn = [batch], list[Drawn]()
        while waiting:
            if self._thrift.splits:
                waiting[:1] = waiting[0].divided()
            done = self._attempt(waiting[0], tell)
            if done is not None:
                drawn.append(done)
                del waiting[0]
                continue
            self._made.clear()
            if not self._thrift.lower(tell.stage, self.request, self._model, whole=not self._further):
                raise MemoryError if self._further else exhausted(self.request)
        return together(drawn)

    def _attempt(self, batch: _Batch, tell: Meter) -> Drawn | None:
        """None if there was not enough memory."""
        try:
            return self._draw(batch, tell)
        except Exception as error:
            if not memory.is_exhausted(error):
                raise
        return None

    def _draw(self, batch: _Batch, tell: Meter) -> Drawn:
        if not self._engine.store.is_loaded(self._model):
            tell("loading")
        loaded = self._engine.store.load(self._model, self._vae)
        run = self._run(batch, loaded, tell)
        scheduler = run.pipeline.scheduler
        self._drawing = True
        try:
            vae_dtype = run.pipeline.vae.dtype
            tile = self._thrift.tile(run.pipeline.vae, self.request, self._engine.device)
            with ExitStack() as patches, placement.tiled(run.pipeline.vae, tile):
                for extension, params in batch.active:
                    patches.enter_context(self._patched(extension, run, params))
                with torch.inference_mode():
                    tell("encoding")
                    previews = Previews(self._shown(loaded), self._engine.pool)
                    patches.enter_context(scheduler.watched(_AfterStep(run, batch.active, previews, tell)))
                    core = _Core(self, batch, loaded)
                    given = _contributions(run, core, batch.active)
                    pipeline = loaded.pipeline_for(batch.task, _merged(given, "components"))
                    _check_taken(given, pipeline)
                    steps = len(scheduler.timesteps)
                    tell.expect(steps, sum(c.further_steps for _, c in given) if self._finishes else 0)
                    tell("sampling", 0, steps)
                    arguments = _merged(given, "arguments")
                    if self.is_from_image:
                        image = self.image(run, _latents(given, "start"))
                        arguments["latents"] = arguments["latents"] + image / scheduler.init_noise_sigma
                    if loaded.family.shown:
                        arguments["image"] = self.shown(run, loaded.family, _latents(given, "shown"))
                    arguments["latents"] = scheduler.begin(arguments["latents"], run.generators)
                    latents = scheduler.latents_of(pipeline(**arguments)[0])
                    self._engine.store.rest(self._model)  # only its own pipeline has done so itself
                    vae_latents.check(latents, loaded.dtype)
                    decode = self._decoder(pipeline.vae)
                    pictures = []
                    for picture in latents:
                        tell("decoding", steps, steps, previews.take())
                        pictures.append(decode(picture))
        finally:
            self._drawing = False
            scheduler.rest()
            self._engine.store.rest(self._model)
        tell.passed(steps)
        if self._finishes:
            pictures = _finished(replace(run, latents=latents), batch.active, pictures)
        fingerprint = self._engine.store.fingerprint
        vae = fingerprint(self._vae.path) if self._vae else None
        models = {self.request.model: loaded.fingerprint}
        models |= {name: fingerprint(path) for name, path in _merged(given, "models").items()}
        if self.request.decoder == "tiny" and self._tiny:
            models[self._tiny.stem] = fingerprint(self._tiny)
        if self._vae and vae:
            models.setdefault(self._vae.name, vae)
        maps = [picture for _, contribution in given for picture in contribution.maps]
        notes = {**_merged(given, "notes"), **loaded.notes, **self._thrift.told(loaded, tile, vae_dtype)}
        return Drawn(batch.indices, pictures, models, vae, notes, maps)

    def _decoder(self, vae: Any) -> Callable[[torch.Tensor], Image.Image]:
        """From one picture's latents to the picture, by the VAE or by what takes its place."""
        if self.request.decoder == "full":
            return partial(vae_latents.decode, vae)
        if self._tiny is None:
            raise InvalidRequest(Problem("decoder", tiny_decoders.missing(self._model.family)))
        return self._by_tiny(self._tiny)

    def _shown(self, loaded: Loaded) -> Callable[[torch.Tensor], Image.Image]:
        """From one picture's latents to what a preview shows; the plain way where memory was short."""
        wanted = self._engine.hardware.previews
        suits = wanted == "tiny" or (wanted == "auto" and self._engine.device.type != "cpu")
        if self._tiny is None or not suits or self._thrift.notices:
            return partial(preview.linear, loaded.colours)
        return self._by_tiny(self._tiny)

    def _by_tiny(self, path: Path) -> Callable[[torch.Tensor], Image.Image]:
        with torch.inference_mode(False):  # it outlives this batch
            return partial(tiny.decode, self._engine.store.keep(path, tiny.read))

    def _prepared(self, request: GenerationRequest) -> GenerationRequest:
        """As the extensions rewrite it, each once; those too that another one has called."""
        registry = self._engine.registry
        waiting = list(registry.extensions)
        while True:
            request = request.checked(registry.params)
            texts = request.prompt, *request.prompts
            active = ((e, _called(e, request, texts)) for e in waiting)
            extension, params = next(((e, params) for e, params in active if params is not None), (None, None))
            if extension is None:
                return request
            waiting.remove(extension)
            with _blamed(extension):
                extension.check(request, params, self._images)
                request = extension.prepare(request, params, self._images)

    def _batch(self, indices: tuple[int, ...]) -> _Batch:
        request = self.request
        texts = request.prompts_of(indices[0])
        extensions = self._engine.registry.extensions
        active = [(e, given) for e in extensions if (given := _called(e, request, texts[:1])) is not None]
        own = request.task if self.start is None else max(request.task, Task.IMAGE_TO_IMAGE)
        task = max([own, *(e.task for e, _ in active)])
        return _Batch(indices, prompt.parse(texts[0]), prompt.parse(texts[1]), active, task)

    def _run(self, batch: _Batch, loaded: Loaded, tell: Meter) -> Run:
        seeds = self.request.seeds[batch.indices[0] : batch.indices[-1] + 1]
        return Run(
            request=self.request,
            task=batch.task,
            pipeline=loaded.pipeline,
            denoiser=loaded.denoiser,
            images=self._images,
            prompt=batch.prompt,
            negative_prompt=batch.negative_prompt,
            indices=batch.indices,
            seeds=seeds,
            generators=tuple(noise.generators(seeds)),
            device=self._engine.device,
            family=self._model.family,
            variant=self._model.variant,
            generate=partial(self._generate, tell),
            once=self._once,
            keep=self._engine.store.keep,
            further=self._further,
        )

    def _generate(
        self, tell: Meter, request: GenerationRequest, *, start: torch.Tensor | None = None, finish: bool = True
    ) -> list[Image.Image]:
        if self._drawing:
            raise RuntimeError("run.generate is for the stage `finish`; before that the model is in use")
        again = request.with_seed_drawn()
        further = _Pass(self._engine, again, self._images, self._thrift, start, finish, further=True)
        if start is not None and len(start) != further.request.images:
            raise ValueError(f"there are {len(start)} images to start from, for {further.request.images}")
        return [picture for batch in further.batches for picture in further.draw(batch, tell).pictures]

    def _once(self, key: Hashable, make: Callable[[], T]) -> T:
        if key not in self._made:
            self._made[key] = make()
        made: T = self._made[key]
        return made

    @contextmanager
    def _patched(self, extension: Extension, run: Run, params: Params) -> Iterator[None]:
        """Inside the extension's patch; it hears what is raised in there, but cannot hold it back."""
        with _blamed(extension):
            patch = extension.patch(run, params)  # what refuses here has changed nothing
        with self._unpatched_on_failure(), _blamed(extension):
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

    @property
    def is_from_image(self) -> bool:
        return self.start is not None or self.request.init_image is not None

    def image(self, run: Run, contributed: torch.Tensor | None) -> torch.Tensor:
        """The latents that the images of `run` start from, (1 or B, C, H/8, W/8)."""
        if self.start is not None:
            return self.start[list(run.indices)]
        return self._encoded(run) if contributed is None else contributed

    def shown(self, run: Run, family: Family, contributed: torch.Tensor | None) -> torch.Tensor:
        """What a model that edits is shown: latents as its pipeline takes them, for each image of `run`."""
        latents = self._encoded(run) if contributed is None else contributed
        vae = run.pipeline.vae
        latents = codecs.of(vae).raw(vae, latents) if family.shown == "raw" else latents
        return latents.expand(len(run.seeds), *latents.shape[1:])

    def _encoded(self, run: Run) -> torch.Tensor:
        request = self.request
        if self._image is None:
            assert request.init_image
            picture = self._images.get(request.init_image)
            size = request.width, request.height
            self._image = vae_latents.encode(run.pipeline.vae, picture, *size, request.resize_mode)
        return self._image


def _fitted(request: GenerationRequest, model: Model) -> GenerationRequest:
    """At the nearest size that the model can draw: extensions do not know it when they choose one."""
    width, height = (families.nearest(model.family, side) for side in (request.width, request.height))
    return request.model_copy(update={"model": model.name, "width": width, "height": height})


class _Core(Extension):
    """What the request's own parameters add to the call: a contribution like everybody's."""

    id, title = "core", "Atelier"

    def __init__(self, job: _Pass, batch: _Batch, loaded: Loaded) -> None:
        self._job = job
        self._batch = batch
        self._embeddings = loaded.embeddings
        self._family = loaded.family

    def contribute(self, run: Run, params: Params) -> Contribution:
        request = run.request
        arguments: dict[str, Any] = {
            **self._embedded(run),
            **self._family.constants,
            "num_inference_steps": self._plan(run)[0],
            **self._family.of_size(request.width, request.height),
            "latents": self._noise(run),
            "generator": list(run.generators),
            "output_type": "latent",
            "return_dict": False,
        }
        if self._family.shown and not request.init_image:
            raise InvalidRequest(families.NO_IMAGE)
        if self._family.guidance:
            arguments[self._family.guidance] = request.cfg_scale - (1 - self._family.unguided)
        elif request.cfg_scale != 1:
            raise InvalidRequest(families.NO_GUIDANCE)
        if self._family.image_guidance:
            arguments[self._family.image_guidance] = request.image_cfg_scale
        if self._family.distilled:
            arguments[self._family.distilled] = request.distilled_cfg_scale
        if run.task is Task.INPAINT:
            arguments["strength"] = 1.0  # where to start is in the scheduler's plan
        return Contribution(arguments=arguments)

    def _embedded(self, run: Run) -> dict[str, torch.Tensor]:
        """What the model is told of the prompts; of SDXL's sizes the pipeline tells it: whole, not cropped."""
        images, more = len(run.seeds), (run.request.clip_skip, self._batch.variant)
        by_image = self._family.image_guidance and run.request.image_cfg_scale != 1
        if run.request.cfg_scale == 1 and not by_image:
            return self._embeddings.alone(run.pipeline, run.prompt.text, *more).arguments(images)
        prompt, negative = self._embeddings.of(run.pipeline, run.prompt.text, run.negative_prompt.text, *more)
        return prompt.arguments(images) | negative.arguments(images, "negative_")

    def _noise(self, run: Run) -> torch.Tensor:
        """What the denoising starts from, where there is no image; the pipeline multiplies it by the first sigma."""
        request, pipeline, scheduler = run.request, run.pipeline, run.pipeline.scheduler
        schedule = sampling.schedule_of(request.sampler_name, request.scheduler, FLOWS if self._family.flow else "")
        steps, last = self._plan(run)
        tokens = request.width * request.height // run.step_of_size**2
        scheduler.plan(request.sampler_name, schedule, last, tokens)
        scheduler.set_timesteps(steps, run.device)
        factor = vae_latents.factor(pipeline.vae)
        shape = (
            len(run.seeds),
            codecs.of(pipeline.vae).channels(pipeline.vae),
            request.height // factor,
            request.width // factor,
        )
        return noise.draw(list(run.generators), shape, run.device)

    def _plan(self, run: Run) -> tuple[int, int | None]:
        """The steps of the schedule, and how many of them, its last ones, are run; None: all."""
        request = run.request
        if self._job.start is not None:
            return whole_schedule(request, len(run.pipeline.scheduler)), request.steps
        return request.steps, steps_from_image(request) if self._job.is_from_image else None


def steps_from_image(request: GenerationRequest) -> int:
    """How many of its steps image-to-image runs, by A1111's count."""
    return int(min(request.denoising_strength, 0.999) * request.steps) + 1


def whole_schedule(request: GenerationRequest, trained: int) -> int:
    """How many steps a schedule has whose last `steps` begin at the denoising strength, by A1111's count.

    The model knows no more than `trained` noise levels.
    """
    strength = min(max(request.denoising_strength, 1 / trained), 0.999)
    return max(request.steps, min(int(request.steps / strength), trained))


class _AfterStep:
    """After each call of the model: the extensions' turn, then the report."""

    def __init__(self, run: Run, active: list[Active], previews: Previews, tell: Tell) -> None:
        self._run = run
        self._active = [(e, params) for e, params in active if type(e).step is not Extension.step]
        self._previews = previews
        self._tell = tell
        self._index = 0

    def __call__(self, latents: torch.Tensor) -> torch.Tensor:
        scheduler, index = self._run.pipeline.scheduler, self._index
        steps = len(scheduler.times)
        step = Step(index, steps, scheduler.times[index], scheduler.sigma, latents, scheduler.denoised)
        for extension, params in self._active:
            with _blamed(extension):
                extension.step(self._run, params, step)
        preview = self._previews.offer(scheduler.denoised, last=index + 1 == steps)
        self._tell("sampling", index + 1, steps, preview)
        self._index += 1
        return step.latents


# --- extensions


def _drawn_at_once(request: GenerationRequest) -> Iterator[tuple[int, ...]]:
    """The images of each batch; where prompts differ it is divided: no picture depends on its neighbour's prompt."""
    for first in range(0, request.images, request.batch_size):
        for _, group in groupby(range(first, first + request.batch_size), request.prompts_of):
            yield tuple(group)


def _called(extension: Extension, request: GenerationRequest, prompts: Sequence[str]) -> Params | None:
    with _blamed(extension):
        return called(extension, request, prompts)


@contextmanager
def _blamed(extension: Extension) -> Iterator[None]:
    """What goes wrong inside is the extension's doing; what already has a message for people keeps it."""
    try:
        yield
    except (AtelierError, JobCancelled, BatchSkipped):
        raise
    except Exception as error:
        if memory.is_exhausted(error):
            raise
        failed = blamed(extension.title, error)
        log.exception("%s", failed)
        raise failed from error


def _contributions(run: Run, core: Extension, active: list[Active]) -> list[tuple[Extension, Contribution]]:
    """What everybody adds to the pipeline call, the core first."""
    given: list[tuple[Extension, Contribution]] = [(core, core.contribute(run, Params()))]
    for extension, params in active:
        with _blamed(extension):
            given.append((extension, extension.contribute(run, params)))
    return given


def _finished(run: Run, active: list[Active], pictures: list[Image.Image]) -> list[Image.Image]:
    for extension, params in active:
        with _blamed(extension):
            finished = extension.finish(run, params, pictures)
            if len(finished) != len(pictures):
                raise ValueError(f"it made {len(finished)} pictures out of {len(pictures)}")
            pictures = finished
    return pictures


def _merged(given: list[tuple[Extension, Contribution]], kind: str) -> dict[str, Any]:
    """The `kind` of all contributions; a name that two of them give is a Conflict."""
    givers: dict[str, Extension] = {}
    for extension, contribution in given:
        for name in getattr(contribution, kind):
            first = givers.setdefault(name, extension)
            if first is not extension:
                raise Conflict(f"{first.title} and {extension.title} cannot be used together: both set {name}")
    return {name: value for _, contribution in given for name, value in getattr(contribution, kind).items()}


def _latents(given: list[tuple[Extension, Contribution]], kind: Literal["start", "shown"]) -> torch.Tensor | None:
    """Those that an extension wants to start from, or to have shown."""
    givers = [(extension, latents) for extension, each in given if (latents := getattr(each, kind)) is not None]
    if len(givers) > 1:
        names = " and ".join(extension.title for extension, _ in givers)
        what = {"start": "starts from", "shown": "is made from"}[kind]
        raise Conflict(f"{names} cannot be used together: both set what the picture {what}")
    return givers[0][1] if givers else None


def _check_taken(given: list[tuple[Extension, Contribution]], pipeline: Any) -> None:
    """A pipeline swallows names that it does not know; here they are an error."""
    arguments, components = set(inspect.signature(pipeline.__call__).parameters), set(pipeline.components)
    for extension, contribution in given:
        unknown = contribution.arguments.keys() - arguments | contribution.components.keys() - components
        if unknown:
            names = ", ".join(sorted(unknown))
            raise ExtensionFailed(f"{extension.title}: {type(pipeline).__name__} takes no {names}")
