"""The command line: what it says and how it ends, and that it draws what the page would draw."""

import functools
import inspect
import io
import json
import logging
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from backend import bootstrap, cli, doctor, generating_cli
from backend.cli_options import BAD_INPUT, INTERRUPTED, PORT_TAKEN
from backend.hardware import Hardware
from backend.params import declared
from backend.request import GenerationRequest
from backend.settings import Settings

ROOT = Path(__file__).parent.parent
pytest_plugins = ["tests.tiny"]


@pytest.fixture
def folders(tmp_path: Path) -> list[str]:
    """Options for a fresh place, with a model that is known by name only."""
    model = tmp_path / "models/checkpoints/sketch"
    model.mkdir(parents=True)
    (model / "model_index.json").write_text('{"_class_name": "StableDiffusionPipeline"}')
    return [f"--{name}-dir={tmp_path / name}" for name in ("data", "models", "outputs")]


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch) -> list[Settings]:
    """The settings of every server that would have been started."""
    from backend.api import server

    started: list[Settings] = []
    monkeypatch.setattr(server, "serve", lambda services: started.append(services.settings))
    return started


@pytest.fixture(autouse=True)
def shell(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No variables of ours, and a process whose logging is still to be set up."""
    for name in [name for name in os.environ if name.startswith("ATELIER_")]:
        monkeypatch.delenv(name)
    handlers = list(logging.root.handlers)
    yield
    logging.root.handlers[:] = handlers


def run(*arguments: str) -> int:
    """The exit code of the command line."""
    with pytest.raises(SystemExit) as ended:
        cli.main(arguments)
    code = ended.value.code
    assert isinstance(code, int)
    return code


# ---------------------------------------------------------------- serve


@pytest.mark.parametrize("command", [[], ["serve"]])
def test_serving_is_the_default(command: list[str], folders: list[str], served: list[Settings]) -> None:
    assert run(*command, "--port", "8000", *folders) == 0
    assert served[0].port == 8000
    assert served[0].host == "127.0.0.1"
    assert served[0].data_dir.name == "data"


@pytest.mark.parametrize("opening", [["--listen"], ["--host", "0.0.0.0"], ["--host", "192.168.1.5"]])
def test_other_machines_come_in_only_with_a_password(
    opening: list[str], folders: list[str], served: list[Settings], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(*opening, *folders) == BAD_INPUT
    assert one_line(capsys).startswith(f"{' '.join(opening)} needs --auth name:password")
    assert not served
    assert run(*opening, "--auth", "ann:secret", *folders) == 0
    assert served[0].auth is not None


def test_port_in_use_is_said_plainly(folders: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        assert run("--port", str(port), *folders) == PORT_TAKEN
    said = one_line(capsys)
    assert f"port {port}" in said
    assert "--port" in said


def test_bad_settings_are_one_line(folders: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--log-level", "loud", *folders) == BAD_INPUT
    assert one_line(capsys).startswith("log-level: ")
    assert run("--port", "70000", *folders) == BAD_INPUT
    assert one_line(capsys).startswith("port: ")
    assert run("--ram-budget", "0", *folders) == BAD_INPUT
    assert one_line(capsys).strip() == "ram-budget: should be greater than 0"
    assert run("generate", "a circle", "--offload", "all", *folders) == BAD_INPUT
    assert one_line(capsys).startswith("offload: should be 'auto', 'none'")


def test_how_to_use_the_machine_is_said_once(folders: list[str], served: list[Settings]) -> None:
    assert run("--attention", "sdpa", "--vram-budget", "6.5", "--ram-budget", "auto", *folders) == 0
    assert served[0].hardware == Hardware(attention="sdpa", vram_budget=6.5)


def test_broken_settings_file_is_one_line(
    tmp_path: Path, folders: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data/settings.toml").write_text("port = \n")
    assert run(*folders) == BAD_INPUT
    assert one_line(capsys).startswith("settings: ")


def test_unknown_command_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("generat", "a circle") == BAD_INPUT
    assert "generat" in capsys.readouterr().err


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    cli.main(["--version"])
    assert capsys.readouterr().out.startswith("Atelier ")


# ---------------------------------------------------------------- generate: what goes in


def test_every_parameter_is_an_option() -> None:
    options = inspect.signature(generating_cli.generate).parameters
    assert {name for name, _, _ in declared(GenerationRequest)} <= options.keys()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--steps", "-1"], "--steps: "),
        (["--width", "0"], "--width: "),
        (["--height", "1000000000"], "--height: "),
        (["--seed", "x"], "--seed: "),
        (["--cfg-scale", "warm"], "--cfg-scale: "),
        (["--sampler", "Fast"], "--sampler: "),
        (["--scheduler", "Fast"], "--scheduler: "),
        (["--model", "no-such"], "--model: "),
        (["--resize-mode", "Stretch"], "--resize-mode: "),
        (["--set", "extensions.no-such.weight=1"], "extensions"),
        (["--set", "colour=red"], "colour: "),
        (["--set", "steps"], "--set steps: "),
        (["--out", "circle.jpg"], "--out circle.jpg: "),
        (["--out", "no-such-folder/circle.png"], "--out "),
        (["--init-image", "no-such.png"], "--init no-such.png: "),
    ],
)
def test_bad_input_is_one_line(
    arguments: list[str], said: str, folders: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("generate", "a circle", *arguments, *folders) == BAD_INPUT
    assert one_line(capsys).startswith(said)
    assert not (tmp_path / "outputs").exists()


def test_prompt_has_a_limit(folders: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert run("generate", "red " * 25_000, *folders) == BAD_INPUT
    assert len(one_line(capsys)) < 200


@pytest.mark.parametrize("data", [b"no picture", b"", pytest.param(None, id="truncated")])
def test_bad_init_image_is_one_line(
    data: bytes | None, folders: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    image = tmp_path / "image.png"
    image.write_bytes(png()[:100] if data is None else data)
    assert run("generate", "a circle", "--init-image", str(image), *folders) == BAD_INPUT
    assert one_line(capsys).startswith("--init: ")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--mask", "no-such.png"], "--mask no-such.png: "),
        (["--mask", "{broken}"], "--mask: "),
        (["--mask", "{picture}"], "--init: Inpaint needs an image to start from"),
        (["--init", "{picture}", "--set", "inpaint.blur=3"], "--mask: is missing"),
        (["--init", "{picture}", "--mask", "{picture}", "--set", "inpaint.blur=300"], "extensions.inpaint.blur: "),
        (["--init", "{picture}", "--mask", "{black}"], "--mask: the mask is empty"),
        (["--init", "{picture}", "--mask", "{wide}"], "--mask: the mask has 64 x 8 pixels, the picture 64 x 64"),
        (["--init", "{picture}", "--set", "outpaint.right=100000"], "extensions.outpaint.right: "),
        (
            ["--init", "{picture}", "--set", "outpaint.ratio=1:9999"],
            "extensions.outpaint.ratio: the picture would have",
        ),
        (["--set", "no-such.weight=1"], "extensions.no-such: "),
    ],
)
def test_what_is_wrong_with_an_extensions_options_is_one_line(
    arguments: list[str], said: str, folders: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, data in {"picture": png(), "broken": png()[:100]}.items():
        (tmp_path / f"{name}.png").write_bytes(data)
    Image.new("L", (64, 64)).save(tmp_path / "black.png")
    Image.new("L", (64, 8), 255).save(tmp_path / "wide.png")
    paths = {name: tmp_path / f"{name}.png" for name in ("picture", "broken", "black", "wide")}
    given = [a.format(**paths) for a in arguments]
    assert run("generate", "a circle", *given, *folders) == BAD_INPUT
    assert one_line(capsys).startswith(said)


def test_options_of_extensions_are_there_and_do_not_turn_them_on(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("generate", "--help") == 0
    assert "--mask FILE" in capsys.readouterr().out
    assert "extensions" not in generating_cli._values({"prompt": "a circle", "extensions__inpaint__mask": None}, [])


def test_a_mask_and_short_paths_reach_the_extension() -> None:
    values = generating_cli._values(
        {"prompt": "a circle", "extensions__inpaint__mask": "mask.png"}, ["inpaint.content=fill", "steps=3"]
    )
    assert values == {
        "prompt": "a circle",
        "extensions": {"inpaint": {"mask": "mask.png", "content": "fill"}},
        "steps": 3,
    }


def test_several_wrong_values_are_all_named(folders: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert run("generate", "a circle", "--steps", "0", "--width", "7", *folders) == BAD_INPUT
    assert {line.split(":")[0] for line in capsys.readouterr().err.splitlines()} == {"--steps", "--width"}


def test_set_reaches_into_extensions() -> None:
    values = generating_cli._values(
        {"prompt": "a circle", "resize_mode": "Crop and resize", "steps": None},
        ["extensions.controlnet.units.0.weight=1.5", "extensions.controlnet.units.0.module=canny", "n_iter=2"],
    )
    assert values == {
        "prompt": "a circle",
        "resize_mode": 1,
        "extensions": {"controlnet": {"units": [{"weight": 1.5, "module": "canny"}]}},
        "n_iter": 2,
    }


# ---------------------------------------------------------------- generate: what comes out


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, tiny_models: Path) -> list[str]:
    folder = tmp_path_factory.mktemp("place")
    return [f"--data-dir={folder / 'data'}", f"--outputs-dir={folder / 'outputs'}", f"--models-dir={tiny_models}"]


def draw(*arguments: str) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "app.py", "generate", "a red circle on a blue background", *arguments]
    return subprocess.run(command, cwd=ROOT, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=240)


def test_same_seed_same_file(tmp_path: Path) -> None:
    """A picture by itself is the picture that it is among others, to the byte; a map is listed apart."""
    drawing = tmp_path / "drawing.png"
    Image.new("RGB", (64, 64), "white").save(drawing)
    unit = {"model": "starter_canny", "module": "canny", "image": str(drawing)}
    settings = [part for name, value in unit.items() for part in ("--set", f"controlnet.units.0.{name}={value}")]
    settings += ["--steps=2", "--sampler=Euler", "--width=64", "--height=64"]
    settings += [f"--data-dir={tmp_path / 'data'}", f"--outputs-dir={tmp_path / 'outputs'}"]
    kept = ["--set", "controlnet.units.0.save_detected_map=true"]
    both = draw("--seed=7", "--n-iter=2", "--json", f"--out={tmp_path / 'a.png'}", *settings, *kept)
    assert both.returncode == 0, both.stderr
    said = json.loads(both.stdout)
    assert said["request"]["seed"] == 7
    assert said["pictures"] == [str(tmp_path / "a.png"), str(tmp_path / "a-2.png")]
    assert said["maps"] == [str(tmp_path / "a-map.png")]
    assert len(list(Path(tmp_path, "outputs").rglob("*-map.png"))) == 1

    second = draw("--seed=8", f"--out={tmp_path / 'b.png'}", *settings)
    assert second.stdout == f"{tmp_path / 'b.png'}\n", second.stderr
    assert (tmp_path / "b.png").read_bytes() == (tmp_path / "a-2.png").read_bytes()
    with Image.open(tmp_path / "b.png") as picture:
        assert "Seed: 8" in picture.info["parameters"]


@pytest.mark.skipif(os.name == "nt", reason="sends a POSIX signal")
def test_interrupt_cancels(place: list[str]) -> None:
    command = [sys.executable, "app.py", "generate", "a circle", "--steps", "40", "--n-iter", "100", *place]
    command += ["--model", "tiny", "--width", "64", "--height", "64"]
    # a shell may have started the tests in the background, where Ctrl+C is ignored and children inherit that
    heeding = functools.partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
    pipes: Any = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    outputs = Path(place[1].partition("=")[2])
    before = set(outputs.rglob("*.png"))
    with subprocess.Popen(command, cwd=ROOT, preexec_fn=heeding, **pipes) as process:
        try:
            until = time.monotonic() + 120
            while set(outputs.rglob("*.png")) == before and time.monotonic() < until:  # until it has drawn one
                time.sleep(0.1)
            process.send_signal(signal.SIGINT)
            out, err = process.communicate(timeout=60)
        finally:
            process.kill()
    assert process.returncode == INTERRUPTED
    assert "Traceback" not in err
    assert all(Path(line).is_file() for line in out.splitlines())  # what was finished is kept


# ---------------------------------------------------------------- test, doctor


def test_test_hands_its_arguments_to_pytest(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(bootstrap, "complete", lambda root, *files: sys.executable)
    assert run("test", "--version") == 0
    assert capfd.readouterr().out.startswith("pytest ")


def test_doctor_says_what_is_wrong_and_how_to_mend_it(tmp_path: Path) -> None:
    (tmp_path / "models/checkpoints/torn").mkdir(parents=True)
    (tmp_path / "models/checkpoints/torn/model_index.json").write_text("{")
    extension = tmp_path / "extensions/crooked"
    extension.mkdir(parents=True)
    (extension / "extension.toml").write_text('id = "crooked"\nversion = "1"\ntitle = "Crooked"\n')
    (extension / "__init__.py").write_text("raise ValueError('no')")
    (tmp_path / "data").write_text("a file where a folder should be")
    with socket.create_server(("127.0.0.1", 0)) as other:
        settings = settings_in(tmp_path, port=other.getsockname()[1])
        findings = {finding.what: finding for finding in doctor.examine(settings)}
    for what in ("Models", "Model torn", "Extension crooked", "Data folder"):
        assert findings[what].state == "bad"
        assert findings[what].mend
    assert findings["Address"].state == "note"
    assert findings["Packages"].state == "good"


def test_doctor_is_green_here(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert doctor.report(settings_in(tmp_path, models_dir=ROOT / "models", port=0)), capsys.readouterr().out
    assert "All is well." in capsys.readouterr().out


def settings_in(folder: Path, **given: Any) -> Settings:
    folders = {f"{name}_dir": folder / name for name in ("data", "models", "outputs", "extensions")}
    return Settings(**{**folders, **given})


def one_line(capsys: pytest.CaptureFixture[str]) -> str:
    said = capsys.readouterr().err
    assert said.count("\n") == 1, said
    return said


def png() -> bytes:
    data = io.BytesIO()
    Image.effect_noise((64, 64), 60).save(data, "PNG")
    return data.getvalue()
