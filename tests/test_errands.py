"""Errands: what a route asks of its extension in the engine's process, between two jobs."""

import asyncio
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from backend.errors import Busy, EngineFailed, ExtensionFailed, InvalidRequest, NotFound, WorkerDied
from backend.extension import Params
from backend.images import ImageStore
from backend.jobs import errands
from backend.jobs.errands import MOST, Answer, Errands
from backend.jobs.store import JobState
from tests import web, workshop
from tests.waiting import wait_for
from tests.web import visit
from tests.workshop import Workshop

PORTER = """
import os, sys, time
from backend.extension import Extension, InvalidRequest, Problem

class Porter(Extension):
    def errand(self, name, values):
        if name == "carry":
            return {"values": values, "torch": "torch" in sys.modules, "pid": os.getpid()}
        if name == "look":
            return {"size": list(self.images.get(values["image"]).size)}
        if name == "refuse":
            raise InvalidRequest(Problem("units.0.module", "there is no such module"))
        if name == "fall":
            raise ZeroDivisionError("over a step")
        if name == "leave":
            sys.exit("gone")
        if name == "object":
            return {"self": self}
        if name == "die":
            os.kill(os.getpid(), 9)
        if name == "sleep":
            time.sleep(values["seconds"])
            return {}
        return super().errand(name, values)

    def routes(self, router):
        @router.post("/carry")
        async def carry(values: dict) -> dict:
            return await self.ask("carry", values)
"""


def put_extension(folder: Path) -> None:
    porter = folder / "porter"
    porter.mkdir(parents=True)
    (porter / "extension.toml").write_text('id = "porter"\nversion = "1"\ntitle = "The porter"\n')
    (porter / "__init__.py").write_text(PORTER)


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Workshop]:
    folder = tmp_path_factory.mktemp("errands")
    put_extension(folder / "extensions")
    with workshop.running(folder, extensions={"porter": Params}) as shared:
        yield shared


def ask(shop: Workshop, name: str, **values: Any) -> Answer:
    return shop.runner.errands.put("porter", name, values).answer.result(240)


def test_json_goes_in_and_comes_out_of_the_engines_process(shop: Workshop) -> None:
    given = {"text": "ä", "numbers": [1, 0.5, None], "inner": {"yes": True}}
    assert ask(shop, "carry", **given) == {"values": given, "torch": False, "pid": shop.worker.pid}


def test_it_finds_the_input_images(shop: Workshop) -> None:
    ref = ImageStore(shop.folder / "inputs").put(web.png(40, 30))
    assert ask(shop, "look", image=ref) == {"size": [40, 30]}


def test_what_it_raises_comes_out(shop: Workshop) -> None:
    with pytest.raises(InvalidRequest) as refused:
        ask(shop, "refuse")
    assert refused.value.problems == (("units.0.module", "there is no such module"),)
    with pytest.raises(ExtensionFailed, match=r"^The porter: ZeroDivisionError: over a step; the log"):
        ask(shop, "fall")
    with pytest.raises(EngineFailed, match=r"^SystemExit: gone; the log"):
        ask(shop, "leave")
    with pytest.raises(ExtensionFailed, match=r"The porter: TypeError: .* not JSON serializable"):
        ask(shop, "object")
    with pytest.raises(NotFound, match="The porter has no errand dance"):
        ask(shop, "dance")
    with pytest.raises(NotFound, match="no extension nobody; restart Atelier"):
        shop.runner.errands.put("nobody", "carry", {}).answer.result(240)


def test_a_death_is_told_and_the_next_one_is_done(shop: Workshop) -> None:
    pid = ask(shop, "carry")["pid"]
    with pytest.raises(WorkerDied, match="the engine process ended"):
        ask(shop, "die")
    assert ask(shop, "carry")["pid"] != pid
    assert shop.wait(shop.submit()).state is JobState.DONE


def test_one_that_takes_too_long_is_ended(shop: Workshop, monkeypatch: pytest.MonkeyPatch) -> None:
    ask(shop, "carry")
    monkeypatch.setattr(errands, "LIMIT", 0.3)
    monkeypatch.setattr(shop.worker, "_patience", 0.3)
    with pytest.raises(EngineFailed, match="sleep took longer than 0 s and was stopped"):
        ask(shop, "sleep", seconds=1000)
    monkeypatch.undo()
    assert ask(shop, "carry")["pid"]


def test_it_goes_before_the_jobs_that_wait(shop: Workshop) -> None:
    ask(shop, "carry")
    running = shop.submit("wait:0", n_iter=2)
    wait_for(lambda: ((shop.hub.get(running.id) or {}).get("progress") or {}).get("step"))
    waiting = shop.submit("wait:0")
    errand = shop.runner.errands.put("porter", "carry", {})
    shop.runner.skip(running.id)
    assert errand.answer.result(240)["values"] == {}
    assert shop.jobs.get(running.id).state is JobState.DONE
    shop.runner.cancel(waiting.id)
    assert shop.wait(waiting).state is JobState.CANCELLED


def test_whoever_waits_too_long_is_told_to_come_back(shop: Workshop) -> None:
    ask(shop, "carry")
    job = shop.submit("wait:0")
    wait_for(lambda: shop.jobs.get(job.id).state is JobState.RUNNING)
    with pytest.raises(Busy, match="try again when the job is done"):
        asyncio.run(shop.runner.errands.ask("porter", "die", {}, patience=0.1))
    shop.runner.cancel(job.id)
    shop.wait(job)
    assert ask(shop, "carry")["pid"] == shop.worker.pid  # the one that nobody waits for was not run


def test_only_so_many_wait() -> None:
    waiting = Errands(lambda: None)
    first, *_ = [waiting.put("porter", "carry", {}) for _ in range(MOST)]
    with pytest.raises(Busy, match="others wait"):
        waiting.put("porter", "carry", {})
    first.answer.cancel()
    last = waiting.put("porter", "last", {})
    taken = [errand.name for errand in iter(waiting.take, None)]
    assert (len(taken), taken[-1]) == (MOST, last.name)


def test_a_stop_tells_all_who_wait(tmp_path: Path) -> None:
    put_extension(tmp_path / "extensions")
    with workshop.running(tmp_path, patience=1.0, extensions={"porter": Params}) as shop:
        begun = shop.runner.errands.put("porter", "sleep", {"seconds": 60})
        wait_for(begun.answer.running)
        waiting = shop.runner.errands.put("porter", "carry", {})
    for errand in (begun, waiting):
        with pytest.raises(Busy, match="the server is shutting down"):
            errand.answer.result(10)
    with pytest.raises(Busy, match="the server is shutting down"):
        shop.runner.errands.put("porter", "carry", {})


class _Hands(web.Painter):
    """A painter who runs errands here and now."""

    thread = ""

    def errand(self, extension: str, name: str, values: Any, go_on: Any) -> Answer:
        go_on()
        self.thread = threading.current_thread().name
        return {"extension": extension, "name": name, "values": dict(values)}


def test_a_route_asks_for_it(tmp_path: Path) -> None:
    put_extension(tmp_path / "extensions")
    hands = _Hands()
    services = web.atelier(tmp_path, worker=hands)
    with visit(services) as browser:
        answer = browser.post("/extensions/porter/carry", json={"a": 1})
        assert answer.json() == {"extension": "porter", "name": "carry", "values": {"a": 1}}
        assert hands.thread == "runner"
