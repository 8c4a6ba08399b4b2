"""Kill -9 of a server in mid-training: the next one goes on, and learns the same to the bit."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import load_file

from backend.catalog.roots import Roots
from backend.jobs.device import Device
from backend.jobs.events import Hub
from backend.params import validate
from backend.training import records, runner
from backend.training.params import TrainParams
from tests.waiting import wait_for
from tests.workshop import ROOT, open_database

pytest_plugins = ["tests.tiny"]
pytestmark = pytest.mark.skipif(os.name == "nt", reason="signals of POSIX")

PARAMS = {"model": "tiny", "resolution": 64, "steps": 200, "batch_size": 2, "rank": 2, "learning_rate": 1e-2}
PARAMS |= {"sample_every": 0, "save_every": 10, "dropout": 0.1}
SERVER = """
import sys, time
from pathlib import Path
from tests.test_training_crash import trainings
trainings(Path(sys.argv[1])).start()
time.sleep(1000)
"""


def trainings(folder: Path) -> runner.Trainings:
    roots = Roots(folder / "models")
    return runner.build(folder / "training", roots, open_database(folder), Hub(), Device(), "cpu")


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_a_killed_server_loses_nothing_that_was_saved(
    tmp_path: Path, tiny_models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "checkpoints").symlink_to(tiny_models / "checkpoints")
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    for number in range(5):
        colours = np.random.default_rng(number).integers(0, 255, (64, 64, 3), np.uint8)
        Image.fromarray(colours).save(pictures / f"{number}.png")
    here, params = trainings(tmp_path), validate(TrainParams, PARAMS)
    here.begin("demo", pictures, params)

    server = subprocess.Popen([sys.executable, "-c", SERVER, str(tmp_path)], cwd=ROOT)
    history = tmp_path / "training" / "demo" / "history.jsonl"
    wait_for(lambda: history.is_file() and len(history.read_bytes().splitlines()) >= 25, 900)
    assert here.view("demo")["state"] == "running"
    server.send_signal(signal.SIGKILL)
    server.wait()
    kept = records.read(tmp_path / "training", "demo").done
    assert 20 <= kept < 200

    here.start()
    try:
        wait_for(lambda: here.view("demo")["state"] == "done", 900)
        here.begin("plain", pictures, params)
        wait_for(lambda: here.view("plain")["state"] == "done", 900)
    finally:
        here.stop()
    resumed, plain = (load_file(tmp_path / "models" / "loras" / f"{name}.safetensors") for name in ("demo", "plain"))
    assert all(np.array_equal(resumed[key], plain[key]) for key in plain)
    rows = [row["step"] for row in records.read(tmp_path / "training", "demo").history if "loss" in row]
    assert rows == list(range(1, 201))
