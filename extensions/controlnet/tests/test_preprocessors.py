"""The table of preprocessors: what clients of sd-webui-controlnet find in it, and what it says of missing weights."""

import ast
import sys
from pathlib import Path

import pytest

from backend.catalog.roots import Roots
from extensions.controlnet import preprocessors, weightless
from extensions.controlnet.preprocessors import (
    OLDER,
    TABLE,
    Annotators,
    control_types,
    find,
    located,
    missing,
    say_missing,
)

UPSTREAM = (
    "none canny invert openpose_full openpose openpose_hand openpose_face openpose_faceonly dw_openpose_full "
    "depth depth_zoe depth_leres depth_anything depth_anything_v2 normal_bae normal_map lineart_standard lineart "
    "lineart_coarse lineart_anime pidinet pidinet_safe hed hed_safe softedge_teed pidinet_scribble scribble_hed "
    "scribble_xdog mlsd segmentation inpaint_only inpaint tile_resample tile_colorfix tile_colorfix+sharp "
    "blur_gaussian shuffle recolor_luminance recolor_intensity color pidinet_sketch threshold"
)


def test_names_and_order_are_those_of_sd_webui_controlnet() -> None:
    assert " ".join(TABLE) == UPSTREAM
    assert next(name for name in TABLE if "depth" in name) == "depth"  # some clients take the first


def test_the_table_imports_nothing_heavy() -> None:
    tree = ast.parse(Path(preprocessors.__file__).read_text("utf-8"))
    modules = {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    modules |= {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    assert {m for m in modules if m and m.partition(".")[0] not in sys.stdlib_module_names} == {
        *("backend.extension", "backend.catalog.roots"),
        "backend.diffusion.run",  # for type checkers
    }


def test_a_preprocessor_is_found_by_name_label_and_older_name() -> None:
    for module in TABLE.values():
        assert find(module.name) is module
        assert find(module.label) is module
    assert {find(name).name for name in OLDER} <= set(TABLE)
    assert find("None").name == "none"
    assert find("fake_scribble").name == "scribble_hed"
    with pytest.raises(ValueError, match="'cany' is not a preprocessor"):
        find("cany")


def test_canny_has_the_sliders_that_clients_expect() -> None:
    canny = TABLE["canny"]
    assert canny.resolution
    assert canny.resolution[1:] == (512, 64, 2048, 8)
    assert canny.threshold_a
    assert canny.threshold_a[1:] == (100, 1, 255, 1)
    assert canny.threshold_b
    assert canny.threshold_b[1:] == (200, 1, 255, 1)


@pytest.mark.parametrize("given", [-1, -100, 100_000, float("nan")])
def test_a_number_out_of_range_stands_for_the_default(given: float) -> None:
    assert TABLE["canny"].resolved(given, given, given) == (512, 100, 200)
    assert TABLE["none"].resolved(given, given, given) == (0, 0, 0)
    assert TABLE["canny"].resolved(768, 10, 20) == (768, 10, 20)


def test_every_default_lies_in_its_range() -> None:
    for module in TABLE.values():
        for facet in (module.resolution, module.threshold_a, module.threshold_b):
            assert facet is None or facet.ge <= facet.default <= facet.le


def test_every_module_without_weights_can_be_made_and_every_other_one_has_a_network() -> None:
    source = (Path(preprocessors.__file__).parent / "annotators.py").read_text("utf-8")
    kinds = next(
        node.value
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and node.target.id == "_KINDS"
    )
    assert isinstance(kinds, ast.Dict)
    networks = {key.value for key in kinds.keys if isinstance(key, ast.Constant)}
    assert networks == {module.name for module in TABLE.values() if not module.is_weightless}
    made = {*weightless._MAKERS, "inpaint", "inpaint_only"}
    assert made == {module.name for module in TABLE.values() if module.is_weightless}


def test_each_control_type_begins_with_its_default() -> None:
    types = control_types()
    first = {kind: modules[0].name for kind, modules in control_types().items()}
    assert (first["Canny"], first["Lineart"], first["Scribble"]) == ("canny", "lineart_standard", "pidinet_scribble")
    assert (first["OpenPose"], first["Depth"], first["SoftEdge"]) == ("openpose_full", "depth", "pidinet")
    assert (first["Inpaint"], first["Tile"], first["MLSD"]) == ("inpaint_only", "tile_resample", "mlsd")
    assert all(TABLE[name].is_default for name in first.values())
    assert all(modules[-1].name == "none" for modules in types.values())


def test_what_is_missing_is_said_with_file_folder_and_page(tmp_path: Path) -> None:
    full = TABLE["openpose_full"]
    (tmp_path / "body_pose_model.pth").touch()
    lacking = missing(full, Annotators((tmp_path,)))
    assert lacking == ("hand_pose_model.pth", "facenet.pth")
    assert say_missing(full, lacking) == (
        "openpose_full needs weights that are not here: put hand_pose_model.pth and facenet.pth into "
        "models/annotators (from https://huggingface.co/lllyasviel/Annotators)"
    )
    depth = TABLE["depth_anything_v2"]
    assert say_missing(depth, missing(depth, Annotators((tmp_path,)))) == (
        "depth_anything_v2 needs weights that are not here: put config.json, preprocessor_config.json and "
        "model.safetensors into models/annotators/Depth-Anything-V2-Small-hf (from "
        "https://huggingface.co/depth-anything/Depth-Anything-V2-Small-hf)"
    )
    assert missing(TABLE["canny"], Annotators((tmp_path,))) == ()


def test_safetensors_of_the_same_stem_go_first(tmp_path: Path) -> None:
    hed = TABLE["hed"]
    (tmp_path / "ControlNetHED.safetensors").touch()
    assert missing(hed, Annotators((tmp_path,))) == ()
    (tmp_path / "ControlNetHED.pth").touch()
    assert located(hed, Annotators((tmp_path,))) == (tmp_path / "ControlNetHED.safetensors",)


def test_a_larger_model_goes_first_if_it_is_whole(tmp_path: Path) -> None:
    depth = TABLE["depth_anything_v2"]
    large = tmp_path / "Depth-Anything-V2-Large-hf"
    large.mkdir()
    for name in ("config.json", "preprocessor_config.json"):
        (large / name).touch()
    assert located(depth, Annotators((tmp_path,)))[0].parent.name == "Depth-Anything-V2-Small-hf"
    (large / "model.safetensors").touch()
    assert {path.parent for path in located(depth, Annotators((tmp_path,)))} == {large}
    assert missing(depth, Annotators((tmp_path,))) == ()


def test_weights_elsewhere_are_used_as_they_lie_there(tmp_path: Path) -> None:
    """Of A1111's ControlNet, which has a folder for each kind, and of another root; ours go first."""
    own, a1111, other = (tmp_path / name for name in ("models", "a1111", "other"))
    downloads = a1111 / "extensions/sd-webui-controlnet/annotator/downloads"
    files = [downloads / "hed/ControlNetHED.pth", downloads / "openpose/body_pose_model.pth"]
    files += [other / "annotators" / file for file in TABLE["depth_anything_v2"].needs]
    for file in files:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch()
    there = Annotators.of(Roots(own, a1111=a1111, further=(other,)))
    assert there.folders[0] == own / "annotators"
    assert located(TABLE["hed"], there) == (files[0],)
    assert missing(TABLE["openpose_full"], there) == ("hand_pose_model.pth", "facenet.pth")
    assert located(TABLE["depth_anything_v2"], there) == tuple(files[2:])
    mine = own / "annotators/ControlNetHED.pth"
    mine.parent.mkdir(parents=True)
    mine.touch()
    assert located(TABLE["hed"], there) == (mine,)
