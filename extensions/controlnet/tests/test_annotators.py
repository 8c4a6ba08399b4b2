"""Preprocessors with weights: their networks at full size, random numbers in the layout of the public files."""

import functools
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from backend.diffusion.memory import Budget
from backend.diffusion.models import ModelStore
from backend.testing import ROOT, Studio
from extensions.controlnet import annotators, preview
from extensions.controlnet.annotators import _People, annotate, read_weights
from extensions.controlnet.maps import MapValues, detect
from extensions.controlnet.pose import LIMBS
from extensions.controlnet.preprocessors import TABLE, Annotators
from extensions.controlnet.weightless import Sliders

pytestmark = pytest.mark.filterwarnings("ignore")  # of controlnet-aux and timm
Network = Callable[[], torch.nn.Module]


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def picture(width: int = 150, height: int = 100) -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8))


def pidinet() -> torch.nn.Module:
    from controlnet_aux.pidi.model import pidinet

    network: torch.nn.Module = pidinet()
    return network


def teed() -> torch.nn.Module:
    from controlnet_aux.teed.ted import TED

    network: torch.nn.Module = TED()
    return network


def mlsd() -> torch.nn.Module:
    from controlnet_aux.mlsd.models.mbv2_mlsd_large import MobileV2_MLSD_Large

    network: torch.nn.Module = MobileV2_MLSD_Large()
    return network


def lineart() -> torch.nn.Module:
    from controlnet_aux.lineart import Generator

    network: torch.nn.Module = Generator(3, 1, 3)
    return network


def hed() -> torch.nn.Module:
    from controlnet_aux.hed import ControlNetHED_Apache2

    network: torch.nn.Module = ControlNetHED_Apache2()
    return network


def lineart_anime() -> torch.nn.Module:
    from controlnet_aux.lineart_anime import UnetGenerator

    norm = functools.partial(torch.nn.InstanceNorm2d, affine=False, track_running_stats=False)
    network: torch.nn.Module = UnetGenerator(3, 1, 8, 64, norm_layer=norm)
    return network


def midas() -> torch.nn.Module:
    from controlnet_aux.midas.midas.dpt_depth import DPTDepthModel

    network: torch.nn.Module = DPTDepthModel(path=None, backbone="vitb_rn50_384", non_negative=True)
    return network


def leres() -> torch.nn.Module:
    from controlnet_aux.leres.leres.multi_depth_model_woauxi import RelDepthModel

    network: torch.nn.Module = RelDepthModel(backbone="resnext101")
    return network


def normal_bae() -> torch.nn.Module:
    from types import SimpleNamespace

    from controlnet_aux.normalbae.nets.NNET import NNET

    how = {"mode": "client", "architecture": "BN", "pretrained": "scannet"}
    network: torch.nn.Module = NNET(SimpleNamespace(**how, sampling_ratio=0.4, importance_ratio=0.7))
    return network


def save(path: Path, network: Network, wrap: Callable[[dict[str, Any]], Any] = lambda weights: weights) -> None:
    torch.manual_seed(0)
    torch.save(wrap(network().state_dict()), path)


def parallel(weights: dict[str, Any]) -> dict[str, Any]:
    return {f"module.{name}": tensor for name, tensor in weights.items()}


SMALL: dict[str, tuple[Network, Callable[[dict[str, Any]], Any]]] = {
    "table5_pidinet.pth": (pidinet, lambda weights: {"state_dict": parallel(weights)}),
    "5_model.pth": (teed, lambda weights: weights),
    "mlsd_large_512_fp32.pth": (mlsd, lambda weights: weights),
    "sk_model.pth": (lineart, lambda weights: weights),
    "sk_model2.pth": (lineart, lambda weights: weights),
}
LARGE: dict[str, tuple[Network, Callable[[dict[str, Any]], Any]]] = {
    "ControlNetHED.pth": (hed, lambda weights: weights),
    "netG.pth": (lineart_anime, parallel),
    "dpt_hybrid-midas-501f0c75.pt": (midas, lambda weights: weights),
    "res101.pth": (leres, lambda weights: {"depth_model": parallel(weights)}),
    "scannet.pt": (normal_bae, lambda weights: {"model": parallel(weights)}),
}


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("annotators")
    for name, (network, wrap) in SMALL.items():
        save(folder / name, network, wrap)
    return folder


def check(module: str, folder: Path) -> np.ndarray:
    """Its map of a picture whose sides are no multiples of 64; the same the second time."""
    first, second = (detect(picture(), None, MapValues(module, 96), Annotators((folder,))) for _ in range(2))
    assert first.picture.size == (144, 96)
    assert first.picture.mode == "RGB"
    assert first.picture.tobytes() == second.picture.tobytes()
    return np.asarray(first.picture)


@pytest.mark.parametrize("module", [m.name for m in TABLE.values() if m.needs and {*m.needs} <= {*SMALL}])
def test_a_network_of_random_weights_makes_a_map(module: str, small: Path) -> None:
    found = check(module, small)
    if module in ("pidinet_scribble", "pidinet_sketch", "mlsd"):
        assert set(np.unique(found)) <= {0, 255}


@pytest.mark.slow
@pytest.mark.parametrize("module", [m.name for m in TABLE.values() if m.needs and {*m.needs} <= {*LARGE}])
def test_a_large_network_of_random_weights_makes_a_map(module: str, tmp_path: Path) -> None:
    for file in TABLE[module].needs:
        save(tmp_path / file, *LARGE[file])
    check(module, tmp_path)


@pytest.mark.slow
def test_zoe_works_with_the_timm_that_is_here() -> None:
    """Its file has 1.4 GB; here only the network runs."""
    from controlnet_aux.zoe import ZoeDepth, ZoeDetector, get_config

    network = ZoeDepth.build_from_config(get_config("zoedepth", "infer")).eval()
    detector = annotators._Detector(ZoeDetector, network)
    with torch.inference_mode():
        assert detector.at_both(np.asarray(picture(128, 64))).shape == (64, 128, 3)


# transformers


def test_depth_anything_is_read_from_a_folder(tmp_path: Path) -> None:
    import transformers

    backbone = transformers.Dinov2Config(
        hidden_size=32,
        num_hidden_layers=4,
        num_attention_heads=2,
        intermediate_size=37,
        image_size=56,
        patch_size=14,
        out_features=["stage1", "stage2", "stage3", "stage4"],
        reshape_hidden_states=False,
    )
    config = transformers.DepthAnythingConfig(
        backbone_config=backbone, reassemble_hidden_size=32, neck_hidden_sizes=[8, 8, 16, 16], fusion_hidden_size=16
    )
    folder = tmp_path / "Depth-Anything-V2-Small-hf"
    torch.manual_seed(0)
    transformers.DepthAnythingForDepthEstimation(config).save_pretrained(folder)
    sizes = {"height": 56, "width": 56}
    transformers.DPTImageProcessor(size=sizes, keep_aspect_ratio=True, ensure_multiple_of=14).save_pretrained(folder)
    depth = check("depth_anything_v2", tmp_path)
    assert (depth.min(), depth.max()) == (0, 255)
    (folder / "model.safetensors").write_bytes(b"cut short")
    with pytest.raises(ValueError, match="depth_anything_v2 cannot be used: Depth-Anything-V2-Small-hf is damaged"):
        detect(picture(), None, MapValues("depth_anything_v2", 64), Annotators((tmp_path,)))


def test_segmentation_has_the_colours_of_ade20k(tmp_path: Path) -> None:
    import transformers
    from controlnet_aux.util import ade_palette

    backbone = transformers.ConvNextConfig(
        hidden_sizes=[10, 20, 30, 40], depths=[1, 1, 1, 1], out_features=["stage1", "stage2", "stage3", "stage4"]
    )
    config = transformers.UperNetConfig(
        backbone_config=backbone, hidden_size=32, num_labels=150, auxiliary_in_channels=30, auxiliary_channels=16
    )
    folder = tmp_path / "upernet-convnext-small"
    transformers.UperNetForSemanticSegmentation(config).save_pretrained(folder)
    transformers.SegformerImageProcessor(size={"height": 64, "width": 64}).save_pretrained(folder)
    found = {tuple(colour) for colour in check("segmentation", tmp_path).reshape(-1, 3).tolist()}
    assert found <= {tuple(colour) for colour in ade_palette()}


# weights


class _Bomb:
    def __init__(self, mark: Path) -> None:
        self._mark = mark

    def __reduce__(self) -> Any:
        return Path.touch, (self._mark,)


def test_no_code_in_a_file_is_run(small: Path, tmp_path: Path) -> None:
    mark = tmp_path / "it ran"
    tensors = mlsd().state_dict()
    for name, write in {
        "a torch file": lambda path: torch.save({**tensors, "bomb": _Bomb(mark)}, path),
        "a bare pickle": lambda path: path.write_bytes(pickle.dumps(_Bomb(mark))),
        "an old torch file": lambda path: torch.save(_Bomb(mark), path, _use_new_zipfile_serialization=False),
    }.items():
        write(tmp_path / "mlsd_large_512_fp32.pth")
        with pytest.raises(
            ValueError, match=r"mlsd cannot be used: mlsd_large_512_fp32\.pth is damaged, or holds more"
        ):
            detect(picture(), None, MapValues("mlsd", 64), Annotators((tmp_path,)))
        assert not mark.exists(), name


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "is damaged"),
        (b"PK\x03\x04 not quite a zip", "is damaged"),
        ([1, 2], "holds no network's weights"),
        ({"state_dict": {"a": 1}}, "holds no network's weights"),
        ({"a": torch.zeros(1)}, "belongs to another network"),
    ],
)
def test_what_is_no_network_is_named(content: Any, said: str, tmp_path: Path) -> None:
    path = tmp_path / "mlsd_large_512_fp32.pth"
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        torch.save(content, path)
    with pytest.raises(ValueError, match=f"mlsd_large_512_fp32.pth {said}") as refused:
        detect(picture(), None, MapValues("mlsd", 64), Annotators((tmp_path,)))
    assert "\n" not in str(refused.value)


def test_a_truncated_file_is_named(small: Path, tmp_path: Path) -> None:
    whole = (small / "table5_pidinet.pth").read_bytes()
    (tmp_path / "table5_pidinet.pth").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match=r"softedge_pidinet cannot be used: table5_pidinet\.pth is damaged"):
        detect(picture(), None, MapValues("pidinet", 64), Annotators((tmp_path,)))


def test_safetensors_hold_the_same_weights(small: Path, tmp_path: Path) -> None:
    save_file(read_weights(small / "table5_pidinet.pth"), tmp_path / "table5_pidinet.safetensors")
    assert check("pidinet", tmp_path).tobytes() == check("pidinet", small).tobytes()


def test_a_failure_in_a_network_names_the_preprocessor(small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: Any) -> Any:
        raise RuntimeError("no such\noperator")

    kind = annotators._KINDS["mlsd"]
    monkeypatch.setitem(annotators._KINDS, "mlsd", kind._replace(run=fails))
    with pytest.raises(ValueError, match=r"^mlsd failed on this picture \(RuntimeError: no such\)$"):
        detect(picture(), None, MapValues("mlsd", 64), Annotators((small,)))


# people


class _Ideal(torch.nn.Module):
    """In place of OpenPose's body network: the heat and the part affinities of one person, as it would see them."""

    LIMBS: tuple[tuple[int, int], ...] = (
        (2, 3),
        (2, 6),
        (3, 4),
        (4, 5),
        (6, 7),
        (7, 8),
        (2, 9),
        (9, 10),
        (10, 11),
        (2, 12),
        (12, 13),
        (13, 14),
    )
    LIMBS += ((2, 1), (1, 15), (15, 17), (1, 16), (16, 18), (3, 17), (6, 18))
    FIELDS = (12, 20, 14, 16, 22, 24, 0, 2, 4, 6, 8, 10, 28, 30, 34, 32, 36, 18, 26)

    def __init__(self, joints: np.ndarray) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self._joints = joints

    def forward(self, picture: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        height, width = picture.shape[2] // 8, picture.shape[3] // 8
        rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
        at = torch.from_numpy(self._joints).float() * torch.tensor([width, height]) - 0.5
        heat = torch.zeros(1, 19, height, width)
        for n, (x, y) in enumerate(at):
            heat[0, n] = torch.exp(-((columns - x) ** 2 + (rows - y) ** 2) / 2)
        fields = torch.zeros(1, 38, height, width)
        for (a, b), field in zip(self.LIMBS, self.FIELDS, strict=True):
            way = at[b - 1] - at[a - 1]
            fields[0, field], fields[0, field + 1] = way / way.norm().clamp(min=1e-6)
        return fields, heat


def figure() -> np.ndarray:
    """Joints of somebody who stands in the middle, (18, 2), in parts of the picture."""
    points = [(0.5, 0.2), (0.5, 0.3), (0.4, 0.3), (0.35, 0.45), (0.3, 0.58), (0.6, 0.3), (0.65, 0.45), (0.7, 0.58)]
    points += [(0.45, 0.55), (0.44, 0.72), (0.43, 0.9), (0.55, 0.55), (0.56, 0.72), (0.57, 0.9)]
    return np.array([*points, (0.46, 0.16), (0.54, 0.16), (0.41, 0.19), (0.59, 0.19)])


def test_a_person_is_found_where_it_is(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """All of it but the network: the search for joints, the padding, the drawing."""
    size = (560, 520)  # 1.04 of what is padded to 576 x 576
    part = figure() * (size[0] / 576, size[1] / 576)

    from controlnet_aux.open_pose import OpenposeDetector
    from controlnet_aux.open_pose.body import Body

    def loaded(*_: Any) -> _People:
        people = object.__new__(_People)
        torch.nn.Module.__init__(people)
        body = object.__new__(Body)
        body.model = _Ideal(part)
        people.has_hands, people.has_faces = False, False
        people._detector = OpenposeDetector(body)
        return people

    (tmp_path / "body_pose_model.pth").touch()
    kind = annotators._KINDS["openpose"]
    monkeypatch.setitem(annotators._KINDS, "openpose", kind._replace(load=loaded))
    made = detect(picture(*size), None, MapValues("openpose", 520), Annotators((tmp_path,)))
    assert made.picture.size == size
    assert made.pose
    (person,) = made.pose.people
    for found, (x, y) in zip(person.body, figure(), strict=True):
        assert found
        assert abs(found.x - x) < 0.02
        assert abs(found.y - y) < 0.02
    drawn = np.asarray(made.picture)
    for start, end in LIMBS:
        x, y = (figure()[start] + figure()[end]) / 2 * size
        assert drawn[round(y) - 6 : round(y) + 7, round(x) - 6 : round(x) + 7].any()


@pytest.mark.slow
@pytest.mark.parametrize("module", [m.name for m in TABLE.values() if m.name.startswith("openpose")])
def test_the_networks_of_openpose_are_read_from_their_files(module: str, tmp_path: Path) -> None:
    from controlnet_aux.open_pose.face import FaceNet
    from controlnet_aux.open_pose.model import bodypose_model, handpose_model

    def bare(weights: dict[str, Any]) -> dict[str, Any]:
        return {name.partition(".")[2]: tensor for name, tensor in weights.items()}

    files = {"body_pose_model.pth": (bodypose_model, bare), "hand_pose_model.pth": (handpose_model, bare)}
    for name, how in {**files, "facenet.pth": (FaceNet, lambda weights: weights)}.items():
        if name in TABLE[module].needs:
            save(tmp_path / name, *how)
    made = detect(picture(), None, MapValues(module, 64), Annotators((tmp_path,)))
    assert made.pose
    assert made.picture.size == (96, 64)
    assert not made.pose.people  # random weights see nobody


def test_sliders_reach_the_network(small: Path) -> None:
    given = np.asarray(picture(128, 64))
    coarse, fine = (
        annotate(TABLE["softedge_teed"], given, Sliders(steps, 0), Annotators((small,))) for steps in (1, 10)
    )
    assert isinstance(coarse, np.ndarray)
    assert isinstance(fine, np.ndarray)
    assert len(np.unique(coarse)) < len(np.unique(fine))


# in memory


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The files that are read."""
    found: list[str] = []

    def reading(path: Path) -> Any:
        found.append(path.name)
        return read_weights(path)

    monkeypatch.setattr(annotators, "read_weights", reading)
    return found


def test_a_network_is_read_once_and_lies_with_the_models(small: Path, reads: list[str]) -> None:
    store = ModelStore(torch.device("cpu"))
    there = Annotators((small,), store.keep)
    for resolution in (64, 96):
        detect(picture(), None, MapValues("pidinet", resolution), there)
        detect(picture(), None, MapValues("pidinet_sketch", resolution), there)
    assert reads == ["table5_pidinet.pth"]
    store.free_others(None)  # as when there is no memory left
    detect(picture(), None, MapValues("pidinet", 64), there)
    assert len(reads) == 2


def test_the_network_used_longest_ago_makes_room(small: Path, reads: list[str]) -> None:
    sizes = {name: (small / name).stat().st_size for name in ("mlsd_large_512_fp32.pth", "sk_model.pth")}
    store = ModelStore(torch.device("cpu"), Budget(int(max(sizes.values()) * 1.2)))
    there = Annotators((small,), store.keep)
    for module in ("mlsd", "mlsd", "lineart", "mlsd"):
        detect(picture(), None, MapValues(module, 64), there)
    assert reads == ["mlsd_large_512_fp32.pth", "sk_model.pth", "mlsd_large_512_fp32.pth"]


def test_the_engine_holds_what_a_request_and_a_preview_need(small: Path, tmp_path: Path, reads: list[str]) -> None:
    models = tmp_path / "models"
    models.mkdir()
    (models / "annotators").symlink_to(small)
    (models / "starter").symlink_to(ROOT / "models" / "starter")
    with Studio(Path(annotators.__file__).parent, models=models) as studio:
        image, extension = studio.image(picture()), studio.extension
        extension.images = studio.images
        for resolution in (64, 96):
            unit = {"module": "pidinet", "model": "starter_canny", "image": image, "processor_res": resolution}
            request = studio.request(extensions={"controlnet": {"units": [unit]}})
            extension.prepare(request, request.extensions["controlnet"], studio.images)
        extension.errand("detect", preview.Wish(image, None, MapValues("pidinet", 72)).written())
        assert reads == ["table5_pidinet.pth"]
        studio.engine.store.free()
        extension.errand("detect", preview.Wish(image, None, MapValues("pidinet", 80)).written())
        assert len(reads) == 2
