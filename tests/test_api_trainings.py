"""Trainings of the page: queued, watched, paused, stopped and resumed, beside pictures; killed, and none the worse."""

import io
import json
import os
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import load, load_file
from starlette.testclient import TestClient

from backend import weights
from backend.services import Services
from backend.training import file, records
from tests import waiting
from tests.web import Painter, atelier, visit

pytest_plugins = ["tests.tiny"]

QUICK: dict[str, Any] = {
    "model": "tiny",
    "resolution": 64,
    "steps": 6,
    "batch_size": 2,
    "rank": 2,
    "alpha": 1,
    "learning_rate": 1e-2,
    "sample_every": 0,
    "save_every": 2,
    "warmup": 0,
}
STEADY = {"steps": 60, "save_every": 10, "dropout": 0.1}
LONG = {"steps": 100_000, "save_every": 5, "schedule": "constant"}


class Studio:
    """An Atelier with a tiny model and a dataset of five pictures; trains for real, paints instead of drawing."""

    def __init__(self, folder: Path, models: Path) -> None:
        self.painter = Painter()
        self.services: Services = atelier(folder, self.painter)
        (folder / "models" / "checkpoints").symlink_to(models / "checkpoints")
        self.root = folder / "data" / "training"
        self.loras = folder / "models" / "loras"
        self.dataset = folder / "data" / "datasets" / "five"
        self.dataset.mkdir(parents=True)
        for number in range(5):
            colours = np.random.default_rng(number).integers(0, 255, (4, 4, 3), np.uint8)
            Image.fromarray(colours).resize((64, 64), Image.Resampling.NEAREST).save(self.dataset / f"{number}.png")
            (self.dataset / f"{number}.txt").write_text(f"a red circle, picture {number}")
        self.client: TestClient = visit(self.services)

    def begin(self, name: str = "demo", **params: Any) -> dict[str, Any]:
        answer = self.client.post("/api/trainings", json=self.wish(name, **params))
        assert answer.status_code == 201, answer.text
        found: dict[str, Any] = answer.json()
        return found

    def wish(self, name: str = "demo", **params: Any) -> dict[str, Any]:
        return {"name": name, "dataset": "five", "params": {**QUICK, **params}}

    def get(self, name: str = "demo") -> dict[str, Any]:
        found: dict[str, Any] = self.client.get(f"/api/trainings/{name}").json()
        return found

    def do(self, what: str, name: str = "demo", status: int = 200, **body: Any) -> dict[str, Any]:
        answer = self.client.post(f"/api/trainings/{name}/{what}", json=body or None)
        assert answer.status_code == status, answer.text
        found: dict[str, Any] = answer.json()
        return found

    def wait(self, state: str, name: str = "demo") -> dict[str, Any]:
        def look() -> dict[str, Any] | None:
            found = self.get(name)
            assert state == "failed" or found["state"] != "failed", found["error"]
            return found if found["state"] == state else None

        found: dict[str, Any] = wait_for(look)
        return found

    def wait_for_step(self, step: int, name: str = "demo") -> int:
        return int(wait_for(lambda: (at := self.get(name)["step"]) >= step and at))

    def picture(self, url: str) -> Any:
        return np.asarray(Image.open(io.BytesIO(self.client.get(f"/{url}").content)))

    def weights(self, name: str = "demo") -> Any:
        return load_file(self.loras / f"{name}.safetensors")


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory, tiny_models: Path) -> Iterator[Studio]:
    studio = Studio(tmp_path_factory.mktemp("studio"), tiny_models)
    with pytest.MonkeyPatch.context() as patch, studio.client:
        patch.setenv("OMP_NUM_THREADS", "1")  # two threads wait for each other where others work too
        for process in studio.services.trainings.processes:
            process.run("memory", {}, lambda message: None)  # started, however long that takes
        yield studio


@pytest.fixture
def studio(shared: Studio) -> Iterator[Studio]:
    """With nothing in it; its process, which takes seconds to start, has perhaps worked for another test."""
    yield shared
    shared.painter.go_on.set()
    for training in shared.client.get("/api/trainings").json()["trainings"]:
        name = training["name"]
        shared.client.post(f"/api/trainings/{name}/stop")
        wait_for(lambda: shared.client.delete(f"/api/trainings/{name}").status_code == 204)  # noqa: B023
    shutil.rmtree(shared.loras, ignore_errors=True)


@pytest.fixture(scope="module")
def undisturbed(shared: Studio) -> Any:
    """The weights that STEADY comes to."""
    shared.begin("plain", **STEADY)
    shared.wait("done", "plain")
    assert shared.client.delete("/api/trainings/plain").status_code == 204
    return shared.weights("plain")


def equal(one: Any, other: Any) -> bool:
    """To the bit."""
    return one.keys() == other.keys() and all(np.array_equal(one[key], other[key]) for key in one)


def wait_for(what: Callable[[], Any]) -> Any:
    return waiting.wait_for(what, every=0.1)  # each look is a request


def test_from_a_dataset_to_a_lora(studio: Studio) -> None:
    asked = studio.begin(sample_every=3, sample_steps=2, validation=0.2)
    assert (asked["name"], asked["data"], asked["owner"]) == ("demo", "five", "local")
    found = studio.wait("done")
    assert (found["step"], found["steps"], found["error"]) == (6, 6, None)
    assert [len(found["history"][name]) for name in ("loss", "smoothed", "rate")] == [6, 6, 6]
    assert found["history"]["validation"][0][0] == 0
    assert [row["step"] for row in found["samples"]] == [0, 3, 6]
    assert [row["step"] for row in found["checkpoints"]] == [2, 4, 6]
    for url in (found["preview"], found["samples"][0]["pictures"][0], *found["plots"].values()):
        assert studio.client.get(f"/{url}").headers["Content-Type"] == "image/png"
    assert studio.client.get(f"/{found['preview']}?s=64").headers["Content-Type"] == "image/webp"
    exported = studio.client.get(f"/{found['checkpoints'][-1]['url']}").content
    assert equal(load(exported), load_file(studio.loras / "demo.safetensors"))
    assert load(studio.client.get("/api/trainings/demo/export/diffusers").content)
    assert (
        studio.client.get("/api/trainings/demo/export/diffusers?step=2").status_code == 404
    )  # and not another step's
    (listed,) = studio.client.get("/api/trainings").json()["trainings"]
    assert listed.items() <= found.items()
    assert studio.client.delete("/api/trainings/demo").status_code == 204
    assert studio.client.get("/api/trainings/demo").status_code == 404
    assert (studio.loras / "demo.safetensors").exists()


def test_paused_stopped_and_resumed_it_learns_the_same(studio: Studio, undisturbed: Any) -> None:
    studio.begin("demo", **{**STEADY, "save_every": 0}, sample_every=1, sample_steps=2)
    studio.wait_for_step(3)
    studio.do("pause")
    paused = studio.wait("paused")
    assert 3 <= paused["step"] < 60  # saved where it was, though none was due
    studio.begin("other", steps=1)  # a paused one holds up nobody
    studio.wait("done", "other")
    studio.do("resume", changes={"sample_every": 0})
    studio.wait_for_step(paused["step"] + 1)
    studio.do("stop")
    stopped = studio.wait("stopped")
    assert stopped["step"] > paused["step"]
    assert studio.do("resume", status=422, changes={"rank": 4})["problems"][0]["field"] == "rank"
    studio.do("resume")
    studio.wait("done")
    assert equal(studio.weights(), undisturbed)


def test_a_picture_waits_for_one_step_and_changes_nothing(studio: Studio, undisturbed: Any) -> None:
    studio.begin("demo", **STEADY)
    studio.wait_for_step(2)
    studio.painter.go_on.clear()
    job = studio.client.post("/api/jobs", json={"prompt": "x"}).json()
    resting = wait_for(lambda: (found := studio.get())["resting"] and found)
    assert wait_for(lambda: studio.client.get(f"/api/jobs/{job['id']}").json()["progress"]["step"]) == 1
    assert studio.get()["step"] == resting["step"]
    time.sleep(0.5)
    assert studio.get()["step"] == resting["step"]  # as long as the picture takes
    studio.painter.go_on.set()
    studio.wait("done")
    assert studio.client.get(f"/api/jobs/{job['id']}").json()["state"] == "done"
    assert equal(studio.weights(), undisturbed)


def test_a_picture_waits_for_one_step_of_a_grid(studio: Studio) -> None:
    studio.begin(save_every=3, sample_steps=20)
    studio.wait("done")
    asked = {"steps": [0, 3, 6], "weights": [0.5, 1]}
    studio.do("grid", status=201, **asked)
    wait_for(lambda: studio.get()["grids"][0]["cells"][0][0])  # it is at it
    studio.painter.go_on.clear()
    job = studio.client.post("/api/jobs", json={"prompt": "x"}).json()
    wait_for(lambda: (at := studio.client.get(f"/api/jobs/{job['id']}").json()["progress"]) and at["step"] == 1)

    def drawn() -> int:
        return sum(bool(cell) for row in studio.get()["grids"][0]["cells"] for cell in row)

    at = drawn()
    assert at < 6
    time.sleep(0.3)
    assert drawn() == at
    studio.painter.go_on.set()
    wait_for(lambda: studio.get()["grids"][0]["state"] == "done")
    studio.do("grid", status=201, **asked)  # that nobody interrupts
    wait_for(lambda: studio.get()["grids"][0]["state"] == "done")
    last, first = ([studio.picture(url) for row in grid["cells"] for url in row] for grid in studio.get()["grids"])
    assert all(np.array_equal(one, other) for one, other in zip(last, first, strict=True))

    studio.painter.go_on.clear()
    job = studio.client.post("/api/jobs", json={"prompt": "x"}).json()
    wait_for(lambda: (at := studio.client.get(f"/api/jobs/{job['id']}").json()["progress"]) and at["step"] == 1)
    ids = [studio.do("grid", status=201, **asked, prompt=prompt)["id"] for prompt in ("a blue square", "a red circle")]
    grids = studio.services.trainings._grid_orders
    wait_for(lambda: grids.latest("demo", ids[0]).state == "running")
    assert studio.client.delete("/api/trainings/demo").status_code == 204  # ends them first
    assert [grids.latest("demo", id).state for id in ids] == ["cancelled"] * 2
    assert not (studio.root / "demo").exists()
    studio.painter.go_on.set()


def test_killed_in_mid_step_it_goes_on_from_its_checkpoint(studio: Studio, undisturbed: Any) -> None:
    studio.begin("demo", **STEADY)
    studio.wait_for_step(12)
    pid = studio.services.trainings.processes[0].pid
    assert pid
    os.kill(pid, signal.SIGKILL)
    found = studio.wait("done")
    assert found["error"] is None
    assert equal(studio.weights(), undisturbed)
    rows = [row["step"] for row in records.read(studio.root, "demo").history if "loss" in row]
    assert rows == list(range(1, 61))


def test_save_and_sample_when_asked(studio: Studio) -> None:
    studio.begin("demo", **{**LONG, "save_every": 0, "sample_every": 90_000, "sample_steps": 2})
    studio.wait_for_step(1)
    studio.do("save")
    studio.do("sample")
    found = wait_for(lambda: (at := studio.get())["checkpoints"] and len(at["samples"]) > 1 and at)
    assert found["state"] == "running"
    assert studio.do("resume", status=409)["detail"] == "the training demo is running already"
    assert studio.client.delete("/api/trainings/demo").status_code == 409
    for refused in ("delete", "rename"):
        answer = studio.client.post(f"/api/datasets/five/{refused}", json={"name": "six"})
        assert answer.json()["detail"] == "the training demo learns from the set five; stop it first"
        assert answer.status_code == 409
    studio.do("stop")
    studio.wait("stopped")
    assert studio.do("save", status=409)["detail"] == "the training demo neither waits nor runs"


def test_a_checkpoint_is_chosen_by_a_grid_and_promoted(studio: Studio) -> None:
    studio.begin(sample_every=3, save_every=3, sample_steps=2, trigger="zwx", learning_rate=0.1)
    trained = studio.wait("done")
    refused = studio.do("grid", status=422, steps=[1])
    assert refused["problems"] == [{"field": "steps", "message": "no weights were kept at step 1; there are 3, 6"}]
    asked = studio.do("grid", status=201, steps=[6, 0, 3], weights=[0, 1])
    assert (asked["steps"], asked["weights"], asked["prompt"]) == ([0, 3, 6], [0, 1], trained["prompts"][0])

    def drawn() -> Any:
        (grid,) = studio.get()["grids"]
        assert grid["state"] != "failed", grid["error"]
        return grid["state"] == "done" and [[studio.picture(url) for url in row] for row in grid["cells"]]

    cells = wait_for(drawn)
    untrained = studio.picture(trained["samples"][0]["pictures"][0])
    assert all(np.array_equal(cells[row][column], untrained) for row, column in ((0, 0), (0, 1), (1, 0), (2, 0)))
    assert not np.array_equal(cells[2][1], untrained)
    sample = studio.picture(trained["samples"][2]["pictures"][0])
    assert np.abs(cells[2][1].astype(int) - sample).max() <= 3  # the file is of half precision
    assert studio.do("promote", status=409, step=3)["detail"] == (
        "there is a LoRA demo already; overwrite it, or choose another name"
    )
    assert studio.do("promote", status=404, step=4)["detail"].endswith("at step 4; there are 3, 6")
    path = "/api/trainings/demo/promote"
    assert studio.client.post(path, json={"step": 3, "name": "../x"}).json()["problems"][0]["field"] == "name"
    files = studio.client.post(path, json={"step": 3, "name": "better one"}).json()
    assert set(files) == {"weights", "card", "preview"}
    promoted = studio.loras / "better one.safetensors"
    assert equal(load_file(promoted), load(studio.client.get("/api/trainings/demo/export/kohya?step=3").content))
    metadata = weights.read(promoted).metadata
    assert (metadata["ss_output_name"], metadata["modelspec.title"], metadata["ss_steps"]) == (
        *("better one", "better one"),
        "3",
    )
    assert metadata["modelspec.usage_hint"] == "<lora:better one:1>, zwx"
    assert metadata["sshs_model_hash"] == file.model_hash(promoted.read_bytes())
    card = json.loads((studio.loras / "better one.json").read_text())
    assert card["activation text"] == "zwx"
    assert "3 steps on 5 pictures" in card["notes"]


def test_one_trains_and_the_others_wait(studio: Studio) -> None:
    studio.begin("one", **LONG)
    studio.wait("running", "one")
    assert [studio.begin(name)["position"] for name in ("two", "three")] == [1, 2]
    studio.do("pause", "two")
    assert (studio.get("two")["state"], studio.get("three")["position"]) == ("paused", 1)
    studio.do("stop", "one")
    studio.wait("done", "three")
    studio.do("resume", "two")
    studio.wait("done", "two")


def test_one_that_waits_is_not_overwritten(studio: Studio) -> None:
    """Its job would have gone on with the new one's files, and the new one's after it."""
    studio.begin("first", **LONG)
    studio.begin("second")
    again = {**studio.wish("second", rank=4), "overwrite": True}
    answer = studio.client.post("/api/trainings", json=again)
    assert (answer.status_code, answer.json()["detail"]) == (409, "the training second is queued; stop it first")
    assert studio.get("second")["params"]["rank"] == QUICK["rank"]
    studio.do("pause", "second")
    assert studio.client.post("/api/trainings", json=again).status_code == 201
    assert studio.get("second")["state"] == "queued"


def test_a_preflight_says_what_it_takes(studio: Studio) -> None:
    found = studio.client.post("/api/trainings/preflight", json=studio.wish(steps=3)).json()
    assert (found["numbers"]["images"], found["numbers"]["steps"]) == (5, 3)
    assert found["seconds"] > 0
    assert found["memory"] > 2**20
    assert any("is seen 1 times" in warning for warning in found["warnings"])
    assert studio.client.get("/api/trainings").json()["trainings"] == []
    refused = studio.client.post("/api/trainings/preflight", json=studio.wish(bucket_step=8))
    assert refused.status_code == 422
    assert refused.json()["problems"][0]["field"] == "bucket_step"


@pytest.mark.parametrize(
    ("changes", "status", "said"),
    [
        ({"name": "../demo"}, 422, "'../demo' cannot be the name of a LoRA"),
        ({"name": "presets"}, 422, "presets cannot be the name of a training"),
        ({"dataset": "../five"}, 422, "there is no dataset '../five'"),
        ({"dataset": ""}, 422, "there is no dataset ''"),
        ({"params": {"model": "none"}}, 404, "'none' is not a model here"),
        ({"params": {"rnak": 3}}, 422, "rnak: is not a parameter"),
        ({"preset": "stile"}, 404, "'stile' is not a preset"),
        ({"memory": "9 GB"}, 422, "memory"),
    ],
)
def test_what_cannot_be_is_refused_at_once(studio: Studio, changes: Any, status: int, said: str) -> None:
    answer = studio.client.post("/api/trainings", json={**studio.wish(), **changes})
    assert (answer.status_code, said in answer.json()["detail"]) == (status, True), answer.text
    assert studio.client.get("/api/trainings").json()["trainings"] == []


def test_names_lead_nowhere_else(studio: Studio) -> None:
    (studio.root / "demo" / "samples").mkdir(parents=True)
    for path in ("samples/..%2Ftraining.json", "plots/training.json", "samples/000001-1.txt", "export/zip"):
        assert studio.client.get(f"/api/trainings/demo/{path}").status_code in (404, 422), path
    assert studio.client.get("/api/trainings/..%2Fdemo").status_code in (404, 422)
    studio.begin()  # the remains of nothing are in nobody's way
    studio.wait("done")


def test_folders_are_for_who_sits_here(studio: Studio) -> None:
    wish = {**studio.wish(), "dataset": "", "folder": str(studio.dataset)}
    afar = studio.client.post("/api/trainings", json=wish, headers={"X-Forwarded-For": "10.0.0.1"})
    assert (afar.status_code, afar.json()["detail"][:24]) == (403, "folders of this machine ")
    assert studio.client.post("/api/trainings", json=wish).status_code == 201
    beside = {**studio.wish(regularisation=str(studio.dataset)), "name": "beside"}
    afar = studio.client.post("/api/trainings", json=beside, headers={"X-Forwarded-For": "10.0.0.1"})
    assert afar.status_code == 403


def test_presets_and_the_schema(studio: Studio) -> None:
    found = studio.client.get("/api/trainings/presets").json()
    assert {goal["goal"] for goal in found["goals"]} == {"character", "style", "object", "concept"}
    assert all(preset["minutes"] > 0 for preset in found["presets"])
    schema = studio.client.get("/api/trainings/schema").json()
    assert len(schema["basic"]) == 12
    assert schema["schema"]["properties"]["rank"]["atelier"]["widget"] == "slider"


def test_watchers_are_told(studio: Studio) -> None:
    """The newest state of each, always; states that pass at once may be missed, so each of these lasts until seen."""
    with studio.client.websocket_connect("ws://127.0.0.1:7860/ws") as socket:

        def hear(name: str, what: Callable[[dict[str, Any]], Any]) -> dict[str, Any]:
            while True:
                event = json.loads(socket.receive_text())
                if event["type"] == "training" and event["training"]["name"] == name and what(event["training"]):
                    found: dict[str, Any] = event["training"]
                    return found

        assert json.loads(socket.receive_text())["trainings"] == []
        studio.begin("one", **LONG)
        hear("one", lambda view: view["stage"] == "training" and view["loss"] and view["step"] > 1)
        studio.begin("two", sample_every=6, sample_steps=2)
        assert hear("two", lambda view: True)["state"] == "queued"
        studio.do("stop", "one")
        hear("one", lambda view: view["state"] == "stopped")
        done = hear("two", lambda view: view["state"] == "done")
    assert done["preview"] == "api/trainings/two/samples/000006-1.png"


def test_what_is_told_last_is_the_newest(studio: Studio, monkeypatch: pytest.MonkeyPatch) -> None:
    """However slow the thread is that has seen it before."""
    trainings = studio.services.trainings
    look, seen_paused, changed = trainings.view, threading.Event(), threading.Event()

    def look_slowly(name: str) -> dict[str, Any]:
        seen = look(name)
        if seen["state"] == "paused":
            seen_paused.set()
            changed.wait(0.3)
        return seen

    studio.begin("one", **LONG)
    studio.begin("two")
    monkeypatch.setattr(trainings, "view", look_slowly)
    pausing = threading.Thread(target=trainings.pause, args=["two"])
    pausing.start()
    assert seen_paused.wait(60)
    trainings.stop_training("two")
    changed.set()
    pausing.join()
    (told,) = (view for view in studio.services.hub.trainings() if view["name"] == "two")
    assert told["state"] == look("two")["state"] == "stopped"


def test_a_set_without_pictures_is_refused_in_words(studio: Studio) -> None:
    empty = studio.dataset.parent / "empty"
    empty.mkdir()
    wish = {**studio.wish(), "dataset": "empty"}
    said = "data: there is no picture to learn from"
    assert studio.client.post("/api/trainings/preflight", json=wish).json()["detail"].startswith(said)
    studio.client.post("/api/trainings", json=wish)
    assert studio.wait("failed")["error"].startswith(said)
    (empty / "1.png").write_bytes(b"no picture")
    studio.do("resume")
    assert "1.png is left out" in wait_for(lambda: "left out" in (e := studio.get()["error"] or "") and e)
