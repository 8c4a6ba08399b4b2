"""The benchmarks run and say what they are there to say; their figures are for people."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import timing
from benchmarks.timing import Cost

ROOT = Path(__file__).parent.parent


def bench(*arguments: str) -> str:
    command = [sys.executable, "app.py", "bench", *arguments]
    done = subprocess.run(command, cwd=ROOT, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
def test_overhead_ends_with_the_ratio() -> None:
    said = bench("overhead", "--pairs", "1", "--steps", "2", "--width", "64")
    assert re.fullmatch(r"ratio \d+\.\d\d", said.splitlines()[-1])
    assert "allocator as it is: ratio " in said


@pytest.mark.slow
def test_controlnet_ends_with_the_ratio_of_a_step() -> None:
    said = bench("controlnet", "--pairs", "1", "--steps", "2", "--width", "64")
    assert re.fullmatch(r"ratio \d+\.\d\d", said.splitlines()[-1])


@pytest.mark.slow
def test_models_compares_loading_switching_and_drawing() -> None:
    said = bench("models", "--size", "starter", "--repeat", "1", "--pairs", "1", "--steps", "2", "--width", "64")
    assert re.search(r"cold load against from_single_file: ratio \d+\.\d\d, wall \d+\.\d\d", said)
    assert re.search(r"warm switch against cold: ratio 0\.\d{3}", said)
    assert re.search(r"our store: peak \d+\.\d\d, without pages of files \d+\.\d\d", said)
    assert re.fullmatch(r"ratio \d+\.\d\d", said.splitlines()[-1])


@pytest.mark.slow
def test_startup_compares_with_gradio() -> None:
    said = bench("startup", "--repeat", "1")
    assert re.fullmatch(r"first page: import gradio [+-]\d+\.\d\d CPU s", said.splitlines()[-1])


def test_ratio_is_taken_turn_by_turn() -> None:
    """A machine that grows slower changes the seconds, not the ratio."""
    raw = [Cost(1.0, 1.0), Cost(2.0, 4.0), Cost(4.0, 9.0)]
    ours = [Cost(1.1, 1.2), Cost(2.2, 4.8), Cost(4.4, 10.8)]
    assert timing.ratio(ours, raw) == pytest.approx((1.1, 1.2))


def test_cpu_time_is_not_wall_time() -> None:
    import time

    cost = timing.cost_of(lambda: time.sleep(0.2))
    assert cost.wall >= 0.2
    assert cost.cpu < 0.1
