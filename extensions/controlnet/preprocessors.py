"""The table of preprocessors: names, sliders, and the files that they need; imports without torch.

Names, labels, order and sliders are those of sd-webui-controlnet 1.1.455. What cannot run here is not in it.
"""

from __future__ import annotations

import glob
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, NamedTuple

from backend.catalog.roots import Roots
from backend.extension import Choice, Facet

if TYPE_CHECKING:
    from backend.diffusion.run import Keep

FOLDER = "annotators"
"""In the models folder."""

RESOLUTION = Facet("Preprocessor resolution", 512, 64, 2048, 8)
"""Of the shorter side, in pixels."""


@dataclass(frozen=True)
class Source:
    """Where people find a file: a repository of huggingface.co, and the file in it."""

    repo: str
    path: str

    @property
    def page(self) -> str:
        return f"https://huggingface.co/{self.repo}/blob/main/{self.path}"


@dataclass(frozen=True)
class Preprocessor:
    name: str
    label: str
    types: tuple[str, ...] = ()
    """Control types that it belongs to: `Canny`, `OpenPose`."""
    resolution: Facet | None = RESOLUTION
    """None: it works at the size of the picture."""
    threshold_a: Facet | None = None
    threshold_b: Facet | None = None
    needs: tuple[str, ...] = ()
    """Files below models/annotators. A .safetensors of the same stem does as well."""
    larger: tuple[str, ...] = ()
    """Folders that do in place of the one in `needs`, best first."""
    needs_mask: bool = False
    is_pose: bool = False
    """It finds people, whom the pose editor can change."""
    is_finishing: bool = False
    """Its map is half of it: `weightless.finished` works on the drawn picture."""
    is_default: bool = False
    """The one that its control type begins with."""

    @property
    def type(self) -> str:
        """The first of its control types; empty for none."""
        return self.types[0] if self.types else ""

    @property
    def is_weightless(self) -> bool:
        """It needs no torch and runs in the web process."""
        return not self.needs

    def resolved(self, resolution: float, a: float, b: float) -> tuple[int, float, float]:
        """The sliders as they apply: what lies outside a slider's range, such as -1, stands for its default."""
        return int(_within(self.resolution, resolution)), _within(self.threshold_a, a), _within(self.threshold_b, b)


def _within(facet: Facet | None, value: float) -> float:
    if facet is None:
        return 0
    return value if facet.ge <= value <= facet.le else facet.default


_HED = ("ControlNetHED.pth",)
_PIDI = ("table5_pidinet.pth",)
_MIDAS = ("dpt_hybrid-midas-501f0c75.pt",)
_DWPOSE = ("yolox_l.onnx", "dw-ll_ucoco_384.onnx")
_BODY, _HAND, _FACE = "body_pose_model.pth", "hand_pose_model.pth", "facenet.pth"
_LINES = ("Lineart",)
_DEPTH = ("Depth",)
_SOFT = ("SoftEdge",)
_SCRIBBLE = ("Scribble",)
_POSE = ("OpenPose",)
_TILE = ("Tile",)
_VARIATION = Facet("Variation", 8, 3, 32)
_GAMMA = Facet("Gamma correction", 1, 0.1, 2, 0.001)
_NEAR, _BACKGROUND = Facet("Remove near %", 0, 0, 100, 0.1), Facet("Remove background %", 0, 0, 100, 0.1)


def _folder(name: str, *also: str) -> tuple[str, ...]:
    return tuple(f"{name}/{file}" for file in ("config.json", "preprocessor_config.json", "model.safetensors", *also))


_ALL = (
    Preprocessor("none", "none", resolution=None, is_default=True),
    Preprocessor(
        "canny",
        "canny",
        ("Canny",),
        threshold_a=Facet("Canny low threshold", 100, 1, 255),
        threshold_b=Facet("Canny high threshold", 200, 1, 255),
        is_default=True,
    ),
    Preprocessor(
        "invert", "invert (from white bg & black line)", ("Canny", "Lineart", "Scribble", "MLSD"), resolution=None
    ),
    Preprocessor("openpose_full", "openpose_full", _POSE, needs=(_BODY, _HAND, _FACE), is_pose=True, is_default=True),
    Preprocessor("openpose", "openpose", _POSE, needs=(_BODY,), is_pose=True),
    Preprocessor("openpose_hand", "openpose_hand", _POSE, needs=(_BODY, _HAND), is_pose=True),
    Preprocessor("openpose_face", "openpose_face", _POSE, needs=(_BODY, _FACE), is_pose=True),
    Preprocessor("openpose_faceonly", "openpose_faceonly", _POSE, needs=(_BODY, _FACE), is_pose=True),
    Preprocessor("dw_openpose_full", "dw_openpose_full", _POSE, needs=_DWPOSE, is_pose=True),
    Preprocessor("depth", "depth_midas", _DEPTH, needs=_MIDAS, is_default=True),
    Preprocessor("depth_zoe", "depth_zoe", _DEPTH, needs=("ZoeD_M12_N.pt",)),
    Preprocessor(
        "depth_leres", "depth_leres", _DEPTH, threshold_a=_NEAR, threshold_b=_BACKGROUND, needs=("res101.pth",)
    ),
    Preprocessor(
        "depth_anything",
        "depth_anything",
        _DEPTH,
        needs=_folder("depth-anything-small-hf"),
        larger=("depth-anything-large-hf", "depth-anything-base-hf"),
    ),
    Preprocessor(
        "depth_anything_v2",
        "depth_anything_v2",
        _DEPTH,
        needs=_folder("Depth-Anything-V2-Small-hf"),
        larger=("Depth-Anything-V2-Large-hf", "Depth-Anything-V2-Base-hf"),
    ),
    Preprocessor("normal_bae", "normal_bae", ("NormalMap",), needs=("scannet.pt",), is_default=True),
    Preprocessor(
        "normal_map",
        "normal_midas",
        ("NormalMap",),
        threshold_a=Facet("Background threshold", 0.4, 0, 1, 0.01),
        needs=_MIDAS,
    ),
    Preprocessor("lineart_standard", "lineart_standard (from white bg & black line)", _LINES, is_default=True),
    Preprocessor("lineart", "lineart_realistic", _LINES, needs=("sk_model.pth",)),
    Preprocessor("lineart_coarse", "lineart_coarse", _LINES, needs=("sk_model2.pth",)),
    Preprocessor("lineart_anime", "lineart_anime", _LINES, needs=("netG.pth",)),
    Preprocessor("pidinet", "softedge_pidinet", _SOFT, needs=_PIDI, is_default=True),
    Preprocessor("pidinet_safe", "softedge_pidisafe", _SOFT, needs=_PIDI),
    Preprocessor("hed", "softedge_hed", _SOFT, needs=_HED),
    Preprocessor("hed_safe", "softedge_hedsafe", _SOFT, needs=_HED),
    Preprocessor(
        "softedge_teed",
        "softedge_teed",
        _SOFT,
        threshold_a=Facet("Safe steps", 2, 0, 10),
        needs=("5_model.pth",),
    ),
    Preprocessor("pidinet_scribble", "scribble_pidinet", _SCRIBBLE, needs=_PIDI, is_default=True),
    Preprocessor("scribble_hed", "scribble_hed", _SCRIBBLE, needs=_HED),
    Preprocessor("scribble_xdog", "scribble_xdog", _SCRIBBLE, threshold_a=Facet("XDoG threshold", 32, 1, 64)),
    Preprocessor(
        "mlsd",
        "mlsd",
        ("MLSD",),
        threshold_a=Facet("MLSD value threshold", 0.1, 0.01, 2, 0.01),
        threshold_b=Facet("MLSD distance threshold", 0.1, 0.01, 20, 0.01),
        needs=("mlsd_large_512_fp32.pth",),
        is_default=True,
    ),
    Preprocessor(
        "segmentation",
        "seg_ufade20k",
        ("Segmentation",),
        needs=_folder("upernet-convnext-small"),
        is_default=True,
    ),
    Preprocessor(
        "inpaint_only",
        "inpaint_only",
        ("Inpaint",),
        resolution=None,
        needs_mask=True,
        is_finishing=True,
        is_default=True,
    ),
    Preprocessor("inpaint", "inpaint_global_harmonious", ("Inpaint",), resolution=None, needs_mask=True),
    Preprocessor(
        "tile_resample",
        "tile_resample",
        _TILE,
        resolution=None,
        threshold_a=Facet("Down sampling rate", 1, 1, 8, 0.01),
        is_default=True,
    ),
    Preprocessor("tile_colorfix", "tile_colorfix", _TILE, resolution=None, threshold_a=_VARIATION, is_finishing=True),
    Preprocessor(
        "tile_colorfix+sharp",
        "tile_colorfix+sharp",
        _TILE,
        resolution=None,
        threshold_a=_VARIATION,
        threshold_b=Facet("Sharpness", 1, 0, 2, 0.01),
        is_finishing=True,
    ),
    Preprocessor("blur_gaussian", "blur_gaussian", _TILE, threshold_a=Facet("Sigma", 9, 0.01, 64, 0.01)),
    Preprocessor("shuffle", "shuffle", ("Shuffle",), is_default=True),
    Preprocessor(
        "recolor_luminance",
        "recolor_luminance",
        ("Recolor",),
        resolution=None,
        threshold_a=_GAMMA,
        is_finishing=True,
        is_default=True,
    ),
    Preprocessor(
        "recolor_intensity",
        "recolor_intensity",
        ("Recolor",),
        resolution=None,
        threshold_a=_GAMMA,
        is_finishing=True,
    ),
    Preprocessor("color", "t2ia_color_grid", ("T2I-Adapter",), is_default=True),
    Preprocessor("pidinet_sketch", "t2ia_sketch_pidi", ("T2I-Adapter",), needs=_PIDI),
    Preprocessor("threshold", "threshold", threshold_a=Facet("Binarization threshold", 127, 0, 255)),
)

TABLE: Mapping[str, Preprocessor] = MappingProxyType({p.name: p for p in _ALL})

OLDER: Mapping[str, str] = MappingProxyType(
    {
        "": "none",
        "None": "none",
        "depth_midas": "depth",
        "fake_scribble": "scribble_hed",
        "scribble": "pidinet_scribble",
        "binary": "threshold",
        "te_hed": "softedge_teed",
        "tile_gaussian": "tile_resample",
        "openpose_body": "openpose",
        "dwpose": "dw_openpose_full",
        "oneformer_ade20k": "segmentation",
        "seg_ofade20k": "segmentation",
    }
)
"""Names that older clients send, and those of preprocessors for which another one stands in."""

_ANNOTATORS = "lllyasviel/Annotators"
_ELSEWHERE = {
    **{file: Source("yzd-v/DWPose", file) for file in _DWPOSE},
    "5_model.pth": Source("fal-ai/teed", "5_model.pth"),
    "depth-anything-small-hf": Source("LiheYoung/depth-anything-small-hf", ""),
    "Depth-Anything-V2-Small-hf": Source("depth-anything/Depth-Anything-V2-Small-hf", ""),
    "upernet-convnext-small": Source("openmmlab/upernet-convnext-small", ""),
}


def find(name: str) -> Preprocessor:
    """By name, label, or a name that older clients use. Raises ValueError."""
    key = OLDER.get(name, name)
    found = TABLE.get(key) or next((p for p in _ALL if p.label == key), None)
    if found is None:
        raise ValueError(f"{name!r} is not a preprocessor; known are {', '.join(TABLE)}")
    return found


def choices() -> list[Choice]:
    return [(p.name, p.label) for p in _ALL]


def control_types() -> dict[str, list[Preprocessor]]:
    """The preprocessors of each control type, the one that it begins with first; `none` is in all of them."""
    types = dict.fromkeys(t for p in _ALL for t in p.types)
    return {
        t: [
            *sorted((p for p in _ALL if t in p.types), key=lambda p: not (p.is_default and p.type == t)),
            TABLE["none"],
        ]
        for t in types
    }


def source(file: str) -> Source:
    """Where the public keeps a file of `needs`."""
    folder, _, rest = file.partition("/")
    if not rest:
        return _ELSEWHERE.get(file, Source(_ANNOTATORS, file))
    return Source(_ELSEWHERE[folder].repo, rest)


class Annotators(NamedTuple):
    """Where weights of preprocessors are, and who has them in memory."""

    folders: tuple[Path, ...]
    """Ours first."""
    keep: Keep | None = None
    """None: they are read anew each time."""

    @classmethod
    def of(cls, roots: Roots, keep: Keep | None = None) -> Annotators:
        others = (place.folder for place in roots.places("annotator"))
        return cls(tuple(dict.fromkeys([roots.models / FOLDER, *others])), keep)


def located(preprocessor: Preprocessor, annotators: Annotators) -> tuple[Path, ...]:
    """The files that it reads, present or not: a larger folder first, and where all of them are in one place."""
    larger = ([f"{folder}/{Path(file).name}" for file in preprocessor.needs] for folder in preprocessor.larger)
    for files in (*larger, preprocessor.needs):
        for home in annotators.folders:
            paths = tuple(_best(home, file) for file in files)
            if all(path.is_file() for path in paths):
                return paths
    places = ([_best(home, file) for home in annotators.folders] for file in preprocessor.needs)
    return tuple(next((path for path in paths if path.is_file()), paths[0]) for paths in places)


def _best(home: Path, file: str) -> Path:
    """A .safetensors rather than what has its stem; A1111 and Forge have a folder for each kind of annotator."""
    path = home / file
    inside = [] if "/" in file else sorted(home.glob(f"*/{glob.escape(file)}"))
    found = next((each for each in (path, *inside) if each.is_file()), path)
    safe = path.with_suffix(".safetensors")
    return safe if path.suffix not in (".json", ".onnx") and safe.is_file() else found


def missing(preprocessor: Preprocessor, annotators: Annotators) -> tuple[str, ...]:
    """Those of its files that are not there."""
    found = located(preprocessor, annotators)
    return tuple(file for file, path in zip(preprocessor.needs, found, strict=True) if not path.is_file())


def say_missing(preprocessor: Preprocessor, files: Sequence[str]) -> str:
    """One sentence: what is missing, where it goes, where it is found."""
    folders: dict[str, list[str]] = {}
    for file in files:
        path = Path("models/annotators") / file
        folders.setdefault(path.parent.as_posix(), []).append(path.name)
    put = _listed([f"{_listed(names)} into {folder}" for folder, names in folders.items()])
    pages = dict.fromkeys(f"https://huggingface.co/{source(file).repo}" for file in files)
    return f"{preprocessor.label} needs weights that are not here: put {put} (from {' and '.join(pages)})"


def _listed(words: Sequence[str]) -> str:
    return " and ".join((*([", ".join(words[:-1])] if words[1:] else []), words[-1]))
