"""DWPose on networks made by hand: what they say is known, so are the joints."""

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from PIL import Image

from extensions.controlnet import dwpose
from extensions.controlnet.maps import MapValues, detect
from extensions.controlnet.pose import Person, Point
from extensions.controlnet.preprocessors import Annotators

Array = NDArray[np.float32]
SIZE = 64
"""Of the picture that the network of people is shown here; the published one takes 640."""
CELLS = (SIZE // 8) ** 2 + (SIZE // 16) ** 2 + (SIZE // 32) ** 2


def save(
    path: Path, nodes: list[Any], shown: tuple[int, ...], gives: dict[str, tuple[int, ...]], **given: Any
) -> None:
    float_type = TensorProto.FLOAT
    graph = helper.make_graph(
        nodes,
        "made by hand",
        [helper.make_tensor_value_info("images", float_type, shown)],
        [helper.make_tensor_value_info(name, float_type, shape) for name, shape in gives.items()],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in given.items()],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10), path)


def people(path: Path, *boxes: tuple[float, float, float, float], size: int = SIZE, kind: int = 0) -> Path:
    """A YOLOX that sees these boxes (left, top, right, bottom), whatever it is shown."""
    cells = dwpose._cells((size, size))
    said = np.full((len(cells), 85), -20, np.float32)
    said[:, 4:] = 0
    for n, (left, top, right, bottom) in enumerate(boxes):
        across, down, stride = cells[n]
        middle, extent = np.array([left + right, top + bottom]) / 2, np.array([right - left, bottom - top])
        said[n, :4] = [*middle / stride - [across, down], *np.log(extent / stride)]
        said[n, 4], said[n, 5 + kind] = 1, 0.9 - n / 100
    nodes = [
        helper.make_node("ReduceMean", ["images"], ["mean"], keepdims=0),
        helper.make_node("Mul", ["mean", "zero"], ["nothing"]),
        helper.make_node("Add", ["said", "nothing"], ["output"]),
    ]
    gives = {"output": (1, *said.shape)}
    save(path, nodes, (1, 3, size, size), gives, said=said[None], zero=np.float32(0))
    return path


def brightest(path: Path) -> Path:
    """A network of points, of the published one's size, that puts all of them where the picture is brightest."""
    lengths = {"across": 2 * 288, "down": 2 * 384}
    nodes = []
    for name in lengths:
        nodes += [
            helper.make_node("ReduceMax", ["images", f"axes_{name}"], [f"{name}_high"], keepdims=0),
            helper.make_node("Unsqueeze", [f"{name}_high", "one"], [f"{name}_row"]),
            helper.make_node("Unsqueeze", [f"{name}_row", "last"], [f"{name}_steps"]),
            helper.make_node("Mul", [f"{name}_steps", "two"], [f"{name}_two"]),  # the first of two steps is higher
            helper.make_node("Reshape", [f"{name}_two", f"shape_{name}"], [f"{name}_profile"]),
            helper.make_node("Expand", [f"{name}_profile", f"whole_{name}"], [f"simcc_{name}"]),
        ]
    constants: dict[str, Any] = {"one": np.array([1]), "last": np.array([3]), "two": np.float32([1, 0.99])}
    for name, length in lengths.items():
        constants |= {
            f"axes_{name}": np.array([1, 2 if name == "across" else 3]),
            f"shape_{name}": np.array([1, 1, length]),
            f"whole_{name}": np.array([1, 133, length]),
        }
    gives = {f"simcc_{name}": (1, 133, length) for name, length in lengths.items()}
    save(path, nodes, (1, 3, 384, 288), gives, **constants)
    return path


def dotted(x: int, y: int, width: int = 320, height: int = 240) -> Image.Image:
    pixels = np.zeros((height, width, 3), np.uint8)
    pixels[y - 1 : y + 2, x - 1 : x + 2] = 255
    return Image.fromarray(pixels)


def test_a_point_is_found_where_it_is_in_the_picture(tmp_path: Path) -> None:
    """Through both networks: the box comes out of the letter box, the point out of what was cut out of the picture."""
    people(tmp_path / "yolox_l.onnx", (20, 8, 44, 46))  # the picture fills 64 x 48 of what is shown
    brightest(tmp_path / "dw-ll_ucoco_384.onnx")
    made = detect(dotted(170, 120), None, MapValues("dw_openpose_full", 240), Annotators((tmp_path,)))
    assert made.pose
    (found,) = made.pose.people
    assert (made.pose.width, made.pose.height) == (320, 240)
    for point in (*found.body, *found.left_hand, *found.right_hand, *found.face):
        assert point
        assert abs(point.x * 320 - 170) < 2
        assert abs(point.y * 240 - 120) < 2
    assert made.picture.getbbox()  # it was drawn


def test_the_published_size_is_understood(tmp_path: Path) -> None:
    people(tmp_path / "yolox_l.onnx", (200, 80, 440, 460), size=640)
    brightest(tmp_path / "dw-ll_ucoco_384.onnx")
    made = detect(dotted(170, 120), None, MapValues("dw_openpose_full", 240), Annotators((tmp_path,)))
    assert made.pose
    assert len(made.pose.people) == 1


def test_no_person_is_an_empty_map(tmp_path: Path) -> None:
    people(tmp_path / "yolox_l.onnx", (20, 8, 44, 46), kind=16)  # a dog
    brightest(tmp_path / "dw-ll_ucoco_384.onnx")
    made = detect(dotted(170, 120), None, MapValues("dw_openpose_full", 240), Annotators((tmp_path,)))
    assert made.pose
    assert made.pose.people == ()
    assert not made.picture.getbbox()


def test_of_two_boxes_of_one_person_the_surer_stays() -> None:
    cells = dwpose._cells((SIZE, SIZE))
    assert len(cells) == CELLS
    said = np.zeros((CELLS, 85), np.float32)
    for n, (x, width, score) in enumerate([(10, 16, 0.8), (11, 16, 0.9), (40, 16, 0.5), (20, 8, 0.2)]):
        across, down, stride = cells[n]
        said[n, :6] = x / stride - across, 30 / stride - down, np.log(width / stride), np.log(32 / stride), 1, score
    found = dwpose.boxes(said, (SIZE, SIZE))
    assert np.allclose(found, [[3, 14, 19, 46], [32, 14, 48, 46]], atol=1e-4)


def profiles(places: dict[int, tuple[float, float]], score: float = 0.9) -> tuple[Array, Array]:
    across, down = np.zeros((133, 576), np.float32), np.zeros((133, 768), np.float32)
    for n, (x, y) in places.items():
        across[n, round(2 * x)] = down[n, round(2 * y)] = score
    return across, down


def test_points_become_openposes_joints() -> None:
    """COCO-WholeBody counts from the nose on, left before right; OpenPose has a neck and the right side first."""
    places, scores = dwpose.peaks(*profiles({n: (n, 2 * n) for n in range(133)}))
    found = dwpose.person(places, scores, 100, 100)
    coco = [None if p is None else round(p.x * 100) for p in found.body]
    assert coco == [0, 6, 6, 8, 10, 5, 7, 9, 12, 14, 16, 11, 13, 15, 2, 1, 4, 3]
    assert found.body[1] == Point(0.055, 0.11)  # between the shoulders, 5 and 6
    assert [round(p.x * 100) for p in found.face if p] == [*range(23, 91), 2, 1]
    assert [round(p.x * 100) for p in found.left_hand if p] == list(range(91, 112))
    assert [round(p.x * 100) for p in found.right_hand if p] == list(range(112, 133))


def test_what_is_not_seen_is_left_out() -> None:
    places, scores = dwpose.peaks(*profiles({5: (40, 50), 9: (60, 70)}))
    found = dwpose.person(places, scores, 100, 100)
    assert [n for n, point in enumerate(found.body) if point] == [5, 7]  # no neck without both shoulders
    assert (found.left_hand, found.right_hand, found.face) == ((), (), ())
    unsure = dwpose.peaks(*profiles({5: (40, 50)}, score=0.2))
    assert dwpose.person(*unsure, 100, 100) == Person()


def test_missing_files_are_named_with_their_place(tmp_path: Path) -> None:
    with pytest.raises(
        ValueError, match=r"yolox_l\.onnx and dw-ll_ucoco_384\.onnx into models/annotators .*yzd-v/DWPose"
    ):
        detect(dotted(170, 120), None, MapValues("dwpose"), Annotators((tmp_path,)))


def test_a_broken_file_and_another_network_are_named(tmp_path: Path) -> None:
    (tmp_path / "yolox_l.onnx").write_bytes(b"no network")
    brightest(tmp_path / "dw-ll_ucoco_384.onnx")
    with pytest.raises(ValueError, match="cannot be used: its files are damaged or of another kind") as told:
        detect(dotted(170, 120), None, MapValues("dw_openpose_full"), Annotators((tmp_path,)))
    assert str(tmp_path) not in str(told.value)  # where models lie is nobody's business
    (tmp_path / "yolox_l.onnx").write_bytes((tmp_path / "dw-ll_ucoco_384.onnx").read_bytes())
    with pytest.raises(ValueError, match="dw_openpose_full failed on this picture"):
        detect(dotted(170, 120), None, MapValues("dw_openpose_full"), Annotators((tmp_path,)))
