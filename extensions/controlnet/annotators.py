"""Preprocessors with weights: networks of controlnet-aux and transformers, DWPose; never loaded from a pickle's code.

Each network is built here and given a state dict that `read_weights` has read; the loaders of controlnet-aux, which
unpickle whatever they find and look for it in the hub, are not used. The detectors of controlnet-aux are shown the
picture padded to multiples of 64, which they leave at its size.
"""

from __future__ import annotations

import functools
import logging
import pickle
import types
import warnings
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from backend.errors import gist

from .pose import FACE, Person, Point, Points, Pose
from .preprocessors import Annotators, Preprocessor, located
from .weightless import Pixels, Sliders, padded

log = logging.getLogger(__name__)

Weights = dict[str, torch.Tensor]
Found = Pixels | Pose
Detector = Any
"""A detector of controlnet-aux, or a network."""


def annotate(module: Preprocessor, picture: Pixels, sliders: Sliders, annotators: Annotators) -> Found:
    """The map of a picture, of its size, or the people in it.

    Raises ValueError with a sentence that names the module.
    """
    files = located(module, annotators)
    height, width = picture.shape[:2]
    try:
        kind, keep = _KINDS[module.name], annotators.keep or _read
        detector = keep(files[0], lambda _: _quietly(kind.load, files), beside=files[1:], dtype=torch.float32)
        if any(weight.device.type == "mps" for weight in detector.parameters()):
            detector.to("cpu")  # it lacks what some of them need
        with torch.inference_mode():
            found = kind.run(detector, padded(picture) if kind.pads else picture, sliders)
    except _Unusable as error:
        raise ValueError(f"{module.label} cannot be used: {error}") from error
    except (MemoryError, torch.OutOfMemoryError):  # the job is tried again with less
        raise
    except Exception as error:  # whatever a network's code raises over a picture
        if "CUDA error" in str(error):  # only a new process helps
            raise
        log.exception("the annotator %s failed", module.name)
        raise ValueError(f"{module.label} failed on this picture ({type(error).__name__}: {gist(error)})") from error
    if isinstance(found, Pose):
        return _without_padding(found, width, height)
    return found[:height, :width]


# weights


class _Unusable(Exception):
    """Weights that cannot be read."""


def read_weights(path: Path) -> Weights:
    """Tensors by name, from .safetensors or a file of torch.save; nothing in it is run. Raises _Unusable."""
    try:
        if path.suffix == ".safetensors":
            found: Any = load_file(path)
        else:
            found = torch.load(path, map_location="cpu", weights_only=True)
    except (SafetensorError, pickle.UnpicklingError, EOFError, OSError, RuntimeError, ValueError, KeyError) as error:
        raise _Unusable(f"{path.name} is damaged, or holds more than tensors ({gist(error)})") from error
    for name in ("state_dict", "model", "depth_model"):
        if isinstance(found, Mapping) and isinstance(found.get(name), Mapping):
            found = found[name]
    if not isinstance(found, Mapping) or not all(isinstance(t, torch.Tensor) for t in found.values()):
        raise _Unusable(f"{path.name} holds no network's weights")
    return {str(name).removeprefix("module."): tensor for name, tensor in found.items()}


def _filled(
    network: torch.nn.Module, path: Path, rename: Callable[[Weights, Iterable[str]], Weights] = lambda w, wanted: w
) -> Any:
    """The network with the file's weights, ready to be used."""
    wanted = network.state_dict()
    weights = rename(read_weights(path), wanted)
    lacking = [name for name in wanted if name not in weights and not name.endswith("num_batches_tracked")]
    other = [name for name, tensor in wanted.items() if name in weights and weights[name].shape != tensor.shape]
    if lacking or other:
        raise _Unusable(f"{path.name} belongs to another network (it has no fitting {(lacking + other)[0]})")
    network.load_state_dict({name: weights[name] for name in wanted if name in weights}, strict=False)
    return network.float().eval()


def _quietly(load: Callable[..., Detector], files: tuple[Path, ...]) -> Detector:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # controlnet-aux tells of each package that it could do more with
        return load(*files)


def _read(path: Path, read: Callable[[Path], Detector], **_: object) -> Detector:
    return read(path)


# edges and lines


def _hed(path: Path) -> Detector:
    from controlnet_aux.hed import ControlNetHED_Apache2, HEDdetector

    return _Detector(HEDdetector, _filled(ControlNetHED_Apache2(), path))


def _pidinet(path: Path) -> Detector:
    from controlnet_aux.pidi import PidiNetDetector
    from controlnet_aux.pidi.model import pidinet

    return _Detector(PidiNetDetector, _filled(pidinet(), path))


def _teed(path: Path) -> Detector:
    from controlnet_aux.teed import TEEDdetector
    from controlnet_aux.teed.ted import TED

    return _Detector(TEEDdetector, _filled(TED(), path))


def _lineart(path: Path) -> Detector:
    from controlnet_aux.lineart import Generator, LineartDetector

    return _Detector(lambda net: LineartDetector(net, net), _filled(Generator(3, 1, 3), path))


def _lineart_anime(path: Path) -> Detector:
    from controlnet_aux.lineart_anime import LineartAnimeDetector, UnetGenerator

    norm = functools.partial(torch.nn.InstanceNorm2d, affine=False, track_running_stats=False)
    return _Detector(LineartAnimeDetector, _filled(UnetGenerator(3, 1, 8, 64, norm_layer=norm), path))


def _mlsd(path: Path) -> Detector:
    from controlnet_aux.mlsd.models.mbv2_mlsd_large import MobileV2_MLSD_Large

    return _filled(MobileV2_MLSD_Large(), path)


def _lines(network: Detector, picture: Pixels, sliders: Sliders) -> Pixels:
    """White straight lines; MLSDdetector would pass over whatever goes wrong."""
    from controlnet_aux.mlsd.utils import pred_lines

    drawn = np.zeros_like(picture)
    try:
        lines = pred_lines(picture, network, [picture.shape[0], picture.shape[1]], sliders.a, sliders.b)
    except IndexError:  # how it says that there are none
        return drawn
    for x1, y1, x2, y2 in lines.astype(int).tolist():
        cv2.line(drawn, (x1, y1), (x2, y2), (255, 255, 255), 1)
    return drawn


class _Detector(torch.nn.Module):
    """A detector of controlnet-aux around its network, asked for maps of the size of what it is given."""

    def __init__(self, make: Callable[[torch.nn.Module], Any], network: torch.nn.Module) -> None:
        super().__init__()
        self.detector = make(network)
        self._network = network

    def forward(self, picture: Pixels, **options: Any) -> Pixels:
        side = min(picture.shape[:2])
        return self._whole(self.detector(picture, detect_resolution=side, output_type="np", **options))

    def at_both(self, picture: Pixels, **options: Any) -> Pixels:
        """For those that take a second resolution, of what they give back."""
        return self(picture, image_resolution=min(picture.shape[:2]), **options)

    @staticmethod
    def _whole(found: Any) -> Pixels:
        assert found.dtype == np.uint8
        return np.asarray(found if found.ndim == 3 else np.repeat(found[:, :, None], 3, axis=2))


def _with(**options: Any) -> Callable[[Detector, Pixels, Sliders], Found]:
    return lambda detector, picture, sliders: detector.at_both(picture, **options)


def _teed_map(detector: Detector, picture: Pixels, sliders: Sliders) -> Found:
    return np.asarray(detector(picture, safe_steps=int(sliders.a)))


# depth and normals


def _midas(path: Path) -> Detector:
    from controlnet_aux.midas import MidasDetector
    from controlnet_aux.midas.midas.dpt_depth import DPTDepthModel

    network = DPTDepthModel(path=None, backbone="vitb_rn50_384", non_negative=True)
    return _Detector(MidasDetector, _filled(network, path))


def _normal_midas(detector: Detector, picture: Pixels, sliders: Sliders) -> Found:
    side = min(picture.shape[:2])
    both = detector.detector(
        picture, bg_th=sliders.a, depth_and_normal=True, detect_resolution=side, image_resolution=side
    )
    return np.asarray(both[1])


def _zoe(path: Path) -> Detector:
    from controlnet_aux.zoe import ZoeDepth, ZoeDetector, get_config

    return _Detector(ZoeDetector, _filled(ZoeDepth.build_from_config(get_config("zoedepth", "infer")), path))


def _leres(path: Path) -> Detector:
    from controlnet_aux.leres import LeresDetector
    from controlnet_aux.leres.leres.multi_depth_model_woauxi import RelDepthModel

    return _Detector(lambda net: LeresDetector(net, None), _filled(RelDepthModel(backbone="resnext101"), path))


def _leres_map(detector: Detector, picture: Pixels, sliders: Sliders) -> Found:
    return np.asarray(detector.at_both(picture, thr_a=sliders.a, thr_b=sliders.b))


def _normal_bae(path: Path) -> Detector:
    from controlnet_aux.normalbae import NormalBaeDetector
    from controlnet_aux.normalbae.nets.NNET import NNET

    how = types.SimpleNamespace(
        mode="client", architecture="BN", pretrained="scannet", sampling_ratio=0.4, importance_ratio=0.7
    )
    return _Detector(NormalBaeDetector, _filled(NNET(how), path))


class _Transformer(torch.nn.Module):
    """A model of transformers with its processor, from a folder."""

    def __init__(self, kind: str, folder: Path) -> None:
        import transformers

        super().__init__()
        try:
            how: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
            self._process = transformers.AutoImageProcessor.from_pretrained(folder, **how)
            self._network = getattr(transformers, kind).from_pretrained(folder, use_safetensors=True, **how).eval()
        except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
            raise _Unusable(f"{folder.name} is damaged or of another kind ({gist(error)})") from error

    def forward(self, picture: Pixels) -> Any:
        inputs = self._process(images=picture, return_tensors="pt").to(self._network.device)
        return self._network(**inputs)


def _transformer(kind: str) -> Callable[..., Detector]:
    return functools.partial(_of_folder, kind)


def _of_folder(kind: str, *files: Path) -> Detector:
    return _Transformer(kind, files[0].parent)


def _nearness(detector: Detector, picture: Pixels, sliders: Sliders) -> Found:
    """White is near."""
    height, width = picture.shape[:2]
    depth = detector(picture).predicted_depth[:, None]
    depth = torch.nn.functional.interpolate(depth, (height, width), mode="bicubic", align_corners=False)[0, 0]
    low, high = depth.aminmax()
    grey = ((depth - low) / (high - low).clamp(min=torch.finfo(depth.dtype).tiny) * 255).round().byte().cpu().numpy()
    return np.repeat(grey[:, :, None], 3, axis=2)


def _segments(detector: Detector, picture: Pixels, sliders: Sliders) -> Found:
    """The classes of ADE20K in its colours."""
    from controlnet_aux.util import ade_palette

    height, width = picture.shape[:2]
    logits = torch.nn.functional.interpolate(detector(picture).logits, (height, width), mode="bilinear")
    classes = logits.argmax(dim=1)[0].cpu().numpy()
    palette = np.asarray(ade_palette(), np.uint8)
    return np.asarray(palette[classes % len(palette)])


# people


class _People(torch.nn.Module):
    """The three networks of OpenPose; two of them may lack."""

    def __init__(self, body: Path, hand: Path | None = None, face: Path | None = None) -> None:
        from controlnet_aux.open_pose import OpenposeDetector

        super().__init__()
        self._networks = torch.nn.ModuleList()
        self.has_hands, self.has_faces = hand is not None, face is not None
        self._detector = OpenposeDetector(self._part("Body", body), self._part("Hand", hand), self._part("Face", face))

    def _part(self, name: str, path: Path | None) -> Any:
        from controlnet_aux.open_pose import body, face, hand

        if path is None:
            return None
        kind, network = {
            "Body": (body.Body, body.bodypose_model),
            "Hand": (hand.Hand, hand.handpose_model),
            "Face": (face.Face, face.FaceNet),
        }[name]
        part = object.__new__(kind)  # its constructor unpickles
        part.model = _filled(network(), path, _with_blocks)
        self._networks.append(part.model)
        return part

    def forward(self, picture: Pixels) -> Pose:
        found = self._detector.detect_poses(picture, self.has_hands, self.has_faces)
        people = tuple(
            Person(_points(one.body.keypoints), _points(one.left_hand), _points(one.right_hand), _face(one.face))
            for one in found
        )
        return Pose(people, picture.shape[1], picture.shape[0])


def _with_blocks(weights: Weights, wanted: Iterable[str]) -> Weights:
    """The files name layers alone (`conv1_1.weight`), the networks some with their block (`model0.conv1_1.weight`)."""
    full = {name.partition(".")[2]: name for name in wanted if name.count(".") > 1}
    return {full.get(name, name): tensor for name, tensor in weights.items()}


def _points(found: Any) -> Points:
    """A hand's missing points are negative, a body's None."""
    return tuple(Point(float(p.x), float(p.y)) if p is not None and p.x >= 0 <= p.y else None for p in found or ())


def _face(found: Any) -> Points:
    """The network leaves out what it does not see; which ones these are is lost."""
    points = _points(found)[:FACE]
    return (*points, *[None] * (FACE - len(points))) if points else ()


def _openpose_of(body: Path, *others: Path) -> Detector:
    by_stem = {path.stem: path for path in others}
    return _People(body, by_stem.get("hand_pose_model"), by_stem.get("facenet"))


def _pose(detector: Detector, picture: Pixels, sliders: Sliders) -> Found:
    found: Pose = detector(picture)
    return found


def _faces(detector: Detector, picture: Pixels, sliders: Sliders) -> Found:
    found: Pose = detector(picture)
    return Pose(tuple(Person(face=one.face) for one in found.people if one.face), found.width, found.height)


class _DWPose(torch.nn.Module):
    """It runs in onnxruntime, on the processor, whatever the others do."""

    def __init__(self, people: Path, points: Path) -> None:
        from .dwpose import DWPose

        super().__init__()
        try:
            self._find = DWPose(people, points, torch.get_num_threads())
        except Exception as error:  # onnxruntime's errors have no class of their own in common
            raise _Unusable(f"its files are damaged or of another kind ({gist(error)})") from error

    def forward(self, picture: Pixels) -> Pose:
        return self._find(picture)


def _without_padding(pose: Pose, width: int, height: int) -> Pose:
    def moved(points: Points) -> Points:
        x, y = pose.width / width, pose.height / height
        return tuple(Point(p.x * x, p.y * y) if p else None for p in points)

    people = tuple(Person(moved(p.body), moved(p.left_hand), moved(p.right_hand), moved(p.face)) for p in pose.people)
    return Pose(people, width, height)


class _Kind(NamedTuple):
    load: Callable[..., Detector]
    run: Callable[[Detector, Pixels, Sliders], Found]
    pads: bool = True


_DEPTH_ANYTHING = _Kind(_transformer("DepthAnythingForDepthEstimation"), _nearness, pads=False)
_KINDS: Mapping[str, _Kind] = {
    "openpose": _Kind(_openpose_of, _pose),
    "dw_openpose_full": _Kind(_DWPose, _pose, pads=False),
    "openpose_hand": _Kind(_openpose_of, _pose),
    "openpose_face": _Kind(_openpose_of, _pose),
    "openpose_full": _Kind(_openpose_of, _pose),
    "openpose_faceonly": _Kind(_openpose_of, _faces),
    "depth": _Kind(_midas, _with()),
    "depth_zoe": _Kind(_zoe, _with()),
    "depth_leres": _Kind(_leres, _leres_map),
    "depth_anything": _DEPTH_ANYTHING,
    "depth_anything_v2": _DEPTH_ANYTHING,
    "normal_bae": _Kind(_normal_bae, _with()),
    "normal_map": _Kind(_midas, _normal_midas),
    "lineart": _Kind(_lineart, _with()),
    "lineart_coarse": _Kind(_lineart, _with()),
    "lineart_anime": _Kind(_lineart_anime, _with()),
    "pidinet": _Kind(_pidinet, _with()),
    "pidinet_safe": _Kind(_pidinet, _with(safe=True)),
    "pidinet_scribble": _Kind(_pidinet, _with(scribble=True)),
    "pidinet_sketch": _Kind(_pidinet, _with(apply_filter=True)),
    "hed": _Kind(_hed, _with()),
    "hed_safe": _Kind(_hed, _with(safe=True)),
    "scribble_hed": _Kind(_hed, _with(scribble=True)),
    "softedge_teed": _Kind(_teed, _teed_map),
    "mlsd": _Kind(_mlsd, _lines),
    "segmentation": _Kind(_transformer("UperNetForSemanticSegmentation"), _segments, pads=False),
}
