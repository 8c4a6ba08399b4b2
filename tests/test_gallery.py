"""Pictures: whole files under good names, rows that find them, where they come from, thumbnails."""

import io
import json
import os
import threading
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path

import pytest
from PIL import Image
from sqlalchemy import Engine

from backend import database, infotext, lineage
from backend.errors import InvalidRequest, NotFound, StorageFull
from backend.gallery import index
from backend.gallery.index import Gallery
from backend.gallery.thumbs import SIZES
from backend.jobs.store import Job, JobStore
from backend.jobs.view import view
from backend.lineage import Input, Source
from backend.params import Param, Params
from tests import fake_engine
from tests.workshop import open_database, request


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[Engine]:
    engine = open_database(tmp_path)
    yield engine
    engine.dispose()


@pytest.fixture
def gallery(tmp_path: Path, engine: Engine) -> Gallery:
    return Gallery(engine, tmp_path / "outputs", tmp_path / "thumbs")


@pytest.fixture
def job(engine: Engine) -> Job:
    return submitted(engine)


def submitted(engine: Engine, owner: str = "ada") -> Job:
    return JobStore(engine, {}).submit(request("a secret prompt", seed=7), owner)


def files(folder: Path) -> list[str]:
    return sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())


def test_a_picture_is_a_file_and_a_row(gallery: Gallery, job: Job) -> None:
    picture = fake_engine.picture(job.request, 1)
    saved = gallery.add(job, picture)
    assert gallery.path(saved).read_bytes() == picture.data
    assert saved.sha256 == sha256(picture.data).hexdigest()
    assert (saved.bytes, saved.seed, saved.owner, saved.index) == (len(picture.data), 8, "ada", 1)
    assert saved.request == picture.request.model_dump(mode="json")
    assert gallery.get(saved.id) == saved
    assert gallery.of(job.id) == [saved]
    with Image.open(gallery.path(saved)) as image:
        assert infotext.of_picture(image) == saved.infotext


def test_a_file_is_named_after_day_job_index_and_seed_alone(gallery: Gallery, job: Job) -> None:
    saved = gallery.add(job, fake_engine.picture(job.request, 1))
    day = job.created.astimezone().strftime("%Y-%m-%d")
    assert saved.path == f"{day}/{job.id:06}-01-8.png"
    assert files(gallery.outputs) == [saved.path]


def test_the_same_picture_twice_is_one(gallery: Gallery, job: Job) -> None:
    picture = fake_engine.picture(job.request, 0)
    assert gallery.add(job, picture) == gallery.add(job, picture)
    assert len(files(gallery.outputs)) == 1


def test_several_workers_with_the_same_picture_make_one(gallery: Gallery, job: Job) -> None:
    picture = fake_engine.picture(job.request, 0)
    saved: list[int] = []
    threads = [threading.Thread(target=lambda: saved.append(gallery.add(job, picture).id)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(saved) == 4
    assert len(set(saved)) == 1
    assert len(files(gallery.outputs)) == 1


def test_what_a_crash_left_is_written_over(gallery: Gallery, job: Job) -> None:
    """The file was there, the row was not yet; beside it lies a half-written one, and another job's."""
    picture = fake_engine.picture(job.request, 0)
    path = gallery.outputs / gallery.add(job, picture).path
    with database.writing(gallery._engine) as connection:
        connection.execute(database.picture_sources.delete())
        connection.execute(database.pictures.delete())
    path.with_name(f".{path.name}.0a0b.tmp").write_bytes(picture.data[:100])
    path.with_name(".999999-00-1.png.0a0b.tmp").write_bytes(picture.data[:100])
    gallery.tidy(job)
    gallery.add(job, picture)
    assert [name.partition("/")[2] for name in files(gallery.outputs)] == [".999999-00-1.png.0a0b.tmp", path.name]


def test_a_picture_of_another_data_folder_is_not_written_over(gallery: Gallery, job: Job, engine: Engine) -> None:
    """Job numbers begin again with a new database, in the same outputs folder."""
    picture = fake_engine.picture(job.request, 0)
    path = gallery.outputs / f"{job.created.astimezone():%Y-%m-%d}" / f"{job.id:06}-00-7.png"
    path.parent.mkdir(parents=True)
    other = fake_engine.picture(job.request.model_copy(update={"prompt": "other"}), 0)
    path.write_bytes(other.data)
    saved = gallery.add(job, picture)
    assert path.read_bytes() == other.data
    assert saved.path.endswith(f"{job.id:06}-00-7-2.png")


def test_recent_pictures_come_in_pages_newest_first(gallery: Gallery, engine: Engine) -> None:
    ada, bob = submitted(engine, "ada"), submitted(engine, "bob")
    ids = [gallery.add(job, fake_engine.picture(job.request, i)).id for i in range(3) for job in (ada, bob)]
    assert [saved.id for saved in gallery.recent(limit=4)] == ids[:1:-1]
    assert [saved.id for saved in gallery.recent(before=ids[2])] == [ids[1], ids[0]]
    assert [saved.id for saved in gallery.recent("bob")] == ids[5::-2]
    found = gallery.of_all([ada.id, bob.id, 99])
    assert {job: len(saved) for job, saved in found.items()} == {ada.id: 3, bob.id: 3, 99: 0}


def test_a_page_costs_the_same_in_a_large_gallery(gallery: Gallery, engine: Engine, job: Job) -> None:
    saved = gallery.add(job, fake_engine.picture(job.request, 0))
    with engine.connect() as connection:
        for query in (
            "SELECT * FROM pictures WHERE id < 9 ORDER BY id DESC LIMIT 60",
            "SELECT * FROM pictures WHERE owner = 'ada' AND id < 9 ORDER BY id DESC LIMIT 60",
        ):
            plan = " ".join(str(row) for row in connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {query}"))
            assert "SCAN" not in plan
            assert "TEMP B-TREE" not in plan
    assert saved.id


def test_a_missing_picture_is_not_found(gallery: Gallery, job: Job) -> None:
    with pytest.raises(NotFound, match="no picture 12"):
        gallery.get(12)
    saved = gallery.add(job, fake_engine.picture(job.request, 0))
    (gallery.outputs / saved.path).unlink()
    for look in (gallery.path, lambda saved: gallery.thumb(saved, 64)):
        with pytest.raises(NotFound, match="is gone"):
            look(saved)


# -- where it comes from


def test_a_picture_knows_its_model_its_image_and_its_parent(gallery: Gallery, job: Job, engine: Engine) -> None:
    parent = gallery.add(job, fake_engine.picture(job.request, 0))
    asked = request(init_image=parent.sha256, seed=99)
    child = gallery.add(JobStore(engine, {}).submit(asked, "ada"), fake_engine.picture(asked, 0))
    assert child.parent == parent.id
    assert gallery.sources(child.id) == [
        Source("init_image", "init_image", parent.sha256),
        Source("model", "fake", "f" * 64),
        Source("parent", parent.path, parent.sha256),
    ]
    assert parent.parent is None


def test_a_picture_drawn_from_what_was_made_of_its_parent_knows_it(gallery: Gallery, job: Job, engine: Engine) -> None:
    parent = gallery.add(job, fake_engine.picture(job.request, 0))
    asked = request(init_image=parent.sha256, seed=99)
    on_a_larger_canvas = fake_engine.picture(request(init_image="c" * 64, seed=99), 0)
    child = gallery.add(JobStore(engine, {}).submit(asked, "ada"), on_a_larger_canvas)
    assert child.parent == parent.id


class Unit(Params):
    picture: str | None = Param(None, "Image", widget="image")


class Control(Params):
    units: tuple[Unit, ...] = Param((), "Units")
    mask: str | None = Param(None, "Mask", widget="image")
    note: str = Param("", "Note")


def test_images_of_extensions_are_found_wherever_they_are_declared() -> None:
    control = Control(units=(Unit(picture="a" * 64), Unit()), mask="b" * 64, note="c" * 64)
    asked = request(extensions={"control": control})
    found = [Input("extensions.control.units.0.picture", "a" * 64), Input("extensions.control.mask", "b" * 64)]
    assert lineage.inputs(asked) == found
    picture = replace(fake_engine.picture(request(), 0), request=asked, models={})
    assert [source.role for source in lineage.sources(picture)] == ["control", "mask"]


# -- a disk that refuses


def test_an_outputs_folder_that_cannot_be_written_is_said_plainly(gallery: Gallery, job: Job) -> None:
    gallery.outputs.write_text("a file where the folder should be")
    with pytest.raises(StorageFull, match=r"cannot be written to .*the picture was not saved"):
        gallery.add(job, fake_engine.picture(job.request, 0))
    assert gallery.of(job.id) == []


def test_a_picture_without_a_row_is_no_file_either(
    gallery: Gallery, job: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(engine: Engine) -> None:
        raise StorageFull("the database could not be written")

    monkeypatch.setattr(index, "writing", full)
    with pytest.raises(StorageFull, match="database"):
        gallery.add(job, fake_engine.picture(job.request, 0))
    assert files(gallery.outputs) == []


# -- thumbnails


@pytest.mark.parametrize("size", SIZES)
def test_a_thumbnail_is_a_webp_of_the_size_asked_for(gallery: Gallery, job: Job, size: int) -> None:
    wide = job.request.model_copy(update={"width": 640, "height": 320})
    saved = gallery.add(job, fake_engine.picture(wide, 0))
    data = gallery.thumb(saved, size)
    with Image.open(io.BytesIO(data)) as image:
        assert (image.format, image.size) == ("WEBP", (size, size // 2))
    kept = files(gallery._thumbs.folder)
    assert len(kept) == 1
    assert gallery.thumb(saved, size) == data


def test_a_small_picture_is_not_blown_up(gallery: Gallery, job: Job) -> None:
    saved = gallery.add(job, fake_engine.picture(job.request, 0))
    with Image.open(io.BytesIO(gallery.thumb(saved, 512))) as image:
        assert image.size == (64, 64)


def test_other_sizes_are_refused(gallery: Gallery, job: Job) -> None:
    saved = gallery.add(job, fake_engine.picture(job.request, 0))
    for size in (0, -1, 65, 10**9):
        with pytest.raises(InvalidRequest, match="must be one of 64, 128, 256, 512"):
            gallery.thumb(saved, size)
    assert not gallery._thumbs.folder.exists()


def test_a_thumbnail_that_cannot_be_kept_is_shown_all_the_same(gallery: Gallery, job: Job) -> None:
    gallery._thumbs.folder.write_text("a file where the folder should be")
    saved = gallery.add(job, fake_engine.picture(job.request, 0))
    assert gallery.thumb(saved, 64)[:4] == b"RIFF"


def test_what_is_saved_can_be_json(gallery: Gallery, job: Job) -> None:
    saved = gallery.add(job, fake_engine.picture(job.request, 0))
    assert json.dumps(saved.request)
    assert saved.created.tzinfo is UTC
    assert saved.created <= datetime.now(UTC)
    assert os.sep not in saved.path.replace("/", "")


def test_a_map_lies_behind_the_pictures_of_its_job(gallery: Gallery, job: Job) -> None:
    picture = gallery.add(job, fake_engine.picture(job.request, 0))
    kept = gallery.add(job, replace(fake_engine.picture(job.request, 0), index=1, role="map"))
    assert [(one.index, one.role) for one in gallery.of(job.id)] == [(0, "picture"), (1, "map")]
    assert gallery.path(kept).name == f"{job.id:06}-01-map.png"
    shown = view(job, None, gallery.of(job.id))
    assert [one["id"] for one in shown["pictures"]] == [picture.id]
    assert [(one["id"], one["role"]) for one in shown["maps"]] == [(kept.id, "map")]
