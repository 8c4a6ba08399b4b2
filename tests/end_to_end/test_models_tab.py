"""The Models tab, in a real browser: looking, editing, deleting and restoring, downloading, merging."""

import json
import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from backend.api.models import Works
from backend.downloads.network import Network
from backend.downloads.sources import Hosts
from tests.end_to_end.conftest import Painter, Studio, Watch, new_context, painted, serving, shown
from tests.hub import Server, hub
from tests.test_api_models import checkpoint

pytestmark = pytest.mark.browser
PICTURES = os.environ.get("ATELIER_PICTURES")
"""A folder for pictures of the tab, for people to look at."""


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with hub() as server:
        yield server


@pytest.fixture(scope="module")
def studio(tmp_path_factory: pytest.TempPathFactory, server: Server) -> Iterator[Studio]:
    root = tmp_path_factory.mktemp("models-tab")
    painter = Painter()
    services = painted(root, painter)
    services = replace(services, settings=services.settings.model_copy(update={"allow_downloads": True}))
    folder = services.settings.models_dir / "checkpoints"
    for number in range(130):
        (folder / f"model {number:03}.safetensors").write_bytes(checkpoint())
    for name, seed in (("castle", 0), ("forest", 1)):
        weighty(folder / f"{name}.safetensors", seed)
    flux = {"double_blocks.0.img_attn.qkv": (1, 1), "img_in": (1, 64), "guidance_in.in_layer": (1, 1)}
    save_file({f"{name}.weight": torch.zeros(shape) for name, shape in flux.items()}, folder / "dev.safetensors")
    (folder / "castle.atelier.json").write_text(json.dumps({"title": "<b>Castle</b>", "trigger": "castle, keep"}))
    (folder / "old.ckpt").write_bytes(b"PK\x03\x04")
    works = Works(services, lambda: Network(inside=(server.place,), patience=5), Hosts(server.url))
    with serving(services, works) as url:
        yield Studio(url, services, painter)


def weighty(path: Path, seed: int) -> None:
    """The same tensors with numbers in them."""
    path.write_bytes(checkpoint())
    noise = torch.Generator().manual_seed(seed)
    save_file({name: torch.randn(t.shape, generator=noise).half() for name, t in load_file(path).items()}, path)


def opened(tab: Any, studio: Studio, watch: Watch) -> Any:
    page = shown(tab, studio.url, watch)
    page.click("#tab-models-button")
    page.wait_for_selector("#models .model-card")
    return page


def pictured(page: Any, name: str) -> None:
    if PICTURES:
        page.screenshot(path=f"{PICTURES}/{name}.png")


def test_browse_search_and_page(tab: Any, studio: Studio, watch: Watch) -> None:
    page = opened(tab, studio, watch)
    pictured(page, "models")
    assert page.locator("#models .model-card").count() == 60  # a page
    page.evaluate("document.querySelector('#models .end').scrollIntoView()")
    page.wait_for_function("document.querySelectorAll('#models .model-card').length === 120")
    new = studio.services.settings.models_dir / "checkpoints" / "aardvark.safetensors"
    new.write_bytes(checkpoint())  # by somebody else
    page.wait_for_selector("#models [data-model=aardvark]")
    assert page.locator("#models .model-card").count() == 120  # nobody is thrown back to the first page
    new.unlink()
    page.wait_for_selector("#models [data-model=aardvark]", state="detached")
    page.set_viewport_size({"width": 1440, "height": 3000})
    page.fill("#models-search", "model")
    page.wait_for_function("document.querySelectorAll('#models .model-card').length === 120")
    page.fill("#models-search", "keep")
    page.wait_for_function("document.querySelectorAll('#models .model-card').length === 1")
    assert page.inner_text("#models .model-card strong") == "<b>Castle</b>"  # text, never markup
    page.fill("#models-search", "")
    page.click("#models .kinds .chip >> text=Cannot be used")
    page.wait_for_selector("#models .model-card.broken >> text=pickle")
    pictured(page, "models-problems")
    assert watch.unexpected() == []


def test_edit_and_see_it_in_the_form(tab: Any, studio: Studio, watch: Watch) -> None:
    page = opened(tab, studio, watch)
    page.fill("#models-search", "forest")
    page.click("#models [data-model=forest]")
    page.wait_for_selector(".about-model")
    page.fill(".about-model .fields input >> nth=0", "Deep forest")
    page.fill(".about-model input[name=steps]", "33")
    page.select_option(".about-model select[name=sampler_name]", "Euler")
    pictured(page, "models-about")
    page.click(".about-model button[type=submit]")
    page.wait_for_selector("#models [data-model=forest] >> text=Deep forest")
    said = json.loads((studio.services.settings.models_dir / "checkpoints/forest.atelier.json").read_text())
    assert said == {"title": "Deep forest", "defaults": {"sampler_name": "Euler", "steps": 33}}
    page.click("#models [data-model=forest]")
    page.click(".about-model .use")
    page.wait_for_selector("#go", state="visible")
    page.wait_for_function("document.querySelector('#model').value === 'forest'")
    assert page.evaluate("atelier.request().model") == "forest"
    assert watch.unexpected() == []


def test_a_flux_that_is_kontext_is_said_to_be_one(tab: Any, studio: Studio, watch: Watch) -> None:
    page = opened(tab, studio, watch)
    page.click("#models .kinds .chip >> text=Diffusion models")
    page.click("#models [data-model=dev]")
    page.select_option(".about-model select[name=variant]", "edit")
    pictured(page, "models-kontext")
    page.click(".about-model button[type=submit]")
    page.wait_for_selector(".about-model", state="detached")
    said = studio.services.settings.models_dir / "checkpoints/dev.atelier.json"
    assert json.loads(said.read_text()) == {"variant": "edit"}
    assert studio.services.catalog.find("dev").edition == "kontext"
    page.click("#models [data-model=dev]")
    assert page.input_value(".about-model select[name=variant]") == "edit"
    assert watch.unexpected() == []


def test_delete_and_restore(tab: Any, studio: Studio, watch: Watch) -> None:
    page = opened(tab, studio, watch)
    page.fill("#models-search", "model 007")
    page.click("#models [data-model='model 007']")
    page.click(".about-model .delete")
    page.wait_for_selector("#models [data-model='model 007']", state="detached")
    assert not (studio.services.settings.models_dir / "checkpoints/model 007.safetensors").exists()
    page.click("#models .views >> text=Trash")
    page.click("#models [data-trashed='model 007'] .restore")
    page.wait_for_selector("#models .trash >> text=The trash is empty")
    page.click("#models .views >> text=Yours")
    page.wait_for_selector("#models [data-model='model 007']")
    assert watch.unexpected() == []


def test_download_with_progress(tab: Any, studio: Studio, watch: Watch, server: Server) -> None:
    server.repository("ada/harbour", {"harbour.safetensors": checkpoint()}, licence="cc0-1.0")
    path = "/ada/harbour/resolve/c0ffee/harbour.safetensors"
    server.things[path].piece, server.things[path].pause = 20_000, 0.1
    page = opened(tab, studio, watch)
    page.click("#models .views >> text=Get more")
    page.wait_for_selector("#models .offer.best")
    page.fill("#models-source", "ada/harbour")
    page.click("#models-look")
    page.click("#models [data-option='harbour.safetensors'] .button")
    page.click(".about-model .agree")
    page.wait_for_selector("#models [data-work='harbour.safetensors'].running")
    page.wait_for_function("parseInt(document.querySelector('#models .job .percent')?.innerText) > 5")
    pictured(page, "models-download")
    page.click("#models .job >> text=Pause")
    page.wait_for_selector("#models .job.paused")
    page.click("#models .job >> text=Go on")
    page.wait_for_selector("#toasts >> text=is ready", timeout=30_000)
    page.click("#models .views >> text=Yours")
    page.fill("#models-search", "harbour")
    page.wait_for_selector("#models [data-model=harbour]")
    assert watch.unexpected() == []


def test_merge(tab: Any, studio: Studio, watch: Watch) -> None:
    page = opened(tab, studio, watch)
    page.fill("#models-search", "castle")
    page.click("#models [data-model=castle]")
    page.click(".about-model .answers >> text=Merge")
    page.wait_for_selector("#models .merging select[name=a]")
    a = page.evaluate("document.querySelector('#models .merging select[name=a]').selectedOptions[0].text")
    assert "Castle" in a
    assert page.input_value("#models .merging select[name=b]") != page.input_value("#models .merging select[name=a]")
    page.fill("#models .merging input[name=name]", "both")
    option = page.locator("#models .merging select[name=b] option", has_text="orest").first.get_attribute("value")
    page.select_option("#models .merging select[name=b]", option)
    pictured(page, "models-merge")
    page.click("#merge-go")
    page.wait_for_selector("#models [data-work='both.safetensors']", timeout=60_000)
    page.wait_for_selector("#toasts >> text=is ready", timeout=240_000)
    folder = studio.services.settings.models_dir / "checkpoints"
    a, b, both = (load_file(folder / f"{name}.safetensors") for name in ("castle", "forest", "both"))
    key = "model.diffusion_model.input_blocks.0.0.weight"
    assert torch.allclose(both[key].float(), (a[key].float() + b[key].float()) / 2, atol=2e-3)
    assert watch.unexpected() == []


@pytest.mark.parametrize("theme", ["dark", "light"])
def test_it_fits_a_phone_and_speaks_german(browser: Any, studio: Studio, watch: Watch, theme: str) -> None:
    context = new_context(browser, viewport={"width": 390, "height": 844}, locale="de-DE")
    context.add_init_script(f"localStorage.setItem('atelier:theme', JSON.stringify('{theme}'))")
    page = opened(context.new_page(), studio, watch)
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    assert "Vorhanden" in page.inner_text("#models .views")
    pictured(page, f"models-phone-{theme}")
    page.click("#models .views >> text=Holen")
    page.wait_for_selector("#models .offer")
    pictured(page, f"models-phone-get-{theme}")
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    context.close()
    assert watch.unexpected() == []
