"""The handful of objects that the page, the API and the command line are built on; replaces global state."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from backend import database, families, lineage, registry, tiny_decoders
from backend.catalog import Catalog, Model, companions
from backend.errors import AtelierError, InvalidRequest, NotFound, Problem, blamed
from backend.gallery.index import Gallery
from backend.images import ImageStore
from backend.jobs.device import Device
from backend.jobs.events import Hub
from backend.jobs.runner import Runner
from backend.jobs.store import Job, JobStore
from backend.jobs.worker import ProcessWorker
from backend.registry import Registry, called
from backend.request import GenerationRequest, parse_request
from backend.settings import Settings
from backend.training import runner as training_runner
from backend.training.runner import Trainings

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Services:
    settings: Settings
    registry: Registry
    catalog: Catalog
    images: ImageStore
    jobs: JobStore
    gallery: Gallery
    hub: Hub
    runner: Runner
    trainings: Trainings

    def start(self) -> None:
        """Take up what waits, and begin."""
        self.runner.start()
        self.trainings.start()

    def stop(self) -> None:
        """What is in hand goes back to the queue."""
        self.trainings.stop()
        self.runner.stop()

    def complete(self, values: Mapping[str, Any]) -> GenerationRequest:
        """A request ready to run: the model's own defaults under `values`, checked, the seed drawn.

        Raises InvalidRequest with every field that is wrong.
        """
        name = values.get("model", "")
        try:
            model = self.catalog.find(name if isinstance(name, str) else "")
        except NotFound as error:
            raise InvalidRequest(Problem("model", str(error))) from None
        if model.problem:
            raise InvalidRequest(Problem("model", f"{model.name} cannot be used: {model.problem}"))
        request = parse_request({**model.usual, **values}, self.registry.params)
        if request.decoder == "tiny" and not tiny_decoders.find(self.catalog.roots, model.family):
            raise InvalidRequest(Problem("decoder", tiny_decoders.missing(model.family)))
        misfits = families.misfits(model.family, width=request.width, height=request.height)
        if problems := [*misfits, *self._unfit(request, model)] or [*self._refused_by_extensions(request)]:
            raise InvalidRequest(*problems)
        companions.vae_of(model, request.vae, self.catalog)  # says at once what is wrong with it
        return request.model_copy(update={"model": model.name}).with_seed_drawn()

    def _unfit(self, request: GenerationRequest, model: Model) -> Iterator[Problem]:
        if not request.init_image and model.variant in families.traits(model.family).from_images:
            yield families.NO_IMAGE
        if request.cfg_scale != 1 and model.edition in families.traits(model.family).self_guided:
            yield families.NO_GUIDANCE
        for image in lineage.inputs(request):
            if image.sha256 not in self.images:
                yield Problem(image.name, "the image is not here any more; upload it again")

    def _refused_by_extensions(self, request: GenerationRequest) -> Iterator[Problem]:
        texts = request.prompt, *request.prompts
        for extension in self.registry.extensions:
            try:
                if (params := called(extension, request, texts)) is not None:
                    extension.check(request, params, self.images)
            except InvalidRequest as error:
                yield from error.problems
            except AtelierError:
                raise
            except Exception as error:  # whatever a stranger's method raises
                failed = blamed(extension.title, error)
                log.exception("%s", failed)
                raise failed from error

    def submit(self, values: Mapping[str, Any], owner: str = "local") -> Job:
        """Queue a job for untrusted `values`."""
        job = self.jobs.submit(self.complete(values), owner)
        self.runner.wake()
        return job


def build(settings: Settings) -> Services:
    """Everything wired up; nothing runs until `services.start()`."""
    settings.data_dir.mkdir(parents=True, exist_ok=True)
    catalog = Catalog(settings.roots, settings.default_model)
    images = ImageStore(settings.inputs_dir)
    extensions = registry.load(
        settings.extensions_dir, settings.data_dir, safe_mode=settings.safe_mode, models=settings.roots
    )
    engine = database.connect(settings.database)
    database.migrate(engine)
    jobs = JobStore(engine, extensions.params)
    gallery = Gallery(engine, settings.outputs_dir, settings.data_dir / "thumbs")
    hub = Hub()
    worker = ProcessWorker(
        settings.roots,
        settings.extensions_dir,
        settings.inputs_dir,
        extensions=extensions.params,
        kept=settings.data_dir / registry.KEPT,
        hardware=settings.hardware,
    )
    device = Device()
    runner = Runner(worker, jobs, gallery, images, hub, device)
    trainings = training_runner.build(settings.data_dir / "training", settings.roots, engine, hub, device)
    return Services(settings, extensions, catalog, images, jobs, gallery, hub, runner, trainings)
