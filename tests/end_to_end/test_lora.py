"""The cards of LoRAs and the completion of the prompt, in a real browser."""

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from backend import registry
from backend.settings import ROOT
from tests.end_to_end.conftest import Studio, Watch, open_page, painted, serving
from tests.end_to_end.painter import Painter

pytestmark = pytest.mark.browser
TO_K = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn2_to_k.lora_down.weight"
PROMPT = "#field-prompt"


def lora(path: Path, width: int, **metadata: str) -> Path:
    content = {"__metadata__": metadata, TO_K: {"dtype": "F16", "shape": [1, width], "data_offsets": [0, 2 * width]}}
    head = json.dumps(content).encode()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(len(head).to_bytes(8, "little") + head + bytes(2 * width))
    return path


@pytest.fixture(scope="module")
def studio(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Studio]:
    root = tmp_path_factory.mktemp("loras")
    painter = Painter()
    services = painted(root, painter)
    shutil.copytree(ROOT / "extensions" / "lora", services.settings.extensions_dir / "lora")
    folder = services.settings.models_dir / "loras"
    frequency = json.dumps({"10_ink": {"ink": 40, "black lines": 21, "paper": 9, "<b>bold</b>": 2}})
    lora(folder / "ink wash.safetensors", 768, ss_tag_frequency=frequency, ss_network_dim="16")
    (folder / "ink wash.json").write_text(
        json.dumps(
            {"activation text": "ink, black lines", "preferred weight": 0.7, "notes": "<script>alert(1)</script>"}
        )
    )
    lora(folder / "faces" / "hero.safetensors", 768, ss_output_name="the-hero")
    lora(folder / "grand.safetensors", 2048)
    (folder / "torn.safetensors").write_bytes(b"torn")
    unet = services.settings.models_dir / "starter" / "unet"
    unet.mkdir()
    (unet / "config.json").write_text('{"cross_attention_dim": 768}')
    loaded = registry.load(
        services.settings.extensions_dir, models=services.settings.models_dir, kept=services.settings.data_dir
    )
    assert not loaded.broken
    services = type(services)(**{**services.__dict__, "registry": loaded})
    with serving(services) as url:
        yield Studio(url, services, painter)


@pytest.fixture(autouse=True)
def said(studio: Studio) -> None:
    """What stands beside a file, as each test finds it."""
    known = {"activation text": "ink, black lines", "preferred weight": 0.7, "notes": "<script>alert(1)</script>"}
    (studio.services.settings.models_dir / "loras" / "ink wash.json").write_text(json.dumps(known))


def opened(page: Any) -> None:
    page.click(".lora-open")
    page.wait_for_selector(".lora-browser .lora-card, .lora-browser .lora-count:not(:empty)")


def wait_for_names(page: Any, *wanted: str) -> None:
    page.wait_for_function(
        "wanted => JSON.stringify([...document.querySelectorAll('.lora-card')].map(c => c.dataset.lora)) === wanted",
        arg=json.dumps(wanted, separators=(",", ":")),
    )


def test_a_card_goes_into_the_prompt_and_out_again(page: Any) -> None:
    page.fill(PROMPT, "a cat")
    opened(page)
    wait_for_names(page, "faces/hero", "ink wash", "torn")  # of the model's family, and what nobody knows
    card = page.locator("[data-lora='ink wash'] .lora-main")
    card.click()
    assert page.input_value(PROMPT) == "a cat, ink, black lines <lora:ink wash:0.7>"
    assert card.get_attribute("aria-pressed") == "true"
    page.click("[data-lora='faces/hero'] .lora-main")
    assert page.input_value(PROMPT).endswith("<lora:ink wash:0.7> <lora:hero:1>")
    card.click()
    assert page.input_value(PROMPT) == "a cat <lora:hero:1>"
    assert page.is_disabled("[data-lora=torn] .lora-main")
    assert "damaged" in page.inner_text("[data-lora=torn]")
    page.keyboard.press("Escape")
    page.wait_for_selector(".lora-browser", state="detached")


def test_a_card_that_goes_takes_nothing_else_along(page: Any, studio: Studio) -> None:
    """Its trigger words may be a part of others, or stand there without it."""
    beside = studio.services.settings.models_dir / "loras" / "ink wash.json"
    beside.write_text('{"activation text": "ink,", "negative text": "cat"}')
    page.fill(PROMPT, "a drink  of ink,, cold\nand dinky")
    page.fill("#field-negative_prompt", "category")
    opened(page)
    card = page.locator("[data-lora='ink wash'] .lora-main")
    card.click()
    assert page.input_value(PROMPT) == "a drink  of ink,, cold\nand dinky <lora:ink wash:1>"
    assert page.input_value("#field-negative_prompt") == "category, cat"
    card.click()
    assert page.input_value(PROMPT) == "a drink  of ink,, cold\nand dinky"
    assert page.input_value("#field-negative_prompt") == "category"


def test_the_next_cards_come_as_one_scrolls(page: Any, studio: Studio) -> None:
    folder = studio.services.settings.models_dir / "loras" / "many"
    for n in range(70):
        lora(folder / f"number {n:03}.safetensors", 768)
    opened(page)
    page.fill(".lora-bar [type=search]", "number")
    page.wait_for_function("document.querySelector('.lora-count').textContent.startsWith('70')")
    page.locator(".lora-card").last.scroll_into_view_if_needed()
    page.wait_for_function("document.querySelectorAll('.lora-card').length === 70")
    page.locator(".lora-card").last.scroll_into_view_if_needed()
    page.fill(".lora-bar [type=search]", "number 00")
    page.wait_for_function("document.querySelectorAll('.lora-card').length === 10")
    assert page.eval_on_selector(".lora-scroll", "e => e.scrollTop") == 0
    shutil.rmtree(folder)


def test_cards_are_searched_sorted_and_starred(page: Any) -> None:
    opened(page)
    wait_for_names(page, "faces/hero", "ink wash", "torn")
    page.click(".lora-bar .chip >> text=Only for SD 1.x")
    wait_for_names(page, "grand", "faces/hero", "ink wash", "torn")
    assert page.inner_text("[data-lora=grand] .lora-badge") == "SDXL"
    page.fill(".lora-bar [type=search]", "black LINES")
    wait_for_names(page, "ink wash")
    page.hover("[data-lora='ink wash']")
    page.click("[data-lora='ink wash'] .lora-star")
    page.wait_for_selector("[data-lora='ink wash'] .lora-star.on")
    page.fill(".lora-bar [type=search]", "")
    page.click(".lora-bar .chip >> text=Favourites")
    wait_for_names(page, "ink wash")
    page.click(".lora-bar .chip >> text=Favourites")
    page.select_option(".lora-bar select", "newest")
    page.wait_for_function("document.querySelectorAll('.lora-card').length === 4")
    page.fill(".lora-bar [type=search]", "no such thing")
    page.wait_for_function("document.querySelector('.lora-count').textContent.startsWith('No LoRA fits')")


def test_what_is_known_of_one_is_edited(page: Any, studio: Studio) -> None:
    page.fill(PROMPT, "a red square on a black background")
    page.click("#go")
    page.wait_for_selector("#stage .paper img.done")
    opened(page)
    page.hover("[data-lora='ink wash']")
    page.click("[data-lora='ink wash'] .lora-about")
    page.wait_for_selector(".lora-about-form")
    assert page.input_value("[name=notes]") == "<script>alert(1)</script>"
    assert page.get_by_role("button", name="<b>bold</b>").count() == 1  # text, never markup
    assert page.locator(".lora-word[aria-pressed=true]").all_inner_texts() == ["ink", "black lines"]
    page.click(".lora-word >> text=paper")
    page.click(".lora-word >> text=black lines")
    assert page.input_value("[name=trigger]") == "ink, paper"
    page.fill("[name=weight]", "0.85")
    page.fill("[name=title]", "Ink & wash")
    page.fill("[name=tags]", "drawing, black and white")
    page.click(".lora-from-stage")
    page.wait_for_selector(".lora-picture img")
    page.click(".lora-save")
    page.wait_for_selector(".lora-about-form", state="detached")
    page.wait_for_selector("[data-lora='ink wash'] img")
    assert page.inner_text("[data-lora='ink wash'] strong") == "Ink & wash"
    folder = studio.services.settings.models_dir / "loras"
    content = json.loads((folder / "ink wash.json").read_text())
    assert content == {
        "activation text": "ink, paper",
        "preferred weight": 0.85,
        "notes": "<script>alert(1)</script>",
        "title": "Ink & wash",
        "tags": ["drawing", "black and white"],
    }
    assert (folder / "ink wash.preview.png").stat().st_size
    page.wait_for_function("document.querySelector('.lora-card img').naturalWidth > 0")


def test_the_prompt_completes_names(page: Any) -> None:
    page.click(PROMPT)
    page.keyboard.type("a cat <lora:")
    page.wait_for_selector("#lora-completions [role=option] >> nth=1")
    options = page.locator("#lora-completions [role=option]")
    assert [text.split("\n")[0] for text in options.all_inner_texts()] == ["hero", "ink wash"]
    page.keyboard.press("ArrowDown")
    assert page.get_attribute(PROMPT, "aria-activedescendant") == "lora-completion-1"
    page.keyboard.press("ArrowDown")
    page.keyboard.press("Tab")
    assert page.input_value(PROMPT) == "a cat <lora:hero:1>"
    assert page.is_hidden("#lora-completions")
    page.keyboard.type(" and <lora:in")
    page.wait_for_selector("#lora-completions [role=option]")
    page.keyboard.press("Escape")
    assert page.is_hidden("#lora-completions")
    page.keyboard.type("k")
    page.wait_for_selector("#lora-completions [role=option]")
    page.keyboard.press("Enter")
    assert page.input_value(PROMPT).startswith("a cat <lora:hero:1> and <lora:ink wash:0.")
    page.keyboard.press("Control+z")
    assert page.input_value(PROMPT).endswith("<lora:ink")
    page.wait_for_function("document.activeElement.id === 'field-prompt'")


def test_a_name_that_is_not_there_is_told_at_the_prompt(page: Any, studio: Studio) -> None:
    page.fill(PROMPT, "a cat <lora:her:1>")
    jobs = len(studio.services.jobs.recent())
    page.click("#go")
    page.wait_for_selector("[data-field=prompt] :text('near to it: hero')")
    assert len(studio.services.jobs.recent()) == jobs


def test_keys_change_the_weight_of_the_tag_at_the_caret(page: Any) -> None:
    def press(text: str, keys: str) -> str:
        """What becomes of a prompt with `|` for the caret."""
        page.fill(PROMPT, text.replace("|", ""))
        page.eval_on_selector(PROMPT, "(box, at) => box.setSelectionRange(at, at)", text.index("|"))
        for key in keys.split():
            page.press(PROMPT, key)
        return str(page.input_value(PROMPT))

    up, down = "Control+ArrowUp", "Control+ArrowDown"
    assert press("a cat <lora:2024:0.8|>", f"{up} {up}") == "a cat <lora:2024:0.9>"
    assert press("<lo|ra:ink> b", down) == "<lora:ink:0.95> b"
    assert press("<lora:ink:0.5:0.|8>", up) == "<lora:ink:0.5:0.85>"
    assert press("<lora:ink:te=0|:unet=1:stop=5>", down) == "<lora:ink:te=-0.05:unet=1:stop=5>"
    assert press("<lora:ink:lbw=OUTD|>", up) == "<lora:ink:1.05:lbw=OUTD>"
    assert press("a c|at <lora:ink:1>", up) == "a cat <lora:ink:1>"
    assert press("<lora:ink:|1>", f"{up} Control+z") == "<lora:ink:1>"


@pytest.mark.parametrize(("size", "theme"), [((1440, 900), "light"), ((390, 844), "dark")])
def test_it_fits_the_window(context: Any, studio: Studio, watch: Watch, size: tuple[int, int], theme: str) -> None:
    """With ATELIER_SHOTS=folder the pages are kept to be looked at."""
    context.add_init_script(f"localStorage.setItem('atelier:theme', '\"{theme}\"')")
    page = open_page(context, studio.url, watch)
    page.set_viewport_size({"width": size[0], "height": size[1]})
    shots = os.environ.get("ATELIER_SHOTS")
    page.click(PROMPT)
    page.keyboard.type("a cat, <lora:")
    page.wait_for_selector("#lora-completions [role=option]")
    if shots:
        page.screenshot(path=f"{shots}/lora-prompt-{theme}-{size[0]}.png")
    left, top, right, bottom = page.eval_on_selector(
        "#lora-completions", "e => ['left', 'top', 'right', 'bottom'].map(side => e.getBoundingClientRect()[side])"
    )
    assert 0 <= left < right <= size[0]
    assert 0 <= top < bottom <= size[1]
    page.keyboard.press("Enter")
    opened(page)
    page.wait_for_selector(".lora-card")
    if shots:
        page.wait_for_timeout(400)
        page.screenshot(path=f"{shots}/lora-{theme}-{size[0]}.png")
    box = page.eval_on_selector(
        ".lora-browser", "e => [e.scrollWidth - e.clientWidth, e.getBoundingClientRect().right]"
    )
    assert box[0] <= 0
    assert box[1] <= size[0]
    page.locator("[data-lora='ink wash'] .lora-about").dispatch_event("click")
    page.wait_for_selector(".lora-about-form")
    if shots:
        page.wait_for_timeout(300)
        page.screenshot(path=f"{shots}/lora-about-{theme}-{size[0]}.png")
    assert page.eval_on_selector(".lora-about-dialog", "e => e.scrollWidth - e.clientWidth") <= 0
    assert watch.unexpected() == []
