"""Downloads from a server on this machine: whole and checked or not there, and on from where they were broken off."""

import hashlib
import json
import re
import resource
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from pydantic import SecretStr

from backend.downloads import sources, tokens
from backend.downloads.fetch import File, fetch
from backend.downloads.network import Network, is_public
from backend.downloads.queue import PARTS, Downloads
from backend.downloads.sources import Found, Hosts, safe_name
from backend.errors import AtelierError, Conflict, DownloadFailed, NotFound, Refused, StorageFull
from backend.settings import Settings
from tests.disks import elsewhere
from tests.hub import Server, Thing, hub, safetensors
from tests.test_catalog import LORA, made
from tests.waiting import wait_for

MODEL = safetensors(1 << 18)  # 1 MB
SHA = hashlib.sha256(MODEL).hexdigest()


@pytest.fixture
def server() -> Iterator[Server]:
    with hub() as server:
        yield server


@pytest.fixture
def network(server: Server) -> Network:
    return Network(inside=(server.place,), patience=60.0)


@pytest.fixture
def downloads(tmp_path: Path, network: Network) -> Downloads:
    return Downloads(tmp_path / "models", lambda: network)


def got(network: Network, file: File, folder: Path) -> bytes:
    part = folder / f"{Path(file.name).name}.part"
    fetch(network, file, part, lambda done, total: None, pause=lambda seconds: None)
    return part.read_bytes()


def failing(network: Network, file: File, folder: Path, error: type[AtelierError] = DownloadFailed) -> str:
    with pytest.raises(error) as caught:
        got(network, file, folder)
    return str(caught.value)


def left(folder: Path) -> int:
    """Bytes of what is not whole."""
    return sum(path.stat().st_size for path in folder.glob("*.part"))


def finished(downloads: Downloads, id: str) -> dict[str, Any]:
    def ended() -> Any:
        (view,) = (view for view in downloads.view() if view["id"] == id)
        return view if view["state"] in ("done", "failed") else None

    return dict(wait_for(ended))


def there(folder: Path) -> set[str]:
    """All files below, but for the records of downloads."""
    records = ("download.json", "lock")
    return {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file() and p.name not in records}


# --- one file


def test_a_file_arrives_whole(server: Server, network: Network, tmp_path: Path) -> None:
    url = server.put("/a.safetensors", MODEL)
    told: list[tuple[int, int]] = []
    fetch(network, File("a.safetensors", url, len(MODEL), SHA), tmp_path / "a.part", lambda *now: told.append(now))
    assert (tmp_path / "a.part").read_bytes() == MODEL
    assert told[-1] == (len(MODEL), len(MODEL))
    assert [p.name for p in tmp_path.iterdir()] == ["a.part"]


def test_a_broken_line_goes_on_where_it_broke(server: Server, network: Network, tmp_path: Path) -> None:
    url = server.put("/a.safetensors", MODEL, breaks_after=[200_000, 500_000])
    assert got(network, File("a.safetensors", url, None, SHA), tmp_path) == MODEL
    assert [asked.headers.get("Range") for asked in server.asked] == [None, "bytes=200000-", "bytes=500000-"]


def test_what_broke_off_for_good_is_taken_up_the_next_time(server: Server, network: Network, tmp_path: Path) -> None:
    url = server.put("/a.safetensors", MODEL, breaks_after=[300_000, *[300_000] * 4])
    assert "breaks off: 300000 of" in failing(network, File("a.safetensors", url), tmp_path)
    server.asked.clear()
    assert got(network, File("a.safetensors", url), tmp_path) == MODEL
    assert server.asked[0].headers["Range"] == "bytes=300000-"


def test_a_file_that_has_changed_meanwhile_is_fetched_anew(server: Server, network: Network, tmp_path: Path) -> None:
    url = server.put("/a.safetensors", MODEL, breaks_after=[300_000] * 5)
    failing(network, File("a.safetensors", url), tmp_path)
    other = safetensors(1 << 18, title="another")
    server.put("/a.safetensors", other)
    assert got(network, File("a.safetensors", url), tmp_path) == other


def test_a_server_without_ranges_sends_all_again(server: Server, network: Network, tmp_path: Path) -> None:
    url = server.put("/a.safetensors", MODEL, breaks_after=[300_000], has_ranges=False)
    assert got(network, File("a.safetensors", url), tmp_path) == MODEL


@pytest.mark.parametrize(
    ("thing", "file", "message"),
    [
        (Thing(MODEL), {"size": len(MODEL) + 1}, f"has {len(MODEL)} bytes .* where {len(MODEL) + 1} were announced"),
        (Thing(MODEL, says=len(MODEL) + 100), {}, "its size is not what its header says"),
        (Thing(MODEL[:-100]), {}, "is damaged or cut short"),
        (Thing(MODEL), {"sha256": "0" * 64}, f"its SHA-256 is {SHA[:16]}..., not 0000000000000000"),
        (Thing(b"\xff" * 4096, chunked=True, endless=True), {}, "its header is not whole|has a header of"),
        (Thing(b"<!DOCTYPE html><html>" + b" " * 4096), {}, "it is a web page"),
        (Thing(b"x", chunked=True), {"name": "a.gguf"}, "does not say how large"),
        (Thing(b"#!/bin/sh\nrm"), {"name": "a.gguf"}, "is no GGUF file"),
        (Thing(b"#!/bin/sh\nrm"), {"name": "a.ckpt"}, "is no model"),
        (Thing(MODEL), {"name": "a.exe"}, "files that end in .exe are not taken"),
        (Thing(status=404), {}, "there is nothing at this address of 127.0.0.1"),
        (Thing(status=401), {}, "save a token for it"),
        (Thing(status=503), {}, "answers with error 503"),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)
def test_a_lie_is_found_and_nothing_stays(
    server: Server, network: Network, tmp_path: Path, thing: Thing, file: dict[str, Any], message: str
) -> None:
    server.things["/a"] = thing
    wanted = File(**{"name": "a.safetensors", "url": f"{server.url}/a", **file})
    assert re.search(message, failing(network, wanted, tmp_path))
    assert left(tmp_path) == 0


def test_an_endless_answer_ends_where_the_model_does(server: Server, network: Network, tmp_path: Path) -> None:
    url = server.put("/a.safetensors", MODEL, chunked=True, endless=True)
    assert got(network, File("a.safetensors", url, None, SHA), tmp_path) == MODEL


def test_a_server_that_stops_sending_is_given_up(server: Server, tmp_path: Path) -> None:
    network = Network(inside=(server.place,), patience=0.3)
    url = server.put("/a.safetensors", MODEL, pause=0.6, piece=50_000)
    assert "sends nothing any more; what has come is kept" in failing(network, File("a.safetensors", url), tmp_path)
    assert left(tmp_path) in range(50_000, 4 * 50_000 + 1, 50_000)  # a piece each time, but for the slowest machines


def test_a_server_that_drips_is_given_up(server: Server, tmp_path: Path) -> None:
    network = Network(inside=(server.place,), patience=0.3)
    url = server.put("/a.safetensors", MODEL, pause=0.02, piece=1)
    assert "hardly sends anything" in failing(network, File("a.safetensors", url), tmp_path)


def test_without_room_nothing_is_asked_of_the_disk(
    server: Server, network: Network, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=len(MODEL)))
    url = server.put("/a.safetensors", MODEL)
    assert "1 MB are needed" in failing(network, File("a.safetensors", url), tmp_path, StorageFull)
    assert left(tmp_path) == 0


def test_a_full_disk_is_said_and_the_rest_comes_later(server: Server, network: Network, tmp_path: Path) -> None:
    url = server.put("/a.safetensors", MODEL, piece=100_000)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (400_000, hard))
    try:
        assert "the disk has no room" in failing(network, File("a.safetensors", url), tmp_path, StorageFull)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert 0 < left(tmp_path) <= 400_000
    assert got(network, File("a.safetensors", url, None, SHA), tmp_path) == MODEL


# --- who is spoken to


@pytest.mark.parametrize(
    "target",
    [
        "https://10.0.0.1/a.safetensors",
        "https://192.168.1.1/",
        "https://127.0.0.1/",
        "https://169.254.169.254/latest/meta-data",
        "https://100.100.100.200/",
        "https://[::1]/",
        "https://[::ffff:10.0.0.1]/",
        "https://[fd00::1]/",
        "https://[64:ff9b::a00:1]/",
        "http://127.0.0.1:1/",
        "http://example.com/",
        "file:///etc/passwd",
        "ftp://example.com/a",
        "https://user:word@example.com/",
    ],
)
def test_no_way_leads_inside(server: Server, network: Network, tmp_path: Path, target: str) -> None:
    url = server.put("/a.safetensors", status=302, location=target)
    assert "refused" in failing(network, File("a.safetensors", url), tmp_path, Refused)
    assert "refused" in failing(network, File("a.safetensors", target), tmp_path, Refused)


def test_an_address_that_does_not_answer_is_passed_over(server: Server, tmp_path: Path) -> None:
    url = server.put("/a.safetensors", MODEL)
    network = Network(inside=(server.place,), resolve=lambda host, port: ["::1", "127.0.0.1"])
    fetch(network, File("a.safetensors", url), tmp_path / "a.part", lambda done, total: None)
    assert (tmp_path / "a.part").read_bytes() == MODEL


def test_a_name_that_leads_inside_is_refused_and_looked_up_once(tmp_path: Path) -> None:
    looked: list[str] = []

    def resolve(host: str, port: int) -> list[str]:
        looked.append(host)
        return ["93.184.216.34", "10.0.0.7"] if len(looked) == 1 else ["93.184.216.34"]

    network = Network(resolve=resolve)
    file = File("a.safetensors", "https://rebinding.example/a.safetensors")
    assert "a machine inside this network" in failing(network, file, tmp_path, Refused)
    assert looked == ["rebinding.example"]


@pytest.mark.parametrize("address", ["8.8.8.8", "2606:4700::1111"])
def test_the_world_is_public(address: str) -> None:
    assert is_public(address)


@pytest.mark.parametrize(
    "address", ["192.0.0.192", "2002:a00:1::", "224.0.0.1", "0.0.0.0", "255.255.255.255", "::", "fe80::1%eth0"]
)
def test_what_is_special_is_not(address: str) -> None:
    assert not is_public(address)


def test_a_redirect_is_followed_and_the_token_stays_behind(server: Server, tmp_path: Path) -> None:
    with hub() as other:
        server.put("/a.safetensors", status=302, location=other.put(["/real", "secret=1"][0], MODEL) + "?x=1")
        network = Network({server.place: SecretStr("hf_token123")}, inside=(server.place, other.place))
        assert got(network, File("a.safetensors", f"{server.url}/a.safetensors"), tmp_path) == MODEL
        assert server.asked[0].headers["Authorization"] == "Bearer hf_token123"
        assert "Authorization" not in other.asked[0].headers


def test_a_redirect_to_nonsense_is_said(server: Server, network: Network, tmp_path: Path) -> None:
    url = server.put("/a.safetensors", status=302, location="https://[")
    assert "redirects to no address: 'https://['" in failing(network, File("a.safetensors", url), tmp_path)


def test_an_address_may_hold_letters_of_any_script(server: Server, network: Network, tmp_path: Path) -> None:
    server.put("/%E5%9F%8E.safetensors", MODEL)
    assert got(network, File("a.safetensors", f"{server.url}/城.safetensors?a=é%20b"), tmp_path) == MODEL
    assert server.asked[0].path == "/%E5%9F%8E.safetensors?a=%C3%A9%20b"


def test_a_circle_of_redirects_ends(server: Server, network: Network, tmp_path: Path) -> None:
    server.put("/a.safetensors", status=302, location="/a.safetensors")
    file = File("a.safetensors", f"{server.url}/a.safetensors")
    assert "redirects in a circle" in failing(network, file, tmp_path)


def test_a_token_is_kept_for_this_user_alone(tmp_path: Path) -> None:
    settings = Settings(data_dir=tmp_path)
    assert tokens.known(settings) == {"huggingface": False, "civitai": False}
    tokens.save(settings, "huggingface", SecretStr("hf_abcdefgh"))
    assert tokens.known(settings)["huggingface"]
    assert tokens.of(settings)["huggingface.co"].get_secret_value() == "hf_abcdefgh"
    assert (tmp_path / "secrets" / "huggingface.token").stat().st_mode & 0o777 == 0o600
    assert "hf_abcdefgh" not in repr(settings) + repr(tokens.of(settings))
    tokens.save(settings, "huggingface", SecretStr(""))
    assert not tokens.known(settings)["huggingface"]
    with pytest.raises(Refused):
        tokens.save(settings, "civitai", SecretStr("two\nlines: of a header"))


# --- what an address means


def looked(server: Server, network: Network, text: str, **how: Any) -> Found:
    """The server is Civitai for its addresses, Hugging Face for its repositories, and else nothing special."""
    if re.search(r"/models/\d", text):
        hosts = Hosts(civitai=server.url)
    else:
        hosts = Hosts(huggingface=server.url) if "ada/" in text else Hosts()
    return sources.look(text, network, hosts, **how)


def test_a_repository_with_single_files_offers_each(server: Server, network: Network) -> None:
    files = {"README.md": b"#", "b.safetensors": MODEL, "b-fp16.safetensors": MODEL, "old.ckpt": b"PK\x03\x04"}
    server.repository("ada/castle", files, licence="openrail")
    found = looked(server, network, "ada/castle")
    assert [option.key for option in found.options] == ["b-fp16.safetensors", "b.safetensors", "old.ckpt"]
    assert found.licence == "openrail"
    assert found.options[0].files[0].sha256 == SHA
    assert found.options[0].size == len(MODEL)
    assert [option.is_pickle for option in found.options] == [False, False, True]


@pytest.mark.parametrize("half", [True, False])
def test_a_folder_of_diffusers_brings_each_weight_once_and_no_code(
    server: Server, network: Network, half: bool
) -> None:
    config = b"{}"
    files = {
        "model_index.json": config,
        "scheduler/scheduler_config.json": config,
        "unet/config.json": config,
        "unet/diffusion_pytorch_model.safetensors": MODEL,
        "unet/diffusion_pytorch_model.fp16.safetensors": MODEL,
        "unet/diffusion_pytorch_model.non_ema.safetensors": MODEL,
        "unet/diffusion_pytorch_model.bin": b"PK\x03\x04",
        "vae/diffusion_pytorch_model.safetensors": MODEL,
        "tokenizer/merges.txt": config,
        "vae/extra.JSON": config,  # not what we would call it: after a restart it would be taken for forged
        "pipeline.py": b"import os",
        "../evil.json": config,
        "whole.safetensors": MODEL,
    }
    server.repository("ada/castle", files)
    found = looked(server, network, f"{server.url}/ada/castle/tree/main", half=half)
    assert [option.key for option in found.options] == ["", "whole.safetensors"]
    folder = found.options[0]
    assert [file.name for file in folder.files] == [
        "model_index.json",
        "scheduler/scheduler_config.json",
        "tokenizer/merges.txt",
        "unet/config.json",
        "unet/diffusion_pytorch_model.safetensors",
        "vae/diffusion_pytorch_model.safetensors",
    ]
    assert [("fp16" in file.url) for file in folder.files if file.name.startswith("unet/d")] == [half]


def test_the_address_of_a_file_means_that_file(server: Server, network: Network) -> None:
    server.repository("ada/castle", {"a.safetensors": MODEL, "loras/ink.safetensors": MODEL})
    (option,) = looked(server, network, f"{server.url}/ada/castle/blob/main/loras/ink.safetensors").options
    assert (option.name, option.kind) == ("ink.safetensors", "lora")


def civitai(server: Server, **changed: Any) -> None:
    name = changed.pop("name", "castle v2.safetensors")
    file = {
        "name": name,
        "primary": True,
        "sizeKB": len(MODEL) / 1024,
        "type": "Model",
        "hashes": {"SHA256": SHA.upper()},
        "downloadUrl": server.put("/api/download/models/22", MODEL),
        **changed,
    }
    version = {
        "id": 22,
        "modelId": 11,
        "name": "v2",
        "baseModel": "SDXL 1.0",
        "trainedWords": ["castle", "ink"],
        "model": {"name": "<b>Castle</b>", "type": "LORA"},
        "files": [file],
    }
    server.table("/api/v1/model-versions/22", version)
    server.table("/api/v1/models/11", {"modelVersions": [{"id": 22}, {"id": 21}]})


def test_hosts_may_be_written_in_capitals() -> None:
    hosts = Hosts(huggingface="http://localhost:1")
    with pytest.raises(DownloadFailed, match="localhost"):  # it is asked, not taken for the address of a file
        sources.look("http://LOCALHOST:1/ada/castle", Network(inside=("localhost:1",)), hosts)


@pytest.mark.parametrize("path", ["/models/11", "/models/11/castle?modelVersionId=22", "/api/download/models/22"])
def test_a_page_of_civitai_means_its_newest_or_named_version(server: Server, network: Network, path: str) -> None:
    civitai(server)
    found = looked(server, network, server.url + path)
    (option,) = found.options
    assert (option.name, option.kind, option.files[0].sha256) == ("castle v2.safetensors", "lora", SHA)
    assert option.about["trigger"] == "castle, ink"
    assert option.size == len(MODEL)


def test_civitai_cannot_send_us_elsewhere(server: Server, network: Network) -> None:
    civitai(server, downloadUrl="https://elsewhere.example/a.safetensors")
    with pytest.raises(NotFound):
        looked(server, network, f"{server.url}/models/11")


NONSENSE: list[Any] = [5, [], None, {"siblings": 5}, {"siblings": {"a": 1}}, {"cardData": [1]}]
NONSENSE += [{"siblings": [said]} for said in (5, {"rfilename": "\ud800.safetensors"}, {"rfilename": "a", "size": -1})]
NONSENSE_OF_CIVITAI: list[Any] = [{"files": 5}, {"trainedWords": 5}, {"modelId": {}}, {"model": {"type": [1]}}]
NONSENSE_OF_CIVITAI += [{"files": [{"name": "a", "sizeKB": size}]} for size in (float("inf"), float("nan"), -1)]


def test_an_answer_that_makes_no_sense_is_said_with_its_host(server: Server, network: Network) -> None:
    for number, said in enumerate(NONSENSE):
        server.table(f"/api/models/ada/nonsense{number}/revision/main", said)
        with pytest.raises(DownloadFailed, match=r"127\.0\.0\.1 answers nonsense"):
            looked(server, network, f"{server.url}/ada/nonsense{number}")
    for number, said in enumerate(NONSENSE_OF_CIVITAI):
        server.table(f"/api/v1/model-versions/{number}", said)
        with pytest.raises(DownloadFailed, match=r"127\.0\.0\.1 answers nonsense"):
            looked(server, network, f"{server.url}/models/1?modelVersionId={number}")


@pytest.mark.parametrize("text", ["castle", "ada/castle/x y", "https://example.com/model.zip", "https://example.com/"])
def test_what_is_no_address_of_a_model_is_refused(server: Server, network: Network, text: str) -> None:
    with pytest.raises(Refused):
        looked(server, network, text)


@pytest.mark.parametrize(
    ("given", "name"),
    [
        ("a b.safetensors", "a b.safetensors"),
        ("../../etc/passwd.safetensors", "passwd.safetensors"),
        ("..\\..\\a.safetensors", "a.safetensors"),
        ("CON.safetensors", "model-CON.safetensors"),
        ("nul.v1.safetensors", "model-nul.v1.safetensors"),
        (".safetensors", "safetensors"),
        ("a\x00\n<b>.SAFETENSORS", "a-b.safetensors"),
        ("x" * 500 + ".safetensors", "x" * 120 + ".safetensors"),
        ("", "model"),
        ("Müllers Schloß.safetensors", "Müllers Schloß.safetensors"),
        ("cafe\u0301.safetensors", "caf\u00e9.safetensors"),
        ("नमस्ते & สวัสดี", "नमस्ते - สวัสดี"),
        ("城" * 50 + ".safetensors", "城" * 40 + ".safetensors"),
        ("a\u202egpj\uff0f\ud800.gguf", "a-gpj.gguf"),
    ],
)
def test_names_are_cut_down_to_harmless_letters(given: str, name: str) -> None:
    assert safe_name(given) == name
    assert safe_name(name) == name


# --- several


def start(server: Server, downloads: Downloads, network: Network, path: str, data: bytes = MODEL, **how: Any) -> str:
    url = server.put(path, data)
    return downloads.add(looked(server, network, url).option(None), **how)


def test_a_download_ends_in_the_folder_of_its_kind(
    server: Server, downloads: Downloads, network: Network, tmp_path: Path
) -> None:
    id = start(server, downloads, network, "/castle.safetensors", kind="vae", name="my vae", sha256=SHA)
    assert finished(downloads, id)["error"] == ""
    assert there(tmp_path / "models") == {"vae/my vae.safetensors", "vae/my vae.atelier.json"}
    assert (tmp_path / "models/vae/my vae.safetensors").read_bytes() == MODEL
    card = json.loads((tmp_path / "models/vae/my vae.atelier.json").read_text())
    assert card == {"source": f"{server.url}/castle.safetensors"}
    with pytest.raises(Conflict, match="is there already"):
        start(server, downloads, network, "/castle.safetensors", kind="vae", name="my vae")


def test_a_folder_is_there_as_a_whole_or_not_at_all(
    server: Server, downloads: Downloads, network: Network, tmp_path: Path
) -> None:
    files = {"model_index.json": b"{}", "unet/diffusion_pytorch_model.safetensors": MODEL, "vae/config.json": b"{}"}
    server.repository("ada/castle", files)
    server.things["/ada/castle/resolve/c0ffee/vae/config.json"].status = 404
    id = downloads.add(looked(server, network, "ada/castle").option(""))
    assert "there is nothing at this address" in finished(downloads, id)["error"]
    assert not (tmp_path / "models" / "checkpoints").exists()
    server.things["/ada/castle/resolve/c0ffee/vae/config.json"].status = 200
    asked = len(server.asked)
    downloads.resume(id)
    assert finished(downloads, id)["state"] == "done"
    assert len(server.asked) == asked + 1  # only what was lacking
    found = there(tmp_path / "models" / "checkpoints" / "castle")
    assert found == {*files, "atelier.json"}


def test_one_at_a_time_from_a_host_and_all_in_the_end(server: Server, downloads: Downloads, network: Network) -> None:
    server.go_on.clear()
    ids = [start(server, downloads, network, f"/m{n}.safetensors") for n in range(3)]
    wait_for(lambda: server.at_once == 1)
    assert [view["state"] for view in downloads.view()] == ["running", "waiting", "waiting"]
    server.go_on.set()
    assert [finished(downloads, id)["state"] for id in ids] == ["done"] * 3
    assert server.most_at_once == 1


def test_who_comes_first_keeps_the_name_and_gets_no_card(
    server: Server, downloads: Downloads, network: Network, tmp_path: Path
) -> None:
    url = server.put("/big.safetensors", MODEL, piece=20_000, pause=0.02)
    id = downloads.add(looked(server, network, url).option(None), kind="lora")
    wait_for(lambda: downloads.view()[0]["done"] > 20_000)
    first = tmp_path / "models/loras/big.safetensors"
    first.parent.mkdir()
    first.write_bytes(b"another")
    assert "is there already" in finished(downloads, id)["error"]
    assert (there(first.parent), first.read_bytes()) == ({"big.safetensors"}, b"another")


def test_pause_and_resume(server: Server, downloads: Downloads, network: Network, tmp_path: Path) -> None:
    url = server.put("/big.safetensors", MODEL, piece=20_000, pause=0.05)
    id = downloads.add(looked(server, network, url).option(None))
    wait_for(lambda: downloads.view()[0]["done"] > 100_000)
    downloads.pause(id)
    asked = len(server.asked)
    wait_for(lambda: server.at_once == 0)
    assert downloads.view()[0]["state"] == "paused"
    server.things["/big.safetensors"].pause = 0
    downloads.resume(id)
    assert finished(downloads, id)["state"] == "done"
    assert int(server.asked[asked].headers["Range"].removeprefix("bytes=").rstrip("-")) > 100_000
    assert (tmp_path / "models/checkpoints/big.safetensors").read_bytes() == MODEL


def test_a_restart_leaves_it_paused_and_nothing_is_asked(
    server: Server, downloads: Downloads, network: Network, tmp_path: Path
) -> None:
    url = server.put("/big.safetensors", MODEL, piece=20_000, pause=0.05)
    id = downloads.add(looked(server, network, url).option(None))
    wait_for(lambda: downloads.view()[0]["done"] > 100_000)
    downloads.close()
    wait_for(lambda: not any(thread.name.startswith("download ") for thread in threading.enumerate()))
    server.asked.clear()
    server.things["/big.safetensors"].pause = 0
    again = Downloads(tmp_path / "models", lambda: network)
    (view,) = again.view()
    assert (view["id"], view["state"], view["done"] > 100_000) == (id, "paused", True)
    assert server.asked == []
    again.resume(id)
    assert finished(again, id)["state"] == "done"


def test_what_its_header_says_to_be_a_lora_ends_among_the_loras(
    server: Server, downloads: Downloads, network: Network, tmp_path: Path
) -> None:
    lora = made(tmp_path / "lora.safetensors", LORA).read_bytes()
    id = start(server, downloads, network, "/castle.safetensors", lora)
    assert downloads.view()[0]["kind"] == "checkpoint"  # its name tells nothing
    assert finished(downloads, id)["error"] == ""
    assert "loras/castle.safetensors" in there(tmp_path / "models")
    again = start(server, downloads, network, "/castle.safetensors", lora)
    assert "is there already" in finished(downloads, again)["error"]


def test_the_folder_of_a_kind_may_be_a_link_to_another_disk(
    server: Server, downloads: Downloads, network: Network, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    elsewhere(monkeypatch)
    id = start(server, downloads, network, "/castle.safetensors")
    assert finished(downloads, id)["error"] == ""
    assert there(tmp_path / "models") == {"checkpoints/castle.safetensors", "checkpoints/castle.atelier.json"}
    assert (tmp_path / "models/checkpoints/castle.safetensors").read_bytes() == MODEL


def test_what_another_process_downloads_is_left_to_it(
    server: Server, downloads: Downloads, network: Network, tmp_path: Path
) -> None:
    """`models add` beside a running server; one that has been installed meanwhile is not fetched again."""
    server.go_on.clear()
    id = start(server, downloads, network, "/big.safetensors")
    wait_for(lambda: server.at_once == 1)
    others = [Downloads(tmp_path / "models", lambda: network) for _ in range(2)]
    assert start(server, others[0], network, "/big.safetensors") == id
    assert "another process downloads it" in finished(others[0], id)["error"]
    others[0].cancel(id)
    server.go_on.set()
    assert finished(downloads, id)["state"] == "done"
    asked = len(server.asked)
    others[1].resume(id)
    assert "is there already" in finished(others[1], id)["error"]
    assert len(server.asked) == asked
    others[1].cancel(id)
    assert there(tmp_path / "models") == {"checkpoints/big.safetensors", "checkpoints/big.atelier.json"}


def test_cancelling_leaves_nothing(server: Server, downloads: Downloads, network: Network, tmp_path: Path) -> None:
    url = server.put("/big.safetensors", MODEL, piece=20_000, pause=0.05)
    id = downloads.add(looked(server, network, url).option(None))
    wait_for(lambda: downloads.view()[0]["done"] > 100_000)
    downloads.cancel(id)
    assert downloads.view() == []
    wait_for(lambda: not list((tmp_path / "models" / PARTS).iterdir()))
    assert there(tmp_path / "models") == set()
    with pytest.raises(NotFound):
        downloads.pause(id)


def test_one_that_fails_holds_up_no_other(
    server: Server, downloads: Downloads, network: Network, tmp_path: Path
) -> None:
    bad = start(server, downloads, network, "/bad.safetensors", b"<html>sign in</html>" + b" " * 100)
    good = start(server, downloads, network, "/good.safetensors")
    assert "is a web page" in finished(downloads, bad)["error"]
    assert finished(downloads, good)["state"] == "done"
    assert "checkpoints/bad.safetensors" not in there(tmp_path / "models")


def test_a_pickle_is_kept_only_if_somebody_says_so(
    server: Server, downloads: Downloads, network: Network, tmp_path: Path
) -> None:
    with pytest.raises(Refused, match="can run code"):
        start(server, downloads, network, "/old.ckpt", b"PK\x03\x04" + b"0" * 100)
    id = start(server, downloads, network, "/old.ckpt", b"PK\x03\x04" + b"0" * 100, pickle=True)
    assert finished(downloads, id)["state"] == "done"
    assert "checkpoints/old.ckpt" in there(tmp_path / "models")


def test_a_forged_record_leads_nowhere(tmp_path: Path, network: Network) -> None:
    folder = tmp_path / "models" / PARTS / ("a" * 16)
    folder.mkdir(parents=True)
    record = {"id": "a" * 16, "name": "../../evil.safetensors", "kind": "lora", "is_folder": False, "files": []}
    (folder / "download.json").write_text(json.dumps(record))
    assert Downloads(tmp_path / "models", lambda: network).view() == []
    (folder / "download.json").write_text(json.dumps({**record, "name": "nothing.safetensors"}))
    assert Downloads(tmp_path / "models", lambda: network).view() == []
