"""Panels of extensions in a real browser: every kind of field, drawn from one declaration."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tests.end_to_end.conftest import Studio, Watch, painted, ready, serving, shown
from tests.end_to_end.painter import Painter

pytestmark = pytest.mark.browser
KIT = """
import json
from pathlib import Path
from typing import Any, Literal

from backend.extension import Extension, Facet, InvalidRequest, Param, Params, Problem
from backend.images import ImageRef


class Tuning(Params):
    rate: float = Param(0.5, "Rate", ge=0, le=1, step=0.1)
    way: Literal["up", "down"] = Param("up", "Way")


class Unit(Params):
    weight: float = Param(1.0, "Weight", ge=0, le=2, step=0.05)
    lamp: str = Param("", "Lamp", choices="lamps")
    map: ImageRef | None = Param(None, "Map", widget="image")
    words: tuple[str, ...] = Param((), "Words")
    way: Literal["plain", "soft", "hard"] = Param("plain", "Way")
    edge: float = Param(
        -1,
        "Edge",
        decided_by="way",
        facets={"soft": Facet("Softness", 0.5, 0, 1, 0.1), "hard": Facet("Hardness", 100, 1, 255)},
    )


class KitParams(Params):
    units: tuple[Unit, ...] = Param((), "Units", max_length=3)
    tuning: Tuning = Param(Tuning(), "Tuning")
    guard: Tuning | None = Param(None, "Guard")
    lamps: tuple[str, ...] = Param((), "Lamps", choices="lamps", max_length=2)
    limit: int | None = Param(None, "Limit", widget="number", ge=1, le=9)

    def to_infotext(self):
        return {f"Kit {i}": unit.model_dump_json() for i, unit in enumerate(self.units)}

    @classmethod
    def from_infotext(cls, fields):
        found = [json.loads(fields[key]) for key in sorted(fields) if key.startswith("Kit ")]
        return {"units": found} if found else {}


class Kit(Extension):
    Params = KitParams

    def choices(self):
        known = Path(__file__).parent / "lamps"
        return {"lamps": [("", "None"), *((name, name) for name in known.read_text().split())]}

    def panel(self, form):
        form.button("Show the map", "map")
        form.button("Suggest", "suggest")
        form.button("Fail", "fail")

    def routes(self, router):
        @router.post("/map")
        def show(params: KitParams) -> dict[str, Any]:
            ref = params.units[0].map
            return {"image": ref, "text": f"{self.images.get(ref).width} pixels wide"}

        @router.post("/suggest")
        def suggest(params: KitParams) -> dict[str, Any]:
            return {"values": {"units": [{"weight": 0.4}, {"weight": 0.6}]}}

        @router.post("/fail")
        def fail(params: KitParams) -> None:
            raise InvalidRequest(Problem("extensions.kit.units.1.weight", "is not to my taste"))
"""
TOML = 'id = "{id}"\nversion = "1.0"\ntitle = "{title}"\n'
DRAWN = """
from backend.extension import Extension, Param, Params


class DrawnParams(Params):
    size: int = Param(3, "Size", ge=1, le=9)
    note: str = Param("", "Note")
    odd: int = Param(1, "Odd", ge=0, le=5)


class Drawn(Extension):
    Params = DrawnParams
"""
SCRIPT = """
window.atelier.extend("drawn", (api) => {
  api.widget("size", (field) => {
    const grow = () => field.set({ size: field.value + 2, odd: 4 });
    const more = api.button({ text: api.words("more", { n: 2 }), run: grow });
    more.id = field.id;
    field.hear(() => (more.title = `${field.label} ${field.value} ${field.get("odd")} ${api.request().steps > 0}`));
    return more;
  });
  api.widget("note", () => null);
  api.widget("odd", () => {
    throw new Error("no brush");
  });
  window.drawn = true;
});
"""
PLAIN = """
from backend.extension import Extension, Param, Params


class Given(Params):
    strength: float = Param(0.5, "Strength", ge=0, le=1)
    words: str = Param("", "Words")
    kind: str = Param("a", "Kind", choices=(("a", "A"), ("b", "B")))
    on: bool = Param(False, "On")


class Plain(Extension):
    Params = Given
"""


@pytest.fixture(scope="module")
def studio(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Studio]:
    """With an extension that has every kind of field."""
    root = tmp_path_factory.mktemp("kit")
    (extension(root, "kit", KIT) / "lamps").write_text("desk floor wall")
    drawn = extension(root, "drawn", DRAWN)
    for name, text in (("web/drawn.js", SCRIPT), ("languages/en.json", '{"more": "{n} more"}')):
        (drawn / name).parent.mkdir()
        (drawn / name).write_text(text)
    painter = Painter()
    services = painted(root, painter)
    with serving(services) as url:
        yield Studio(url, services, painter)


def extension(root: Path, id: str, code: str) -> Path:
    folder = root / "extensions" / id
    folder.mkdir(parents=True)
    (folder / "__init__.py").write_text(code, "utf-8")
    (folder / "extension.toml").write_text(TOML.format(id=id, title=id.title()), "utf-8")
    return folder


@pytest.fixture
def kit(page: Any) -> Any:
    """The page with the panel open and on."""
    page.locator("#extension-kit .switch").first.click()
    page.wait_for_selector("#field-kit-units")
    page.click("#extension-kit .unit-bar .remove")  # whoever turns it on has a first one
    return page


def values(page: Any) -> Any:
    return page.evaluate("atelier.request().extensions.kit")


def weights(page: Any) -> list[float]:
    return [unit["weight"] for unit in values(page)["units"]]


def test_off_is_absent(page: Any) -> None:
    assert "kit" not in page.evaluate("atelier.request().extensions")
    assert page.locator("#extension-kit .field").count() == 0  # drawn when it is opened


def test_an_opened_panel_shows_a_unit_and_stays_off(page: Any) -> None:
    page.locator("#extension-kit summary").first.click()
    page.wait_for_selector("#field-kit-units-0-weight")
    assert "kit" not in page.evaluate("atelier.request().extensions")
    page.locator("#extension-kit .switch").first.click()
    assert weights(page) == [1]


def test_units_are_tabs(kit: Any) -> None:
    kit.click("#field-kit-units")
    kit.fill("#field-kit-units-0-weight", "0.4")
    kit.click("#extension-kit .unit-bar .copy")
    assert kit.input_value("#field-kit-units-1-weight") == "0.4"
    kit.fill("#field-kit-units-1-weight", "0.7")
    kit.click("#field-kit-units")
    assert weights(kit) == [0.4, 0.7, 1]
    assert not kit.is_visible("#field-kit-units")  # three are the most
    kit.click("#extension-kit [role=tab] >> nth=0")
    kit.keyboard.press("ArrowRight")
    assert kit.input_value("#field-kit-units-1-weight") == "0.7"
    kit.click("#extension-kit .unit-bar .remove")
    assert weights(kit) == [0.4, 1]
    kit.fill("#field-kit-units-1-words", "ink")
    kit.keyboard.press("Enter")
    kit.wait_for_function("localStorage['atelier:draft']?.includes('ink')", polling=50)
    kit.reload(wait_until="commit")
    ready(kit)
    assert weights(kit) == [0.4, 1]  # as the draft has it, before anybody opens the panel
    assert values(kit)["units"][1]["words"] == ["ink"]
    kit.fill("#field-prompt", "a red circle on a blue background")
    kit.click("#go")
    kit.wait_for_selector("#stage .paper img.done")
    job = kit.evaluate("[...atelier.jobs.values()].sort((a, b) => a.id - b.id).at(-1)")
    assert [unit["weight"] for unit in job["request"]["extensions"]["kit"]["units"]] == [0.4, 1]
    text = job["pictures"][0]["infotext"]
    assert "Kit 1:" in text
    kit.click("#extension-kit summary >> nth=0")
    kit.click("#extension-kit .unit-bar .remove")
    kit.click("#field-kit-guard")
    kit.fill("#field-prompt", text)
    kit.click("#read-parameters")
    kit.wait_for_selector("#toasts .toast.done")
    assert weights(kit) == [0.4, 1]
    assert values(kit)["guard"] is None
    assert "Kit" not in kit.inner_text("#toasts .toast:last-child .words")  # nothing was lost


def test_what_is_wrong_in_a_unit_is_said_there(kit: Any, studio: Studio) -> None:
    for _ in range(2):
        kit.click("#field-kit-units")
    kit.fill("#field-kit-units-1-weight", "5")
    kit.click("#extension-kit [role=tab] >> nth=0")
    kit.click("#go")
    assert kit.inner_text("#field-kit-units-1-weight-problem") == "Between 0 and 2, please."
    assert "wrong" in (kit.get_attribute("#extension-kit [role=tab] >> nth=1", "class") or "")
    assert kit.evaluate("document.activeElement.id") == "field-kit-units-1-weight"
    kit.fill("#field-kit-units-1-weight", "1.5")
    assert not kit.is_visible("#field-kit-units-1-weight-problem")
    kit.evaluate(
        "atelier.answered({problems: [{field: 'extensions.kit.units.0.weight', message: 'is too much'},"
        " {field: 'extensions.kit.tuning.rate', message: 'is too little'}]})"
    )
    assert kit.inner_text("#field-kit-units-0-weight-problem") == "Is too much"
    assert kit.inner_text("#field-kit-tuning-rate-problem") == "Is too little"
    kit.fill("#field-kit-units-0-weight", "0.3")
    assert not kit.is_visible("#field-kit-units-0-weight-problem")
    assert kit.is_visible("#field-kit-tuning-rate-problem")  # that one is still wrong


def test_parameters_within_parameters(kit: Any) -> None:
    assert values(kit)["tuning"] == {"rate": 0.5, "way": "up"}
    assert values(kit)["guard"] is None
    assert values(kit)["limit"] is None
    kit.click("#field-kit-guard")
    kit.fill("#field-kit-guard-rate", "0.9")
    kit.select_option("#field-kit-guard-way", value='"down"')
    kit.fill("#field-kit-limit", "3")
    assert values(kit)["guard"] == {"rate": 0.9, "way": "down"}
    assert values(kit)["tuning"] == {"rate": 0.5, "way": "up"}
    kit.click("#field-kit-guard")
    assert values(kit)["guard"] is None
    kit.click("#field-kit-guard")
    assert values(kit)["guard"] == {"rate": 0.9, "way": "down"}  # as it was
    kit.fill("#field-kit-limit", "")
    assert values(kit)["limit"] is None


def test_a_number_that_another_field_decides(kit: Any) -> None:
    edge = "#field-kit-units-0-edge"
    kit.click("#field-kit-units")
    assert not kit.is_visible(edge)
    assert "edge" not in values(kit)["units"][0]
    kit.select_option("#field-kit-units-0-way", value='"hard"')
    assert kit.inner_text("[data-field=edge] label") == "Hardness"
    assert kit.input_value(edge) == "100"
    assert values(kit)["units"][0]["edge"] == -1  # whatever its usual value is
    kit.fill(edge, "120")
    assert kit.eval_on_selector("[data-field=edge] .range", "r => [r.min, r.max, r.value]") == ["1", "255", "120"]
    assert values(kit)["units"][0]["edge"] == 120
    kit.select_option("#field-kit-units-0-way", value='"soft"')
    assert kit.inner_text("[data-field=edge] label") == "Softness"
    assert kit.input_value(edge) == "0.5"  # 120 meant something else
    kit.fill(edge, "5")
    kit.click("#go")
    assert kit.inner_text(f"{edge}-problem") == "Between 0 and 1, please."
    kit.click("[data-field=edge] .reset")
    assert values(kit)["units"][0]["edge"] == -1
    assert not kit.is_visible(f"{edge}-problem")
    kit.click("#extension-kit .unit-bar .copy")
    assert kit.input_value("#field-kit-units-1-edge") == "0.5"


def test_several_of_a_list_that_changes(kit: Any, studio: Studio) -> None:
    lamps = studio.services.settings.extensions_dir / "kit" / "lamps"
    kit.fill("#field-kit-lamps", "DES")
    kit.wait_for_selector("#field-kit-lamps-list [role=option]")
    kit.keyboard.press("Enter")
    assert values(kit)["lamps"] == ["desk"]
    lamps.write_text("floor wall moon")
    kit.click("[data-field=lamps] .refresh")
    kit.wait_for_selector("[data-field=lamps] .chip.missing")  # kept, and marked
    assert values(kit)["lamps"] == ["desk"]
    kit.fill("#field-kit-lamps", "moo")
    kit.click("#field-kit-lamps-list [role=option]")
    assert values(kit)["lamps"] == ["desk", "moon"]
    assert not kit.is_visible("#field-kit-lamps")  # two are the most
    kit.click("[data-field=lamps] .chip.missing .button")
    assert values(kit)["lamps"] == ["moon"]
    kit.click("#field-kit-units")
    kit.select_option("#field-kit-units-0-lamp", value='"wall"')
    lamps.write_text("desk floor")
    kit.click("[data-field=lamp] .refresh")
    kit.wait_for_selector("#field-kit-units-0-lamp.missing")
    assert values(kit)["units"][0]["lamp"] == "wall"
    lamps.write_text("desk floor wall")


def test_buttons_of_a_panel(kit: Any, watch: Watch, tmp_path: Path) -> None:
    watch.expected = ("422",)
    Image.new("RGB", (48, 32), "teal").save(tmp_path / "map.png")
    kit.click("#field-kit-units")
    kit.set_input_files("#field-kit-units-0-map", tmp_path / "map.png")
    kit.wait_for_selector("[data-field=map] .filled:not([hidden])")
    assert kit.evaluate("atelier.request().init_image") is None or "init_image" not in values(kit)
    kit.click("[data-route=map]")
    kit.wait_for_function("document.querySelector('.panel-buttons img').naturalWidth === 48", polling=50)
    assert kit.inner_text(".panel-buttons p") == "48 pixels wide"
    kit.click("[data-route=suggest]")
    kit.wait_for_selector("#extension-kit [role=tab] >> nth=1")
    assert weights(kit) == [0.4, 0.6]
    kit.click("[data-route=fail]")
    kit.wait_for_selector("#field-kit-units-1-weight-problem:not([hidden])")
    assert kit.inner_text("#field-kit-units-1-weight-problem") == "Is not to my taste"


def test_fields_that_a_script_draws(page: Any, watch: Watch) -> None:
    watch.expected = ("no brush",)
    page.wait_for_function("window.drawn", polling=50)
    page.locator("#extension-drawn .switch").first.click()
    assert page.inner_text("#field-drawn-size") == "2 more"
    page.click("#field-drawn-size")
    assert page.get_attribute("#field-drawn-size", "title") == "Size 5 4 true"
    assert page.evaluate("atelier.request().extensions.drawn") == {"size": 5, "note": "", "odd": 4}
    assert page.locator("#extension-drawn [data-field=note]").count() == 0
    assert page.input_value("#field-drawn-odd") == "4"  # the usual widget, and the script is named
    assert "no brush" in page.inner_text("#toasts")


def test_thirty_panels_cost_no_more_than_three(tab: Any, tmp_path: Path) -> None:
    root = tmp_path / "many"
    for number in range(30):
        extension(root, f"plain-{number}", PLAIN)
    with serving(painted(root, Painter())) as url:
        page = shown(tab, url)
        page.wait_for_selector("#extension-plain-29 summary")
        panel = page.evaluate("document.querySelector('#extension-plain-29').querySelectorAll('*').length + 1")
        fields = page.locator("[id^=extension-plain] .field").count()
    assert fields == 0
    assert panel <= 10
