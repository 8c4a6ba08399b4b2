"""A LoRA file in memory, and what it adds to a weight.

With x the multiplier, W the weight and s = alpha / rank:
    LoRA, LoCon   W + x s B A                        B "up", A "down"; with "mid" between them where a kernel is split
    LoHa          W + x s (B1 A1) * (B2 A2)          Hadamard product (LyCORIS)
    LoKr          W + x s (C kron D)                 each may be a product of two
    DoRA          W + x (m V / |V| - W), V = W + s B A   magnitude m by row (peft) or by column (LyCORIS)
    IA3           W + x W w                          by row, or by column with `on_input`
    full, norm    W + x diff
"""

import json
import math
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor
from torch.nn.functional import pad

from backend import weights
from backend.errors import gist
from backend.lora import keys
from backend.lora.keys import Module
from backend.weights import BrokenFile

SCALARS = {"alpha", "scale", "on_input"}
BY_ROW = {"up", "dora", "magnitude", "diff_b", "b_norm", "weight"}
"""Parts that have one number, or one row, for each row of the weight."""
_SCALED = {"alpha", "scale", "dora", "magnitude"}
PEFT_WEIGHTS, PEFT_SETTINGS = "adapter_model.safetensors", "adapter_config.json"
"""What peft saves an adapter as."""


class Piece:
    """What a file has for one module."""

    def __init__(self, kind: str, tensors: Mapping[str, torch.nn.Parameter], numbers: Mapping[str, float]) -> None:
        self.kind = kind
        self._tensors = tensors
        self._numbers = numbers

        self._rows: dict[tuple[tuple[range, ...], int], Rows] = {}

    def rows(self, taken: tuple[range, ...], of: int) -> "Rows":
        """What it does to these rows of a weight that has as many rows as `of`; the same object each time."""
        key = taken, of
        if key not in self._rows:
            self._rows[key] = Rows(self.kind, self._tensors, self._numbers, *key)
        return self._rows[key]

    def cut(self, change: Tensor) -> Tensor:
        """Its rows of a change."""
        return change

    def cut_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        return shape

    def __contains__(self, part: str) -> bool:
        return part in self._tensors

    def __getitem__(self, part: str) -> Tensor:
        return self._tensors[part].detach().float()

    def shape(self, part: str) -> tuple[int, ...]:
        return tuple(self._tensors[part].shape)

    @property
    def changes_bias(self) -> bool:
        return "diff_b" in self or "b_norm" in self

    @property
    def changes_weight(self) -> bool:
        return not self._tensors.keys() <= {"diff_b", "b_norm"}

    @property
    def lengths(self) -> str:
        """The part that says how long rows or columns are in the end (DoRA); empty: there is none."""
        return next((part for part in ("dora", "magnitude") if part in self), "")

    def number(self, part: str) -> float | None:
        return self._numbers.get(part)

    def scale(self, rank: int) -> float:
        """`alpha / rank`, where the file does not say it outright; rank 0: there is none."""
        if (scale := self.number("scale")) is not None:
            return scale
        alpha = self.number("alpha")
        return 1.0 if alpha is None or not rank else alpha / rank


class Rows(Piece):
    """Of a piece for several modules in one, such as q, k and v, what belongs to one; or its rows in another order."""

    def __init__(
        self,
        kind: str,
        tensors: Mapping[str, torch.nn.Parameter],
        numbers: Mapping[str, float],
        taken: tuple[range, ...],
        of: int,
    ) -> None:
        super().__init__(kind, tensors, numbers)
        self._taken, self._of = taken, of

    def __getitem__(self, part: str) -> Tensor:
        whole = super().__getitem__(part)
        return self.cut(whole) if part in BY_ROW else whole

    def shape(self, part: str) -> tuple[int, ...]:
        whole = super().shape(part)
        return self.cut_shape(whole) if part in BY_ROW else whole

    def cut(self, change: Tensor) -> Tensor:
        return torch.cat([change[r.start : r.stop] for r in self._taken]) if len(change) == self._of else change

    def cut_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        return (sum(map(len, self._taken)), *shape[1:]) if shape[0] == self._of else shape


class Network(torch.nn.Module):
    """All pieces of a file; a module, so that the engine keeps it as it keeps models."""

    def __init__(self, pieces: Mapping[Module, Piece], tensors: Iterable[torch.nn.Parameter]) -> None:
        super().__init__()
        self.pieces = pieces
        self.tensors = torch.nn.ParameterList(tensors)


def read(path: Path) -> Network:
    """Raises BrokenFile, which names what cannot be read or is not known."""
    settings = _settings(path)
    tensors = _tensors(path)
    parsed = {key: keys.parse(key) for key in tensors}
    groups: dict[Module, dict[str, Tensor]] = defaultdict(dict)
    for key, meant in parsed.items():
        if meant and meant.part in groups[meant.module]:
            raise BrokenFile(f"has {meant.part} for {meant.module[1]} twice")
        if meant:
            groups[meant.module][meant.part] = tensors[key]
    kinds = {module: _kind(group) for module, group in groups.items()}
    if unknown := [key for key, meant in parsed.items() if meant is None or not kinds[meant.module]]:
        raise BrokenFile(f"has parts that are not known here: {_named(unknown)}")
    pieces: dict[Module, Piece] = {}
    kept: list[torch.nn.Parameter] = []
    for module, group in groups.items():
        large = {part: _parameter(t) for part, t in group.items() if part not in SCALARS}
        numbers = {part: float(group[part].flatten()[0]) for part in SCALARS & group.keys()}
        pieces[module] = Piece(kinds[module], large, numbers or _scale_of(settings, module))
        kept += large.values()
    return Network(pieces, kept)


def check_fit(piece: Piece, original: Tensor) -> None:
    """Raises ValueError unless the piece is of one mould and fits the weight that it changes; nothing is computed."""
    if not piece.changes_weight:
        return
    shape = piece.cut_shape(KINDS[piece.kind].shape(piece, original))
    whole = (shape[0], 9, *shape[2:]) if _is_inpainting(shape, original.shape) else shape
    if whole[0] != original.shape[0] or math.prod(whole) != original.numel():
        raise _misfit(shape, original)
    if piece.lengths and math.prod(piece.shape(piece.lengths)) not in original.shape[: 1 + (piece.lengths == "dora")]:
        raise _misfit(piece.shape(piece.lengths), original)


def add(weight: Tensor, piece: Piece, by: float, original: Tensor, rank: int | None = None) -> Tensor:
    """`weight` with `by` times what the piece makes of `original`, both float32 and of one shape.

    `weight` itself may be changed unless it is `original`.
    """
    if piece.kind == "lora" and "mid" not in piece and not piece.lengths:
        up, down, scale = _pair(piece, rank)
        flat = weight.flatten(1)
        if (up.shape[0], down.shape[1]) == flat.shape:  # in one go: the product is never written down
            fresh = weight is original
            by *= scale
            new = torch.addmm(flat, up, down, alpha=by) if fresh else flat.addmm_(up, down, alpha=by)
            return new.view(weight.shape)
    return weight + by * _change(piece, original, rank)


def bias(piece: Piece) -> Tensor:
    """What is added to a module's bias."""
    return piece["diff_b" if "diff_b" in piece else "b_norm"]


# --- reading


def _settings(path: Path) -> Mapping[str, Mapping[str, Any]]:
    """peft's settings by component: where alpha is not the rank, it stands nowhere else.

    diffusers writes them into the file, and peft itself beside it.
    """
    written, beside = weights.read(path).metadata.get("lora_adapter_metadata"), path.with_name(PEFT_SETTINGS)
    if written is None and path.name == PEFT_WEIGHTS and beside.is_file():
        return {"unet": _table(beside.read_bytes(), PEFT_SETTINGS)}
    found: dict[str, dict[str, Any]] = defaultdict(dict)
    for name, value in _table(written or "{}", "lora_adapter_metadata").items():
        component, _, setting = name.partition(".")
        found["unet" if component == "transformer" else component][setting] = value
    return found


def _table(text: str | bytes, name: str) -> Mapping[str, Any]:
    try:
        said = json.loads(text)
    except (ValueError, RecursionError):
        raise BrokenFile(f"is damaged: its {name} is not JSON") from None
    return said if isinstance(said, dict) else {}


def _tensors(path: Path) -> dict[str, Tensor]:
    try:
        with safe_open(path, "pt") as file:
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError, RuntimeError) as error:
        raise BrokenFile(f"is damaged or cut short ({gist(error)})") from None
    for key, tensor in tensors.items():
        if not tensor.numel() or not torch.isfinite(tensor.float().sum()):
            raise BrokenFile(f"is damaged: {key[:100]} holds no numbers, or some that are not finite")
    return tensors


def _parameter(tensor: Tensor) -> torch.nn.Parameter:
    floating = tensor if tensor.is_floating_point() else tensor.float()
    return torch.nn.Parameter(floating, requires_grad=False)


def _kind(group: Mapping[str, Tensor]) -> str:
    """Which of KINDS it is; empty: none, or not whole."""
    if any(group[part].dim() < 2 for part in group if re.match("up|down|mid|hada|lokr", part)):
        return ""
    return next((name for name, kind in KINDS.items() if kind.parts >= group.keys() and kind.is_whole(group)), "")


def _scale_of(settings: Mapping[str, Mapping[str, Any]], module: Module) -> dict[str, float]:
    component, name = module
    said = settings.get(component, {})
    alpha = _for_module(said, "alpha_pattern", name) or said.get("lora_alpha", said.get("alpha"))
    rank = _for_module(said, "rank_pattern", name) or said.get("r")
    if not isinstance(alpha, int | float) or not isinstance(rank, int | float) or rank <= 0:
        return {}
    return {"scale": alpha / (math.sqrt(rank) if said.get("use_rslora") else rank)}


def _for_module(said: Mapping[str, Any], pattern: str, name: str) -> Any:
    patterns = said.get(pattern)
    for ending, value in patterns.items() if isinstance(patterns, dict) else ():
        flat = str(ending).replace(".", "_")
        if name == flat or name.endswith(f"_{flat}"):
            return value
    return None


def _named(names: list[str]) -> str:
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(name[:100] for name in names[:3]) + more


# --- the change in the weight's own shape


def _change(piece: Piece, original: Tensor, rank: int | None) -> Tensor:
    change = _fitted(piece.cut(KINDS[piece.kind].change(piece, original, rank)), original)
    return _decomposed(original + change, piece) - original if piece.lengths else change


def _decomposed(weight: Tensor, piece: Piece) -> Tensor:
    """DoRA: the directions of `weight`, each of the length that the piece gives it."""
    magnitude = piece[piece.lengths]
    lies = piece.lengths == "dora" and magnitude.dim() > 1 and magnitude.shape[0] == 1  # (1, in, 1, 1)
    side = 1 if (lies and magnitude.shape[1] == weight.shape[1]) or magnitude.numel() != weight.shape[0] else 0
    others = [n for n in range(weight.dim()) if n != side]
    norm: Tensor = torch.linalg.vector_norm(weight, dim=others, keepdim=True)
    return weight * (magnitude.reshape(norm.shape) / norm.clamp_min(torch.finfo(norm.dtype).eps))


def _fitted(change: Tensor, original: Tensor) -> Tensor:
    """In the shape of `original`: a 1 x 1 kernel is a matrix, and an inpainting model's first layer sees more."""
    if _is_inpainting(change.shape, original.shape):
        change = pad(change, (0, 0, 0, 0, 0, 5))
    return change.reshape(original.shape)


def _is_inpainting(shape: Sequence[int], original: Sequence[int]) -> bool:
    """Whether the model has 9 channels where the change knows 4; the mask and what it leaves of a picture are last."""
    return len(shape) == len(original) == 4 and (shape[1], original[1]) == (4, 9)


def _misfit(shape: Sequence[int], original: Tensor) -> ValueError:
    return ValueError(f"is of size {_size(shape)} where the model has {_size(original.shape)}")


def _unmatched(a: Sequence[int], b: Sequence[int]) -> ValueError:
    return ValueError(f"has factors of sizes {_size(a)} and {_size(b)}, which cannot be multiplied")


def _size(shape: Sequence[int]) -> str:
    return " x ".join(map(str, shape))


# --- the kinds


def _pair(piece: Piece, rank: int | None) -> tuple[Tensor, Tensor, float]:
    up, down = piece["up"], piece["down"]
    return up.flatten(1)[:, :rank], down[:rank].flatten(1), piece.scale(down.shape[0])


def _lora(piece: Piece, original: Tensor, rank: int | None) -> Tensor:
    up, down, scale = _pair(piece, rank)
    if "mid" in piece:
        return torch.einsum("nmkl,in,mj->ijkl", piece["mid"][:rank, :rank], up, down) * scale
    return (up @ down).view(-1, *piece.shape("down")[1:]) * scale


def _lora_shape(piece: Piece, original: Tensor) -> tuple[int, ...]:
    up, down = piece.shape("up"), piece.shape("down")
    mid = piece.shape("mid") if "mid" in piece else (down[0], down[0])
    if (math.prod(up[1:]), down[0]) != mid[:2]:
        raise _unmatched(up, down)
    return (up[0], down[1], *mid[2:]) if "mid" in piece else (up[0], *down[1:])


def _loha(piece: Piece, original: Tensor, rank: int | None) -> Tensor:
    def half(n: int) -> Tensor:
        a, b = piece[f"hada_w{n}_a"], piece[f"hada_w{n}_b"]
        if f"hada_t{n}" in piece:
            return torch.einsum("ijkl,jr,ip->prkl", piece[f"hada_t{n}"], b, a)
        return a @ b.flatten(1)

    return half(1) * half(2) * piece.scale(piece.shape("hada_w1_b")[0])


def _loha_shape(piece: Piece, original: Tensor) -> tuple[int, ...]:
    first, second = (_factored(piece, f"hada_w{n}", f"hada_t{n}") for n in (1, 2))
    if math.prod(first) != math.prod(second):
        raise _unmatched(first, second)
    return first


def _lokr(piece: Piece, original: Tensor, rank: int | None) -> Tensor:
    ranks = [piece.shape(part)[0] for part in ("lokr_w2_b", "lokr_w1_b") if part in piece]
    first = piece["lokr_w1"] if "lokr_w1" in piece else piece["lokr_w1_a"] @ piece["lokr_w1_b"]
    if "lokr_w2" in piece:
        second = piece["lokr_w2"]
    elif "lokr_t2" in piece:
        second = torch.einsum("ijkl,ip,jr->prkl", piece["lokr_t2"], piece["lokr_w2_a"], piece["lokr_w2_b"])
    else:
        b = piece["lokr_w2_b"]
        second = (piece["lokr_w2_a"] @ b.flatten(1)).view(-1, *b.shape[1:])
    if second.dim() == 4:
        first = first[:, :, None, None]
    return torch.kron(first, second.contiguous()) * piece.scale(ranks[0] if ranks else 0)


def _lokr_shape(piece: Piece, original: Tensor) -> tuple[int, ...]:
    first, second = (
        piece.shape(f"lokr_w{n}") if f"lokr_w{n}" in piece else _factored(piece, f"lokr_w{n}", f"lokr_t{n}")
        for n in (1, 2)
    )
    return first[0] * second[0], first[1] * second[1], *second[2:]


def _factored(piece: Piece, name: str, core: str) -> tuple[int, ...]:
    """The size of what two factors, or two and a core between them, give."""
    a, b = piece.shape(f"{name}_a"), piece.shape(f"{name}_b")
    if core not in piece:
        if a[1] != b[0]:
            raise _unmatched(a, b)
        return a[0], *b[1:]
    if (a[0], b[0]) != piece.shape(core)[:2]:
        raise _unmatched(a, b)
    return a[1], b[1], *piece.shape(core)[2:]


def _ia3(piece: Piece, original: Tensor, rank: int | None) -> Tensor:
    side = 1 if piece.number("on_input") else 0
    return original * piece["weight"].reshape([-1 if n == side else 1 for n in range(original.dim())])


def _ia3_shape(piece: Piece, original: Tensor) -> tuple[int, ...]:
    if math.prod(piece.shape("weight")) != original.shape[1 if piece.number("on_input") else 0]:
        raise _misfit(piece.shape("weight"), original)
    return tuple(original.shape)


class _Kind(NamedTuple):
    parts: frozenset[str]
    """What it may consist of."""
    needed: tuple[frozenset[str], ...]
    """Of one of these sets all must be there."""
    change: Callable[[Piece, Tensor, int | None], Tensor]
    shape: Callable[[Piece, Tensor], tuple[int, ...]]

    def is_whole(self, group: Mapping[str, Tensor]) -> bool:
        return any(needed <= group.keys() for needed in self.needed)


def _whole(part: str) -> _Kind:
    """The change itself stands in the file, and perhaps one of the bias."""
    of_bias = {"diff": "diff_b", "w_norm": "b_norm"}[part]
    parts = frozenset({part, of_bias})
    needed = frozenset({part}), frozenset({of_bias})
    return _Kind(parts, needed, lambda piece, *_: piece[part], lambda piece, _: piece.shape(part))


_LOHA = frozenset({"hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b"})
_LOKR = (frozenset({"lokr_w1"}), frozenset({"lokr_w1_a", "lokr_w1_b"}))
_LOKR_2 = (frozenset({"lokr_w2"}), frozenset({"lokr_w2_a", "lokr_w2_b"}))
KINDS: Mapping[str, _Kind] = {
    "lora": _Kind(
        frozenset({"up", "down", "mid", *_SCALED}), (frozenset({"up", "down"}),), change=_lora, shape=_lora_shape
    ),
    "loha": _Kind(_LOHA | {"hada_t1", "hada_t2", *_SCALED}, (_LOHA,), change=_loha, shape=_loha_shape),
    "lokr": _Kind(
        frozenset().union(*_LOKR, *_LOKR_2, {"lokr_t2"}, _SCALED),
        tuple(first | second for first in _LOKR for second in _LOKR_2),
        change=_lokr,
        shape=_lokr_shape,
    ),
    "full": _whole("diff"),
    "norm": _whole("w_norm"),
    "ia3": _Kind(
        frozenset({"weight", "on_input"}), (frozenset({"weight", "on_input"}),), change=_ia3, shape=_ia3_shape
    ),
}
