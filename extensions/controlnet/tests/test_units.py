"""The declaration: what a unit takes, from whomever it comes, and in which words it refuses the rest."""

import math
from typing import Any

import pytest

from backend.errors import InvalidRequest
from backend.params import declared
from backend.request import parse_request
from extensions.controlnet import ControlNetParams, Unit, older
from extensions.controlnet.preprocessors import TABLE

A, B = "a" * 64, "b" * 64


def unit(values: Any) -> Unit:
    return ControlNetParams.model_validate({"units": [values]}).units[0]


def refused(*units: Any) -> tuple[str, str]:
    with pytest.raises(InvalidRequest) as error:
        parse_request({"extensions": {"controlnet": {"units": list(units)}}}, {"controlnet": ControlNetParams})
    problem = error.value.problems[0]
    return problem.field.removeprefix("extensions.controlnet."), problem.message


def test_the_defaults_are_upstreams() -> None:
    assert Unit().model_dump() == {
        "image": None,
        "mask": None,
        "module": "none",
        "model": "None",
        "weight": 1.0,
        "guidance_start": 0.0,
        "guidance_end": 1.0,
        "control_mode": "Balanced",
        "resize_mode": "Crop and Resize",
        "pixel_perfect": False,
        "processor_res": -1,
        "threshold_a": -1,
        "threshold_b": -1,
        "hr_option": "Both",
        "inpaint_crop_input_image": True,
        "union_control_type": "Unknown",
        "effective_region_mask": None,
        "advanced_weighting": None,
        "save_detected_map": False,
        "map": None,
        "pose": "",
        "made_from": "",
    }
    assert ControlNetParams().units == ()


# --- what others send


@pytest.mark.parametrize(
    ("sent", "meant"),
    [
        ({"control_mode": 0}, {}),
        ({"control_mode": 1}, {"control_mode": "My prompt is more important"}),
        ({"control_mode": 2.0}, {"control_mode": "ControlNet is more important"}),
        ({"control_mode": "2"}, {"control_mode": "ControlNet is more important"}),
        ({"hr_option": 1}, {"hr_option": "Low res only"}),
        ({"control_mode": "ControlMode.CONTROL"}, {"control_mode": "ControlNet is more important"}),
        ({"guessmode": True}, {"control_mode": "ControlNet is more important"}),
        ({"guessmode": False}, {}),
        ({"resize_mode": 0}, {"resize_mode": "Just Resize"}),
        ({"resize_mode": 1}, {}),
        ({"resize_mode": 2}, {"resize_mode": "Resize and Fill"}),
        ({"resize_mode": 3}, {"resize_mode": "Just Resize"}),
        ({"resize_mode": "Scale to Fit (Inner Fit)"}, {}),
        ({"resize_mode": "Inner Fit (Scale to Fit)"}, {}),
        ({"resize_mode": "Envelope (Outer Fit)"}, {"resize_mode": "Resize and Fill"}),
        ({"resize_mode": "Outer Fit (Shrink to Fit)"}, {"resize_mode": "Resize and Fill"}),
        ({"guidance": 0.6}, {"guidance_end": 0.6}),
        ({"guidance": 0.6, "guidance_end": 0.7}, {"guidance_end": 0.7}),
        ({"input_image": A}, {"image": A}),
        ({"input_image": A, "image": B}, {"image": B}),
        ({"mask_image": A}, {"mask": A}),
        ({"image": A}, {"image": A}),
        ({"image": ""}, {}),
        ({"image": None}, {}),
        ({"image": {"image": A, "mask": B}}, {"image": A, "mask": B}),
        ({"image": {"image": A, "mask": None}}, {"image": A}),
        ({"image": {"image": A}}, {"image": A}),
        ({"image": [A, B]}, {"image": A, "mask": B}),
        ({"image": [{"image": A, "mask": B}]}, {"image": A, "mask": B}),
        ({"image": [A]}, {"image": A}),
        ({"image": {"image": A, "mask": B}, "mask": A}, {"image": A, "mask": A}),
        ({"module": None, "model": None, "advanced_weighting": None, "union_control_type": None}, {}),
        ({"module": "None", "model": "none"}, {}),
        ({"module": "depth_midas"}, {"module": "depth"}),
        ({"module": "softedge_hed"}, {"module": "hed"}),
        ({"module": "fake_scribble"}, {"module": "scribble_hed"}),
        ({"module": "invert (from white bg & black line)"}, {"module": "invert"}),
        ({"processor_res": -100, "threshold_a": -100}, {"processor_res": -100, "threshold_a": -100}),
        ({"advanced_weighting": []}, {}),
        ({"advanced_weighting": [0, 0.5]}, {"advanced_weighting": (0, 0.5)}),
        ({"low_vram": True, "lowvram": True, "is_ui": False, "input_mode": "simple", "batch_images": ""}, {}),
        ({"enabled": True, "low_vram": True, "pulid_mode": "Fidelity", "animatediff_batch": False}, {}),
        ({"use_preview_as_input": False, "generated_image": None, "ipadapter_input": None}, {}),
    ],
    ids=str,
)
def test_whatever_a_version_has_accepted_is_read(sent: dict[str, Any], meant: dict[str, Any]) -> None:
    assert unit(sent) == Unit(**meant)


def test_units_that_are_switched_off_are_left_out() -> None:
    given = [{"enabled": False, "weight": 9}, {"weight": 0.5}, {"enabled": True, "weight": 0.7}]
    assert [u.weight for u in ControlNetParams.model_validate({"units": given}).units] == [0.5, 0.7]


def test_what_a_unit_says_is_read_again() -> None:
    full = unit({"image": A, "module": "canny", "advanced_weighting": [1, 2], "map": B, "pixel_perfect": True})
    assert ControlNetParams.model_validate_json(ControlNetParams(units=(full,)).model_dump_json()).units == (full,)


# --- what is refused


@pytest.mark.parametrize(
    ("values", "field", "words"),
    [
        ({"weight": 5}, "weight", "should be less than or equal to 2, not 5"),
        ({"weight": -0.1}, "weight", "should be greater than or equal to 0"),
        ({"weight": float("nan")}, "weight", "should be"),
        ({"guidance_start": 0.6, "guidance_end": 0.5}, "guidance_end", "should not be less than where it starts, 0.6"),
        ({"guidance_start": 0.6, "guidance": 0.5}, "guidance_end", "should not be less than where it starts, 0.6"),
        ({"guidance_end": 1.1}, "guidance_end", "less than or equal to 1"),
        ({"module": "cany"}, "module", "'cany' is not a preprocessor; the nearest is canny"),
        ({"module": "openposs_full"}, "module", "the nearest is openpose_full"),
        ({"control_mode": 3}, "control_mode", "should be 'Balanced'"),
        ({"control_mode": []}, "control_mode", "should be 'Balanced'"),
        ({"resize_mode": "Larger"}, "resize_mode", "should be 'Just Resize'"),
        ({"image": "/etc/passwd"}, "image", "should name an uploaded image; neither paths nor files are taken here"),
        ({"image": "iVBORw0KGgo="}, "image", "should name an uploaded image"),
        ({"image": [A, "C:\\mask.png"]}, "mask", "should name an uploaded image"),
        ({"image": 7}, "image", "should be a valid string"),
        ({"map": "x"}, "map", "should name an uploaded image"),
        ({"effective_region_mask": "x"}, "effective_region_mask", "should name an uploaded image"),
        ({"ipadapter_input": ["gASV"]}, "", "ipadapter_input is a pickle, which can run code: it is not taken"),
        ({"union_control_type": "Anything"}, "union_control_type", "should be 'Unknown'"),
        ({"pose": "{}"}, "pose", "that is not a pose as OpenPose writes it"),
        ({"pose": "x" * 200_001}, "pose", "at most"),
        ({"advanced_weighting": ["a"]}, "advanced_weighting.0", "should be a valid number"),
        ({"advanced_weighting": [math.inf]}, "advanced_weighting.0", "should be a finite number"),
        ({"advanced_weighting": (1,) * 101}, "advanced_weighting", "at most 100 items"),
        ({"threshold_a": math.nan}, "threshold_a", "should be a finite number"),
        ({"strength": 1}, "strength", "is not a parameter"),
    ],
    ids=str,
)
def test_a_wrong_value_is_named(values: dict[str, Any], field: str, words: str) -> None:
    where, said = refused({}, values)
    assert where == f"units.1.{field}".rstrip(".")
    assert words in said


def test_eleven_units_are_too_many() -> None:
    assert refused(*[{}] * 11) == ("units", "should have at most 10 items, not 11")
    assert len(ControlNetParams.model_validate({"units": [{}] * 10}).units) == 10


def test_what_is_no_unit_is_refused() -> None:
    assert refused("canny")[0] == "units.0"
    assert refused(None)[0] == "units.0"


# --- the panel


def test_sliders_mean_what_the_preprocessor_makes_of_them() -> None:
    hints = {name: hint for name, _, hint in declared(Unit)}
    for name, slot in (
        ("processor_res", "resolution"),
        ("threshold_a", "threshold_a"),
        ("threshold_b", "threshold_b"),
    ):
        assert hints[name].decided_by == "module"
        assert hints[name].facets == {m.name: getattr(m, slot) for m in TABLE.values() if getattr(m, slot)}
    facets = hints["threshold_a"].facets or {}
    assert (facets["canny"].default, facets["canny"].ge, facets["canny"].le) == (100, 1, 255)
    assert "none" not in facets


def test_what_is_used_most_comes_first() -> None:
    fields = [(name, hint.group) for name, _, hint in declared(Unit)]
    plain = [name for name, group in fields if not group]
    assert plain[:3] == ["image", "map", "module"]
    assert plain.index("model") < plain.index("weight") < plain.index("control_mode")
    assert {name for name, group in fields if group == "advanced"} >= {"mask", "hr_option", "union_control_type"}


def test_one_list_of_modes() -> None:
    schema = Unit.model_json_schema()["properties"]
    assert tuple(schema["control_mode"]["enum"]) == older.CONTROL_MODES
    assert tuple(schema["resize_mode"]["enum"]) == older.RESIZE_MODES
    assert tuple(schema["union_control_type"]["enum"]) == older.CONTROL_TYPES


def test_the_declaration_imports_without_torch_or_opencv() -> None:
    import subprocess
    import sys

    heavy = ("torch", "diffusers", "cv2", "numpy")
    code = f"import extensions.controlnet, sys; print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
