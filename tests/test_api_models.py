"""Models over HTTP: looking, describing, renaming, deleting and restoring, getting more, making more."""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from backend.api.models import Works
from backend.api.server import create_app
from backend.catalog import Catalog
from backend.downloads.network import Network
from backend.downloads.sources import Hosts
from backend.merging.chores import Chores
from backend.services import Services
from tests.disks import elsewhere, full_at
from tests.hub import Server, hub, safetensors
from tests.waiting import wait_for
from tests.web import HOME, atelier, no_page, png


def checkpoint(**metadata: str) -> bytes:
    """What passes for a Stable Diffusion 1 by its header."""
    import struct

    shapes = {
        "model.diffusion_model.input_blocks.0.0.weight": [320, 4, 3, 3],
        "model.diffusion_model.input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight": [320, 768],
        "model.diffusion_model.middle_block.0.in_layers.0.weight": [320],
        "first_stage_model.decoder.conv_in.weight": [8, 4, 3, 3],
        "cond_stage_model.transformer.text_model.embeddings.position_embedding.weight": [77, 768],
    }
    table: dict[str, Any] = {"__metadata__": metadata}
    at = 0
    for name, shape in shapes.items():
        size = 2
        for side in shape:
            size *= side
        table[name] = {"dtype": "F16", "shape": shape, "data_offsets": [at, at + size]}
        at += size
    text = json.dumps(table).encode()
    return struct.pack("<Q", len(text)) + text + bytes(at)


@pytest.fixture
def server() -> Iterator[Server]:
    with hub() as server:
        yield server


@pytest.fixture
def services(tmp_path: Path) -> Services:
    services = atelier(tmp_path, allow_downloads=True)
    for name in ("castle", "forest", "harbour"):
        put(services, f"checkpoints/{name}.safetensors", checkpoint())
    return services


@pytest.fixture
def browser(services: Services, server: Server) -> Iterator[TestClient]:
    yield from visiting(services, server)


def visiting(services: Services, server: Server) -> Iterator[TestClient]:
    works = Works(
        services, lambda: Network(inside=(server.place,), patience=60), Hosts(server.url, "https://x.example")
    )
    with TestClient(create_app(services, no_page, works), base_url=HOME) as client:
        yield client


def put(services: Services, name: str, data: bytes) -> Path:
    path = services.settings.models_dir / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    services.catalog.refresh()
    return path


def found(browser: TestClient, **query: Any) -> list[dict[str, Any]]:
    return list(browser.get("/api/models/search", params=query).json()["models"])


def id_of(browser: TestClient, name: str) -> str:
    return next(str(model["id"]) for model in found(browser) if model["name"] == name)


def names(browser: TestClient, **query: Any) -> list[str]:
    return [model["name"] for model in found(browser, **query)]


# --- looking


def test_the_list_is_searched_filtered_and_paged(browser: TestClient, services: Services) -> None:
    put(services, "vae/blue.safetensors", safetensors())
    assert names(browser) == ["blue", "castle", "forest", "harbour", "starter"]
    assert names(browser, kind="checkpoint", family="sd1") == ["castle", "forest", "harbour"]
    assert names(browser, q="FOR") == ["forest"]
    sha256 = services.catalog.fingerprint(services.catalog.find("forest").path)
    services.catalog.refresh()
    assert [names(browser, q=sha256[:digits]) for digits in (10, 4)] == [["forest"], []]  # "face" is a word
    assert names(browser, kind="checkpoint", offset=1, limit=2) == ["forest", "harbour"]
    answer = browser.get("/api/models/search", params={"kind": "checkpoint", "limit": 1}).json()
    assert (answer["total"], answer["kinds"]["checkpoint"]) == (4, 4)
    assert answer["models"][0]["badge"] == "SD 1.x"
    assert answer["models"][0]["precision"] == "fp16"


def test_what_cannot_be_used_is_listed_with_the_reason(browser: TestClient, services: Services) -> None:
    put(services, "checkpoints/torn.safetensors", checkpoint()[:500])
    put(services, "checkpoints/old.ckpt", b"PK\x03\x04")
    problems = {model["name"]: model["problem"] for model in found(browser, problems=True)}
    assert "torn" in problems
    assert "pickle" in problems["old"]
    assert "castle" not in problems


def test_details_tell_what_the_file_says_of_itself(browser: TestClient, services: Services) -> None:
    data = checkpoint(**{"modelspec.license": "CC0", "modelspec.author": "Ada"})
    put(services, "checkpoints/told.safetensors", data)
    details = browser.get(f"/api/models/{id_of(browser, 'told')}").json()
    assert (details["licence"], details["author"]) == ("CC0", "Ada")
    assert details["family"] == "sd1"
    assert str(services.settings.models_dir) not in json.dumps(details)  # no path goes out


@pytest.mark.parametrize("id", ["0" * 16, "../../etc", "x"])
def test_an_unknown_id_is_none(browser: TestClient, id: str) -> None:
    assert browser.get(f"/api/models/{id}").status_code in (404, 422)
    assert browser.request("DELETE", f"/api/models/{id}").status_code in (404, 405, 422)


# --- describing


def test_an_edit_is_kept_beside_the_file(browser: TestClient, services: Services) -> None:
    id = id_of(browser, "castle")
    beside = services.settings.models_dir / "checkpoints" / "castle.atelier.json"
    beside.write_text(json.dumps({"examples": ["a castle"], "mine": 1}))
    edit = {"title": "Castle", "trigger": "castle", "notes": "<b>x</b>", "defaults": {"steps": 30, "cfg_scale": 5}}
    details = browser.patch(f"/api/models/{id}", json=edit).json()
    assert {name: details[name] for name in edit} == edit
    assert json.loads(beside.read_text()) == {"examples": ["a castle"], "mine": 1, **edit}
    assert names(browser, q="Castle") == ["castle"]
    listed = {model["name"]: model for model in browser.get("/api/models").json()}  # what the model picker reads
    assert listed["castle"]["defaults"] == edit["defaults"]
    assert services.complete({"model": "castle", "prompt": "x"}).steps == 30


@pytest.mark.parametrize(
    ("defaults", "field"),
    [({"steps": 0}, "steps"), ({"prompt": "x"}, "prompt: no model has"), ({"sampler_name": "none"}, "sampler_name")],
)
def test_a_wrong_default_is_named_and_nothing_is_kept(
    browser: TestClient, services: Services, defaults: dict[str, Any], field: str
) -> None:
    answer = browser.patch(f"/api/models/{id_of(browser, 'castle')}", json={"defaults": defaults})
    assert answer.status_code == 422
    assert field in answer.json()["detail"]
    assert not (services.settings.models_dir / "checkpoints" / "castle.atelier.json").exists()


def test_a_file_that_is_no_table_is_not_overwritten(browser: TestClient, services: Services) -> None:
    id = id_of(browser, "castle")
    beside = services.settings.models_dir / "checkpoints" / "castle.atelier.json"
    beside.write_text("[my notes")
    assert browser.patch(f"/api/models/{id}", json={"title": "x"}).status_code == 409
    assert beside.read_text() == "[my notes"
    assert "castle.atelier.json, is no JSON" in browser.get(f"/api/models/{id}").json()["card_problem"]
    assert browser.post(f"/api/models/{id}/rename", json={"name": "tower"}).json()["name"] == "tower"


def test_a_picture_becomes_its_preview(browser: TestClient) -> None:
    id = id_of(browser, "castle")
    assert browser.get(f"/api/models/{id}/preview").status_code == 404
    image = browser.post("/api/images", content=png(900, 600)).json()["id"]
    details = browser.post(f"/api/models/{id}/preview", json={"image": image}).json()
    answer = browser.get("/" + details["preview"])
    assert answer.headers["content-type"] == "image/webp"
    assert answer.headers["content-security-policy"].startswith("sandbox")


def test_the_default_model_is_chosen_and_kept(browser: TestClient, services: Services) -> None:
    browser.post(f"/api/models/{id_of(browser, 'forest')}/default")
    assert services.complete({"prompt": "x"}).model == "forest"
    assert [model["name"] for model in browser.get("/api/models").json() if model["default"]] == ["forest"]
    assert [browser.get(f"/api/models/{id_of(browser, name)}").json()["default"] for name in ("forest", "castle")] == [
        True,
        False,
    ]
    services.catalog.prefer("")
    Works(services)  # the next start
    assert services.complete({"prompt": "x"}).model == "forest"
    browser.post(f"/api/models/{id_of(browser, 'forest')}/rename", json={"name": "wood"})
    assert services.complete({"prompt": "x"}).model == "wood"
    browser.delete(f"/api/models/{id_of(browser, 'wood')}")
    assert services.complete({"prompt": "x"}).model == "castle"


# --- renaming and deleting


def test_renaming_takes_along_what_goes_with_it(browser: TestClient, services: Services) -> None:
    folder = services.settings.models_dir / "checkpoints"
    (folder / "castle.preview.png").write_bytes(png())
    browser.patch(f"/api/models/{id_of(browser, 'castle')}", json={"title": "Keep"})
    renamed = browser.post(f"/api/models/{id_of(browser, 'castle')}/rename", json={"name": "../tower"}).json()
    assert (renamed["name"], renamed["title"]) == ("tower", "Keep")
    assert {p.name for p in folder.glob("tower*")} == {"tower.safetensors", "tower.preview.png", "tower.atelier.json"}
    assert not list(folder.glob("castle*"))
    clash = browser.post(f"/api/models/{renamed['id']}/rename", json={"name": "forest"})
    assert clash.status_code == 409
    assert browser.post(f"/api/models/{renamed['id']}/rename", json={"name": " "}).status_code == 422


def test_what_belongs_to_another_model_too_stays_with_it(browser: TestClient, services: Services) -> None:
    folder = services.settings.models_dir / "checkpoints"
    old = put(services, "checkpoints/castle.ckpt", b"PK\x03\x04")
    card = folder / "castle.atelier.json"
    card.write_text('{"title": "Keep"}')
    pickle = next(str(model["id"]) for model in found(browser) if model["pickle"])
    browser.delete(f"/api/models/{pickle}")
    assert (old.exists(), card.exists()) == (False, True)
    put(services, "checkpoints/tower.ckpt", b"PK\x03\x04")
    (folder / "tower.atelier.json").write_text('{"title": "Another"}')
    answer = browser.post(f"/api/models/{id_of(browser, 'castle')}/rename", json={"name": "tower"})
    assert (answer.status_code, "tower.atelier.json" in answer.json()["detail"]) == (409, True)
    assert "Another" in (folder / "tower.atelier.json").read_text()
    assert (folder / "castle.safetensors").exists()


def test_what_is_deleted_can_be_restored(browser: TestClient, services: Services) -> None:
    folder = services.settings.models_dir / "checkpoints"
    browser.patch(f"/api/models/{id_of(browser, 'castle')}", json={"title": "Keep"})
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    trashed = browser.delete(f"/api/models/{id_of(browser, 'castle')}").json()
    assert "castle" not in names(browser)
    assert [model["name"] for model in browser.get("/api/models/trash").json()["models"]] == ["castle"]
    assert "castle" not in {model["name"] for model in browser.get("/api/models").json()}
    (folder / "castle.safetensors").write_bytes(b"another")
    assert browser.post(f"/api/models/trash/{trashed['id']}/restore").status_code == 409
    (folder / "castle.safetensors").unlink()
    assert browser.post(f"/api/models/trash/{trashed['id']}/restore").json() == {"models": []}
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    assert "castle" in names(browser)


def test_the_trash_may_lie_on_another_disk_which_may_be_full(
    browser: TestClient, services: Services, monkeypatch: pytest.MonkeyPatch
) -> None:
    elsewhere(monkeypatch)
    models = services.settings.models_dir
    unet = put(services, "checkpoints/fold/unet/diffusion_pytorch_model.safetensors", safetensors())
    (models / "checkpoints/fold/model_index.json").write_text('{"_class_name": "StableDiffusionPipeline"}')
    (models / "checkpoints/castle.atelier.json").write_text('{"title": "Keep"}')
    before = {path: path.read_bytes() for path in models.rglob("*") if path.is_file()}
    for name in ("castle", "fold"):
        with monkeypatch.context() as patch:
            full_at(patch, f"{name}.safetensors" if name == "castle" else unet.name)
            answer = browser.delete(f"/api/models/{id_of(browser, name)}")
            assert (answer.status_code, "No space left" in answer.json()["detail"]) == (507, True)
        assert browser.get("/api/models/trash").json() == {"models": []}
        assert {path: path.read_bytes() for path in models.rglob("*") if path.is_file()} == before
        trashed = browser.delete(f"/api/models/{id_of(browser, name)}").json()
        assert name not in names(browser)
        assert browser.post(f"/api/models/trash/{trashed['id']}/restore").json() == {"models": []}
        assert {path: path.read_bytes() for path in models.rglob("*") if path.is_file()} == before


def test_the_trash_is_emptied_only_on_demand(browser: TestClient, services: Services) -> None:
    trashed = browser.delete(f"/api/models/{id_of(browser, 'castle')}").json()
    assert browser.delete(f"/api/models/trash/{trashed['id']}").json() == {"models": []}
    assert browser.post(f"/api/models/trash/{trashed['id']}/restore").status_code == 404


def test_a_forged_record_in_the_trash_leads_nowhere(browser: TestClient, services: Services, tmp_path: Path) -> None:
    folder = services.settings.models_dir / ".trash" / ("a" * 16)
    folder.mkdir(parents=True)
    record = {"id": "a" * 16, "name": "x", "kind": "lora", "size": 1, "when": 1, "place": str(tmp_path / "elsewhere")}
    (folder / "trash.json").write_text(json.dumps(record))
    assert browser.get("/api/models/trash").json() == {"models": []}
    assert browser.post(f"/api/models/trash/{'a' * 16}/restore").status_code == 404


def test_the_embedded_model_and_those_of_others_stay(tmp_path: Path, server: Server) -> None:
    other = tmp_path / "webui" / "models" / "Stable-diffusion"
    other.mkdir(parents=True)
    (other / "theirs.safetensors").write_bytes(checkpoint())
    services = atelier(tmp_path, a1111_dir=tmp_path / "webui")
    services = replace(services, catalog=Catalog(services.settings.roots))
    put(services, "starter/controlnet/canny/diffusion_pytorch_model.safetensors", safetensors())
    put(services, "starter/controlnet/canny/config.json", b'{"_class_name": "ControlNetModel"}')
    put(services, "controlnet/canny.safetensors", safetensors())
    for browser in visiting(services, server):
        assert names(browser, kind="controlnet") == ["canny", "starter/canny"]
        for name, reason in (("starter", "embedded"), ("theirs", "A1111"), ("starter/canny", "belongs to starter")):
            answer = browser.delete(f"/api/models/{id_of(browser, name)}")
            assert (answer.status_code, reason in answer.json()["detail"]) == (403, True)
    assert (other / "theirs.safetensors").exists()


# --- pickles


def test_consent_is_for_one_file_and_can_be_withdrawn(
    tmp_path: Path, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    services = atelier(tmp_path)
    services = replace(services, catalog=Catalog(services.settings.roots))  # which knows of consents
    put(services, "checkpoints/castle.safetensors", checkpoint())
    put(services, "checkpoints/old.ckpt", b"PK\x03\x04")
    recipes: list[Any] = []
    for browser in visiting(services, server):
        id = id_of(browser, "old")
        assert browser.post(f"/api/models/{id}/convert", json={}).status_code == 403
        details = browser.post(f"/api/models/{id}/consent").json()
        assert (details["consented"], details["problem"]) == (True, None)
        assert found(browser, problems=True) == []
        assert browser.post(f"/api/models/{id}/default").status_code == 200
        with monkeypatch.context() as patch:
            patch.setattr(Chores, "add", lambda self, recipe, out: str(recipes.append(recipe)))
            assert browser.post(f"/api/models/{id}/convert", json={}).status_code == 201
        assert recipes[0].a.sha256 == hashlib.sha256(b"PK\x03\x04").hexdigest()  # what the process will ask for
        assert not browser.delete(f"/api/models/{id}/consent").json()["consented"]
        assert "pickle" in found(browser, problems=True)[0]["problem"]
        assert browser.post(f"/api/models/{id_of(browser, 'castle')}/consent").status_code == 422


def test_from_another_machine_nobody_consents(tmp_path: Path, server: Server) -> None:
    services = atelier(tmp_path)
    put(services, "checkpoints/old.ckpt", b"PK\x03\x04")
    for browser in visiting(services, server):
        answer = browser.post(f"/api/models/{id_of(browser, 'old')}/consent", headers={"X-Forwarded-For": "10.0.0.2"})
        assert answer.status_code == 403


# --- getting more


def test_a_download_from_look_to_list(browser: TestClient, server: Server) -> None:
    server.repository("ada/keep", {"keep.safetensors": checkpoint(), "old.ckpt": b"PK\x03\x04"}, licence="cc0-1.0")
    look = browser.post("/api/models/look", json={"source": "ada/keep"}).json()
    assert look["licence"] == "cc0-1.0"
    assert [(o["name"], o["checked"], o["pickle"]) for o in look["options"]] == [
        ("keep.safetensors", True, False),
        ("old.ckpt", True, True),
    ]
    answer = browser.post("/api/models/downloads", json={"source": "ada/keep", "name": "my keep"})
    assert answer.status_code == 201
    downloads = lambda: browser.get("/api/models/downloads").json()["downloads"]  # noqa: E731
    wait_for(lambda: downloads()[0]["state"] == "done")
    assert "my keep" in names(browser)
    details = browser.get(f"/api/models/{id_of(browser, 'my keep')}").json()
    assert (details["licence"], details["source"]) == ("cc0-1.0", f"{server.url}/ada/keep")
    refused = browser.post("/api/models/downloads", json={"source": "ada/keep", "key": "old.ckpt"})
    assert (refused.status_code, "can run code" in refused.json()["detail"]) == (403, True)


def test_downloads_pause_go_on_and_are_cancelled(browser: TestClient, server: Server, services: Services) -> None:
    server.repository("ada/keep", {"keep.safetensors": checkpoint()})
    server.go_on.clear()
    id = browser.post("/api/models/downloads", json={"source": "ada/keep"}).json()["id"]
    paused = browser.post(f"/api/models/downloads/{id}/pause").json()["downloads"]
    assert paused[0]["state"] == "paused"
    assert browser.post(f"/api/models/downloads/{id}/resume").json()["downloads"][0]["state"] in ("waiting", "running")
    assert browser.post(f"/api/models/downloads/{id}/cancel").json() == {"downloads": []}
    server.go_on.set()
    assert browser.post(f"/api/models/downloads/{id}/pause").status_code == 404


def test_nothing_is_fetched_where_the_settings_do_not_allow_it(tmp_path: Path, server: Server) -> None:
    services = atelier(tmp_path)
    for browser in visiting(services, server):
        for route, values in (("look", {"source": "ada/keep"}), ("downloads", {"source": "ada/keep"})):
            answer = browser.post(f"/api/models/{route}", json=values)
            assert (answer.status_code, "allow_downloads" in answer.json()["detail"]) == (403, True)
        offers = browser.get("/api/models/offers").json()
        assert "models add" in offers["refusal"]
        assert len(offers["offers"]) == 3
        assert [offer["best"] for offer in offers["offers"]].count(True) == 1
    assert server.asked == []


def test_a_token_is_kept_and_never_told(browser: TestClient, services: Services) -> None:
    answer = browser.post("/api/models/tokens", json={"site": "huggingface", "token": "hf_secretsecret"})
    assert answer.json() == {"huggingface": True, "civitai": False}
    assert "hf_secret" not in browser.get("/api/models/tokens").text + repr(services.settings)
    assert browser.post("/api/models/tokens", json={"site": "nowhere", "token": "x" * 20}).status_code == 404


# --- making more


def test_a_merge_is_queued_with_its_models(browser: TestClient, services: Services) -> None:
    ids = {field: id_of(browser, name) for field, name in (("a", "castle"), ("b", "forest"))}
    values = {"what": "sum", **ids, "share": 0.4, "name": "both"}
    answer = browser.post("/api/models/merge", json=values).json()
    (chore,) = answer["chores"]
    assert (chore["what"], chore["models"], chore["name"]) == ("sum", ["castle", "forest"], "both.safetensors")
    assert browser.post("/api/models/merge", json=values).status_code == 409
    assert browser.post("/api/models/merge", json={**values, "share": "much"}).status_code == 422
    assert browser.post("/api/models/merge", json={**values, "name": ""}).status_code == 422
    assert browser.post("/api/models/merge", json={**values, "a": "0" * 16}).status_code == 404
    assert browser.post(f"/api/models/chores/{answer['id']}/stop").json()["chores"][0]["state"] == "stopped"


def test_a_conversion_has_a_name_that_says_what_was_done(browser: TestClient) -> None:
    answer = browser.post(f"/api/models/{id_of(browser, 'castle')}/convert", json={"precision": "bf16"}).json()
    assert answer["chores"][0]["name"] == "castle-bf16.safetensors"
    browser.post(f"/api/models/chores/{answer['id']}/stop")
