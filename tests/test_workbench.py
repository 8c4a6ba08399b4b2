"""The workbench: what lies in a set's folder after each thing that is done to it."""

import io
import json
import os
import stat
import time
import zipfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from backend import archives
from backend.catalog import Model
from backend.errors import ArchiveRefused, AtelierError, Conflict, ImageRefused, InvalidRequest, NotFound
from backend.params import validate
from backend.settings import ROOT
from backend.training import captions as captions_of_many
from backend.training import dataset
from backend.training.captions import Edit, edited
from backend.training.params import TrainParams
from backend.training.workbench import EXCLUDED, Workbench, bucket_step, checked_folder, id_of

PNG = "PNG"


def drawn(seed: int = 0, size: tuple[int, int] = (96, 96), kind: str = PNG) -> bytes:
    """Sharp squares of random colours."""
    colours = np.random.default_rng(seed).integers(0, 255, (6, 6, 3), np.uint8)
    out = io.BytesIO()
    Image.fromarray(colours).resize(size, Image.Resampling.NEAREST).save(out, kind)
    return out.getvalue()


def zipped(path: Path, files: dict[str, bytes | str]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return path


@pytest.fixture
def bench(tmp_path: Path) -> Workbench:
    made = Workbench(tmp_path / "datasets")
    made.create("cats")
    return made


@pytest.fixture
def brought(bench: Workbench, tmp_path: Path) -> Workbench:
    """With three pictures."""
    files: dict[str, bytes | str] = {}
    for number in range(3):
        files |= {f"{number}.png": drawn(number), f"{number}.txt": f"a cat, number {number}"}
    bench.add_zip("cats", zipped(tmp_path / "cats.zip", files))
    return bench


def captions(bench: Workbench) -> dict[str, str]:
    return {item.name: item.caption for item in bench.read("cats").found.items}


def files(bench: Workbench) -> list[str]:
    folder = bench.root / "cats"
    kept = [p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()]
    return sorted(name for name in kept if not name.startswith((".undo", ".seen")))


# --- sets


def test_a_set_is_made_renamed_and_deleted(brought: Workbench) -> None:
    with pytest.raises(Conflict, match="there is a set cats already"):
        brought.create("cats")
    brought.rename("cats", "my cats")
    assert brought.names() == ["my cats"]
    assert len(brought.read("my cats").found.items) == 3
    brought.create("dogs")
    with pytest.raises(Conflict):
        brought.rename("my cats", "dogs")
    brought.delete("my cats")
    assert brought.names() == ["dogs"]
    with pytest.raises(NotFound):
        brought.read("my cats")


def test_all_who_wait_for_a_set_that_goes_are_told(brought: Workbench) -> None:
    """Its page asks for many small pictures at once."""
    with ThreadPoolExecutor() as pool, brought._locks["cats"]:
        asked = [pool.submit(brought.read, "cats") for _ in range(3)]
        time.sleep(0.05)
        brought.delete("cats")
    assert [type(each.exception()) for each in asked] == [NotFound] * 3


@pytest.mark.parametrize("name", ["..", "a/b", "", ".hidden", "CON", "a" * 81, "a\0", "../cats", "x "])
def test_names_that_lead_anywhere_else_are_none(bench: Workbench, name: str) -> None:
    with pytest.raises(InvalidRequest):
        bench.create(name)
    with pytest.raises(NotFound):
        bench.read(name)
    with pytest.raises(NotFound):
        bench.delete(name)


def test_an_empty_set_can_be_looked_at(bench: Workbench) -> None:
    assert bench.read("cats").found.items == ()


def test_what_a_killed_server_left_is_cleared(bench: Workbench) -> None:
    for name in (".upload-a", ".download-b", ".zip-c/x.png", ".upload-new"):
        (bench.root / name).parent.mkdir(exist_ok=True)
        (bench.root / name).write_bytes(b"x")
    for name in (".upload-a", ".download-b", ".zip-c", "cats"):
        os.utime(bench.root / name, (0, 0))
    bench.clear()
    assert {path.name for path in bench.root.iterdir()} == {"cats", ".upload-new"}


# --- pictures


def test_one_picture_after_another(bench: Workbench, tmp_path: Path) -> None:
    for number in range(2):
        file = tmp_path / "upload"
        file.write_bytes(drawn(number, kind="JPEG" if number else PNG))
        bench.add("cats", file, "../../my cat?.gif", caption="a cat" if number else "")
    assert files(bench) == ["my cat_ (2).jpg", "my cat_ (2).txt", "my cat_.png"]


def test_what_is_no_picture_is_refused_and_leaves_nothing(bench: Workbench, tmp_path: Path) -> None:
    file = tmp_path / "upload"
    file.write_bytes(b"\x89PNG but no more")
    with pytest.raises(ImageRefused):
        bench.add("cats", file, "a.png")
    assert files(bench) == []


def test_a_zip_may_have_any_layout(bench: Workbench, tmp_path: Path) -> None:
    rows = json.dumps({"file_name": "sub/a.png", "text": "listed"})
    layouts: list[dict[str, bytes | str]] = [
        {"set/a.png": drawn(1), "set/a.txt": "flat", "set/dataset.json": '{"licence": "CC0"}', "__MACOSX/x": "x"},
        {"10_my cat/b.png": drawn(2), "10_my cat/c.png": drawn(3), "10_my cat/c.txt": "told"},
        {"s/img/3_dog/d.png": drawn(4), "s/reg/1_animal/e.png": drawn(5)},
        {"metadata.jsonl": rows, "sub/a.png": drawn(6)},
        {"whole.png": drawn(7), "torn.png": b"\x89PNG"},
    ]
    refused = [bench.add_zip("cats", zipped(tmp_path / "x.zip", layout)).refused for layout in layouts]
    found = bench.read("cats").found
    assert {(i.name, i.repeats, i.regular, i.caption) for i in found.items} == {
        ("a.png", 1, False, "flat"),
        ("a (2).png", 1, False, "listed"),
        ("10_my cat/b.png", 10, False, "my cat"),
        ("10_my cat/c.png", 10, False, "told"),
        ("3_dog/d.png", 3, False, "dog"),
        ("reg/1_animal/e.png", 1, True, "animal"),
        ("whole.png", 1, False, ""),
    }
    assert found.note == {"licence": "CC0"}
    assert [[flag.file for flag in flags] for flags in refused] == [[], [], [], [], ["torn.png"]]
    again = dataset.scan(bench.root / "cats")  # what a trainer sees
    assert again.items == found.items


def link(path: Path) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        info = zipfile.ZipInfo("a.png")
        info.external_attr = (stat.S_IFLNK | 0o777) << 16
        archive.writestr(info, "/etc/passwd")
    return path


def many(path: Path) -> Path:
    return zipped(path, {f"{number}.txt": "" for number in range(20_001)})


def bomb(path: Path) -> Path:
    return zipped(path, {"a.png": bytes(60_000_000)})


REFUSED = {
    "../a.png": "bad name",
    "/etc/a.png": "bad name",
    "C:/a.png": "bad name",
    "a\\..\\b.png": "bad name",
    "CON.png": "Windows",
    "deep/inner.zip": "another archive",
    "notes.md": "no picture in the zip",
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_zip_that_is_no_set_is_refused(bench: Workbench, tmp_path: Path, name: str) -> None:
    with pytest.raises(AtelierError, match=REFUSED[name]):
        bench.add_zip("cats", zipped(tmp_path / "x.zip", {name: drawn() if name.endswith("png") else b"PK"}))
    assert files(bench) == []
    assert [path.name for path in bench.root.iterdir()] == ["cats"]


@pytest.mark.parametrize(("make", "why"), [(link, "a link"), (many, "20001 files"), (bomb, "too much")])
def test_a_zip_that_would_harm_is_refused(bench: Workbench, tmp_path: Path, make: object, why: str) -> None:
    assert callable(make)
    with pytest.raises(ArchiveRefused, match=why):
        bench.add_zip("cats", make(tmp_path / "x.zip"))
    assert files(bench) == []


def test_a_list_that_would_fill_the_memory_is_not_read(tmp_path: Path) -> None:
    """Not even of what is skipped."""
    path = zipped(tmp_path / "x.zip", {f"__MACOSX/{number}": "" for number in range(41)})
    with pytest.raises(ArchiveRefused, match="lists 41 files; at most 10"):
        archives.unpack(path, tmp_path, archives.Limits(files=10, bytes=100), {"__MACOSX"})
    archives.unpack(path, tmp_path, archives.Limits(files=11, bytes=100), {"__MACOSX"})


@pytest.mark.parametrize("method", [zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_a_zip_whose_content_is_damaged_is_refused(bench: Workbench, tmp_path: Path, method: int) -> None:
    with zipfile.ZipFile(tmp_path / "x.zip", "w", method) as archive:
        archive.writestr("a.png", drawn() * 3)
    damaged = bytearray((tmp_path / "x.zip").read_bytes())
    damaged[60:200] = bytes(byte ^ 0xFF for byte in damaged[60:200])
    (tmp_path / "x.zip").write_bytes(damaged)
    with pytest.raises(ArchiveRefused, match=r"x\.zip is not a zip that can be read"):
        bench.add_zip("cats", tmp_path / "x.zip")
    assert files(bench) == []


ROWS: dict[str, str | bytes] = {
    "twice": '{"file_name": "a.png", "text": "another"}',
    "nested": b"[" * 100_000,
    "no text": b"\xff\xfe",
    "no name": json.dumps({"file_name": "a\0b", "text": ""}),
    "long": json.dumps({"file_name": "a" * 5000, "text": ""}),
    "half a character": '{"file_name": "b.png", "text": "\\ud800"}',
}


@pytest.mark.parametrize("row", ROWS)
def test_a_row_of_no_use_costs_itself_only(bench: Workbench, tmp_path: Path, row: str) -> None:
    rows = [b'{"file_name": "a.png", "text": "listed"}', ROWS[row]]
    listing = b"\n".join(line.encode() if isinstance(line, str) else line for line in rows)
    brought = {"a.png": drawn(1), "b.png": drawn(2), "metadata.jsonl": listing}
    taken = bench.add_zip("cats", zipped(tmp_path / "x.zip", brought))
    assert (taken.names, [flag.file for flag in taken.refused]) == (("a.png",), ["metadata.jsonl, line 2"])
    assert captions(bench) == {"a.png": "listed"}


@pytest.mark.parametrize("note", [b"[1]", b"[" * 60_000, b'{"source": "\\ud800"}', b" " * 70_000])
def test_a_note_of_no_use_costs_itself_only(bench: Workbench, tmp_path: Path, note: bytes) -> None:
    """And neither the list of all sets."""
    taken = bench.add_zip("cats", zipped(tmp_path / "x.zip", {"a.png": drawn(), "dataset.json": note}))
    assert (taken.names, [flag.file for flag in taken.refused]) == (("a.png",), ["dataset.json"])
    (bench.root / "cats" / "dataset.json").write_bytes(note)
    found = bench.read("cats").found
    assert (len(found.items), dict(found.note)) == (1, {})
    assert [flag.kind for flag in found.flags if flag.file == "dataset.json"] == ["ignored"]
    assert not any(str(tmp_path) in flag.message for flag in found.flags)


def test_text_without_end_is_not_read(bench: Workbench, tmp_path: Path) -> None:
    """A small zip could fill the memory by it."""
    long = "word " * 20_000
    bench.add_zip("cats", zipped(tmp_path / "x.zip", {"a.png": drawn(), "a.txt": long}))
    assert captions(bench) == {"a.png": ""}
    with open(bench.root / "cats" / "b.png", "wb") as sparse:
        sparse.truncate(65 * 2**20)
    assert [(flag.file, "at most 64" in flag.message) for flag in bench.read("cats").corrupt] == [("b.png", True)]


def test_folders_of_no_repeats_are_named(bench: Workbench, tmp_path: Path) -> None:
    layouts: list[dict[str, bytes | str]] = [
        {"a.png": drawn(1), "more/b.png": drawn(2)},
        {"a.png": drawn(3), "img/3_cat/b.png": drawn(4)},
        {"a.png": drawn(5), "0_cat/b.png": drawn(6)},
    ]
    refused = [bench.add_zip("cats", zipped(tmp_path / "x.zip", layout)).refused for layout in layouts]
    assert [[flag.file for flag in flags] for flags in refused] == [["more"], ["a.png"], ["0_cat"]]


def test_excluded_pictures_are_kept_but_not_learnt(brought: Workbench) -> None:
    brought.exclude("cats", [id_of("1.png")])
    assert [item.name for item in dataset.scan(brought.root / "cats").items] == ["0.png", "2.png"]
    now = brought.read("cats")
    assert [(item.name, item.caption) for item in now.left_out] == [("1.png", "a cat, number 1")]
    brought.restore("cats", [id_of("1.png")])
    assert captions(brought)["1.png"] == "a cat, number 1"
    assert not (brought.root / "cats" / EXCLUDED).exists()


def test_folders_say_how_often_they_come(brought: Workbench) -> None:
    brought.move("cats", [id_of("0.png"), id_of("1.png")], "5_tom cat")
    brought.move("cats", [id_of("2.png")], "reg/1_cat")
    found = brought.read("cats").found
    assert {(i.name, i.repeats, i.regular) for i in found.items} == {
        ("5_tom cat/0.png", 5, False),
        ("5_tom cat/1.png", 5, False),
        ("reg/1_cat/2.png", 1, True),
    }
    brought.move("cats", [id_of("5_tom cat/0.png"), id_of("5_tom cat/1.png")], "")
    assert "0.png" in files(brought)
    assert not (brought.root / "cats" / "5_tom cat").exists()


def test_what_a_folder_said_goes_along(bench: Workbench, tmp_path: Path) -> None:
    bench.add_zip("cats", zipped(tmp_path / "x.zip", {"2_black cat/a.png": drawn()}))
    bench.move("cats", [id_of("2_black cat/a.png")], "")
    assert captions(bench) == {"a.png": "black cat"}


@pytest.mark.parametrize(
    "folder", ["cat", "0_cat", "5_../x", "reg/cat", "reg", "../5_cat", "5_a/b", "5_cat.", "12345_x"]
)
def test_a_folder_that_is_none(folder: str) -> None:
    with pytest.raises(InvalidRequest, match="number of repeats"):
        checked_folder(folder)


def test_removed_is_gone_with_its_caption(brought: Workbench) -> None:
    (brought.root / "cats" / "torn.png").write_bytes(b"\x89PNG")
    assert [flag.file for flag in brought.read("cats").corrupt] == ["torn.png"]
    brought.remove("cats", [id_of("torn.png"), id_of("0.png")])
    assert files(brought) == ["1.png", "1.txt", "2.png", "2.txt"]


def test_an_id_that_is_none_touches_nothing(brought: Workbench) -> None:
    before = files(brought)
    for run in (brought.exclude, brought.restore):
        with pytest.raises(NotFound):
            run("cats", ["../1.png"])
    with pytest.raises(NotFound):
        brought.move("cats", ["1.png"], "5_cat")
    brought.remove("cats", ["../1.png"])
    assert files(brought) == before


def test_a_folder_put_there_by_hand_is_settled(bench: Workbench) -> None:
    folder = bench.root / "mine"
    for name in ("img/4_cat/a.png", "b.png", "sub/c.png"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(drawn(len(name)))
    assert [(i.name, i.repeats) for i in bench.read("mine").found.items] == [("4_cat/a.png", 4), ("b.png", 1)]
    (folder / "metadata.jsonl").write_text(json.dumps({"file_name": "sub/c.png", "text": "see"}))
    assert {(i.name, i.caption) for i in bench.read("mine").found.items} >= {("c.png", "see")}


def test_a_file_is_decoded_once(brought: Workbench, monkeypatch: pytest.MonkeyPatch) -> None:
    before = brought.read("cats").found
    measured: list[Path] = []
    monkeypatch.setattr(dataset, "measure", lambda path: measured.append(path))
    assert brought.read("cats").found == before
    assert measured == []


# --- captions


def test_one_caption(brought: Workbench) -> None:
    assert brought.caption("cats", id_of("1.png"), "  a\nblack cat ") == "a black cat"
    assert captions(brought)["1.png"] == "a black cat"
    with pytest.raises(InvalidRequest, match="at most"):
        brought.caption("cats", id_of("1.png"), "x" * 5000)


def test_many_captions_and_back(brought: Workbench) -> None:
    before = captions(brought)
    brought.exclude("cats", [id_of("2.png")])
    assert len(brought.edit("cats", Edit(kind="prefix", text="photo"), dry=True)) == 2
    assert captions(brought) == {"0.png": before["0.png"], "1.png": before["1.png"]}
    brought.edit("cats", Edit(kind="prefix", text="photo"))
    brought.edit("cats", Edit(kind="remove", find="A CAT"), [id_of("1.png")])
    assert captions(brought) == {"0.png": "photo, a cat, number 0", "1.png": "photo, number 1"}
    assert brought.read("cats").undo == "remove"
    assert brought.undo("cats") == 1
    brought.restore("cats", [id_of("2.png")])
    assert brought.undo("cats") == 2
    assert captions(brought) == before
    with pytest.raises(Conflict, match="nothing to undo"):
        brought.undo("cats")


@pytest.mark.parametrize(
    ("edit", "before", "after"),
    [
        ({"kind": "suffix", "text": "ink"}, "a cat", "a cat, ink"),
        ({"kind": "suffix", "text": " in ink"}, "a cat", "a cat in ink"),
        ({"kind": "prefix", "text": "zwx"}, "", "zwx"),
        ({"kind": "set", "text": "a cat"}, "x", "a cat"),
        ({"kind": "replace", "find": "Cat", "text": "dog"}, "a cat, cat", "a dog, dog"),
        ({"kind": "replace", "find": "Cat", "text": "dog", "case": True}, "a cat", "a cat"),
        ({"kind": "replace", "find": "a.", "text": "\\1"}, "a.b ab", "\\1b ab"),
        ({"kind": "replace", "find": r"(\w+) cat", "text": r"cat, \1", "regex": True}, "a red cat", "a cat, red"),
        ({"kind": "remove", "find": "cat"}, "a cat, cat, CAT", "a cat"),
        ({"kind": "rename", "find": "cat", "text": "dog"}, "cat, dog, sun", "dog, sun"),
    ],
)
def test_edits(edit: dict[str, object], before: str, after: str) -> None:
    found = edited({"one": before}, Edit.model_validate(edit))
    assert found == ({"one": after} if after != before else {})


@pytest.mark.parametrize(("find", "text"), [("(", ""), ("[", ""), (r"(a)", r"\2"), (r"(?P<x", "")])
def test_a_pattern_that_is_none_is_said(find: str, text: str) -> None:
    with pytest.raises(InvalidRequest, match="no regular expression"):
        edited({"one": "a"}, Edit(kind="replace", find=find, text=text, regex=True))


@pytest.mark.parametrize("find", ["(?:a){1000000000}", "a{1,4000000000}", "(?:(?:a{1000}){1000}){1000}"])
def test_a_pattern_that_fills_the_memory_is_refused(find: str) -> None:
    with pytest.raises(InvalidRequest, match=r"find: repeats something .* times; at most 100000 can be"):
        edited({"1": "a"}, Edit(kind="replace", find=find, regex=True))
    assert edited({"1": "2026-11-27 {x}"}, Edit(kind="replace", find=r"\d{4}-\d{2,}|{x}", regex=True)) == {"1": "-27"}


def test_a_pattern_that_takes_for_ever_does_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(captions_of_many, "TIME", 0.2)
    slow = Edit(kind="replace", find=r"(.*?,){12}P", regex=True)
    began = time.monotonic()
    with pytest.raises(InvalidRequest, match="takes longer"):
        edited({str(number): "a, b, cd" * 400 for number in range(5)}, slow)
    assert time.monotonic() - began < 10


@pytest.mark.parametrize("edit", [{"kind": "replace"}, {"kind": "prefix"}, {"kind": "rename", "find": " "}])
def test_an_edit_says_what(edit: dict[str, str]) -> None:
    with pytest.raises(ValueError, match="say what"):
        Edit.model_validate(edit)


# --- out again


def test_what_goes_out_comes_in_again(brought: Workbench, tmp_path: Path) -> None:
    brought.note("cats", {"source": "drawn by us", "licence": "CC0"})
    brought.move("cats", [id_of("0.png")], "3_cat")
    brought.exclude("cats", [id_of("2.png")])
    brought.pack("cats", tmp_path / "out.zip")
    brought.create("again")
    brought.add_zip("again", tmp_path / "out.zip")
    one, other = (brought.read(name).found for name in ("cats", "again"))
    assert [replace(item, path=one.folder / item.name) for item in other.items] == list(one.items)
    assert one.note == other.note == {"source": "drawn by us", "licence": "CC0"}


def test_a_picture_is_found_without_a_look_at_all_others(brought: Workbench, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = brought.read("cats").folder
    monkeypatch.setattr(dataset, "read", lambda *_: pytest.fail("all of them"))
    assert brought.item("cats", id_of("0.png")).path == folder / "0.png"
    monkeypatch.undo()
    (folder / "0.png").unlink()
    with pytest.raises(NotFound):
        brought.item("cats", id_of("0.png"))


def test_the_crops_are_those_of_the_trainer() -> None:
    step = bucket_step(Model(name="starter", path=ROOT / "models" / "starter", title="Starter"))
    params = validate(TrainParams, {"resolution": 128})
    plan = dataset.plan(dataset.scan(ROOT / "tests" / "data" / "outlines", params), params, step)
    assert step == 32
    for item in plan.items:
        assert dataset.crop_of(item.width, item.height, params, step) == plan.crops[item.sha256]
