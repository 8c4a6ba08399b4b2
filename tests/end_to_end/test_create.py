"""The Create tab in a real browser: everything an artist does on the first day."""

import base64
import io
import json
import re
import shutil
import threading
from typing import Any

import pytest
from PIL import Image

from backend.request import GenerationRequest, parse_request
from tests.end_to_end.conftest import Studio, Watch, model, open_page, ready
from tests.end_to_end.painter import picture

pytestmark = pytest.mark.browser
BLUE_RED = "a red circle on a blue background"


def generate(page: Any, prompt: str = BLUE_RED, **values: int) -> None:
    page.fill("#field-prompt", prompt)
    for name, value in values.items():
        page.fill(f"#field-{name}", str(value))
    page.click("#go")


def wait_for_job(page: Any, state: str, count: int = 1) -> dict[str, Any]:
    """The newest job, once `count` of those since the page was opened are in that state."""
    page.wait_for_function(
        "([state, count]) => [...atelier.jobs.values()]"
        ".filter((job) => job.id > since && job.state === state).length >= count",
        arg=[state, count],
        polling=50,
    )
    job: dict[str, Any] = page.evaluate("[...atelier.jobs.values()].sort((a, b) => a.id - b.id).at(-1)")
    return job


def shown_picture(page: Any) -> Image.Image:
    """The pixels of the finished picture on the stage."""
    page.wait_for_function(
        "(() => { const all = document.querySelectorAll('#stage .paper img');"
        " return all.length === 1 && all[0].matches('.done') && all[0].complete })()",
        polling=50,
    )
    data = page.evaluate(
        "(async () => { const image = document.querySelector('#stage .paper img.done');"
        " const bytes = new Uint8Array(await (await fetch(image.src)).arrayBuffer());"
        " return btoa(String.fromCharCode(...bytes)) })()"
    )
    return Image.open(io.BytesIO(base64.b64decode(data))).convert("RGB")


def drop(page: Any, selector: str, data: bytes, name: str = "a.png") -> None:
    page.evaluate(
        "([selector, data, name]) => { const bytes = Uint8Array.from(atob(data), (c) => c.charCodeAt(0));"
        " const dataTransfer = new DataTransfer();"
        " dataTransfer.items.add(new File([bytes], name, {type: 'image/png'}));"
        " const place = document.querySelector(selector);"
        " for (const kind of ['dragover', 'drop'])"
        "   place.dispatchEvent(new DragEvent(kind, {bubbles: true, cancelable: true, dataTransfer})) }",
        [selector, base64.b64encode(data).decode(), name],
    )


def last_toast(page: Any) -> str:
    text: str = page.inner_text("#toasts .toast:last-child .words")
    return text


def test_a_newcomer_makes_a_picture(page: Any, studio: Studio) -> None:
    assert studio.painter
    page.wait_for_selector("#stage .card.empty .examples .chip")  # the first steps are shown
    studio.painter.pace = 0.5
    page.fill("#field-prompt", BLUE_RED)
    page.click("#go")
    page.wait_for_selector("#stage img.preview")  # it can be watched
    assert re.search(r"\d+/20", page.inner_text(".pill.work"))
    studio.painter.pace = 0.02
    picture = shown_picture(page)
    assert picture.size == (128, 128)  # the model's own size
    assert picture.getpixel((2, 2)) == (0, 0, 255)
    assert picture.getpixel((64, 64)) == (255, 0, 0)
    assert page.locator("#strip .thumb").count() == 1
    assert "128\u00a0×\u00a0128" in page.inner_text("#stage .meta")


def test_stop_and_skip(page: Any, studio: Studio) -> None:
    assert studio.painter
    studio.painter.pace = 0.3
    generate(page, steps=100)
    wait_for_job(page, "running")
    page.click("#stop")
    assert wait_for_job(page, "cancelled")["pictures"] == []
    generate(page, steps=100, n_iter=2)
    wait_for_job(page, "running")
    page.keyboard.press("Alt+Enter")
    page.wait_for_function("[...atelier.jobs.values()].some((job) => job.progress?.batch === 1)", polling=20)
    studio.painter.pace = 0.0
    job = wait_for_job(page, "done")
    assert [each["index"] for each in job["pictures"]] == [1]
    studio.painter.pace = 0.3
    generate(page, steps=100, n_iter=1)
    wait_for_job(page, "running")
    page.keyboard.press("Escape")
    wait_for_job(page, "cancelled", 2)


def test_queue(page: Any, studio: Studio) -> None:
    assert studio.painter
    studio.painter.going.clear()
    generate(page)
    wait_for_job(page, "running")
    page.click("#go")
    page.keyboard.press("Control+Enter")
    page.click("#go")
    wait_for_job(page, "queued", 3)
    page.wait_for_function("document.querySelector('.pill.work').innerText.includes('3 waiting')", polling=50)
    page.click(".pill.work")
    page.wait_for_selector("#queue li >> nth=3")
    texts = page.locator("#queue li small").all_inner_texts()
    assert texts[1:] == ["Next in the queue", "2nd in the queue", "3rd in the queue"]
    page.click("#queue li >> nth=2 >> .button")
    wait_for_job(page, "cancelled")
    page.click("#queue header .link")  # all that wait
    wait_for_job(page, "cancelled", 3)
    page.keyboard.press("Escape")  # closes the drawer, stops nothing
    assert not page.is_visible("#queue")
    studio.painter.going.set()
    wait_for_job(page, "done")


def test_a_reload_and_a_second_tab_find_the_running_job(page: Any, studio: Studio) -> None:
    assert studio.painter
    studio.painter.pace = 0.25
    generate(page, steps=150)
    page.wait_for_selector("#stage img.preview")
    other = open_page(page.context, studio.url)
    other.wait_for_selector("#stage img.preview")
    page.reload(wait_until="commit")
    ready(page)
    page.wait_for_selector("#stage img.preview")
    assert page.input_value("#field-prompt") == BLUE_RED  # the draft, too
    assert page.input_value("#field-steps") == "150"
    other.click("#stop")
    page.wait_for_selector("#stage .status >> text=Stopped")
    other.close()


def test_history_survives_a_reload_and_opens_large(page: Any) -> None:
    for count, prompt in enumerate((BLUE_RED, "a yellow star on a purple background"), 1):
        generate(page, prompt, steps=3)
        wait_for_job(page, "done", count)
    page.reload(wait_until="commit")
    ready(page)
    page.wait_for_function("document.querySelectorAll('#strip .thumb').length >= 2", polling=50)
    page.locator("#strip .thumb").first.focus()
    page.keyboard.press("ArrowDown")  # walks and shows
    page.wait_for_function(
        "document.querySelectorAll('#strip .thumb')[1].getAttribute('aria-selected') === 'true'", polling=50
    )
    page.keyboard.press("f")
    page.wait_for_selector("#lightbox[open]")
    assert page.inner_text("#lightbox .title") == BLUE_RED
    page.keyboard.press("ArrowLeft")
    assert page.inner_text("#lightbox .title").startswith("a yellow star")
    page.keyboard.press("Escape")
    assert not page.is_visible("#lightbox")
    assert shown_picture(page).getpixel((2, 2)) == (128, 0, 128)  # the stage follows
    page.click("#details-button")
    page.wait_for_selector("#stage .details dd >> text=a yellow star on a purple background")
    page.wait_for_selector("#stage .details dt >> text=Guidance")  # CFG scale, as the form calls it
    page.set_viewport_size({"width": 900, "height": 700})  # where both do not fit beside each other
    left, right = (page.locator(of).bounding_box() for of in ("#stage .actions >> nth=0", "#expand"))
    assert left["x"] + left["width"] <= right["x"]
    assert page.locator("#stage .room").bounding_box()["width"] >= 380
    page.click("#details-button")


def test_batches_side_by_side(page: Any) -> None:
    generate(page, steps=3, batch_size=2, n_iter=2)
    job = wait_for_job(page, "done")
    assert len(job["pictures"]) == 4
    assert len({each["seed"] for each in job["pictures"]}) == 4
    page.wait_for_function("document.querySelectorAll('#stage .tiles img').length === 4", polling=50)
    page.click("#stage .tiles button >> nth=1")
    page.keyboard.press("f")  # with the focus nowhere
    assert page.inner_text("#lightbox .count").startswith("3 /")  # newest first
    page.keyboard.press("ArrowRight")
    page.wait_for_selector("#lightbox .count >> text=/^4 /")
    page.click("#lightbox [data-action=seed]")
    page.wait_for_selector("#lightbox #toasts", state="attached")  # what it says is not behind it
    page.keyboard.press("Escape")
    page.wait_for_selector(f"#stage .meta >> text={job['pictures'][0]['seed']}")  # the stage follows
    page.keyboard.press("ArrowLeft")  # as in the lightbox
    page.wait_for_selector(f"#stage .meta >> text={job['pictures'][1]['seed']}")
    page.click("#stage .film .tile >> nth=3")
    assert shown_picture(page).size == (128, 128)
    assert str(job["pictures"][2]["seed"]) in page.inner_text("#stage .meta")


def test_a_kept_map_is_shown_beside_the_pictures_and_marked(page: Any) -> None:
    page.fill("#field-prompt", "a red circle with a map")
    page.click("#go")
    job = wait_for_job(page, "done")
    assert (len(job["pictures"]), len(job["maps"])) == (1, 1)
    page.wait_for_selector(".film .map")
    assert page.locator(".film .tile").count() == 2
    assert page.get_attribute("#stage .paper img.done", "src").endswith(job["pictures"][0]["url"])
    page.click(".film .map")
    page.wait_for_selector(f"#stage .paper img.done[src$='{job['maps'][0]['url']}']")
    assert page.locator(".thumb.map").get_attribute("aria-label") == "Control map"
    page.click("#expand")
    assert page.inner_text("#lightbox .title") == "Control map"
    page.keyboard.press("Escape")
    page.reload()
    page.wait_for_selector(".thumb.map")
    assert page.get_attribute("#stage .paper img.done", "src").endswith(job["pictures"][0]["url"])


def test_a_dropped_picture_brings_its_parameters_back(page: Any, studio: Studio) -> None:
    given = {
        "prompt": "a house",
        "negative_prompt": "rain",
        "steps": 33,
        "seed": 11,
        "width": 192,
        "height": 96,
        "sampler_name": "Euler a",
        "cfg_scale": 5.5,
        "model": "grand",
    }
    request = parse_request(given)
    drop(page, "#params", picture(request, 0, studio.services.images).data)
    page.wait_for_function("document.querySelector('#field-seed').value === '11'", polling=50)
    values = page.evaluate("atelier.request()")
    for name in (
        "prompt",
        "negative_prompt",
        "steps",
        "seed",
        "width",
        "height",
        "sampler_name",
        "cfg_scale",
        "model",
    ):
        assert values[name] == getattr(request, name), name
    page.click("#toasts .link")  # Undo
    page.wait_for_function("document.querySelector('#field-seed').value === ''", polling=50)


def test_a_pasted_text_is_read_and_what_is_unknown_is_said(page: Any) -> None:
    text = (
        "a castle\nNegative prompt: fog\nSteps: 12, Sampler: DPM++ 2M Karras, CFG scale: 6.5, Seed: 77, "
        "Size: 256x128, Hires upscaler: Latent, Denoising strength: 0.4, Clip skip: 2, Glow amount: 1.25"
    )
    page.fill("#field-prompt", text)
    page.click("#read-parameters")
    page.wait_for_function("document.querySelector('#field-prompt').value === 'a castle'", polling=50)
    values = page.evaluate("atelier.request()")
    assert (values["steps"], values["seed"], values["clip_skip"], values["width"]) == (12, 77, 2, 256)
    assert values["scheduler"] == "Karras"
    assert values["extensions"]["glow"]["amount"] == 1.25
    assert "Hires upscaler: Latent" in last_toast(page)


def test_use_as_image(page: Any, watch: Watch) -> None:
    generate(page, steps=3, seed=1)
    wait_for_job(page, "done")
    page.click("#stage [data-action=use]")
    page.wait_for_selector("#params .well img")
    assert page.is_checked("#mode-image")
    page.fill("#field-denoising_strength", "0")
    generate(page, "a white circle on a white background", steps=3)
    job = wait_for_job(page, "done", 2)
    assert job["request"]["init_image"]
    assert shown_picture(page).getpixel((2, 2)) == (0, 0, 255)  # strength 0 keeps it
    page.reload(wait_until="commit")
    ready(page)
    page.wait_for_selector("#params .well img")  # the draft keeps mode and image
    page.click("#params .well .buttons button")  # remove
    page.click("#go")
    page.wait_for_selector('[data-field="init_image"] .problem:not([hidden])')
    watch.expected = ("422",)
    drop(page, "#stage", b"no picture at all")
    page.wait_for_function(
        "document.querySelector('[data-field=init_image] .problem').textContent.includes('picture')", polling=50
    )


def test_what_is_wrong_is_said_at_its_field(page: Any) -> None:
    before = page.evaluate("atelier.jobs.size")
    page.fill("#field-steps", "0")
    page.fill("#field-width", "1000000000")
    page.click("#go")
    assert page.inner_text('[data-field="steps"] .problem') == "Between 1 and 150, please."
    assert "4,096" in page.inner_text('[data-field="width height"] .problem')
    assert page.evaluate("document.activeElement.id") == "field-width"
    assert page.evaluate("atelier.jobs.size") == before
    page.click('[data-field="steps"] .reset')
    page.click('[data-field="width height"] .reset')
    assert page.input_value("#field-steps") == "20"
    # what only the server can know comes back to the field as well
    page.evaluate(
        "atelier.answered({problems: [{field: 'steps', message: 'is odd'}, {field: 'model', message: 'is gone'}]})"
    )
    assert page.inner_text('[data-field="steps"] .problem') == "Is odd"
    assert "is gone" in last_toast(page)


def test_a_failed_job_says_why(page: Any, studio: Studio) -> None:
    assert studio.painter
    generate(page, "explode")
    page.wait_for_selector("#stage .card.failed")
    assert "out of memory" in page.inner_text("#stage .card .reason").lower()
    page.fill("#field-prompt", BLUE_RED)
    page.click("#stage .card .primary")  # again
    wait_for_job(page, "done")
    studio.painter.going.clear()
    generate(page, "explode")
    wait_for_job(page, "running")
    page.click("#strip .thumb")  # looking elsewhere meanwhile
    studio.painter.going.set()
    page.wait_for_selector("#toasts .error >> text=Out of memory")


def test_what_the_server_has_to_say_of_a_job_is_shown_once(page: Any, studio: Studio) -> None:
    generate(page, "a large picture")
    page.wait_for_selector("#toasts .note >> text=There was not enough memory: the VAE works in tiles")
    wait_for_job(page, "done")
    assert page.locator("#toasts .toast").count() == 1


def test_a_model_that_comes_or_goes_is_seen_at_once(page: Any, studio: Studio) -> None:
    late = studio.services.settings.models_dir / "checkpoints" / "late"
    model(late, "Late", {})
    page.wait_for_selector("#model option[value=late]", state="attached")
    shutil.rmtree(late)
    page.wait_for_selector("#model option[value=late]", state="detached")


def test_a_vae_is_chosen_from_a_list(page: Any) -> None:
    page.wait_for_selector("#field-vae option >> nth=1", state="attached")
    assert page.locator("#field-vae option").all_text_contents() == ["Automatic", "The model's own"]
    page.evaluate("document.querySelector('#field-vae').closest('details').open = true")
    page.select_option("#field-vae", index=1)
    assert page.evaluate("atelier.request().vae") == "none"


def test_a_model_brings_its_defaults(page: Any) -> None:
    page.fill("#field-cfg_scale", "3")
    page.select_option("#model", "grand")
    values = page.evaluate("atelier.request()")
    assert (values["width"], values["height"], values["steps"], values["cfg_scale"]) == (512, 768, 30, 3)
    assert page.locator("#model option:disabled").count() == 1  # the broken one, with its reason
    page.click(".shapes .chip >> nth=3")
    assert (page.input_value("#field-width"), page.input_value("#field-width-other")) == ("448", "832")
    page.select_option("#model", "starter")
    assert page.evaluate("atelier.request().steps") == 20


def test_an_extension_is_absent_while_off(page: Any) -> None:
    assert page.evaluate("atelier.request().extensions") == {}
    page.click("#extension-glow .switch")
    page.fill("#field-glow-amount", "1.5")
    page.click("#extension-glow .segments label >> nth=1")
    page.select_option("#field-glow-lamp", label="Desk lamp")  # from a list that only the server knows
    generate(page, steps=3)
    job = wait_for_job(page, "done")
    assert job["request"]["extensions"] == {"glow": {"amount": 1.5, "kind": "hard", "twice": False, "lamp": "desk"}}
    page.click("#extension-glow .switch")
    assert page.evaluate("atelier.request().extensions") == {}


@pytest.mark.parametrize("payload", ["<img src=x onerror=window.hurt=1>", "${window.hurt=1}${7*7}{{7*7}}"])
def test_text_stays_text(page: Any, payload: str) -> None:
    generate(page, f"{payload} a red circle", steps=3)
    wait_for_job(page, "done")
    shown_picture(page)
    page.evaluate("document.querySelector('#details-button').getAttribute('aria-expanded') === 'true' || "
                  "document.querySelector('#details-button').click()")  # fmt: skip
    page.wait_for_function(
        "text => document.querySelector('#stage .details dd')?.textContent.includes(text)", arg=payload
    )
    page.keyboard.press("Escape")
    page.click("#stage [data-action=parameters]")
    page.wait_for_selector("#toasts .toast")
    page.click("#expand")
    assert payload in page.inner_text("#lightbox .title")
    page.keyboard.press("Escape")
    page.reload(wait_until="commit")
    ready(page)
    assert page.input_value("#field-prompt") == f"{payload} a red circle"
    page.evaluate("atelier.answered({error: '<img src=x onerror=window.hurt=1>', problems: []})")
    assert page.evaluate("window.hurt") is None
    assert page.locator("img[src=x]").count() == 0


def test_a_picture_is_dragged_from_the_history_and_the_form_widened(page: Any) -> None:
    generate(page, steps=3)
    wait_for_job(page, "done")
    page.drag_and_drop("#strip .thumb", "#stage .room")
    page.wait_for_selector("#params .well img")
    assert page.is_checked("#mode-image")
    width = "document.querySelector('#params').getBoundingClientRect().width"
    before = page.evaluate(width)
    box = page.locator(".sash").bounding_box()
    page.mouse.move(box["x"] + 4, 400)
    page.mouse.down()
    page.mouse.move(box["x"] + 84, 400)
    page.mouse.up()
    assert page.evaluate(width) == before + 80
    page.reload(wait_until="commit")
    ready(page)
    assert page.evaluate(width) == before + 80


def test_light_and_dark_and_language(page: Any) -> None:
    colour = "getComputedStyle(document.querySelector('#params')).backgroundColor"
    dark = page.evaluate(colour)
    page.click("#theme")
    light = page.evaluate(colour)
    assert dark != light
    page.reload(wait_until="commit")
    ready(page)
    assert page.evaluate(colour) == light
    assert not page.evaluate("document.body.classList.contains('dark')")
    page.click("#foot-settings")
    with page.expect_navigation():
        page.select_option("#language", "de")
    ready(page)
    assert page.inner_text("#go") == "Erzeugen"
    assert page.inner_text('[data-field="steps"] label') == "Schritte"
    assert page.evaluate("document.documentElement.lang") == "de"
    page.click("#tab-models-button")
    page.reload(wait_until="commit")
    page.wait_for_selector("#models h2 >> text=Modelle")  # the tab that was in front


def test_keys_of_the_form(page: Any) -> None:
    page.focus("#field-prompt")
    page.keyboard.type("a castle")
    page.keyboard.press("Control+Enter")  # sends what was just typed
    assert wait_for_job(page, "done")["request"]["prompt"] == "a castle"
    page.click("#foot-help")
    page.wait_for_selector("dialog[open] kbd")
    page.keyboard.press("Escape")
    assert page.locator("dialog[open]").count() == 0
    page.click('[data-field="seed"] [aria-label*="last"]')
    assert page.input_value("#field-seed") == str(page.evaluate("[...atelier.jobs.values()].at(-1).pictures[0].seed"))


def test_the_line_breaks_and_comes_back(context: Any, studio: Studio) -> None:
    broken = threading.Event()
    sockets: list[Any] = []

    def between(socket: Any) -> None:
        if broken.is_set():
            socket.close()
            return
        socket.connect_to_server()
        socket.send('{"type": "models"}')  # before there is a form
        sockets.append(socket)

    errors: list[str] = []
    page = context.new_page()
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.route_web_socket(re.compile(r"/ws$"), between)
    page.goto(studio.url, wait_until="commit")
    ready(page)
    broken.set()
    sockets[-1].close()
    page.wait_for_selector("#stage .offline")
    page.click("#go")  # refused in words instead of lost
    assert "no connection" in last_toast(page)
    page.click("#stage .offline .link")  # in vain yet
    broken.clear()
    page.wait_for_function("atelier.state.online", polling=50)
    page.wait_for_selector("#stage .offline", state="hidden")
    assert not page.is_visible(".toast.error")  # it is not so any more
    assert errors == []


def test_the_engine_loads_and_fails_in_words(page: Any, studio: Studio) -> None:
    assert studio.painter
    studio.painter.become("starting")
    page.wait_for_selector(".pill.engine >> text=Engine loading")
    studio.painter.become("failed", "torch is not installed")
    page.wait_for_selector(".pill.engine >> text=Engine failed")
    studio.painter.become("ready")
    page.wait_for_selector(".pill.engine >> text=Ready")


def test_a_phone_shows_everything_without_scrolling_sideways(browser: Any, studio: Studio) -> None:
    context = browser.new_context(viewport={"width": 390, "height": 844}, has_touch=True, is_mobile=True)
    page = open_page(context, studio.url)
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    assert page.locator("#go").bounding_box()["y"] + 44 < 844  # within reach of a thumb
    page.fill("#field-prompt", BLUE_RED)
    page.evaluate("scrollTo(0, 99999)")
    below = page.evaluate("scrollY")
    page.tap("#go")
    wait_for_job(page, "done")
    page.wait_for_selector("#strip .thumb[aria-selected=true]")
    assert page.evaluate("scrollY") >= below > 0  # whoever goes on with the form is not led back up
    for name in ("Stop", "Skip", "Use as image", "Reuse seed"):  # of which only the icons are seen
        assert page.get_by_role("button", name=name, exact=True).is_visible()
    small = page.evaluate(
        "[...document.querySelectorAll('#params button, #bar button, #top button')]"
        ".filter((b) => b.offsetParent && b.getBoundingClientRect().height < 36).map((b) => b.outerHTML.slice(0, 80))"
    )
    assert small == []
    context.close()


def test_the_page_is_light_and_every_control_has_a_name(page: Any, watch: Watch) -> None:
    config = page.evaluate("gradio_config")
    assert config.get("connect_heartbeat") is False
    assert not any("heartbeat" in url for url in watch.requests)
    assert len(config["components"]) <= 150
    assert max(len(event["inputs"]) for event in config["dependencies"]) <= 60
    assert all(event["api_visibility"] == "private" for event in config["dependencies"])
    assert page.evaluate("document.querySelectorAll('*').length") < 1000
    assert not [url for url in watch.requests if re.search(r"fonts\.|\.(woff2?|ttf)$", url)]
    unnamed = page.evaluate(
        "[...document.querySelectorAll('button, input, select, textarea, [role=separator]')].filter((each) =>"
        " each.offsetParent && !each.getAttribute('aria-label') && !each.labels?.length && !each.textContent.trim())"
        ".map((each) => each.outerHTML.slice(0, 100))"
    )
    assert unnamed == []
    request = parse_request(json.loads(json.dumps(page.evaluate("atelier.request()"))))
    assert request == GenerationRequest(width=128, height=128, cfg_scale=4.0)  # the form's defaults
