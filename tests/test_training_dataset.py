"""Pictures to learn from: layouts, what is wrong in them, crops, captions, and the order in which they come."""

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageFilter

from backend.errors import InvalidRequest, NotFound
from backend.params import validate
from backend.settings import ROOT
from backend.training import dataset, presets, records
from backend.training.params import Sample, TrainParams, check_name, read_samples


def picture(path: Path, size: tuple[int, int] = (96, 96), seed: int = 0, caption: str | None = None) -> Path:
    """Sharp squares of random colours."""
    path.parent.mkdir(parents=True, exist_ok=True)
    colours = np.random.default_rng(seed).integers(0, 255, (6, 6, 3), np.uint8)
    Image.fromarray(colours).resize(size, Image.Resampling.NEAREST).save(path)
    if caption is not None:
        path.with_suffix(".txt").write_text(caption, "utf-8")
    return path


def params(**values: object) -> TrainParams:
    return validate(TrainParams, {"resolution": 64, "caption_dropout": 0, **values})


def scanned(folder: Path, **values: object) -> dataset.Dataset:
    return dataset.scan(folder, params(**values))


def planned(folder: Path, **values: object) -> dataset.Plan:
    given = params(**values)
    return dataset.plan(dataset.scan(folder, given), given, 32)


def flagged(found: dataset.Dataset) -> dict[str, str]:
    return {flag.file: flag.kind for flag in found.flags}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for number in range(6):
        picture(tmp_path / f"{number}.png", seed=number, caption=f"a thing, number {number}")
    return tmp_path


# --- layouts


def test_a_folder_of_no_repeats_is_none(tmp_path: Path) -> None:
    picture(tmp_path / "0_cat" / "1.png")
    with pytest.raises(InvalidRequest, match="no picture to learn from") as refused:
        scanned(tmp_path)
    assert ("0_cat is left out" in str(refused.value), str(tmp_path) in str(refused.value)) == (True, False)


def test_flat_folder_has_captions_beside(folder: Path) -> None:
    found = scanned(folder, repeats=3)
    assert [(item.name, item.caption, item.repeats) for item in found.items][1] == ("1.png", "a thing, number 1", 3)
    assert not found.flags


def test_kohya_folders_name_repeats_and_words(tmp_path: Path) -> None:
    picture(tmp_path / "10_my cat" / "a.png", seed=1)
    picture(tmp_path / "3_dog" / "b.png", seed=2, caption="a dog, sitting")
    picture(tmp_path / "spare" / "c.png", seed=3)
    found = scanned(tmp_path)
    assert [(i.name, i.repeats, i.caption) for i in found.items] == [
        ("10_my cat/a.png", 10, "my cat"),
        ("3_dog/b.png", 3, "a dog, sitting"),
    ]
    assert flagged(found) == {"spare": "ignored"}
    assert found.tags == {"10_my cat": {"my cat": 1}, "3_dog": {"a dog": 1, "sitting": 1}}


def test_kohya_folders_below_img_and_reg(tmp_path: Path) -> None:
    picture(tmp_path / "img" / "2_cat" / "a.png", seed=1)
    picture(tmp_path / "reg" / "1_animal" / "b.png", seed=2)
    found = scanned(tmp_path)
    assert [(i.caption, i.regular) for i in found.items] == [("cat", False), ("animal", True)]


def test_metadata_jsonl_lists_pictures(tmp_path: Path) -> None:
    picture(tmp_path / "set" / "sub" / "a.png", seed=1)
    picture(tmp_path / "outside.png", seed=2)
    rows = [
        {"file_name": "sub/a.png", "text": "one"},
        {"file_name": "../outside.png", "text": "two"},
        {"file_name": "none.png"},
        {"text": "no name"},
    ]
    (tmp_path / "set" / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\nbroken\n")
    found = scanned(tmp_path / "set")
    assert [(i.name, i.caption) for i in found.items] == [("sub/a.png", "one")]
    assert [f.message.partition(":")[0] for f in found.flags] == ["is left out"] * 4
    assert "outside the folder" in found.flags[0].message


def test_note_of_the_set_is_read(folder: Path) -> None:
    (folder / "dataset.json").write_text('{"licence": "CC0", "source": "drawn by us", "other": 1}')
    assert scanned(folder).note == {"licence": "CC0", "source": "drawn by us"}


@pytest.mark.parametrize("prepare", ["missing", "too long", "empty", "corrupt"])
def test_nothing_to_learn_from_is_said(tmp_path: Path, prepare: str) -> None:
    is_there = prepare in ("empty", "corrupt")
    folder = tmp_path / ("set" if prepare != "too long" else 300 * "s")
    if is_there:
        folder.mkdir()
    if prepare == "corrupt":
        (folder / "a.png").write_bytes(b"\x89PNG no")
    with pytest.raises(InvalidRequest if is_there else NotFound) as error:
        scanned(folder)
    assert folder.name in str(error.value)
    assert ("a.png is left out" in str(error.value)) == (prepare == "corrupt")


# --- what is wrong in them


def test_what_looks_wrong_is_flagged(folder: Path) -> None:
    (folder / "5.png").write_bytes((folder / "5.png").read_bytes()[:300])
    picture(folder / "small.png", (40, 40), seed=7, caption="x")
    blurred = Image.open(picture(folder / "blurred.png", (256, 256), seed=8, caption="x"))
    blurred.filter(ImageFilter.GaussianBlur(30)).save(folder / "blurred.png")
    (folder / "same.png").write_bytes((folder / "1.png").read_bytes())
    (folder / "same.txt").write_text("x")
    Image.open(folder / "2.png").resize((80, 80)).save(folder / "twin.png")
    (folder / "zz.txt").write_text("a caption without a picture")
    (folder / "3.txt").unlink()
    found = scanned(folder)
    assert flagged(found) == {
        "5.png": "corrupt",
        "small.png": "small",
        "blurred.png": "blurred",
        "same.png": "duplicate",
        "twin.png": "duplicate",
        "3.png": "caption",
    }
    assert "5.png" not in [item.name for item in found.items]


def test_files_that_are_not_read_are_named(folder: Path) -> None:
    (folder / "1.txt").write_bytes("Größe".encode("latin-1"))
    picture(folder / "a.gif")
    found = scanned(folder)
    assert {(flag.file, flag.message) for flag in found.flags} == {
        ("a.gif", "is left out: PNG, JPEG and WebP are read"),
        ("1.txt", "is left out: it is not UTF-8 text"),
        ("1.png", "has no caption"),
    }


def test_what_was_read_can_be_kept(folder: Path) -> None:
    (folder / "dataset.json").write_text('{"licence": "CC0"}')
    picture(folder / "small.png", (40, 40), seed=7)
    found = scanned(folder)
    assert found.flags
    assert dataset.load(dataset.dump(found)) == found


# --- crops


@given(
    width=st.integers(16, 3000),
    height=st.integers(16, 3000),
    resolution=st.sampled_from([64, 128, 512, 1024]),
    step=st.sampled_from([32, 64]),
)
def test_a_crop_is_within_the_picture_and_its_size_suits_the_model(
    width: int, height: int, resolution: int, step: int
) -> None:
    given = params(resolution=resolution)
    crop = dataset.crop_of(width, height, given, step)
    assert crop.width % step == crop.height % step == 0
    assert crop.width * crop.height <= max(resolution, step) ** 2
    assert 0 <= crop.left <= crop.scaled[0] - crop.width
    assert 0 <= crop.top <= crop.scaled[1] - crop.height
    assert min(crop.scaled[0] - crop.width, crop.scaled[1] - crop.height) <= 1  # no more is cut than need be
    cut = dataset.crop_of(width, height, given.model_copy(update={"buckets": False}), step)
    assert cut.width == cut.height


def test_the_crop_is_the_middle(tmp_path: Path) -> None:
    striped = Image.new("RGB", (192, 64), "red")
    striped.paste("blue", (64, 0, 128, 64))
    crop = dataset.crop_of(192, 64, params(buckets=False), 32)
    seen = dataset.cropped(striped, crop)
    assert seen.size == (64, 64)
    assert seen.getcolors() == [(64 * 64, (0, 0, 255))]


def test_a_line_of_pixels_takes_no_room(tmp_path: Path) -> None:
    line = Image.new("RGB", (1, 10_000_000), "red")
    seen = dataset.cropped(line, dataset.crop_of(*line.size, params(resolution=512), 64))
    assert seen.getcolors() == [(seen.width * seen.height, (255, 0, 0))]


# --- captions and order


def test_captions_carry_the_trigger() -> None:
    item = dataset.Item(1, 1, "", 0, 0.0, Path(), "a.png", "red, green, blue")
    marked = dataset.Item(1, 1, "", 0, 0.0, Path(), "a.png", "a photo of [trigger] here")
    assert dataset.caption_of(item, params(trigger="zwx")) == "zwx, red, green, blue"
    assert dataset.caption_of(marked, params(trigger="zwx")) == "a photo of zwx here"
    assert dataset.caption_of(item, params(trigger="red")) == "red, green, blue"
    assert dataset.caption_of(item, params(trigger="re")) == "re, red, green, blue"  # another word
    assert dataset.caption_of(item, params(prefix="art, ", suffix=", best")) == "art, red, green, blue, best"


def test_shuffled_tags_keep_those_in_front(folder: Path) -> None:
    (folder / "0.txt").write_text("name, " + ", ".join("abcdefgh"))
    plan = planned(folder, shuffle=True, keep_tokens=1, batch_size=1)
    seen = [e.caption for n in range(30) for e in plan.batch(n) if e.item.name == "0.png"]
    assert len(set(seen)) > 1
    assert all(caption.startswith("name, ") and sorted(caption) == sorted(seen[0]) for caption in seen)


def test_captions_are_left_out_as_often_as_asked(folder: Path) -> None:
    plan = planned(folder, caption_dropout=0.3, flip=True, batch_size=1)
    seen = [plan.batch(n)[0] for n in range(600)]
    assert 0.24 < sum(not e.caption for e in seen) / 600 < 0.36
    assert 0.43 < sum(e.flipped for e in seen) / 600 < 0.57


def test_each_epoch_has_each_picture_as_often_as_it_is_repeated(tmp_path: Path) -> None:
    for number in range(5):
        picture(tmp_path / f"{number % 2 + 1}_x" / f"{number}.png", (64 + 40 * (number % 2), 64), seed=number)
    plan = planned(tmp_path, batch_size=2)
    for epoch in range(3):
        batches = [plan.batch(epoch * plan.batches_per_epoch + n) for n in range(plan.batches_per_epoch)]
        assert Counter(e.item.name for batch in batches for e in batch) == {
            "1_x/0.png": 1,
            "1_x/2.png": 1,
            "1_x/4.png": 1,
            "2_x/1.png": 2,
            "2_x/3.png": 2,
        }
        assert all(len({(e.crop.width, e.crop.height) for e in batch}) == 1 for batch in batches)


def test_accumulation_makes_epochs_no_longer(folder: Path) -> None:
    plan = planned(folder, epochs=10, batch_size=2, accumulation=2)
    assert plan.batches_per_epoch == 3
    seen = Counter(e.item.name for step in range(plan.steps) for n in (2 * step, 2 * step + 1) for e in plan.batch(n))
    assert (plan.steps, plan.epochs(plan.steps), {*seen.values()}) == (15, 10, {10})


def test_the_order_follows_from_the_seed(folder: Path) -> None:
    one, same, other = planned(folder), planned(folder), planned(folder, seed=1)
    assert [same.batch(n) for n in (40, 3, 17)] == [one.batch(n) for n in (40, 3, 17)]  # asked in any order
    assert [one.batch(n)[0].item.name for n in range(12)] != [other.batch(n)[0].item.name for n in range(12)]


def test_regularisation_images_come_as_often_as_the_others(tmp_path: Path) -> None:
    picture(tmp_path / "img" / "4_cat" / "a.png", seed=1)
    for number in range(3):
        picture(tmp_path / "reg" / "1_animal" / f"{number}.png", seed=10 + number)
    plan = planned(tmp_path)
    seen = [e.item.regular for n in range(plan.batches_per_epoch) for e in plan.batch(n)]
    assert Counter(seen) == {False: 4, True: 4}


def test_what_is_held_out_is_not_learnt(folder: Path) -> None:
    (folder / "copy.png").write_bytes((folder / "0.png").read_bytes())
    plan = planned(folder, validation=0.5)
    held_out = {item.sha256 for item in plan.held_out}
    assert len(plan.held_out) >= 3
    assert not held_out & {e.item.sha256 for n in range(plan.batches_per_epoch) for e in plan.batch(n)}


def test_one_picture_is_not_held_out(tmp_path: Path) -> None:
    picture(tmp_path / "a.png")
    assert not planned(tmp_path, validation=0.5).held_out


# --- parameters


def test_sample_prompts_are_read_as_kohya_writes_them() -> None:
    lines = "# a comment\na cat --w 64 --h 128 --d 5 --s 9 --l 2.5 --n ugly, blurred\n\na well-made dog"
    one, other = read_samples(lines, Sample("", seed=3))
    assert one == Sample("a cat", "ugly, blurred", 64, 128, 5, 9, 2.5)
    assert other == Sample("a well-made dog", seed=3)


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"sample_prompts": "a cat --q 3"}, "--q is not known"),
        ({"sample_prompts": "a cat --w 65"}, "cannot be 65"),
        ({"sample_prompts": "a cat --d x"}, "should be a number"),
        ({"sample_prompts": "x\n" * 17}, "at most 16"),
        ({"learning_rate": 0}, "nothing is learnt"),
        ({"optimizer": "Prodigy", "learning_rate": 1, "text_encoder_lr": 0.5}, "Prodigy has one learning rate"),
        ({"rank": 0}, "rank"),
        ({"resolution": 70}, "resolution: should be a multiple of 8"),
        ({"rnak": 8}, "rnak: is not a parameter"),
    ],
)
def test_parameters_that_cannot_be_meant_are_refused(values: dict[str, object], said: str) -> None:
    with pytest.raises(InvalidRequest, match=said):
        params(**values)


@pytest.mark.parametrize("name", ["../x", "a/b", "a\\b", "", ".hidden", "a..b", "con", "x" * 81, "a:b", "end."])
def test_a_name_that_could_lead_elsewhere_is_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="cannot be the name"):
        check_name(name)
    with pytest.raises(InvalidRequest, match="name: "):
        records.begin(tmp_path, name, tmp_path, params())


@pytest.mark.parametrize("name", ["demo", "Größe 2", "my-style_v1.2 (b)", "日本"])
def test_usual_names_are_taken(name: str) -> None:
    assert check_name(name) == name


def test_each_preset_is_valid_and_says_what_it_costs() -> None:
    assert len(presets.PRESETS) == len(presets.GOALS) * 8
    for preset in presets.PRESETS:
        given = validate(TrainParams, preset.values)
        assert given.steps > 0
        assert preset.minutes > 0
        assert preset.gigabytes > 0
        assert given.sample_every < given.steps


def test_the_page_on_training_has_each_preset_of_a_style() -> None:
    text = (ROOT / "docs" / "training.md").read_text("utf-8")
    for preset in presets.PRESETS:
        if preset.goal == "style":
            minutes = f"{preset.minutes:.0f} minutes" if preset.minutes < 100 else f"{preset.minutes / 60:.0f} hours"
            assert f" | {minutes} | {preset.gigabytes:g} GB |" in text


def test_the_preset_that_fits_the_memory_is_found() -> None:
    assert presets.find("style", "sdxl", 23.6).memory == "24 GB"
    assert presets.find("style", "sdxl", 11.9).memory == "12 GB"
    assert presets.find("style", "starter", 80).memory == "cpu"
    assert presets.find("style", "sd1", 0).memory == "cpu"
    for goal, family, memory, said in (
        ("stile", "sd1", 0, "character, style"),
        ("style", "sdxl", 4, "needs 8 GB"),
        ("style", "sdxl", 0, "without a graphics card"),
    ):
        with pytest.raises(NotFound, match=said):
            presets.find(goal, family, memory)
