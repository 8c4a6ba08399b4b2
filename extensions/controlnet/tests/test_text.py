"""Units in a picture's text: as sd-webui-controlnet writes them, and back."""

import json
from typing import Any

import pytest

from backend import infotext
from backend.request import parse_request
from extensions.controlnet import ControlNetParams, Unit

A, B, C = "a" * 64, "b" * 64, "c" * 64
PARAMS = {"controlnet": ControlNetParams}
UPSTREAM = (
    "Module: canny, Model: control_v11p_sd15_canny [d14c016b], Weight: 1.0, Resize Mode: Crop and Resize, "
    "Processor Res: 512, Threshold A: 100.0, Threshold B: 200.0, Guidance Start: 0.0, Guidance End: 1.0, "
    "Pixel Perfect: True, Control Mode: Balanced"
)
CANNY = Unit(
    module="canny",
    model="control_v11p_sd15_canny [d14c016b]",
    processor_res=512,
    threshold_a=100,
    threshold_b=200,
    pixel_perfect=True,
)


_ARM = [number for n in range(18) for number in ((8.25 + 3 * n, -12.5, 1) if n % 5 else (0, 0, 0))]
_HAND = [number for n in range(21) for number in (n, 2 * n, 0.7)]
_PEOPLE = [
    {"pose_keypoints_2d": _ARM},
    {"pose_keypoints_2d": [], "hand_right_keypoints_2d": _HAND, "face_keypoints_2d": [1.0] * 210},
]
POSE = json.dumps({"people": _PEOPLE, "canvas_width": 64, "canvas_height": 96})


def text_of(*units: Unit) -> str:
    request = parse_request({"prompt": "a cat", "seed": 1, "extensions": {"controlnet": {"units": units}}}, PARAMS)
    return infotext.write(request)


def units_in(text: str) -> tuple[Unit, ...]:
    given: Any = parse_request(infotext.read(text, PARAMS).values, PARAMS).extensions.get("controlnet")
    return given.units if given else ()


def test_it_is_upstreams_line_to_the_letter() -> None:
    assert ControlNetParams(units=(CANNY,)).to_infotext() == {"ControlNet 0": UPSTREAM}
    assert f'ControlNet 0: "{UPSTREAM}"' in text_of(CANNY)


def test_upstreams_line_is_read() -> None:
    text = f'a cat\nSteps: 20, Sampler: Euler, Seed: 1, Size: 64x64, ControlNet 0: "{UPSTREAM}", Version: v1.10.1'
    assert units_in(text) == (CANNY,)


def test_a_slider_that_the_preprocessor_has_not_is_written_as_upstream_writes_it() -> None:
    line = ControlNetParams(units=(Unit(module="openpose", processor_res=640),)).to_infotext()["ControlNet 0"]
    assert "Processor Res: 640, Threshold A: 0.5, Threshold B: 0.5," in line
    assert units_in(text_of(Unit(module="openpose", processor_res=640))) == (
        Unit(module="openpose", processor_res=640),
    )
    assert "Processor Res: 512," in ControlNetParams(units=(Unit(),)).to_infotext()["ControlNet 0"]


@pytest.mark.parametrize(
    "unit",
    [
        Unit(),
        CANNY,
        Unit(weight=0.65, guidance_start=0.1, guidance_end=0.9, control_mode="My prompt is more important"),
        Unit(control_mode="ControlNet is more important", resize_mode="Resize and Fill", module="none"),
        Unit(image=A, mask=B, map=C, made_from="0123456789abcdef 512x768 hires", effective_region_mask=A),
        Unit(hr_option="High res only", union_control_type="Hard Edge", inpaint_crop_input_image=False),
        Unit(advanced_weighting=(0.0, 0.25, 1.5), model="a model (v1), the first: best [0123abcd]"),
        Unit(model="(new) 50% canny [0123abcd]", weight=0),
        Unit(pose=POSE, map=A, made_from="pose-0123456789abcdef"),
    ],
    ids=lambda unit: ",".join(sorted(unit.model_fields_set)),
)
def test_a_unit_is_read_as_it_was_written(unit: Unit) -> None:
    assert units_in(text_of(unit)) == (unit,)
    assert units_in(text_of(CANNY, unit)) == (CANNY, unit)


@pytest.mark.parametrize("pose", ["64x96 / 1~2", "64x0 /", "64x96 / a~b", "/", "64x96 / f 1~2", "9" * 5000, "64x96"])
def test_a_pose_that_makes_no_sense_is_left_out(pose: str) -> None:
    line = f"{UPSTREAM}, Pose: {pose}"
    (unit,) = units_in(f'a cat\nSteps: 20, Sampler: Euler, Seed: 1, Size: 64x64, ControlNet 0: "{line}"')
    assert unit == (CANNY if pose != "64x96" else CANNY.model_copy(update={"pose": unit.pose}))


@pytest.mark.parametrize("part", ["a", "a/", "a: ", "a: (", "(", "Pose: (", "1, 2", "a: b,c "])
def test_a_line_as_long_as_any_is_read_at_once(part: str) -> None:
    line = f"{UPSTREAM}, {part * (900_000 // len(part))}"
    assert units_in(f'a cat\nSteps: 20, Sampler: Euler, Seed: 1, Size: 64x64, ControlNet 0: "{line}"') == (CANNY,)


def test_ours_comes_behind_what_others_read() -> None:
    line = ControlNetParams(units=(Unit(map=A, hr_option="Low res only"),)).to_infotext()["ControlNet 0"]
    assert line.endswith(f"Control Mode: Balanced, Hr Option: Low res only, Map: {A}")
    assert ":" not in line.replace(": ", "")


@pytest.mark.parametrize(
    ("line", "meant"),
    [
        (
            "preprocessor: canny, model: control_canny [e3fe7712], weight: 0.8, starting/ending: (0.1, 0.9), "
            "resize mode: Crop and Resize, pixel perfect: False, control mode: Balanced, "
            "preprocessor params: (512, 90, 210)",
            Unit(
                module="canny",
                model="control_canny [e3fe7712]",
                weight=0.8,
                guidance_start=0.1,
                guidance_end=0.9,
                processor_res=512,
                threshold_a=90,
                threshold_b=210,
            ),
        ),
        (
            "Module: openpose_full, Model: x [00000000], Weight: 1, Resize Mode: ResizeMode.OUTER_FIT, "
            "Low Vram: False, Processor Res: 512, Threshold A: 64, Threshold B: 64, Guidance Start: 0, "
            "Guidance End: 1, Pixel Perfect: False, Control Mode: ControlMode.PROMPT, Save Detected Map: True",
            Unit(
                module="openpose_full",
                model="x [00000000]",
                processor_res=512,
                resize_mode="Resize and Fill",
                control_mode="My prompt is more important",
            ),
        ),
        (
            "Module: canny, Model: None, Weight: 1.2, Resize Mode: Just Resize, Guidance Start: 0.0, "
            "Guidance End: 1.0, Pixel Perfect: False, Control Mode: Balanced, Hr Option: High res only",
            Unit(module="canny", weight=1.2, resize_mode="Just Resize", hr_option="High res only"),
        ),
        (
            "Module: tile_gaussian, Model: x, Weight: 0.6, Resize Mode: 1, Low Vram: False, Processor Res: 512, "
            "Threshold A: 1, Threshold B: 1, Guidance Start: 0.0, Guidance End: 1.0, Pixel Perfect: True, "
            "Control Mode: 1, Hr Option: HiResFixOption.LOW_RES_ONLY, Mask: None, Advanced Weighting: None",
            Unit(
                module="tile_resample",
                model="x",
                weight=0.6,
                threshold_a=1,
                pixel_perfect=True,
                control_mode="My prompt is more important",
                hr_option="Low res only",
            ),
        ),
    ],
    ids=["2023", "enums", "forge", "numbers"],
)
def test_lines_of_other_versions_are_read(line: str, meant: Unit) -> None:
    assert units_in(f'a cat\nSteps: 20, Sampler: Euler, Seed: 1, ControlNet 0: "{line}"') == (meant,)


def test_the_first_versions_had_one_unit_without_a_number() -> None:
    text = 'a cat\nSteps: 20, Sampler: Euler, Seed: 1, ControlNet: "Module: canny, Model: x, Weight: 1"'
    assert units_in(text) == (Unit(module="canny", model="x"),)


@pytest.mark.parametrize("key", ["ControlNet", "ControlNet-0"])
def test_the_very_first_versions_had_a_key_for_each_value(key: str) -> None:
    said = f"{key} Enabled: True, {key} Module: canny, {key} Model: control_canny-fp16 [e3fe7712], {key} Weight: 0.55"
    said += f", {key} Guidance Start: 0.1, {key} Guidance End: 0.9"
    second = "ControlNet-1 Enabled: True, ControlNet-1 Module: hed, ControlNet-1 Model: x"
    canny = Unit(
        module="canny", model="control_canny-fp16 [e3fe7712]", weight=0.55, guidance_start=0.1, guidance_end=0.9
    )
    units = units_in(f"a cat\nSteps: 20, Sampler: Euler, Seed: 1, {said}, {second}")
    assert units == (canny, Unit(module="hed", model="x"))


def test_an_empty_or_foreign_line_is_no_unit() -> None:
    for line in ("", "something else", "Weight: 1"):
        text = f'a cat\nSteps: 20, Sampler: Euler, Seed: 1, Size: 64x64, ControlNet 0: "{line}"'
        assert units_in(text) == ()
    assert units_in("a cat\nSteps: 20, Sampler: Euler, Seed: 1, ControlNet Version: 2") == ()
