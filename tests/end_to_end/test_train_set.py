"""The Train tab up to the settings: bringing pictures, captions, what the trainer sees, in a real browser."""

import base64
import json
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from backend.errors import TrainingFailed
from backend.params import validate
from backend.training import records
from backend.training.params import TrainParams, relief
from tests.end_to_end.conftest import Studio, Watch, open_page
from tests.test_workbench import drawn, zipped
from tests.waiting import wait_for

pytestmark = pytest.mark.browser
TAB = "#tab-train-button"
DROP = """([selector, files]) => {
  const transfer = new DataTransfer();
  for (const [name, data] of files) {
    const bytes = Uint8Array.from(atob(data), (one) => one.charCodeAt(0));
    transfer.items.add(new File([bytes], name, { type: name.endsWith("zip") ? "application/zip" : "" }));
  }
  const event = (type) => new DragEvent(type, { dataTransfer: transfer, bubbles: true, cancelable: true });
  const place = document.querySelector(selector);
  place.dispatchEvent(event("dragover"));
  window.veiled = document.querySelector("#veil").innerText;
  place.dispatchEvent(event("drop"));
}"""


@pytest.fixture(autouse=True)
def no_sets(studio: Studio) -> Iterator[None]:
    yield
    shutil.rmtree(studio.services.settings.data_dir / "datasets", ignore_errors=True)


def folder(studio: Studio, name: str = "cats") -> Path:
    return studio.services.settings.data_dir / "datasets" / name


def drop(page: Any, selector: str, files: dict[str, bytes]) -> None:
    coded = [[name, base64.b64encode(data).decode()] for name, data in files.items()]
    page.evaluate(DROP, [selector, coded])


def cats(tmp_path: Path, count: int = 3) -> dict[str, bytes]:
    inside: dict[str, bytes | str] = {}
    for number in range(count):
        inside |= {f"{number}.png": drawn(number, (256, 96)), f"{number}.txt": f"a cat, number {number}"}
    return {"cats.zip": zipped(tmp_path / "cats.zip", inside).read_bytes()}


def brought(page: Any, tmp_path: Path, count: int = 3) -> None:
    page.click(TAB)
    drop(page, "#train .home .drop", cats(tmp_path, count))
    wait_for_pictures(page, count)


def wait_for_pictures(page: Any, count: int) -> None:
    page.wait_for_function(
        "count => document.querySelectorAll('#train .shot').length === count"
        " && [...document.querySelectorAll('#train .shot img')].every((one) => one.complete)",
        arg=count,
    )


def test_a_dropped_zip_becomes_a_set(page: Any, tmp_path: Path, studio: Studio) -> None:
    brought(page, tmp_path)
    assert page.evaluate("veiled") == "A new set of these pictures"
    assert page.inner_text("#train h2") == "cats"
    assert sorted(path.name for path in folder(studio).glob("*.txt")) == ["0.txt", "1.txt", "2.txt"]
    drop(page, "#train", {"one more.png": drawn(7), "one more.txt": b"a dog", "notes.md": b"x"})
    wait_for_pictures(page, 4)
    assert page.evaluate("veiled") == "Add to cats"
    assert (folder(studio) / "one more.txt").read_text() == "a dog"
    page.wait_for_selector("#toasts >> text=one file is of another kind")
    page.reload()
    page.wait_for_function("window.atelier?.state.known")
    page.click(TAB)  # where it was
    wait_for_pictures(page, 4)


def test_what_is_no_set_is_said(page: Any, tmp_path: Path, watch: Watch) -> None:
    watch.expected = ("422",)
    page.click(TAB)
    evil = zipped(tmp_path / "evil.zip", {"../../evil.png": drawn()}).read_bytes()
    drop(page, "#train .home .drop", {"evil.zip": evil})
    page.wait_for_selector("#toasts .error >> text=bad name")


def test_pictures_are_left_out_and_sorted_with_keys_and_mouse(page: Any, tmp_path: Path, studio: Studio) -> None:
    brought(page, tmp_path)
    page.focus("#train .shot[data-name='0.png']")
    page.keyboard.press("ArrowRight")
    page.keyboard.press("Delete")
    wait_for_pictures(page, 2)
    assert (folder(studio) / ".excluded" / "1.png").exists()
    page.click("#train .chips >> text=Left out")
    page.hover("#train .shot")
    page.click("#train .shot .out-in")
    wait_for_pictures(page, 3)
    page.click("#train .shot[data-name='0.png']")
    page.click("#train .shot[data-name='2.png']", modifiers=["Shift"])
    assert page.inner_text("#train .selection strong") == "3 chosen"
    page.click("#train .selection >> text=Put into a folder")
    page.fill(".ask input[type=text]", "tom")
    page.fill(".ask input[type=number]", "4")
    page.click(".ask .agree")
    page.wait_for_selector("#train .shot .times >> text=× 4")
    page.fill("#train .folder-row .box", "7")
    page.press("#train .folder-row .box", "Enter")
    page.wait_for_selector("#train .shot .times >> text=× 7")
    assert len(list((folder(studio) / "7_tom").glob("*.png"))) == 3


@pytest.mark.slow
def test_the_crops_follow_the_resolution(page: Any, tmp_path: Path) -> None:
    brought(page, tmp_path, 1)
    page.wait_for_selector("#train .crop")  # 256 x 96 is wider than 2 : 1
    page.click("#train .eyes >> text=As the trainer sees it")
    page.wait_for_function("document.querySelector('#train .shot img')?.naturalWidth === 128")
    page.select_option("#train-side", "256")
    page.wait_for_function("document.querySelector('#train .shot img')?.naturalWidth > 300")
    page.wait_for_selector("#train .badge.small")
    page.click("#train .problem-row[data-flag=small]")
    page.dblclick("#train .shot")
    page.wait_for_selector(".train-picture .flags >> text=it is enlarged")


def test_captions_are_kept_as_they_are_written(page: Any, tmp_path: Path, studio: Studio) -> None:
    brought(page, tmp_path)
    page.click("#train .walk [data-step=captions]")
    first = page.locator("#train .caption-row textarea").first
    first.fill("a cat, <b>red</b>")
    first.press("Enter")
    page.wait_for_selector("#train .caption-row .kept .icon-check")
    assert (folder(studio) / "0.txt").read_text() == "a cat, <b>red</b>"
    assert page.evaluate("document.activeElement.value") == "a cat, number 1"
    page.click("#train .cloud .chip >> text=number 2")
    assert page.locator("#train .caption-row").count() == 1


def test_many_captions_are_changed_and_put_back(page: Any, tmp_path: Path, studio: Studio) -> None:
    brought(page, tmp_path)
    page.click("#train .walk [data-step=captions]")
    page.click("#train .bulk [data-kind=replace]")
    page.fill("#train-find", r"(\w+) cat")
    page.check("#train-regex")
    page.fill("#train-text", r"\1 dog")
    page.wait_for_selector("#train .sample ins >> text=a dog, number 0")
    page.click("#train .bulk .primary >> text=Change 3")
    page.wait_for_function("document.querySelector('#train .caption-row textarea').value === 'a dog, number 0'")
    assert (folder(studio) / "2.txt").read_text() == "a dog, number 2"
    page.click("#train .bulk >> text=Undo")
    page.wait_for_function("document.querySelector('#train .caption-row textarea').value === 'a cat, number 0'")


def test_a_captioner_is_stopped_after_a_reload_too(page: Any, studio: Studio, monkeypatch: pytest.MonkeyPatch) -> None:
    captioner = studio.services.settings.models_dir / "captioners" / "blip"
    captioner.mkdir(parents=True)
    (captioner / "config.json").write_text('{"model_type": "blip"}')

    def write(paths: list[Path], name: str, tell: Callable[[int, str], object], go_on: Callable[[], object]) -> None:
        tell(0, "a tom")
        while True:
            go_on()
            time.sleep(0.02)

    monkeypatch.setattr(studio.services.trainings, "caption", write)
    page.click(TAB)
    drop(page, "#train .home .drop", {"0.png": drawn(0), "1.png": drawn(1)})
    wait_for_pictures(page, 2)
    page.click("#train .walk [data-step=captions]")
    page.click("#train-auto")
    page.wait_for_selector("text=1 of 2 captions are written")
    page.reload()
    page.wait_for_function("window.atelier?.state.known")
    page.click(TAB)
    page.click("#train-auto-stop")
    page.wait_for_selector("#train-auto:not([disabled])")
    assert [area.input_value() for area in page.locator("#train .caption-row textarea").all()] == ["a tom", ""]


def test_a_pattern_that_is_none_is_said_at_once(page: Any, tmp_path: Path, watch: Watch) -> None:
    watch.expected = ("422",)
    brought(page, tmp_path)
    page.click("#train .walk [data-step=captions]")
    page.click("#train .bulk [data-kind=replace]")
    page.check("#train-regex")
    page.fill("#train-find", "(")
    page.wait_for_selector("#train .bulk .problem >> text=no regular expression")
    assert page.is_disabled("#train .bulk .primary")


def test_out_of_memory_is_helped_by_a_button(
    page: Any, tmp_path: Path, studio: Studio, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The process that trains is played; that it runs out of memory for real, tests/test_training.py shows."""
    trainings = studio.services.trainings
    tried = []

    def train(kind: str, values: dict[str, Any], hear: object) -> dict[str, Any]:
        training = records.read(trainings.root, values["name"])
        tried.append(training.params.gradient_checkpointing)
        if len(tried) == 1:
            changes = relief(training.params)
            replace(training, remedy=changes).save()
            raise TrainingFailed("out of memory on cuda: set gradient_checkpointing=true", changes)
        return {}

    monkeypatch.setattr(trainings.processes[0], "run", train)
    brought(page, tmp_path)
    params = validate(TrainParams, {"model": "starter", "gradient_checkpointing": False})
    trainings.begin("tom", folder(studio), params)
    page.click("#train .to-home")
    page.click("[data-training=tom]")
    page.wait_for_selector("#train .run[data-state=failed] >> text=Out of memory on cuda")
    assert "Gradient checkpointing: on" in page.inner_text("#train .trouble")
    page.click("#train [data-act=apply]")
    page.wait_for_selector("#train .run:not([data-state=failed])")
    wait_for(lambda: tried == [False, True])


@pytest.mark.slow
def test_pictures_come_from_the_gallery(page: Any, studio: Studio) -> None:
    page.fill("#field-prompt", "a red circle")
    page.click("#go")
    page.wait_for_selector("#stage .paper img.done")
    page.click(TAB)
    page.click("#train .home >> text=From the gallery")
    page.click(".train-gallery .picking button")
    page.click(".train-gallery .answers .primary")
    wait_for_pictures(page, 1)
    assert "a red circle" in page.inner_text("#train .shot .below")
    assert [path.read_text() for path in folder(studio, "My pictures").glob("*.txt")] == ["a red circle"]


@pytest.mark.slow
def test_note_rename_and_delete(page: Any, tmp_path: Path, studio: Studio, watch: Watch) -> None:
    watch.expected = ("422",)
    brought(page, tmp_path)
    page.fill("#train-note-licence", "CC0")
    page.press("#train-note-licence", "Tab")
    page.click("[aria-label=Rename]")
    assert page.evaluate("document.activeElement.value") == "cats"
    page.keyboard.type("../up")  # over what is chosen
    page.keyboard.press("Enter")
    page.wait_for_selector(".ask .problem >> visible=true")  # and nothing is lost
    page.fill(".ask input", "toms")
    page.press(".ask input", "Enter")
    page.wait_for_selector("#train h2 >> text=toms")
    page.wait_for_function(
        "[...document.querySelectorAll('#train .shot img')].every((one) => one.src.includes('/toms/') && one.complete)"
    )
    assert json.loads((folder(studio, "toms") / "dataset.json").read_text())["licence"] == "CC0"
    page.click("[aria-label='Delete the set']")
    page.click(".ask .agree")
    page.wait_for_selector("#train .home")
    assert not folder(studio, "toms").exists()


def test_it_fits_a_phone(context: Any, studio: Studio, watch: Watch, tmp_path: Path) -> None:
    context.add_init_script("localStorage.setItem('atelier:language', '\"de\"')")
    page = open_page(context, studio.url, watch)
    page.set_viewport_size({"width": 390, "height": 844})
    brought(page, tmp_path)
    for step in ("set", "captions", "settings"):
        page.click(f"#train .walk [data-step={step}]")
        wide = page.evaluate("document.documentElement.scrollWidth")
        assert wide <= 390, step
    assert watch.unexpected() == []
