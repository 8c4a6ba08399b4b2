"""The folder, its index, the cards and their routes: no model, no torch."""

import hashlib
import io
import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fastapi import APIRouter, FastAPI
from fastapi.testclient import TestClient
from PIL import Image

from backend.api import server
from backend.catalog.roots import Roots
from backend.images import ImageStore
from extensions.lora import header, routes, tags
from extensions.lora.shelf import Shelf, Unknown
from tests.waiting import least_cpu

TO_K = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn2_to_k.lora_down.weight"

ATTENTION = "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn2"


def file(path: Path, tensors: dict[str, tuple[int, ...]] | None = None, data: bytes = b"", **metadata: Any) -> Path:
    """A safetensors file with the numbers 0, or `data` for the first tensor."""
    content: dict[str, Any] = {"__metadata__": metadata} if metadata else {}
    end = 0
    for key, shape in (tensors or {"lora_unet_x.alpha": (1,)}).items():
        size = 2
        for side in shape:
            size *= side
        content[key] = {"dtype": "F16", "shape": list(shape), "data_offsets": [end, end + size]}
        end += size
    head = json.dumps(content).encode()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(len(head).to_bytes(8, "little") + head + data.ljust(end, b"\0"))
    return path


def wide(n: int) -> dict[str, tuple[int, ...]]:
    return {TO_K: (2, n)}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "loras"


@pytest.fixture
def shelf(folder: Path, tmp_path: Path) -> Shelf:
    return Shelf(Roots(folder.parent), tmp_path / "kept")


def png(colour: str = "red", size: tuple[int, int] = (40, 30)) -> bytes:
    data = io.BytesIO()
    Image.new("RGB", size, colour).save(data, "PNG")
    return data.getvalue()


# --- what a header says


@pytest.mark.parametrize(
    ("tensors", "metadata", "family"),
    [
        (wide(768), {}, "sd1"),
        (wide(1024), {"ss_base_model_version": "sd_v1"}, "sd2"),  # shapes do not err
        (wide(2048), {}, "sdxl"),
        ({f"{ATTENTION}.to_v.lora_A.weight": (2, 2048)}, {}, "sdxl"),
        ({f"{ATTENTION}.processor.to_k_lora.down.weight": (2, 768)}, {}, "sd1"),
        ({"lora_unet_input_blocks_1_1_attn2_to_k.hada_w1_b": (2, 768)}, {}, "sd1"),
        (
            {TO_K.replace("lora_down.weight", f"lokr_w{n}"): shape for n, shape in ((1, (4, 4)), (2, (8, 512)))},
            {},
            "sdxl",
        ),
        ({"lora_te2_text_model_x.lora_down.weight": (2, 7)}, {}, "sdxl"),
        ({"lora_unet_double_blocks_0_img_attn_proj.lora_down.weight": (2, 3072)}, {}, "flux"),
        ({"double_blocks.0.processor.qkv_lora1.down.weight": (2, 3072)}, {}, "flux"),
        ({"transformer.transformer_blocks.0.attn.add_k_proj.lora_A.weight": (2, 7)}, {}, "sd3"),
        ({"transformer.transformer_blocks.0.attn.add_k_proj.lora_A.weight": (2, 3072)}, {}, "flux"),
        (wide(40), {"ss_base_model_version": "sdxl_base_v1-0"}, "sdxl"),
        (wide(40), {"modelspec.architecture": "stable-diffusion-v1/lora"}, "sd1"),
        (wide(40), {}, ""),
    ],
)
def test_the_family_follows_from_shapes_or_words(
    folder: Path, tensors: dict[str, tuple[int, ...]], metadata: dict[str, Any], family: str
) -> None:
    assert header.facts(file(folder / "a.safetensors", tensors, **metadata)).family == family


def test_what_the_metadata_says(folder: Path) -> None:
    frequency = json.dumps({"10_cat": {"cat": 10, "hat ": 3}, "reg": {"cat": 2}})
    more: dict[str, Any] = {"modelspec.title": "Kitty <b>", "modelspec.trigger_phrase": "kit cat"}
    path = file(
        folder / "a.safetensors",
        ss_output_name="kitty",
        ss_tag_frequency=frequency,
        ss_network_dim="16",
        ss_network_alpha="None",
        ss_training_comment="None",
        sshs_model_hash="a" * 64,
        **more,
    )
    facts = header.facts(path)
    assert (facts.alias, facts.title, facts.trigger, facts.hash) == ("kitty", "Kitty <b>", "kit cat", "a" * 64)
    assert list(facts.tags.items()) == [("cat", 12), ("hat", 3)]
    assert (facts.made, facts.description) == ({"rank": "16"}, "")


@pytest.mark.parametrize("frequency", ["{", "[]", '{"a": 1}', '{"a": {"b": "x"}}', "[" * 5000])
def test_odd_metadata_harms_nothing(folder: Path, frequency: str) -> None:
    assert header.facts(file(folder / "a.safetensors", ss_tag_frequency=frequency)).tags == {}


# --- the folder


def test_names_stems_aliases_and_what_is_near(folder: Path, shelf: Shelf) -> None:
    file(folder / "cat.safetensors", ss_output_name="kitty")
    file(folder / "deep" / "dog.safetensors")
    file(folder / "deep" / "same.safetensors")
    file(folder / "same.safetensors")
    file(folder / "other" / "twin.safetensors")
    file(folder / "deep" / "twin.safetensors")
    file(folder / ".hidden" / "ghost.safetensors")
    (folder / "old.ckpt").write_bytes(b"x")
    look = shelf.look()
    assert {name: look.find(name).name for name in ("cat", "kitty", "CAT", "dog", "deep/dog", "same")} == {
        **dict.fromkeys(("cat", "kitty", "CAT"), "cat"),
        **dict.fromkeys(("dog", "deep/dog"), "deep/dog"),
        "same": "same",
    }
    for name, words in {
        "twin": "'twin' could be deep/twin, other/twin",
        "ghost": "there is no LoRA 'ghost'",
        "kity": "near to it: kitty",
        "old": "old.ckpt is not taken",
        "../cat": "there is no LoRA",
        "": "there is no LoRA ''",
    }.items():
        with pytest.raises(Unknown) as error:
            look.find(name)
        assert words in str(error.value)


def test_names_are_found_as_tags_can_write_them(folder: Path, shelf: Shelf) -> None:
    names = [
        "comma, name",
        "dot.v1.0",
        "日本語",
        "(paren)",
        " spaces ",
        'so "called"',
        "twice.safetensors",
        "cafe\u0301",
    ]
    for name in names:
        file(folder / f"{name}.safetensors")
    file(folder / "OLD.SAFETENSORS")
    file(folder / "new.sft")
    look = shelf.look()
    assert set(look.files) == {*names, "OLD", "new"}
    assert [look.find(tags.named(name)).name for name in look.files] == list(look.files)
    assert look.find("caf\u00e9").name == "cafe\u0301"  # as a keyboard types it, and as a Mac writes it down


def test_a_name_that_no_tag_can_hold_says_so(folder: Path, web: TestClient) -> None:
    """And hides no other."""
    for name in (b"good", b"a: b", b"<x>", b"caf\xe9"):
        path = os.fsencode(folder) + b"/" + name + b".safetensors"
        file(folder / "made.safetensors").rename(os.fsdecode(path))
    problems = {card["name"]: card["problem"] for card in cards(web)}
    assert problems.pop("good") == ""
    assert problems == {
        "a: b": "has a : in its name, which no tag can hold: rename it",
        "<x>": "has a < in its name, which no tag can hold: rename it",
        "caf\ufffd": "has a name that is not UTF-8: rename it",
    }


def test_links_that_lead_back_end_the_walk(folder: Path, shelf: Shelf) -> None:
    file(folder / "a" / "cat.safetensors")
    (folder / "a" / "round").symlink_to(folder, target_is_directory=True)
    assert list(shelf.look().files) == ["a/cat"]


def test_headers_are_read_once(folder: Path, tmp_path: Path, shelf: Shelf, monkeypatch: pytest.MonkeyPatch) -> None:
    file(folder / "cat.safetensors", ss_output_name="kitty")
    file(folder / "dog.safetensors")
    shelf.look()
    read: list[str] = []
    usual = header.facts

    def reading(path: Path) -> header.Facts:
        read.append(path.name)
        return usual(path)

    monkeypatch.setattr(header, "facts", reading)
    again = Shelf(Roots(folder.parent), tmp_path / "kept")
    assert again.look().find("kitty").name == "cat"
    assert read == []
    os.utime(folder / "dog.safetensors", ns=(1, 1))
    again.look()
    assert read == ["dog.safetensors"]
    (folder / "cat.safetensors").unlink()
    assert list(again.look().files) == ["dog"]


def test_hashes_are_those_of_a1111(folder: Path, tmp_path: Path, shelf: Shelf) -> None:
    """What the file says, else SHA-256 of all behind the header."""
    data = bytes(range(64)) * 4
    file(folder / "cat.safetensors", {"a.alpha": (128,)}, data)
    file(folder / "dog.safetensors", sshs_model_hash="d" * 64)
    files = shelf.look().files
    assert shelf.hash_of(files["cat"]) == hashlib.sha256(data).hexdigest()
    assert shelf.hash_of(files["dog"]) == "d" * 64
    again = Shelf(Roots(folder.parent), tmp_path / "kept")
    assert again.look().files["cat"].hash == hashlib.sha256(data).hexdigest()  # it is kept
    found = again.with_hash(hashlib.sha256(data).hexdigest()[:12])
    assert found
    assert found.name == "cat"
    assert again.with_hash("0" * 12) is None


def test_a_thousand_files_are_listed_at_once(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    frequency = json.dumps({"10_x": {f"tag {n}": n for n in range(300)}})
    for n in range(1000):
        file(folder / f"{n % 10}" / f"lora {n}.safetensors", wide(768), ss_tag_frequency=frequency)
        (folder / f"{n % 10}" / f"lora {n}.json").write_text('{"notes": "some notes", "activation text": "trigger"}')
    with client(folder, tmp_path) as first:
        started = time.perf_counter()
        assert first.get("/extensions/lora/cards").json()["total"] == 1000
        scan = time.perf_counter() - started
    with client(folder, tmp_path) as second:  # as after a restart
        started = time.perf_counter()
        assert len(second.get("/extensions/lora/cards?limit=200").json()["cards"]) == 200
        cold = time.perf_counter() - started
        started = time.perf_counter()
        found = second.get("/extensions/lora/cards?q=lora 999 trigger").json()
        warm = time.perf_counter() - started
        cpu = least_cpu(lambda: second.get("/extensions/lora/cards?limit=200"))
    assert found["total"] == 1
    with capsys.disabled():
        print(f"\n1000 LoRAs: first scan {scan:.2f} s, after a restart {cold:.2f} s, again {warm:.3f} s")  # noqa: T201
    assert cpu < 0.25
    assert warm < 5  # on a machine that others are using


# --- cards over HTTP


class client:  # noqa: N801 (a context manager, used like a function)
    """The routes by themselves, with the application's errors."""

    def __init__(self, folder: Path, kept: Path) -> None:
        app = FastAPI(exception_handlers=server.ERROR_HANDLERS)  # type: ignore[arg-type]
        router = APIRouter(prefix="/extensions/lora")
        self.images = ImageStore(kept / "inputs")
        routes.add(router, Shelf(Roots(folder.parent), kept / "kept"), kept / "kept", self.images)
        app.include_router(router)
        self._client = TestClient(app)

    def __enter__(self) -> TestClient:
        return self._client

    def __exit__(self, *_: object) -> None:
        self._client.close()


@pytest.fixture
def web(folder: Path, tmp_path: Path) -> Iterator[TestClient]:
    with client(folder, tmp_path) as opened:
        yield opened


def cards(web: TestClient, **query: Any) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = web.get("/extensions/lora/cards", params=query).json()["cards"]
    return found


def test_cards_are_searched_sorted_and_paged(folder: Path, web: TestClient) -> None:
    for n, (name, family) in enumerate({"b/cat": 768, "ink": 2048, "a wolf": 40}.items()):
        os.utime(file(folder / f"{name}.safetensors", wide(family)), ns=(n, n))
    (folder / "ink.json").write_text(json.dumps({"activation text": "inked", "description": "Black lines"}))
    assert [card["name"] for card in cards(web)] == ["a wolf", "b/cat", "ink"]
    assert [card["name"] for card in cards(web, sort="newest")] == ["a wolf", "ink", "b/cat"]
    assert [card["name"] for card in cards(web, q="BLACK inked")] == ["ink"]
    assert [card["name"] for card in cards(web, family="sd1")] == ["a wolf", "b/cat"]  # one of which nobody knows
    assert [card["name"] for card in cards(web, offset=1, limit=1)] == ["b/cat"]
    assert web.get("/extensions/lora/cards?sort=colour").status_code == 422


def test_names_come_before_what_else_is_said(folder: Path, web: TestClient) -> None:
    """As one types a name, it is not hidden by all whose captions hold it."""
    for name in ("a", "b", "superhero", "z hero"):
        file(folder / f"{name}.safetensors", ss_tag_frequency='{"10_x": {"hero": 5}}')
    file(folder / "hero of mine.safetensors")
    assert [card["name"] for card in cards(web, q="Hero")] == ["hero of mine", "superhero", "z hero", "a", "b"]


def test_what_downloads_and_civitais_helpers_know_is_shown(folder: Path, web: TestClient) -> None:
    file(folder / "fetched.safetensors")
    info = {"trainedWords": ["inked", "lines"], "description": "<p>Black lines</p>", "baseModel": "SD 1.5"}
    (folder / "fetched.civitai.info").write_text(json.dumps(info))
    file(folder / "loaded.safetensors")
    (folder / "loaded.civitai.info").write_text(json.dumps(info))
    ours = folder / "loaded.atelier.json"
    ours.write_text(json.dumps({"title": "Ink v2", "trigger": "ink", "source": "https://civitai.com/models/1"}))
    shown = {card["name"]: (card["title"], card["trigger"]) for card in cards(web)}
    assert shown == {"fetched": ("fetched", "inked, lines"), "loaded": ("Ink v2", "ink")}
    id = cards(web, q="ink v2")[0]["id"]
    edited = web.post(f"/extensions/lora/cards/{id}", json={"trigger": "wash", "weight": 0.6}).json()
    assert (edited["trigger"], edited["weight"], edited["description"]) == ("wash", 0.6, "Black lines")
    # the Models tab says the same, and A1111 too
    assert json.loads(ours.read_text()) == {
        "title": "Ink v2",
        "trigger": "wash",
        "source": "https://civitai.com/models/1",
    }
    assert json.loads((folder / "loaded.json").read_text()) == {"activation text": "wash", "preferred weight": 0.6}


def test_a1111s_sidecar_is_read_and_kept(folder: Path, web: TestClient) -> None:
    file(folder / "cat.v1.safetensors", wide(768))
    path = folder / "cat.v1.json"
    path.write_text(
        json.dumps(
            {
                "description": "A cat",
                "sd version": "SDXL",
                "activation text": "kit, cat",
                "preferred weight": 0.7,
                "notes": "<script>",
                "negative text": "dog",
                "extensions": {"other": 1},
            }
        )
    )
    (card,) = cards(web)
    assert (card["family"], card["badge"], card["trigger"], card["weight"]) == ("sdxl", "SDXL", "kit, cat", 0.7)
    details = web.get(f"/extensions/lora/cards/{card['id']}").json()
    assert (details["description"], details["notes"], details["negative"]) == ("A cat", "<script>", "dog")
    edited = web.post(
        f"/extensions/lora/cards/{card['id']}", json={"weight": 0.9, "tags": ["animal"], "family": "sd1"}
    ).json()
    assert (edited["weight"], edited["tags"], edited["description"]) == (0.9, ["animal"], "A cat")
    content = json.loads(path.read_text())
    assert (content["preferred weight"], content["sd version"], content["extensions"]) == (0.9, "SD1", {"other": 1})
    assert [p.name for p in folder.iterdir() if p.name.startswith(".")] == []


@pytest.mark.parametrize("content", ["[]", "{", '{"notes": 3, "preferred weight": "x", "tags": {"a": 1}}', "\0"])
def test_an_odd_sidecar_harms_nothing(folder: Path, web: TestClient, content: str) -> None:
    file(folder / "cat.safetensors")
    (folder / "cat.json").write_text(content)
    (card,) = cards(web)
    assert (card["title"], card["weight"], card["tags"]) == ("cat", 0, [])
    answer = web.post(f"/extensions/lora/cards/{card['id']}", json={"notes": "mine"})
    if content.startswith('{"'):
        assert answer.json()["notes"] == "mine"
    else:
        assert answer.status_code == 409
        assert (folder / "cat.json").read_text() == content  # what cannot be read is not lost


def test_favourites_stay(folder: Path, tmp_path: Path, web: TestClient) -> None:
    file(folder / "cat.safetensors")
    file(folder / "dog.safetensors")
    id = cards(web, q="dog")[0]["id"]
    assert web.post(f"/extensions/lora/cards/{id}/favourite", json={"favourite": True}).json()["favourite"]
    with client(folder, tmp_path) as again:
        assert [card["name"] for card in cards(again, favourites=True)] == ["dog"]
    assert not web.post(f"/extensions/lora/cards/{id}/favourite", json={"favourite": False}).json()["favourite"]
    assert cards(web, favourites=True) == []


@pytest.mark.parametrize("name", ["cat.preview.png", "cat.png", "cat.webp", "cat.preview.jpg"])
def test_a_picture_beside_the_file_is_its_preview(
    folder: Path, web: TestClient, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    file(folder / "cat.safetensors")
    Image.new("RGB", (900, 600), "red").save(folder / name)
    (card,) = cards(web)
    monkeypatch.setattr(Shelf, "look", lambda _: pytest.fail("all are looked through for one picture"))
    answer = web.get(f"/extensions/lora/{card['preview']}")
    assert answer.headers["content-type"] == "image/webp"
    assert "sandbox" in answer.headers["content-security-policy"]
    assert Image.open(io.BytesIO(answer.content)).size == (384, 256)


def test_a_preview_is_set_from_an_image(folder: Path, tmp_path: Path) -> None:
    opened = client(folder, tmp_path)
    with opened as web:
        file(folder / "cat.safetensors")
        (folder / "cat.preview.webp").write_bytes(b"no picture")
        (card,) = cards(web)
        assert web.get(f"/extensions/lora/{card['preview']}").status_code == 404
        ref = opened.images.put(png("blue", (1600, 800)))
        shown = web.post(f"/extensions/lora/cards/{card['id']}/preview", json={"image": ref}).json()
        picture = Image.open(io.BytesIO(web.get(f"/extensions/lora/{shown['preview']}").content)).convert("RGB")
        assert picture.getpixel((100, 100))[2] > 200  # type: ignore[index]
        assert Image.open(folder / "cat.preview.png").size == (768, 384)
        assert web.post(f"/extensions/lora/cards/{card['id']}/preview", json={"image": "0" * 64}).status_code == 404
        for wrong in ("../../etc/passwd", "f" * 63, ""):
            assert web.post(f"/extensions/lora/cards/{card['id']}/preview", json={"image": wrong}).status_code == 422


def test_only_ids_are_taken(folder: Path, web: TestClient) -> None:
    file(folder / "cat.safetensors")
    for id in ("cat", "..%2f..%2fetc%2fpasswd", "0" * 15, "Z" * 16):
        assert web.get(f"/extensions/lora/cards/{id}/preview").status_code in (404, 422)
    assert web.get(f"/extensions/lora/cards/{'0' * 16}").status_code == 404
    (card,) = cards(web)
    for wrong in ({"weight": 99}, {"weight": "nan"}, {"path": "/x"}, {"tags": ["x"] * 51}, {"family": "sd9"}):
        assert web.post(f"/extensions/lora/cards/{card['id']}", json=wrong).status_code == 422
