"""The Extensions tab and the browser API of extensions, in a real browser."""

import io
import zipfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from backend import registry
from tests.end_to_end.conftest import Painter, Studio, Watch, new_context, painted, serving, shown

pytestmark = pytest.mark.browser
CODE = "from backend.extension import Extension\nclass E(Extension):\n    pass\n"
INPUTS = ("dialog [type=number]:not([class])", "#field-width")
BADGE = """
window.atelier.extend("badge", (api) => {
  window.badge = { jobs: [], pictures: [], stop: api.onJob((job) => window.badge.jobs.push(job.state)) };
  window.badge.ask = () => api.dialog("How many?", api.element("input", { type: "number" }));
  api.prompt = `${api.prompt}, ink`;
  api.addAction({ label: "Badge", help: "Pins a badge on it", icon: "M5 5h14v14H5Z", run(picture) {
    window.badge.pictures.push(picture);
    api.prompt = `${api.prompt}, seed ${picture.seed}`;
  } });
  api.addAction({ label: "Clumsy", run: () => { throw new Error("dropped it"); } });
  api.addAction({ label: "Hang it in the hall beside the others", run() {} });
});
"""


def extension(folder: Path, id: str, title: str, **files: str) -> None:
    (folder / id / "web").mkdir(parents=True)
    (folder / id / "extension.toml").write_text(f'id = "{id}"\nversion = "1.0"\ntitle = "{title}"\n')
    (folder / id / "__init__.py").write_text(CODE)
    for name, text in files.items():
        (folder / id / "web" / f"{id}.{name}").write_text(text)


@pytest.fixture(scope="module")
def workshop(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Studio]:
    root = tmp_path_factory.mktemp("workshop")
    painter = Painter()
    services = painted(root, painter)
    folder = services.settings.extensions_dir
    extension(folder, "badge", "Badge", js=BADGE, css="#top { --badge: 1 }")
    extension(folder, "crash", "Crash", js="throw new Error('the script is broken');")
    extension(folder, "asleep", "Asleep", js="window.asleep = true;")
    (folder / "torn").mkdir()
    (folder / "torn" / "extension.toml").write_text("id =")
    (services.settings.data_dir / "extensions.json").write_text('{"disabled": {"asleep": ""}}')
    loaded = registry.load(folder, services.settings.data_dir)
    with serving(replace(services, registry=replace(loaded, notice="Safe mode: <b>glow</b>."))) as url:
        yield Studio(url, services, painter)


def opened(tab: Any, workshop: Studio, watch: Watch) -> Any:
    watch.expected = ("the script is broken", "dropped it")
    return shown(tab, workshop.url, watch)


def test_a_script_uses_prompt_toolbar_and_jobs(tab: Any, workshop: Studio, watch: Watch) -> None:
    page = opened(tab, workshop, watch)
    page.wait_for_function("window.badge")
    assert page.input_value("#field-prompt").endswith(", ink")
    assert page.evaluate("getComputedStyle(document.querySelector('#top')).getPropertyValue('--badge')") == "1"
    assert not page.evaluate("window.asleep")
    assert "Crash" in page.inner_text("#toasts")  # it is named, and the rest works
    assert "the script is broken" in page.inner_text("#toasts")
    page.fill("#field-prompt", "a red circle")
    assert workshop.painter
    workshop.painter.going.clear()
    page.click("#go")
    page.wait_for_function("window.badge.jobs.at(-1) === 'running'")
    workshop.painter.going.set()
    page.wait_for_selector("#stage .paper img.done")
    page.wait_for_function("window.badge.jobs.at(-1) === 'done'")
    page.set_viewport_size({"width": 1400, "height": 900})
    boxes = [page.locator(f"#stage {each}").first.bounding_box() for each in (".zoom", ".actions > *")]
    assert boxes[0]["x"] + boxes[0]["width"] <= boxes[1]["x"]  # however many buttons extensions add
    page.click("#stage [data-action='badge:Badge']")
    (picture,) = page.evaluate("window.badge.pictures")
    assert picture["url"].startswith(workshop.url)
    assert page.input_value("#field-prompt") == f"a red circle, seed {picture['seed']}"
    page.click("#stage [data-action='badge:Clumsy']")
    page.wait_for_function("document.querySelector('#toasts').innerText.includes('dropped it')")
    page.click("#expand")
    page.click("#lightbox [data-action='badge:Badge']")
    assert len(page.evaluate("window.badge.pictures")) == 2
    page.keyboard.press("Escape")
    page.evaluate("window.badge.ask()")
    grounds = [f"getComputedStyle(document.querySelector('{each}')).backgroundColor" for each in INPUTS]
    assert page.evaluate(grounds[0]) == page.evaluate(grounds[1])  # a script's own input can be read on the dark page
    assert watch.unexpected() == []


def test_the_tab_lists_switches_and_installs(tab: Any, workshop: Studio, watch: Watch) -> None:
    page = opened(tab, workshop, watch)
    page.click("#tab-extensions-button")
    page.wait_for_selector("[data-extension=torn].broken")
    assert "not TOML" in page.inner_text("[data-extension=torn] .problem")
    assert page.inner_text("#extensions .notice") == "Safe mode: <b>glow</b>."  # text, never markup
    assert not page.is_checked("#turn-asleep")
    page.check("#turn-asleep")
    page.wait_for_selector("[data-extension=asleep] .pending")
    page.wait_for_selector("#extensions .notice.recycle")  # a restart is needed
    page.uncheck("#turn-asleep")
    page.wait_for_selector("#extensions .notice.recycle", state="detached")

    manifest = 'id = "hello"\nversion = "2.0"\ntitle = "<i>Hello</i>"\ncapabilities = ["network"]\n'
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w") as archive:
        archive.writestr("extension.toml", manifest)
        archive.writestr("__init__.py", CODE)
    for answer, is_there in ((".answers .button:not(.agree)", False), (".agree", True)):
        with page.expect_file_chooser() as chooser:
            page.click("#extension-zip")
        chooser.value.set_files({"name": "hello.zip", "mimeType": "application/zip", "buffer": data.getvalue()})
        page.wait_for_selector("dialog.about-extension .asks")
        assert page.inner_text("dialog.about-extension h2") == "<i>Hello</i> 2.0"
        assert "network" in page.inner_text("dialog.about-extension .asks")
        page.click(f"dialog.about-extension {answer}")
        page.wait_for_selector("dialog.about-extension", state="detached")
        if is_there:
            page.wait_for_selector("[data-extension=hello] .pending")
        assert (workshop.services.settings.extensions_dir / "hello").is_dir() == is_there
    page.click("#remove-hello")
    page.click("dialog.about-extension .agree")
    page.wait_for_selector("[data-extension=hello]", state="detached")

    page.fill("#extension-source", "ext::sh -c true")
    page.click("#extension-look")
    page.wait_for_selector("#toasts .toast.error >> text=only addresses")
    watch.expected = (*watch.expected, "422")
    assert watch.unexpected() == []


@pytest.mark.parametrize("locale", ["en-US", "de-DE"])
def test_the_names_of_the_tabs_are_readable(browser: Any, workshop: Studio, watch: Watch, locale: str) -> None:
    context = new_context(browser, locale=locale)
    page = opened(context.new_page(), workshop, watch)
    wide = "[...document.querySelectorAll('#rail > .tab-wrapper button')].map((b) => [b.scrollWidth, b.clientWidth])"
    for width, height in ((1280, 800), (1024, 768), (390, 844)):
        page.set_viewport_size({"width": width, "height": height})
        found = page.evaluate(wide)
        assert len(found) >= 2
        assert all(text <= room for text, room in found), (width, found)
    context.close()


def test_where_nothing_may_be_changed_the_tab_says_why(tab: Any, workshop: Studio, watch: Watch) -> None:
    page = opened(tab, workshop, watch)
    refused = {"refusal": "other machines can reach this server", "paths": False}
    page.route("**/api/extensions", lambda route: route.fulfill(json={**route.fetch().json(), **refused}))
    page.click("#tab-extensions-button")
    page.wait_for_selector("#extensions .refusal")
    assert page.inner_text("#extensions .refusal p") == "Other machines can reach this server."
    assert "python app.py extensions install" in page.inner_text("#extensions .refusal code")
    assert page.is_disabled("#turn-badge")
    assert page.query_selector("#extension-source, #extensions .chores") is None
    assert watch.unexpected() == []
